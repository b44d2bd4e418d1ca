"""
PPO (Schulman et al. 2017, arXiv 1707.06347) for policies with memory.

Shapes: N environments, T steps of a rollout, C slots.
"""

import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from dhmm_rl.common import ActionTokens, DHMMPolicy, as_ids
from dhmm_rl.common.buffers import SegmentSamples, SequenceRolloutBuffer
from dhmm_rl.common.sequence_policy import SequencePolicy
from dhmm_rl.data.random_actions import action_masks_of
from dhmm_rl.envs import TokenSpace
from dhmm_rl.errors import InputError
from dhmm_rl.model import Checkpoint, ModelState, load_checkpoint
from dhmm_rl.plain import plain_scalars
from dhmm_rl.tokens import PAD_ID

ADVANTAGE_MEMORY = 0.9
"""How much of the advantages' variance so far still counts in the next rollout; see :meth:`SequencePPO._normalize`."""

UNMASKED = (
    "predict was called without the action masks that the environment has, so it may choose what is illegal; call: "
    "model.predict(observation, state, action_masks=masks), or evaluate dhmm_rl.sequence_ppo.WithActionMasks(model, env); "
    "EvalCallbackWithMasks is EvalCallback with masks"
)

NOT_FINITE = (
    "{} became NaN or infinite. The minibatches in which that happened are left out of the update, so the weights stay finite, "
    "but the agent learns nothing from them; normalize rewards with VecNormalize(env, norm_obs=False), or check the rewards"
)


