"""Learning at full length, with the commands of the README."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

TEACHING = ("--steps", "1500", "--length", "64")
pytestmark = pytest.mark.slow


def run(cwd: Path, module: str, *arguments: str) -> str:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("seed", [0, 1])
def test_the_default_command_solves_cartpole_within_its_budget(seed: int, tmp_path: Path) -> None:
    run(tmp_path, "dhmm_rl.ppo", "--quiet", "--seed", str(seed))
    result = json.loads((tmp_path / "runs/CartPole-v1/dhmm-gpt2/1/result.json").read_text())
    assert result["pretraining_steps"] + result["ppo_steps"] <= 50_000
    assert result["final_return"] >= 475
    assert min(result["eval_returns"][-2:]) >= 475


@pytest.mark.parametrize("seed", [0, 1])
def test_the_belief_remembers_what_attention_no_longer_sees(seed: int, tmp_path: Path) -> None:
    """
    The corridor is four windows long. A GPT-2 of the same size and window can only guess, and its likeliest action at the
    junction may be to walk on.
    """
    returns = {}
    for agent in ("dhmm-gpt2", "gpt2"):
        run(tmp_path, "dhmm_rl.ppo", "--env", "TMaze-v0", "--agent", agent, "--quiet", "--seed", str(seed))
        returns[agent] = json.loads((tmp_path / f"runs/TMaze-v0/{agent}/1/result.json").read_text())["final_return"]
    assert returns["dhmm-gpt2"] >= 0.95
    assert returns["gpt2"] < 0.7


def test_attention_repeats_what_was_shown_32_steps_ago(tmp_path: Path) -> None:
    """popgym's RepeatPrevious Medium; the published return of a GRU is -0.32 after 15 million steps (Morad et al. 2023)."""
    run(tmp_path, "dhmm_rl.ppo", "--env", "RepeatPreviousMedium", "--agent", "gpt2", "--quiet")
    result = json.loads((tmp_path / "runs/RepeatPreviousMedium/gpt2/1/result.json").read_text())
    assert result["ppo_steps"] <= 200_000
    assert result["final_return"] >= 0.97


def test_a_teachers_rollouts_alone_make_the_language_model_act_as_well(tmp_path: Path) -> None:
    run(tmp_path, "dhmm_rl.ppo", "--agent", "mlp", "--quiet")
    teacher = "teacher:runs/CartPole-v1/mlp/1"
    run(tmp_path, "dhmm_rl.pretrain", "--data", teacher, "--episodes", "50", *TEACHING, "--quiet")
    out = run(tmp_path, "dhmm_rl.play", "runs/CartPole-v1/pretrain/1", "--language-model", "--episodes", "100")
    assert float(out.split("mean return ")[1].split(" ")[0]) >= 475


@pytest.mark.parametrize("seed", [0, 1])
def test_the_agent_of_tiger_is_within_two_percent_of_the_optimum_and_its_belief_is_the_exact_one(
    seed: int, tmp_path: Path
) -> None:
    run(tmp_path, "dhmm_rl.ppo", "--env", "Tiger-v0", "--quiet", "--seed", str(seed))
    out = run(Path(__file__).parents[1], "benchmarks.tiger", str(tmp_path / "runs/Tiger-v0/dhmm-gpt2/1"))
    assert float(re.findall(r"([-\d.]+)% of the optimum", out)[0]) >= -2
    assert float(out.split("read-out of the agent's: ")[1]) >= 0.98


def test_the_belief_holds_the_first_of_831_cards(tmp_path: Path) -> None:
    """popgym's RepeatFirst Hard; the best published return is 0.97 after 15 million steps."""
    run(tmp_path, "dhmm_rl.ppo", "--env", "RepeatFirstHard", "--quiet")
    result = json.loads((tmp_path / "runs/RepeatFirstHard/dhmm-gpt2/1/result.json").read_text())
    assert result["ppo_steps"] <= 400_000
    assert result["final_return"] >= 0.97


@pytest.mark.parametrize(
    ("language", "beyond", "instances", "inside", "outside"),
    [("addition", 20, 10_000, 0.9999, 0.99), ("bubble-sort", 16, 1_000, 0.999, 0.99)],
)
def test_languages_are_right_far_beyond_their_training(
    language: str, beyond: int, instances: int, inside: float, outside: float, tmp_path: Path
) -> None:
    run(tmp_path, "dhmm_rl.languages", language, "--extrapolate", str(beyond), "--num-eval-examples", str(instances), "--quiet")
    sizes = json.loads((tmp_path / f"runs/{language}/languages/1/result.json").read_text())["sizes"]
    assert sizes[1]["exact"] >= inside
    assert sizes[2]["size"] == beyond
    assert sizes[2]["exact"] >= outside
