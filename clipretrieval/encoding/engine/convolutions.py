"""Convolutions rebuilt for inference, each by the fastest kernel that the plan allows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from clipretrieval.encoding.engine import onednn, winograd
from clipretrieval.encoding.engine.inference_plan import InferencePlan

__all__ = ["Convolution", "round_taps"]

NORM_EPSILON = 1e-5
"""What batch norms add to the variance: torch's default, which CLIP keeps to."""


class Convolution(nn.Module):
    """A convolution with its batch norm folded in, the residual added, and ReLU.

    Parameters
    ----------
    tensors : mapping of str to tensor
        Those of an encoder, in float32.
    convolution : str
        Names its weight, of 3×3 or 1×1 taps.
    norm : str
        Names its batch norm, whose statistics and affine map go into weight and bias: w' = w·γ/√(σ²+ε),
        b' = β − μ·γ/√(σ²+ε).
    shape : tuple of int
        (n, channels, height, width) of the inputs to come; fused weights are laid out for it.
    dtype : torch.dtype, optional
        Of weights and inputs, if not the plan's.
    stride : int
    residual : bool
        Whether `forward` will be given one.
    pool : int
        Side of the average pool behind it; 1 is none.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        convolution: str,
        norm: str,
        relu: bool,
        plan: InferencePlan,
        shape: tuple[int, ...],
        *,
        dtype: torch.dtype | None = None,
        residual: bool = False,
        stride: int = 1,
        pool: int = 1,
    ) -> None:
        super().__init__()
        weight = tensors[f"{convolution}.weight"]
        mean, variance, scale, shift = (
            tensors[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        fused, bias = fuse_conv_bn_weights(weight, None, mean, variance, NORM_EPSILON, scale, shift)
        self.relu, self.pool = relu, pool
        self.stride: onednn.Pair = (stride, stride)
        self.padding: onednn.Pair = (weight.shape[2] // 2, weight.shape[3] // 2)
        dtype = dtype or plan.dtype
        suited = winograd.suits(shape, fused, self.padding, self.stride, dtype)
        self.winograd = plan.winograd and suited and not residual and pool <= 2
        self.fused = plan.kernels == "onednn" and not self.winograd
        if self.winograd:
            weight = winograd.pack_weight(fused.detach(), dtype)
        else:
            rounded = round_taps(fused.detach(), dtype)
            weight = rounded.to(plan.device).contiguous(memory_format=torch.channels_last)
        if self.fused:
            weight = onednn.reorder_weight(weight, self.padding, self.stride, shape)
        self.register_buffer("weight", weight, persistent=False)
        # oneDNN adds a float32 bias to bf16 products, but not where it adds a residual too.
        exact = self.winograd or (self.fused and not residual)
        self.register_buffer(
            "bias", bias.detach().to(plan.device, torch.float32 if exact else dtype), persistent=False
        )

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Convolve (n, c, h, w); `residual`, of the output's shape, may be overwritten."""
        if self.winograd:
            return winograd.convolve(x, self.weight, self.bias, relu=self.relu, pool=self.pool == 2)
        if self.fused:
            y = onednn.fused_convolution(
                x, self.weight, self.bias, self.padding, self.stride, relu=self.relu, residual=residual
            )
        else:
            y = functional.conv2d(x, self.weight, self.bias, self.stride, self.padding)
            y = y if residual is None else y + residual
            y = functional.relu(y) if self.relu else y
        return functional.avg_pool2d(y, self.pool) if self.pool > 1 else y


def round_taps(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round a convolution's weight so that the errors of each kernel's taps cancel.

    What a tap loses in rounding is added to the next one before it is rounded (error diffusion). Neighboring
    pixels are alike, so it is the sum over the taps that counts: rounding 3×3 kernels to bf16 in this way
    changes the vectors half as much as rounding each tap on its own.

    Parameters
    ----------
    weight : tensor of float32, shape (out, in, height, width)

    Returns
    -------
    tensor of `dtype`, same shape
        The taps of each kernel sum up to what they did, to within one rounding.
    """
    if dtype is weight.dtype:
        return weight
    taps = weight.flatten(2)
    rounded = torch.empty_like(taps, dtype=dtype)
    lost = torch.zeros_like(taps[..., 0])
    for tap in range(taps.shape[-1]):
        wanted = taps[..., tap] + lost
        rounded[..., tap] = wanted
        lost = wanted - rounded[..., tap].to(weight.dtype)
    return rounded.view(weight.shape)
