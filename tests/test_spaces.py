"""Every Gymnasium space as tokens."""

import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from dhmm_rl.envs import FlattenFields
from dhmm_rl.errors import InputError
from dhmm_rl.tokens import FieldSpace, Tokenizer, bounded
from dhmm_rl.tokens.bins import Bins
from dhmm_rl.tokens.fields import fields_of, flatten, leaves_of, space_from_dict, space_to_dict, unflatten
from tests.conftest import within_one_bin

Space = spaces.Space[Any]

shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)
seeds = st.integers(0, 2**31)


@st.composite
def boxes(draw: Any) -> spaces.Box:
    dtype = draw(st.sampled_from([np.float32, np.float64, np.uint8, np.int8, np.int32, np.int64, np.bool_]))
    shape, rng = draw(shapes), np.random.default_rng(draw(seeds))
    if np.issubdtype(dtype, np.floating):
        low, high = rng.uniform(-9, 0, shape), rng.uniform(0, 9, shape)
        low = np.where(rng.random(shape) < 0.3, rng.choice([-np.inf, -3e38], shape), low)
        high = np.where(rng.random(shape) < 0.3, rng.choice([np.inf, 3e38], shape), high)
        return spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype)
    if dtype == np.bool_:
        return spaces.Box(0, 1, shape, dtype)
    info = np.iinfo(dtype)
    least, most = info.min, info.max
    if info.bits == 64:  # over more than half of their range Gymnasium cannot draw values
        least, most = least // 4, most // 4
    low, high = (rng.choice([least, 0], shape).astype(dtype), rng.choice([5, 100, most], shape).astype(dtype))
    return spaces.Box(low, high, dtype=dtype)


simple = st.one_of(
    boxes(),
    st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 9), st.integers(-5, 5)),
    st.builds(
        lambda shape, seed: spaces.MultiDiscrete(np.array(np.random.default_rng(seed).integers(1, 6, shape))), shapes, seeds
    ),
    st.builds(spaces.MultiBinary, st.one_of(st.integers(1, 4), st.lists(st.integers(1, 3), min_size=1, max_size=2))),
    st.builds(lambda n: spaces.Text(n, min_length=0, charset="ab ,Z"), st.integers(1, 6)),
)


def containers(parts: st.SearchStrategy[Space]) -> st.SearchStrategy[Space]:
    several = st.lists(parts, min_size=1, max_size=3)
    return st.one_of(
        several.map(lambda some: spaces.Dict([(f"key{9 - i}", part) for i, part in enumerate(some)])),
        several.map(spaces.Tuple),
    )


nested = st.recursive(simple, containers, max_leaves=6)
ragged = st.one_of(
    st.lists(nested, min_size=1, max_size=3).map(spaces.OneOf),
    st.builds(lambda part, stack: bounded(spaces.Sequence(part, stack=stack), 6), simple, st.booleans()),
    st.builds(
        lambda node, edge: bounded(spaces.Graph(node, edge), 6),
        st.one_of(boxes(), st.just(spaces.Discrete(3))),
        st.one_of(st.none(), boxes(), st.just(spaces.Discrete(3, start=1))),
    ),
)


