"""Attention by torch's fused kernel, in the place of ``nn.MultiheadAttention``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

__all__ = ["FusedAttention", "fuse_attention"]


class FusedAttention(nn.Module):
    """Self-attention of the same weights, through ``scaled_dot_product_attention``.

    ``nn.MultiheadAttention`` takes another way in evaluation mode, which writes the scores to memory.

    Parameters
    ----------
    attention : nn.MultiheadAttention
        Whose weights these are.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        width = attention.embed_dim
        self.heads = attention.num_heads
        self.projections = nn.Linear(width, 3 * width, device="meta")
        self.projections.weight = attention.in_proj_weight
        self.projections.bias = attention.in_proj_bias
        self.out = attention.out_proj

    def forward(
        self, query: torch.Tensor, key: Any = None, value: Any = None, **_: Any
    ) -> tuple[torch.Tensor, None]:
        """Attend within tokens (n, length, width); `key` and `value` are those of the query."""
        n, length, width = query.shape
        parts = self.projections(query).view(n, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(n, length, width)), None


def fuse_attention(block: nn.Module) -> None:
    """Replace the ``nn.MultiheadAttention`` of a transformer's block in place: it attends to itself alone."""
    attention = getattr(block, "attn", None)
    if (
        isinstance(attention, nn.MultiheadAttention)
        and attention.batch_first
        and attention.in_proj_weight is not None
        and attention.in_proj_bias is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
    ):
        block.attn = FusedAttention(attention)
