"""Evaluations that hang, cost too much or report too little; pretraining that costs too much or belongs to another run."""

import json
import random
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from benchmarks import run as benchmarks_run
from dhmm_rl import play, ppo, pretrain
from dhmm_rl.data import Rollouts, StreamDataset, collect
from dhmm_rl.errors import InputError
from dhmm_rl.model import DHMMGPT2, save_checkpoint
from dhmm_rl.pretraining.reuse import find_pretrained
from dhmm_rl.pretraining.trainer import TrainResult, train_language_model
from dhmm_rl.pretraining.workflow import pretrain as pretrain_run
from dhmm_rl.recipes import AgentRecipe, EnvRecipe, load_recipes
from dhmm_rl.recipes.environments import EnvFactory
from dhmm_rl.recipes.schema import TrainingSettings
from dhmm_rl.runs import evaluate as evaluate_module
from dhmm_rl.runs import evaluation, time_limits
from dhmm_rl.runs.callbacks import Clock
from dhmm_rl.runs.evaluate import EvalResult, better_actions, evaluate, show_numbers
from dhmm_rl.runs.evaluation import DURING_TRAINING, EvalSettings, EvaluationCallback
from dhmm_rl.runs.logs import make_logger, read_log
from dhmm_rl.runs.run import Run
from dhmm_rl.runs.time_limits import eval_limit, time_limit
from dhmm_rl.tokens import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:tokens hardly tell")  # of a few short episodes
SMALL = """
description = "small and quick"
policy = "DHMMPolicy"
normalize_reward = true
n_envs = 2
[model]
embed_size = 8
heads = 1
layers = 1
num_states = 2
window = 2
[pretrain]
episodes = 4
steps = 4
length = 4
[ppo]
n_steps = 32
batch_size = 64
n_epochs = 1
"""


class Lasting(gym.Env[Any, Any]):
    """
    Reward 1 for every step, and episodes of given lengths.

    :param lengths: lengths of the episodes in turn; 0 for an episode that does not end
    """

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self, lengths: tuple[int, ...] = (0,), seconds: float = 0.0) -> None:
        self.lengths, self.seconds, self.episode, self.steps = lengths, seconds, -1, 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=kwargs.get("seed"))
        self.episode, self.steps = self.episode + 1, 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        random.random()
        np.random.rand()  # noqa: NPY002
        torch.rand(1)
        time.sleep(self.seconds)
        self.steps += 1
        return np.zeros(1, np.float32), 1.0, self.steps == self.lengths[self.episode % len(self.lengths)], False, {}


