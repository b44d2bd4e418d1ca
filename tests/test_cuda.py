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
from dhmm_rl.languages import LANGUAGES, FixedSentences, FreshSentences, Language, score, write_traces
from dhmm_rl.languages.run import draw, model_settings
from dhmm_rl.pretraining.trainer import train_language_model
from dhmm_rl.recipes.schema import TrainingSettings
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
