"""Bins, fields, the tokenizer."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from dhmm_rl.errors import InputError
from dhmm_rl.tokens import DONE, PAD_ID, RESET, Bins, Tokenizer

finite = st.floats(-1e3, 1e3, allow_nan=False, width=32)


def box(low: list[float], high: list[float]) -> spaces.Box:
    return spaces.Box(np.array(low, dtype=np.float32), np.array(high, dtype=np.float32))


def test_cartpole_at_ten_bins_is_the_44_ids_of_the_design(cartpole: Tokenizer) -> None:
    assert cartpole.vocab_size == 44
    assert (RESET, DONE, PAD_ID) == (0, 1, -1)
    assert cartpole.encode_action(np.array([0, 1])).tolist() == [[2], [3]]
    ranges = [(slot.start, slot.stop) for slot in cartpole.slots]
    assert ranges == [(1, 4), (4, 14), (14, 24), (24, 34), (34, 44)]
    assert cartpole.first_step(np.zeros(4))[0] == RESET
    assert cartpole.done_step().tolist() == [DONE, -1, -1, -1, -1]


@given(st.integers(2, 50), finite, st.floats(0.01, 1e3), st.lists(finite, min_size=1, max_size=20), st.booleans())
def test_decoding_is_within_one_bin_and_encoding_again_is_exact(
    count: int, low: float, width: float, values: list[float], bend: bool
) -> None:
    bins = Bins.of(count, low, low + width, width / 4 if bend else np.inf)
    inside = np.clip(np.array(values)[:, None], low, low + width)
    ids = bins.encode(inside)
    assert ((ids >= 0) & (ids < count)).all()
    assert (np.abs(bins.compand(bins.decode(ids)) - bins.compand(inside)) <= 0.5 + 1e-6).all()
    assert (bins.encode(bins.decode(ids)) == ids).all()


@pytest.mark.parametrize("scale", [np.inf, 0.7])
def test_dither_over_one_bin_width_has_no_mean_error_wherever_the_value_lies(scale: float) -> None:
    bins = Bins.of(8, -2, 2, scale)
    companded = np.linspace(1, 7, 25)
    values = bins.expand(companded[:, None])
    drawn = bins.encode(np.repeat(values[None], 20_000, axis=0), np.random.default_rng(0)) + 0.5
    assert np.abs(drawn.mean(axis=0)[:, 0] - companded).max() < 0.02
    undithered = bins.encode(values)[:, 0] + 0.5
    assert np.abs(undithered - companded).max() > 0.2


def test_values_far_outside_what_was_fitted_still_get_different_tokens() -> None:
    space = spaces.Box(-np.inf, np.inf, (1,))
    tokenizer = Tokenizer(space, spaces.Discrete(2), bins=20).fit(np.random.default_rng(0).normal(size=(1000, 1)))
    assert len({int(tokenizer.encode_observation([x])[0]) for x in (0.0, 1.0, 3.0, 8.0)}) == 4
    assert abs(tokenizer.overrides["observation[0]"]["scale"] - 1) < 0.1


def test_values_outside_clip_to_the_ends_and_are_counted() -> None:
    tokenizer = Tokenizer(box([-1, -1], [1, 1]), spaces.Discrete(2))
    ids = tokenizer.encode_observation(np.array([[5, 0], [0, -5], [0, 0.5], [-9, 0]]))
    assert ids[0, 0] == tokenizer.slots[1].stop - 1
    assert ids[1, 1] == tokenizer.slots[2].start
    assert tokenizer.clipped == {"observation[0]": 0.5, "observation[1]": 0.25}


def test_nan_is_an_error_that_names_the_field(cartpole: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"observation\[2\] is NaN"):
        cartpole.encode_observation(np.array([[0, 0, 0, 0], [0, 0, np.nan, 0]]))


def test_a_category_outside_the_space_is_an_error(cartpole: Tokenizer) -> None:
    with pytest.raises(InputError, match="action is 2; its categories go from 0 to 1"):
        cartpole.encode_action(np.array([0, 2]))


@pytest.mark.parametrize(
    ("observation", "action"),
    [
        (spaces.Discrete(5, start=-2), box([-1, 0], [1, 3])),
        (box([-np.inf, 0, -3e38], [np.inf, 1, 3e38]), spaces.Discrete(3, start=1)),
    ],
)
def test_kept_tokenizer_is_the_same(observation: Any, action: Any, tmp_path: Path) -> None:
    tokenizer = Tokenizer(observation, action, bins=7)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again == tokenizer
    assert (again.observation_space, again.action_space) == (observation, action)
    observation.seed(0)
    action.seed(0)
    for _ in range(100):
        step = tokenizer.next_step(action.sample(), observation.sample())
        assert (step >= [max(slot.start, 2) for slot in tokenizer.slots]).all()
        assert (step < [slot.stop for slot in tokenizer.slots]).all()
        assert observation.contains(again.decode_observation(step[tokenizer.action_slots :]))
        assert action.contains(again.decode_action(step[: tokenizer.action_slots]))


def test_discrete_fields_come_back_exactly() -> None:
    tokenizer = Tokenizer(spaces.Discrete(6, start=3), spaces.Discrete(4))
    values = np.arange(3, 9)
    assert (tokenizer.decode_observation(tokenizer.encode_observation(values)) == values).all()


def test_other_spaces_are_refused_naming_the_field(cartpole: Tokenizer) -> None:
    env = gym.make("CartPole-v1")
    with pytest.raises(InputError, match="1 action fields"):
        cartpole.check_spaces(env.observation_space, box([0, 0], [1, 1]))
    assert isinstance(env.observation_space, spaces.Box)
    other = env.observation_space.low.copy()
    other[2] = -1
    with pytest.raises(InputError, match=r"observation\[2\]"):
        cartpole.check_spaces(spaces.Box(other, env.observation_space.high), env.action_space)
    with pytest.raises(InputError, match="action as categorical"):
        cartpole.check_spaces(env.observation_space, spaces.Discrete(3))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"observation[9]": {}}, "observation[9]"),
        ({"observation[0]": {"middle": 1}}, "middle"),
        ({"observation[0]": {"low": 9}}, "low must be less"),
        ({"observation[1]": {"scale": 0}}, "must be positive"),
        ({"observation[1]": {"bins": 1}}, "at least 2"),
    ],
)
def test_bad_settings_are_errors(overrides: dict[str, dict[str, float]], message: str) -> None:
    env = gym.make("CartPole-v1")
    with pytest.raises(InputError) as error:
        Tokenizer(env.observation_space, env.action_space, overrides=overrides)
    assert message in str(error.value)


def test_a_space_that_cannot_be_tokenized_is_refused_with_what_would_help() -> None:
    with pytest.raises(InputError, match=r"observation is a Sequence.*FlattenFields\(env, size=8\)"):
        Tokenizer(spaces.Sequence(spaces.Discrete(2)), spaces.Discrete(2))
    with pytest.raises(InputError, match="not a tokenizer"):
        Tokenizer.load("nowhere.json")


def test_several_spaces_in_one_are_encoded_and_decoded_exactly() -> None:
    space = spaces.Tuple([spaces.Discrete(2, start=5), spaces.MultiDiscrete([3, 4], start=[0, 2]), box([0], [1])])
    tokenizer = Tokenizer(space, spaces.MultiDiscrete([2, 3]))
    names = ["action[0]", "action[1]", "observation[0]", "observation[1][0]", "observation[1][1]", "observation[2][0]"]
    assert [slot.name for slot in tokenizer.slots] == names
    again = Tokenizer.from_dict(tokenizer.to_dict())
    space.seed(0)
    drawn = [space.sample() for _ in range(20)]
    batch = tuple(np.stack(part) for part in zip(*drawn, strict=True))
    ids = tokenizer.encode_observation(batch)
    assert ids.shape == (20, 4)
    assert (ids == again.encode_observation(batch)).all()
    assert (ids == np.stack([tokenizer.encode_observation(one) for one in drawn])).all()
    category, pair, real = tokenizer.decode_observation(ids)
    assert (category == batch[0]).all()
    assert (pair == batch[1]).all()
    assert np.abs(real - batch[2]).max() <= 0.05
    assert (tokenizer.decode_action(tokenizer.encode_action([[1, 2]])) == [[1, 2]]).all()
