"""What the documentation shows is what runs."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro

from dhmm_rl.languages import LANGUAGES
from dhmm_rl.languages.__main__ import Args
from dhmm_rl.languages.options import with_options

PAGE = (Path(__file__).parents[1] / "docs/languages.md").read_text()


def test_a_language_of_ones_own_is_one_class(capsys: pytest.CaptureFixture[str]) -> None:
    own, use = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
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


def test_every_command_is_one_that_exists() -> None:
    commands = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 9
    for command in commands:
        words = shlex.split(command)
        assert words[:3] == ["python", "-m", "dhmm_rl.languages"]
        args = tyro.cli(Args, args=words[3:])
        if args.name in LANGUAGES:
            with_options(LANGUAGES[args.name], args.set)


def test_the_table_names_every_language() -> None:
    named = set(
        re.findall(r"`([a-z0-9-]+)`", "".join(line.split("|")[1] for line in PAGE.splitlines() if line.startswith("|")))
    )
    assert named == set(LANGUAGES)