class SequencePPO(PPO):
    """
    PPO whose rollouts advance on the model's cached state, a step at a time, and whose updates read each environment's
    steps once, in parallel, behind a burn-in.

    The environment is a token stream (:class:`VecTokenStream`; a history of 1 is enough, the state remembers the rest). What
    is not listed here is as in SB3's ``PPO``, of which gSDE (``use_sde=True``) and other rollout buffers
    (``rollout_buffer_class``, ``rollout_buffer_kwargs``) are missing. Learn on normalized returns
    (``VecNormalize(env, norm_obs=False)``).

    :param policy: ``"DHMMPolicy"``, which means the same as :class:`DHMMPolicy` and :class:`SequencePolicy`, or a subclass of
        :class:`SequencePolicy`
    :param env: token streams
    :param n_steps: steps T of every environment between updates; no gradient reaches back further than T and the burn-in
    :param batch_size: environment steps of a minibatch: so many whole segments of ``n_steps`` as fit
    :param pretrained: language model to start from, a checkpoint or its path; kept as the prior if its actions were learned
        from data worth imitating
    :param prior_kl: weight ρ of KL(pretrained policy ‖ policy), in nats, in the loss, where it replaces the entropy bonus
        (Baker et al. 2022, arXiv 2206.11795, appendix G); nothing without a prior
    :param prior_kl_decay: ρ is multiplied by this at every update
    :param critic_warmup: so many first rollouts are made by the pretrained policy as it is, and only the critic is fitted to
        them; nothing without a prior
    :param critic_warmup_lr: learning rate of the critic then
    :param uniform_kl: weight of KL(uniform ‖ policy), in nats, in the loss, beside the entropy bonus. That has no pull left
        where the policy is certain; this has, so that an agent that became certainly wrong comes back. Nothing with a prior,
        nor with a Gaussian head
    :param next_token_coef: weight of the next-token loss of the observations, in nats per token, in the loss
    :raises InputError: for settings that do not fit together
    """

    policy_aliases: ClassVar[dict[str, type[Any]]] = {"DHMMPolicy": SequencePolicy}
    policy: SequencePolicy
    rollout_buffer: SequenceRolloutBuffer

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
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        _check_batch(batch_size, n_steps)
        if use_sde:
            raise InputError("SequencePPO chooses action tokens or draws from a Gaussian; it has no gSDE (use_sde=True)")
        if rollout_buffer_class not in (None, SequenceRolloutBuffer) or rollout_buffer_kwargs:
            raise InputError(
                "SequencePPO keeps rollouts in a SequenceRolloutBuffer; leave out rollout_buffer_class and its kwargs"
            )
        self.prior_kl, self.prior_kl_decay = prior_kl, prior_kl_decay
        self.critic_warmup, self.critic_warmup_lr = critic_warmup, critic_warmup_lr
        self.uniform_kl, self.next_token_coef = uniform_kl, next_token_coef
        self._rollouts = 0
        self._advantage_variance = 0.0
        self._belief = self._position = torch.empty(0)
        self.masked = False
        checkpoint = load_checkpoint(pretrained) if isinstance(pretrained, str | Path) else pretrained
        policy_kwargs = dict(policy_kwargs or {})
        if checkpoint is not None:
            policy_kwargs.setdefault("features_extractor_kwargs", checkpoint.model.config.settings())
            policy_kwargs.setdefault("keep_prior", bool(checkpoint.info.get("imitates", False)))
        super().__init__(
            SequencePolicy if policy is DHMMPolicy else policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=max(n_steps, 2),  # what PPO checks: whole segments always fit
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            normalize_advantage=normalize_advantage,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            sde_sample_freq=sde_sample_freq,
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )
        self.batch_size = batch_size
        if checkpoint is not None and _init_setup_model:
            if checkpoint.tokenizer != self.policy.tokenizer:
                raise InputError(
                    "the pretrained model has another tokenizer than the environment's stream; wrap the environment with its"
                )
            self.policy.load_language_model(checkpoint.model)

    def _setup_model(self) -> None:
        super()._setup_model()
        _check_batch(self.batch_size, self.n_steps)
        if not isinstance(self.policy, SequencePolicy):
            raise InputError(f"SequencePPO needs a SequencePolicy, not {type(self.policy).__name__}")
        self._begin_streams()

    @classmethod
    def load(cls, path: Any, env: GymEnv | None = None, *args: Any, **kwargs: Any) -> Self:
        """
        As in SB3.

        :raises InputError: for streams of another tokenizer than the agent's
        """
        try:
            return super().load(path, env, *args, **kwargs)
        except ValueError as error:
            if env is not None and "spaces do not match" in str(error):
                saved, _, _ = load_from_zip_file(path, device="cpu", custom_objects=kwargs.get("custom_objects"))
                space = (saved or {}).get("observation_space")
                if isinstance(space, TokenSpace):
                    space.check_equal(env.observation_space)
            raise

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        As in SB3; the streams so far are forgotten.

        :raises InputError: for streams of another tokenizer
        """
        if isinstance(self.observation_space, TokenSpace):
            self.observation_space.check_equal(env.observation_space)
        super().set_env(env, force_reset)
        self._begin_streams()

    def _begin_streams(self) -> None:
        """An empty buffer for the environments, and beliefs that know nothing."""
        if self.env is not None:
            self.masked = is_masking_supported(self.env)
        self._choices = self.policy.action_choices
        gaussian = self.policy.action_head == "gaussian"
        entries = int(np.prod(self.action_space.shape or 1)) if gaussian else self.policy.language_model.action_slots
        self.rollout_buffer = SequenceRolloutBuffer(
            self.n_steps,
            self.observation_space,
            self.action_space,
            self.device,
            self.gae_lambda,
            self.gamma,
            self.n_envs,
            burn_in=self.policy.burn_in,
            stored_action=(entries, np.float32 if gaussian else np.int32),
            masked=sum(self._choices) if self.masked else 0,
        )
        fresh = self.policy.language_model.initial_state(self.n_envs)
        self._belief = self._prior_belief = fresh.belief
        self._position = fresh.position

    # Rollouts

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """
        Fill the buffer, each environment going on where it was; ``False`` when the callback asks to stop.

        Callbacks read the local variables: those of SB3's ``PPO`` have its names, shapes and meanings.
        """
        assert isinstance(rollout_buffer, SequenceRolloutBuffer)
        assert self._last_episode_starts is not None
        policy = self.policy
        policy.set_training_mode(False)
        state = self._begin_rollout(rollout_buffer)
        callback.on_rollout_start()
        n_steps = 0
        while n_steps < n_rollout_steps:
            assert isinstance(self._last_obs, np.ndarray)
            action_masks = self._action_masks(env)
            obs_tensor = torch.as_tensor(self._last_obs, device=self.device)
            tokens = as_ids(obs_tensor[:, -1])
            acted = policy.act(tokens, state, action_masks)
            state, log_probs, values = acted.state, acted.log_prob, acted.values[:, None]
            actions, clipped_actions = acted.unclipped, acted.actions
            new_obs, rewards, dones, infos = env.step(clipped_actions)
            self.num_timesteps += env.num_envs

            callback.update_locals(locals())
            goes_on = callback.on_step()

            self._update_info_buffer(infos, dones)
            n_steps += 1
            if dones.any():
                rewards = rewards + self._value_of_truncated(dones, infos, state)
            rollout_buffer.add_step(
                tokens, acted.stored, rewards, self._last_episode_starts, acted.values, log_probs, action_masks
            )
            self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]
            if not goes_on:
                return False
        with torch.no_grad():
            features, _ = policy.read_step(as_ids(torch.as_tensor(new_obs, device=self.device)[:, -1]), state)
            values = policy.values(features)[:, None]
        rollout_buffer.compute_returns_and_advantage(values, dones)
        rollout_buffer.prior = self._prior_log_probs(rollout_buffer)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _action_masks(self, env: VecEnv) -> NDArray[np.bool_] | None:
        """What is legal now, (N, all choices); ``None`` without masks."""
        return action_masks_of(env, self._choices) if self.masked else None

    @torch.no_grad()
    def _begin_rollout(self, buffer: SequenceRolloutBuffer) -> ModelState:
        """The state after the burn-in, under the parameters of now; what comes before it is carried over the last rollout."""
        model, passed = self.policy.language_model, buffer.all_tokens()[:, : buffer.pos]
        if buffer.pos > 0:
            self._position = model.position_after(passed, self._position)
        if buffer.pos > 0 and model.chain is not None:
            self._belief = model.believe(passed, self._belief)[:, -1]
            if self.policy.prior is not None:
                self._prior_belief = self.policy.prior.believe(passed, self._prior_belief)[:, -1]
        buffer.reset()
        return model.read(buffer.all_tokens()[:, : buffer.burn_in], self._belief, self._position)[1]

    def _value_of_truncated(self, dones: NDArray[Any], infos: list[dict[str, Any]], state: ModelState) -> NDArray[Any]:
        """γ times the value of the final observation, in its state, where an episode was cut off; else 0, (N,)."""
        added = np.zeros(len(dones), dtype=np.float32)
        ends = [(i, infos[i].get("terminal_observation")) for i in np.flatnonzero(dones)]
        cut = [i for i, last in ends if last is not None and infos[i].get("TimeLimit.truncated", False)]
        if cut:
            final = torch.from_numpy(np.stack([infos[i]["terminal_observation"][-1] for i in cut])).to(self.device)
            with torch.no_grad():
                features, _ = self.policy.read_step(final, state[torch.tensor(cut, device=self.device)])
                added[cut] = self.gamma * self.policy.values(features).cpu().numpy()
        return added

    def _normalize(self, advantages: NDArray[np.float32]) -> NDArray[np.float32]:
        """
        Advantages of a rollout with mean 0, in units of the deviation that they have, or lately had if that is more.

        SB3's ``PPO`` gives those of every minibatch the deviation 1. Once a task is solved they are the critic's noise and
        nothing else; blown up to 1 it throws the policy away.
        """
        variance = float(advantages.var(dtype=np.float64))  # the squares of large rewards have no room in 32 bits
        if np.isfinite(variance):
            self._advantage_variance = max(
                variance, ADVANTAGE_MEMORY * self._advantage_variance + (1 - ADVANTAGE_MEMORY) * variance
            )
        normalized: NDArray[np.float32] = (advantages - advantages.mean()) / np.float32(self._advantage_variance**0.5 + 1e-8)
        return normalized

    @torch.no_grad()
    def _prior_log_probs(self, buffer: SequenceRolloutBuffer) -> Tensor | None:
        """The pretrained policy's log-probabilities on the rollout, (N, T, action slots, n)."""
        prior = self.policy.prior
        if prior is None or self.prior_kl_now == 0:
            return None
        hidden, belief = prior.encode(
            buffer.all_tokens(), belief=self._prior_belief, position=self._position, last=buffer.buffer_size
        )
        distribution = ActionTokens(prior, self.policy.tokenizer)
        masks = torch.from_numpy(buffer.masks).to(self.device).transpose(0, 1).flatten(0, 1) if buffer.masked else None
        distribution.proba_distribution(hidden.flatten(0, 1)[:, None], belief.flatten(0, 1)[:, None], masks)
        actions = torch.from_numpy(buffer.actions).to(self.device).transpose(0, 1).flatten(0, 1)
        distribution.log_prob_of_ids(actions.long())
        log_probs = distribution.slot_log_probs()
        return log_probs.view(*hidden.shape[:2], *log_probs.shape[1:])

    # Updates

    @property
    def warming_up(self) -> bool:
        """Whether only the critic is trained as yet."""
        return self.policy.prior is not None and self._rollouts < self.critic_warmup

    @property
    def prior_kl_now(self) -> float:
        """ρ at this update."""
        updates = max(self._rollouts - self.critic_warmup, 0)
        return self.prior_kl * self.prior_kl_decay**updates if self.policy.prior is not None else 0.0

    def train(self) -> None:
        """Update the policy on the rollout."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        buffer = self.rollout_buffer
        if self.normalize_advantage:
            buffer.advantages = self._normalize(buffer.advantages)
            buffer.generator_ready = False
        warming_up = self.warming_up
        means = self._fit_critic() if warming_up else self._update()
        for name, values in means.items():
            self.logger.record(f"train/{name}", float(np.mean(values)))
        not_finite = [name for name, values in means.items() if not np.isfinite(values).all()]
        if not_finite:
            warnings.warn(NOT_FINITE.format(" and ".join(f"train/{name}" for name in not_finite)), stacklevel=2)
        predicted, returns = (array.flatten().astype(np.float64) for array in (buffer.values, buffer.returns))
        self.logger.record("train/explained_variance", explained_variance(predicted, returns))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name in ("clip_range", "clip_range_vf"):
            if getattr(self, name) is not None:
                self.logger.record(f"train/{name}", getattr(self, name)(self._current_progress_remaining))
        if self.policy.action_head == "gaussian":
            self.logger.record("train/std", torch.exp(self.policy.log_std).mean().item())
        if self.policy.prior is not None:
            self.logger.record("train/critic_warmup", float(warming_up))
            self.logger.record("train/prior_kl_coef", self.prior_kl_now)
        self._rollouts += 1

    def _fit_critic(self) -> dict[str, list[float]]:
        """Only the critic, on the features of the frozen policy."""
        means = defaultdict(list)
        optimizer = torch.optim.Adam(self.policy.critic_parameters(), lr=self.critic_warmup_lr)
        for _ in range(self.n_epochs):
            for samples in self._minibatches():
                with torch.no_grad():
                    features = self.policy.features(*self.policy.read_segments(samples)).flatten(0, 1)
                value_loss = torch.nn.functional.mse_loss(self.policy.values(features), samples.returns)
                means["value_loss"].append(value_loss.item())
                if not np.isfinite(means["value_loss"][-1]):
                    continue
                optimizer.zero_grad()
                value_loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return means

    def _update(self) -> dict[str, list[float]]:
        clip_range = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        means = defaultdict(list)
        for _ in range(self.n_epochs):
            for samples in self._minibatches():
                loss, parts = self._loss(samples, clip_range)
                for name, value in parts.items():
                    means[name].append(value)
                if self.target_kl is not None and parts["approx_kl"] > 1.5 * self.target_kl:
                    self._n_updates += 1
                    return means
                if not np.isfinite(parts["loss"]):
                    continue
                self.policy.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
                if norm.isfinite():
                    self.policy.optimizer.step()
                else:
                    means["gradient_norm"].append(norm.item())
            self._n_updates += 1
        return means

    def _minibatches(self) -> Any:
        return self.rollout_buffer.segments(self.batch_size // self.n_steps, self._belief, self._position)

    def _loss(self, samples: SegmentSamples, clip_range: float) -> tuple[Tensor, dict[str, float]]:
        """PPO's loss of a minibatch, with what is to be logged."""
        values, log_prob, distribution, hidden, belief = self.policy.evaluate_segments(samples)
        advantages = samples.advantages
        log_ratio = log_prob - samples.old_log_prob
        ratio = log_ratio.exp()
        policy_loss = -torch.min(advantages * ratio, advantages * ratio.clamp(1 - clip_range, 1 + clip_range)).mean()
        if self.clip_range_vf is not None:
            clip = self.clip_range_vf(self._current_progress_remaining)  # type: ignore[operator]
            values = samples.old_values + (values - samples.old_values).clamp(-clip, clip)
        value_loss = torch.nn.functional.mse_loss(values, samples.returns)
        entropy = distribution.entropy()
        entropy_loss = -(-log_prob if entropy is None else entropy).mean()
        loss = policy_loss + self.vf_coef * value_loss
        with torch.no_grad():
            parts = {
                "approx_kl": (ratio - 1 - log_ratio).mean().item(),
                "clip_fraction": ((ratio - 1).abs() > clip_range).float().mean().item(),
                "policy_gradient_loss": policy_loss.item(),
                "value_loss": value_loss.item(),
                "entropy_loss": entropy_loss.item(),
            }
        if samples.prior is not None:
            assert isinstance(distribution, ActionTokens)
            gap = samples.prior - distribution.slot_log_probs()
            prior_kl = (samples.prior.exp() * gap.nan_to_num(0.0)).sum(dim=(-1, -2)).mean()
            loss = loss + self.prior_kl_now * prior_kl
            parts["prior_kl"] = prior_kl.item()
        else:
            loss = loss + self.ent_coef * entropy_loss
            if self.uniform_kl > 0 and isinstance(distribution, ActionTokens):
                uniform_kl = distribution.kl_from_uniform().mean()
                loss = loss + self.uniform_kl * uniform_kl
                parts["uniform_kl"] = uniform_kl.item()
        if self.next_token_coef > 0:
            next_token_loss = self._next_token_loss(samples, hidden, belief)
            loss = loss + self.next_token_coef * next_token_loss
            parts["next_token_loss"] = next_token_loss.item()
        parts["loss"] = loss.item()
        return loss, parts

    def _next_token_loss(self, samples: SegmentSamples, hidden: Tensor, belief: Tensor) -> Tensor:
        """Mean cross-entropy of the next step's observation tokens, given its action, in nats per token."""
        model = self.policy.language_model
        following, actions = samples.following, model.action_slots
        goes_on = following[..., :1] > 1  # neither nothing nor the first step of another episode
        labels = torch.where(goes_on, following, PAD_ID)
        total = model.token_losses(hidden, belief, labels, first=actions).sum()
        return total / (labels[..., actions:] >= 0).sum().clamp_min(1)

    # As in SB3

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
        action_masks: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[Any], Any]:
        """Actions and the state for the next call; see :meth:`SequencePolicy.predict`."""
        if self.masked and action_masks is None:
            warnings.warn(UNMASKED, stacklevel=2)
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks)

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "SequencePPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """As in SB3."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_belief", "_prior_belief", "_position"]


def _check_batch(batch_size: int, n_steps: int) -> None:
    if batch_size < n_steps:
        raise InputError(f"batch_size {batch_size} is less than one segment of n_steps = {n_steps} steps")
