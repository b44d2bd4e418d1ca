"""The model compared with its own steps and with GPT-2, and trained on data of known entropy."""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from dhmm_rl.errors import InputError
from dhmm_rl.languages import Mess3
from dhmm_rl.model import DHMMGPT2, ModelState, generate, hmm_layer, load_checkpoint, save_checkpoint
from dhmm_rl.model.attention import Attention
from dhmm_rl.model.config import DHMMConfig
from dhmm_rl.model.mingru import compose_prefixes
from dhmm_rl.tokens import PAD_ID, Slot, Tokenizer


def streams(tokenizer: Tokenizer, batch: int, steps: int, starts: dict[int, list[int]]) -> tuple[Tensor, Tensor]:
    """Return random steps and their labels. Some episodes begin within a sequence."""
    ids = torch.stack([torch.randint(max(s.start, 2), s.stop, (batch, steps)) for s in tokenizer.slots], dim=-1)
    ids[:, 0, 0] = 0
    for row, times in starts.items():
        ids[row, times, 0] = 0
    labels = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -1)], dim=1)
    labels[labels[..., 0] == 0] = -1
    return ids, labels


SEAMS: list[dict[str, Any]] = [
    {"latent": "mingru"},
    {"mixer": "alibi"},
    {"latent": "mingru", "mixer": "alibi", "chains": 3},
    {"sum_heads": 4},
    {"sum_heads": 1, "head_slopes": [1.0, 0.25, 0.0]},
    {"sum_heads": 2, "mixer": "alibi"},
]
"""Layers behind the seams, beside the hidden Markov layer and rotary attention, and kinds of attention heads."""


