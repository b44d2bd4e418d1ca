"""Faults of agents and of the environments they act in: nothing is silently wrong, and nothing ends in a stray traceback."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from dhmm_rl import DHMMGPT2, InputError, SequenceA2C, SequencePPO, Tokenizer, TokenStream, VecTokenStream, ppo
from dhmm_rl import collect as collect_command
from dhmm_rl.cli import run_command
from dhmm_rl.common import ActionTokens, DHMMPolicy, LanguageModelActor, SequencePolicy, SequenceRolloutBuffer, WithActionMasks
from dhmm_rl.data import collect, random_observations
from dhmm_rl.envs import GymnasiumVecEnv, InfoActionMask, ReportFaults, ReportingSubprocVecEnv, make_gymnasium_vec_env
from dhmm_rl.errors import EnvironmentFault
from dhmm_rl.recipes import EnvRecipe
from dhmm_rl.recipes.environments import VecRaiseOnNan, make_envs
from dhmm_rl.runs.callbacks import DivergenceCallback
from tests.faulty_env import Faulty

MODEL: dict[str, Any] = {"embed_size": 16, "heads": 2, "num_states": 2}
SMALL: dict[str, Any] = {
    "n_steps": 8,
    "batch_size": 16,
    "n_epochs": 1,
    "seed": 0,
    "device": "cpu",
    "policy_kwargs": {"features_extractor_kwargs": MODEL},
}


class Toy(gym.Env[Any, Any]):
    """
    Episodes of a few steps with any spaces.

    :param masks: masks that ``action_masks`` returns; ``None`` for an environment without masks
    """

    def __init__(
        self,
        observations: spaces.Space[Any] = spaces.Box(-1, 1, (2,)),  # noqa: B008 - never changed
        actions: spaces.Space[Any] = spaces.Discrete(2),  # noqa: B008
        length: int = 5,
        truncate: bool = False,
        reward: float = 1.0,
        masks: Any = None,
    ) -> None:
        self.observation_space, self.action_space = observations, actions
        self.length, self.truncate, self.reward, self.t = length, truncate, reward, 0
        if masks is not None:
            self.action_masks = lambda: masks

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.t += 1
        over = self.t == self.length
        return self.observation_space.sample(), self.reward, over and not self.truncate, over and self.truncate, {}


def toys(n_envs: int = 2, **kwargs: Any) -> VecEnv:
    return DummyVecEnv([lambda: Toy(**kwargs)] * n_envs)


def streams(**kwargs: Any) -> VecEnv:
    return VecTokenStream(toys(**kwargs), history=1)


# Weights that are NaN or infinite


def spoil(model: torch.nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


BOX = spaces.Box(-1, 1, (2,))
HEADS = [("tokens", spaces.Discrete(2)), ("tokens", spaces.MultiDiscrete([2, 3])), ("tokens", BOX), ("gaussian", BOX)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(("head", "actions"), HEADS, ids=str)
@pytest.mark.parametrize("algorithm", [PPO, A2C, SequencePPO, SequenceA2C])
def test_no_action_is_chosen_by_weights_that_are_no_numbers(
    algorithm: Any, head: str, actions: spaces.Space[Any], deterministic: bool, value: float
) -> None:
    env = streams(actions=actions)
    agent = algorithm("DHMMPolicy", env, device="cpu", policy_kwargs={"features_extractor_kwargs": MODEL, "action_head": head})
    spoil(agent.policy, value)
    with pytest.raises(InputError, match=r"predictions are not finite numbers \(NaN or infinity\), so nothing can be chosen"):
        agent.predict(env.reset(), deterministic=deterministic)
    if deterministic:
        with pytest.raises(InputError, match="predictions are not finite numbers"):
            agent.learn(64)


@pytest.mark.parametrize("deterministic", [True, False])
def test_no_action_is_chosen_by_a_language_model_that_is_no_numbers(deterministic: bool) -> None:
    env = toys()
    tokenizer = Tokenizer(env.observation_space, env.action_space)
    actor = LanguageModelActor(DHMMGPT2.from_tokenizer(tokenizer, **MODEL), tokenizer)
    spoil(actor.model, np.nan)
    with pytest.raises(InputError, match="predictions are not finite numbers"):
        actor.predict(np.asarray(env.reset()), deterministic=deterministic)


def test_done_is_never_an_action_however_likely_the_model_finds_it() -> None:
    env = toys()
    tokenizer = Tokenizer(env.observation_space, env.action_space)
    model = DHMMGPT2.from_tokenizer(tokenizer, **MODEL)
    with torch.no_grad():
        model.head[1] = 100 * torch.ones(model.embed_size)
        model.head[2:] = -100
    states = model.hidden_states(torch.as_tensor(tokenizer.first_step(env.reset()))[:, None])
    for greedy in (True, False):
        ids, _ = (
            ActionTokens(model, tokenizer).proba_distribution(states._replace(hidden=states.hidden.abs())).choose_ids(greedy)
        )
        assert (ids > 1).all()


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("warmup", [True, False])
def test_an_update_of_numbers_that_are_not_finite_is_told_and_leaves_the_weights(normalized: bool, warmup: bool) -> None:
    agent = SequencePPO("DHMMPolicy", streams(reward=1e30), **SMALL, normalize_advantage=normalized)
    if warmup:
        agent.policy.prior = copy.deepcopy(agent.policy.language_model)
    before = copy.deepcopy(agent.policy.state_dict())
    with pytest.warns(UserWarning, match=r"train/value_loss.* became NaN or infinite"):
        agent.learn(16)
    for name, parameter in agent.policy.state_dict().items():
        assert parameter.isfinite().all()
        assert torch.equal(parameter, before[name])
    agent.set_env(streams())
    agent.learn(64)  # finite rewards teach again, without a warning
    assert any(not torch.equal(parameter, before[name]) for name, parameter in agent.policy.state_dict().items())
    assert np.isfinite(agent._advantage_variance)


@pytest.mark.parametrize(("algorithm", "policy"), [(PPO, "MlpPolicy"), (PPO, "DHMMPolicy"), (RecurrentPPO, "MlpLstmPolicy")])
def test_losses_that_are_not_finite_are_told_of_all_algorithms_and_such_weights_refused(algorithm: Any, policy: str) -> None:
    settings = SMALL if policy == "DHMMPolicy" else {**SMALL, "policy_kwargs": {}}
    env = streams if policy == "DHMMPolicy" else toys
    agent = algorithm(policy, env(reward=1e30), **settings)
    with pytest.warns(UserWarning, match="train/.*loss.* became NaN or infinite"), np.errstate(over="ignore", invalid="ignore"):
        agent.learn(48, DivergenceCallback())
    agent = algorithm(policy, env(), **settings)
    spoil(agent.policy, np.nan)
    with pytest.raises(InputError, match="training diverged: by step 0 weights became NaN or infinite"):
        agent.learn(48, DivergenceCallback())


# Masks

FIELDS = [spaces.Discrete(3), spaces.Discrete(3, start=1), spaces.MultiDiscrete([2, 2]), spaces.MultiBinary(2)]


def legal_mask(space: spaces.Space[Any]) -> list[Any]:
    return [True] * (3 if isinstance(space, spaces.Discrete) else 4)


WRONG_MASKS: dict[str, tuple[Callable[[list[Any]], Any], str]] = {
    "nothing is legal": (lambda mask: [False] * len(mask), "forbids every action"),
    "too short": (lambda mask: mask[1:], "choices were expected"),
    "too long": (lambda mask: [*mask, True], "choices were expected"),
    "a number": (lambda mask: 1, "choices were expected"),
    "ragged": (lambda mask: [mask, mask[1:]], "must be arrays of booleans"),
    "objects": (lambda mask: np.array([*mask[1:], None]), "must be arrays of booleans"),
    "texts": (lambda mask: ["yes"] * len(mask), "must be booleans"),
    "NaN": (lambda mask: [np.nan, *mask[1:]], "must be booleans"),
    "probabilities": (lambda mask: [0.5] * len(mask), "must be booleans"),
    "integers past 1": (lambda mask: [2, *map(int, mask[1:])], "integers other than 0 and 1"),
}


def masked_rollouts(venv: VecEnv) -> Any:
    return collect(venv, episodes=2, imitate=False)


def masked_fit(venv: VecEnv) -> Any:
    return Tokenizer(venv.observation_space, venv.action_space).fit(random_observations(venv))


def masked_fit_alone(venv: VecEnv) -> Any:
    env = venv.unwrapped.envs[0]  # type: ignore[attr-defined]
    return Tokenizer(env.observation_space, env.action_space).fit(random_observations(env))


def masked_learning(venv: VecEnv) -> Any:
    return SequencePPO("DHMMPolicy", VecTokenStream(venv, history=1), **SMALL).learn(16)


def masked_baseline(venv: VecEnv) -> Any:
    return MaskablePPO("MlpPolicy", VecRaiseOnNan(venv), n_steps=8, batch_size=16, n_epochs=1, device="cpu").learn(16)


def masked_language_model(venv: VecEnv) -> Any:
    tokenizer = Tokenizer(venv.observation_space, venv.action_space)
    actor = LanguageModelActor(DHMMGPT2.from_tokenizer(tokenizer, **MODEL), tokenizer)
    return WithActionMasks(actor, venv).predict(venv.reset())


def masked_collecting_by_a_policy(venv: VecEnv) -> Any:
    legal = toys(observations=venv.observation_space, actions=venv.action_space, masks=legal_mask(venv.action_space))
    return collect(venv, MaskablePPO("MlpPolicy", legal, n_steps=8, batch_size=16, device="cpu"), episodes=2, imitate=False)


ACTING = [
    masked_rollouts,
    masked_fit,
    masked_fit_alone,
    masked_learning,
    masked_baseline,
    masked_language_model,
    masked_collecting_by_a_policy,
]


@pytest.mark.parametrize("space", FIELDS, ids=str)
@pytest.mark.parametrize("act", ACTING)
def test_masks_that_are_none_are_refused_by_whoever_acts(act: Callable[[VecEnv], Any], space: spaces.Space[Any]) -> None:
    if act in (masked_baseline, masked_collecting_by_a_policy) and np.any(getattr(space, "start", 0)):
        pytest.skip("sb3-contrib takes no start")
    right = legal_mask(space)
    for spoiled, message in WRONG_MASKS.values():
        with pytest.raises(InputError, match=message):
            act(toys(actions=space, masks=spoiled(right)))
    forms = [np.array(right, dtype=np.int8), right, np.array(right), [1] * len(right)]
    for mask in forms if act is masked_rollouts else forms[:1]:
        act(toys(actions=space, masks=mask))


def test_masks_from_infos_are_checked_like_any_others() -> None:
    class Informed(Toy):
        mask: Any = np.array([np.nan, 1.0])

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
            return super().reset(seed=seed)[0], {"action_mask": self.mask}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return *super().step(action)[:4], {"action_mask": self.mask}

    vector = gym.vector.SyncVectorEnv([Informed] * 2, autoreset_mode="SameStep")
    for env in (DummyVecEnv([lambda: InfoActionMask(Informed())] * 2), GymnasiumVecEnv(vector, mask_key="action_mask")):
        with pytest.raises(InputError, match="must be booleans"):
            collect(env, episodes=2, imitate=False)
    with pytest.raises(InputError, match="have no 'action_mask'"):
        InfoActionMask(Toy()).reset()


# What callbacks read


class Look(BaseCallback):
    """Records what SB3's callbacks can read at every step and around a rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, Any]] = []
        self.ends: list[dict[str, Any]] = []

    def _on_rollout_start(self) -> None:
        assert self.model.rollout_buffer.pos == 0  # type: ignore[attr-defined]
        assert not self.model.rollout_buffer.rewards.any()  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        last = np.array(self.model._last_obs)
        self.steps.append(dict(self.locals) | {"last_obs": last, "rewards": np.array(self.locals["rewards"])})
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.locals["rollout_buffer"]
        np.testing.assert_allclose(buffer.advantages + buffer.values, buffer.returns, rtol=1e-5)
        self.ends.append(dict(self.locals) | {"stored_rewards": buffer.rewards.copy()})


