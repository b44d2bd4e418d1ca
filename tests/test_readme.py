"""The README's commands and code run, and a reader finds them quickly."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks import figure
from tests.documentation import ROOT, blocks, commands, parse, with_small_budgets

README = ROOT / "README.md"
LINES = README.read_text(encoding="utf-8").splitlines()
PYTHON = [block.text for block in blocks(README) if block.language == "python"]
COMMANDS = commands(README)


@pytest.mark.parametrize("code", PYTHON)
@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_every_python_example_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(with_small_budgets(code), "README.md", "exec"), {})


def test_the_two_changed_lines_are_all_that_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (diff,) = (block.text.splitlines() for block in blocks(README) if block.language == "diff")
    assert [line[0] for line in diff] == ["-", "+", "-", "+"]
    imports = "from stable_baselines3 import PPO\nfrom stable_baselines3.common.env_util import make_vec_env\n"
    imports += "from dhmm_rl import SequencePPO, VecTokenStream\n"
    for side in "-+":
        lines = [line[1:] for line in diff if line[0] == side]
        names: dict[str, Any] = {}
        exec(imports + "\n".join(lines), names)
        observation = names["env"].reset()
        assert len(names["model"].predict(observation)[0]) == 8


def test_the_commands_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = {
        "dhmm_rl.ppo": ["--steps", "1024", "--final-episodes", "2", "--quiet"],
        "dhmm_rl.play": ["--episodes", "2"],
        "dhmm_rl.languages": ["--steps", "5"],
    }
    assert [words[0] for words in COMMANDS] == list(small)
    for words in COMMANDS:
        parse(words)  # as it stands
        module = import_module(words[0])
        main = getattr(module, "main", None) or import_module(f"{words[0]}.__main__").main
        main(parse([*words, *small[words[0]]]))
    assert (tmp_path / "cartpole.mp4").stat().st_size > 0


def test_the_targets_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([a-z-]+)", README.read_text(encoding="utf-8")):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"there is no make {target}"


def test_a_reader_finds_what_it_is_how_to_install_it_and_python_within_50_lines() -> None:
    assert 100 <= len(LINES) <= 130
    first = "\n".join(LINES[:50])
    assert "pip install dhmm-rl" in first
    assert PYTHON[0] in first
    assert len(PYTHON[0].splitlines()) <= 12


def test_links_lead_to_files_that_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", README.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_the_figure_is_drawn_from_committed_runs_of_ten_seeds(tmp_path: Path) -> None:
    args = figure.Args(ROOT / figure.Args.runs, tmp_path / "figure.png")
    assert {run["seed"] for run in figure.read_runs(args.runs)} == {str(seed) for seed in range(10)}
    agents = [run["agent"] for run in figure.read_runs(args.runs)]
    assert {agent: agents.count(agent) for agent in agents} == dict.fromkeys(figure.LABELS, 10)
    figure.main(args)
    assert args.out.stat().st_size > 10_000
