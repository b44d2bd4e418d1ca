"""Faults of models and their logs, by kind: each is fixed or ends in one line that says what is wrong."""

import csv
import json
import random
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import CSVOutputFormat
from torch import Tensor

from dhmm_rl import ppo, pretrain
from dhmm_rl.errors import InputError
from dhmm_rl.languages.__main__ import Args, main
from dhmm_rl.languages.latent_automaton import chain_agreement
from dhmm_rl.languages.run import LanguageRun
from dhmm_rl.model import DHMMGPT2, filter_kernels, generate, load_checkpoint, save_checkpoint
from dhmm_rl.model.bayes_filter import run_filter
from dhmm_rl.model.generation import choose
from dhmm_rl.recipes import load_recipes
from dhmm_rl.runs.logs import QuotedCSV, make_logger, read_log
from dhmm_rl.runs.time_limits import check_positions
from dhmm_rl.tokens import Slot, Tokenizer

NAMES = ["pixels[3,4,0]", 'the "left" wheel', "speed, angle", "Größe", "two\nlines", "plain", ""]


# Logs


def test_logs_are_csv_whatever_the_names(tmp_path: Path) -> None:
    names = [f"bits/{name}" for name in NAMES]
    logger = make_logger(tmp_path, "pretrain")
    for step in range(3):
        for number, name in enumerate(names[: 4 + step]):  # names may join later
            logger.record(name, 10.0 * step + number)
        logger.dump(step)
    logger.close()
    rows = read_log(tmp_path, "pretrain")
    with (tmp_path / "progress_pretrain.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == rows
    wanted = [" ".join(name.split()) for name in names[:6]]
    assert [{name: row[name] for name in wanted} for row in rows] == [
        {name: f"{10.0 * step + number}" if number < 4 + step else "" for number, name in enumerate(wanted)}
        for step in range(3)
    ]
    assert set(rows[0]) == set(wanted)


def test_plain_names_are_logged_as_stable_baselines_does(tmp_path: Path) -> None:
    for kind in (CSVOutputFormat, QuotedCSV):
        log = kind(str(tmp_path / kind.__name__))
        log.write({"a/b": 1.0}, {"a/b": ()}, 0)
        log.write({"a/b": 2.0, "c": "text, more"}, {"a/b": (), "c": ()}, 1)
        log.write({"a/b": 2.0, "hidden": 1.0}, {"a/b": (), "hidden": ("csv",)}, 2)
        log.close()
    assert (tmp_path / "QuotedCSV").read_bytes() == (tmp_path / "CSVOutputFormat").read_bytes()


# Weights that are not numbers


def damaged(model: DHMMGPT2, part: str, value: float) -> DHMMGPT2:
    """Return the model with one value in every row of one parameter replaced."""
    dict(model.named_parameters())[part].data.view(-1).fill_(value)
    return model.eval()


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "part", ["ln_f.weight", "head", "blocks.0.c_fc.weight", "latent.emission_logits", "latent.transition_logits"]
)
def test_weights_that_are_not_numbers_choose_no_token(part: str, value: float, greedy: bool, cartpole: Tokenizer) -> None:
    flat = damaged(DHMMGPT2(10, embed_size=16, heads=2), part, value)
    streams = damaged(DHMMGPT2.from_tokenizer(cartpole, embed_size=16, heads=2), part, value)
    first = torch.tensor([[[slot.start for slot in streams.slots]]])
    for model, prompt in ((flat, torch.tensor([[1, 2]])), (streams, first)):
        with pytest.raises(InputError, match=r"predictions are not finite numbers.*earlier checkpoint"):
            generate(model, prompt, 3, greedy=greedy)


# Arguments out of range


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e-40, 1e-300, float("inf"), float("nan")])
def test_temperatures_out_of_range_are_refused(temperature: float) -> None:
    with pytest.raises(InputError, match=r"temperature is .*positive and finite"):
        choose(torch.randn(3, 5), temperature=temperature)