class Alternating(gym.Env[Any, Any]):
    """Eight steps with reward 1 for an action other than the last one. A greedy policy gets nothing."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Discrete(2)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=kwargs.get("seed"))
        self.last: Any = None
        self.steps = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward, self.last, self.steps = float(self.last is not None and action != self.last), action, self.steps + 1
        return np.zeros(1, np.float32), reward, self.steps == 8, False, {}


class Pictures(gym.Env[Any, Any]):
    """Random images with a vector."""

    observation_space = spaces.Dict({"image": spaces.Box(0, 255, (8, 8, 3), np.uint8), "vector": spaces.Box(-1, 1, (2,))})
    action_space = spaces.MultiDiscrete([2, 3])

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=kwargs.get("seed"))
        return self._look(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._look(), 0.0, bool(self.np_random.random() < 0.1), False, {}

    def _look(self) -> dict[str, Any]:
        vector = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return {"image": self.np_random.integers(0, 256, (8, 8, 3), dtype=np.uint8), "vector": vector}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    ids: dict[str, Any] = {"Lasting-v0": Lasting, "Alternating-v0": Alternating, "Pictures-v0": Pictures}
    for name, env in ids.items():
        gym.register(name, env, disable_env_checker=True)
    yield
    for name in ids:
        del gym.registry[name]


def lasting(*lengths: tuple[int, ...]) -> VecEnv:
    return DummyVecEnv([lambda one=one: Lasting(one) for one in lengths])  # type: ignore[misc]


def agent_of(env: VecEnv, **settings: Any) -> PPO:
    return PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu", **settings)


def train(tmp_path: Path, **changes: Any) -> tuple[Path, dict[str, Any]]:
    """Run ``python -m dhmm_rl.ppo`` in this process; return the folder and the result of the run."""
    arguments: dict[str, Any] = {"agent": "mlp", "steps": 256, "final_episodes": 4, "runs": tmp_path, "quiet": True}
    ppo.main(ppo.Args(**(arguments | changes)))
    folder = max(tmp_path.glob("*/*/*/result.json"), key=lambda path: path.stat().st_mtime_ns).parent
    return folder, json.loads((folder / "result.json").read_text())


# Evaluations end


def test_an_episode_without_an_end_is_cut_and_counted() -> None:
    env = lasting((0,), (3,), (5, 0))
    found = evaluate(agent_of(env), env, 6, limit=10, early=False)
    assert sorted(found.lengths) == [3, 3, 5, 10, 10]
    assert sorted(found.returns) == [3, 3, 5, 10, 10]
    assert found.cut == 2
    assert str(found).endswith("over 5 episodes, 2 of them cut off after 10 steps")


@pytest.mark.parametrize(("seconds", "episodes"), [(np.inf, [1, 1, 1, 1, 9, 9]), (0.0, [1, 9])])
def test_every_environment_contributes_as_many_episodes_whenever_an_evaluation_ends(
    seconds: float, episodes: list[int]
) -> None:
    env = lasting((1, 1, 1, 9), (9, 9, 1))
    assert sorted(evaluate(agent_of(env), env, 6, seconds=seconds, early=False).lengths) == sorted(episodes)


def test_an_evaluation_ends_early_only_when_the_mean_is_known() -> None:
    same, different = lasting((4,), (4,)), lasting((2, 8), (8, 2))
    assert len(evaluate(agent_of(same), same, 20).returns) == 10
    assert len(evaluate(agent_of(different), different, 20).returns) == 20


def test_the_time_limit_is_found_wherever_it_is_given() -> None:
    env, _ = load_recipes("CartPole-v1", "mlp")
    assert time_limit(env) == 500
    assert time_limit(replace(env, kwargs={"max_episode_steps": 50})) == 50
    endless = replace(env, id="Lasting-v0")
    assert time_limit(endless) is None
    assert time_limit(replace(endless, wrappers={"gymnasium.wrappers:TimeLimit": {"max_episode_steps": 70}})) == 70
    assert eval_limit(env, 10) is None


@pytest.mark.parametrize("longest", [0, 1, 300, 2_000, 50_000])
def test_the_limit_of_evaluations_is_far_above_what_an_environment_enforces_itself(longest: int) -> None:
    env = replace(load_recipes("CartPole-v1", "mlp")[0], id="Lasting-v0")
    limit = eval_limit(env, longest)
    assert limit is not None
    assert limit >= max(1_000, longest, min(4 * longest, 10_000))


def test_an_environment_without_a_limit_is_trained_played_and_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_limits, "ENDLESS", 20)
    folder, result = train(tmp_path, env="Lasting-v0")
    out = capsys.readouterr().out
    limit = result["eval_limit"]
    assert out.count("has not ended within 20 steps") == 1
    assert out.count(f"note: Lasting-v0 has no time limit; evaluations end an episode after {limit} steps") == 1
    assert f"of them cut off after {limit} steps" in out
    play.main(play.Args(folder, episodes=2))
    out = capsys.readouterr().out
    assert f"episodes end after {limit} steps here" in out
    assert f"over 2 episodes, 2 of them cut off after {limit} steps" in out


# Evaluations cost little


def evaluated(tmp_path: Path, share: float, seconds: float = 0.0, every: int = 32) -> tuple[EvaluationCallback, PPO]:
    """Train an agent for 256 steps with evaluations in slow environments."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    recipe = replace(load_recipes("CartPole-v1", "mlp")[0], id="Lasting-v0")
    clock = Clock()

    def make_env(count: int) -> VecEnv:
        return make_vec_env(Lasting, count, env_kwargs={"lengths": (8,), "seconds": seconds})

    settings = EvalSettings(every, episodes=4, final_episodes=8, share=share)
    callback = EvaluationCallback(tmp_path, recipe, make_env, clock, settings)
    agent = agent_of(make_vec_env(Lasting, 2, env_kwargs={"lengths": (5, 8)}))
    agent.learn(256, callback)
    return callback, agent


