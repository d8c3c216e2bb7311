"""The embedding of patches in bf16, without rounding a pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from clipretrieval.encoding.engine.onednn import pack_linear, packed_product
from clipretrieval.encoding.engine.patch_product import cut_patches

__all__ = ["CENTER", "BytePatches"]

CENTER = 128
"""What is taken from the pixels' bytes; bf16 has every whole number up to 256."""


class BytePatches(nn.Module):
    """A convolution of patches that takes bytes less `CENTER`, and normalizes them by its own weights.

    Normalized pixels are no bf16 numbers, and rounding them changes the vectors more than all other rounding
    of a pass; bytes are. So products can be taken in bf16, of which each rounds its weight alone, by AMX in a
    fifth of the time. Sums and what is added to them stay in float32.

    Parameters
    ----------
    convolution : nn.Conv2d
        For which `PatchProduct.fits` is true, on normalized pixels.
    mean, std : sequence of float, length 3
        By which they were normalized, on values in [0, 1].
    rows : int
        For how many patches the weights are laid out; it takes any other number too.
    """

    def __init__(
        self, convolution: nn.Conv2d, mean: Sequence[float], std: Sequence[float], rows: int
    ) -> None:
        super().__init__()
        self.side = convolution.kernel_size[0]
        weight = convolution.weight.detach().double().permute(0, 2, 3, 1)
        means, stds = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
        offset = (weight * ((CENTER / 255 - means) / stds)).sum(dim=(1, 2, 3))
        bias = offset if convolution.bias is None else offset + convolution.bias.detach()
        self.packed = pack_linear((weight / (255 * stds)).flatten(1).bfloat16(), rows)
        self.bias = nn.Parameter(bias.float(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply the patches of bytes less `CENTER`, float32 (n, channels, height, width)."""
        patches = cut_patches(x, self.side, torch.bfloat16)
        out = packed_product(patches.flatten(0, 2), self.packed, None).float() + self.bias
        return out.view(*patches.shape[:3], -1).permute(0, 3, 1, 2)
