"""
PPO (Schulman et al. 2017, arXiv 1707.06347) for policies with memory.

Shapes: N environments, T steps of a segment, C slots, B segments of a minibatch, n the ids of the widest action slot.
"""

import math
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.optim import Optimizer

from dhmm_rl.common import ActionTokens, DHMMPolicy, SegmentSamples, SequenceOnPolicyAlgorithm
from dhmm_rl.errors import InputError
from dhmm_rl.model import Checkpoint, HiddenStates, load_checkpoint
from dhmm_rl.plain import plain_scalars
from dhmm_rl.sequence_ppo.loss import Coefficients, LossGradient

ADVANTAGE_MEMORY = 0.9
"""Share of the advantages' earlier variance that still counts in the next rollout; see :meth:`SequencePPO._normalize`."""
LOWEST_FACTOR = 0.05
"""Smallest factor by which ``desired_kl`` lowers the learning rate."""
FACTOR_STEP = 1.3
"""How much ``desired_kl`` changes the learning rate after an update."""

NOT_FINITE = (
    "{} became NaN or infinite. The minibatches in which that happened are left out of the update, so the weights stay finite, "
    "but the agent learns nothing from them; normalize rewards with VecNormalize(env, norm_obs=False), or check the rewards"
)


class SequencePPO(SequenceOnPolicyAlgorithm, PPO):
    """
    PPO for policies with memory: rollouts advance on the model's cached state, one step at a time, and updates read each
    environment's steps once, in parallel, behind a burn-in.

    The environment is a token stream (:class:`VecTokenStream`; a history of 1 is enough, because the state remembers the
    rest). All parameters that are not listed here are those of SB3's ``PPO``. It has no gSDE (``use_sde=True``) and no other
    rollout buffers (``rollout_buffer_class``, ``rollout_buffer_kwargs``). Learn on normalized returns
    (``VecNormalize(env, norm_obs=False)``).

    :param policy: ``"DHMMPolicy"``, :class:`DHMMPolicy` or :class:`SequencePolicy`, which mean the same, or a subclass of
        :class:`SequencePolicy`
    :param env: token streams
    :param n_steps: steps of every environment between updates
    :param segment_length: steps T of a segment. A minibatch consists of whole segments, drawn from all environments and all
        parts of the rollout, and gradients reach back no further than T and the burn-in. It must divide ``n_steps``, which is
        the default. Shorter segments make minibatches more varied; with a long window they take longer, because each of
        them has a burn-in of its own
    :param batch_size: environment steps of a minibatch, rounded down to whole segments
    :param pretrained: language model to start from: a checkpoint or its path. It is also kept as the prior if its actions
        were learned from data worth imitating
    :param prior_kl: weight ρ of KL(pretrained policy ‖ policy), in nats, in the loss, where it replaces the entropy bonus
        (Baker et al. 2022, arXiv 2206.11795, appendix G); no effect without a prior
    :param prior_kl_decay: factor by which ρ is multiplied at every update
    :param critic_warmup: number of first rollouts that the pretrained policy makes unchanged, while only the critic is fitted
        to them; no effect without a prior
    :param critic_warmup_lr: learning rate of the critic during the warm-up
    :param uniform_kl: weight of KL(uniform ‖ policy), in nats, in the loss, in addition to the entropy bonus. The entropy
        bonus has no gradient left where the policy is certain; this term has, so that an agent that became certain of a
        wrong action recovers. No effect with a prior or a Gaussian head
    :param next_token_coef: weight of the next-token loss of the observations, in nats per token, in the loss
    :param desired_kl: KL divergence of an update to which the learning rate is adapted: it falls while updates change the
        policy more, down to :data:`LOWEST_FACTOR` times ``learning_rate``, and rises again, up to ``learning_rate``, while
        they change it less. In units of ln n nats, where n is the largest number of choices of an action field, because a
        policy of many choices has further to go. With 0, the default, the learning rate stays as it is
    :raises InputError: for settings that do not fit together
    """

    _loss_gradient: LossGradient | None = None

    @plain_scalars
    def __init__(
        self,
        policy: str | type[DHMMPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 2.5e-4,
        n_steps: int = 128,
        batch_size: int = 256,
        n_epochs: int = 5,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        pretrained: Checkpoint | str | Path | None = None,
        prior_kl: float = 0.2,
        prior_kl_decay: float = 0.9995,
        critic_warmup: int = 4,
        critic_warmup_lr: float = 1e-3,
        uniform_kl: float = 0.0,
        next_token_coef: float = 0.0,
        desired_kl: float = 0.0,
        segment_length: int | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        self.segment_length = segment_length
        _check_segments(batch_size, n_steps, segment_length)
        self.prior_kl, self.prior_kl_decay = prior_kl, prior_kl_decay
        self.critic_warmup, self.critic_warmup_lr = critic_warmup, critic_warmup_lr
        self.uniform_kl, self.next_token_coef, self.desired_kl = uniform_kl, next_token_coef, desired_kl
        self._rollouts = 0
        self._advantage_variance = 0.0
        self._learning_rate_factor = 1.0
        checkpoint = load_checkpoint(pretrained) if isinstance(pretrained, str | Path) else pretrained
        if checkpoint is not None:
            policy_kwargs = {"keep_prior": bool(checkpoint.info.get("imitates", False))} | (policy_kwargs or {})
        super().__init__(
            policy, env, pretrained=checkpoint, policy_kwargs=policy_kwargs, learning_rate=learning_rate, n_steps=n_steps,
            batch_size=max(n_steps, 2),  # PPO checks it against single steps; whole segments always divide the rollout
            n_epochs=n_epochs, gamma=gamma, gae_lambda=gae_lambda, clip_range=clip_range, clip_range_vf=clip_range_vf,
            normalize_advantage=normalize_advantage, ent_coef=ent_coef, vf_coef=vf_coef, max_grad_norm=max_grad_norm,
            use_sde=use_sde, sde_sample_freq=sde_sample_freq, rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs, target_kl=target_kl, stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log, verbose=verbose, seed=seed, device=device, _init_setup_model=_init_setup_model,
        )  # fmt: skip
        self.batch_size = batch_size

    def _setup_model(self) -> None:
        super()._setup_model()
        _check_segments(self.batch_size, self.n_steps, self.segment_length)  # again, because `load` can change n_steps

    def _begin_streams(self) -> None:
        super()._begin_streams()
        self._loss_gradient = None
        self._prior_belief = self._belief

    def _advance_burn_in(self, tokens: Tensor) -> None:
        super()._advance_burn_in(tokens)
        if self.policy.prior is not None:
            self._prior_belief = self.policy.prior.advance(tokens, self._prior_belief)[0][:, -1]

    @property
    def _segment_steps(self) -> int:
        """Steps T of a segment."""
        return self.segment_length or self.n_steps

    @property
    def warming_up(self) -> bool:
        """Whether the critic's warm-up is not over."""
        return self.policy.prior is not None and self._rollouts < self.critic_warmup

    @property
    def prior_kl_now(self) -> float:
        """The weight ρ at this update."""
        updates = max(self._rollouts - self.critic_warmup, 0)
        return self.prior_kl * self.prior_kl_decay**updates if self.policy.prior is not None else 0.0

    def _update_learning_rate(self, optimizers: list[Optimizer] | Optimizer) -> None:
        super()._update_learning_rate(optimizers)
        if self.desired_kl > 0:
            # SB3 has set the rate of the schedule; multiply it by the present factor
            for group in self.policy.optimizer.param_groups:
                group["lr"] *= self._learning_rate_factor
            self.logger.record("train/learning_rate", self.policy.optimizer.param_groups[0]["lr"])

    def _adapt_learning_rate(self, kl: float) -> None:
        """Change the factor of the learning rate if the KL divergence of the last update was far from the desired one."""
        if self.desired_kl == 0:
            return
        desired = self.desired_kl * math.log(max(self._choices))
        if kl > 1.5 * desired:
            self._learning_rate_factor = max(self._learning_rate_factor / FACTOR_STEP, LOWEST_FACTOR)
        elif kl < desired / 1.5:
            self._learning_rate_factor = min(self._learning_rate_factor * FACTOR_STEP, 1.0)

    def train(self) -> None:
        """Update the policy on the rollout; during the warm-up only its critic."""
        buffer = self.rollout_buffer
        # The pretrained policy reads the rollout once; it is in eval mode still, so its belief does not mutate
        buffer.prior_log_probs = self._prior_log_probs()
        # Switch to train mode: the belief mutates, if the model asks for it
        self.policy.set_training_mode(True)
        # Update optimizer learning rate
        self._update_learning_rate(self.policy.optimizer)
        if self.normalize_advantage:
            buffer.advantages = self._normalize(buffer.advantages)
            buffer.generator_ready = False  # the buffer converts its arrays again
        self._starts = self._segment_starts(self.n_steps // self._segment_steps)
        warming_up = self.warming_up
        metrics = self._fit_critic() if warming_up else self._update()
        self._record(metrics, warming_up)
        self._rollouts += 1

    def _fit_critic(self) -> dict[str, list[float]]:
        """
        Fit only the critic, to the returns of the frozen policy.

        :return: metrics of every minibatch, by name
        """
        metrics = defaultdict(list)
        optimizer = torch.optim.Adam(self.policy.critic_parameters(), lr=self.critic_warmup_lr)
        for _ in range(self.n_epochs):
            for samples in self._minibatches():
                # The features come from the model, which is not trained here
                with torch.no_grad():
                    features = self.policy.features(self.policy.read_segments(samples)).flatten(0, 1)
                # Value loss using the TD(gae_lambda) target
                value_loss = mse_loss(self.policy.values(features), samples.returns)
                metrics["value_loss"].append(value_loss.item())
                # Leave out a minibatch that would make weights NaN
                if not np.isfinite(metrics["value_loss"][-1]):
                    continue
                # Optimization step
                optimizer.zero_grad()
                value_loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return metrics

    def _update(self) -> dict[str, list[float]]:
        """
        Make the gradient steps of one update.

        :return: metrics of every minibatch, by name
        """
        # Compute current clip range
        progress = self._current_progress_remaining
        clip_range_vf = 0.0 if self.clip_range_vf is None else self.clip_range_vf(progress)  # type: ignore[operator]
        coefficients = Coefficients(
            self.clip_range(progress), clip_range_vf, self.vf_coef, self.ent_coef,  # type: ignore[operator]
            self.prior_kl_now, self.uniform_kl, self.next_token_coef,
        )  # fmt: skip
        gradient = self._loss_gradient = self._loss_gradient or LossGradient(self.policy)
        metrics = defaultdict(list)
        for _ in range(self.n_epochs):
            # Do a complete pass on the rollout buffer
            kl_divergences = []
            for samples in self._minibatches():
                # Loss, its gradient, and the gradient's norm before it was clipped
                terms, norm = gradient(samples, coefficients, self.max_grad_norm)
                kl_divergences.append(terms["approx_kl"])
                for name, value in terms.items():
                    metrics[name].append(value)
                # Stop early when the policy has moved far enough from the one that collected the rollout
                if self.target_kl is not None and terms["approx_kl"] > 1.5 * self.target_kl:
                    self._n_updates += 1
                    self._adapt_learning_rate(terms["approx_kl"])
                    return metrics
                # Leave out a minibatch that would make weights NaN
                if not np.isfinite(terms["loss"]):
                    continue
                # Optimization step
                if np.isfinite(norm):
                    self.policy.optimizer.step()
                else:
                    metrics["gradient_norm"].append(norm)
            self._n_updates += 1
        self._adapt_learning_rate(float(np.mean(kl_divergences)))  # of the last pass
        return metrics

    def _minibatches(self) -> Iterator[SegmentSamples]:
        """Whole segments, as many as fit into a minibatch, each once."""
        return self.rollout_buffer.segments(self.batch_size // self._segment_steps, *self._starts)

    @torch.no_grad()
    def _prior_log_probs(self) -> Tensor | None:
        """The pretrained policy's log-probabilities on the rollout, (N, T, action slots, n); ``None`` without a prior."""
        buffer, prior = self.rollout_buffer, self.policy.prior
        if prior is None or self.prior_kl_now == 0:
            return None
        states = prior.hidden_states(
            buffer.all_tokens(), belief=self._prior_belief, position=self._position, last=buffer.buffer_size
        )
        distribution = ActionTokens(prior, self.policy.tokenizer)
        masks = torch.from_numpy(buffer.masks).to(self.device).transpose(0, 1).flatten(0, 1) if buffer.mask_size else None
        hidden, belief = states.hidden.flatten(0, 1)[:, None], states.belief.flatten(0, 1)[:, None]
        distribution.proba_distribution(HiddenStates(hidden, belief, states.parameters), masks)
        actions = torch.from_numpy(buffer.actions).to(self.device).transpose(0, 1).flatten(0, 1)
        distribution.log_prob_of_ids(actions.long())
        log_probs = distribution.slot_log_probs()
        return log_probs.view(*states.hidden.shape[:2], *log_probs.shape[1:])

    def _normalize(self, advantages: NDArray[np.float32]) -> NDArray[np.float32]:
        """
        Shift a rollout's advantages to mean 0 and divide them by their standard deviation, or by its recent value if larger.

        SB3's ``PPO`` scales the advantages of every minibatch to a standard deviation of 1. Once a task is solved they are
        nothing but the critic's noise; scaled up to 1 it destroys the policy.
        """
        variance = float(advantages.var(dtype=np.float64))  # squares of large rewards overflow 32 bits
        if np.isfinite(variance):
            recent = ADVANTAGE_MEMORY * self._advantage_variance + (1 - ADVANTAGE_MEMORY) * variance
            self._advantage_variance = max(variance, recent)
        normalized: NDArray[np.float32] = (advantages - advantages.mean()) / np.float32(self._advantage_variance**0.5 + 1e-8)
        return normalized

    def _record(self, metrics: dict[str, list[float]], warming_up: bool) -> None:
        """Log an update's metrics; warn if a metric is NaN or infinite."""
        for name, values in metrics.items():
            self.logger.record(f"train/{name}", float(np.mean(values)))
        not_finite = [name for name, values in metrics.items() if not np.isfinite(values).all()]
        if not_finite:
            warnings.warn(NOT_FINITE.format(" and ".join(f"train/{name}" for name in not_finite)), stacklevel=3)
        self._record_update()
        for name in ("clip_range", "clip_range_vf"):
            if getattr(self, name) is not None:
                self.logger.record(f"train/{name}", getattr(self, name)(self._current_progress_remaining))
        if self.policy.prior is not None:
            self.logger.record("train/critic_warmup", float(warming_up))
            self.logger.record("train/prior_kl_coef", self.prior_kl_now)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_prior_belief", "_starts", "_loss_gradient"]


def _check_segments(batch_size: int, n_steps: int, segment_length: int | None) -> None:
    length = segment_length or n_steps
    if n_steps % length != 0:
        raise InputError(f"n_steps {n_steps} must be a multiple of segment_length {length}")
    if batch_size < length:
        raise InputError(f"batch_size {batch_size} is less than one segment of {length} steps")
