"""
A pretrained language model as an actor: the likeliest next tokens at the action slots are the action.

Shapes: N environments, C slots.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dhmm_rl.common.distributions import ActionTokens, check_masks
from dhmm_rl.model import DHMMGPT2, ModelState
from dhmm_rl.tokens import RESET, Tokenizer

State = tuple[ModelState, NDArray[np.int64]]


class LanguageModelActor:
    """
    Acts in plain environments, whose observations are not tokenized; SB3's ``evaluate_policy`` can call its ``predict``.

    The model reads one step at a time on its cached state, so episodes may have any length.

    :param model: language model, pretrained on streams with actions worth imitating
    :param tokenizer: tokenizer of those streams
    """

    def __init__(self, model: DHMMGPT2, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.distribution = ActionTokens(model, tokenizer)

    @torch.no_grad()
    def predict(
        self,
        observation: NDArray[Any],
        state: State | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
        action_masks: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[Any], State]:
        """
        Choose actions for the current observations.

        :param observation: observations that are not tokenized, (N, ...); a dictionary or a tuple of such arrays if the
            observation space is one
        :param state: state that the last call returned; ``None`` when all episodes begin
        :param episode_start: whether an episode begins, (N,)
        :param deterministic: take the likeliest token instead of sampling one
        :param action_masks: legal choices, (N, all choices)
        :return: actions (N, ...) and the state for the next call
        :raises InputError: if the model's weights are NaN, and for masks that forbid every action or have another shape
        """
        device = self.model.slot_ids.device
        if state is None:
            tokens = self.tokenizer.first_step(observation)
            memory = self.model.initial_state(len(tokens))
        else:
            memory, actions = state
            tokens = np.concatenate([actions, self.tokenizer.encode_observation(observation)], axis=-1)
            if episode_start is not None:
                tokens[episode_start, : self.tokenizer.action_slots] = RESET
        states, memory = self.model.step_hidden_states(torch.as_tensor(tokens, device=device), memory)
        legal = check_masks(action_masks, self.distribution.choices, len(tokens), device)
        distribution = self.distribution.proba_distribution(states, legal)
        ids, _ = distribution.choose_ids(deterministic)
        actions = ids.cpu().numpy()
        return self.tokenizer.decode_action(actions), (memory, actions)
