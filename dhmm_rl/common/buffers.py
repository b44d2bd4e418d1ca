"""
The rollout buffer: it stores each step's tokens once, instead of the windows or caches that the model read them in.

Shapes: N environments, T steps of a segment (a rollout is one segment per environment, or several one after the other),
P steps of burn-in before it, C slots, A entries of an action, B segments of a minibatch, n the ids of the widest action slot.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

from dhmm_rl.tokens import PAD_ID, RESET


class SegmentSamples(NamedTuple):
    """
    Some segments. ``tokens`` includes the burn-in, of at most P steps; the other fields describe the T steps after it.

    :param tokens: tokens of the burn-in and the segment, (B, P + T, C)
    :param belief: belief before the burn-in, (B, chains, K)
    :param position: position of the burn-in's first step in its episode, (B,)
    :param actions: actions in the form that the policy evaluates: token ids, or values under a Gaussian head, (B · T, A)
    :param old_values: values when the rollout was collected, (B · T,)
    :param old_log_prob: log-probabilities of the actions when the rollout was collected, (B · T,)
    :param advantages: advantages, (B · T,)
    :param returns: targets of the value function, (B · T,)
    :param masks: legal choices, (B · T, all choices); ``None`` without masks
    :param prior_log_probs: log-probabilities of the pretrained policy, (B · T, action slots, n); ``None`` without one
    :param following: tokens of the step after each step, padding where it is unknown, (B, T, C)
    """

    tokens: Tensor
    belief: Tensor
    position: Tensor
    actions: Tensor
    old_values: Tensor
    old_log_prob: Tensor
    advantages: Tensor
    returns: Tensor
    masks: Tensor | None
    prior_log_probs: Tensor | None
    following: Tensor


class SequenceRolloutBuffer(RolloutBuffer):
    """
    One rollout and its burn-in: the earlier steps that attention still sees.

    A token takes 4 bytes, and the rest of a step with one action slot takes 28.

    :param buffer_size: number of steps T of a rollout
    :param observation_space: observation space of a token stream
    :param action_space: action space of the environment
    :param device: device of the minibatches
    :param gae_lambda: λ of the generalized advantage estimator
    :param gamma: discount factor
    :param n_envs: number of environments N
    :param burn_in: number of steps P before the rollout
    :param stored_action: number of entries A and dtype of an action in the form that the policy evaluates
    :param mask_size: number of choices in an action mask; 0 without masks
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
        *,
        burn_in: int = 0,
        stored_action: tuple[int, type[np.generic]] = (1, np.int32),
        mask_size: int = 0,
    ) -> None:
        self.burn_in, self.stored_action, self.mask_size = burn_in, stored_action, mask_size
        slots = (observation_space.shape or (1,))[-1]
        self.tokens = np.full((burn_in + buffer_size, n_envs, slots), PAD_ID, dtype=np.int32)
        self.prior_log_probs: Tensor | None = None
        self.pos = 0
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)

    def reset(self) -> None:
        """Begin the next rollout. The last P steps become its burn-in, even after a rollout that a callback stopped."""
        shape = (self.buffer_size, self.n_envs)
        self.tokens[: self.burn_in] = self.tokens[self.pos : self.pos + self.burn_in].copy()
        self.tokens[self.burn_in :] = PAD_ID
        entries, dtype = self.stored_action
        self.actions = np.zeros((*shape, entries), dtype=dtype)
        self.masks = np.ones((*shape, self.mask_size), dtype=np.bool_)
        for name in ("rewards", "returns", "episode_starts", "values", "log_probs", "advantages"):
            setattr(self, name, np.zeros(shape, dtype=np.float32))
        self.prior_log_probs = None
        self.pos, self.full, self.generator_ready = 0, False, False

    def add_step(
        self,
        tokens: Tensor,
        action: Tensor,
        reward: NDArray[Any],
        episode_start: NDArray[Any],
        value: Tensor,
        log_prob: Tensor,
        masks: NDArray[np.bool_] | None,
    ) -> None:
        """
        Store one step of every environment.

        :param tokens: tokens of the step that the action was chosen in, (N, C)
        :param action: action in the form that the policy evaluates, (N, A)
        :param reward: reward, including the bootstrapped value of a truncated episode, (N,)
        :param episode_start: whether the step begins an episode, (N,)
        :param value: value estimate, (N,)
        :param log_prob: log-probability of the action, (N,)
        :param masks: legal choices, (N, all choices); ``None`` without masks
        """
        self.tokens[self.burn_in + self.pos] = tokens.cpu().numpy()
        self.actions[self.pos] = action.cpu().numpy()
        self.rewards[self.pos] = reward
        self.episode_starts[self.pos] = episode_start
        self.values[self.pos] = value.cpu().numpy()
        self.log_probs[self.pos] = log_prob.cpu().numpy()
        if masks is not None:
            self.masks[self.pos] = masks
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def segments(self, per_batch: int, belief: Tensor, position: Tensor) -> Iterator[SegmentSamples]:
        """
        Yield every segment of the rollout once, in random order. All steps of a rollout are cut into segments of equal length.

        The burn-in of a minibatch is trimmed to what its segments need: steps before the start of their episodes have no effect
        on them.

        :param per_batch: number of segments B in a minibatch
        :param belief: belief before the burn-in of every segment, (N, segments of an environment, chains, K)
        :param position: position of the burn-in's first step in its episode, (N, segments of an environment)
        """
        if not self.generator_ready:
            self._stored = {
                name: self._by_env(getattr(self, name))
                for name in ("tokens", "actions", "values", "log_probs", "advantages", "returns", "masks")
            }
            # What follows the rollout's last step is unknown
            self._stored["tokens"] = torch.nn.functional.pad(self._stored["tokens"], (0, 0, 0, 1), value=PAD_ID)
            self.generator_ready = True
        stored, count = self._stored, position.shape[1]
        length = self.buffer_size // count
        needed = self._needed_burn_in(length)
        order = np.random.permutation(self.n_envs * count)  # noqa: NPY002 - the generator that SB3 seeds
        for begin in range(0, len(order), per_batch):
            env, segment = np.divmod(order[begin : begin + per_batch], count)
            burn_in = int(needed[env, segment].max())
            if self.device.type == "cuda":  # few different lengths, because an update is recorded once for each
                burn_in = min(2 ** (burn_in - 1).bit_length(), self.burn_in) if burn_in > 0 else 0
            chosen = tuple(torch.from_numpy(index).to(self.device) for index in (env, segment))
            of_env, of_segment = (index[:, None] for index in chosen)
            steps = of_segment * length + torch.arange(length, device=self.device)
            # A shortened burn-in begins elsewhere, in an episode that no longer matters: count from 0, so that no position is
            # past the last one
            first_position = position[chosen] * (burn_in == self.burn_in)
            before = torch.arange(self.burn_in - burn_in, self.burn_in + length, device=self.device)
            samples = {name: values[of_env, steps].flatten(0, 1) for name, values in stored.items() if name != "tokens"}
            yield SegmentSamples(
                stored["tokens"][of_env, steps[:, :1] + before].long(),
                belief[chosen],
                first_position,
                samples["actions"],
                samples["values"],
                samples["log_probs"],
                samples["advantages"],
                samples["returns"],
                samples["masks"] if self.mask_size else None,
                self.prior_log_probs[of_env, steps].flatten(0, 1) if self.prior_log_probs is not None else None,
                stored["tokens"][of_env, steps + self.burn_in + 1].long(),
            )

    def _needed_burn_in(self, length: int) -> NDArray[np.int64]:
        """Number of steps before each segment that belong to the episode of its first step, at most P, (N, segments)."""
        index = np.arange(len(self.tokens))[:, None]
        started = np.maximum.accumulate(np.where(self.tokens[:, :, 0] == RESET, index, -1), axis=0)
        first = np.arange(self.burn_in, len(self.tokens), length)
        age = first[:, None] - started[first]
        return np.minimum(age, self.burn_in).T  # an episode that began before the buffer needs all of the burn-in

    def all_tokens(self) -> Tensor:
        """Tokens of the burn-in and the rollout, (N, P + T, C)."""
        return self._by_env(self.tokens).long()

    def _by_env(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device).transpose(0, 1)