def described(value: Any) -> Any:
    if isinstance(value, np.ndarray | torch.Tensor):
        return type(value), tuple(value.shape), "float" in str(value.dtype)
    return type(value)


@pytest.mark.parametrize(
    ("head", "actions"), [*HEADS, ("tokens", spaces.MultiBinary(2)), ("tokens", spaces.Discrete(2, start=5))], ids=str
)
def test_callbacks_read_what_ppo_gives_them(head: str, actions: spaces.Space[Any]) -> None:
    looks = []
    for algorithm in (PPO, SequencePPO):
        settings: dict[str, Any] = SMALL | {"policy_kwargs": {"features_extractor_kwargs": MODEL, "action_head": head}}
        look = Look()
        algorithm("DHMMPolicy", streams(actions=actions, truncate=True), **settings).learn(32, look)
        looks.append(look)
    theirs, ours = looks
    assert len(ours.steps) == len(theirs.steps) == 16
    for mine, other in zip([*ours.steps, *ours.ends], [*theirs.steps, *theirs.ends], strict=True):
        names = other.keys() - {"self", "callback", "rollout_buffer", "idx", "done", "terminal_obs", "terminal_value"}
        assert names <= mine.keys()
        for name in names - ({"actions"} if "stored_rewards" in mine else set()):  # SB3 reshapes them for its buffer
            assert described(mine[name]) == described(other[name]), name
    for i, step in enumerate(ours.steps):
        assert step["n_steps"] == i % 8
        assert (step["rewards"] == 1).all()
        np.testing.assert_array_equal(step["last_obs"], step["obs_tensor"])
        assert all(actions.contains(action) for action in step["clipped_actions"])
        if i % 8:
            np.testing.assert_array_equal(step["last_obs"], ours.steps[i - 1]["new_obs"])
    for end in ours.ends:
        assert (end["stored_rewards"] != 1).any()  # γV at the time limit: in the buffer, not in what callbacks read


