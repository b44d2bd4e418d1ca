"""Images and grids as tokens, and fitting to data."""

import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv

from dhmm_rl.data import random_observations
from dhmm_rl.errors import InputError
from dhmm_rl.model import DHMMGPT2, load_checkpoint, save_checkpoint
from dhmm_rl.runs.reconstructions import save_reconstruction
from dhmm_rl.tokens import Tokenizer
from dhmm_rl.tokens.images import Patches, fit_codebook
from dhmm_rl.tokens.reports import format_report


def scenes(count: int, shape: tuple[int, ...] = (32, 40, 3), seed: int = 0) -> np.ndarray[Any, Any]:
    """Images with a square somewhere on a gradient."""
    rng = np.random.default_rng(seed)
    images = np.zeros((count, *shape), dtype=np.uint8)
    images[:] = np.linspace(0, 90, shape[1], dtype=np.uint8).reshape(1, 1, -1, *[1] * (len(shape) - 2))
    for image, y, x in zip(images, rng.integers(0, shape[0] - 6, count), rng.integers(0, shape[1] - 6, count), strict=True):
        image[y : y + 6, x : x + 6] = 200
    return images


def image_tokenizer(shape: tuple[int, ...] = (32, 40, 3), **settings: Any) -> Tokenizer:
    space = spaces.Dict(image=spaces.Box(0, 255, shape, np.uint8), speed=spaces.Box(-1, 1, (1,)))
    return Tokenizer(space, spaces.Discrete(2), bins=10, overrides={"observation.image": settings} if settings else None)


def values(images: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"image": images, "speed": np.linspace(-1, 1, len(images))[:, None]}


@given(st.integers(16, 40), st.integers(16, 40), st.integers(1, 9), st.sampled_from(["gray", "last", "first"]))
def test_cutting_an_image_and_pasting_it_loses_nothing(height: int, width: int, side: int, layout: str) -> None:
    shape = {"gray": (height, width), "last": (height, width, 3), "first": (3, height, width)}[layout]
    patches = Patches.of(shape, side)
    flat = np.random.default_rng(0).integers(0, 256, (2, 5, np.prod(shape)), dtype=np.uint8)
    cut = patches.cut(flat)
    assert cut.shape[2] == patches.rows * patches.columns == len(patches.names)
    np.testing.assert_array_equal(patches.paste(cut), flat)


def test_images_become_patches_of_a_codebook_that_is_kept_everywhere(tmp_path: Path) -> None:
    unfitted = image_tokenizer()
    assert unfitted.unfitted == ["observation.image"]
    with pytest.raises(InputError, match=r"observation\.image is an image.*fit"):
        unfitted.encode_observation(values(scenes(2)))
    tokenizer = unfitted.fit(values(scenes(300)))
    assert not tokenizer.unfitted
    assert tokenizer.slots[1].name == "observation.image[0:5,0:5]"
    assert len(tokenizer.slots) == 1 + 7 * 8 + 1
    fresh = values(scenes(50, seed=1))
    ids = tokenizer.encode_observation(fresh)
    back = tokenizer.decode_observation(ids)
    assert back["image"].dtype == np.uint8
    error = np.sqrt(np.mean((back["image"].astype(float) - fresh["image"]) ** 2))
    spread = fresh["image"].std()
    assert error < 0.4 * spread
    assert tokenizer.report is not None
    line = tokenizer.report[0]
    assert (line.name, line.how) == ("observation.image", "codes")
    assert abs(line.error - error) < 0.3 * error

    tokenizer.save(tmp_path / "tokenizer.json")
    model = DHMMGPT2.from_tokenizer(tokenizer, embed_size=16, heads=2, num_states=2)
    save_checkpoint(tmp_path / "model.pt", model, tokenizer)
    checkpoint = load_checkpoint(tmp_path / "model.pt").tokenizer
    assert checkpoint is not None
    for again in (Tokenizer.load(tmp_path / "tokenizer.json"), checkpoint, pickle.loads(pickle.dumps(tokenizer))):
        assert again == tokenizer
        np.testing.assert_array_equal(again.encode_observation(fresh), ids)
    assert tokenizer != unfitted
    assert tokenizer.fit(values(scenes(300))) == tokenizer


def test_few_different_patches_are_kept_exactly() -> None:
    shape = (32, 32)
    images = np.kron(np.random.default_rng(0).integers(0, 5, (200, 4, 4)), np.ones((8, 8))).astype(np.uint8) * 50
    tokenizer = Tokenizer(spaces.Box(0, 255, shape, np.uint8), spaces.Discrete(2), overrides={"observation": {"patch": 8}})
    # Few values, but settings say patches.
    fitted = tokenizer.fit(images)
    assert fitted.vocab_size == 4 + 16 * 5
    np.testing.assert_array_equal(fitted.decode_observation(fitted.encode_observation(images)), images)


