"""
A plain GPT-2 for comparison, as nanoGPT trains it: no dropout, tied embeddings, and with or without GPT-2's biases.

Written from the published architecture (Radford et al. 2019; https://github.com/karpathy/nanoGPT). Its attention is torch's.

Shapes: B sequences, T tokens, D width, H heads, V ids.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainBlock(nn.Module):
    """
    Pre-norm block: causal self-attention, then a GELU network.

    :param width: width D
    :param heads: number of heads H
    :param bias: whether norms and linear maps have biases
    """

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.network_norm = nn.LayerNorm(width, bias=bias), nn.LayerNorm(width, bias=bias)
        self.qkv, self.attention_out = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)
        self.network_in, self.network_out = nn.Linear(width, 4 * width, bias=bias), nn.Linear(4 * width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states (B, T, D) after the block."""
        batch, steps, width = x.shape
        parts = self.qkv(self.attention_norm(x)).split(width, dim=2)
        q, k, v = (part.view(batch, steps, self.heads, width // self.heads).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention_out(mixed.transpose(1, 2).contiguous().view(batch, steps, width))
        added: Tensor = self.network_out(F.gelu(self.network_in(self.network_norm(x))))
        return x + added


class PlainGPT(nn.Module):
    """
    GPT-2 with learned positions.

    :param vocab_size: number of ids V
    :param length: longest sequence
    :param layers: number of blocks
    :param heads: number of heads H
    :param width: width D
    :param bias: whether norms and linear maps have biases, as GPT-2's do
    """

    def __init__(self, vocab_size: int, length: int, layers: int, heads: int, width: int, bias: bool = True) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(PlainBlock(width, heads, bias) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=bias)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                scale = math.sqrt(2 * layers) if "_out" in name else 1.0
                nn.init.normal_(parameter, std=0.02 / scale)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of the labels, in nats; ids and labels are (B, T)."""
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())
