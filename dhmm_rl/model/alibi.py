"""
Attention with linear biases (ALiBi; Press et al. 2022, arXiv 2108.12409, section 3).

Shapes: h averaging heads.
"""

import torch
from torch import Tensor

from dhmm_rl.model.attention import Attention


class AlibiAttention(Attention):
    """
    Attention that knows the age of a key by a penalty only: its score falls linearly with the number of steps since it.

    The slopes of the h averaging heads are 2 ** (-8 / h), 2 ** (-16 / h), … as in the paper; none are learned.

    :param config: hyperparameters of the model
    """

    rotary = False

    def default_slopes(self) -> Tensor:
        """The paper's slopes, (h,)."""
        averaging = self.heads - self.sum_heads
        return 2.0 ** (-8 * torch.arange(1, averaging + 1) / max(averaging, 1))