def test_a_callback_may_shape_rewards_and_stop_in_mid_rollout() -> None:
    class Shape(BaseCallback):
        def _on_step(self) -> bool:
            self.locals["rewards"] += 1
            return self.n_calls < 3

    agent = SequencePPO("DHMMPolicy", streams(), **SMALL).learn(16, Shape())
    np.testing.assert_array_equal(agent.rollout_buffer.rewards[:4, 0], [2, 2, 2, 0])


# Settings as SB3's PPO takes them


@pytest.mark.parametrize("algorithm", [PPO, A2C, SequencePPO, SequenceA2C])
@pytest.mark.parametrize("net_arch", [[8, 4], {"vf": [8, 4]}, {"pi": [], "vf": [8, 4]}, [{"pi": [], "vf": [8, 4]}]])
def test_layers_are_written_as_for_ppo(algorithm: Any, net_arch: Any, tmp_path: Path) -> None:
    kwargs = {"features_extractor_kwargs": MODEL, "net_arch": net_arch}
    env = streams()
    agent = algorithm("DHMMPolicy", env, device="cpu", policy_kwargs=kwargs)
    layers = [layer.out_features for layer in agent.policy.mlp_extractor.value_net if isinstance(layer, torch.nn.Linear)]
    assert layers == [8, 4]
    agent.save(tmp_path / "model.zip")
    algorithm.load(tmp_path / "model.zip").predict(env.reset())


