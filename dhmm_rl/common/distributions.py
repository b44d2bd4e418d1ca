"""
The language model's predictions at the action slots, as an SB3 action distribution.

Shapes: B samples, A action slots, C slots, n the ids of the widest action slot.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from numpy.typing import ArrayLike
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from torch import Tensor, nn
from torch.distributions import Normal

from dhmm_rl.model import DHMMGPT2, HiddenStates
from dhmm_rl.model.generation import check_predictions
from dhmm_rl.model.steps import can_inspect
from dhmm_rl.tokens import DONE, PAD_ID, Tokenizer
from dhmm_rl.tokens.action_masks import validate_masks


class ActionTokens(Distribution):
    """
    Distribution over actions that are chosen field by field, each field given the fields before it.

    Only ids of legal actions have probability: ``DONE`` has none, and neither has a choice that a mask forbids.

    :param model: language model
    :param tokenizer: tokenizer that converts between action ids and actions
    """

    def __init__(self, model: DHMMGPT2, tokenizer: Tokenizer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model, self.tokenizer = model, tokenizer
        sizes = [slot.stop - slot.start for slot in model.slots[: model.action_slots]]
        self.ids = model.slot_ids[: model.action_slots, : max(sizes)]
        self.states: HiddenStates | None = None
        self.legal: Tensor = self.ids > DONE
        self._log_probs: Tensor | None = None  # for the actions that were last sampled or evaluated, (B, A, n)

    @property
    def choices(self) -> list[int]:
        """Number of choices of each action field; a mask holds the flags of one field after the other."""
        return (self.ids > DONE).sum(dim=1).tolist()

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Part of SB3's interface; the language model is the network already."""
        return nn.Identity()

    def proba_distribution(self, states: HiddenStates, masks: Tensor | None = None) -> Self:
        """
        Set the hidden outputs and beliefs that actions are predicted from.

        :param states: hidden states of the model, with T = 1
        :param masks: whether each choice is legal, booleans (B, all choices of all action fields), in the order of
            sb3-contrib's MaskablePPO: for MultiDiscrete the choices of one entry after the other, for MultiBinary off and on
            of each entry, for Box the bins of each entry. With ``None`` all choices are legal
        """
        self.states, self._log_probs = states, None
        self.legal = self.ids > DONE
        if masks is not None:
            self.legal = masks[:, (self.ids - DONE - 1).clamp_min(0)] & self.legal
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-probability (B,) of actions of the environment, in the form that SB3's rollout buffer stores."""
        shaped = actions.detach().cpu().numpy().reshape(len(actions), *(self.tokenizer.action_space.shape or ()))
        return self.log_prob_of_ids(torch.as_tensor(self.tokenizer.encode_action(shaped), device=actions.device))

    def log_prob_of_ids(self, ids: Tensor) -> Tensor:
        """Log-probability (B,) of action ids (B, A)."""
        self._log_probs = self._slot_log_probs(ids, 0, self.model.action_slots)
        return self._log_prob_at(ids)

    def slot_log_probs(self) -> Tensor:
        """Log-probabilities of each slot's ids, given the actions that were last sampled or evaluated, (B, A, n)."""
        if self._log_probs is None:
            self.choose_ids()
        assert self._log_probs is not None
        return self._log_probs

    def entropy(self) -> Tensor:
        """
        Entropy (B,) in nats: the sum of each slot's entropy, given the actions that were last sampled or evaluated.

        With one action slot it is exact. With several it is an estimate: by the chain rule, its mean over sampled actions is
        the entropy.
        """
        log_probs = self.slot_log_probs()
        return -(log_probs.exp() * log_probs.clamp_min(-1e9)).sum(dim=(-1, -2))

    def kl_from_uniform(self) -> Tensor:
        """
        KL(uniform ‖ policy) (B,) in nats, over the legal ids of each slot, summed over the slots as in :meth:`entropy`.
        """
        log_probs = self.slot_log_probs()
        legal = log_probs.isfinite()
        choices = legal.sum(dim=-1)
        return -(log_probs.masked_fill(~legal, 0.0).sum(dim=-1) / choices + choices.log()).sum(dim=-1)

    def sample(self) -> Tensor:
        """Sample actions of the environment."""
        return self._to_actions(self.choose_ids()[0])

    def mode(self) -> Tensor:
        """The actions that consist of each slot's likeliest id, chosen slot by slot."""
        return self._to_actions(self.choose_ids(deterministic=True)[0])

    def actions_from_params(self, states: HiddenStates, deterministic: bool = False) -> Tensor:
        """Choose actions, given hidden states of the model."""
        return self.proba_distribution(states).get_actions(deterministic)

    def log_prob_from_params(self, states: HiddenStates) -> tuple[Tensor, Tensor]:
        """Sample actions, given hidden states of the model; also returns their log-probability."""
        ids, log_prob = self.proba_distribution(states).choose_ids()
        return self._to_actions(ids), log_prob

    def choose_ids(self, deterministic: bool | Tensor = False) -> tuple[Tensor, Tensor]:
        """
        Choose action ids, slot by slot.

        :param deterministic: take each slot's likeliest id instead of sampling one: for all samples, or for each of them (B,)
        :return: ids (B, A) and their log-probability (B,)
        :raises InputError: if a probability is NaN, on a CPU; on a GPU, the log-probability is then NaN
        """
        slots = self.model.action_slots
        assert self.states is not None
        hidden = self.states.hidden
        ids = torch.full((len(hidden), slots), PAD_ID, device=hidden.device)
        per_slot = []
        for j in range(slots):
            log_probs = self._slot_log_probs(ids, j, j + 1)[:, 0]
            if can_inspect(log_probs):
                check_predictions(log_probs)
            ids[:, j] = self.ids[j, _choose(log_probs, deterministic)]
            per_slot.append(log_probs)
        self._log_probs = torch.stack(per_slot, dim=1)
        return ids, self._log_prob_at(ids)

    def _slot_log_probs(self, following: Tensor, first: int, last: int) -> Tensor:
        """Log-probabilities (B, last - first, n) of the slots from ``first`` to ``last``, given the ids in ``following``."""
        width = self.ids.shape[1]
        assert self.states is not None
        logits = self.model.decode(self.states, following[:, None], first, last, width)[:, 0]
        return logits.masked_fill(~self.legal[..., first:last, :], -torch.inf).log_softmax(dim=-1)

    def _log_prob_at(self, ids: Tensor) -> Tensor:
        """The log-probability (B,) of ids (B, A) under the slots' current log-probabilities."""
        assert self._log_probs is not None
        return self._log_probs.gather(-1, (ids - self.ids[:, 0])[..., None])[..., 0].sum(dim=-1)

    def _to_actions(self, ids: Tensor) -> Tensor:
        return torch.as_tensor(self.tokenizer.decode_action(ids.cpu().numpy()), device=ids.device)


