"""Instructions that this CPU has, and that the environment lets oneDNN use: no torch."""

from __future__ import annotations

import os
import platform
from pathlib import Path

__all__ = ["WITH_BF16", "WITH_VNNI", "may_use", "multiplies_bytes"]

WITH_BF16 = ("BF16", "FP16", "AMX", "AVX10")
"""Parts of oneDNN's names for sets of instructions that have those for bf16."""
WITH_VNNI = ("VNNI", *WITH_BF16)
"""And of those that have the instructions for 8 bits."""


def may_use(*names: str) -> bool:
    """Whether ``ONEDNN_MAX_CPU_ISA`` sets no limit, or one whose name has one of these parts."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return limit in ("", "ALL", "DEFAULT") or any(name in limit for name in names)


def multiplies_bytes() -> bool:
    """Whether sums of products of 8-bit numbers are right on this CPU.

    On x86 without instructions for them (VNNI) pairs of products are added up in 16 bits, which overflow, by
    ONNX Runtime and by oneDNN. What does not tell its instructions is taken for such a one.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return True
    try:
        known = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return False
    return bool(known & {"avx_vnni", "avx512_vnni"})