def test_layers_that_the_actor_cannot_have_are_told() -> None:
    kwargs = {"features_extractor_kwargs": MODEL, "net_arch": {"pi": [8], "vf": [8]}}
    with pytest.warns(UserWarning, match=r"net_arch\['pi'\] = \[8\] has no effect"):
        PPO("DHMMPolicy", streams(), device="cpu", policy_kwargs=kwargs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy_kwargs": {"share_features_extractor": False}}, "share one language model"),
        ({"policy_kwargs": {"features_extractor_class": FlattenExtractor}}, "not with a FlattenExtractor"),
        ({"use_sde": True}, "gSDE"),
        ({"rollout_buffer_class": RolloutBuffer}, "leave out rollout_buffer_class"),
        ({"rollout_buffer_kwargs": {"a": 1}}, "leave out rollout_buffer_class"),
    ],
    ids=str,
)
@pytest.mark.parametrize("algorithm", [PPO, SequencePPO])
def test_settings_that_would_have_no_effect_are_refused(algorithm: Any, settings: dict[str, Any], message: str) -> None:
    if algorithm is PPO and "buffer" in str(settings):
        pytest.skip("SB3's own")
    with pytest.raises(InputError, match=message):
        algorithm("DHMMPolicy", streams(actions=BOX), **{**SMALL, **settings})


