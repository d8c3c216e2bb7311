"""Vectors of a test set, computed once and read again by each classifier that is compared."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from clipretrieval.encoding.base import EncodedBatch
from clipretrieval.types import FloatArray

__all__ = ["Spool"]

_ROWS = 1024


class Spool:
    """Encoded batches whose vectors lie in temporary files, one a stage; closing removes them.

    Parameters
    ----------
    stages : sequence of str
    """

    def __init__(self, stages: tuple[str, ...]) -> None:
        self.stages = stages
        self._files: dict[str, Any] = {stage: tempfile.TemporaryFile() for stage in stages}  # noqa: SIM115
        self._dims: dict[str, int] = {}
        self.ids: list[str] = []
        self.labels: list[Any] = []
        self.sources: list[str | None] = []
        self.indices: list[int] = []

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, batch: EncodedBatch) -> None:
        """Keep a batch."""
        if not len(batch):
            return
        for stage, file in self._files.items():
            vectors = np.ascontiguousarray(batch.vectors[stage], dtype=np.float32)
            self._dims[stage] = vectors.shape[1]
            file.write(vectors.tobytes())
        self.ids += batch.ids
        self.labels += batch.labels
        self.sources += batch.sources
        self.indices += batch.indices

    def vectors(self, stage: str) -> FloatArray:
        """Return all vectors of one stage, shape (n, dim), as they lie in their file."""
        file, dim = self._files[stage], self._dims[stage]
        file.flush()
        return np.memmap(file, dtype=np.float32, mode="r", shape=(len(self), dim))

    def batches(self, stage: str) -> Iterator[EncodedBatch]:
        """Yield what was kept, with the vectors of one stage."""
        vectors = self.vectors(stage)
        for start in range(0, len(self), _ROWS):
            rows = slice(start, start + _ROWS)
            yield EncodedBatch(
                ids=self.ids[rows],
                vectors={stage: np.array(vectors[rows])},
                labels=self.labels[rows],
                sources=self.sources[rows],
                indices=self.indices[rows],
            )

    def close(self) -> None:
        """Remove the files."""
        for file in self._files.values():
            file.close()
