"""Decide how the encoder runs on the machine at hand."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import torch

from clipretrieval._util.checks import check_choice, shown
from clipretrieval._util.warning import warn_caller
from clipretrieval.encoding.engine import onednn, winograd
from clipretrieval.encoding.stages import Architecture
from clipretrieval.errors import InvalidInputError

__all__ = ["PRECISIONS", "InferencePlan", "make_plan", "pick_device"]

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_CACHED_WORK = 4 * 224 * 224 * 64
"""Images × pixels × width that keep a block's activations in a core's cache: RN50 by fours."""
_MOST_STREAMS = 16


@dataclass(frozen=True)
class InferencePlan:
    """How the encoder runs; none of it changes what the vectors mean.

    Attributes
    ----------
    device : str
    precision : {"fp32", "bf16", "fp16"}
        Of weights and activations. Poolings and softmax are in float32 always.
    inner_batch : int
        Images that go through the encoder together, whatever the caller's batch.
    streams : int
        Inner batches that run side by side, each on `threads` cores of its own.
    threads : int
        Cores of each stream.
    kernels : {"onednn", "torch"}
        ``"onednn"``: convolutions with addition and ReLU fused into them, weights laid out beforehand.
    compiled : bool
        Whether inductor compiles the encoder at its first use.
    winograd : bool
        Whether 3×3 convolutions take fewer products, by Winograd's minimal filtering.
    """

    device: str
    precision: str
    inner_batch: int
    streams: int
    threads: int
    kernels: str
    compiled: bool
    winograd: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The torch type of weights and activations."""
        return _DTYPES[self.precision]

    @property
    def edge_dtype(self) -> torch.dtype:
        """The torch type of the encoder's two ends, the first convolution and the attention pool.

        Never bf16: rounding the pixels would change the vectors more than any other rounding, and rounding
        in the pool those of ``final`` by half as much again. Together they are under 1 % of the work.
        """
        return torch.float32 if self.precision == "bf16" else self.dtype

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.precision} on {self.device}, {self.streams} × {self.inner_batch} images at a time, "
            f"{'compiled' if self.compiled else self.kernels} kernels{', Winograd' if self.winograd else ''}"
        )


def pick_device(device: str) -> torch.device:
    """Return the device called `device`; ``"auto"`` is CUDA, then MPS, then the CPU.

    Raises
    ------
    InvalidInputError
        If it does not exist or cannot be used.
    """
    if not isinstance(device, str | torch.device):
        raise InvalidInputError(f"device must be a name such as 'cpu' or 'cuda:0'; got {shown(device)}")
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.zeros(1, device=picked).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise InvalidInputError(f"device {shown(device)} cannot be used here: {reason}") from error
    # There is one CPU, whatever its number.
    return torch.device("cpu") if picked.type == "cpu" else picked


def make_plan(
    device: torch.device,
    precision: str,
    architecture: Architecture,
    image_size: int,
    batch_size: int,
    compiled: bool,
) -> InferencePlan:
    """Choose precision, batch and kernels for a device.

    Raises
    ------
    InvalidInputError
        If the precision is unknown, or is not for this device.
    """
    chosen = _choose_precision(device, precision)
    if device.type != "cpu":
        return InferencePlan(str(device), chosen, batch_size, 1, 1, "torch", compiled)
    cores = torch.get_num_threads()
    streams = min(cores, _MOST_STREAMS)
    fitting = _CACHED_WORK // (image_size * image_size * architecture.width)
    inner = max(1, min(batch_size, fitting))
    fused = not compiled and onednn.can_fuse(_DTYPES[chosen])
    return InferencePlan(
        str(device),
        chosen,
        inner,
        streams,
        max(1, cores // streams),
        "onednn" if fused else "torch",
        compiled,
        winograd=chosen == "bf16" and _gains_by_winograd(),
    )


def _choose_precision(device: torch.device, precision: str) -> str:
    check_choice(precision, "precision", PRECISIONS)
    if device.type == "cpu" and precision == "fp16":
        raise InvalidInputError("precision='fp16' is for GPUs; on a CPU choose 'bf16', 'fp32' or 'auto'")
    if precision != "auto":
        if device.type == "cpu" and precision == "bf16" and not _has_fast_bf16():
            warn_caller("this CPU has no bf16 instructions: precision='bf16' will be slower than 'fp32'")
        return precision
    if device.type == "cuda":
        # Half precision has the finer steps; bf16 is for cards before it had fast units.
        return "fp16" if torch.cuda.get_device_capability(device) >= (7, 0) else "fp32"
    if device.type == "cpu" and _has_fast_bf16():
        return "bf16"
    return "fp32"


def _has_fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 by instructions of its own (AVX512-BF16 or AMX)."""
    if os.environ.get("ATEN_CPU_CAPABILITY") in ("default", "avx2"):
        return False
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()) or _has_amx()


def _has_amx() -> bool:
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def _gains_by_winograd() -> bool:
    """Whether the kernel runs and oneDNN has nothing better: AMX multiplies several times as fast."""
    return _has_fast_bf16() and not _has_amx() and winograd.is_available()