@pytest.mark.parametrize("temperature", [1e-37, 1e-10, 1e30])
def test_any_other_temperature_chooses(temperature: float) -> None:
    logits = torch.tensor([[1e3, 0.0, -torch.inf, 999.0]]).expand(500, -1)
    chosen = choose(logits, temperature=temperature)
    assert set(chosen.tolist()) == ({0} if temperature < 1 else {0, 1, 3})


WRONG: dict[str, list[Any]] = {
    **{name: [0, -1, None] for name in ("vocab_size", "embed_size", "heads", "max_len", "matrices", "chains")},
    **{name: [0, -1] for name in ("window", "ff_hidden")},
    **{name: [-1, None] for name in ("layers", "num_states", "action_slots")},
    "reset_id": [-1, 10],
    "dither": [-1e-3, 1.0, None],
    "mutation": [-0.1, 1.0, None],
    "evidence_floor": [-1.0, None],
    "latent_rate": [0.0, -1.0, 1e-40, 1e40, None],
    "positions": [None, 3, "absolute"],
    "control": [None, 3, "some"],
    "latent_init": [None, 3, "warm"],
    "reach": [[], [-1], [1.5], 3, "4", [1] * 99],
    "slots": [[], [3], [Slot("a", 0, 11)], [Slot("a", 3, 3)], [Slot("a", -1, 3)], [Slot("a", 0, 3, 4)]],
}


@pytest.mark.parametrize("name", WRONG)
def test_no_argument_of_the_constructor_is_taken_unless_it_makes_sense(name: str) -> None:
    numbers = name not in ("positions", "control", "latent_init", "reach", "slots")
    whole = numbers and name not in ("dither", "mutation", "evidence_floor", "latent_rate")
    wrong = WRONG[name] + [float("nan"), float("inf"), -float("inf"), 10**12, 10**30, "8", [8], True] * numbers + [2.5] * whole
    for value in wrong:
        with pytest.raises(InputError) as error:
            DHMMGPT2(**{"vocab_size": 10, name: value})
        assert name in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "sizes",
    [
        {"layers": 1000, "embed_size": 1024},
        {"vocab_size": 10**8},
        {"num_states": 50_000},
        {"chains": 10**6, "num_states": 50},
        {"matrices": 10**6, "num_states": 64},
        {"max_len": 10**8, "positions": "learned"},
        {"max_len": 10**8},
        {"window": 10**8},
        {"ff_hidden": 10**8},
    ],
    ids=str,
)
def test_models_too_large_to_be_meant_are_refused_at_once(sizes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"would hold .* numbers because of its .*; choose sizes"):
        DHMMGPT2(**{"vocab_size": 10, **sizes})


def test_scalars_of_numpy_are_plain_in_a_models_settings(tmp_path: Path) -> None:
    ids, width, layers, heads, states = np.array([10, 16, 1, 2, 3])
    half: Any = np.float32(0.5)
    far: Any = np.array([1])
    model = DHMMGPT2(ids, width, layers, heads, None, states, dither=half, reach=far, slots=[Slot("a", layers, ids)])
    assert json.loads(json.dumps(model.config.to_dict())) == model.config.to_dict()
    save_checkpoint(tmp_path / "model.pt", model)
    assert load_checkpoint(tmp_path / "model.pt").model.config == model.config


# Ids and labels


def of(slotted: bool, cartpole: Tokenizer, **settings: Any) -> tuple[DHMMGPT2, Tensor]:
    """Return a small model for flat sequences or CartPole's streams, and ids (3, 6) or (3, 6, C)."""
    settings = {"embed_size": 16, "heads": 2, **settings}
    if not slotted:
        return DHMMGPT2(10, **settings), torch.randint(10, (3, 6))
    model = DHMMGPT2.from_tokenizer(cartpole, **settings)
    return model, torch.stack([torch.randint(max(slot.start, 2), slot.stop, (3, 6)) for slot in model.slots], dim=-1)


