"""
GPT-2's attention.

Shapes: B sequences, T steps, S steps that attention looks at, D width, H heads, W window.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dhmm_rl.model.cache import KeyValueCache
from dhmm_rl.model.config import DHMMConfig
from dhmm_rl.model.mixer import Context, Mixer
from dhmm_rl.model.positions import rotate


class Attention(Mixer):
    """
    Multi-head self-attention; parameters are named as in GPT-2.

    :param config: hyperparameters of the model
    """

    def __init__(self, config: DHMMConfig) -> None:
        super().__init__(config)
        self.heads, self.head_size = config.heads, config.embed_size // config.heads
        self.c_attn = nn.Linear(config.embed_size, 3 * config.embed_size)
        self.c_proj = nn.Linear(config.embed_size, config.embed_size)

    def initial_cache(self, batch: int, device: torch.device) -> KeyValueCache:
        """An empty cache of W keys and values for a number of streams."""
        keys = torch.zeros(batch, self.heads, self.window, self.head_size, device=device)
        return KeyValueCache(keys, torch.zeros_like(keys))

    def forward(self, x: Tensor, context: Context, cache: KeyValueCache | None = None, last: int | None = None) -> Tensor:
        """Attend to earlier steps; see :meth:`Mixer.forward`."""
        batch, steps, _ = x.shape
        # Queries, keys and values of every head, each (B, H, T, D / H).
        q, k, v = self.c_attn(x).view(batch, steps, 3, self.heads, self.head_size).permute(2, 0, 3, 1, 4).unbind(0)
        if context.rotary is not None:
            q, k = rotate(q, context.rotary), rotate(k, context.rotary)
        # The cache remembers this pass, and adds what it remembers of earlier ones.
        if cache is not None:
            k, v = cache.update(k, v, context.cache_index)
        # Only the queries of the last steps are needed where only those are returned.
        mask = context.attention_mask
        if last is not None and last < steps:
            if mask is None:
                mask = torch.ones(steps, steps, dtype=torch.bool, device=x.device).tril()
            q, mask = q[..., -last:, :], mask[..., -last:, :]
        mixed = self.attend(q, k, v, mask, context.cache_index)
        projected: Tensor = self.c_proj(mixed.transpose(1, 2).flatten(2))
        return projected

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, cache_index: int | None) -> Tensor:
        """
        Average the values by how well the queries match the keys.

        :param q: queries of the last T of the steps, (B, H, T, D / H)
        :param k: keys, (B, H, S, D / H)
        :param v: values, (B, H, S, D / H)
        :param mask: mask of the keys that each query sees, (B, 1, T, S); ``None`` for all up to and including its own
        :param cache_index: index of the query's own key, if the keys are the ring of a cache
        :return: (B, H, T, D / H)
        """
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
