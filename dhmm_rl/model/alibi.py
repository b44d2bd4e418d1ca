"""
Attention with linear biases (ALiBi; Press et al. 2022, arXiv 2108.12409, section 3).

Shapes: B sequences, T queries, S keys, D width, H heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dhmm_rl.model.attention import Attention
from dhmm_rl.model.config import DHMMConfig


class AlibiAttention(Attention):
    """
    Attention that knows the age of a key by a penalty: its score falls linearly with the number of steps since it.

    The slopes of the heads are 2 ** (-8 / H), 2 ** (-16 / H), … as in the paper; nothing about positions is learned.

    :param config: hyperparameters of the model
    """

    rotary = False

    def __init__(self, config: DHMMConfig) -> None:
        super().__init__(config)
        self.slopes: Tensor
        slopes = 2.0 ** (-8 * torch.arange(1, config.heads + 1) / config.heads)
        self.register_buffer("slopes", slopes[:, None, None], persistent=False)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, cache_index: int | None) -> Tensor:
        """Scaled dot products minus slope times age; see :meth:`Attention.attend`."""
        queries, keys = q.shape[2], k.shape[2]
        key = torch.arange(keys, device=q.device)
        if cache_index is not None:  # the ring: the present step is at cache_index, the step before it at the index before
            age = ((cache_index - key) % keys)[None]
        else:  # in parallel: the queries are the last steps
            age = key[keys - queries :, None] - key
        bias = -self.slopes * age
        visible = age >= 0 if mask is None else mask
        bias = torch.where(visible, bias, -torch.inf).to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
