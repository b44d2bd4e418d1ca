"""
Base of on-policy algorithms that act on the model's cached state. Subclasses add the loss.

Shapes: N environments, T steps of a rollout, P steps of burn-in before it, C slots.
"""

import warnings
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from dhmm_rl.common.buffers import SequenceRolloutBuffer
from dhmm_rl.common.distributions import check_masks
from dhmm_rl.common.policies import DHMMPolicy, as_ids
from dhmm_rl.common.recording import RecordedFunction
from dhmm_rl.common.sequence_policy import PolicyStep, SequencePolicy
from dhmm_rl.data.random_actions import action_masks_of
from dhmm_rl.envs import TokenSpace
from dhmm_rl.errors import InputError
from dhmm_rl.model import Checkpoint, ModelState, load_checkpoint

UNMASKED = (
    "predict was called without the environment's action masks, so it may choose illegal actions; call: "
    "model.predict(observation, state, action_masks=masks), or evaluate dhmm_rl.common.WithActionMasks(model, env); "
    "EvalCallbackWithMasks is EvalCallback with masks"
)


class SequenceOnPolicyAlgorithm(OnPolicyAlgorithm):
    """
    Base of on-policy algorithms for policies with memory: rollouts advance on the model's cached state, one step at a time.

    The environment is a token stream (:class:`VecTokenStream`; a history of 1 is enough, because the state remembers the
    rest). A subclass implements ``train``: it reads whole segments of the rollout from
    ``rollout_buffer.segments(per_batch, *self._segment_starts(count))`` and evaluates them with ``policy.evaluate_segments``.
    It can inherit from one of SB3's algorithms, too, as :class:`SequencePPO` does from ``PPO``, for the settings and set-up.

    :param policy: ``"DHMMPolicy"``, :class:`DHMMPolicy` or :class:`SequencePolicy`, which mean the same, or a subclass of
        :class:`SequencePolicy`
    :param env: token streams
    :param pretrained: language model to start from: a checkpoint or its path
    :param policy_kwargs: keywords of the policy
    :param use_sde: refused if true; the parameter exists because SB3's algorithms have it
    :param sde_sample_freq: ignored without gSDE
    :param rollout_buffer_class: refused unless it is :class:`SequenceRolloutBuffer`
    :param rollout_buffer_kwargs: refused if there are any
    :param settings: keywords of the next class: ``OnPolicyAlgorithm``, or the algorithm of SB3 that the subclass names
    :raises InputError: for settings that do not fit together
    """

    policy_aliases: ClassVar[dict[str, type[Any]]] = {"DHMMPolicy": SequencePolicy}
    policy: SequencePolicy
    rollout_buffer: SequenceRolloutBuffer

    def __init__(
        self,
        policy: str | type[DHMMPolicy],
        env: GymEnv | str,
        *,
        pretrained: Checkpoint | str | Path | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        _init_setup_model: bool = True,
        **settings: Any,
    ) -> None:
        name = type(self).__name__
        if use_sde:
            raise InputError(f"{name} chooses action tokens or draws from a Gaussian; it has no gSDE (use_sde=True)")
        if rollout_buffer_class not in (None, SequenceRolloutBuffer) or rollout_buffer_kwargs:
            raise InputError(f"{name} keeps rollouts in a SequenceRolloutBuffer; leave out rollout_buffer_class and its kwargs")
        # The belief and the position in its episode with which each environment's burn-in begins.
        self._belief = self._position = torch.empty(0)
        self.masked = False
        self._recorded_act: RecordedFunction[tuple[Tensor, ModelState]] | None = None
        checkpoint = load_checkpoint(pretrained) if isinstance(pretrained, str | Path) else pretrained
        policy_kwargs = dict(policy_kwargs or {})
        if checkpoint is not None:
            policy_kwargs.setdefault("features_extractor_kwargs", checkpoint.model.config.settings())
        super().__init__(
            SequencePolicy if policy is DHMMPolicy else policy,
            env,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            policy_kwargs=policy_kwargs,
            _init_setup_model=_init_setup_model,
            **settings,
        )
        if checkpoint is not None and _init_setup_model:
            if checkpoint.tokenizer != self.policy.tokenizer:
                raise InputError(
                    "the pretrained model has another tokenizer than the environment's stream; wrap the environment with its"
                )
            self.policy.load_language_model(checkpoint.model)

    def _setup_model(self) -> None:
        super()._setup_model()
        if not isinstance(self.policy, SequencePolicy):
            raise InputError(f"{type(self).__name__} needs a SequencePolicy, not {type(self.policy).__name__}")
        if self.device.type == "cuda" and isinstance(self.policy.optimizer, torch.optim.Adam):
            for group in self.policy.optimizer.param_groups:
                group["fused"] = True  # one kernel updates all parameters
        self._begin_streams()

    @classmethod
    def load(cls, path: Any, env: GymEnv | None = None, *args: Any, **kwargs: Any) -> Self:
        """
        Load the model from a zip-file, as in SB3.

        :raises InputError: for streams of another tokenizer than the agent's
        """
        try:
            return super().load(path, env, *args, **kwargs)
        except ValueError as error:
            # SB3's message says only that spaces differ; raise an error that says how the tokenizers differ
            if env is not None and "spaces do not match" in str(error):
                saved, _, _ = load_from_zip_file(path, device="cpu", custom_objects=kwargs.get("custom_objects"))
                space = (saved or {}).get("observation_space")
                if isinstance(space, TokenSpace):
                    space.check_equal(env.observation_space)
            raise

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        Set the environment, as in SB3; earlier streams are forgotten.

        :raises InputError: for streams of another tokenizer
        """
        if isinstance(self.observation_space, TokenSpace):
            self.observation_space.check_equal(env.observation_space)
        super().set_env(env, force_reset)
        self._begin_streams()

    def _begin_streams(self) -> None:
        """Create an empty buffer for the environments, and the beliefs that streams begin with."""
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
            mask_size=sum(self._choices) if self.masked else 0,
        )
        self._recorded_act = None
        initial = self.policy.language_model.initial_state(self.n_envs)
        self._belief, self._position = initial.belief, initial.position

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """
        Fill the buffer with a rollout that continues every environment's stream.

        Callbacks read the local variables: those of SB3's ``PPO`` have its names, shapes and meanings.

        :return: ``False`` if the callback stopped the rollout, else ``True``
        """
        assert isinstance(rollout_buffer, SequenceRolloutBuffer)
        assert self._last_episode_starts is not None
        policy = self.policy
        # Switch to eval mode: the belief does not mutate while acting
        policy.set_training_mode(False)
        # The cached state of every stream after its burn-in; the buffer is now empty
        state = self._begin_rollout(rollout_buffer)
        callback.on_rollout_start()
        n_steps = 0
        while n_steps < n_rollout_steps:
            assert isinstance(self._last_obs, np.ndarray)
            action_masks = self._action_masks(env)
            obs_tensor = torch.as_tensor(self._last_obs, device=self.device)
            # The state holds everything before, so the last step of the observed history is all that is read
            tokens = as_ids(torch.as_tensor(self._last_obs[:, -1]))
            step = self._act(tokens, state, action_masks)
            state, log_probs, values = step.state, step.log_prob, step.values[:, None]
            # SB3's names: callbacks read the actions as drawn and as the environment gets them
            actions, clipped_actions = step.unclipped, step.actions
            new_obs, rewards, dones, infos = env.step(clipped_actions)
            self.num_timesteps += env.num_envs

            # Give access to local variables
            callback.update_locals(locals())
            continue_training = callback.on_step()

            self._update_info_buffer(infos, dones)
            n_steps += 1
            # Handle time limits: bootstrap with the value of the final observation
            if dones.any():
                rewards = rewards + self._value_of_truncated(dones, infos, state)
            rollout_buffer.add_step(
                tokens, step.stored, rewards, self._last_episode_starts, step.values, log_probs, action_masks
            )
            self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]
            # Only now, so that the next rollout's burn-in has this step, too
            if not continue_training:
                return False
        with torch.no_grad():
            # Compute value for the last timestep
            features, _ = policy.read_step(as_ids(torch.as_tensor(new_obs, device=self.device)[:, -1]), state)
            values = policy.values(features)[:, None]
        rollout_buffer.compute_returns_and_advantage(values, dones)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _act(self, tokens: Tensor, state: ModelState, masks: NDArray[np.bool_] | None) -> PolicyStep:
        """Act on tokens (N, C) of the CPU. On a GPU, the model's step is recorded and replayed; tensors return to the CPU."""
        policy = self.policy
        if self.device.type != "cuda":
            return policy.act(tokens.to(self.device), state, masks)

        def act(tokens: Tensor, state: ModelState, legal: Tensor | None) -> tuple[Tensor, ModelState]:
            stored, values, log_prob, state = policy.act_on_tensors(tokens, state, legal)
            return torch.cat([stored.double(), values[:, None], log_prob[:, None]], dim=1), state

        legal = check_masks(masks, self._choices, len(tokens), self.device)
        arguments = (tokens.to(self.device, non_blocking=True), state, legal)
        with torch.no_grad():
            if self._recorded_act is None:
                self._recorded_act = RecordedFunction(act, *arguments)
            packed, state = self._recorded_act(*arguments)
        stored, values, log_prob = torch.split(packed.cpu(), [packed.shape[1] - 2, 1, 1], dim=1)
        stored = stored.float() if policy.action_head == "gaussian" else stored.long()
        return policy.policy_step(stored, values[:, 0].float(), log_prob[:, 0].float(), state)

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: NDArray[np.bool_] | None = None) -> None:
        """Remember finished episodes, as in SB3, without a look at the infos of all other environments."""
        if dones is not None:
            infos, dones = [infos[i] for i in np.flatnonzero(dones)], np.ones(np.count_nonzero(dones), dtype=np.bool_)
        super()._update_info_buffer(infos, dones)

    def _action_masks(self, env: VecEnv) -> NDArray[np.bool_] | None:
        """Return the masks of legal choices (N, all choices), ``None`` for environments without masks."""
        return action_masks_of(env, self._choices) if self.masked else None

    @torch.no_grad()
    def _begin_rollout(self, buffer: SequenceRolloutBuffer) -> ModelState:
        """Empty the buffer except for the burn-in, and return the state after it under the current parameters."""
        if buffer.pos > 0:
            # The next burn-in begins as many steps later as the last rollout was long
            self._advance_burn_in(buffer.all_tokens()[:, : buffer.pos])
        buffer.reset()
        burn_in = buffer.all_tokens()[:, : buffer.burn_in]
        return self.policy.language_model.prefill(burn_in, self._belief, self._position)[1]

    def _advance_burn_in(self, tokens: Tensor) -> None:
        """Carry the belief and the position with which the burn-in begins over steps (N, steps, C) that leave the buffer."""
        beliefs, self._position = self.policy.language_model.advance(tokens, self._belief, self._position)
        self._belief = beliefs[:, -1]

    @torch.no_grad()
    def _segment_starts(self, count: int) -> tuple[Tensor, Tensor]:
        """
        What is known before the burn-in of every segment, if the rollout of each environment is cut into ``count`` of them.

        :return: beliefs (N, count, *S) under the current parameters, and positions (N, count)
        """
        belief, position = self._belief, self._position
        beliefs, positions = [belief], [position]
        tokens, length = self.rollout_buffer.all_tokens(), self.n_steps // count
        for start in range(0, (count - 1) * length, length):
            found, position = self.policy.language_model.advance(tokens[:, start : start + length], belief, position)
            belief = found[:, -1]
            beliefs.append(belief)
            positions.append(position)
        return torch.stack(beliefs, dim=1), torch.stack(positions, dim=1)

    def _value_of_truncated(self, dones: NDArray[Any], infos: list[dict[str, Any]], state: ModelState) -> NDArray[Any]:
        """Return γ times the value of the final observation where an episode was truncated, else 0, (N,)."""
        bootstrap = np.zeros(len(dones), dtype=np.float32)
        truncated = [
            i
            for i in np.flatnonzero(dones)
            if infos[i].get("terminal_observation") is not None and infos[i].get("TimeLimit.truncated", False)
        ]
        if truncated:
            final = np.stack([infos[i]["terminal_observation"][-1] for i in truncated])
            with torch.no_grad():
                # Indexing copies the states of these streams, so `state` itself is not advanced
                their_state = state[torch.tensor(truncated, device=self.device)]
                features, _ = self.policy.read_step(torch.from_numpy(final).to(self.device), their_state)
                bootstrap[truncated] = self.gamma * self.policy.values(features).cpu().numpy()
        return bootstrap

    def _record_update(self) -> None:
        """Log what all algorithms do: the critic's explained variance, the number of updates, a Gaussian head's deviation."""
        buffer = self.rollout_buffer
        # In 64 bits, because the squares of large returns overflow 32
        values, returns = buffer.values.flatten().astype(np.float64), buffer.returns.flatten().astype(np.float64)
        self.logger.record("train/explained_variance", explained_variance(values, returns))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if self.policy.action_head == "gaussian":
            self.logger.record("train/std", self.policy.log_std.exp().mean().item())

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool | NDArray[np.bool_] = False,
        action_masks: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[Any], Any]:
        """Choose actions; also returns the state for the next call. See :meth:`SequencePolicy.predict`."""
        if self.masked and action_masks is None:
            warnings.warn(UNMASKED, stacklevel=2)
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks)

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train, as in SB3; the name of the TensorBoard log is the class's by default."""
        name = type(self).__name__ if tb_log_name is None else tb_log_name
        return super().learn(total_timesteps, callback, log_interval, name, reset_num_timesteps, progress_bar)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_belief", "_position", "_recorded_act"]
