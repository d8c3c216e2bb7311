"""Vectors in memory."""

from __future__ import annotations

from collections.abc import Iterator

from clipretrieval.types import FloatArray
from clipretrieval.vectors.vector_block import ROWS, VectorBlock
from clipretrieval.vectors.vector_reader import VectorReader

__all__ = ["ArrayReader"]


class ArrayReader(VectorReader):
    """Hands out an array of vectors a block at a time.

    Parameters
    ----------
    vectors : ndarray of float32, shape (n, dim)
    """

    def __init__(self, vectors: FloatArray) -> None:
        self._vectors = vectors

    @property
    def name(self) -> str:
        """What errors call it."""
        return "vectors"

    @property
    def dim(self) -> int:
        """The vectors' dimension."""
        return int(self._vectors.shape[1])

    @property
    def count(self) -> int | None:
        """Number of vectors."""
        return len(self._vectors)

    def blocks(self) -> Iterator[VectorBlock]:
        """Hand out the array from its beginning; see `VectorReader`."""
        for start in range(0, len(self._vectors), ROWS):
            yield VectorBlock(self._vectors[start : start + ROWS])