def test_settings_of_ppo_at_their_defaults_are_taken() -> None:
    defaults: dict[str, Any] = {
        "use_sde": False,
        "sde_sample_freq": 4,
        "rollout_buffer_class": SequenceRolloutBuffer,
        "rollout_buffer_kwargs": {},
    }
    SequencePPO("DHMMPolicy", streams(), **SMALL, **defaults).learn(16)


@pytest.mark.parametrize("policy", ["DHMMPolicy", DHMMPolicy, SequencePolicy])
def test_a_policy_is_named_or_given_as_a_class(policy: Any, tmp_path: Path) -> None:
    agent = SequencePPO(policy, streams(), **SMALL).learn(16)
    agent.save(tmp_path / "model.zip")
    assert type(SequencePPO.load(tmp_path / "model.zip").policy) is SequencePolicy


@pytest.mark.parametrize("history", [0, -1, 2.5, "2", None])
def test_a_history_of_no_steps_is_refused(history: Any) -> None:
    for make in (lambda: VecTokenStream(toys(), history=history), lambda: TokenStream(Toy(), history=history)):
        with pytest.raises(InputError, match="history is"):
            make()
    assert VecTokenStream(toys(), history=np.int64(2)).reset().shape == (2, 2, 3)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda actor: pickle.loads(pickle.dumps(actor))])
def test_a_model_with_masks_is_copied_and_pickled(again: Callable[[Any], Any]) -> None:
    class Stub:
        name = "a model"

    actor = again(WithActionMasks(Stub() if again is copy.copy else {1: 2}, toys(masks=None, length=3)))
    assert isinstance(actor, WithActionMasks)
    assert actor.model is not None
    with pytest.raises(AttributeError):
        actor.nonsense  # noqa: B018


# Vector environments of other kinds


class Forgetful(VecEnvWrapper):
    """A vector environment without ``terminal_observation``."""

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            info.pop("terminal_observation", None)
        return observations, rewards, dones, infos


@pytest.mark.parametrize("truncate", [True, False])
def test_vector_environments_may_keep_the_last_observation_to_themselves(truncate: bool) -> None:
    for algorithm in (PPO, SequencePPO):
        agent = algorithm("DHMMPolicy", VecTokenStream(Forgetful(toys(truncate=truncate)), history=1), **SMALL)
        agent.learn(32)
        assert (agent.rollout_buffer.rewards == 1).all()  # SB3 adds no γV, either
    with pytest.warns(UserWarning, match="does not report the last observation"):
        rollouts = collect(Forgetful(toys(truncate=truncate)), episodes=2, imitate=False)
    observations: NDArray[Any] = rollouts.observations
    np.testing.assert_array_equal(observations[4], observations[5])
    assert len(rollouts.rewards) == len(observations) == 12


ANY_OBSERVATIONS = [
    spaces.Dict({"a": BOX, "b": spaces.Discrete(3), "c": spaces.MultiBinary(2)}),
    spaces.Tuple([BOX, spaces.Discrete(3)]),
    spaces.Discrete(3),
]