def test_a_codebook_has_no_more_codes_than_asked_for() -> None:
    codes = fit_codebook(Patches.of((32, 40, 3)), scenes(50).reshape(50, -1), 16)
    assert 2 <= len(codes) <= 16
    assert image_tokenizer(codes=16, patch=10).fit(values(scenes(100))).vocab_size == 4 + 16 * 16 + 10


def test_a_picture_shows_original_beside_reconstruction(tmp_path: Path) -> None:
    tokenizer = image_tokenizer().fit(values(scenes(100)))
    save_reconstruction(tokenizer, values(scenes(3)), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="no image"):
        save_reconstruction(Tokenizer(spaces.Discrete(2), spaces.Discrete(2)), np.zeros(3, int), tmp_path / "none.png")


def test_small_grids_of_bytes_are_cells_whose_channels_share_categories() -> None:
    rng = np.random.default_rng(0)
    grids = np.stack([rng.integers(1, 6, (500, 5, 4)), rng.integers(0, 3, (500, 5, 4))], axis=-1).astype(np.uint8)
    tokenizer = Tokenizer(spaces.Box(0, 255, (5, 4, 2), np.uint8), spaces.Discrete(2))
    assert tokenizer.vocab_size == 4 + 40 * 256
    fitted = tokenizer.fit(grids)
    assert fitted.vocab_size == 4 + 20 * 7 + 20 * 4
    np.testing.assert_array_equal(fitted.decode_observation(fitted.encode_observation(grids)), grids)
    grids[0, 0, 0, 0] = 9  # never seen: no mistake for what was
    assert fitted.decode_observation(fitted.encode_observation(grids[0]))[0, 0, 0] == 6


def test_a_large_table_of_few_values_is_cells_too() -> None:
    grids = np.random.default_rng(0).integers(0, 4, (100, 20, 20), dtype=np.uint8)
    fitted = Tokenizer(spaces.Box(0, 255, (20, 20), np.uint8), spaces.Discrete(2)).fit(grids)
    assert len(fitted.slots) == 401
    np.testing.assert_array_equal(fitted.decode_observation(fitted.encode_observation(grids)), grids)


def test_fields_with_few_values_get_exactly_these_and_those_that_never_change_keep_their_bins() -> None:
    rng = np.random.default_rng(0)
    low = [-np.inf, -np.inf, -5, 0]
    space = spaces.Box(np.array(low), np.array([np.inf, np.inf, 5, np.inf]), dtype=np.float64)
    rows = np.stack(
        [np.full(1000, 3.5), rng.choice([-2.0, 0.1, 7.0], 1000), rng.uniform(-5, 5, 1000), rng.exponential(4, 1000)], 1
    )
    fitted = Tokenizer(space, spaces.Discrete(2)).fit(rows)
    assert [slot.stop - slot.start for slot in fitted.slots[1:]] == [10, 3, 10, 10]
    back = fitted.decode_observation(fitted.encode_observation(rows))
    np.testing.assert_array_equal(back[:, 1], rows[:, 1])
    strange = fitted.decode_observation(fitted.encode_observation(np.array([9.0, 5.0, 0.0, 1.0])))
    assert strange[0] > back[0, 0] + 1  # what never changed may change later
    assert strange[1] == 7
    assert abs(fitted.overrides["observation[3]"]["scale"] - np.sqrt(32)) < 1
    assert fitted.report is not None
    assert [line.how for line in fitted.report] == ["bins", "values", "bins", "bins"]
    assert [line.used for line in fitted.report] == [1, 3, 10, 8]  # of a field without bounds, the last bins are for later
    assert all(line.error < 0.35 * max(line.spread, 1e-9) for line in fitted.report[2:])
    assert "observation[1]" in format_report(fitted.report)
    assert fitted.fit(rows) == fitted


def test_infinite_values_are_clipped_and_only_nan_is_refused() -> None:
    rows = np.random.default_rng(0).normal(size=(1000, 2))
    rows[::10, 0], rows[:, 1] = np.inf, -np.inf
    tokenizer = Tokenizer(spaces.Box(-np.inf, np.inf, (2,), np.float64), spaces.Discrete(2))
    fitted = tokenizer.fit(rows)
    assert abs(fitted.overrides["observation[0]"]["scale"] - 1) < 0.1
    assert (
        fitted.encode_observation(rows)[::10] == [slot.stop - 1 for slot in fitted.slots[1:2]] + [fitted.slots[2].start]
    ).all()
    assert fitted.report is not None
    assert [line.clipped for line in fitted.report] == [0.1, 1.0]
    assert np.isfinite([line.error for line in fitted.report]).all()
    rows[3, 1] = np.nan
    with pytest.raises(InputError, match=r"observation\[1\] is NaN"):
        tokenizer.fit(rows)