def test_evaluations_that_are_not_affordable_wait(tmp_path: Path) -> None:
    callback, agent = evaluated(tmp_path, share=0.4, seconds=0.02)
    spent = callback.clock.evaluating
    assert callback._eval_call_seconds is not None
    longest = max(max(lengths) for lengths in callback.lengths)
    one_round = callback._eval_call_seconds * longest
    assert spent <= 0.4 * DURING_TRAINING * callback.clock.training + 1.5 * one_round
    assert callback._eval_call_seconds >= 0.02  # as measured, whatever rollouts cost
    assert len(callback.timesteps) < 8
    callback.evaluate_last(agent)
    assert callback.clock.evaluating > spent


def test_without_a_limit_all_evaluations_take_place_with_all_episodes(tmp_path: Path) -> None:
    callback, agent = evaluated(tmp_path, share=np.inf)
    assert callback.timesteps == list(range(32, 257, 32))
    assert {len(returns) for returns in callback.returns} == {4}
    assert {len(result.returns) for result in callback.evaluate_last(agent).values()} <= {4, 8}
    assert callback._expected_length() == 8
    again = EvaluationCallback(tmp_path, callback.recipe, callback.make_env, Clock(), EvalSettings(32, 4), tmp_path)
    assert (again.timesteps, again.returns, again.lengths) == (callback.timesteps, callback.returns, callback.lengths)


def test_evaluations_of_different_numbers_of_episodes_are_kept(tmp_path: Path) -> None:
    callback, _ = evaluated(tmp_path, share=np.inf, every=128)
    callback.returns[0] = callback.returns[0][:1]
    callback.lengths[0] = callback.lengths[0][:1]
    callback._save()
    again = EvaluationCallback(tmp_path, callback.recipe, callback.make_env, Clock(), EvalSettings(128, 4), tmp_path)
    assert again.returns == callback.returns


