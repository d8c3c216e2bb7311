"""Decide how the encoder runs on the machine at hand."""

from __future__ import annotations

import os

import torch

from clipretrieval._util.checks import check_choice, shown
from clipretrieval._util.warning import warn_caller
from clipretrieval.encoding.engine import onednn, winograd
from clipretrieval.encoding.engine.inference_plan import DTYPES, MOST_STREAMS, PRECISIONS, InferencePlan
from clipretrieval.encoding.engine.instructions import WITH_BF16, may_use
from clipretrieval.errors import InvalidInputError

__all__ = ["make_plan", "pick_device"]


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
    batch_size: int,
    compiled: bool,
    *,
    fitting: int,
    convolves: bool,
) -> InferencePlan:
    """Choose precision, batch and kernels for a device.

    Parameters
    ----------
    fitting : int
        Images whose activations stay in a core's cache.
    convolves : bool
        Whether the encoder is one of CLIP's ResNets, for whose convolutions there are kernels.

    Raises
    ------
    InvalidInputError
        If the precision is unknown, or is not for this device.
    """
    chosen = _choose_precision(device, precision)
    if device.type != "cpu":
        return InferencePlan(str(device), chosen, batch_size, 1, 1, "torch", compiled)
    cores = torch.get_num_threads()
    streams = min(cores, MOST_STREAMS)
    inner = max(1, min(batch_size, fitting))
    dtype = getattr(torch, DTYPES[chosen])
    fused = not compiled and (onednn.can_fuse(dtype) if convolves else onednn.can_pack(dtype))
    return InferencePlan(
        str(device),
        chosen,
        inner,
        streams,
        max(1, cores // streams),
        "onednn" if fused else "torch",
        compiled,
        winograd=convolves and _gains_by_winograd(dtype),
    )


def _choose_precision(device: torch.device, precision: str) -> str:
    check_choice(precision, "precision", PRECISIONS)
    if device.type == "cpu" and precision == "fp16":
        raise InvalidInputError("precision='fp16' is for GPUs; on a CPU choose 'bf16', 'fp32' or 'auto'")
    if precision != "auto":
        if device.type == "cpu" and precision == "bf16" and not _has_fast_bf16():
            warn_caller(
                "this CPU has no bf16 instructions, or may not use them: precision='bf16' will be slower "
                "than 'fp32'"
            )
        return precision
    if device.type == "cuda":
        # Half precision has the finer steps; bf16 is for cards before it had fast units.
        return "fp16" if torch.cuda.get_device_capability(device) >= (7, 0) else "fp32"
    if device.type == "cpu" and _has_fast_bf16():
        return "bf16"
    return "fp32"


def _has_fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 by instructions of its own (AVX512-BF16 or AMX), and may."""
    if os.environ.get("ATEN_CPU_CAPABILITY") in ("default", "avx2") or not may_use(*WITH_BF16):
        return False
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()) or _has_amx()


def _has_amx() -> bool:
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)()) and may_use("AMX")


def _gains_by_winograd(dtype: torch.dtype) -> bool:
    """Whether there is a kernel and oneDNN has nothing better: AMX multiplies bf16 several times as fast."""
    return winograd.is_available(dtype) and not (dtype is torch.bfloat16 and _has_amx())
