"""Vectors in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from clipretrieval.types import FloatArray
from clipretrieval.vectors.part_manifest import PartManifest
from clipretrieval.vectors.vector_block import ROWS, VectorBlock

__all__ = ["ArrayReader"]


class ArrayReader:
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

    @property
    def manifest(self) -> PartManifest | None:
        """None: an array says nothing of what made it."""
        return None

    @property
    def class_to_idx(self) -> Mapping[str, int]:
        """Empty."""
        return {}

    def blocks(self) -> Iterator[VectorBlock]:
        """Hand out the array from its beginning; see `VectorReader`."""
        for start in range(0, len(self._vectors), ROWS):
            yield VectorBlock(self._vectors[start : start + ROWS])
