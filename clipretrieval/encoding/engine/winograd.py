"""3×3 convolutions with fewer products, by Winograd's minimal filtering: F(4×4) in float32, F(2×2) in bf16.

The kernels, ``winograd.c``, are built when the package is installed, where there is a C compiler. Without
them, or on another processor, the encoder uses oneDNN's convolutions.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.flop_counter import register_flop_formula

from clipretrieval.encoding.engine.instructions import WITH_BF16, may_use

__all__ = ["convolve", "is_available", "pack_weight", "suits"]

_LIBRARY = Path(__file__).with_name("_winograd.so")
_UNAVAILABLE, _NO_MEMORY = 1, 2
"""What a kernel returns where it fails; see ``winograd.c``."""
_BF16_AVX512, _FP32_AVX2, _FP32_AVX512 = range(3)
"""The kernels' numbers there."""


class _Filtering(NamedTuple):
    """F(tile × tile, 3×3) as the kernels of a type do it.

    Attributes
    ----------
    tile : int
        Side of a tile's outputs.
    multiple : int
        What the numbers of channels have to be multiples of.
    least_gain : float
        Products saved, tiles that stick out counted, below which the transforms cost more than they save.
    taps_to_tile : tensor of float64, shape (tile + 2, 3)
        G of Lavin and Gray 2016, arXiv:1509.09308, section 4.1, whose rows evaluate three taps at a point.
    """

    tile: int
    multiple: int
    least_gain: float
    taps_to_tile: torch.Tensor


def _evaluation(*points: tuple[float, float]) -> torch.Tensor:
    """Return the rows (1, p, p²) / n of pairs (p, n), and last that of infinity."""
    rows = [[1 / n, p / n, p * p / n] for p, n in points]
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)


# The points of F(4×4) are those of winograd.c; n is the product of a point's distances to the finite others.
_A, _B = 5 / 8, 3 / 2
_AT_A, _AT_B = 2 * _A**2 * (_A**2 - _B**2), 2 * _B**2 * (_B**2 - _A**2)
_FILTERINGS = {
    torch.bfloat16: _Filtering(2, 32, 1.6, _evaluation((0, 1), (1, 2), (-1, 2))),
    torch.float32: _Filtering(
        4, 16, 2.0, _evaluation((0, _A**2 * _B**2), (_A, _AT_A), (-_A, _AT_A), (_B, _AT_B), (-_B, _AT_B))
    ),
}