@pytest.mark.parametrize("past", [0, 1, 10**9])
@pytest.mark.parametrize("slotted", [False, True])
def test_ids_past_the_last_are_refused_by_every_pass(slotted: bool, past: int, cartpole: Tokenizer) -> None:
    model, ids = of(slotted, cartpole)
    ids.view(-1)[-1] = model.vocab_size + past
    state, first = model.initial_state(3), model.initial_state(3).belief
    passes: list[Callable[[], Any]] = [
        lambda: model(ids),
        lambda: model.step(ids[:, -1], state),
        lambda: model.prefill(ids),
        lambda: model.advance(ids, first),
        lambda: generate(model, ids, 2),
        lambda: generate(model, ids[:, -1:], 2),
    ]
    for read in passes:
        with pytest.raises(InputError, match=rf"id {model.vocab_size + past} is out of range: ids lie between 0 and"):
            read()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bool, torch.complex64])
@pytest.mark.parametrize("slotted", [False, True])
def test_ids_and_labels_are_whole_numbers(slotted: bool, dtype: torch.dtype, cartpole: Tokenizer) -> None:
    model, ids = of(slotted, cartpole)
    for given in ((ids.to(dtype), None), (ids, ids.to(dtype))):
        with pytest.raises(InputError, match=f"ids are of type {dtype}; they must be whole numbers"):
            model(*given)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
@pytest.mark.parametrize("slotted", [False, True])
def test_whole_numbers_of_any_size_are_ids(slotted: bool, dtype: torch.dtype, cartpole: Tokenizer) -> None:
    model, ids = of(slotted, cartpole)
    out, same = model(ids, ids), model(ids.to(dtype), ids.to(dtype))
    assert (out.logits == same.logits).all()
    assert out.loss == same.loss


@pytest.mark.parametrize("slotted", [False, True])
def test_labels_that_are_not_ids_of_their_slot_are_named(slotted: bool, cartpole: Tokenizer) -> None:
    model, ids = of(slotted, cartpole)
    j = 2 if slotted else 0
    slot = model.slots[j]
    for wrong in (slot.start - 1, slot.stop, 10**9):
        if wrong < 0:
            continue
        labels = ids.clone()
        labels.view(3, 6, -1)[1, 4, j] = wrong
        named = rf"label {wrong} of slot {re.escape(slot.name)} at step 4 of sequence 1 is not one of its ids, {slot.start} to"
        with pytest.raises(InputError, match=named):
            model(ids, labels)
        with pytest.raises(InputError, match=named.replace("step 4", "step 0")):
            model.step(ids[:, 4], model.initial_state(3), labels[:, 4])
    with pytest.raises(InputError, match="the shapes must be equal"):
        model(ids, ids[:, 1:])


# Precision


@pytest.mark.parametrize(
    "settings", [{}, {"num_states": 0}, {"layers": 0}, {"positions": "both", "window": 3}, {"chains": 2}], ids=str
)
@pytest.mark.parametrize("slotted", [False, True])
@pytest.mark.parametrize(
    ("precision", "error"),
    [(torch.bfloat16, 0.1), (torch.float16, 0.02), (torch.float64, 1e-5)],
    ids=["bfloat16", "half", "double"],
)
def test_models_work_in_any_precision(
    precision: torch.dtype, error: float, slotted: bool, settings: dict[str, Any], cartpole: Tokenizer
) -> None:
    model, ids = of(slotted, cartpole, **settings)
    with torch.no_grad():
        exact = model(ids, ids)
        logits = exact.logits[:, -1]
        model.to(precision)
        state = model.initial_state(3)
        for t in range(ids.shape[1]):
            stepped, state = model.step(ids[:, t], state, ids[:, t])
    with pytest.warns(UserWarning, match="torch.bfloat16 needs none") if precision == torch.float16 else nullcontext():
        out = model(ids, ids)
    out.loss.backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())
    assert abs(out.loss - exact.loss) < error
    for found in (out.logits[:, -1], stepped.logits[:, 0]):
        torch.testing.assert_close(found.float(), logits, atol=error, rtol=error)
    assert generate(model, ids, 3).shape[1] == 9


