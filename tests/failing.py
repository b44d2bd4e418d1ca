"""Functions that fail in one of their calls, for tests of interruptions."""

from collections.abc import Callable
from typing import Any


def fail_at(number: int, fail: Callable[[], Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """
    Return a decorator that replaces one call of the functions it decorates.

    :param number: number of calls before it, of all decorated functions together
    :param fail: function that is called instead
    """
    calls = 0

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            return fail() if calls == number + 1 else function(*args, **kwargs)

        return call

    return decorate
