"""Some vectors of a file, with what it says of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clipretrieval.types import FloatArray

__all__ = ["ROWS", "VectorBlock"]

ROWS = 2048
"""Vectors that are read, or written, together."""


@dataclass(frozen=True, eq=False)
class VectorBlock:
    """Some vectors of a file, in its order.

    Attributes
    ----------
    vectors : ndarray of float32, shape (n, dim)
        As they are there: they may not be finite.
    ids : sequence of str, length n, or None
    labels : sequence, length n, or None
    sources : sequence of (str or None), length n, or None
        The images' paths.
    metadata : sequence of dict, length n, or None
        What else is kept of each, as JSON values.
    """

    vectors: FloatArray
    ids: Sequence[Any] | None = None
    labels: Sequence[Any] | None = None
    sources: Sequence[str | None] | None = None
    metadata: Sequence[dict[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self.vectors)
