"""3×3 convolutions in bf16 with fewer products, by Winograd's minimal filtering.

The kernel, ``winograd.c``, is built when the package is installed, where there is a C compiler. Without
it, or on another processor, the encoder uses oneDNN's convolutions.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.flop_counter import register_flop_formula

__all__ = ["convolve", "is_available", "pack_weight", "suits"]

_LIBRARY = Path(__file__).with_name("_winograd.so")
_UNAVAILABLE, _NO_MEMORY = 1, 2
"""What the kernel returns where it fails; see ``winograd.c``."""
_LEAST_GAIN = 1.6
"""Products saved, tiles that stick out counted, below which the transforms cost more than they save."""

# G of F(2×2, 3×3): Lavin and Gray 2016, arXiv:1509.09308, section 4.1.
_TAPS_TO_TILE = torch.tensor(
    [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]], dtype=torch.float64
)


@functools.cache
def _kernel() -> Callable[..., int] | None:
    """Load the kernel; None where it was not built, or by another release."""
    try:
        found = ctypes.CDLL(str(_LIBRARY)).clipretrieval_winograd_1
    except (OSError, AttributeError):
        return None
    found.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 5 + [ctypes.c_int] * 3
    found.restype = ctypes.c_int
    kernel: Callable[..., int] = found
    return kernel


def is_available() -> bool:
    """Whether the kernel was built and the CPU has AVX512-BF16."""
    return _kernel() is not None and bool(ctypes.CDLL(str(_LIBRARY)).clipretrieval_winograd_runs())


def suits(
    shape: tuple[int, ...], weight: torch.Tensor, padding: tuple[int, int], stride: tuple[int, int]
) -> bool:
    """Whether a convolution, of one group and not dilated, can be done here and gains by it.

    Parameters
    ----------
    shape : tuple of int
        (n, channels, height, width) of its inputs.
    weight : tensor, shape (out, channels, height, width)
    padding, stride : tuple of int
    """
    out, channels, *taps = weight.shape
    if taps != [3, 3] or padding != (1, 1) or stride != (1, 1) or out % 32 or channels % 32:
        return False
    height, width = shape[2:]
    products = 16 * ((height + 1) // 2) * ((width + 1) // 2)
    return 9 * height * width >= _LEAST_GAIN * products


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """Transform a 3×3 convolution's weight, G g Gᵀ, and lay it out for the kernel.

    Parameters
    ----------
    weight : tensor of float32, shape (out, channels, 3, 3)

    Returns
    -------
    tensor of bfloat16, shape (out / lanes, 16, channels / 2, lanes, 2)
        Lanes are 64 where they divide `out`, else 32. Of every 32 channels the even ones come first, as they
        do in the kernel's transformed inputs.
    """
    out, channels = weight.shape[:2]
    lanes = 32 if out % 64 else 64
    tiles = torch.einsum("ai,ocij,bj->abco", _TAPS_TO_TILE, weight.double().cpu(), _TAPS_TO_TILE)
    order = torch.arange(channels).view(-1, 16, 2).transpose(1, 2).flatten()
    ordered = tiles.reshape(16, channels, out)[:, order]
    packed = ordered.view(16, channels // 2, 2, out // lanes, lanes).permute(3, 0, 1, 4, 2)
    return packed.to(torch.bfloat16).contiguous()


def convolve(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor, relu: bool, pool: bool
) -> torch.Tensor:
    """Convolve with stride 1 and padding 1, without a gradient.

    A NaN spreads as in the plain sum; an infinite input makes NaN of its neighbors.

    Parameters
    ----------
    x : tensor of bfloat16, shape (n, channels, height, width)
        Channels last in memory, or it is copied.
    packed : tensor of bfloat16
        From `pack_weight`.
    bias : tensor of float32, shape (out,)
    relu : bool
    pool : bool
        Whether to take the mean of each 2×2 outputs.

    Returns
    -------
    tensor of bfloat16, shape (n, out, height, width)
        Channels last; height and width are halved where it pools.

    Raises
    ------
    ValueError
        If types or shapes do not belong together.
    MemoryError
        If there is no memory to work in.
    RuntimeError
        If the kernel cannot run here; see `is_available`.
    """
    # The operator's first call loads torch._dynamo, which takes almost as long as torch itself.
    watched = torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None
    run = _convolve if watched else _run_kernel
    found: torch.Tensor = run(x.detach(), packed, bias, relu, pool)
    return found


# As an operator of torch's, so that inductor and what counts operations see it.
@torch.library.custom_op(
    "clipretrieval::winograd_convolution",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor packed, Tensor bias, bool relu, bool pool) -> Tensor",
)
def _convolve(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor, relu: bool, pool: bool
) -> torch.Tensor:
    return _run_kernel(x, packed, bias, relu, pool)


def _run_kernel(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor, relu: bool, pool: bool
) -> torch.Tensor:
    _check(x, packed, bias)
    kernel = _kernel()
    x, packed, bias = x.contiguous(memory_format=torch.channels_last), packed.contiguous(), bias.contiguous()
    y = _empty_output(x, bias, pool)
    n, channels, height, width = x.shape
    pointers = (x.data_ptr(), packed.data_ptr(), bias.data_ptr(), y.data_ptr())
    sizes = (n, height, width, channels, len(bias))
    failed = (
        _UNAVAILABLE if kernel is None else kernel(*pointers, *sizes, relu, pool, torch.get_num_threads())
    )
    if failed == _NO_MEMORY:
        raise MemoryError("no memory for the blocks of a convolution; encode with a smaller batch_size")
    if failed:
        raise RuntimeError(
            "the Winograd kernel cannot run here: it needs AVX512-BF16, and a C compiler when the package is "
            "installed; choose a plan with winograd=False"
        )
    return y


def _check(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor) -> None:
    """Refuse what would have the kernel read or write outside of the tensors."""
    types = (x.dtype, packed.dtype, bias.dtype)
    if types != (torch.bfloat16, torch.bfloat16, torch.float32):
        raise ValueError(f"inputs and weight have to be bfloat16 and the bias float32, not {types}")
    if x.dim() != 4 or bias.dim() != 1 or min(x.shape[1:]) < 1:
        raise ValueError(f"expected inputs (n, c, h, w) and a bias (out,), got {x.shape} and {bias.shape}")
    channels, out = x.shape[1], len(bias)
    lanes = 32 if out % 64 else 64
    expected = (out // lanes, 16, channels // 2, lanes, 2)
    if channels % 32 or out % 32 or packed.shape != expected:
        raise ValueError(
            f"{channels} channels to {out}, both multiples of 32, take a weight of shape {expected} from "
            f"pack_weight, not {tuple(packed.shape)}"
        )


@_convolve.register_fake
def _allocate(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor, relu: bool, pool: bool
) -> torch.Tensor:
    return _empty_output(x, bias, pool)


def _empty_output(x: torch.Tensor, bias: torch.Tensor, pool: bool) -> torch.Tensor:
    n, _, height, width = x.shape
    shape = (n, len(bias), height // 2, width // 2) if pool else (n, len(bias), height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@register_flop_formula(torch.ops.clipretrieval.winograd_convolution)
def _count_flops(
    x: torch.Size, packed: torch.Size, bias: torch.Size, *options: bool, out_shape: torch.Size, **_: object
) -> int:
    """Count the plain sum's products and additions, as torch does for convolutions by any algorithm."""
    n, channels, height, width = x
    return 2 * 9 * n * height * width * channels * bias[0]