class GaussianActions(DiagGaussianDistribution):
    """SB3's diagonal Gaussian without torch's own checks of its parameters and samples, which would wait for a GPU."""

    def proba_distribution(self, mean_actions: Tensor, log_std: Tensor) -> Self:
        """Set the mean (B, A) and the logarithm of the standard deviation (A,)."""
        self.distribution = Normal(mean_actions, torch.ones_like(mean_actions) * log_std.exp(), validate_args=False)
        return self


def _choose(log_probs: Tensor, deterministic: bool | Tensor) -> Tensor:
    """Choose an index of every row (B, n): the likeliest one, or one that is drawn."""
    if isinstance(deterministic, Tensor):
        return torch.where(deterministic, _choose(log_probs, True), _choose(log_probs, False))
    if deterministic:
        return log_probs.argmax(dim=-1)
    probabilities = log_probs.exp()
    if can_inspect(probabilities):
        return torch.multinomial(probabilities, 1)[:, 0]
    # What multinomial does, without its checks, which would wait for the GPU
    return (probabilities / torch.empty_like(probabilities).exponential_()).argmax(dim=-1)


def check_masks(masks: ArrayLike | None, choices: Sequence[int], environments: int, device: torch.device) -> Tensor | None:
    """
    Check action masks and return them as a tensor (N, all choices); see :func:`dhmm_rl.tokens.action_masks.validate_masks`.

    :param masks: action masks; ``None`` if every choice is legal
    :param choices: number of choices of each action field
    :param environments: number of environments N
    :param device: device of the tensor
    :raises InputError: for masks of another shape, with values other than true and false, or that forbid every action
    """
    return None if masks is None else torch.as_tensor(validate_masks(masks, choices, environments), device=device)