def test_nothing_to_fit_on_is_an_error_and_nothing_to_see_is_none() -> None:
    with pytest.raises(InputError, match="there are no observations to fit"):
        Tokenizer(spaces.Box(-1, 1, (2,)), spaces.Discrete(2)).fit(np.zeros((0, 2)))
    blind = Tokenizer(spaces.Box(-1, 1, (0,)), spaces.Discrete(2)).fit(np.zeros((50, 0)))
    assert (len(blind.slots), blind.report) == (1, [])
    for space in (spaces.Dict(), spaces.Tuple([spaces.Discrete(2), spaces.Tuple([])])):
        with pytest.raises(InputError, match="of nothing"):
            Tokenizer(space, spaces.Discrete(2))


def test_settings_of_the_user_stay() -> None:
    space = spaces.Box(-np.inf, np.inf, (3,))
    mine: dict[str, dict[str, Any]] = {
        "observation[0]": {"bins": 4},
        "observation[1]": {"scale": 2.0},
        "observation[2]": {"values": [1, 2]},
    }
    fitted = Tokenizer(space, spaces.Discrete(2), overrides=mine).fit(np.zeros((1000, 3)))
    assert fitted.overrides == {**mine, "observation[0]": {"bins": 4, "scale": 1.0}}


def test_an_environment_is_enough_to_fit_on() -> None:
    env = gym.make("CartPole-v1")
    tokenizer = Tokenizer(env.observation_space, env.action_space, bins=10)
    assert tokenizer.unfitted == ["observation[1]", "observation[3]"]
    fitted = tokenizer.fit(random_observations(env))
    assert 0.2 < fitted.overrides["observation[1]"]["scale"] < 2
    assert fitted.vocab_size == 44
    assert not fitted.unfitted


def test_an_environment_in_place_of_its_observations_is_an_error_that_says_what_to_call() -> None:
    env = gym.make("CartPole-v1")
    for one in (env, DummyVecEnv([lambda: env])):
        with pytest.raises(InputError, match=r"not on an environment; call tokenizer\.fit\(random_observations\(env\)\)"):
            Tokenizer(env.observation_space, env.action_space).fit(one)


def test_fitting_takes_no_illegal_action() -> None:
    class Gated(gym.Env[Any, Any]):
        observation_space, action_space = spaces.Box(-np.inf, np.inf, (1,)), spaces.Discrete(3)

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            return self.np_random.normal(size=1).astype(np.float32), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            assert action == 1
            return self.np_random.normal(size=1).astype(np.float32), 0.0, False, False, {}

        def action_masks(self) -> np.ndarray[Any, Any]:
            return np.array([False, True, False])

    for env in (Gated(), DummyVecEnv([Gated, Gated])):
        fitted = Tokenizer(Gated.observation_space, Gated.action_space).fit(random_observations(env))
        assert abs(fitted.overrides["observation[0]"]["scale"] - 1) < 0.1


def test_patches_are_cut_where_they_are_asked_for_and_never_left_out_silently() -> None:
    space, overrides = spaces.Box(0, 255, (8, 8, 3), np.uint8), {"observation": {"patch": 4}}
    small = Tokenizer(space, spaces.Discrete(2), overrides=overrides).fit(scenes(20, shape=(8, 8, 3)))
    assert [slot.name for slot in small.slots[1:]] == [f"observation[{y}:{y + 4},{x}:{x + 4}]" for y in (0, 4) for x in (0, 4)]
    for other, settings in ((space, {"codes": 9}), (spaces.Box(0, 1, (8, 8)), {"patch": 4})):
        with pytest.raises(InputError, match="observation has a patch or codes, but is not an image"):
            Tokenizer(other, spaces.Discrete(2), overrides={"observation": settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"values": []}, "at least one number"),
        ({"codes": 1}, "at least 2"),
        ({"patch": -1}, "0 for one category a cell"),
        ({"patch": "8"}, "patch of observation.image is '8'; it must be a whole number"),
        ({"bins": 2.5}, "a whole number"),
        ({"scale": "wide"}, "it must be a number"),
        ({"low": float("nan")}, "it must be a number"),
        ({"values": [0, "1"]}, "at least one number"),
    ],
)
def test_bad_settings_of_images_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        image_tokenizer(**settings)
