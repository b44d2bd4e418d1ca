"""
Token embeddings that know which ids are neighbors.

Shapes: V ids, D width, n bins of a real field, F features.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dhmm_rl.tokens import Slot

STD = 0.1
"""Standard deviation of new embeddings."""
OWN = 0.1
"""Relative learning rate of the part of an embedding that belongs to a single bin."""


class TokenEmbedding(nn.Module):
    """
    The embeddings of all ids, (V + 1, D); the last row, always zero, is that of padding.

    The embedding of a real-valued field's bin is a learned smooth function of the bin, plus a part of its own that learns ten
    times more slowly. With independent rows, each would take its own random walk under an optimizer like Adam, and after a
    thousand steps the small differences of neighboring bins, which show a velocity, would be lost.

    :param vocab_size: number of ids V
    :param embed_size: width D
    :param slots: slots of a step, which say which ids are bins of one real-valued field
    """

    def __init__(self, vocab_size: int, embed_size: int, slots: Sequence[Slot]) -> None:
        super().__init__()
        weight, scale = STD * torch.randn(vocab_size + 1, embed_size), torch.ones(vocab_size + 1, 1)
        features, smooth = [torch.zeros(vocab_size + 1, 0)], [torch.zeros(0, embed_size)]
        weight[-1], scale[-1] = 0, 0
        for slot in slots:
            if slot.ordinal:
                rows = slice(slot.stop - slot.ordinal, slot.stop)
                weight[rows], scale[rows] = 0, OWN
                of_bins = ordinal_features(slot.ordinal)
                features.append(torch.zeros(vocab_size + 1, of_bins.shape[1]))
                features[-1][rows] = of_bins
                drawn = torch.randn(of_bins.shape[1], embed_size)
                smooth.append(drawn * STD / (of_bins @ drawn).std())
        self.weight = nn.Parameter(weight)
        self.smooth = nn.Parameter(torch.cat(smooth)) if len(smooth) > 1 else None
        self.scale: Tensor
        self.features: Tensor
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("features", torch.cat(features, dim=1), persistent=False)

    def forward(self) -> Tensor:
        """All embeddings, (V + 1, D)."""
        own = self.weight * self.scale
        return own if self.smooth is None else own + self.features @ self.smooth


def ordinal_features(bins: int) -> Tensor:
    """
    Smooth features of the bins of one real-valued field, which make neighbors similar, (n, F).

    Sines and cosines of the companded centers in [-1, 1], octave by octave until a period is a few bins, with amplitudes that
    fall as 1 / frequency.

    :param bins: number of bins n
    """
    centers = (torch.arange(bins) + 0.5) / bins * 2 - 1
    frequency = 2.0 ** torch.arange(int(math.log2(bins)))
    phase = centers[:, None] * frequency * math.pi / 2
    return torch.cat([phase.sin() / frequency, phase.cos() / frequency], dim=1)


def init_head(head: nn.Parameter, slots: Sequence[Slot], action_slots: int) -> None:
    """
    Initialize output embeddings: normal noise, smooth over the bins of a real-valued field, and zero for actions, so that a new
    policy is uniform.

    :param head: output embeddings, (V, D); changed in place
    :param slots: slots of a step
    :param action_slots: number of slots at the start of a step that hold the action
    """
    with torch.no_grad():
        nn.init.normal_(head, std=0.02)
        for slot in slots:
            if slot.ordinal:
                features = ordinal_features(slot.ordinal)
                smooth = features @ torch.randn(features.shape[1], head.shape[1])
                head[slot.stop - slot.ordinal : slot.stop] = smooth * (0.02 / smooth.std())
        for slot in slots[:action_slots]:
            head[slot.start : slot.stop] = 0