@pytest.mark.parametrize("slotted", [False, True])
def test_float16_is_advised_against_and_its_overflows_are_named(slotted: bool, cartpole: Tokenizer) -> None:
    model, ids = of(slotted, cartpole)
    labels = ids.clone()
    labels.view(3, 6, -1)[0, :2] = -1
    with torch.autocast("cpu", dtype=torch.float16):
        with pytest.warns(UserWarning, match="torch.bfloat16 needs none"):
            model(ids, labels)
        model.ln_f.weight.data *= 1e6
        name = re.escape(model.slots[0].name)
        with pytest.raises(
            InputError, match=rf"loss of slot {name} at step 2 of sequence 0 is .* in float16.*use torch.bfloat16"
        ):
            model(ids, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(ids, labels).loss.isfinite()


# Empty batches


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_states": 0}, {"layers": 0}, {"positions": "both", "window": 3}, {"mutation": 0.1}, {"reach": [2]}],
    ids=str,
)
@pytest.mark.parametrize("slotted", [False, True])
@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)], ids=str)
def test_empty_batches_give_empty_results(
    shape: tuple[int, int], slotted: bool, settings: dict[str, Any], cartpole: Tokenizer
) -> None:
    model, some = of(slotted, cartpole, **settings)
    ids = some.new_zeros(*shape, *some.shape[2:])
    places = ids.new_zeros(*shape, 1) if model.reach else None
    out = model(ids, ids, position_ids=places)
    out.loss.backward()
    assert out.loss == 0
    assert out.logits.shape[:2] == out.belief.shape[:2] == out.token_loss.shape[:2] == shape
    if places is None:
        beliefs, state = model.prefill(ids)
        assert beliefs.shape[:2] == shape
        assert len(state.belief) == len(model.advance(ids)[1]) == shape[0]
        if shape == (0, 5):
            assert model.step(ids[:, 0], state)[0].logits.shape[:2] == (0, 1)
            assert generate(model, ids, 3).shape[:2] == (0, 8)


# The filter without dither


