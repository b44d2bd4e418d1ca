"""What the tests of the README and of the documentation share: code blocks of Markdown files, run or parsed."""

import contextlib
import io
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import tyro

ROOT = Path(__file__).parents[1]
UNTESTED = "<!-- no test: "


class Block(NamedTuple):
    """A fenced block: its language, its text, and the paragraph before it."""

    language: str
    text: str
    before: str


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(match[1], match[2], text[: match.start()].rstrip("\n").rpartition("\n")[2]) for match in found]


def with_small_budgets(code: str) -> str:
    """The code with the budgets that pages use (``50_000`` steps, ``1_000`` gradient steps) cut to what a test can afford."""
    return code.replace("50_000", "1_024").replace("1_000", "20")


def run_python(page: Path) -> int:
    """
    Run the Python blocks of a page one after another in one namespace.

    A ``text`` block after a Python block shows its output, and must be equal to it.

    :return: number of blocks that ran
    """
    names: dict[str, Any] = {"__name__": "page"}
    output, ran = None, 0
    for block in blocks(page):
        if block.language == "python" and not block.before.startswith(UNTESTED):
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(with_small_budgets(block.text), page.name, "exec"), names)
            output, ran = printed.getvalue(), ran + 1
        elif block.language == "text" and output is not None:
            assert output == block.text, f"{page.name} shows\n{block.text}but the code prints\n{output}"
    return ran


def commands(page: Path) -> list[list[str]]:
    """The words of every ``python -m`` command in the ``sh`` blocks of a page, from the module's name on."""
    lines = [line for block in blocks(page) if block.language == "sh" for line in block.text.splitlines()]
    split = [shlex.split(line, comments=True) for line in lines if " -m " in line]
    return [words[words.index("-m") + 1 :] for words in split]


def parse(words: list[str]) -> Any:
    """
    Parse the arguments of a command.

    :raises SystemExit: for unknown options and invalid values
    """
    module, *arguments = words
    args = getattr(import_module(module), "Args", None) or import_module(f"{module}.__main__").Args
    return tyro.cli(args, args=arguments)
