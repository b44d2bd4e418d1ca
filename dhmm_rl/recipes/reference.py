"""
The reference page of recipes: every key with its valid values, its default and its meaning.

The page is made from the dataclasses that check recipes, so that it is complete and correct.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from typing import Any

from dhmm_rl.model.config import ModelSettings
from dhmm_rl.recipes.algorithms import ALGORITHMS
from dhmm_rl.recipes.loading import AgentRecipe, EnvRecipe
from dhmm_rl.recipes.schema import (
    AlgorithmSettings,
    ExtractorSettings,
    FieldSettings,
    LSTMSettings,
    NetArch,
    OptimizerSettings,
    PolicySettings,
    PretrainSettings,
    TokenSettings,
)
from dhmm_rl.validation import describe_values

INTRODUCTION = """\
# Recipe reference

Every key of every recipe. This page is generated: `python -m dhmm_rl.recipes reference > docs/recipe-reference.md`.
[Recipes](recipes.md) explains how to write one.
"""

AGENT_TABLES: list[tuple[str, Any]] = [
    ("Agents, in `agents/`", AgentRecipe),
    ("`[model]`", ModelSettings),
    ("`[pretrain]`", PretrainSettings),
    ("`[ppo]`: keys of all algorithms", AlgorithmSettings),
]
POLICY_TABLES: list[tuple[str, Any]] = [
    ("`[ppo.policy_kwargs]`", PolicySettings),
    ("`[ppo.policy_kwargs.net_arch]`", NetArch),
    ("`[ppo.policy_kwargs.features_extractor_kwargs]`", ExtractorSettings),
    ("`[ppo.policy_kwargs.optimizer_kwargs]`", OptimizerSettings),
    ("`[ppo.policy_kwargs.lstm_kwargs]`", LSTMSettings),
]
ENV_TABLES: list[tuple[str, Any]] = [
    ("Environments, in `envs/`", EnvRecipe),
    ("`[tokens]`", TokenSettings),
    ('`[tokens.fields]`: a table for each field, such as `"observation[0]" = { bins = 20 }`', FieldSettings),
]


def format_reference() -> str:
    """Return the reference page as Markdown."""
    algorithm_tables = [(f"`[ppo]`: keys of {name}", algorithm.settings) for name, algorithm in ALGORITHMS.items()]
    sections = [INTRODUCTION]
    sections += [_format_section(title, kind) for title, kind in AGENT_TABLES]
    # The keys of all algorithms are listed once; an algorithm's own section has its further keys and other defaults.
    sections += [_format_section(title, kind, without=AlgorithmSettings) for title, kind in algorithm_tables]
    sections += [_format_section(title, kind) for title, kind in [*POLICY_TABLES, *ENV_TABLES]]
    return "\n".join(sections)


def _format_section(title: str, kind: Any, without: Any = None) -> str:
    """Return a heading, the dataclass's docstring and a table of its keys, without those that are the same in ``without``."""
    known = {} if without is None else {field.name: field for field in dataclasses.fields(without)}
    hints = typing.get_type_hints(kind, include_extras=True)
    meanings = field_docstrings(kind)
    rows = []
    for field in dataclasses.fields(kind):
        if field.name in known and known[field.name].default == field.default:
            continue
        cells = [f"`{field.name}`", describe_values(hints[field.name]), _format_default(field), meanings[field.name]]
        rows.append(f"| {' | '.join(_escape(cell) for cell in cells)} |")
    lines = [f"## {title}", "", _escape(inspect.getdoc(kind) or ""), ""]
    lines += ["| key | values | default | meaning |", "| --- | --- | --- | --- |", *rows] if rows else ["No further keys."]
    return "\n".join([*lines, ""])


def field_docstrings(kind: type[Any]) -> dict[str, str]:
    """Return the docstrings below the fields of a dataclass by the fields' names; base classes' where it has none itself."""
    docstrings: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        [definition] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for statement, following in zip(definition.body, definition.body[1:], strict=False):
            match statement, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    docstrings[name] = " ".join(text.split())
    return docstrings


def _format_default(field: dataclasses.Field[Any]) -> str:
    if field.name in ("name", "id"):
        return "the name of the file"
    if field.default_factory is not dataclasses.MISSING:
        return "empty"
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default is None:
        return "none"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    return f"`{field.default!r}`".replace("'", '"')


def _escape(text: str) -> str:
    """Turn the markup of docstrings into Markdown that fits into a cell of a table."""
    text = re.sub(r":\w+:`~?([^`]*)`", lambda match: f"`{match[1].rpartition('.')[2]}`", text)
    return " ".join(text.replace("``", "`").replace("|", "\\|").split())