def certain(seed: int, cartpole: Tokenizer) -> tuple[DHMMGPT2, Tensor, Tensor]:
    """Return a random model with transitions and emissions from soft to deterministic, and ids with labels."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    settings = {
        "layers": draw.choice([0, 1]),
        "num_states": draw.choice([1, 2, 3, 8]),
        "chains": draw.choice([1, 1, 2]),
        "matrices": draw.choice([1, 3]),
        "control": draw.choice(["actions", "all", "none"]),
        "dither": draw.choice([0.0, 0.0, 0.0, 1e-12, 1e-5, 1e-3]),
        "evidence_floor": draw.choice([0.0, 20.0, 20.0, 100.0, 1e4]),
        "latent_rate": draw.choice([1.0, 30.0]),
        "mutation": draw.choice([0.0, 0.2]),
    }
    model, _ = of(draw.random() < 0.5, cartpole, **settings)
    assert model.hmm is not None
    size = draw.choice([1, 30, 1000])
    for name, parameter in model.hmm.named_parameters():
        if name != "residual_scale":
            parameter.data = torch.randn_like(parameter) * size / model.hmm.rate
    lowest = 0 if len(model.slots) == 1 else 2
    steps = draw.choice([1, 5, 40])
    ids = torch.stack([torch.randint(max(slot.start, lowest), slot.stop, (4, steps)) for slot in model.slots], dim=-1)
    labels = ids.roll(-1, 1)
    if draw.random() < 0.3:
        ids[2, : steps // 2] = -1
    return (model, ids, labels) if lowest else (model, ids[..., 0], labels[..., 0])


@pytest.mark.parametrize("scans", [False, True])
def test_certain_transitions_keep_losses_beliefs_and_gradients_finite(
    scans: bool, cartpole: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filter_kernels, "scan_pays", lambda *_: scans)
    for seed in range(100):
        model, ids, labels = certain(seed, cartpole)
        out = model(ids, labels)
        out.loss.backward()
        assert out.loss.isfinite(), seed
        assert out.belief.isfinite().all(), seed
        for name, parameter in model.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), (seed, name)


def test_certain_transitions_step_as_they_are_read(cartpole: Tokenizer) -> None:
    for seed in range(40):
        model, ids, labels = certain(seed, cartpole)
        model.eval()
        with torch.no_grad():
            out, state = model(ids, labels), model.initial_state(4)
            for t in range(ids.shape[1]):
                stepped, state = model.step(ids[:, t], state, labels[:, t])
                torch.testing.assert_close(stepped.belief[:, 0], out.belief[:, t], atol=1e-5, rtol=1e-5)
                assert stepped.loss is not None
                assert stepped.loss.isfinite()


def test_what_no_state_explains_leaves_all_states_possible() -> None:
    never = torch.tensor([[[[0.0], [-1e9]]]]).transpose(-1, -2)  # state 1 is impossible, and state 0 never left
    initial = torch.tensor([[[1.0, 0.0]]])
    evidence = torch.cat([never, never.flip(-1), never], dim=1)
    beliefs = run_filter(initial, torch.ones(1, 3, 1, 1), evidence, torch.eye(2)[None, None])
    torch.testing.assert_close(beliefs[0, :, 0], torch.tensor([[1, 0], [1 / 3, 2 / 3], [1, 0]]))


# Languages


def test_where_chance_rules_traces_are_drawn_and_no_exactness_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(Args("markov-chain", set=("sizes=30,30", "states=3"), steps=30, num_eval_examples=20, runs=tmp_path, quiet=True))
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["size", "nats", "best"]
    assert "%" not in out
    folder = tmp_path / "markov-chain/languages/1"
    assert [set(row) for row in json.loads((folder / "result.json").read_text())["sizes"]] == [
        {"size", "nats", "best_nats"}
    ] * 2
    assert not any("held_out/exact" in row for row in read_log(folder, "languages"))

    shown = []
    for seed in (0, 0, 1):
        main(Args("markov-chain", runs=tmp_path, show="A A", seed=seed))
        shown.append(capsys.readouterr().out.splitlines()[1])
    assert shown[0] == shown[1] != shown[2]
    assert {*"ABC"} <= set(shown[0].split())  # the likeliest token would always be the same


@pytest.mark.parametrize(("layers", "steps", "drawn"), [(0, 150, True), (1, 60, False)])
def test_an_automaton_is_drawn_if_the_chain_is_what_predicts(layers: int, steps: int, drawn: bool, tmp_path: Path) -> None:
    model = (f"layers={layers}", "embed_size=32", "heads=2")
    main(Args("parity", set=("sizes=1,8",), model=model, steps=steps, num_eval_examples=20, runs=tmp_path, quiet=True))
    folder = tmp_path / "parity/languages/1"
    run = LanguageRun.open(folder)
    found = load_checkpoint(run.language_model).model
    assert (chain_agreement(found, run.language, run.held_out()) > 0.9) == drawn
    assert (folder / "automaton.png").exists() == drawn
    assert (folder / "curve.png").exists()


# Learned positions


@pytest.mark.parametrize("command", ["ppo", "pretrain"])
def test_learned_positions_that_an_episode_can_outlive_are_refused_at_the_start(command: str, tmp_path: Path) -> None:
    recipe = tmp_path / "short.toml"
    recipe.write_text('description = ""\npolicy = "DHMMPolicy"\nmodel = { positions = "learned", max_len = 500 }\n')
    module: Any = {"ppo": ppo, "pretrain": pretrain}[command]
    with pytest.raises(
        InputError, match=r"CartPole-v1 may have 500 steps, but .* end at max_len 500: set max_len to at least 501"
    ):
        module.main(module.Args(env="CartPole-v1", agent=str(recipe), runs=tmp_path, quiet=True))
    assert not list(tmp_path.glob("**/run.json"))


@pytest.mark.parametrize("model", [{"positions": "learned", "max_len": 501}, {"positions": "both"}, {"max_len": 10}])
def test_positions_that_last_for_an_episode_are_taken(model: dict[str, Any]) -> None:
    env, agent = load_recipes("CartPole-v1", "dhmm-gpt2")
    check_positions(replace(agent, model=model), env)