def test_weights_do_not_depend_on_evaluations(tmp_path: Path) -> None:
    agents = [evaluated(tmp_path, share)[1] for share in (np.inf, 1e-9)]
    for mine, other in zip(agents[0].policy.parameters(), agents[1].policy.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_fewer_environments_are_evaluated_where_steps_are_expensive(tmp_path: Path) -> None:
    callback, agent = evaluated(tmp_path, share=0.2, every=10_000)
    callback.settings = replace(callback.settings, episodes=20, final_episodes=20)
    counts = []
    for step_seconds in (1e-5, 1e-2, 1.0):
        callback._rollout_seconds = step_seconds * callback._rollout_steps
        counts.append(callback._count_envs())
    assert counts[0] == 20
    assert counts[0] > counts[1] >= counts[2] == 1
    assert agent.num_timesteps == 256


def test_options_of_evaluations_reach_the_run(tmp_path: Path) -> None:
    options = {"eval_share": np.inf, "eval_every": 128, "eval_episodes": 3, "final_episodes": 2, "steps": 512}
    folder, result = train(tmp_path, env="Alternating-v0", **options)
    assert result["eval_steps"] == [128, 256, 384, 512]
    assert (result["final_episodes"], result["final_sampled_episodes"]) == (2, 2)
    run = Run.open(folder)
    assert (run.env.eval_every, run.env.eval_episodes) == (128, 3)
    assert (run.args["eval_share"], run.args["final_episodes"]) == (None, 2)


@pytest.mark.parametrize(
    "option", [{"eval_share": 0.0}, {"eval_share": np.nan}, {"eval_every": 0}, {"eval_episodes": 0}, {"final_episodes": 0}]
)
def test_options_out_of_range_are_refused(option: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=next(iter(option))):
        train(tmp_path, **option)
    assert not list(tmp_path.rglob("run.json"))


def test_benchmarks_evaluate_as_recipes_say() -> None:
    assert benchmarks_run.Args().eval_share == np.inf


# Evaluations say what they found


def test_the_better_of_greedy_and_sampled_actions_is_reported_and_played(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, result = train(tmp_path, env="Alternating-v0", final_episodes=40, eval_share=np.inf)
    out = capsys.readouterr().out
    assert "last agent, greedy actions: mean return 0 ± 0 over" in out
    assert "last agent, sampled actions: mean return " in out
    assert "play takes its sampled actions" in out
    assert result["final_return"] == 0
    assert result["best_return"] == result["final_sampled_return"] > 2
    assert result["best_actions"] == "sampled"
    for changes, actions in (({}, "sampled"), ({"greedy": True}, "greedy"), ({"sample": True}, "sampled")):
        play.main(play.Args(folder, episodes=2, **changes))  # type: ignore[arg-type]
        assert f"mlp on Alternating-v0, {actions} actions: mean return" in capsys.readouterr().out
    with pytest.raises(InputError, match="give one of them"):
        play.main(play.Args(folder, sample=True, greedy=True))


def test_chance_does_not_make_sampled_actions_better() -> None:
    def of(*returns: float) -> EvalResult:
        return EvalResult(np.array(returns), np.ones(len(returns), dtype=np.int64), 0, 0.0)

    assert better_actions(of(1, 9, 5, 2), of(2, 9, 5, 2)) == "greedy"
    assert better_actions(of(1, 1, 1, 2), of(2, 9, 5, 2)) == "sampled"
    assert better_actions(of(1), of(1)) == "greedy"


@pytest.mark.parametrize("best_is_better", [True, False])
def test_the_last_and_the_best_agent_are_both_named(
    best_is_better: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best agent of an evaluation with luck may be worse than the last: it is evaluated again."""

    def found(agent: Any, env: VecEnv, episodes: int, *, greedy: bool = True, **limits: Any) -> EvalResult:
        lucky = 1031.5 if best_is_better or episodes == 20 else 200.0
        mean = (lucky if agent.num_timesteps == 256 else 426.25) - (not greedy)
        return EvalResult(np.array([mean - 12, mean + 12]), np.array([5, 5]), 0, 0.0)

    for module in (evaluation, evaluate_module):
        monkeypatch.setattr(module, "evaluate", found)
    _, result = train(tmp_path, env="Alternating-v0", steps=1024, eval_every=256, eval_share=np.inf)
    out = capsys.readouterr().out
    assert "last agent, greedy actions: mean return 426.2 ± 12.0 over 2 episodes" in out
    assert result["final_return"] == 426.25
    if best_is_better:
        assert "best agent, of step 256, greedy actions: mean return 1032 ± 12 over 2 episodes" in out
        assert "play takes the best agent and its greedy actions" in out
        assert (result["best_return"], result["best_steps"]) == (1031.5, 256)
    else:
        assert "best agent: the last one" in out
        assert (result["best_return"], result["best_steps"]) == (426.25, 1024)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ((500.0, 0.0), ["500.0", "0.0"]),
        ((0.9731, 0.02), ["0.9731", "0.0200"]),
        ((1.0, 0.0), ["1.000", "0.000"]),
        ((-1031.26, 250.4), ["-1031", "250"]),
        ((0.9, 0.89), ["0.9000", "0.8900"]),
        ((123456.7, 3.2), ["123457", "3"]),
        ((0.0, 0.0), ["0", "0"]),
        ((0.00012345, 0.00001), ["0.0001234", "0.0000100"]),
        ((1.2345e-9,), ["1.235e-09"]),
        ((np.nan, 2.0), ["nan", "2.000"]),
    ],
)
def test_returns_are_shown_with_the_digits_of_their_scale(values: tuple[float, ...], shown: list[str]) -> None:
    assert show_numbers(*values) == shown


# Pretraining costs little, and stops


def noise(tmp_path: Path, settings: TrainingSettings) -> tuple[TrainResult, list[dict[str, str]]]:
    """Train on a few episodes of noise, which can only be memorized."""
    env = DummyVecEnv([Pictures])
    space = spaces.Box(-1, 1, (6,))
    rng = np.random.default_rng(0)
    drawn = collect(env, episodes=12, imitate=False, seed=0)
    episodes = [replace_observations(drawn[i], rng.uniform(-1, 1, (len(drawn[i].observations), 6))) for i in range(len(drawn))]
    rollouts = Rollouts.from_episodes(episodes, space, env.action_space, "noise", 0)
    tokenizer = Tokenizer(space, env.action_space)
    train_set, held_out = (
        StreamDataset(rollouts, tokenizer, 8, episodes=np.arange(12)[part]) for part in (slice(3), slice(3, 12))
    )
    torch.manual_seed(0)
    model = DHMMGPT2.from_tokenizer(tokenizer, embed_size=32, heads=2, num_states=2, window=4)
    with closing(make_logger(tmp_path, "pretrain")) as logger:
        trained = train_language_model(
            model, train_set, held_out, settings, folder=tmp_path, logger=logger, evaluate_first=True
        )
    return trained, read_log(tmp_path, "pretrain")


def replace_observations(episode: Any, observations: np.ndarray[Any, Any]) -> Any:
    return episode._replace(observations=observations.astype(np.float32))


def test_overfitting_is_seen_from_the_start_and_stops_training(tmp_path: Path) -> None:
    trained, rows = noise(tmp_path, TrainingSettings(steps=200, batch_size=16, length=8, warmup=5, learning_rate=1e-2))
    assert rows[0]["pretrain/steps"] == "0"
    assert trained.steps <= 150, "patience can act"
    assert trained.best_step <= 60
    assert trained.loss == pytest.approx(min(float(row["pretrain/held_out_loss"]) for row in rows), rel=1e-3)


def test_pretraining_takes_the_steps_that_fit_in_the_time_the_same_after_a_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.toml").write_text(SMALL.replace("steps = 4", "steps = 12"))
    env, agent = load_recipes("CartPole-v1", str(tmp_path / "small.toml"))
    asked: list[float] = []

    def third(tokenizer: Tokenizer, needed: float) -> float:
        asked.append(needed)
        return needed / 2.9

    run = Run.create(tmp_path, "pretrain", env, agent, 0, {})
    pretrain_run(run, EnvFactory(env, 0), allowed_seconds=third)
    assert "12 gradient steps of pretraining would take" in capsys.readouterr().out
    assert read_log(run.folder, "pretrain")[-1]["pretrain/steps"] == "4"
    (run.folder / "training.pt").unlink()
    pretrain_run(run, EnvFactory(env, 0), allowed_seconds=third)
    assert len(asked) == 1


def test_pretraining_may_take_a_share_of_the_time_of_ppo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    env, agent = load_recipes("CartPole-v1", str(tmp_path / "small.toml"))
    run = Run.create(tmp_path, "ppo", env, agent, 0, {"steps": 6400})
    tokenizer = Tokenizer(gym.make("CartPole-v1").observation_space, spaces.Discrete(2))
    assert ppo.allowed_pretraining_seconds(run, EnvFactory(env, 0, agent), tokenizer, 29.0, "cpu") == 29.0, (
        "a short one is not worth asking"
    )
    monkeypatch.setattr(ppo, "SHORT_PRETRAINING", 0.0)
    monkeypatch.setattr(PPO, "learn", lambda self, *args: time.sleep(0.1))
    assert ppo.allowed_pretraining_seconds(run, EnvFactory(env, 0, agent), tokenizer, 1e9, "cpu") == pytest.approx(
        0.5 * 0.1 * 6400 / 64, rel=0.3
    )


def test_a_limit_of_seconds_is_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="max_seconds is 0; it must be positive"):
        pretrain.main(pretrain.Args(max_seconds=0.0, runs=tmp_path))


# What is reused


def recipes(tmp_path: Path) -> tuple[EnvRecipe, AgentRecipe]:
    (tmp_path / "small.toml").write_text(SMALL)
    return load_recipes("CartPole-v1", str(tmp_path / "small.toml"))


def pretrained(
    tmp_path: Path, env: EnvRecipe, agent: AgentRecipe, command: str = "pretrain", seed: int = 0, **args: Any
) -> Path:
    """Make a run with an untrained language model."""
    kept: dict[str, Any] = {"data": [], "top": None, "episodes": None, "changes": {}, "env": "CartPole-v1", "agent": "small"}
    run = Run.create(tmp_path, command, env, agent, seed, (kept if command == "pretrain" else {}) | args)
    tokenizer = Tokenizer(gym.make("CartPole-v1").observation_space, spaces.Discrete(2), env.tokens.get("bins", 10))
    save_checkpoint(run.language_model, DHMMGPT2.from_tokenizer(tokenizer, **agent.model), tokenizer, {})
    return run.language_model


def test_the_newest_model_that_was_made_alike_is_reused(tmp_path: Path) -> None:
    env, agent = recipes(tmp_path)
    pretrained(tmp_path, env, agent)
    newest = pretrained(tmp_path, env, agent, seed=5)
    assert find_pretrained(tmp_path, env, agent, seed=0) == newest
    newest.unlink()
    (tmp_path / "CartPole-v1/pretrain/1/pretrained.pt").unlink()
    of_ppo = pretrained(tmp_path, env, agent, "ppo", pretrained="new", steps=None)
    assert find_pretrained(tmp_path, env, agent, seed=0) == of_ppo
    assert find_pretrained(tmp_path, env, agent, seed=1) is None
    assert find_pretrained(tmp_path, env, agent, seed=0, budget=300_000) is None


DIFFERENT: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "environment": ({"id": "CartPole-v0"}, {}, {}),
    "its keywords": ({"kwargs": {"sutton_barto_reward": True}}, {}, {}),
    "its wrappers": ({"wrappers": {"gymnasium.wrappers:TransformReward": {}}}, {}, {}),
    "bins": ({"tokens": {"bins": 11}}, {}, {}),
    "model": ({}, {"model": {"embed_size": 16, "heads": 1, "num_states": 2, "window": 2}}, {}),
    "its steps": ({}, {"pretrain": {"steps": 50, "episodes": 4, "length": 4}}, {}),
    "steps by an option": ({}, {}, {"changes": {"steps": 50}}),
    "a teacher's data": ({}, {}, {"data": ["teacher:a.zip"]}),
    "episodes": ({}, {}, {"episodes": 400}),
    "the best": ({}, {}, {"top": 0.1}),
    "a time limit": ({}, {}, {"max_seconds": 3.0}),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_model_that_was_made_otherwise_is_not_reused_and_that_is_said(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env, agent = recipes(tmp_path)
    env_changes, agent_changes, args = DIFFERENT[what]
    pretrained(tmp_path, replace(env, **env_changes), replace(agent, **agent_changes), **args)
    assert find_pretrained(tmp_path, env, agent, seed=0) is None
    out = capsys.readouterr().out
    assert "note: not started from" in out
    assert "--pretrained PATH" in out


def test_the_same_run_twice_pretrains_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipes(tmp_path)
    agent = {"agent": str(tmp_path / "small.toml"), "steps": 64, "final_episodes": 1}
    first, _ = train(tmp_path, **agent)
    capsys.readouterr()
    second, _ = train(tmp_path, **agent)
    assert f"starting from {first / 'pretrained.pt'}; --pretrained new would pretrain again" in capsys.readouterr().out
    assert not (second / "rollouts").exists()


# Folders


FAILING: dict[str, tuple[Any, dict[str, Any]]] = {
    "settings of PPO, before pretraining": (ppo, {"agent": "bad.toml"}),
    "a schedule": (ppo, {"agent": "schedule.toml"}),
    "no environment": (ppo, {"env": "kwargs.toml", "agent": "mlp"}),
    "no environment to evaluate in": (ppo, {"env": "eval.toml", "agent": "mlp"}),
    "a budget that pretraining uses up": (ppo, {"env": "budget.toml", "agent": "small.toml"}),
    "data that are not there": (pretrain, {"agent": "small.toml", "data": ("nowhere",)}),
    "one episode": (pretrain, {"agent": "small.toml", "data": ("single",)}),
}


@pytest.mark.parametrize("what", FAILING)
def test_a_start_that_fails_leaves_no_folder(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipes(tmp_path)
    Path("bad.toml").write_text(SMALL.replace("n_epochs = 1", "n_epochs = 1\nepochs = 3"))
    Path("schedule.toml").write_text(SMALL.replace("n_epochs = 1", 'n_epochs = 1\nlearning_rate = "linn_0.1"'))
    for name, line in (
        ("kwargs", "kwargs = { sticks = 2 }"),
        ("eval", "eval_kwargs = { sticks = 2 }"),
        ("budget", "budget = 10"),
    ):
        Path(f"{name}.toml").write_text(f'description = "x"\nid = "CartPole-v1"\n{line}\n')
    collect(make_vec_env("CartPole-v1", 1), episodes=1, imitate=False).save("single")
    module, changes = FAILING[what]
    began = time.monotonic()
    with pytest.raises(InputError):
        module.main(module.Args(runs=tmp_path / "runs", quiet=True, **changes))
    left = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    if what.startswith("a budget"):  # that shows only after rollouts were collected, which are worth keeping
        assert any(path.name == "pretrained.pt" for path in left)
    else:
        assert left == []
    assert time.monotonic() - began < 60


def test_images_need_no_pretraining(tmp_path: Path) -> None:
    recipes(tmp_path)
    folder, result = train(
        tmp_path, env="Pictures-v0", agent=str(tmp_path / "small.toml"), pretrained="none", steps=64, final_episodes=1
    )
    assert result["ppo_steps"] == 64
    assert not (folder / "pretrained.pt").exists()