@functools.cache
def _library() -> ctypes.CDLL | None:
    """Load the kernels; None where they were not built, or by another release."""
    try:
        library = ctypes.CDLL(str(_LIBRARY))
        run = library.clipretrieval_winograd_2
    except (OSError, AttributeError):
        return None
    run.argtypes = [ctypes.c_int] + [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 5 + [ctypes.c_int] * 3
    run.restype = ctypes.c_int
    return library


def _pick_kernel(dtype: torch.dtype) -> int | None:
    """Return the number of the best kernel for a type, None where there is none.

    Limits that the environment sets to torch's and oneDNN's instructions hold here too.
    """
    library = _library()
    torchs, onednns = os.environ.get("ATEN_CPU_CAPABILITY", ""), os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    if library is None or torchs == "default" or onednns.upper() in ("SSE41", "AVX"):
        return None
    narrow = torchs == "avx2" or onednns.upper().startswith("AVX2")
    if dtype is torch.bfloat16:
        kernels = [_BF16_AVX512] if not narrow and may_use(*WITH_BF16) else []
    else:
        kernels = [_FP32_AVX2] if narrow else [_FP32_AVX512, _FP32_AVX2]
    return next((kernel for kernel in kernels if library.clipretrieval_winograd_runs(kernel)), None)


def is_available(dtype: torch.dtype) -> bool:
    """Whether there is a kernel for bfloat16 (on AVX512-BF16) or float32 (on AVX2 with FMA, or AVX-512)."""
    return dtype in _FILTERINGS and _pick_kernel(dtype) is not None


def suits(
    shape: tuple[int, ...],
    weight: torch.Tensor,
    padding: tuple[int, int],
    stride: tuple[int, int],
    dtype: torch.dtype,
) -> bool:
    """Whether a convolution, of one group and not dilated, can be done here and gains by it.

    Parameters
    ----------
    shape : tuple of int
        (n, channels, height, width) of its inputs.
    weight : tensor, shape (out, channels, height, width)
    padding, stride : tuple of int
    dtype : torch.dtype
        Of inputs and products.
    """
    filtering = _FILTERINGS.get(dtype)
    out, channels, *taps = weight.shape
    if filtering is None or taps != [3, 3] or padding != (1, 1) or stride != (1, 1):
        return False
    if out % filtering.multiple or channels % filtering.multiple:
        return False
    height, width = shape[2:]
    tile = filtering.tile
    products = (tile + 2) ** 2 * -(-height // tile) * -(-width // tile)
    return 9 * height * width >= filtering.least_gain * products


def pack_weight(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Transform a 3×3 convolution's weight, G g Gᵀ, and lay it out for the kernels of a type.

    Parameters
    ----------
    weight : tensor of float32, shape (out, channels, 3, 3)
    dtype : torch.dtype
        bfloat16 or float32.

    Returns
    -------
    tensor of `dtype`, shape (out / lanes, 16, channels / 2, lanes, 2) or (out / 16, 36, channels, 16)
        In bfloat16 lanes are 64 where they divide `out`, else 32, and of every 32 channels the even ones come
        first, as they do in the kernel's transformed inputs.
    """
    out, channels = weight.shape[:2]
    g = _FILTERINGS[dtype].taps_to_tile
    tiles = torch.einsum("ai,ocij,bj->abco", g, weight.double().cpu(), g).reshape(len(g) ** 2, channels, out)
    if dtype is torch.float32:
        packed = tiles.unflatten(2, (-1, 16)).permute(2, 0, 1, 3)
    else:
        lanes = 32 if out % 64 else 64
        order = torch.arange(channels).view(-1, 16, 2).transpose(1, 2).flatten()
        packed = tiles[:, order].view(16, channels // 2, 2, out // lanes, lanes).permute(3, 0, 1, 4, 2)
    found: torch.Tensor = packed.to(dtype).contiguous()
    return found


def convolve(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor, relu: bool, pool: bool
) -> torch.Tensor:
    """Convolve with stride 1 and padding 1, without a gradient.

    A NaN spreads as in the plain sum, in float32 over the rest of its tile too; an infinite input makes NaN
    of its neighbors.

    Parameters
    ----------
    x : tensor of bfloat16 or float32, shape (n, channels, height, width)
        Channels last in memory, or it is copied.
    packed : tensor of the same type
        From `pack_weight`.
    bias : tensor of float32, shape (out,)
    relu : bool
    pool : bool
        Whether to take the mean of each 2×2 outputs.

    Returns
    -------
    tensor of the type of `x`, shape (n, out, height, width)
        Channels last; height and width are halved where it pools.

    Raises
    ------
    ValueError
        If types or shapes do not belong together.
    MemoryError
        If there is no memory to work in.
    RuntimeError
        If no kernel for this type can run here; see `is_available`.
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
    library, kernel = _library(), _pick_kernel(x.dtype)
    x, packed, bias = x.contiguous(memory_format=torch.channels_last), packed.contiguous(), bias.contiguous()
    y = _empty_output(x, bias, pool)
    n, channels, height, width = x.shape
    pointers = (x.data_ptr(), packed.data_ptr(), bias.data_ptr(), y.data_ptr())
    sizes = (n, height, width, channels, len(bias))
    failed = _UNAVAILABLE
    if library is not None and kernel is not None:
        threads = torch.get_num_threads()
        failed = library.clipretrieval_winograd_2(kernel, *pointers, *sizes, relu, pool, threads)
    if failed == _NO_MEMORY:
        raise MemoryError("no memory for the blocks of a convolution; encode with a smaller batch_size")
    if failed:
        raise RuntimeError(
            "the Winograd kernel cannot run here: it needs AVX512-BF16 for bfloat16, or AVX2 for float32, "
            "and a C compiler when the package is installed; choose a plan with winograd=False"
        )
    return y


def _check(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor) -> None:
    """Refuse what would have the kernel read or write outside of the tensors."""
    types = (x.dtype, packed.dtype, bias.dtype)
    if types not in ((dtype, dtype, torch.float32) for dtype in _FILTERINGS):
        raise ValueError(
            f"inputs and weight have to be both bfloat16 or both float32, and the bias float32, not {types}"
        )
    if x.device.type != "cpu":
        raise ValueError(f"the kernels compute on the CPU, and the inputs are on {x.device}")
    if x.dim() != 4 or bias.dim() != 1 or min(x.shape[1:]) < 1:
        raise ValueError(f"expected inputs (n, c, h, w) and a bias (out,), got {x.shape} and {bias.shape}")
    channels, out, multiple = x.shape[1], len(bias), _FILTERINGS[x.dtype].multiple
    lanes = 32 if out % 64 else 64
    expected = (
        (out // 16, 36, channels, 16)
        if x.dtype is torch.float32
        else (out // lanes, 16, channels // 2, lanes, 2)
    )
    if channels % multiple or out % multiple or out == 0 or packed.shape != expected:
        raise ValueError(
            f"{channels} channels to {out}, both multiples of {multiple}, take a weight of shape {expected} "
            f"from pack_weight, not {tuple(packed.shape)}"
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
