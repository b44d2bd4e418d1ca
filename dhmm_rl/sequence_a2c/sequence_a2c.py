"""A2C, the synchronous advantage actor-critic (Mnih et al. 2016, arXiv 1602.01783), for policies with memory."""

from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch.nn.functional import mse_loss

from dhmm_rl.common import DHMMPolicy, SequenceOnPolicyAlgorithm
from dhmm_rl.model import Checkpoint
from dhmm_rl.plain import plain_scalars


class SequenceA2C(SequenceOnPolicyAlgorithm):
    """
    A2C for policies with memory: one gradient step per rollout, on all environments' segments at once.

    The optimizer is Adam. All parameters that are not listed here are those of SB3's ``A2C``.

    :param env: token streams, see :class:`SequenceOnPolicyAlgorithm`
    :param n_steps: steps T of every environment between updates; gradients reach back no further than T and the burn-in
    :param pretrained: language model to start from: a checkpoint or its path
    """

    @plain_scalars
    def __init__(
        self, policy: str | type[DHMMPolicy], env: GymEnv | str,
        learning_rate: float | Schedule = 7e-4, n_steps: int = 16, gamma: float = 0.99, gae_lambda: float = 1.0,
        normalize_advantage: bool = False, ent_coef: float = 0.0, vf_coef: float = 0.5, max_grad_norm: float = 0.5,
        pretrained: Checkpoint | str | Path | None = None, policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100, tensorboard_log: str | None = None, verbose: int = 0,
        seed: int | None = None, device: torch.device | str = "auto", _init_setup_model: bool = True,
    ) -> None:  # fmt: skip
        self.normalize_advantage = normalize_advantage
        super().__init__(
            policy, env, pretrained=pretrained, policy_kwargs=policy_kwargs, learning_rate=learning_rate, n_steps=n_steps,
            gamma=gamma, gae_lambda=gae_lambda, ent_coef=ent_coef, vf_coef=vf_coef, max_grad_norm=max_grad_norm,
            stats_window_size=stats_window_size, tensorboard_log=tensorboard_log, verbose=verbose, seed=seed, device=device,
            _init_setup_model=_init_setup_model,
        )  # fmt: skip

    def train(self) -> None:
        """Make one gradient step on the whole rollout."""
        # Switch to train mode: the belief mutates, if the model asks for it
        self.policy.set_training_mode(True)
        # Update optimizer learning rate
        self._update_learning_rate(self.policy.optimizer)
        # All segments are one minibatch
        (samples,) = self.rollout_buffer.segments(self.n_envs, *self._segment_starts(1))
        values, log_prob, distribution, *_ = self.policy.evaluate_segments(samples)
        # Normalize advantage (not present in the original algorithm)
        advantages = samples.advantages
        if self.normalize_advantage:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        # Policy gradient loss
        policy_loss = -(advantages * log_prob).mean()
        # Value loss using the TD(gae_lambda) target
        value_loss = mse_loss(values, samples.returns)
        # Entropy loss favors exploration; a policy without an analytical entropy is measured at its actions
        entropy = distribution.entropy()
        entropy_loss = -(-log_prob if entropy is None else entropy).mean()
        loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss
        # Optimization step
        self.policy.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        # Clip grad norm
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        self._n_updates += 1
        losses = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy_loss": entropy_loss}
        for name, value in losses.items():
            self.logger.record(f"train/{name}", value.item())
        self._record_update()
