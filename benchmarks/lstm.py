"""
An LSTM language model with the interface of DHMM-GPT2, for comparison.

Shapes: B sequences, T tokens, V ids.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dhmm_rl.model.outputs import ModelOutput
from dhmm_rl.tokens import Slot


class LSTMLanguageModel(nn.Module):
    """
    An embedding, one LSTM layer and a linear head. Position ids are ignored: an LSTM counts by itself.

    :param vocab_size: number of ids, V
    :param width: width of the embedding and of the LSTM
    """

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.slots = (Slot("token", 0, vocab_size),)
        self.slot_ids: Tensor
        self.register_buffer("slot_ids", torch.arange(vocab_size)[None], persistent=False)
        self.embedding = nn.Embedding(vocab_size, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, vocab_size)

    @classmethod
    def of_size(cls, vocab_size: int, parameters: int) -> "LSTMLanguageModel":
        """Make the widest model that does not exceed a number of parameters."""
        width = 1
        while _count(vocab_size, width + 1) <= parameters:
            width += 1
        return cls(vocab_size, width)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **ignored: Any) -> ModelOutput:
        """
        Predict the next token at every position.

        :param input_ids: token ids (B, T); negative ids are padding
        :param labels: following ids (B, T); negative labels are ignored
        """
        hidden = self.lstm(self.embedding(input_ids.clamp_min(0)))[0]
        logits = self.head(hidden)
        out = ModelOutput(hidden, hidden.new_zeros(*hidden.shape[:2], 0), lambda: logits)
        if labels is not None:
            targets = torch.where(labels < 0, -100, labels)
            losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none").view_as(
                labels
            )
            out.token_loss, out.loss = losses, losses.sum() / (labels >= 0).sum().clamp_min(1)
        return out


def _count(vocab_size: int, width: int) -> int:
    return vocab_size * width + 8 * width * (width + 1) + (width + 1) * vocab_size
