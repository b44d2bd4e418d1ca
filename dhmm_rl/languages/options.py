"""Finding languages by name, and parsing their options."""

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
    Return the language with a name.

    :param name: one of the known names, or ``module:Class`` for your own language; all its options must have defaults
    :param known: languages by name
    :raises InputError: when there is no such language
    """
    if name in known:
        return known[name]
    module, colon, class_name = name.partition(":")
    if not colon:
        raise InputError(f"unknown language {name!r}{did_you_mean(name, [*known, 'module:Class for your own'])}")
    try:
        language = getattr(importlib.import_module(module), class_name)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"the language {name} cannot be made ({error})") from error
    if not isinstance(language, Language):
        raise InputError(f"{name} is not a language; derive it from dhmm_rl.languages.Language")
    return language


def with_options(language: Language[Any], options: Iterable[str]) -> Language[Any]:
    """
    Return a language with other options.

    :param language: language to change
    :param options: options such as ``form=compact`` or ``sizes=1,20``
    :raises InputError: for an option that the language does not have, and for a value of a wrong type
    """
    return replace(language, **read_options(options, typing.get_type_hints(type(language)), [f.name for f in fields(language)]))


def read_options(options: Iterable[str], hints: dict[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """
    Parse options of the form ``key=value``.

    :param options: options to parse
    :param hints: types of the values, by key
    :param known: known keys
    :raises InputError: for an unknown key, and for a value of a wrong type
    """
    values: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if key not in known or not equals:
            raise InputError(f"{option!r} is not an option; give key=value, the keys are {', '.join(known)}")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        if not matches_type(value, hints[key]):
            raise InputError(f"{key} cannot be {text!r}; it is {describe_type(hints[key])}")
        values[key] = value
    return values
