"""Configuration of the documentation: Sphinx, MyST (Markdown) and the furo theme; ``make docs`` builds it."""

import os
import re
from importlib.metadata import version as installed_version
from typing import Any

project = "dhmm-rl"
author = "dhmm-rl developers"
copyright = author
version = release = installed_version("dhmm-rl")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False

html_theme = "furo"
html_title = "dhmm-rl"

if os.environ.get("READTHEDOCS"):
    # Links into other projects need their inventories, which can be fetched there. A build elsewhere needs no network.
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "gymnasium": ("https://gymnasium.farama.org", None),
        "stable_baselines3": ("https://stable-baselines3.readthedocs.io/en/master", None),
    }


def escape_shapes(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep the star of shapes such as (B, T, *S) in docstrings from being read as emphasis."""
    lines[:] = [re.sub(r"(?<=[(, ])\*(?=[A-Z]\b)", r"\\*", line) for line in lines]


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", escape_shapes)
