"""Every action space that SB3's PPO takes, as tokens, and masks in the layout of sb3-contrib."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import make_masked_proba_distribution
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from dhmm_rl.common import ActionTokens, DHMMPolicy, check_masks
from dhmm_rl.data import collect, random_observations
from dhmm_rl.envs import TokenStream
from dhmm_rl.errors import InputError
from dhmm_rl.model import DHMMGPT2
from dhmm_rl.recipes import load_recipes
from dhmm_rl.recipes.environments import make_envs
from dhmm_rl.sequence_ppo import SequencePPO
from dhmm_rl.tokens import Tokenizer

SPACES: list[spaces.Space[Any]] = [
    spaces.Discrete(3),
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([2, 4, 3]),
    spaces.MultiBinary(3),
    spaces.Box(-1, 1, (2,)),
    spaces.Box(-2, 2, (2, 2)),
]
MODEL = {"embed_size": 16, "heads": 2, "num_states": 3, "window": 4}


class Obedient(gym.Env[Any, Any]):
    """An environment that accepts the actions of its space and raises an error for any other and for illegal ones."""

    observation_space = spaces.Discrete(2)

    def __init__(self, action_space: spaces.Space[Any], masked: bool = False) -> None:
        self.action_space, self.steps = action_space, 0
        self.choices = [size - (slot == 0) * 2 for slot, size in enumerate(_widths(action_space))]
        if masked:
            self.action_masks = self._action_masks

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        self._mask = self.draw_mask()
        return np.int64(0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        if hasattr(self, "action_masks"):
            entries = np.ravel(action - getattr(self.action_space, "start", 0)).astype(int)
            starts = np.cumsum([0, *self.choices[:-1]])
            assert self._mask[starts + entries].all(), "an illegal action was taken"
        self.steps += 1
        self._mask = self.draw_mask()
        return np.int64(self.steps % 2), 1.0, self.steps == 7, False, {}

    def draw_mask(self) -> np.ndarray[Any, Any]:
        """Draw a random mask with at least one legal choice in every field."""
        fields = [self.np_random.random(size) < 0.6 for size in self.choices]
        for field in fields:
            field[self.np_random.integers(len(field))] = True
        return np.concatenate(fields)

    def _action_masks(self) -> np.ndarray[Any, Any]:
        return self._mask


def _widths(action_space: spaces.Space[Any]) -> list[int]:
    """Number of ids of every action slot; those of the first include RESET and DONE."""
    return [
        slot.stop - max(slot.start, 0) + (j == 0)
        for j, slot in enumerate(Tokenizer(spaces.Discrete(2), action_space).slots[:-1])
    ]


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("algorithm", [PPO, SequencePPO])
def test_every_action_space_is_learned_on_and_saved(space: spaces.Space[Any], algorithm: Any, tmp_path: Any) -> None:
    env = make_vec_env(lambda: TokenStream(Obedient(space), history=4), 2, seed=0)
    policy = DHMMPolicy if algorithm is PPO else "DHMMPolicy"
    model = algorithm(policy, env, n_steps=16, batch_size=32, n_epochs=2, policy_kwargs={"features_extractor_kwargs": MODEL})
    model.learn(64)
    model.save(tmp_path / "model.zip")
    again = algorithm.load(tmp_path / "model.zip")
    observation = np.asarray(env.reset())
    action, _ = model.predict(observation, deterministic=True)
    assert all(space.contains(one) for one in action)
    np.testing.assert_array_equal(again.predict(observation, deterministic=True)[0], action)


@pytest.mark.parametrize("space", SPACES[:4], ids=str)
def test_masked_choices_are_never_taken(space: spaces.Space[Any]) -> None:
    env = make_vec_env(lambda: TokenStream(Obedient(space, masked=True), history=1), 2, seed=0)
    model = SequencePPO(
        "DHMMPolicy", env, n_steps=16, batch_size=32, policy_kwargs={"features_extractor_kwargs": MODEL}, learning_rate=1e-2
    )
    model.learn(128)


def test_masked_bins_are_never_taken_and_a_gaussian_refuses_masks() -> None:
    class RightOnly(gym.Env[Any, Any]):
        observation_space, action_space = spaces.Discrete(2), spaces.Box(-1, 1, (1,))

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            return np.int64(0), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            assert action > 0, "an illegal action was taken"
            return np.int64(0), 0.0, False, False, {}

        def action_masks(self) -> np.ndarray[Any, Any]:
            return np.arange(10) >= 5

    env = make_vec_env(lambda: TokenStream(RightOnly(), history=1), 2)
    for head in ("tokens", "gaussian"):
        model = SequencePPO(
            "DHMMPolicy",
            env,
            n_steps=16,
            batch_size=32,
            policy_kwargs={"features_extractor_kwargs": MODEL, "action_head": head},
        )
        if head == "tokens":
            model.learn(64)
        else:
            with pytest.raises(InputError, match="'gaussian' cannot obey"):
                model.learn(64)


@pytest.mark.parametrize(
    "space", [*SPACES[:4], spaces.MultiDiscrete(np.array([[2, 4], [3, 2]])), spaces.MultiBinary((2, 2))], ids=str
)
def test_random_actions_are_legal_and_of_every_kind(space: spaces.Space[Any]) -> None:
    rollouts = collect(make_vec_env(lambda: Obedient(space, masked=True), 2, seed=0), episodes=20, imitate=False)
    tokenizer = Tokenizer(spaces.Discrete(2), space)
    tokenizer.fit(random_observations(Obedient(space, masked=True)))
    ids = tokenizer.encode_action(rollouts.actions)
    assert [len(np.unique(column)) for column in ids.T] == Obedient(space).choices


def test_random_actions_say_that_they_ignore_masks_over_bins() -> None:
    class Binned(Obedient):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            assert self.action_space.contains(action)
            return np.int64(0), 1.0, True, False, {}

    def make() -> Binned:
        return Binned(spaces.Box(-1, 1, (2,)), masked=True)

    with pytest.warns(UserWarning, match="random actions ignore action masks of a Box: they are over the bins"):
        collect(make_vec_env(make, 2), episodes=2, imitate=False)
    for env in (make(), make_vec_env(make, 2)):
        with pytest.warns(UserWarning, match="random actions ignore action masks of a Box"):
            random_observations(env, steps=4)


@pytest.mark.parametrize("space", SPACES[:4], ids=str)
def test_masks_are_laid_out_as_maskable_ppo_has_them(space: Any) -> None:
    tokenizer = Tokenizer(spaces.Discrete(2), space)
    model = DHMMGPT2.from_tokenizer(tokenizer, embed_size=16, heads=2, num_states=0)
    states = model.hidden_states(torch.as_tensor(tokenizer.first_step(np.zeros(1)))[None])
    tokens = ActionTokens(model, tokenizer)
    theirs = make_masked_proba_distribution(space)
    total = sum(tokens.choices)
    rng = np.random.default_rng(0)
    for _ in range(20):
        fields = [rng.permutation([True, *(rng.random(n - 1) < 0.5)]) for n in tokens.choices]
        mask = np.concatenate(fields)[None]
        legal = check_masks(mask, tokens.choices, 1, torch.device("cpu"))
        ours = tokens.proba_distribution(states, legal)
        theirs.proba_distribution(torch.zeros(1, total))
        theirs.apply_masking(mask)
        for _ in range(5):
            action = theirs.sample()
            shaped = action.reshape(1, *space.shape) + torch.as_tensor(getattr(space, "start", 0))
            assert abs(ours.log_prob(shaped).item() - theirs.log_prob(action).item()) < 1e-5  # a new policy is uniform
    with pytest.raises(InputError, match="forbids every action"):
        check_masks(
            np.concatenate([np.zeros(tokens.choices[0], bool), *fields[1:]])[None], tokens.choices, 1, torch.device("cpu")
        )


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Box(-np.inf, 1, (2,)), "have no bounds"),
        (spaces.MultiBinary((2, 2)), "are a MultiBinary of 2 dimensions"),
        (spaces.Tuple([spaces.Discrete(2)]), "are a Tuple"),
        (spaces.Dict(a=spaces.Discrete(2)), "are a Dict"),
    ],
)
def test_actions_that_ppo_does_not_have_are_refused_before_anything_is_done(space: spaces.Space[Any], message: str) -> None:
    make: Any = lambda: Obedient(space)  # noqa: E731
    gym.register("Refused-v0", make, disable_env_checker=True)
    try:
        env, agent = load_recipes("Refused-v0", "dhmm-gpt2")
        with pytest.raises(InputError, match=f"actions of Refused-v0 {message}.*TransformAction"):
            make_envs(env, 1, 0, agent)
        plain = make_envs(env, 1, 0)
        if isinstance(space, spaces.Tuple | spaces.Dict):
            with pytest.raises(InputError, match=f"actions of Refused-v0 {message}.*TransformAction"):
                collect(plain, episodes=1, imitate=False, env_id="Refused-v0")
    finally:
        del gym.registry["Refused-v0"]
