"""A linear layer with its weight laid out for oneDNN."""

from __future__ import annotations

import torch
from torch import nn

from clipretrieval.encoding.engine.onednn import pack_linear, packed_product

__all__ = ["PackedLinear"]


class PackedLinear(nn.Module):
    """A linear layer whose weight is laid out beforehand; its plain weight serves who reads that.

    Parameters
    ----------
    linear : nn.Linear
        Whose weight has the type to compute in.
    rows : int
        For how many rows of inputs it is laid out; it takes any other number too.
    """

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        dtype = self.weight.dtype
        self.packed = pack_linear(self.weight.detach(), rows)
        self.packed_bias = None if self.bias is None else self.bias.detach().to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        return packed_product(x.to(self.weight.dtype), self.packed, self.packed_bias)
