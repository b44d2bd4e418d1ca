"""The benchmark: its baseline is SB3's own, its statistics are right, its runs survive interruption."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule

from benchmarks import ablate, explore, few_sums, tiger
from benchmarks.report import first_steps, interquartile_mean, steps_to_stay
from dhmm_rl import DHMMGPT2, Tokenizer, VecTokenStream
from dhmm_rl.envs import tiger_values
from dhmm_rl.envs.tasks.tiger import LISTEN, OPEN_RIGHT
from dhmm_rl.errors import InputError
from dhmm_rl.languages import Addition

STEPS = 3_840  # a whole number of rollouts


def benchmark(out: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.run", "--out", str(out), *arguments]


def test_the_mlp_agent_is_sb3s_own_ppo_with_rl_zoos_settings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dhmm_rl.ppo", "--agent", "mlp", "--steps", str(STEPS), "--seed", "3", "--quiet"]
    command += ["--eval-every", str(2 * STEPS)]  # the best agent is then the last one
    subprocess.run([*command, "--runs", str(tmp_path)], check=True)
    ours = PPO.load(tmp_path / "CartPole-v1/mlp/1/best_model.zip", device="cpu")
    final = json.loads((tmp_path / "CartPole-v1/mlp/1/result.json").read_text())

    torch.set_num_threads(1)
    env = make_vec_env("CartPole-v1", n_envs=8, seed=3)
    settings = {"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "ent_coef": 0.0}
    theirs = PPO(
        "MlpPolicy",
        env,
        seed=3,
        device="cpu",
        learning_rate=LinearSchedule(0.001, 0, 1),
        clip_range=LinearSchedule(0.2, 0, 1),
        **settings,  # type: ignore[arg-type]
    )
    theirs.learn(STEPS)
    assert final["ppo_steps"] == theirs.num_timesteps == ours.num_timesteps
    for mine, other in zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_it_goes_on_after_being_killed_and_writes_one_row_a_run(tmp_path: Path) -> None:
    arguments = ["--agents", "mlp", "--seeds", "2", "--steps", "5120", "--jobs", "2"]
    with subprocess.Popen(benchmark(tmp_path, *arguments), start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("runs/**/checkpoints/*/agent.pt")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (tmp_path / "report.md").exists()
    done = subprocess.run(benchmark(tmp_path, *arguments), capture_output=True, text=True, check=True)
    assert "| mlp | 2 |" in done.stdout
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["0", "1"]
    for row in rows:
        assert int(row["ppo_steps"]) == 5120
        steps = [float(step) for step in row["eval_steps"].split()]
        assert steps == [2496.0, 4992.0]
        assert len(row["eval_returns"].split()) == 2
    assert (tmp_path / "CartPole-v1.png").stat().st_size > 10_000
    began = time.monotonic()
    again = subprocess.run(benchmark(tmp_path, *arguments), capture_output=True, text=True, check=True)
    assert again.stdout == done.stdout
    assert time.monotonic() - began < 20


def test_interquartile_mean_and_its_interval() -> None:
    values = np.array([0.0, 1, 2, 3, 4, 5, 6, 1000])
    estimate = interquartile_mean(values)
    assert estimate.mean == pytest.approx(3.5)
    assert estimate.low < 3.5 < estimate.high
    assert interquartile_mean(np.full(5, 7.0)) == (7, 7, 7)
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        estimate = interquartile_mean(rng.normal(size=20))
        covered += estimate.low <= 0 <= estimate.high
    assert 85 <= covered <= 99


def test_steps_to_a_threshold_first_and_for_good() -> None:
    run = {"eval_steps": [10, 20, 30, 40], "eval_returns": [500.0, 400, 480, 490]}
    assert first_steps(run, 475) == 10
    assert steps_to_stay(run, 475) == 30
    assert steps_to_stay({**run, "eval_returns": [500, 500, 500, 1]}, 475) == np.inf
    assert first_steps(run, 501) == np.inf


def played_at_random(episodes: int, steps: int, seed: int) -> tuple[tiger.Episodes, torch.Tensor]:
    """Play at random, mostly listening. Return the episodes and their token stream, (E, T, C)."""
    rng = np.random.default_rng(seed)
    actions = np.where(rng.random((steps, episodes)) < 0.8, LISTEN, rng.integers(LISTEN, OPEN_RIGHT + 1, (steps, episodes)))
    env = VecTokenStream(make_vec_env(lambda: gym.make("dhmm_rl/Tiger-v0"), episodes, seed=seed), history=1)
    seen = [np.asarray(env.reset())[:, 0]]
    seen += [np.asarray(env.step(action)[0])[:, 0] for action in actions[:-1]]
    heard = np.stack([env.tokenizer.decode_observation(tokens[:, 1:]) for tokens in seen])
    nothing = np.empty((steps, episodes, 0), dtype=np.float32)
    return tiger.Episodes(np.zeros(episodes), actions, heard, nothing), torch.as_tensor(np.stack(seen, axis=1))


def test_the_belief_that_is_learned_from_tigers_follows_the_exact_one() -> None:
    _, tokens = played_at_random(150, 30, seed=0)
    tokenizer = Tokenizer(spaces.Discrete(3), spaces.Discrete(3))
    model = DHMMGPT2.from_tokenizer(tokenizer, layers=0, num_states=8)
    labels = torch.nn.functional.pad(tokens[:, 1:], (0, 0, 0, 1), value=-1)
    labels[..., 0] = -1  # actions at random are nothing to learn

    def correlation() -> float:
        played, unseen = played_at_random(100, 30, seed=1)
        with torch.no_grad():
            beliefs = model.hidden_states(unseen)[1].flatten(2).transpose(0, 1)
        return tiger.correlation(played._replace(beliefs=beliefs.numpy()))

    before = correlation()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss = model(tokens, labels).loss
        assert loss is not None
        loss.backward()
        optimizer.step()
    assert correlation() > max(0.95, before + 0.1)


def test_the_optimal_policy_agrees_with_itself_and_gets_what_it_is_worth() -> None:
    args = tiger.Args(Path(), episodes=300)
    played = tiger.play_optimal(args)
    assert tiger.agreement(played, args) == 1
    best = tiger_values(args.gamma)[0][40]
    assert abs(played.returns.mean() - best) < 4 * played.returns.std() / np.sqrt(args.episodes)
    assert abs(best - 19.37) < 0.01  # as solvers of POMDPs publish it


def test_an_ablation_compares_models_of_one_size_on_the_same_sentences_and_repeats_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ablate.Args(("parity",), ("DHMM-GPT2", "LSTM"), seeds=1, steps=5, num_eval_examples=4, jobs=1, out=tmp_path)
    ablate.main(args)
    report = capsys.readouterr().out
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["variant"], row["size"]) for row in rows} == {
        (name, n) for name in args.variants for n in ("40", "128", "512")
    }
    ours, lstm = (int(row["parameters"]) for row in rows[::3])
    assert 0.95 * ours < lstm <= ours
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}
    assert len(kept) == 2
    ablate.main(args)
    assert capsys.readouterr().out == report
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    with pytest.raises(InputError, match="did you mean 'parity'"):
        ablate.main(replace(args, languages=("partiy",)))


@pytest.mark.parametrize("draws", [1, 2, 6])
def test_solved_at_k_is_the_share_of_the_subsets_that_hold_a_right_trace(draws: int) -> None:
    for solved in range(draws + 1):
        right = [True] * solved + [False] * (draws - solved)
        for k in range(1, draws + 1):
            subsets = list(combinations(right, k))
            assert explore.solved_at(k, draws, solved) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_an_exploration_draws_traces_in_every_way_and_repeats_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = explore.Args(("addition",), ("mutation 0.01",), seeds=1, steps=5, num_eval_examples=3, draws=4, jobs=1, out=tmp_path)
    explore.main(args)
    report = capsys.readouterr().out
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(float(row["temperature"]), float(row["mutation"])) for row in rows] == list(explore.WAYS)
    assert report.count("| addition | mutation 0.01 |") == len(rows)
    for row in rows:
        assert 0 <= float(row["solved@1"]) <= float(row["solved@4"]) <= float(row["legal"]) * 4
        assert 1 <= float(row["different"]) <= (1 if row is rows[0] else 4)
    assert "k = 16" not in report  # of 4 traces
    assert (tmp_path / "exploration.png").stat().st_size > 10_000
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}
    assert len(kept) == 1
    explore.main(args)
    assert capsys.readouterr().out == report
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    with pytest.raises(InputError, match="draws is 0"):
        explore.main(replace(args, draws=0))
    with pytest.raises(InputError, match="'LSTM' is not compared"):
        explore.main(replace(args, variants=("LSTM",)))


def test_a_tally_counts_what_executor_and_answer_say_of_each_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    language = Addition()
    instances = [language.parse("1+1"), language.parse("2+2")]
    texts = ["2 0 END", "3 0 END", "2 0 END", "2 END", *["4 0 END"] * 4]
    monkeypatch.setattr(explore, "BATCH", 3)
    monkeypatch.setattr(explore, "write_traces", lambda *given, **_: [texts.pop(0).split() for _ in given[2]])
    found = explore.tally(DHMMGPT2(15), language, instances, explore.SamplingConfig(1.0, 0.0), 4, torch.Generator())
    assert found == explore.Tally(solved=[2, 4], legal=[3, 4], different=[3, 1])


def test_few_sums_are_judged_on_others(tmp_path: Path) -> None:
    job = few_sums.Job("reversed", "relative", 300, 5, 50, 0, tmp_path / "run.json")
    known, held_out, judged = few_sums.draw_sums(Addition(), job)
    assert len(set(known)) == len(known) == 300
    assert len(held_out) > 0
    assert len(judged) == 50
    assert set(known).isdisjoint(held_out + judged)
    with pytest.raises(InputError, match="sums must be"):
        few_sums.main(few_sums.Args(sums=(0,)))
    few_sums.main(few_sums.Args(sums=(300,), steps=2, seeds=1, num_eval_examples=5, jobs=1, out=tmp_path))
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert [line.split(" | ")[:2] for line in lines if "%" in line] == [
        [f"| {format_}", coupling] for format_ in ("plain", "reversed") for coupling in ("counted", "coupled")
    ]