def batch(space: Space, values: list[Any]) -> Any:
    """Stack values as vector environments do."""
    if isinstance(space, spaces.Dict):
        return {key: batch(part, [value[key] for value in values]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(batch(part, [value[i] for value in values]) for i, part in enumerate(space.spaces))
    if isinstance(space, spaces.OneOf | spaces.Sequence | spaces.Graph):
        return values
    return np.stack([np.asarray(value) for value in values])


def sample(space: Space) -> Any:
    """Sample a value of at most the declared size."""
    if isinstance(space, spaces.Graph):
        nodes = int(space.np_random.integers(1, 7))
        return space.sample(num_nodes=nodes, num_edges=None if nodes < 3 or space.edge_space is None else nodes)
    if isinstance(space, spaces.Sequence):
        return space.sample(mask=(int(space.np_random.integers(0, 7)), None))
    return space.sample()


@pytest.mark.filterwarnings("ignore:.*Casting input x to numpy array")  # Gymnasium's own values of shape ()
@given(st.one_of(nested, ragged), seeds)
def test_any_space_is_fields_and_back(space: Space, seed: int) -> None:
    space.seed(seed)
    values = [sample(space) for _ in range(4)]
    flat = [flatten(space, value) for value in values]
    assert {len(row) for row in flat} == {len(fields_of(space, "observation"))}
    for row in flat:
        back = unflatten(space, row)
        assert space.contains(back)
        np.testing.assert_array_equal(flatten(space, back), row)
    several = flatten(space, batch(space, values))
    np.testing.assert_array_equal(several, np.stack(flat))
    np.testing.assert_array_equal(flatten(space, unflatten(space, several)), several)
    names = [field.name for field in fields_of(space, "observation")]
    assert len(set(names)) == len(names)


@given(st.one_of(nested, ragged), seeds)
def test_any_space_survives_json(space: Space, seed: int) -> None:
    again = space_from_dict(json.loads(json.dumps(space_to_dict(space))))
    assert again == space
    assert leaves_of(again, "x") == leaves_of(space, "x")


@given(nested, seeds)
def test_any_space_round_trips_as_tokens_and_so_does_its_kept_tokenizer(space: Space, seed: int) -> None:
    tokenizer = Tokenizer(space, spaces.Discrete(2), bins=7)
    again = Tokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert again == tokenizer
    space.seed(seed)
    values = batch(space, [space.sample() for _ in range(5)])
    within_one_bin(tokenizer, flatten(space, values))
    ids = tokenizer.encode_observation(values)
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(again.encode_observation(values), ids)
    np.testing.assert_array_equal(tokenizer.encode_observation(tokenizer.decode_observation(ids)).shape, ids.shape)


@given(nested, seeds)
def test_a_fitted_tokenizer_survives_too_and_never_meets_what_it_cannot_encode(space: Space, seed: int) -> None:
    space.seed(seed)
    rows = batch(space, [space.sample() for _ in range(60)])
    fitted = Tokenizer(space, spaces.Discrete(2), bins=5).fit(rows)
    again = Tokenizer.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert again == fitted
    others = batch(space, [space.sample() for _ in range(20)])
    ids = fitted.encode_observation(others)
    np.testing.assert_array_equal(again.encode_observation(others), ids)
    assert (ids < [slot.stop for slot in fitted.slots[1:]]).all()
    assert (ids >= [slot.start for slot in fitted.slots[1:]]).all()


def test_fields_have_names_that_say_where_they_lie() -> None:
    space = spaces.Dict(
        [
            ("speed", spaces.Box(0, 1, (2,))),
            ("image", spaces.Box(0, 255, (2, 1, 2), np.uint8)),
            ("inner", spaces.Dict({"on": spaces.MultiBinary(1), "level": spaces.Box(-1, 1, ())})),
            ("pair", spaces.Tuple([spaces.Discrete(2), spaces.Text(1)])),
        ]
    )
    assert [field.name for field in fields_of(space, "observation")] == [
        "observation.speed[0]",
        "observation.speed[1]",
        "observation.image[0,0,0]",
        "observation.image[0,0,1]",
        "observation.image[1,0,0]",
        "observation.image[1,0,1]",
        "observation.inner.level",
        "observation.inner.on[0]",
        "observation.pair[0]",
        "observation.pair[1][0]",
    ]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Sequence(spaces.Discrete(2)), r"observation is a Sequence.*FlattenFields\(env, size=8\)"),
        (spaces.Dict(a=spaces.Graph(spaces.Discrete(2), None)), r"observation\.a is a Graph.*FlattenFields"),
        (spaces.Box(0, 1, (70, 70)), r"4900 fields.*uint8, from 0 to 255"),
        (spaces.Discrete(10**9), "has 1000000000 categories, more than the 65536 that can be tokens"),
    ],
)
def test_what_cannot_be_tokenized_is_refused_with_what_would_help(space: Space, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Tokenizer(space, spaces.Discrete(2))


def test_an_unknown_space_is_refused_by_name() -> None:
    class Colors(spaces.Space[str]):
        """A space of the user's own class."""

    with pytest.raises(InputError, match="observation is a Colors"):
        Tokenizer(Colors(), spaces.Discrete(2))


def test_what_is_longer_than_declared_and_what_is_no_member_is_an_error() -> None:
    space = bounded(spaces.Sequence(spaces.Discrete(5)), 2)
    with pytest.raises(InputError, match="declared size is 2"):
        flatten(space, (1, 2, 3))
    with pytest.raises(InputError, match="7 characters"):
        flatten(spaces.Text(3), "abcdefg")
    with pytest.raises(InputError, match="'!'"):
        flatten(spaces.Text(3), "a!")
    with pytest.raises(InputError, match="shape"):
        flatten(spaces.Box(0, 1, (2, 2)), np.zeros((2, 3)))
    pair = spaces.Dict(a=spaces.Box(0, 1, (2,)), b=spaces.Box(0, 1, (1,)))
    with pytest.raises(InputError, match=r"shape \(1,\); its space has \(2,\)"):
        flatten(pair, {"a": np.zeros(1), "b": np.zeros(2)})  # as many numbers altogether, in the wrong places


def test_half_bounded_fields_are_finest_at_their_bound() -> None:
    space = spaces.Box(np.array([2, -np.inf]), np.array([np.inf, 5]), dtype=np.float64)
    bins = Tokenizer(space, spaces.Discrete(2), overrides={"observation": {"scale": 3}}).observation_codec.groups[0].quantizer
    assert isinstance(bins, Bins)
    assert bins.low.tolist() == [2, -25]
    assert bins.high.tolist() == [32, 5]
    widths = np.diff(bins.expand(np.arange(11)[:, None]), axis=0)
    assert (np.diff(widths[:, 0]) > 0).all()
    assert (np.diff(widths[:, 1]) < 0).all()


def test_nested_observations_as_one_array_keep_names_and_tokens() -> None:
    inner = spaces.Dict(a=spaces.Dict(b=spaces.Discrete(3)), c=spaces.Text(3), d=spaces.Box(-1, 1, (2,)))

    class Env(gym.Env[Any, Any]):
        observation_space, action_space = inner, spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            return inner.sample(), {}

    flat = FlattenFields(Env())
    assert isinstance(flat.observation_space, FieldSpace)
    plain, wrapped = Tokenizer(inner, spaces.Discrete(2)), Tokenizer(flat.observation_space, spaces.Discrete(2))
    assert plain.slots == wrapped.slots
    value, _ = flat.env.reset()
    np.testing.assert_array_equal(plain.encode_observation(value), wrapped.encode_observation(flat.observation(value)))
    wrapped.check_spaces(inner, spaces.Discrete(2))
