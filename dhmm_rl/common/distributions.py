"""
The language model read at its action slots, as an SB3 action distribution.

Shapes: B samples, A action slots, C slots, n the ids of the widest action slot.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from numpy.typing import ArrayLike
from stable_baselines3.common.distributions import Distribution
from torch import Tensor, nn

from dhmm_rl.model import DHMMGPT2, Tables
from dhmm_rl.model.generation import check_predictions
from dhmm_rl.tokens import DONE, PAD_ID, Tokenizer
from dhmm_rl.tokens.action_masks import validate_masks


class ActionTokens(Distribution):
    """
    Distribution over actions whose fields are chosen one after the other, each given those before it.

    Only the ids of actions have probability: ``DONE`` is left out, and so is what a mask forbids.

    :param model: the language model
    :param tokenizer: turns its action ids into actions
    """

    def __init__(self, model: DHMMGPT2, tokenizer: Tokenizer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model, self.tokenizer = model, tokenizer
        sizes = [slot.stop - slot.start for slot in model.slots[: model.action_slots]]
        self.ids = model.slot_ids[: model.action_slots, : max(sizes)]
        self.hidden, self.belief = torch.empty(0), torch.empty(0)
        self.legal: Tensor = self.ids > DONE
        self.tables: Tables | None = None
        self._log_probs: Tensor | None = None  # of the last actions asked for, (B, A, n)

    @property
    def choices(self) -> list[int]:
        """How many choices each action field has; a mask holds them one field after the other."""
        return (self.ids > DONE).sum(dim=1).tolist()

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> nn.Module:
        """The language model is the network: nothing to add."""
        return nn.Identity()

    def proba_distribution(
        self, hidden: Tensor, belief: Tensor, masks: Tensor | None = None, tables: Tables | None = None
    ) -> Self:
        """
        Condition on what the model has read.

        :param hidden: (B, 1, D)
        :param belief: (B, 1, N, K)
        :param masks: which choices are legal, booleans (B, all choices of all action fields), as sb3-contrib's MaskablePPO has
            them: of a MultiDiscrete the choices of one entry after the other, of a MultiBinary off and on of each entry, of a
            Box the bins of each entry; all are when ``None``
        :param tables: the model's, where they serve more than this distribution
        """
        self.hidden, self.belief, self.tables, self._log_probs = hidden, belief, tables, None
        self.legal = self.ids > DONE
        if masks is not None:
            self.legal = masks[:, (self.ids - DONE - 1).clamp_min(0)] & self.legal
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-probability (B,) of actions of the environment, as a rollout buffer stores them."""
        shaped = actions.detach().cpu().numpy().reshape(len(actions), *(self.tokenizer.action_space.shape or ()))
        return self.log_prob_of_ids(torch.as_tensor(self.tokenizer.encode_action(shaped), device=actions.device))

    def log_prob_of_ids(self, ids: Tensor) -> Tensor:
        """Log-probability (B,) of action ids (B, A)."""
        self._log_probs = self._slot_log_probs(ids, 0, self.model.action_slots)
        return self._gather(ids)

    def slot_log_probs(self) -> Tensor:
        """Log-probabilities of each slot's ids given the actions that were last evaluated or drawn, (B, A, n)."""
        if self._log_probs is None:
            self.draw()
        assert self._log_probs is not None
        return self._log_probs

    def entropy(self) -> Tensor:
        """
        Entropy (B,) in nats: exact with one action slot; with several, the sum of each slot's entropy given the actions that
        were last evaluated or drawn (its mean over drawn actions is the entropy, by the chain rule).
        """
        log_probs = self.slot_log_probs()
        return -(log_probs.exp() * log_probs.clamp_min(-1e9)).sum(dim=(-1, -2))

    def kl_from_uniform(self) -> Tensor:
        """
        KL(uniform ‖ this) (B,) in nats over the legal ids of each slot: summed over the slots, in the way of :meth:`entropy`.
        """
        log_probs = self.slot_log_probs()
        legal = log_probs.isfinite()
        choices = legal.sum(dim=-1)
        return -(log_probs.masked_fill(~legal, 0.0).sum(dim=-1) / choices + choices.log()).sum(dim=-1)

    def sample(self) -> Tensor:
        """Draw actions of the environment."""
        return self._decoded(self.draw()[0])

    def mode(self) -> Tensor:
        """Take each slot's likeliest id, one slot after the other."""
        return self._decoded(self.draw(greedy=True)[0])

    def actions_from_params(self, hidden: Tensor, belief: Tensor, deterministic: bool = False) -> Tensor:
        """Actions given what the model has read."""
        return self.proba_distribution(hidden, belief).get_actions(deterministic)

    def log_prob_from_params(self, hidden: Tensor, belief: Tensor) -> tuple[Tensor, Tensor]:
        """Drawn actions and their log-probability."""
        ids, log_prob = self.proba_distribution(hidden, belief).draw()
        return self._decoded(ids), log_prob

    def draw(self, greedy: bool = False) -> tuple[Tensor, Tensor]:
        """
        Action ids (B, A), drawn or each slot's likeliest, and their log-probability (B,).

        :raises InputError: when a probability is NaN
        """
        slots = self.model.action_slots
        ids = torch.full((len(self.hidden), slots), PAD_ID, device=self.hidden.device)
        drawn = []
        for j in range(slots):
            log_probs = self._slot_log_probs(ids, j, j + 1)[:, 0]
            check_predictions(log_probs)
            picked = log_probs.argmax(dim=-1) if greedy else torch.multinomial(log_probs.exp(), 1)[:, 0]
            ids[:, j] = self.ids[j, picked]
            drawn.append(log_probs)
        self._log_probs = torch.stack(drawn, dim=1)
        return ids, self._gather(ids)

    def _slot_log_probs(self, following: Tensor, first: int, last: int) -> Tensor:
        width = self.ids.shape[1]
        logits = self.model.decode(self.hidden, self.belief, following[:, None], first, last, self.tables, width)[:, 0]
        return logits.masked_fill(~self.legal[..., first:last, :], -torch.inf).log_softmax(dim=-1)

    def _gather(self, ids: Tensor) -> Tensor:
        assert self._log_probs is not None
        return self._log_probs.gather(-1, (ids - self.ids[:, 0])[..., None])[..., 0].sum(dim=-1)

    def _decoded(self, ids: Tensor) -> Tensor:
        return torch.as_tensor(self.tokenizer.decode_action(ids.cpu().numpy()), device=ids.device)


def check_masks(masks: ArrayLike | None, choices: Sequence[int], environments: int, device: torch.device) -> Tensor | None:
    """
    Action masks as a tensor (N, all choices); see :func:`dhmm_rl.tokens.action_masks.validate_masks`.

    :param choices: how many each action field has
    :raises InputError: for masks of another shape or other values than true and false, and where nothing is legal
    """
    return None if masks is None else torch.as_tensor(validate_masks(masks, choices, environments), device=device)