@pytest.mark.parametrize("observations", ANY_OBSERVATIONS, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize("n_envs", [1, 4])
def test_a_language_model_acts_on_any_observations(observations: spaces.Space[Any], n_envs: int) -> None:
    env = toys(n_envs, observations=observations, masks=[True, True])
    tokenizer = Tokenizer(env.observation_space, env.action_space)
    actor = WithActionMasks(LanguageModelActor(DHMMGPT2.from_tokenizer(tokenizer, **MODEL), tokenizer), env)
    assert len(collect(env, actor, episodes=2 * n_envs, imitate=True)) == 2 * n_envs


@pytest.mark.parametrize("vectorized", [True, False])
def test_gymnasiums_vector_environments_tell_returns_and_lengths(vectorized: bool) -> None:
    if vectorized:
        env = make_gymnasium_vec_env("CartPole-v1", 4, max_episode_steps=9)
    else:
        env = GymnasiumVecEnv(gym.make_vec("CartPole-v1", 4, "sync", {"autoreset_mode": "NextStep"}, max_episode_steps=9))
    agent = SequencePPO("DHMMPolicy", VecTokenStream(env, history=1), **SMALL | {"n_steps": 16}).learn(64)
    assert agent.ep_info_buffer
    assert {(info["r"], info["l"]) for info in agent.ep_info_buffer} == {(9.0, 9)}


# Environments that break down

FAULTS = {
    "raises in step": r"in step at step 3 of episode 1, raised ZeroDivisionError: the engine is out of oil",
    "raises in reset": r"in reset at the beginning of episode 1, raised ZeroDivisionError: the engine is out of oil",
    "no info of reset": r"in reset at the beginning of episode 1, .*(tuple|observation and info)",
    "raises in action_masks": r"in action_masks at .* of episode 1, raised ZeroDivisionError: the engine is out of oil",
    "four values": r"in step at step 3 of episode 1, .*it must return observation, reward, terminated, truncated and info",
    "no reward": r"in step at step 3 of episode 1, returned None; the reward must be a number",
    "a text for a reward": r"in step at step 3 of episode 1, returned '1.0'; the reward must be a number",
    "an array for a reward": r"in step at step 3 of episode 1, returned array\(\[1., 1.\]\); the reward must be a number",
    "no end": r"in step at step 3 of episode 1, returned None; terminated must be true or false",
    "no info": r"in step at step 3 of episode 1, returned None; info must be a dictionary",
}
MODULE = "tests.faulty_env:"


def faulty(fault: str, vectorization: str = "dummy", name: str = "FaultyLimited-v0") -> EnvRecipe:
    return EnvRecipe("faulty", "", MODULE + name, kwargs={"fault": fault}, vectorization=vectorization)


@pytest.mark.parametrize("name", ["Faulty-v0", "FaultyLimited-v0"])
@pytest.mark.parametrize("vectorization", ["dummy", "gymnasium"])
@pytest.mark.parametrize(("fault", "message"), FAULTS.items(), ids=FAULTS.keys())
def test_an_environment_that_breaks_down_is_named(fault: str, message: str, vectorization: str, name: str) -> None:
    env = make_envs(faulty(fault, vectorization, name), 2, seed=0)
    with pytest.raises(EnvironmentFault, match=f"the environment {MODULE}{name}, {message}") as caught:
        collect(env, episodes=2, imitate=False)
    assert len(str(caught.value).splitlines()) == 1
    assert ("in break_down" in caught.value.details) == ("out of oil" in message)
    assert "out of oil" not in message or "gymnasium" not in caught.value.details  # its wrappers called the environment
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.details) == (str(caught.value), caught.value.details)


