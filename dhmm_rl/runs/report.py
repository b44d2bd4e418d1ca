"""The end of a run: the final evaluations of the last agent and of the best one, ``result.json``, the curve, and a summary."""

from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from dhmm_rl.errors import python_command
from dhmm_rl.files import write_json
from dhmm_rl.recipes.environments import supports_rgb_array
from dhmm_rl.runs.callbacks import save_best
from dhmm_rl.runs.evaluate import ACTIONS, GREEDY, SAMPLED, EvalResult, better_actions
from dhmm_rl.runs.evaluation import EvaluationCallback
from dhmm_rl.runs.plots import plot_curve
from dhmm_rl.runs.run import Run
from dhmm_rl.runs.saved_agents import BEST_AGENT, read_best


class FinalEvaluations(NamedTuple):
    """
    The evaluations after training, by kind of actions, ``greedy`` and ``sampled``.

    :param last: evaluations of the last agent
    :param best: evaluations of the best agent, the same object as ``last`` if that is the last one
    :param best_steps: environment steps of PPO that the best agent had been trained for
    """

    last: dict[str, EvalResult]
    best: dict[str, EvalResult]
    best_steps: int

    @property
    def last_is_best(self) -> bool:
        """Whether the last agent is the best one."""
        return self.best is self.last

    @property
    def best_actions(self) -> str:
        """The kind of actions with which the best agent gets the higher return."""
        return better_actions(self.best[GREEDY], self.best[SAMPLED])


def evaluate_and_report(
    run: Run, agent: OnPolicyAlgorithm, evaluation: EvaluationCallback, pretraining_steps: int, device: str, trust: bool
) -> None:
    """
    Evaluate the last agent and the best one, save the better one, and write and print the results of the run.

    :param run: run that the agent was trained in
    :param agent: agent at the end of the training
    :param evaluation: evaluations during the training
    :param pretraining_steps: environment steps that were taken before PPO
    :param device: device of the agent
    :param trust: also read the best agent of an older run, whose file can run code
    """
    training_seconds = evaluation.clock.training
    final = evaluate_last_and_best(run, agent, evaluation, device, trust)
    if final.last_is_best:
        save_best(agent, run.folder)
    result = make_result(run, agent, evaluation, final, pretraining_steps, training_seconds)
    plot_curve(run, result, evaluation.returns)
    write_json(run.result, result)
    print_summary(run, evaluation, final, result)
    evaluation.close()


def evaluate_last_and_best(
    run: Run, agent: OnPolicyAlgorithm, evaluation: EvaluationCallback, device: str, trust: bool
) -> FinalEvaluations:
    """
    Evaluate the last agent. If an earlier one was better during training, evaluate that one, too, and choose between them.

    Evaluations during training are short, so the agent with the best of them can have been lucky. It is chosen only if it
    gets a higher return again.
    """
    last = evaluation.evaluate_last(agent)
    if evaluation.best is None or np.mean(evaluation.returns[evaluation.best]) <= last[GREEDY].mean:
        return FinalEvaluations(last, last, agent.num_timesteps)

    saved = read_best(run.folder, device, trust)
    earlier_agent = saved.build(run.agent)
    earlier = evaluation.evaluate_best(earlier_agent, saved)
    if max(one.mean for one in earlier.values()) > max(one.mean for one in last.values()):
        return FinalEvaluations(last, earlier, earlier_agent.num_timesteps)
    return FinalEvaluations(last, last, agent.num_timesteps)


def make_result(
    run: Run,
    agent: OnPolicyAlgorithm,
    evaluation: EvaluationCallback,
    final: FinalEvaluations,
    pretraining_steps: int,
    training_seconds: float,
) -> dict[str, Any]:
    """Return the content of ``result.json``. Steps on the axis of the curve include those of pretraining."""
    last, best = final.last, final.best[final.best_actions]
    return {
        "env": run.env.name,
        "agent": run.agent.name,
        "seed": run.seed,
        "pretraining_steps": pretraining_steps,
        "ppo_steps": agent.num_timesteps,
        "training_seconds": training_seconds,
        "evaluation_seconds": evaluation.clock.evaluating,
        "eval_steps": [pretraining_steps + step for step in evaluation.timesteps],
        "eval_returns": [float(np.mean(returns)) for returns in evaluation.returns],
        "eval_seconds": evaluation.clock.marks,
        "eval_limit": evaluation.limit,
        "final_return": last[GREEDY].mean,
        "final_return_std": last[GREEDY].std,
        "final_episodes": len(last[GREEDY].returns),
        "final_sampled_return": last[SAMPLED].mean,
        "final_sampled_return_std": last[SAMPLED].std,
        "final_sampled_episodes": len(last[SAMPLED].returns),
        "best_return": best.mean,
        "best_return_std": best.std,
        "best_episodes": len(best.returns),
        "best_steps": pretraining_steps + final.best_steps,
        "best_actions": final.best_actions,
    }


def print_summary(run: Run, evaluation: EvaluationCallback, final: FinalEvaluations, result: dict[str, Any]) -> None:
    """Print the returns of both agents, whether the environment is solved, where the files are, and how to let it act."""
    before = result["pretraining_steps"]
    print(
        f"\n{run.agent.name} on {run.env.name}: {before + result['ppo_steps']} environment steps ({before} of them before PPO),"
        f" {result['training_seconds']:.0f} s of training and {result['evaluation_seconds']:.0f} s of evaluation"
    )
    for actions in ACTIONS:
        print(f"last agent, {actions} actions: {final.last[actions]}")
    if final.last_is_best:
        print(f"best agent: the last one; play takes its {final.best_actions} actions")
    else:
        for actions in ACTIONS:
            print(f"best agent, of step {result['best_steps']}, {actions} actions: {final.best[actions]}")
        print(f"play takes the best agent and its {final.best_actions} actions")
    if run.env.solved_at is not None:
        last_solved = "yes" if result["final_return"] >= run.env.solved_at else "no"
        best_solved = "yes" if result["best_return"] >= run.env.solved_at else "no"
        print(f"solved at {run.env.solved_at:g}: {last_solved} (last agent), {best_solved} (best agent)")
    print(f"learning curve: {run.folder / 'curve.png'}")
    print(f"best agent:     {run.folder / BEST_AGENT}")
    assert evaluation.env is not None
    video = f" --video {run.folder / 'play.mp4'}" if supports_rgb_array(evaluation.env) else ""
    print(f"let it act:     {python_command()} -m dhmm_rl.play {run.folder}{video}{run.trust_option}")
