"""TOML tables: reading, merging and writing."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from dhmm_rl.errors import InputError

Table = dict[str, Any]


def read_table(path: Path) -> Table:
    """
    Read a TOML file.

    :raises InputError: if it is not valid TOML
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"the recipe {path} is not valid TOML: {error}") from error


def merge_tables(table: Table, changes: Table) -> Table:
    """Return a table with changes, which replace values key by key, in tables inside it, too."""
    merged = dict(table)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(value, dict):
            merged[key] = merge_tables(old if isinstance(old, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def format_table(table: Table, prefix: str = "") -> str:
    """
    Write a table as TOML. Keys without a value (``None``) and empty tables at the top are left out.

    :param table: strings, numbers, booleans, lists and tables by their keys
    :param prefix: key of the table itself, with those of the tables around it, such as ``ppo.policy_kwargs``
    """
    tables = {key: value for key, value in table.items() if isinstance(value, dict) and value}
    values = {key: value for key, value in table.items() if key not in tables and value is not None}
    if not prefix:
        values = {key: value for key, value in values.items() if value != {}}
    lines = [f"{_format_key(key)} = {_format_value(value)}" for key, value in values.items()]
    blocks = ["\n".join(lines)] if lines else []
    for key, value in tables.items():
        name = f"{prefix}.{_format_key(key)}" if prefix else _format_key(key)
        holds_tables_only = all(isinstance(one, dict) and one for one in value.values())
        inner = format_table(value, name)
        blocks.append(inner if holds_tables_only else f"[{name}]\n{inner}")
    return "\n\n".join(blocks)


def _format_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def _format_value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_format_value, value))}]"
    if isinstance(value, dict):
        if not value:
            return "{}"
        return "{ " + ", ".join(f"{_format_key(key)} = {_format_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)
