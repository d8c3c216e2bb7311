"""Vectors of a test set, computed once and read again by each classifier that is compared."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from clipretrieval.encoding.base import EncodedBatch
from clipretrieval.encoding.staged_encoder import StagedEncoder
from clipretrieval.stores.base import VectorStore
from clipretrieval.types import FloatArray, Neighbors

__all__ = ["Remembering", "Replay", "Spool"]

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

    def batches(self, stage: str) -> Iterator[EncodedBatch]:
        """Yield what was kept, with the vectors of one stage."""
        file, dim = self._files[stage], self._dims[stage]
        file.flush()
        vectors = np.memmap(file, dtype=np.float32, mode="r", shape=(len(self), dim))
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


class Replay:
    """An encoder that has seen its pictures already: it yields what a spool holds, whatever it is given.

    Parameters
    ----------
    encoder : StagedEncoder
        Whose every other attribute it has.
    spool : Spool
    """

    def __init__(self, encoder: StagedEncoder, spool: Spool) -> None:
        self._encoder, self._spool = encoder, spool

    def stream(self, images: Any, labels: Any = None, **_: Any) -> Iterator[EncodedBatch]:
        """Yield the spool's batches."""
        return self._spool.batches(self._encoder.stage)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)


class Remembering:
    """A store that answers the same queries from memory, so that many settings need one search.

    The nearest k of more neighbours are the first of them, as in `RetrievalClassifier.sweep`.

    Parameters
    ----------
    store : VectorStore
    most : int
        Neighbours that are looked up, whatever fewer are asked for.
    """

    def __init__(self, store: VectorStore, most: int) -> None:
        self._store, self._most = store, most
        self._found: dict[bytes, Neighbors] = {}

    def search(self, vectors: FloatArray, k: int) -> Neighbors:
        """Look queries up once."""
        if k > self._most:
            return self._store.search(vectors, k)
        key = hashlib.blake2b(np.ascontiguousarray(vectors).tobytes(), digest_size=16).digest()
        if key not in self._found:
            self._found[key] = self._store.search(vectors, self._most)
        near = self._found[key]
        return Neighbors(near.ids[:, :k], near.distances[:, :k], near.labels[:, :k])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)
