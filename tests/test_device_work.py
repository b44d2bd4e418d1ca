"""Passes for a GPU: they read no numbers back, torch compiles them as one graph, and chunks of attention change nothing."""

import sys
from typing import Any

import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dhmm_rl import DHMMGPT2, SequencePPO, VecTokenStream
from dhmm_rl.common.recording import copy_tensors, find_tensors
from dhmm_rl.data import Batch
from dhmm_rl.model import filter_ops, transformer
from dhmm_rl.pretraining.gradient_step import next_token_loss
from dhmm_rl.sequence_ppo.loss import Coefficients, LossGradient
from dhmm_rl.tokens import Tokenizer
from tests.test_model import streams

WAITING = ("_local_scalar_dense", "nonzero", "unique", "multinomial", "lift_fresh", "is_all_true")
"""Operators that wait for a GPU or copy numbers of Python to it: none of them can be recorded."""


class RefuseToWait(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises an error where a pass on a GPU would wait for it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        indices = args[1] if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_) else []
        selects = any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)
        assert not selects, "a selection by booleans has a size that is read back"
        assert not any(name in str(func) for name in WAITING), func
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make passes on the CPU go the way they go on a GPU."""
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("dhmm_rl") and hasattr(module, "can_inspect"):
            monkeypatch.setattr(module, "can_inspect", lambda _: False)
    monkeypatch.setattr(filter_ops, "operators_pay", lambda _: True)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    ("env_id", "head", "settings"),
    [
        ("CartPole-v1", "tokens", {"window": 2, "mutation": 0.1, "positions": "both"}),
        ("Pendulum-v1", "gaussian", {"window": 8, "sum_heads": 2, "head_slopes": [1.0, 0.0]}),
        ("Pendulum-v1", "tokens", {"window": 8, "latent": "mingru"}),
    ],
)
def test_acting_and_updates_do_not_wait_for_a_gpu(env_id: str, head: str, settings: dict[str, Any]) -> None:
    env = VecTokenStream(make_vec_env(env_id, 2, seed=0), history=1)
    kwargs = {"features_extractor_kwargs": {"embed_size": 16} | settings, "action_head": head}
    agent = SequencePPO("DHMMPolicy", env, n_steps=16, batch_size=16, n_epochs=1, policy_kwargs=kwargs, seed=0)
    agent.learn(32)
    state = agent.policy.language_model.initial_state(2)
    assert state.cache is not None
    state.cache.time = torch.zeros(1, dtype=torch.long)
    tokens = torch.as_tensor(env.reset()[:, -1])  # type: ignore[call-overload, index]
    with RefuseToWait(), torch.no_grad():  # type: ignore[no-untyped-call]
        for _ in range(3):
            *_, state = agent.policy.act_on_tensors(tokens, state)
    samples, numbers = next(agent._minibatches()), torch.tensor([0.2, 0.1, 0.5, 0.01, 0.1, 0.01, 0.1])
    with RefuseToWait():  # type: ignore[no-untyped-call]
        LossGradient(agent.policy)._compute(samples, Coefficients(*numbers.unbind()), (True,) * 7, 0.5)


@pytest.mark.parametrize("settings", [{"window": 8}, {"num_states": 0, "positions": "both"}])
def test_the_loss_is_compiled_as_one_graph(settings: dict[str, Any], cartpole: Tokenizer) -> None:
    model = DHMMGPT2.from_tokenizer(cartpole, embed_size=16, **settings)
    ids, labels = streams(cartpole, 2, 40, {1: [5]})
    ids[0, :3], labels[0, :3] = -1, -1
    batch = Batch(ids, labels, torch.ones(ids.shape), torch.arange(40).expand(2, -1))
    compiled: Any = torch.compile(next_token_loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(model, batch, True), next_token_loss(model, batch, None), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"sum_heads": 1, "head_slopes": [1.0, 0.1, 0.0]}, {"mixer": "alibi"}])
def test_attention_in_chunks_is_that_with_a_mask(
    settings: dict[str, Any], cartpole: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = DHMMGPT2.from_tokenizer(cartpole, embed_size=16, window=5, layers=2, **settings)
    ids, _ = streams(cartpole, 3, 43, {1: [5], 2: [7, 30]})
    ids[0, :9] = -1
    found = []
    for pays in (False, True):
        monkeypatch.setattr(transformer, "chunks_pay", lambda *_, pays=pays: pays)
        found.append([model.hidden_states(ids).hidden, model.hidden_states(ids, last=7).hidden])
    for masked, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, masked, atol=1e-5, rtol=1e-5)


def test_states_are_copied_with_all_their_tensors(cartpole: Tokenizer) -> None:
    state = DHMMGPT2.from_tokenizer(cartpole, embed_size=16).initial_state(2)
    copied = copy_tensors(state)
    tensors, copies = list(find_tensors(state)), list(find_tensors(copied))
    assert len(tensors) > 8
    for mine, theirs in zip(tensors, copies, strict=True):
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr() or mine.numel() == 0


@pytest.mark.usefixtures("as_on_a_gpu")
def test_memory_of_a_gradient_is_linear_in_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer, "chunks_pay", lambda *_: True)
    model = DHMMGPT2(32, embed_size=16, layers=2, heads=2, window=16, num_states=8)
    kept = []
    for steps in (256, 512):
        ids = torch.randint(32, (1, steps))
        sizes: dict[int, int] = {}

        def keep(x: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            model(ids, ids, padded=False)
        kept.append(sum(sizes.values()))
    assert kept[1] <= 2 * kept[0]