def test_a_constructor_that_raises_is_named() -> None:
    for vectorization in ("dummy", "gymnasium", "subproc"):
        with pytest.raises(EnvironmentFault, match="Faulty-v0, in its constructor, raised ZeroDivisionError") as caught:
            make_envs(faulty("raises in its constructor", vectorization, "Faulty-v0"), 2, seed=0)
        assert "in break_down" in caught.value.details


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("fault", "message"), [*FAULTS.items(), ("is killed", "the process of environment 1 was killed by .*SIGKILL")]
)
def test_an_environment_that_breaks_down_in_its_own_process_is_named(fault: str, message: str) -> None:
    def make(fault: str) -> gym.Env[Any, Any]:
        return ReportFaults(Faulty(fault), "Faulty-v0")

    masked = "action_masks" in fault  # a method that all environments must have
    venv = ReportingSubprocVecEnv([partial(make, fault if masked else ""), partial(make, fault)], start_method="fork")
    with pytest.raises(EnvironmentFault, match=message) as caught:
        collect(venv, episodes=2, imitate=False)
    assert ("in break_down" in caught.value.details) == ("out of oil" in message)
    venv.close()
    assert not any(process.is_alive() for process in venv.processes)


def test_environments_in_processes_that_stay_well_are_closed() -> None:
    venv = ReportingSubprocVecEnv([Faulty, Faulty], start_method="fork")
    collect(venv, episodes=4, imitate=False)
    venv.close()
    venv.close()
    assert [process.exitcode for process in venv.processes] == [0, 0]


def test_what_a_wrapper_outside_raises_in_a_process_is_told() -> None:
    def make() -> gym.Env[Any, Any]:
        return gym.wrappers.TransformObservation(Faulty(), lambda observation: observation / {}, Faulty.observation_space)

    venv = ReportingSubprocVecEnv([make], start_method="fork")
    with pytest.raises(EnvironmentFault, match="raised TypeError: unsupported operand") as caught:
        venv.reset()
    assert "observation / {}" in caught.value.details
    venv.close()


@pytest.mark.parametrize("command", [ppo, collect_command])
def test_a_command_ends_in_the_line_and_the_traceback(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "faulty.toml"
    recipe.write_text(
        f'description = "breaks down"\nid = "{MODULE}FaultyLimited-v0"\nbudget = 2000\neval_every = 256\neval_episodes = 2\n'
        'kwargs = { fault = "raises in step", episode = 20 }\n'
    )
    arguments = {
        ppo: ["--agent", "mlp", "--runs", str(tmp_path / "runs"), "--quiet"],
        collect_command: ["--to", str(tmp_path / "rollouts"), "--episodes", "400", "--quiet"],
    }
    monkeypatch.setattr("sys.argv", ["command", "--env", str(recipe), *arguments[command]])
    with pytest.raises(SystemExit) as caught:
        run_command(command.main, command.Args, "command")
    assert caught.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    said = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    assert len(said) == 1
    assert lines[said[0]].endswith("in step at step 3 of episode 20, raised ZeroDivisionError: the engine is out of oil")
    assert lines[-1] == "ZeroDivisionError: the engine is out of oil"
    assert len(lines[said[0] :]) < 20
    if command is ppo:
        assert len(list((tmp_path / "runs").glob("*/*/*/best_model*"))) == 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_same_seed_gives_the_same_weights_in_any_vector_environment() -> None:
    def make() -> gym.Env[Any, Any]:
        return ReportFaults(gym.make("dhmm_rl/CartPoleNoVel-v1"), "CartPoleNoVel")

    forked: dict[str, Any] = {"vec_env_cls": ReportingSubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}}
    weights = []
    for env in (
        make_vec_env("dhmm_rl/CartPoleNoVel-v1", 2, seed=0),
        make_vec_env(make, 2, seed=0),
        make_vec_env(make, 2, seed=0, **forked),
        make_gymnasium_vec_env("dhmm_rl/CartPoleNoVel-v1", 2),
    ):
        agent = SequencePPO("DHMMPolicy", VecTokenStream(env, history=1), **SMALL).learn(64)
        weights.append(torch.nn.utils.parameters_to_vector(agent.policy.parameters()).detach())
        env.close()
    assert all(torch.equal(weights[0], other) for other in weights[1:])
