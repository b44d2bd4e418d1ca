"""
GPT-2's attention, with heads that average values and heads that sum them.

Shapes: B sequences, T steps, S steps that attention looks at, D width, H heads, h of these heads, W window.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dhmm_rl.model.attention_masks import to_chunks, with_previous
from dhmm_rl.model.cache import KeyValueCache
from dhmm_rl.model.config import DHMMConfig
from dhmm_rl.model.mixer import Context, Mixer
from dhmm_rl.model.positions import rotate


class Attention(Mixer):
    """
    Multi-head self-attention; parameters are named as in GPT-2. The first ``sum_heads`` heads sum values, the others average.

    :param config: hyperparameters of the model
    """

    chunks = True

    def __init__(self, config: DHMMConfig) -> None:
        super().__init__(config)
        self.heads, self.sum_heads, self.head_size = config.heads, config.sum_heads, config.embed_size // config.heads
        self.c_attn = nn.Linear(config.embed_size, 3 * config.embed_size)
        self.c_proj = nn.Linear(config.embed_size, config.embed_size)
        self.slopes: Tensor | None
        slopes = self.default_slopes() if config.head_slopes is None else torch.tensor(config.head_slopes)
        if slopes is not None and not slopes.any():
            slopes = None
        self.register_buffer("slopes", slopes if slopes is None else slopes[:, None, None], persistent=False)
        if self.sum_heads > 0:
            self.sum_bias = nn.Parameter(torch.zeros(self.sum_heads, 1, 1))
            self.sum_scale = 1 / math.sqrt(self.window)  # sums over a window would otherwise drown the other heads

    def default_slopes(self) -> Tensor | None:
        """Slopes of the averaging heads where the configuration has none, (h,); ``None`` for scores that ignore age."""
        return None

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
        if context.chunked:
            joined = self.attend_in_chunks(q, k, v, context.attention_mask)
            if last is not None:
                joined = joined[:, -last:]
        else:
            # Only the queries of the last steps are needed where only those are returned.
            mask = context.attention_mask
            if last is not None and last < steps:
                if mask is None:
                    mask = torch.ones(steps, steps, dtype=torch.bool, device=x.device).tril()
                q, mask = q[..., -last:, :], mask[..., -last:, :]
            joined = self.mix_heads(q, k, v, mask, context.cache_index).transpose(1, 2).flatten(2)
        projected: Tensor = self.c_proj(joined)
        return projected

    def attend_in_chunks(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """
        Attend in chunks of W steps, each to itself and the chunk before it; the cost grows with T · W.

        :param q: queries, (B, H, T, D / H); keys and values have the same shape
        :param mask: mask of the keys that each query sees, (B · T / W, 1, W, 2W)
        :return: (B, T, D)
        """
        batch, _, steps, _ = q.shape
        q = to_chunks(q.transpose(1, 2), self.window).transpose(1, 2)
        k, v = (with_previous(x.transpose(1, 2), self.window).transpose(1, 2) for x in (k, v))
        mixed = self.mix_heads(q, k, v, mask, None).transpose(1, 2)
        return mixed.reshape(batch, -1, self.heads * self.head_size)[:, :steps]

    def mix_heads(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, cache_index: int | Tensor | None) -> Tensor:
        """Values of all heads, (B, H, T, D / H): the first heads sum them, the others average them. See :meth:`attend`."""
        n, mixed = self.sum_heads, []
        if n > 0:
            mixed.append(self.sum_values(q[:, :n], k[:, :n], v[:, :n], mask))
        if n < self.heads:
            mixed.append(self.attend(q[:, n:], k[:, n:], v[:, n:], mask, cache_index))
        return torch.cat(mixed, dim=1) if len(mixed) > 1 else mixed[0]

    def sum_values(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """
        Sum the values of the keys that match the queries.

        A softmax gives every query the same total weight, so what it returns does not tell two matching steps from three. Here
        each step has a weight between 0 and 1 that does not depend on the other steps.

        :param q: queries of the last T of the steps, (B, h, T, D / H)
        :param k: keys, (B, h, S, D / H)
        :param v: values, (B, h, S, D / H)
        :param mask: mask of the keys that each query sees, (B, 1, T, S); ``None`` for all up to and including its own
        :return: (B, h, T, D / H)
        """
        weights = (q @ k.transpose(-1, -2) / math.sqrt(self.head_size) + self.sum_bias).sigmoid()
        visible = weights.tril(k.shape[2] - q.shape[2]) if mask is None else weights.masked_fill(~mask, 0.0)
        return visible @ (self.sum_scale * v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, cache_index: int | Tensor | None) -> Tensor:
        """
        Average the values by how well the queries match the keys, and by how recent they are where heads have slopes.

        :param q: queries of the last T of the steps, (B, h, T, D / H)
        :param k: keys, (B, h, S, D / H)
        :param v: values, (B, h, S, D / H)
        :param mask: mask of the keys that each query sees, (B, 1, T, S); ``None`` for all up to and including its own
        :param cache_index: index of the query's own key, if the keys are the ring of a cache
        :return: (B, h, T, D / H)
        """
        if self.slopes is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        queries, keys = q.shape[2], k.shape[2]
        key = torch.arange(keys, device=q.device)
        if cache_index is not None:  # the ring: the present step is at cache_index, the step before it at the index before
            age = ((cache_index - key) % keys)[None]
        else:  # in parallel: the queries are the last steps
            age = key[keys - queries :, None] - key
        visible = age >= 0 if mask is None else mask
        bias = torch.where(visible, -self.slopes * age, -torch.inf).to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
