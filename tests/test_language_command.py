"""``python -m dhmm_rl.languages``: training, resuming, evaluating and showing traces."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dhmm_rl.cli import run_command
from dhmm_rl.errors import InputError
from dhmm_rl.languages import LANGUAGES, Addition, Parity
from dhmm_rl.languages.__main__ import RENAMED, Args, main
from dhmm_rl.languages.latent_automaton import read_automaton
from dhmm_rl.languages.options import find_language, with_options
from dhmm_rl.languages.run import LanguageRun
from dhmm_rl.model import load_checkpoint
from dhmm_rl.pretraining import trainer as language_model
from dhmm_rl.pretraining.trainer import learning_rate
from dhmm_rl.runs.logs import read_log
from tests.test_latent_automaton import is_the_automaton

SMALL = Args(
    "bubble-sort",
    set=("sizes=2,2", "values=4"),
    model=("embed_size=32", "heads=2"),
    steps=150,
    learning_rate=1e-2,
    eval_every=50,
    num_eval_examples=30,
    quiet=True,
)


def test_it_learns_to_sort_and_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(replace(SMALL, runs=tmp_path))
    out = capsys.readouterr().out
    assert "beyond the training's sizes" in out
    assert out.count("-> solved") == 2
    folder = tmp_path / "bubble-sort/languages/1"
    result = json.loads((folder / "result.json").read_text())
    assert result["sizes"][0]["exact"] == 1
    assert [entry["size"] for entry in result["sizes"]] == [2, 4]
    assert "held_out/exact" in (folder / "progress_languages.csv").read_text()
    assert list(folder.glob("events.out.tfevents*"))
    assert f"curve:            {folder}/curve.png\n" in out
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    run = LanguageRun.open(folder)
    assert run.language == with_options(LANGUAGES["bubble-sort"], SMALL.set)
    assert load_checkpoint(run.language_model).model.config.reach == [1, 6]

    for asked in (replace(SMALL, resume=folder), replace(SMALL, runs=tmp_path)):
        main(replace(asked, show="3 1"))
        assert capsys.readouterr().out == "START 3 1\nCOMPARE 3 1 SWAP\nEND\n-> solved: 1 3\n"
    main(Args(runs=tmp_path, evaluate=(4, 6), num_eval_examples=30))
    table = [line.split()[:4] for line in capsys.readouterr().out.splitlines()[1:]]
    exact, tokens, nats = (result["sizes"][1][name] for name in ("exact", "tokens", "nats"))
    assert table[0] == ["4", f"{exact:.2%}", f"{tokens:.2%}", f"{nats:.4f}"]
    assert table[1][0] == "6"
    with pytest.raises(InputError, match="7 is too large"):
        main(replace(SMALL, runs=tmp_path, show="7 1"))
    with pytest.raises(InputError, match="is complete"):
        main(Args(resume=folder))


def test_what_a_process_showed_is_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = Args("markov-chain", set=("sizes=5,5", "states=3"), steps=60, num_eval_examples=5, runs=tmp_path, quiet=True)
    main(asked)
    assert "entropy rate: 0." in capsys.readouterr().out
    main(replace(asked, show="A B C"))
    start, trace, verdict = capsys.readouterr().out.splitlines()
    assert (start, verdict) == ("START", "-> legal")
    assert trace.startswith("A B C ")
    assert len(trace.split()) == 3 + 5


def test_what_suits_a_language_is_its_own_to_say(tmp_path: Path) -> None:
    class Looks(Parity):
        @property
        def training(self) -> dict[str, Any]:
            return {"steps": 4, "eval_every": 2, "patience": 1}

    LANGUAGES["looks"] = Looks(sizes=(1, 2))
    try:
        main(Args("looks", num_eval_examples=5, runs=tmp_path, quiet=True))
    finally:
        del LANGUAGES["looks"]
    settings = json.loads((tmp_path / "looks/languages/1/run.json").read_text())["settings"]
    assert (settings["steps"], settings["eval_every"], settings["patience"]) == (4, 2, 1)


class Interrupted(Exception):
    pass


def test_an_interrupted_run_ends_as_though_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(SMALL, set=(*SMALL.set, "growth=0.5", "sizes=1,4"), steps=60, eval_every=20)
    main(replace(short, runs=tmp_path / "whole"))
    seen = 0

    def interrupt(*arguments: Any) -> float:
        nonlocal seen
        seen += 1
        if seen > 60:  # twice a step: after the first checkpoint, before the second
            raise Interrupted
        return learning_rate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(language_model, "learning_rate", interrupt)
        with pytest.raises(Interrupted):
            main(replace(short, runs=tmp_path / "parts"))
    parts = tmp_path / "parts/bubble-sort/languages/1"
    assert not LanguageRun.open(parts).language_model.exists()
    with pytest.raises(InputError, match="is not finished"):
        main(Args(resume=parts, show="3 1"))
    state = torch.load(parts / "training.pt")
    torch.save(state | {"seconds": state["seconds"] + 1000}, parts / "training.pt")
    main(Args(resume=parts, quiet=True))
    whole, resumed = (
        load_checkpoint(tmp_path / f"{part}/bubble-sort/languages/1/pretrained.pt") for part in ("whole", "parts")
    )
    assert whole.info["sizes"] == resumed.info["sizes"]
    assert resumed.info["seconds"] > 1000
    for mine, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert [row["pretrain/steps"] for row in read_log(parts, "languages")] == ["20", "40", "60"]


@pytest.mark.parametrize("name", ["mess3", "parity", "stream"])
def test_processes_automata_and_streams_are_learned_too(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(
        Args(
            name,
            set=("sizes=5,9",),
            steps=20,
            eval_every=10,
            num_eval_examples=10,
            extrapolate=(12,),
            runs=tmp_path,
            quiet=True,
        )
    )
    out = capsys.readouterr().out
    assert ("best" in out) == (name == "mess3")
    result = json.loads((tmp_path / name / "languages/1/result.json").read_text())
    assert [entry["size"] for entry in result["sizes"]] == [5, 9, 12]
    assert ("best_nats" in result["sizes"][0]) == (name == "mess3")


@pytest.mark.parametrize("name", ["parity", "counting"])
def test_running_states_learned_on_40_tokens_are_right_after_512(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(Args(name, steps=800, extrapolate=(512,), num_eval_examples=50, runs=tmp_path, quiet=True))
    result = json.loads((tmp_path / name / "languages/1/result.json").read_text())
    assert [entry["exact"] for entry in result["sizes"][:2]] == [1, 1]
    assert result["sizes"][2]["tokens"] >= 0.99  # at chance, 0.5 or 0.2; by counting steps alone, too
    run = LanguageRun.open(tmp_path / name / "languages/1")
    model = load_checkpoint(run.language_model).model
    assert is_the_automaton(read_automaton(model, run.language, run.held_out()), run.language)
    assert capsys.readouterr().out.endswith(f"automaton:        {run.folder}/automaton.png\n")
    assert (run.folder / "automaton.png").is_file()


def test_mess3_is_learned_with_its_beliefs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(Args("mess3", steps=300, runs=tmp_path, quiet=True))
    result = json.loads((tmp_path / "mess3/languages/1/result.json").read_text())
    assert result["sizes"][0]["nats"] - result["sizes"][0]["best_nats"] < 0.003
    r2 = result["true_belief_r2"]
    assert r2["belief"] >= 0.99
    assert r2["last_symbol"] < 0.85  # what a learner without memory would reach
    assert f"R² of a linear read-out of the true belief: {r2['belief']:.4f}" in capsys.readouterr().out


def test_chains_drawn_anew_are_learned_in_context(tmp_path: Path) -> None:
    small = ("embed_size=32", "heads=2")
    main(Args("in-context-chains", set=("sizes=64,64",), model=small, steps=300, batch_size=32, runs=tmp_path, quiet=True))
    result = json.loads((tmp_path / "in-context-chains/languages/1/result.json").read_text())
    assert "true_belief_r2" not in result
    # without the latent layer it stays at 0.10, since one block of attention cannot know what stood before a symbol
    assert result["sizes"][0]["nats"] - result["sizes"][0]["best_nats"] < 0.02


def test_a_language_of_ones_own_is_trained_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[1] / "docs/languages.md").read_text()
    (tmp_path / "own_euclid.py").write_text(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0])
    monkeypatch.syspath_prepend(tmp_path)
    main(Args("own_euclid:Euclid", steps=10, eval_every=10, num_eval_examples=10, runs=tmp_path, quiet=True))
    assert "8     0.00%" in capsys.readouterr().out
    main(Args("own_euclid:Euclid", runs=tmp_path, show="48 36"))
    assert capsys.readouterr().out.startswith("GCD 48 36\n")


BAD: dict[str, tuple[Args, str]] = {
    "unknown": (Args("bubble-srot"), "did you mean 'bubble-sort'"),
    "unknown, and like none": (Args("xyz"), "known are addition"),
    "no module": (Args("nowhere:Class"), "cannot be made"),
    "no language": (Args("fractions:Fraction"), "is not a language"),
    "no option": (Args("addition", set=("base=7",)), "the keys are sizes, growth, coupling, max_position, format"),
    "no value": (Args("addition", set=("format",)), "give key=value"),
    "another value": (Args("addition", set=("format=backwards",)), "one of plain, reversed, carry"),
    "another type": (Args("addition", set=("sizes=3",)), "sizes cannot be '3'"),
    "out of range": (Args("addition", set=("sizes=3,1",)), "sizes are 3 to 1"),
    "positions too few": (
        Args("addition", set=("coupling=learned", "max_position=8")),
        "up to 21 are needed; max_position is 8",
    ),
    "no model": (Args("parity", model=("layers=0", "num_states=0")), "leave no model"),
    "no such keyword": (Args("parity", model=("layer=0",)), "'layer=0' is not an option"),
    "no steps": (Args("parity", steps=0), "steps of pretraining is 0"),
    "no instances": (Args("parity", num_eval_examples=0), "at least 1"),
    "no size": (Args("parity", extrapolate=(0,)), "at least 1"),
    "nothing to judge": (Args("parity", evaluate=(40,)), "no finished run of parity"),
    "no keyword of languages": (Args("addition", model=("action_slots=1",)), "is not an option"),
    "no differences": (Args("addition", model=("reach=abc",)), "reach cannot be 'abc'; it is one or more, each a whole number"),
    "no width": (Args("addition", model=("ff_hidden=-1",)), "ff_hidden = -1; it must be at least 1"),
    "no seed": (Args("markov-chain", set=("seed=-1",)), "seed is -1"),
    "no chain": (Args("in-context-chains", set=("concentration=1e999",)), "concentration is inf"),
    "half a name": (Args(":Foo"), "the language :Foo cannot be made"),
    "no module of environments": (Args("stream", set=("env=nowhere:Foo-v0",)), "nowhere:Foo-v0 cannot be made"),
    "shown by a wrong name": (Args("bubble-srot", show="3 1"), "did you mean 'bubble-sort'"),
    "nothing to show": (Args("parity", show="1 0"), "no finished run of parity"),
    "no run": (Args(resume=Path("nowhere")), "is not the folder of a run"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_anything_is_made(name: str, tmp_path: Path) -> None:
    args, said = BAD[name]
    with pytest.raises(InputError, match=said) as refused:
        main(replace(args, runs=tmp_path / "runs"))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "runs").exists()


def test_options_are_read_by_their_type() -> None:
    language = with_options(find_language("addition", LANGUAGES), ["format=carry", "sizes=1,20", "growth=1", "max_position=64"])
    assert language == Addition(format="carry", sizes=(1, 20), growth=1, max_position=64)
    assert with_options(language, ["coupling=none"]) == replace(language, coupling="none")
    bad: list[Callable[[], Any]] = [
        lambda: with_options(language, ["growth=True"]),
        lambda: with_options(language, ["sizes=1,a"]),
    ]
    for make in bad:
        with pytest.raises(InputError, match="cannot be"):
            make()


def test_the_command_ends_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dhmm_rl.languages", "parity", "--set", "n=3", "--runs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: parity counts modulo 2, not 3; counting takes any n\n"


def test_options_with_an_old_name_still_work_and_a_note_names_the_new_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parsed: list[Args] = []
    monkeypatch.setattr(sys, "argv", ["languages", "parity", "--beyond", "20", "50", "--instances=7", "--judge", "3"])
    run_command(parsed.append, Args, "dhmm_rl.languages", RENAMED)
    assert (parsed[0].extrapolate, parsed[0].num_eval_examples, parsed[0].evaluate) == ((20, 50), 7, (3,))
    notes = capsys.readouterr().err.splitlines()
    assert [note.split(";")[0] for note in notes] == [
        "note: --beyond is now called --extrapolate",
        "note: --instances is now called --num-eval-examples",
        "note: --judge is now called --evaluate",
    ]
