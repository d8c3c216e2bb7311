"""What decides a tower's vectors and is in none of its tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn

__all__ = ["hash_wiring"]

_ATTRIBUTES = (
    *("num_heads", "window_size", "shift_size", "rotate_half", "normalize_coords"),
    *("kernel_size", "stride", "padding", "dilation", "groups", "ceil_mode", "count_include_pad"),
    *("eps", "approximate", "negative_slope", "output_size"),
    *("pool_type", "global_pool", "pool_include_prefix", "attn_pool_type", "final_ln_after_pool"),
)
"""What of a module is hashed. A list, so that an attribute which a later release of a library adds changes
no fingerprint."""
_SILENT = ("Identity", "Sequential", "ModuleList", "Drop", "PatchDropout", "StochasticDepth")
"""How the names of classes begin that do nothing to vectors at inference."""


def hash_wiring(tower: nn.Module, later: Collection[str]) -> str:
    """Hash the classes and settings of the modules that run.

    Two towers with the same tensors and the same hash return the same vectors; see also
    `clipretrieval.encoding.fingerprint.hash_tensors`.

    Parameters
    ----------
    tower : nn.Module
    later : collection of str
        How the names of modules begin that do not run.

    Returns
    -------
    str
        ``"sha256:"`` and 16 hexadecimal digits.
    """
    text = json.dumps(list(_running(tower, later)))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _running(tower: nn.Module, later: Collection[str]) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    for path, module in tower.named_modules():
        place = f"{path}." if path else ""
        kind = type(module).__name__
        if kind.startswith(_SILENT) or any(place.startswith(each) for each in later):
            continue
        # What holds modules that do not run is told by those in it that do.
        if any(each.startswith(place) for each in later):
            continue
        yield path, kind, [(name, _shown(vars(module)[name])) for name in _ATTRIBUTES if name in vars(module)]


def _shown(value: Any) -> str:
    return repr(tuple(value) if isinstance(value, list | tuple) else value)
