"""The page of all keys of recipes, made from the dataclasses that check them."""

import ast
import inspect
import textwrap
import types
import typing
from dataclasses import MISSING, Field, fields, is_dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

from dhmm_rl.model.config import ModelSettings
from dhmm_rl.recipes import AgentRecipe, EnvRecipe
from dhmm_rl.recipes.algorithms import ALGORITHMS
from dhmm_rl.recipes.schema import FieldSettings, PolicySettings, PretrainSettings, TokenSettings
from dhmm_rl.validation import Matching, Range, Scheduled

HEAD = """# Keys of recipes

Every key with its type, its default and its meaning. This page is made from the dataclasses with which recipes are checked.
"""
WORDS = {int: "integer", float: "number", str: "string", bool: "true or false", Any: "anything"}


def page() -> str:
    """The text of the page, in Markdown."""
    tables: list[tuple[str, Any]] = [("An environment's recipe", EnvRecipe), ("[tokens]", TokenSettings)]
    tables += [("[tokens.fields]", FieldSettings), ("An agent's recipe", AgentRecipe)]
    tables += [("[model]", ModelSettings), ("[pretrain]", PretrainSettings)]
    tables += [(f"[ppo] of {name}", algorithm.settings) for name, algorithm in ALGORITHMS.items()]
    tables += [("[ppo.policy_kwargs]", PolicySettings)]
    return "\n".join([HEAD, *(table(title, kind) for title, kind in tables)])


def table(title: str, kind: Any) -> str:
    """A section with one row for each field of a dataclass; a recipe's name comes from its file and is not a key."""
    hints, texts = typing.get_type_hints(kind, include_extras=True), meanings(kind)
    title = f"`{title.partition(' of ')[0]}`{title.removeprefix(title.partition(' of ')[0])}" if title[0] == "[" else title
    lines = [f"## {title}", "", "| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for one in fields(kind):
        if one.name != "name":
            cells = [f"`{one.name}`", describe(hints[one.name]), default(one), texts[one.name]]
            lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("``", "`") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def meanings(kind: Any) -> dict[str, str]:
    """The strings after the fields of a dataclass and of those that it inherits from, by field."""
    found = {}
    for one in reversed([one for one in kind.__mro__ if is_dataclass(one)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0].body  # type: ignore[attr-defined]
        for statement, after in pairwise(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                found[ast.unparse(statement.target)] = " ".join(str(after.value.value).split())
    return found


def describe(hint: Any) -> str:
    """A type hint in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        for mark in arguments[1:]:
            if isinstance(mark, Matching):
                return mark.expected
            if isinstance(mark, Scheduled):
                return f"number, {mark.range}, or a schedule such as `lin_0.001`"
            if isinstance(mark, Range):
                return f"{describe(arguments[0])}, {mark}"
        return describe(arguments[0])
    if origin in (types.UnionType, typing.Union):
        return " or ".join(describe(argument) for argument in arguments if argument is not types.NoneType)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is list:
        return f"list of: {describe(arguments[0])}"
    return "table" if origin is dict or is_dataclass(hint) else WORDS[hint]


def default(one: Field[Any]) -> str:
    """The default of a field; empty if there is none, or if it is an empty table."""
    if one.default is MISSING:
        return "" if one.default_factory is not MISSING else "required"
    if one.default is None:
        return ""
    return f"`{str(one.default).lower() if isinstance(one.default, bool) else one.default}`"
