"""GPU and CPU compute the same, and a training can move from one to the other. Skipped without a GPU."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from torch import Tensor

from dhmm_rl import DHMMGPT2, SequencePPO, VecTokenStream
from dhmm_rl.data import Batch
from dhmm_rl.languages import LANGUAGES, FixedSentences, FreshSentences, Language, score, write_traces
from dhmm_rl.languages.run import draw, model_settings
from dhmm_rl.model.bayes_filter import dither, run_filter
from dhmm_rl.pretraining.gradient_step import GradientStep, optimizer_for
from dhmm_rl.pretraining.trainer import train_language_model
from dhmm_rl.recipes.schema import TrainingSettings
from dhmm_rl.sequence_ppo.loss import Coefficients, LossGradient
from dhmm_rl.tokens import Tokenizer
from tests.test_model import streams

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_states": 0}, {"layers": 0}, {"chains": 2, "control": "all", "matrices": 8}, {"positions": "both", "window": 5}],
)
def test_losses_and_gradients_are_those_of_the_cpu(cartpole: Tokenizer, settings: dict[str, object]) -> None:
    here = DHMMGPT2.from_tokenizer(cartpole, **settings)
    there = copy.deepcopy(here).cuda()
    ids, labels = streams(cartpole, 4, 40, {1: [5], 2: [7, 30]})
    found = []
    for model, device in ((here, "cpu"), (there, "cuda")):
        out = model(ids.to(device), labels.to(device))
        out.loss.backward()
        found.append([out.loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(theirs.cpu(), mine, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["addition", "bubble-sort", "s3"])
def test_a_language_is_learned_and_its_checkpoint_goes_on_on_the_cpu(name: str, tmp_path: Path) -> None:
    language: Language[Any] = LANGUAGES[name]
    torch.manual_seed(0)
    model = DHMMGPT2(len(language.tokens), **model_settings(language, [])).cuda()
    settings = TrainingSettings(**language.training | {"steps": 400, "eval_every": 400})
    held_out = draw(language, [language.sizes[1]] * 20, 1)
    sets = FreshSentences(language, 400 * settings.batch_size, 0), FixedSentences(language, held_out)
    trained = train_language_model(model, *sets, settings, folder=tmp_path, logger=Logger(None, []))
    assert trained.loss < 0.5
    found = [score(model, language, held_out).tokens, score(model.cpu(), language, held_out).tokens]
    assert abs(found[0] - found[1]) < 0.01
    write_traces(model.cuda(), language, held_out[:2])


def test_an_agent_learns_on_it_and_is_loaded_on_a_cpu(tmp_path: Path) -> None:
    env = VecTokenStream(make_vec_env("CartPole-v1", 4, seed=0))
    agent = SequencePPO("DHMMPolicy", env, n_steps=64, batch_size=64, device="cuda", seed=0)
    agent.learn(1024)
    agent.save(tmp_path / "agent.zip")
    there = SequencePPO.load(tmp_path / "agent.zip", device="cpu")
    observation = env.reset()
    values: list[Tensor] = []
    for some in (agent, there):
        action, _ = some.predict(observation, deterministic=True)
        values.append(torch.as_tensor(action))
    assert torch.equal(*values)


@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize(("chains", "states", "matrices"), [(1, 8, 4), (2, 5, 1), (1, 32, 4), (1, 24, 9)])
def test_filter_has_the_beliefs_and_gradients_of_the_cpu(chains: int, states: int, matrices: int, guard: bool) -> None:
    transitions = dither(torch.randn(chains, matrices, states, states).softmax(dim=-1), 1e-3)
    inputs = [
        torch.rand(3, chains, states).softmax(dim=-1),
        torch.randn(3, 50, chains, matrices).softmax(dim=-1),
        -5 * torch.rand(3, 50, chains, states),
        transitions,
    ]
    start, episode_start, weights = (
        torch.rand(chains, states).softmax(dim=-1),
        torch.rand(3, 50) < 0.1,
        torch.rand(3, 50, chains, states),
    )
    found = []
    for device in ("cpu", "cuda"):
        leaves = [x.detach().to(device).requires_grad_() for x in (*inputs, start)]
        beliefs = run_filter(*leaves[:4], start=leaves[4], episode_start=episode_start.to(device), scan=not guard)
        found.append((beliefs, *torch.autograd.grad((beliefs * weights.to(device)).sum(), leaves)))
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there.cpu(), here, atol=1e-6 + 1e-5 * float(here.detach().abs().max()), rtol=1e-4)


@pytest.mark.parametrize("window", [5, 64])
def test_steps_are_those_of_the_parallel_pass(cartpole: Tokenizer, window: int) -> None:
    model = DHMMGPT2.from_tokenizer(cartpole, window=window, layers=2, sum_heads=1, head_slopes=[1.0, 0.1, 0.0]).cuda().eval()
    ids = streams(cartpole, 4, 60, {1: [5], 2: [7, 30]})[0].cuda()
    with torch.no_grad():
        whole = model.hidden_states(ids, padded=True)
        state = model.initial_state(4)
        for t in range(60):
            states, state = model.step_hidden_states(ids[:, t], state, padded=True)
            torch.testing.assert_close(states.hidden[:, 0], whole.hidden[:, t], atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(states.belief[:, 0], whole.belief[:, t], atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node")  # here, plain and recorded steps take turns
@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_recorded_updates_have_the_gradients_of_plain_ones_and_begin_with_ratio_one(kind: str) -> None:
    env = VecTokenStream(make_vec_env("CartPole-v1" if kind == "discrete" else "Pendulum-v1", 4, seed=0), history=1)
    kwargs = {"features_extractor_kwargs": {"window": 8}} | ({} if kind == "discrete" else {"action_head": "gaussian"})
    agent = SequencePPO(
        "DHMMPolicy", env, n_steps=64, batch_size=128, learning_rate=0.0, ent_coef=0.01, next_token_coef=0.1, uniform_kl=0.01,
        policy_kwargs=kwargs, device="cuda", seed=0,
    )  # fmt: skip
    agent.learn(1024)
    assert abs(agent.logger.name_to_value["train/approx_kl"]) < 1e-6
    assert agent.logger.name_to_value["train/clip_fraction"] == 0
    coefficients = Coefficients(0.2, 0.0, 0.5, 0.01, 0.0, 0.01, 0.1)
    samples = next(agent._minibatches())
    gradient, found = LossGradient(agent.policy), []
    terms = tuple(bool(number) for number in coefficients)
    for _ in range(2):
        metrics, _ = gradient(samples, coefficients, 0.5)
        gradients = [p.grad.clone() for p in agent.policy.parameters() if p.grad is not None]
        found.append((list(metrics.values()), gradients))
    *plain, _ = gradient._compute(samples, coefficients, terms, 0.5).tolist()
    gradients = [p.grad for p in agent.policy.parameters() if p.grad is not None]
    for values, recorded in found:
        assert values == pytest.approx(plain, abs=1e-5, rel=1e-4)
        for mine, theirs in zip(recorded, gradients, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("compiled", [False, True])
def test_gradient_steps_do_not_wait_for_the_gpu(cartpole: Tokenizer, compiled: bool) -> None:
    model = DHMMGPT2.from_tokenizer(cartpole, window=8).cuda()
    step = GradientStep(model, optimizer_for(model, 1e-3, 0.1), 1.0, compiled)
    ids, labels = streams(cartpole, 4, 40, {1: [5], 2: [7, 30]})
    batch = Batch(ids, labels, torch.ones(ids.shape), torch.zeros(4, 40, dtype=torch.long))
    first = float(step(batch))
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [step(batch) for _ in range(20)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert losses[-1] < first
