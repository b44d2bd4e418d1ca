"""The code and the commands in the documentation run."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dhmm_rl.languages import LANGUAGES
from dhmm_rl.languages.__main__ import Args
from dhmm_rl.languages.options import with_options
from dhmm_rl.recipes import load_recipes
from tests.documentation import ROOT, blocks, commands, parse, run_python

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
LANGUAGES_PAGE = DOCS / "languages.md"


@pytest.mark.parametrize("page", [page for page in PAGES if page != LANGUAGES_PAGE], ids=lambda page: page.stem)
def test_the_code_of_every_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run_python(page)
    assert ran >= sum(block.language == "python" for block in blocks(page)) - 1  # one may need a trained agent


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_is_one_that_exists(page: Path) -> None:
    for words in commands(page):
        args = parse(words)
        if words[0] in ("dhmm_rl.ppo", "dhmm_rl.pretrain"):
            load_recipes(args.env, args.agent)


def test_recipes_that_are_shown_are_valid(tmp_path: Path) -> None:
    env, agent, extending = (block.text for block in blocks(DOCS / "recipes.md") if block.language == "toml")
    (tmp_path / "env.toml").write_text(env, encoding="utf-8")
    (tmp_path / "agent.toml").write_text(agent, encoding="utf-8")
    env_recipe, agent_recipe = load_recipes(str(tmp_path / "env.toml"), str(tmp_path / "agent.toml"))
    assert env_recipe.budget == 20_000
    assert agent_recipe.n_envs == 16
    (tmp_path / "extending.toml").write_text(extending, encoding="utf-8")
    assert load_recipes("CartPole-v1", str(tmp_path / "extending.toml"))[1].model["num_states"] == 16


def test_every_page_is_reachable_from_the_index() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = {name for tree in re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL) for name in tree.split()}
    assert {page.stem for page in PAGES} - {"index"} <= listed


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = json.loads((ROOT / "examples/tiger_belief.ipynb").read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "notebook"}
    for number, cell in enumerate(cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        code = re.sub(r"^STEPS = .*$", "STEPS = 4_096", "".join(cell["source"]), flags=re.MULTILINE)
        exec(compile(code, f"cell {number}", "exec"), names)
    assert 0 <= names["episode_beliefs"].min() <= names["episode_beliefs"].max() <= 1


def test_a_language_of_ones_own_is_one_class(capsys: pytest.CaptureFixture[str]) -> None:
    own, use = (block.text for block in blocks(LANGUAGES_PAGE) if block.language == "python")
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


def test_the_options_of_every_language_command_exist() -> None:
    of_languages = [parse(words) for words in commands(LANGUAGES_PAGE)]
    assert len(of_languages) == 9
    for args in of_languages:
        assert isinstance(args, Args)
        if args.name in LANGUAGES:
            with_options(LANGUAGES[args.name], args.set)


def test_the_table_names_every_language() -> None:
    page = LANGUAGES_PAGE.read_text(encoding="utf-8")
    named = set(
        re.findall(r"`([a-z0-9-]+)`", "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("|")))
    )
    assert named == set(LANGUAGES)
