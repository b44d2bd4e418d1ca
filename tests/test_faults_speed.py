"""Work and memory for many slots and images. Tests count calls where they can, because clocks differ between machines."""

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from dhmm_rl.data import StreamDataset, collect
from dhmm_rl.data.datasets import ROWS_AT_ONCE
from dhmm_rl.envs import VecTokenStream
from dhmm_rl.model import DHMMGPT2
from dhmm_rl.model.hmm_layer import HMMLayer
from dhmm_rl.model.slot_decoder import SlotDecoder
from dhmm_rl.model.slots import sum_before
from dhmm_rl.sequence_ppo import SequencePPO
from dhmm_rl.tokens import Tokenizer
from dhmm_rl.tokens.codec import Codec
from dhmm_rl.tokens.fields import KINDS
from dhmm_rl.tokens.images import Codebook
from tests.image_and_vector import ImageAndVector

SETTINGS: dict[str, Any] = dict(embed_size=16, layers=1, heads=2, ff_hidden=32, num_states=4, window=4)


def pictures(count: int, side: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def of_pictures(side: int) -> Tokenizer:
    """Return a tokenizer of images with random codes."""
    space = spaces.Box(0, 255, (side, side, 3), np.uint8)
    codes = pictures(64, side // 8).reshape(64, -1)
    return Tokenizer(space, spaces.Discrete(3), codebooks={"observation": codes})


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[tuple[Any, ...]]:
    """Record the arguments of every call of a method."""
    calls: list[tuple[Any, ...]] = []
    original: Callable[..., Any] = getattr(owner, name)

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return calls


def test_many_images_are_encoded_as_each_alone_in_little_memory() -> None:
    tokenizer, images = of_pictures(96), pictures(200, 96)
    tokenizer.encode_observation(images[:1])
    tracemalloc.start()
    ids = tokenizer.encode_observation(images)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < images.nbytes  # as floats they take four times as much
    np.testing.assert_array_equal(ids, np.stack([tokenizer.encode_observation(image) for image in images]))
    np.testing.assert_array_equal(ids[:6].reshape(2, 3, -1), tokenizer.encode_observation(images[:6].reshape(2, 3, 96, 96, 3)))
    assert tokenizer.encode_observation(images[:0]).shape == (0, ids.shape[1])


def test_a_vector_environments_observations_are_encoded_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    venv = make_vec_env(ImageAndVector, 6, seed=0)
    codes = pictures(16, 4).reshape(16, -1)
    tokenizer = Tokenizer(venv.observation_space, venv.action_space, codebooks={"observation.image": codes})
    stream = VecTokenStream(venv, tokenizer, history=1)
    stream.reset()
    calls = count_calls(monkeypatch, Codec, "encode")
    for _ in range(5):
        stream.step(np.zeros((6, 2), dtype=np.int64))
    assert len(calls) == 5 * 2  # the actions' and the observations'


def test_each_observation_of_a_stream_is_flattened_and_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = VecTokenStream(make_vec_env("CartPole-v1", 4, seed=0), history=1)
    stream.reset()
    flattened = count_calls(monkeypatch, type(KINDS["Box"]), "flatten")
    encoded = count_calls(monkeypatch, Codec, "encode")
    ends = 0
    for _ in range(60):
        _, _, dones, _ = stream.step(np.ones(4, dtype=np.int64))
        ends += bool(dones.any())
    assert ends > 1
    assert len(flattened) == 60 + ends  # one call for all environments, and one for all last observations of a step
    assert len(encoded) == 2 * 60 + ends  # the actions are encoded too


@pytest.mark.parametrize("dither", [None, 0])
def test_images_of_rollouts_are_encoded_once(dither: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pictures(ImageAndVector):
        observation_space = spaces.Box(0, 255, (32, 32, 3), np.uint8)  # type: ignore[assignment]

        def _observation(self, move: Any) -> Any:
            return super()._observation(move)["image"]

    rollouts = collect(make_vec_env(Pictures, 2, seed=0), episodes=4, max_steps=600, imitate=False)
    tokenizer = Tokenizer(rollouts.observation_space, rollouts.action_space).fit(rollouts)
    windows = StreamDataset(rollouts, tokenizer, 8, dither=dither)
    calls = count_calls(monkeypatch, Codebook, "encode")
    order = windows.shuffled_indices(np.random.default_rng(0))
    first, again = windows[order], windows[order]
    assert sum(len(images) for images, *_ in calls) == len(rollouts.rewards)
    assert max(len(images) for images, *_ in calls) <= ROWS_AT_ONCE
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    window = int(np.flatnonzero(windows.eval_indices() >= 0)[0])
    row = rollouts.starts[0]
    expected = tokenizer.first_step(rollouts.observations_at(np.array([row])))
    np.testing.assert_array_equal(windows[[window]].input_ids[0, -1], expected[0])


def test_dithered_numbers_beside_images_are_dithered_at_every_batch() -> None:
    rollouts = collect(make_vec_env(ImageAndVector, 2, seed=0), episodes=4, max_steps=400, imitate=False)
    tokenizer = Tokenizer(rollouts.observation_space, rollouts.action_space).fit(rollouts)
    some = np.arange(20)
    plain, dithered = (StreamDataset(rollouts, tokenizer, 8, dither=d)[some].input_ids for d in (None, 1))
    differs = (plain != dithered).reshape(-1, plain.shape[-1]).any(dim=0)
    assert [slot.name for slot, moved in zip(tokenizer.slots, differs, strict=True) if moved][:1] == ["observation.vector[0]"]


@pytest.mark.parametrize("control", ["actions", "all"])
def test_slots_after_the_actions_share_one_gate_if_only_actions_gate(control: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(spaces.MultiDiscrete([3] * 60), spaces.Discrete(3))
    model = DHMMGPT2.from_tokenizer(tokenizer, **SETTINGS, matrices=4, control=control)
    ids = torch.tensor([slot.start for slot in tokenizer.slots]).expand(16, 9, -1)
    states = model.hidden_states(ids[:, :-1])
    calls = count_calls(monkeypatch, HMMLayer, "_gate")
    model.token_losses(states, ids[:, 1:])
    gates = sum(logits.shape[:-2].numel() for (logits,) in calls)
    assert gates == 16 * 8 * (1 if control == "actions" else 61)


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_sums_over_the_slots_before_are_exact_with_their_gradient(slots: int) -> None:
    x = torch.randn(slots, 3, 2, dtype=torch.float64, requires_grad=True)
    expected = torch.stack([x[:j].sum(dim=0) for j in range(slots)])
    torch.testing.assert_close(sum_before(x), expected)
    assert torch.autograd.gradcheck(sum_before, (x,))


def test_acting_decodes_no_more_than_the_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    venv = make_vec_env(ImageAndVector, 2, seed=0)
    codes = pictures(16, 4).reshape(16, -1)
    tokenizer = Tokenizer(venv.observation_space, venv.action_space, codebooks={"observation.image": codes})
    env = VecTokenStream(venv, tokenizer, history=1)
    agent = SequencePPO(
        "DHMMPolicy", env, n_steps=8, batch_size=16, n_epochs=1, policy_kwargs=dict(features_extractor_kwargs=SETTINGS)
    )
    calls = count_calls(monkeypatch, SlotDecoder, "_inputs")
    agent.learn(32)
    assert {(first, last) for _, _, first, last in calls} == {(0, 1), (1, 2), (0, 2)}  # two drawn, both evaluated


@pytest.mark.slow
@pytest.mark.parametrize(
    "env",
    [
        "CliffWalking-v1",
        "BipedalWalker-v3",
        "CarRacing-v3",
        "popgym:popgym-ConcentrationEasy-v0",
        "tests.image_and_vector:ImageAndVector-v0",
    ],
)
def test_the_default_command_ends_in_ten_minutes(env: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dhmm_rl.ppo", "--env", env, "--steps", "20000", "--runs", str(tmp_path), "--quiet"]
    subprocess.run(command, check=True, timeout=600)
    (result,) = tmp_path.rglob("result.json")
    assert np.isfinite(json.loads(result.read_text())["final_return"])
