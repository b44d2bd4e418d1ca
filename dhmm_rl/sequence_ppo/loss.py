"""
PPO's loss of a minibatch, and its gradient; on a GPU the gradient is recorded and replayed.

Shapes: B segments of T steps, C slots, n the ids of the widest action slot.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from dhmm_rl.common import ActionTokens, SegmentSamples
from dhmm_rl.common.recording import RecordedGradient
from dhmm_rl.common.sequence_policy import SequencePolicy
from dhmm_rl.model import HiddenStates
from dhmm_rl.tokens import PAD_ID

Number = float | Tensor


class Coefficients(NamedTuple):
    """
    Numbers of the loss, named as in :class:`SequencePPO`; some change from update to update. A weight of 0 leaves out its term.

    :param clip_range_vf: clipping of the values; 0 for none
    """

    clip_range: Number
    clip_range_vf: Number
    vf_coef: Number
    ent_coef: Number
    prior_kl: Number
    uniform_kl: Number
    next_token_coef: Number


class LossGradient:
    """
    Computes the gradient of the loss.

    On a GPU it is recorded once for each shape of minibatches and replayed from then on. The gradients are then always in the
    same memory.

    :param policy: policy whose parameters get the gradient
    """

    def __init__(self, policy: SequencePolicy) -> None:
        self.policy = policy
        self._parameters = list(policy.parameters())
        self._names: list[str] = []
        self._recorded: dict[Any, RecordedGradient[Tensor]] = {}

    def __call__(
        self, samples: SegmentSamples, coefficients: Coefficients, max_grad_norm: float
    ) -> tuple[dict[str, float], float]:
        """
        Compute the gradient of a minibatch's loss, and clip its norm.

        :return: the loss, its terms and other metrics by name, and the norm before clipping
        """
        terms = tuple(bool(number > 0) for number in coefficients)  # those that the loss has
        if samples.tokens.device.type == "cuda":
            computed = self._replay(samples, coefficients, terms, max_grad_norm)
        else:
            computed = self._compute(samples, coefficients, terms, max_grad_norm)
        *metrics, norm = computed.tolist()
        return dict(zip(self._names, metrics, strict=True)), norm

    def _replay(
        self, samples: SegmentSamples, coefficients: Coefficients, terms: tuple[bool, ...], max_grad_norm: float
    ) -> Tensor:
        """:meth:`_compute` on a GPU."""

        def compute(samples: SegmentSamples, numbers: Tensor) -> Tensor:
            return self._compute(samples, Coefficients(*numbers.unbind()), terms, max_grad_norm)

        present = tuple(part is not None for part in samples)
        key = (samples.tokens.shape, samples.following.shape, present, terms, max_grad_norm)
        numbers = torch.tensor(coefficients, dtype=torch.float32).to(samples.tokens.device)
        if key not in self._recorded:
            self._recorded[key] = RecordedGradient(self._parameters, compute, samples, numbers)
        return self._recorded[key](samples, numbers)

    def _compute(
        self, samples: SegmentSamples, coefficients: Coefficients, terms: tuple[bool, ...], max_grad_norm: float
    ) -> Tensor:
        """The metrics and the norm of the gradient, in one tensor."""
        for parameter in self._parameters:
            parameter.grad = None
        with torch.enable_grad():
            loss, metrics = ppo_loss(self.policy, samples, coefficients, Coefficients(*terms))
        loss.backward()  # type: ignore[no-untyped-call]
        # Clip grad norm
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, max_grad_norm)
        self._names = list(metrics)
        return torch.stack([*(metric.detach() for metric in metrics.values()), norm])


def ppo_loss(
    policy: SequencePolicy, samples: SegmentSamples, coefficients: Coefficients, has: Coefficients
) -> tuple[Tensor, dict[str, Tensor]]:
    """
    PPO's loss of a minibatch.

    :param policy: policy to evaluate
    :param samples: the minibatch
    :param coefficients: numbers of the loss
    :param has: whether each of them is not 0
    :return: the loss, and its terms and other metrics by name
    """
    values, log_prob, distribution, states = policy.evaluate_segments(samples)
    clip_range, clip_range_vf = coefficients.clip_range, coefficients.clip_range_vf

    # Ratio between new and old policy, 1 before the first gradient step of an update
    log_ratio = log_prob - samples.old_log_prob
    ratio = log_ratio.exp()
    # Clipped surrogate loss
    advantages = samples.advantages
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)  # type: ignore[arg-type]
    policy_loss = -torch.min(advantages * ratio, advantages * clipped).mean()

    # Value loss using the TD(gae_lambda) target
    if has.clip_range_vf:
        # Clip the difference between old and new value; this depends on the reward scaling
        values = samples.old_values + (values - samples.old_values).clamp(-clip_range_vf, clip_range_vf)  # type: ignore[arg-type]
    value_loss = mse_loss(values, samples.returns)

    # Entropy loss favors exploration; a policy without an analytical entropy is measured at its actions
    entropy = distribution.entropy()
    entropy_loss = -(-log_prob if entropy is None else entropy).mean()

    loss = policy_loss + coefficients.vf_coef * value_loss
    metrics = {
        # Approximate form of the reverse KL divergence, see http://joschu.net/blog/kl-approx.html
        "approx_kl": (ratio - 1 - log_ratio).mean(),
        "clip_fraction": ((ratio - 1).abs() > clip_range).float().mean(),
        "policy_gradient_loss": policy_loss,
        "value_loss": value_loss,
        "entropy_loss": entropy_loss,
    }
    if samples.prior_log_probs is not None:
        # KL(pretrained policy ‖ policy) replaces the entropy bonus
        assert isinstance(distribution, ActionTokens)
        prior_kl = metrics["prior_kl"] = _kl(samples.prior_log_probs, distribution.slot_log_probs()).mean()
        loss = loss + coefficients.prior_kl * prior_kl
    else:
        loss = loss + coefficients.ent_coef * entropy_loss
        # KL(uniform ‖ policy) keeps a gradient where the policy is certain
        if has.uniform_kl and isinstance(distribution, ActionTokens):
            uniform_kl = metrics["uniform_kl"] = distribution.kl_from_uniform().mean()
            loss = loss + coefficients.uniform_kl * uniform_kl
    if has.next_token_coef:
        # The model stays a language model: it goes on predicting observations
        next_token_loss = metrics["next_token_loss"] = _next_token_loss(policy, samples, states)
        loss = loss + coefficients.next_token_coef * next_token_loss
    metrics["loss"] = loss
    return loss, metrics


def _next_token_loss(policy: SequencePolicy, samples: SegmentSamples, states: HiddenStates) -> Tensor:
    """Mean cross-entropy of the next step's observation tokens, given its action, in nats per token."""
    model = policy.language_model
    following, actions = samples.following, model.action_slots
    # A following step counts if it is known (not padding) and continues the episode (not RESET)
    continues = following[..., :1] > 1
    labels = torch.where(continues, following, PAD_ID)
    total = model.token_losses(states, labels, first=actions).sum()
    return total / (labels[..., actions:] >= 0).sum().clamp_min(1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) in nats of action tokens (B, action slots, n), summed over the slots, (B,)."""
    log_ratio = (log_p - log_q).nan_to_num(0.0)  # illegal choices have probability 0 under both: -inf - -inf
    return (log_p.exp() * log_ratio).sum(dim=(-1, -2))
