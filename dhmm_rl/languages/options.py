"""Languages by name, with options given as text."""

import ast
import importlib
import typing
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

from dhmm_rl.errors import InputError
from dhmm_rl.languages.language import Language
from dhmm_rl.validation import describe_type, did_you_mean, matches_type


def find_language(name: str, known: dict[str, Language[Any]]) -> Language[Any]:
    """
    The language of a name.

    :param name: one of ``known``, or ``module:Class`` for one of your own, whose options all have defaults
    :raises InputError: when there is none
    """
    if name in known:
        return known[name]
    module, colon, class_name = name.partition(":")
    if not colon:
        raise InputError(f"unknown language {name!r}{did_you_mean(name, [*known, 'module:Class for one of your own'])}")
    try:
        language = getattr(importlib.import_module(module), class_name)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"the language {name} cannot be made ({error})") from error
    if not isinstance(language, Language):
        raise InputError(f"{name} is no language; derive it from dhmm_rl.languages.Language")
    return language


def with_options(language: Language[Any], options: Iterable[str]) -> Language[Any]:
    """
    A language with other options.

    :param options: such as ``form=compact`` or ``sizes=1,20``
    :raises InputError: for an option that it does not have, or a value that is none
    """
    return replace(language, **read_options(options, typing.get_type_hints(type(language)), [f.name for f in fields(language)]))


def read_options(options: Iterable[str], hints: dict[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """
    Values given as ``key=value``.

    :param hints: the type of each key
    :param known: keys that there are
    :raises InputError: for another key, or a value of another type
    """
    values: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if key not in known or not equals:
            raise InputError(f"{option!r} is no option; give key=value, the keys are {', '.join(known)}")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        if not matches_type(value, hints[key]):
            raise InputError(f"{key} cannot be {text!r}; it is {describe_type(hints[key])}")
        values[key] = value
    return values
