"""
The language model read at its action slots, as an SB3 action distribution.

Shapes: B samples, A action slots, C slots, n the ids of the widest slot.
"""

from typing import Any, Self

import torch
from stable_baselines3.common.distributions import Distribution
from torch import Tensor, nn

from dhmm_rl.model import DHMMGPT2
from dhmm_rl.tokens import DONE, NOTHING, Tokenizer


class ActionTokens(Distribution):
    """
    Distribution over actions whose fields are chosen one after the other, each given those before it.

    Only the ids of actions have probability: ``DONE`` is left out.

    :param model: the language model
    :param tokenizer: turns its action ids into actions
    """

    def __init__(self, model: DHMMGPT2, tokenizer: Tokenizer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model, self.tokenizer = model, tokenizer
        self.hidden, self.belief = torch.empty(0), torch.empty(0)
        self._log_probs: Tensor | None = None  # of the last actions asked for, (B, A, n)

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> nn.Module:
        """The language model is the network: nothing to add."""
        return nn.Identity()

    def proba_distribution(self, hidden: Tensor, belief: Tensor) -> Self:
        """
        Condition on what the model has read.

        :param hidden: (B, 1, D)
        :param belief: (B, 1, N, K)
        """
        self.hidden, self.belief, self._log_probs = hidden, belief, None
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-probability (B,) of actions of the environment, as a rollout buffer stores them."""
        ids = self._ids(actions)
        self._log_probs = self._slot_log_probs(self._following(ids))
        start = self.model.slot_ids[: self.model.action_slots, 0]
        return self._log_probs.gather(-1, (ids - start)[..., None])[..., 0].sum(dim=-1)

    def entropy(self) -> Tensor:
        """
        Entropy (B,) in nats: exact with one action slot; with several, the sum of each slot's entropy given the actions that
        were last evaluated or drawn (its mean over drawn actions is the entropy, by the chain rule).
        """
        if self._log_probs is None:
            self.sample()
        assert self._log_probs is not None
        return -(self._log_probs.exp() * self._log_probs.clamp_min(-1e9)).sum(dim=(-1, -2))

    def sample(self) -> Tensor:
        """Draw actions of the environment."""
        return self._choose(greedy=False)

    def mode(self) -> Tensor:
        """Take each slot's likeliest id, one slot after the other."""
        return self._choose(greedy=True)

    def actions_from_params(self, hidden: Tensor, belief: Tensor, deterministic: bool = False) -> Tensor:
        """Actions given what the model has read."""
        return self.proba_distribution(hidden, belief).get_actions(deterministic)

    def log_prob_from_params(self, hidden: Tensor, belief: Tensor) -> tuple[Tensor, Tensor]:
        """Drawn actions and their log-probability."""
        actions = self.actions_from_params(hidden, belief)
        return actions, self.log_prob(actions)

    def _slot_log_probs(self, following: Tensor, slots: range | None = None) -> Tensor:
        slots = slots or range(self.model.action_slots)
        logits = self.model.decode(self.hidden, self.belief, following[:, None], slots.start, slots.stop)[:, 0]
        done = self.model.slot_ids[slots.start : slots.stop] == DONE
        return logits.masked_fill(done, -torch.inf).log_softmax(dim=-1)

    def _choose(self, greedy: bool) -> Tensor:
        following = self._following(None)
        drawn = []
        for j in range(self.model.action_slots):
            log_probs = self._slot_log_probs(following, range(j, j + 1))[:, 0]
            picked = log_probs.argmax(dim=-1) if greedy else torch.multinomial(log_probs.exp(), 1)[:, 0]
            following[:, j] = self.model.slot_ids[j, picked]
            drawn.append(log_probs)
        self._log_probs = torch.stack(drawn, dim=1)
        actions = self.tokenizer.decode_action(following[:, : self.model.action_slots].cpu().numpy())
        return torch.as_tensor(actions, device=self.hidden.device)

    def _ids(self, actions: Tensor) -> Tensor:
        shaped = actions.detach().cpu().numpy().reshape(len(actions), *(self.tokenizer.action_space.shape or ()))
        return torch.as_tensor(self.tokenizer.encode_action(shaped), device=actions.device)

    def _following(self, ids: Tensor | None) -> Tensor:
        following = torch.full((len(self.hidden), len(self.model.slots)), NOTHING, device=self.hidden.device)
        if ids is not None:
            following[:, : self.model.action_slots] = ids
        return following
