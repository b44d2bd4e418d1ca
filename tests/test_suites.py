"""Suites: the order of the runs, that nothing tuned reaches the one configuration, what is repeated, and the report."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import general, popgym, run, stratified, suite_runner
from benchmarks.suite import Cell, Reference, Row, Suite, order_cells, read_rows, write_rows
from benchmarks.suite_report import verdict, write_suite_report
from benchmarks.suite_runner import SuiteArgs, run_suite, training_returns
from dhmm_rl.errors import InputError
from dhmm_rl.recipes import list_recipes, load_recipes
from dhmm_rl.runs.run import Run

SMALL = Suite(
    title="two environments",
    notes="notes",
    groups={"first": ("CartPole-v1",), "second": ("Acrobot-v1",)},
    steps={"CartPole-v1": 1000, "Acrobot-v1": 2000},
    references={"best published": {"CartPole-v1": Reference(0.5, "GRU")}},
    goal="the best published result",
    goals={"CartPole-v1": 0.5},
    same_scale=True,
    env_argument=suite_runner.write_facts,
)


@pytest.fixture(scope="module")
def popgym_suite() -> Suite:
    pytest.importorskip("popgym")
    return popgym.make_suite()


def row(env: str, agent: str, seed: int, **values: Any) -> Row:
    made = Row(
        *(env, agent, seed, SMALL.steps[env], 1024),
        seconds=10.0,
        discount=0.99,
        final_return=0.0,
        final_return_std=0.1,
        final_sampled_return=0.2,
        final_sampled_return_std=0.1,
        final_episodes=100,
        mmer=0.0,
        curve=tuple(np.linspace(0.05, 1, 20)),
        settings="x",
        versions="python=3",
    )
    return replace(made, **values)


@pytest.mark.filterwarnings("ignore")  # popgym's own
def test_the_environments_with_headroom_come_first_and_a_seed_before_the_next(popgym_suite: Suite) -> None:
    agents = popgym.Args().agents
    cells = order_cells(popgym_suite, (), agents, 3)
    assert len(cells) == len(set(cells)) == len(popgym_suite.envs) * len(agents) * 3
    assert cells[:18] == [Cell(env, "dhmm-gpt2", 0) for env in popgym.HEADROOM]
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    assert not {env for env in popgym_suite.envs if env.startswith("Labyrinth")} or len(popgym_suite.envs) == 48
    assert len([env for env in popgym_suite.envs if not env.startswith("Labyrinth")]) == 42
    assert set(popgym.read_published()["ceiling"]) < set(popgym_suite.envs)
    assert popgym_suite.goals["RepeatPreviousMedium"] == 0.789
    assert popgym_suite.goals["RepeatPreviousHard"] == -0.428  # only the GRU's has a source
    few = order_cells(popgym_suite, ("HigherLowerEasy", "BattleshipEasy"), ("gpt2",), 1)
    assert [cell.env for cell in few] == ["BattleshipEasy", "HigherLowerEasy"]


@pytest.mark.filterwarnings("ignore")  # popgym's own
@pytest.mark.parametrize("args", [popgym.Args(), general.Args()], ids=["popgym", "general"])
def test_no_setting_of_an_environments_recipe_reaches_the_agents(args: SuiteArgs, tmp_path: Path, popgym_suite: Suite) -> None:
    suite = popgym_suite if isinstance(args, popgym.Args) else general.make_suite()
    for agent in map(suite_runner.agent_argument, args.agents):
        _, plain = load_recipes("CliffWalking-v1", agent)  # which has no recipe
        assert "gamma" not in plain.ppo, "the discount factor is then not the rule's"
        for env in suite.envs:
            env_recipe, agent_recipe = load_recipes(suite.env_argument(env, tmp_path), agent)
            assert agent_recipe == plain
            assert (env_recipe.tokens, env_recipe.agents) == ({}, {})


def test_the_facts_about_an_environment_stay(tmp_path: Path) -> None:
    suite = general.make_suite()
    assert set(general.FULLY_OBSERVED) < set(suite.envs)
    assert len(general.WITHOUT_RECIPE) == 10
    assert not set(general.WITHOUT_RECIPE) & set(list_recipes("envs"))
    for env in set(suite.envs) & set(list_recipes("envs")):
        recipe, _ = load_recipes(env, "mlp")
        assert load_recipes(suite.env_argument(env, tmp_path), "mlp")[0] == replace(recipe, tokens={}, agents={})


def fake_runs(monkeypatch: pytest.MonkeyPatch, failing: Callable[[run.Job], bool] = lambda job: False) -> list[run.Job]:
    """Replace the runs of the runner; return the list to which they are added."""
    jobs = []

    def run_job(job: run.Job, args: run.Args) -> dict[str, Any]:
        if failing(job):
            raise InputError(f"seed {job.seed} failed")
        jobs.append(job)
        made = Run.create(run.job_folder(job, args), "ppo", *load_recipes(job.env, job.agent), job.seed, {"steps": job.steps})
        write_log(made.folder, [(500, 1.0, 5.0), (1000, 3.0, 5.0)])
        finals = {"final_return": 0.75, "final_return_std": 0.1, "final_sampled_return": 0.5, "final_sampled_return_std": 0.2}
        took = {"ppo_steps": 1000, "pretraining_steps": 24, "training_seconds": 1.5, "final_episodes": 100}
        return finals | took

    monkeypatch.setattr(run, "run_job", run_job)
    return jobs


def write_log(folder: Path, rows: list[tuple[int, float | str, float | str]]) -> None:
    with (folder / "progress_ppo.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("time/total_timesteps", "rollout/ep_rew_mean", "rollout/ep_len_mean"), *rows])


def test_rows_are_written_as_runs_end_and_complete_runs_are_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = SuiteArgs(agents=("mlp",), seeds=2, jobs=1, out=tmp_path / "runs", results=tmp_path / "results")
    fake_runs(monkeypatch, failing=lambda job: job.seed == 1)
    with pytest.raises(SystemExit):
        run_suite(SMALL, args)
    assert capsys.readouterr().err.count("seed 1 failed") == 2
    table = args.results / "runs.csv"
    assert [one.cell for one in read_rows(table)] == [Cell("CartPole-v1", "mlp", 0), Cell("Acrobot-v1", "mlp", 0)]
    first = read_rows(table)[0]
    assert (first.budget, first.steps, first.discount, first.mmer, len(first.curve)) == (1000, 1024, 0.98, 3.0, 20)
    assert "2 of 4 runs are complete" in (args.results / "report.md").read_text()

    # The results alone say what is done: the folder of the runs may be gone.
    jobs = fake_runs(monkeypatch)
    run_suite(SMALL, replace(args, out=tmp_path / "other"))
    assert [(job.seed, job.steps) for job in jobs] == [(1, 1000), (1, 2000)]
    assert [one.seed for one in read_rows(table)] == [0, 1, 0, 1]
    jobs.clear()
    run_suite(SMALL, args)
    assert jobs == []

    # Other settings of the agent: its runs are repeated, and their rows replaced.
    rows = read_rows(table)
    write_rows(table, [replace(rows[0], settings="old", final_return=0.0), *rows[1:]])
    run_suite(SMALL, replace(args, out=tmp_path / "other again"))
    assert len(jobs) == 1
    assert read_rows(table) == rows
    with pytest.raises(InputError, match="has CartPole-v1 with 1,000 steps, not 99"):
        run_suite(SMALL, replace(args, steps=99))
    run_suite(SMALL, replace(args, steps=99, report_only=True))


def test_runs_with_other_settings_than_the_recipe_are_not_taken_for_its_own(tmp_path: Path) -> None:
    job, args = run.Job("CartPole-v1", "lstm", 0, 640), run.Args(out=tmp_path)
    env, agent = load_recipes("CartPole-v1", "lstm")
    assert run.has_settings(replace(agent, ppo=agent.ppo | {"gamma": 0.0}), agent)  # the rule's discount factor
    Run.create(run.job_folder(job, args), "ppo", env, replace(agent, n_envs=2), 0, {"steps": 640, "pretrained": "none"})
    with pytest.raises(InputError, match="other settings of its agent; give another --out, or remove it"):
        run.run_job(job, args)


def test_the_best_training_return_does_not_count_the_luck_of_few_episodes(tmp_path: Path) -> None:
    write_log(tmp_path, [(10, "", ""), (50, 9.0, 5.0), (600, 1.0, 5.0), (1200, 2.0, 10.0)])
    mmer, curve = training_returns(tmp_path, 1200)
    assert mmer == 2
    assert (len(curve), curve[-1]) == (20, 2)
    assert curve[0] == pytest.approx(9 - 8 * 10 / 550, abs=1e-4)
    write_log(tmp_path, [(50, 9.0, 5.0), (60, 4.0, 5.0)])
    assert training_returns(tmp_path, 60)[0] == 4
    write_log(tmp_path, [(50, "", "")])
    assert np.isnan(training_returns(tmp_path, 60)[0])


def test_the_report_of_some_of_the_runs_has_their_numbers_and_says_what_is_missing(tmp_path: Path) -> None:
    rows = [row("CartPole-v1", "ours", seed, final_return=0.75, mmer=0.875, seconds=5.0) for seed in range(2)]
    rows += [row("CartPole-v1", "lstm", seed, final_return=0.25, mmer=0.375, seconds=20.0) for seed in range(2)]
    rows += [row("Acrobot-v1", "ours", 0, final_return=-0.5, mmer=float("nan"), settings="y")]
    write_rows(tmp_path / "runs.csv", rows)
    expected = order_cells(SMALL, (), ("ours", "lstm"), 2)
    write_suite_report(SMALL, read_rows(tmp_path / "runs.csv"), expected, tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert "5 of 8 runs are complete. Missing:" in lines
    assert "* lstm: 2 runs (Acrobot-v1 seed 0; Acrobot-v1 seed 1)" in lines
    assert "| CartPole-v1 | 0.75 [0.75, 0.75] / 0.875 | 0.25 [0.25, 0.25] / 0.375 | 0.5 (GRU) |" in lines
    assert "| Acrobot-v1 | -0.5 / – | – | – |" in lines
    # When ours has taken all its steps, in 5 s, the other has taken a quarter of its own.
    summary = {line.split(" | ")[0]: line.split(" | ")[1:] for line in lines if line.startswith(("| ours", "| lstm"))}
    assert summary["| ours"][4].startswith("1 ")
    returns = [line for line in lines if line.startswith("| lstm | 2 |")]
    assert "| 0.25 [0.25, 0.25] | 0.2 [0.2, 0.2] | 0.375 [0.375, 0.375] | 0.25 [0.25, 0.25] |" in returns[0]
    assert "| lstm | 1 | 1 [1, 1] | 1 | 0 | none |" in lines
    counts = "in 1 environments: final return above it in 1, equal in 0; MMER above it in 1, equal in 0"
    assert f"* ours against the best published result {counts}" in lines
    assert (tmp_path / "report.png").stat().st_size > 10_000
    write_suite_report(replace(SMALL, same_scale=False), rows, expected, tmp_path)
    assert "All environments together" not in (tmp_path / "report.md").read_text()


def test_statistics_over_environments() -> None:
    scores = [np.array([0.0, 1, 2]), np.array([3.0, 4, 5]), np.array([6.0, 100])]
    assert stratified.interquartile_mean(scores).mean == pytest.approx(3.5)  # of 2, 3, 4 and 5
    fraction, low, high = stratified.performance_profile(scores, np.array([-1.0, 2.5, 100]))
    assert fraction.tolist() == [1, 5 / 8, 0]
    assert (low.tolist(), high.tolist()) == (fraction.tolist(), fraction.tolist())  # no draw within an environment crosses 2.5
    first, second = [np.array([1.0, 3]), np.array([5.0])], [np.array([2.0, 3]), np.array([0.0])]
    estimate = stratified.probability_of_improvement(first, second)
    assert estimate.mean == pytest.approx(((1 + 0.5) / 4 + 1) / 2)
    assert np.isnan(estimate.low)  # one environment has one run
    assert verdict(np.array([1.0, 1.1, 1.2]), np.array([0.0, 0.1, 0.2])) == "above"
    assert verdict(np.array([1.0, 0.1, -1.2]), np.array([0.0, 0.1, 0.2])) == "undecided"
    assert verdict(np.array([1.0]), np.array([0.0])) == "undecided"


def test_the_interval_over_environments_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(40):
        estimate = stratified.interquartile_mean(list(rng.normal(size=(10, 5))))
        covered += estimate.low <= 0 <= estimate.high
    assert covered >= 34


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"envs": ("CartPole",)}, "has no environment 'CartPole'; did you mean 'CartPole-v1'?"),
        ({"agents": ("mpl",)}, "unknown agent 'mpl'; did you mean 'mlp'?"),
        ({"seeds": 0}, "seeds is 0; it must be at least 1"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"eval_share": 0.0}, "eval_share is 0; it must be positive"),
    ],
)
def test_bad_input_is_refused_in_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    args = replace(SuiteArgs(agents=("mlp",), out=tmp_path / "runs", results=tmp_path / "results"), **changes)
    with pytest.raises(InputError, match=message.replace("?", r"\?")) as refused:
        run_suite(SMALL, args)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_damaged_table_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text("env,agent\nCartPole-v1,mlp\n")
    with pytest.raises(InputError, match=r"runs\.csv cannot be read") as refused:
        run_suite(SMALL, SuiteArgs(agents=("mlp",), out=tmp_path / "runs", results=tmp_path))
    assert "\n" not in str(refused.value)
