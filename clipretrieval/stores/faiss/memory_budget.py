"""How much memory an index of inverted lists takes, and which codes keep it within a bound."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from clipretrieval._util.checks import shown
from clipretrieval.errors import InvalidInputError

__all__ = ["OWN_BYTES", "MemoryBudget", "check_memory", "most_trained_with"]

OWN_BYTES = 600_000_000
"""What a store takes beside its index: records that are not written yet, and blocks of vectors."""
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_MOST = 1 << 56
# FAISS uses no more vectors for a centroid of codes; for one of a list so many are enough.
LIST_SAMPLE, CODE_SAMPLE = 64, 256
# FAISS's lists double where they are full, so that they take half as much again on average.
_ROOM = 1.5
# Vectors to train with are held by us, and by FAISS as residuals from their centroids.
_COPIES = 2


def most_trained_with(lists: int, centroids: int = 0) -> int:
    """Return how many vectors an index is trained with at most.

    Parameters
    ----------
    lists : int
    centroids : int
        Of its codes.
    """
    return max(LIST_SAMPLE * lists, CODE_SAMPLE * centroids, 1 << 16)


@dataclass(frozen=True)
class MemoryBudget:
    """A bound on the memory of an index of inverted lists.

    Parameters
    ----------
    size : int
        In bytes.
    dim : int
        Of the vectors.
    """

    size: int
    dim: int

    @property
    def codes(self) -> Mapping[str, int]:
        """The bytes of a vector's code by the codes' names, finest first."""
        scalar = {f"SQ{bits}": -(-bits * self.dim // 8) for bits in (8, 6, 4)}
        parts = [self.dim // share for share in (4, 8, 16, 32) if self.dim % share == 0]
        return {**scalar, **{f"PQ{count}": count for count in parts}}

    def least(self, count: int, lists: int, codes: str) -> int:
        """Return the bytes that it takes to build an index of `count` vectors and to search it."""
        values = 4 * self.dim
        held = _ROOM * count * (self.codes[codes] + 8)
        trained = _COPIES * values * min(count, most_trained_with(lists))
        return int(OWN_BYTES + values * lists + max(held, trained))

    def holds(self, factory: str, count: int) -> bool:
        """Tell whether an index that was chosen for fewer vectors may have so many."""
        found = re.fullmatch(r"IVF(\d+),(\w+)", factory)
        return (
            found is None
            or found[2] not in self.codes
            or (self.least(count, int(found[1]), found[2]) <= self.size)
        )


def check_memory(value: Any) -> int:
    """Return a number of bytes, given as one or with a unit: ``"4 GB"``, ``"512 MiB"``.

    Raises
    ------
    InvalidInputError
        If it is neither, or less than a store takes for itself.
    """
    number: float | None = None
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]*)\s*", value, re.ASCII)
        if found is not None and found[2].upper() in _UNITS:
            number = float(found[1]) * _UNITS[found[2].upper()]
    elif isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)
    if number is None or number > _MOST:
        raise InvalidInputError(
            f'memory must be an int of bytes up to {_MOST}, or a number with a unit such as "4 GB"; found '
            f"{shown(value)}"
        )
    if number < OWN_BYTES:
        raise InvalidInputError(
            f"memory={shown(value)} is less than the {OWN_BYTES // 10**6} MB that a store takes beside its "
            "index; give more, and a unit: a number alone is one of bytes"
        )
    return int(number)
