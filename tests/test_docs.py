"""What the documentation shows is what runs."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

LANGUAGES = (Path(__file__).parents[1] / "docs/languages.md").read_text()


def test_a_language_of_ones_own_is_one_class(capsys: pytest.CaptureFixture[str]) -> None:
    own, use = re.findall(r"```python\n(.*?)```", LANGUAGES, re.DOTALL)
    assert own.count("\n") < 60
    names: dict[str, Any] = {"__name__": "own"}
    exec(compile(own, "languages.md", "exec"), names)
    language, rng = names["Euclid"](), np.random.default_rng(0)
    for size in range(1, 9):
        for _ in range(20):
            instance = language.instance(size, rng)
            assert language.parse(" ".join(language.prompt(instance))) == instance
            trace = language.trace(instance)
            assert language.check(instance, trace).solved
            place = int(rng.integers(len(trace)))
            trace[place] = "IS" if trace[place] != "IS" else "MOD"
            illegal = language.check(instance, trace).illegal
            assert (illegal.place, illegal.token) == (place, trace[place])
    exec(compile(use.replace("1_000", "20"), "languages.md", "exec"), names)
    assert "Score(exact=" in capsys.readouterr().out
