"""What decides an encoder's vectors, in a form that can be kept and compared."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["differences", "hash_tensors"]


def hash_tensors(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Hash named tensors by value, whatever device or precision holds them.

    Returns
    -------
    str
        ``"sha256:"`` and 64 hexadecimal digits over names, shapes and float32 values, in the names' order.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        values = tensor.detach().to(device="cpu", dtype=torch.float32).contiguous()
        digest.update(f"{name}:{tuple(values.shape)};".encode())
        digest.update(values.numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def differences(
    stored: Mapping[str, Any],
    given: Mapping[str, Any],
    prefix: str = "",
    words: tuple[str, str] = ("stored", "given"),
) -> list[str]:
    """Name every entry in which two fingerprints differ.

    Parameters
    ----------
    stored, given : mapping of str to JSON values
        Nested mappings are compared entry by entry.
    prefix : str
        What the entries' names begin with.
    words : (str, str)
        What the two are called.

    Returns
    -------
    list of str
        One ``"stage: stored 'mid', given 'late'"`` for each difference, what a caller chooses first; empty
        for equal fingerprints.
    """
    found: list[str] = []
    for key in sorted({*stored, *given}, key=lambda key: (key not in _CHOSEN, key)):
        old, new = stored.get(key, _ABSENT), given.get(key, _ABSENT)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{key}.", words)
        elif type(old) is not type(new) or old != new:
            found.append(f"{prefix}{key}: {words[0]} {_short(old)}, {words[1]} {_short(new)}")
    return found


_CHOSEN = ("encoder", "image_size", "pooling", "stage")
"""Entries that a caller chooses, of which weights and dimensions may be consequences."""


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


_ABSENT = _Absent()


def _short(value: Any) -> str:
    text = re.sub(r"(sha256:[0-9a-f]{12})[0-9a-f]{52}", r"\1…", repr(value))
    return text if len(text) <= 100 else f"{text[:97]}…"
