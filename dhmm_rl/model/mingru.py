"""
A gated linear recurrence as the latent layer: minGRU (Feng et al. 2024, arXiv 2410.01201, section 3.1).

Shapes: B sequences, T steps, V ids, D width, H units.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dhmm_rl.model.config import DHMMConfig
from dhmm_rl.model.embedding import TokenEmbedding
from dhmm_rl.model.latent_layer import LatentLayer, LatentParameters


class MinGRU(LatentLayer):
    """
    H units that each mix their last value with a new one: ``h_t = (1 - z_t) h_{t-1} + z_t h̃_t``.

    Gate and candidate depend on the present step only, not on h_{t-1}. So the recurrence is linear in h, and a scan computes
    all steps in log2 T rounds. Mutation does not apply to it.

    :param config: hyperparameters of the model
    """

    def __init__(self, config: DHMMConfig) -> None:
        super().__init__(config)
        units = config.chains * config.num_states
        self.belief_shape = (units,)
        self.embedding = TokenEmbedding(config.vocab_size, config.embed_size, config.slots)
        self.norm = nn.LayerNorm(config.embed_size)
        self.to_gate_and_candidate = nn.Linear(config.embed_size, 2 * units)
        # As in the HMM, units remember for 3 to 1000 steps at first: z = 1 / dwell time.
        dwell = torch.logspace(torch.tensor(3.0).log10().item(), 3.0, units)
        with torch.no_grad():
            self.to_gate_and_candidate.bias[:units] = -(dwell - 1).log()

    def cached_parameters(self) -> LatentParameters:
        """Each id contributes its embedding; an episode starts with zeros."""
        weight = self.to_gate_and_candidate.weight
        return LatentParameters(weight.new_zeros(self.belief_shape), self.embedding())

    def filter(
        self,
        features: Tensor,
        initial: Tensor,
        starts: Tensor | None,
        parameters: Any,
        *,
        ids: Tensor | None = None,
        mutation: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Units after each step, (B, T, H); see :meth:`LatentLayer.filter`."""
        weight = self.to_gate_and_candidate.weight
        gate, candidate = self.to_gate_and_candidate(self.norm(features.to(weight.dtype))).chunk(2, dim=-1)
        # Each step is the map h → keep · h + new; where an episode starts, it forgets h.
        keep, new = (-gate).sigmoid(), gate.sigmoid() * candidate
        if starts is not None:
            keep = keep.masked_fill(starts[..., None], 0.0)
        keep, new = compose_prefixes(keep, new)
        return keep * initial[:, None].to(keep.dtype) + new


def compose_prefixes(keep: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """
    Compose the maps ``h → keep · h + new`` of steps 0 to t, for every t: a scan (Hillis and Steele 1986, doi
    10.1145/7902.7903). All factors are between 0 and 1, so nothing overflows.

    :param keep: factors of the steps, (B, T, H)
    :param new: summands of the steps, (B, T, H)
    :return: factors and summands of the compositions, each (B, T, H)
    """
    reach = 1
    while reach < keep.shape[1]:
        # Apply the composition that ends `reach` steps earlier first; before the first step stands the identity.
        earlier_keep = F.pad(keep[:, :-reach], (0, 0, reach, 0), value=1.0)
        earlier_new = F.pad(new[:, :-reach], (0, 0, reach, 0))
        keep, new = keep * earlier_keep, keep * earlier_new + new
        reach *= 2
    return keep, new
