"""Torch's private operators of oneDNN: fused convolutions, and products with weights laid out beforehand."""

from __future__ import annotations

from typing import TypeAlias

import torch

from clipretrieval.encoding.workers import torch_alone

__all__ = [
    *("Pair", "can_fuse", "can_pack", "fused_convolution", "pack_linear", "packed_product"),
    "reorder_weight",
]

Pair: TypeAlias = tuple[int, int]


@torch_alone()
def can_fuse(dtype: torch.dtype) -> bool:
    """Whether the fused convolutions, which inductor uses too, work here."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        x = torch.ones(1, 4, 4, 4, dtype=dtype).contiguous(memory_format=torch.channels_last)
        weight = torch.ones(4, 4, 1, 1, dtype=dtype)
        bias = torch.zeros(4, dtype=dtype)
        with torch.inference_mode():
            packed = reorder_weight(weight, (0, 0), (1, 1), x.shape)
            out = fused_convolution(x, packed, bias, (0, 0), (1, 1), relu=True, residual=x.clone())
            plain = fused_convolution(x, packed, bias.float(), (0, 0), (1, 1), relu=True, residual=None)
        return bool((out == 5).all() and (plain == 4).all())
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        # Private operators: gone or changed in another release of torch, the public ones serve.
        return False


@torch_alone()
def can_pack(dtype: torch.dtype) -> bool:
    """Whether products with packed weights work here, and gain: those in bf16 take a quarter less time."""
    if dtype is not torch.bfloat16 or not torch.backends.mkldnn.is_available():
        return False
    try:
        x, weight = torch.ones(2, 3, 4, dtype=dtype), torch.ones(5, 4, dtype=dtype)
        with torch.inference_mode():
            packed = pack_linear(weight, 6)
            out = packed_product(x, packed, torch.ones(5, dtype=dtype))
            plain = packed_product(x[0], packed, None)
        return bool((out == 5).all() and (plain == 4).all()) and out.shape == (2, 3, 5)
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False


def pack_linear(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """Lay a linear layer's weight out as oneDNN wants it for so many rows, and for any other number."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return packed


def packed_product(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply rows by a packed weight."""
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return out


def reorder_weight(weight: torch.Tensor, padding: Pair, stride: Pair, shape: tuple[int, ...]) -> torch.Tensor:
    """Lay a convolution's weight out as oneDNN wants it for inputs of `shape`."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        weight, padding, stride, (1, 1), 1, list(shape)
    )
    return packed


def fused_convolution(
    x: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor,
    padding: Pair,
    stride: Pair,
    *,
    relu: bool,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    """Convolve, add and rectify in one oneDNN call; a `residual` is overwritten by the result."""
    after = "relu" if relu else "none"
    shared = (packed, bias, padding, stride, (1, 1), 1)
    out: torch.Tensor
    if residual is None:
        out = torch.ops.mkldnn._convolution_pointwise(x, *shared, after, [], "")
    else:
        out = torch.ops.mkldnn._convolution_pointwise_.binary(
            residual, x, *shared, "add", 1.0, "relu" if relu else None, [], ""
        )
    return out