@pytest.mark.parametrize("positions", ["rotary", "learned", "both"])
@pytest.mark.parametrize(
    "settings",
    [
        {"layers": 2},
        {"layers": 1, "num_states": 0},
        {"layers": 0},
        {"layers": 2, "num_states": 4, "chains": 3},
        *({"layers": 2, **seam} for seam in SEAMS),
    ],
    ids=str,
)
def test_step_by_step_equals_one_pass_through_episode_ends(
    cartpole: Tokenizer, positions: str, settings: dict[str, Any]
) -> None:
    model = DHMMGPT2.from_tokenizer(cartpole, window=7, positions=positions, max_len=60, **settings).eval()
    # Make every part count.
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    ids, labels = streams(cartpole, 5, 60, {1: [13], 2: [20, 21], 3: [1], 4: [59]})
    with torch.no_grad():
        out = model(ids, labels)
        state = model.initial_state(5)
        for t in range(60):
            stepped, state = model.step(ids[:, t], state, labels[:, t])
            torch.testing.assert_close(stepped.hidden[:, 0], out.hidden[:, t], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(stepped.belief[:, 0], out.belief[:, t], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(stepped.logits[:, 0], out.logits[:, t], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", ["rotary", "learned", "both"])
@pytest.mark.parametrize("settings", [{"num_states": 0}, {"num_states": 4}, *SEAMS], ids=str)
def test_padding_is_neither_read_nor_remembered(positions: str, settings: dict[str, Any]) -> None:
    """Flat sequences without a start id: alone, after padding in one pass, and after padding step by step."""
    model = DHMMGPT2(20, layers=2, window=7, positions=positions, max_len=32, **settings).eval()
    ids = torch.randint(20, (3, 12))
    padded = torch.cat([torch.full((3, 9), -1), ids], dim=1)
    padded[1, :5] = 3  # something else, then nothing
    with torch.no_grad():
        alone, together, state = model(ids), model(padded), model.initial_state(3)
        for t in range(padded.shape[1]):
            stepped, state = model.step(padded[:, t], state)
            torch.testing.assert_close(stepped.hidden[:, 0], together.hidden[:, t], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(stepped.belief[:, 0], together.belief[:, t], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.logits[:, 9:], alone.logits, atol=1e-5, rtol=1e-5)
    assert (generate(model, padded, 5, greedy=True)[:, 9:] == generate(model, ids, 5, greedy=True)).all()


@pytest.mark.parametrize("seam", SEAMS, ids=str)
def test_prefill_is_step_after_step_and_every_layer_learns(seam: dict[str, Any], cartpole: Tokenizer) -> None:
    model = DHMMGPT2.from_tokenizer(cartpole, window=7, layers=2, **seam)
    ids, labels = streams(cartpole, 4, 30, {1: [13], 2: [20, 21]})
    model(ids, labels).loss.backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert unused == []
    _, state = model.prefill(ids[:, :25])
    stepped = model.initial_state(4)
    for t in range(25):
        _, stepped = model.step(ids[:, t], stepped)
    for t in range(25, 30):
        (one, state), (other, stepped) = model.step(ids[:, t], state[:]), model.step(ids[:, t], stepped)
        torch.testing.assert_close(one.logits, other.logits, atol=1e-5, rtol=1e-5)


def test_a_gated_recurrence_in_parallel_is_its_formula_step_after_step() -> None:
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(3, 37, 5, generator=generator, dtype=torch.float64).requires_grad_()
    new = torch.randn(3, 37, 5, generator=generator, dtype=torch.float64).requires_grad_()
    h, steps = torch.zeros(3, 5, dtype=torch.float64), []
    for t in range(37):
        h = keep[:, t] * h + new[:, t]
        steps.append(h)
    one_by_one, (_, scanned) = torch.stack(steps, dim=1), compose_prefixes(keep, new)
    torch.testing.assert_close(scanned, one_by_one)
    weights = torch.rand(3, 37, 5, generator=generator, dtype=torch.float64)
    for found in zip(*(torch.autograd.grad((x * weights).sum(), (keep, new)) for x in (scanned, one_by_one)), strict=True):
        torch.testing.assert_close(*found)


def test_a_gated_recurrence_has_no_belief_of_its_own_to_predict_with() -> None:
    with pytest.raises(InputError, match="requires latent = 'hmm'"):
        DHMMGPT2(9, layers=0, latent="mingru")


def test_checkpoints_of_earlier_names_are_read(cartpole: Tokenizer) -> None:
    model = DHMMGPT2.from_tokenizer(cartpole)
    earlier = {
        name.replace("latent.", "chain.").replace("slot_decoder.mlp.", "slot_mlp."): value
        for name, value in model.state_dict().items()
    }
    assert earlier.keys() != model.state_dict().keys()
    DHMMGPT2.from_tokenizer(cartpole).load_state_dict(earlier)


def with_reach(**settings: Any) -> tuple[DHMMGPT2, Tensor, Tensor]:
    """Return a model with position ids on two axes, tokens and their position ids."""
    model = DHMMGPT2(20, heads=2, reach=(1, 3), num_states=0, max_len=40, **settings).eval()
    return model, torch.randint(20, (3, 25)), torch.randint(0, 6, (3, 25, 2))


@pytest.mark.parametrize("window", [None, 7])
def test_position_ids_within_reach_step_by_step_equal_one_pass(window: int | None) -> None:
    model, ids, places = with_reach(layers=2, window=window)
    out, state = model(ids, position_ids=places), model.initial_state(3)
    for t in range(ids.shape[1]):
        (hidden, *_), state = model.step_hidden_states(ids[:, t], state, position_ids=places[:, t])
        torch.testing.assert_close(hidden[:, 0], out.hidden[:, t], atol=1e-5, rtol=1e-5)
        state = state[:]


def test_only_differences_of_position_ids_count_and_only_within_reach() -> None:
    model, ids, places = with_reach(layers=1)
    last = model(ids, position_ids=places).hidden[:, -1]
    moved = model(ids, position_ids=places + torch.tensor([1000, -17])).hidden[:, -1]
    torch.testing.assert_close(last, moved, atol=1e-4, rtol=1e-4)
    near = ((places - places[:, -1:]).abs() <= torch.tensor([1, 3])).all(dim=-1)
    assert near.any()
    assert not near.all()
    changed = model(torch.where(near, ids, (ids + 1) % 20), position_ids=places).hidden[:, -1]
    torch.testing.assert_close(last, changed)
    for axis, far in enumerate(model.reach or ()):  # the edge of the reach is seen
        edge = places[:, -1].clone()
        edge[:, axis] += far
        at_edge = torch.cat([places[:, :-2], edge[:, None], places[:, -1:]], dim=1)
        before = model(ids, position_ids=at_edge).hidden[:, -1]
        other = torch.cat([ids[:, :-2], (ids[:, -2:-1] + 1) % 20, ids[:, -1:]], dim=1)
        assert (model(other, position_ids=at_edge).hidden[:, -1] - before).abs().amax(dim=-1).min() > 1e-4


def test_a_model_with_reach_needs_position_ids() -> None:
    model, ids, places = with_reach(layers=1)
    with pytest.raises(InputError, match=r"position ids \(…, 2\) given with the tokens; none are"):
        model(ids)
    with pytest.raises(InputError, match=r"the shape \(3, 25\)"):
        model(ids, position_ids=places[..., 0])
    with pytest.raises(InputError, match="with learned positions"):
        DHMMGPT2(20, reach=(1,), positions="learned")
    with pytest.raises(InputError, match="more axes than half the head size"):
        DHMMGPT2(20, embed_size=8, heads=4, reach=(1, 1))


def test_a_stream_ends_with_done(cartpole: Tokenizer) -> None:
    model = DHMMGPT2.from_tokenizer(cartpole)
    ids, _ = streams(cartpole, 64, 2, {})
    stream = generate(model, ids, 30)
    done = stream[..., 0] == 1
    assert done.any()
    assert (stream[done][:, 1:] == -1).all()
    assert (done.sum(dim=1) <= 1).all()
    assert (stream[done.cumsum(dim=1) - done.long() > 0] == -1).all()
    with pytest.raises(InputError, match="between 0 and 43"):
        generate(model, ids, 1, legal_ids=[44])


def test_an_episode_knows_nothing_of_the_one_before(cartpole: Tokenizer) -> None:
    model = DHMMGPT2.from_tokenizer(cartpole, layers=2, window=20).eval()
    ids, _ = streams(cartpole, 1, 20, {0: [8]})
    alone, *_ = model.hidden_states(ids[:, 8:])
    together, *_ = model.hidden_states(ids)
    torch.testing.assert_close(together[:, 8:], alone, atol=1e-5, rtol=1e-5)


def test_padding_before_an_episode_changes_nothing(cartpole: Tokenizer) -> None:
    model = DHMMGPT2.from_tokenizer(cartpole, layers=2, window=20).eval()
    ids, _ = streams(cartpole, 3, 9, {})
    hidden, belief, _ = model.hidden_states(ids)
    padded = torch.cat([torch.full((3, 4, 5), -1), ids], dim=1)
    late_hidden, late_belief, _ = model.hidden_states(padded)
    torch.testing.assert_close(late_hidden[:, 4:], hidden, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(late_belief[:, 4:], belief, atol=1e-5, rtol=1e-5)
    last_hidden, last_belief, _ = model.hidden_states(padded, last=1)
    torch.testing.assert_close(last_hidden, hidden[:, -1:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(last_belief, belief[:, -1:], atol=1e-5, rtol=1e-5)


def test_attention_sees_the_window_and_nothing_before_or_after() -> None:
    model = DHMMGPT2(20, layers=1, num_states=0, window=5).eval()
    ids = torch.randint(20, (1, 30))
    changed = ids.clone()
    changed[0, 10] = (ids[0, 10] + 1) % 20
    difference = (model(ids).logits - model(changed).logits)[0].abs().amax(dim=-1)
    assert (difference[:10] == 0).all()
    assert (difference[10:15] > 1e-6).all()
    assert (difference[15:] == 0).all()


def test_the_belief_carries_what_attention_no_longer_sees() -> None:
    model = DHMMGPT2(20, layers=1, num_states=8, window=5).eval()
    ids = torch.randint(20, (1, 30))
    changed = ids.clone()
    changed[0, 10] = (ids[0, 10] + 1) % 20
    assert ((model(ids).belief - model(changed).belief)[0, 10:].abs().amax(dim=-1) > 0).all()


def test_a_slot_is_predicted_from_the_slots_before_it_only(cartpole: Tokenizer) -> None:
    model = DHMMGPT2.from_tokenizer(cartpole, control="all").eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    ids, labels = streams(cartpole, 2, 8, {})
    out = model(ids, labels).logits
    for j in range(5):
        changed = labels.clone()
        slot = cartpole.slots[j]
        changed[:, :7, j] = slot.start + (labels[:, :7, j] - slot.start + 1) % (slot.stop - slot.start)
        difference = (model(ids, changed).logits - out)[:, :7].nan_to_num(0.0).abs().amax(dim=(0, 1, 3))
        assert (difference[: j + 1] == 0).all()
        assert (difference[j + 1 :] > 1e-6).all()
    probabilities = out.softmax(dim=-1)
    for j, slot in enumerate(cartpole.slots):
        assert (probabilities[:, :, j, slot.stop - slot.start :] == 0).all()


@pytest.mark.parametrize("chunk", [2**22, 1000])
def test_losses_of_many_unequal_slots_are_those_of_their_logits(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dhmm_rl.model.slot_decoder.CHUNK", chunk)
    space = spaces.Dict([("cells", spaces.MultiDiscrete([3] * 20 + [5] * 10)), ("mission", spaces.Discrete(300))])
    tokenizer = Tokenizer(space, spaces.Discrete(4))
    model = DHMMGPT2.from_tokenizer(tokenizer, embed_size=16, heads=2, num_states=3, window=4)
    assert len(model.slot_decoder.slot_groups) > 1
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    starts, stops = torch.tensor([(max(slot.start, 2), slot.stop) for slot in tokenizer.slots]).T
    ids = starts + (torch.rand(3, 6, 32) * (stops - starts)).long()
    labels = torch.where(torch.rand(3, 6, 32) < 0.1, -100, ids.roll(-1, dims=1))
    for first in (0, 1, 5):
        model.zero_grad()
        losses = model.token_losses(model.hidden_states(ids), labels, first)
        torch.autograd.backward(losses.square().sum())
        found = [parameter.grad for parameter in model.parameters()]
        model.zero_grad()
        logits = model.decode(model.hidden_states(ids), labels.clamp_min(-1), first)
        targets = torch.where(labels < 0, -100, labels - model.slot_ids[:, 0])[..., first:]
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="none").view_as(targets)
        torch.autograd.backward(expected.square().sum())
        torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-5)
        for one, parameter in zip(found, model.parameters(), strict=True):
            torch.testing.assert_close(one, parameter.grad, atol=1e-4, rtol=1e-4)


def test_steps_of_many_slots_read_one_by_one_are_those_read_in_parallel() -> None:
    space = spaces.Dict([("cells", spaces.MultiDiscrete([11] * 150)), ("mission", spaces.Discrete(30))])
    tokenizer = Tokenizer(space, spaces.Discrete(4))
    model = DHMMGPT2.from_tokenizer(tokenizer, embed_size=16, heads=2, num_states=3, window=4).eval()
    space.seed(0)
    values = [space.sample() for _ in range(6)]
    steps = [tokenizer.first_step(values[0]), *(tokenizer.next_step(1, value) for value in values[1:])]
    ids = torch.as_tensor(np.stack(steps))[None]
    with torch.no_grad():
        out = model(ids[:, :-1], ids[:, 1:])
        state = model.initial_state(1)
        for t in range(5):
            stepped, state = model.step(ids[:, t], state, ids[:, t + 1])
            torch.testing.assert_close(stepped.hidden[:, 0], out.hidden[:, t], atol=1e-5, rtol=1e-5)
            assert stepped.token_loss is not None
            assert out.token_loss is not None
            torch.testing.assert_close(stepped.token_loss[:, 0], out.token_loss[:, t], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(stepped.logits[:, 0], out.logits[:, t], atol=1e-5, rtol=1e-5)


def test_taking_each_tokens_matrix_is_weighing_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model = DHMMGPT2(9, num_states=5, matrices=4, control="all", layers=0, latent_init="automaton", chains=2)
    ids = torch.randint(9, (6, 20))
    ids[2, 15:] = PAD_ID
    assert model.hmm is not None
    parameters = list(model.hmm.parameters())
    found = []
    for numbers in (2**20, 0):
        monkeypatch.setattr(hmm_layer, "GATHER_SIZE", numbers)
        out = model(ids, labels=ids.roll(-1, dims=1))
        found.append((out.belief, out.logits, *torch.autograd.grad(out.loss, parameters)))
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-5)


def test_without_states_and_with_learned_positions_it_is_hugging_faces_gpt2() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=32, n_embd=48, n_layer=3, n_head=4, n_inner=96, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    ours = DHMMGPT2(50, embed_size=48, layers=3, heads=4, ff_hidden=96, num_states=0, max_len=32, positions="learned").eval()
    weights = theirs.state_dict()
    mine = ours.state_dict()
    with torch.no_grad():
        for name, value in mine.items():
            if name == "embedding.weight":
                value[:-1] = weights["transformer.wte.weight"]
            elif name == "head":
                value.copy_(weights["lm_head.weight"])
            elif name == "position_embedding.weight":
                value.copy_(weights["transformer.wpe.weight"])
            elif name.startswith("ln_f"):
                value.copy_(weights[f"transformer.{name}"])
            else:
                inner = name.replace("blocks.", "transformer.h.").replace(".c_fc", ".mlp.c_fc")
                inner = inner.replace(".c_proj", ".mlp.c_proj") if ".attn." not in inner else inner
                source = weights[inner]
                value.copy_(source.T if source.dim() == 2 else source)  # their Conv1D is a transposed Linear
    ids = torch.randint(50, (3, 32))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)


def test_as_a_plain_language_model() -> None:
    model = DHMMGPT2(vocab_size=44, embed_size=128, layers=2, heads=4, ff_hidden=256, num_states=8, max_len=1000)
    ids = torch.randint(44, (2, 33))
    out = model(ids[:, :-1], labels=ids[:, 1:])
    assert out["logits"] is out.logits
    assert out.logits.shape == (2, 32, 44)
    assert out.loss is not None
    assert abs(out.loss.item() - math.log(44)) < 0.3
    ignored = ids[:, 1:].clone()
    ignored[:, 10:] = -100
    partial = model(ids[:, :-1], labels=ignored)
    assert partial.token_loss[:, 10:].abs().max() == 0
    torch.testing.assert_close(partial.loss, out.token_loss[:, :10].mean(), atol=1e-5, rtol=1e-5)


def test_weights_choose_what_the_loss_counts(cartpole: Tokenizer) -> None:
    model = DHMMGPT2.from_tokenizer(cartpole)
    ids, labels = streams(cartpole, 4, 10, {})
    plain = model(ids, labels)
    weighted = model(ids, labels, weights=torch.tensor([0.0, 0, 3, 0, 0]))
    torch.testing.assert_close(weighted.loss / math.log(2), plain.bits[2])
    weighted.loss.backward()
    assert model.head.grad is not None
    assert model.head.grad[:14].abs().max() == 0
    assert model.head.grad[14:24].abs().max() > 0


def test_weights_of_flat_sequences_are_shaped_like_their_labels() -> None:
    model = DHMMGPT2(20)
    ids = torch.randint(20, (3, 9))
    weights = torch.rand(3, 8)
    out = model(ids[:, :-1], ids[:, 1:], weights=weights)
    torch.testing.assert_close(out.loss, (out.token_loss * weights).sum() / weights.sum())
    same = model(ids[:, :-1], ids[:, 1:], weights=torch.tensor(2.0))
    torch.testing.assert_close(same.loss, out.token_loss.mean())


def test_mixed_precision_stays_close(cartpole: Tokenizer) -> None:
    model = DHMMGPT2.from_tokenizer(cartpole, layers=2)
    ids, labels = streams(cartpole, 4, 20, {1: [5]})
    exact = model(ids, labels).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(ids, labels)
    assert mixed.belief.dtype == torch.float32
    torch.testing.assert_close(mixed.loss, exact, atol=0.02, rtol=0.02)
    mixed.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_bins_of_a_real_field_are_neighbors_and_remain_so_under_an_optimizers_noise(cartpole: Tokenizer) -> None:
    embedding = DHMMGPT2.from_tokenizer(cartpole, embed_size=128).embedding
    optimizer = torch.optim.Adam(embedding.parameters(), lr=5e-3)
    for _ in range(300):
        bins = embedding()[4:14]
        distance = torch.cdist(bins, bins)
        assert (distance.diagonal(1) < distance[0, -1] / 3).all()
        optimizer.zero_grad()
        (embedding() * torch.randn_like(embedding())).sum().backward()
        optimizer.step()


def test_without_layers_it_reaches_the_entropy_rate_of_a_known_hmm() -> None:
    process = Mess3()
    lower, upper = process.entropy_rate()
    assert 0 <= upper - lower < 1e-3

    def sample(sequences: int, steps: int, seed: int) -> Tensor:
        rng = np.random.default_rng(seed)
        return torch.tensor([process.instance(steps, rng) for _ in range(sequences)])

    model = DHMMGPT2(3, layers=0, num_states=3, control="none")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    train = sample(512, 129, seed=1)
    order = torch.Generator().manual_seed(0)
    for _ in range(300):
        batch = train[torch.randint(len(train), (32,), generator=order)]
        loss = model(batch[:, :-1], batch[:, 1:]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held_out = sample(400, 1000, seed=2)
    with torch.no_grad():
        assert torch.allclose(model(held_out[:2]).logits.exp().sum(dim=-1), torch.ones(2, 1000), atol=1e-5)  # it is the HMM
        measured = model(held_out[:, :-1], held_out[:, 1:]).loss.item()
    exact = process.nats(held_out.numpy())[:, 1:].mean()
    print(f"Mess3: entropy rate {lower:.4f} to {upper:.4f}, held-out loss {measured:.4f}, true filter {exact:.4f}")
    assert abs(measured - upper) < 0.005
    assert measured - exact < 0.002


def test_one_step_costs_the_same_late_as_early() -> None:
    model = DHMMGPT2(44, layers=2, num_states=8, window=64).eval()
    tokens = torch.randint(44, (8,))

    def after(steps: int) -> ModelState:
        state = model.initial_state(8)
        for _ in range(steps):
            _, state = model.step(tokens, state)
        return state

    states, fastest = {"early": after(100), "late": after(5_000)}, {"early": math.inf, "late": math.inf}
    for _ in range(20):  # in turns, because other work on the machine comes and goes
        for name in states:
            for _ in range(20):
                began = time.perf_counter()
                _, states[name] = model.step(tokens, states[name])
                fastest[name] = min(fastest[name], time.perf_counter() - began)
    print(", ".join(f"{name}: {1e3 * seconds:.2f} ms" for name, seconds in fastest.items()))
    assert fastest["late"] / fastest["early"] <= 1.2


def test_generation_keeps_to_legal_ids_and_to_its_seed() -> None:
    model = DHMMGPT2(10, layers=1, num_states=4, window=8)
    prompt = torch.randint(10, (3, 2))
    legal = generate(model, prompt, 30, legal_ids={2, 5}, generator=torch.Generator().manual_seed(0))
    assert set(legal[:, 2:].flatten().tolist()) == {2, 5}
    assert (legal[:, :2] == prompt).all()
    again = [generate(model, prompt, 30, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert (again[0] == again[1]).all()
    assert (again[0] != again[2]).any()
    greedy = generate(model, prompt, 30, greedy=True)
    assert (greedy == generate(model, prompt, 30, top_k=1)).all()
    assert (greedy == generate(model, prompt, 30, temperature=1e-4)).all()
    with torch.no_grad():
        assert (model.eval()(greedy).logits[:, 1:-1].argmax(-1) == greedy[:, 2:]).all()
    with pytest.raises(InputError, match="prompt is empty"):
        generate(model, prompt[:, :0], 1)
    with pytest.raises(InputError, match="temperature"):
        generate(model, prompt, 1, temperature=0)


def test_generation_mutates_at_the_rate_that_is_asked_for_and_by_its_seed() -> None:
    model = DHMMGPT2(10, num_states=4, mutation=0.5)
    prompt = torch.randint(10, (8, 2))

    def continued(greedy: bool, mutation: float | None, seed: int = 0) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        ids: list[list[int]] = generate(model, prompt, 30, greedy=greedy, mutation=mutation, generator=generator).tolist()
        return ids

    greedy = continued(True, None)
    assert greedy == continued(True, 0.0)
    assert greedy != continued(True, 0.3) == continued(True, 0.3) != continued(True, 0.3, seed=1)
    drawn = continued(False, None)
    assert drawn == continued(False, 0.5) != continued(False, 0.0)
    for rate in (-0.1, 1.0):
        with pytest.raises(InputError, match="mutation"):
            continued(True, rate)


def test_generation_of_steps_fills_every_slot_with_its_own_ids(cartpole: Tokenizer) -> None:
    model = DHMMGPT2.from_tokenizer(cartpole)
    ids, _ = streams(cartpole, 4, 3, {})
    continued = generate(model, ids, 10)[:, 3:].flatten(0, 1)
    acted = continued[continued[:, 0] > 1]  # neither DONE nor nothing after it
    assert len(acted) > 10
    for j, slot in enumerate(cartpole.slots):
        assert ((acted[:, j] >= slot.start) & (acted[:, j] < slot.stop)).all()


def test_learned_positions_end_and_rotary_ones_do_not() -> None:
    ids = torch.randint(9, (1, 20))
    with pytest.raises(InputError, match="max_len 10"):
        DHMMGPT2(9, positions="learned", max_len=10)(ids)
    DHMMGPT2(9, max_len=10)(ids)
    model = DHMMGPT2(9, positions="learned", max_len=100, num_states=0)
    shifted = model(ids, position_ids=torch.arange(50, 70)[None])
    assert (shifted.logits - model(ids).logits).abs().max() > 1e-4


def test_mutation_acts_in_training_only() -> None:
    model = DHMMGPT2(9, num_states=4, mutation=0.5)
    ids = torch.randint(9, (8, 20))
    assert (model.train()(ids).belief.amax(dim=-1) == 1).float().mean() > 0.3
    assert (model.eval()(ids).belief.amax(dim=-1) == 1).float().mean() == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embed_size": 30, "heads": 4}, "not a multiple"),
        ({"layers": 0, "num_states": 0}, "leave no model"),
        ({"positions": "absolute"}, "rotary"),
        ({"control": "some"}, "one of actions, all, none"),
        ({"dither": 1.0}, "below 1"),
        ({"window": 0}, "at least 1"),
        ({"embed_size": 12, "heads": 4}, "even head size"),
    ],
)
def test_sizes_that_do_not_fit_are_errors(settings: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DHMMGPT2(9, **settings)


def test_ids_of_the_wrong_shape_are_an_error(cartpole: Tokenizer) -> None:
    with pytest.raises(InputError, match="5 slots"):
        DHMMGPT2.from_tokenizer(cartpole)(torch.zeros(2, 3, dtype=torch.long))


def test_checkpoints_come_back_and_bad_ones_are_named(cartpole: Tokenizer, tmp_path: Path) -> None:
    model = DHMMGPT2.from_tokenizer(cartpole).eval()
    path = tmp_path / "model.pt"
    save_checkpoint(path, model, cartpole, {"env_steps": 3})
    loaded = load_checkpoint(path)
    ids, labels = streams(cartpole, 2, 5, {})
    assert (loaded.model(ids, labels).logits == model(ids, labels).logits).all()
    assert loaded.tokenizer == cartpole
    assert loaded.info == {"env_steps": 3}
    assert isinstance(loaded.model.slots[0], Slot)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cut short"):
        load_checkpoint(path)
    torch.save({"weights": 1}, path)
    with pytest.raises(InputError, match="not a checkpoint of this kind"):
        load_checkpoint(path)
    with pytest.raises(InputError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "other.pt")


def test_sum_heads_count_what_averages_do_not() -> None:
    attention = Attention(DHMMConfig(vocab_size=9, sum_heads=2))
    steps = torch.randn(1, 1, 64).repeat(1, 6, 1)  # the same step six times
    q, k, v = attention.c_attn(steps).view(1, 6, 3, 4, 16).permute(2, 0, 3, 1, 4)
    summed = attention.sum_values(q[:, :2], k[:, :2], v[:, :2], None)
    times = torch.arange(1.0, 7)[:, None]
    torch.testing.assert_close(summed, times * summed[:, :, :1])
    averaged = attention.attend(q[:, 2:], k[:, 2:], v[:, 2:], None, None)
    torch.testing.assert_close(averaged, averaged[:, :, :1].expand_as(averaged))


def test_heads_with_slopes_forget_faster() -> None:
    attention = Attention(DHMMConfig(vocab_size=9, head_slopes=[0.0, 0.1, 1.0, 100.0]))
    keys = torch.zeros(1, 4, 20, 16)  # all keys match alike, so that only age matters
    age = torch.arange(19.0, -1, -1)
    mean_age = attention.attend(keys[:, :, -1:], keys, age[:, None].expand(1, 4, 20, 16), None, None)[0, :, 0, 0]
    assert mean_age[0] == pytest.approx(9.5)
    assert (mean_age.diff() < 0).all()
    assert mean_age[3] == pytest.approx(0, abs=1e-6)
