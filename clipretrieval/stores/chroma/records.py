"""The requests that a Chroma collection is read and written with, in pieces that it accepts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipretrieval.errors import InvalidInputError, StoreCorruptedError
from clipretrieval.stores.checks import Batch
from clipretrieval.stores.chroma.client import MANIFEST_KEY, Connection
from clipretrieval.stores.chroma.errors import translated
from clipretrieval.stores.exact import row_norms, unit_rows
from clipretrieval.types import AnyArray, FloatArray, Label, Listing, Metric, Records, as_label_array

__all__ = ["ChromaRecords", "Found", "Plan", "pieces", "texts"]

# Chroma's own metadata are flat and upserts merge them: these keys are written with every record.
LABEL_KEY = "clipretrieval:label"
METADATA_KEY = "clipretrieval:metadata"
NORM_KEY = "clipretrieval:norm"

# The server refuses a body of 40 MiB.
REQUEST_BYTES = 32 << 20
# A float32 in JSON, with its comma; the keys and punctuation of a record.
VALUE_BYTES = 25
RECORD_BYTES = 160
# Ids in a request: SQLite takes 32,766 variables in a statement.
LOOKUP_IDS = 5000
# Values of vectors in an answer.
ANSWER_VALUES = 1 << 20

Plan = list[slice]


@dataclass(frozen=True, eq=False)
class Found:
    """Records as Chroma returned them, in its order.

    Attributes
    ----------
    ids : list of str, length n
    vectors : ndarray of float32, shape (n, dim)
    labels : list of int or of str, length n
    metadata : list of str, length n
        JSON text.
    """

    ids: list[str]
    vectors: FloatArray
    labels: list[Label]
    metadata: list[str]

    def packed_labels(self) -> AnyArray:
        """Return the labels as an array of int64 or of object (str)."""
        return as_label_array(self.labels)


class ChromaRecords:
    """A collection, spoken to in records.

    Parameters
    ----------
    connection : Connection
    collection : chromadb Collection
    metric : Metric
        Under the cosine metric Chroma normalises what it returns; the norms are kept beside the records.
    """

    def __init__(self, connection: Connection, collection: Any, metric: Metric) -> None:
        self._connection = connection
        self._collection = collection
        self._metric = metric
        with translated(self.where):
            self._most = int(connection.client.get_max_batch_size())

    @property
    def where(self) -> str:
        """The collection in words."""
        return self._connection.where

    def plan(self, batch: Batch) -> Plan:
        """Divide a batch into requests.

        Raises
        ------
        InvalidInputError
            If one record alone is more than a request holds.
        """
        fixed = VALUE_BYTES * batch.vectors.shape[1] + RECORD_BYTES
        texts = zip(batch.ids, batch.metadata, batch.labels.tolist(), strict=True)
        sizes = [fixed + sum(len(json.dumps(text)) for text in parts) for parts in texts]
        largest = int(np.argmax(sizes))
        if sizes[largest] > REQUEST_BYTES:
            raise InvalidInputError(
                f"the record {batch.ids[largest]!r} takes {sizes[largest]:,} bytes; a request to Chroma "
                f"holds {REQUEST_BYTES:,}. Shorten its metadata"
            )
        pieces: Plan = []
        start = size = 0
        for place, own in enumerate(sizes):
            if place > start and (size + own > REQUEST_BYTES or place - start == self._most):
                pieces.append(slice(start, place))
                start, size = place, 0
            size += own
        pieces.append(slice(start, len(sizes)))
        return pieces

    def upsert(self, batch: Batch, plan: Plan) -> None:
        """Send a batch as `plan` divided it; a failure leaves the requests before it done.

        Something must have been read from the collection before: Chroma opens its index at the first read,
        and the write after that repeats as updates all that was written before, which takes seconds for
        thousands of records and minutes for more.
        """
        # Chroma normalises in float32, where the squares of small values vanish.
        vectors = unit_rows(batch.vectors, batch.norms) if self._metric is Metric.COSINE else batch.vectors
        for piece in plan:
            with translated(self.where):
                self._collection.upsert(
                    ids=batch.ids[piece],
                    embeddings=vectors[piece],
                    metadatas=self._metadatas(batch, piece),
                )

    def delete(self, names: list[str]) -> int:
        """Delete the records of the names and return how many of them were there."""
        removed = 0
        for piece in pieces(list(dict.fromkeys(names))):
            with translated(self.where):
                there = self._collection.get(ids=piece, include=[])["ids"]
                for part in pieces(there, self._most):
                    self._collection.delete(ids=part)
                    removed += len(part)
        return removed

    def count(self) -> int:
        """Return the number of records."""
        with translated(self.where):
            return int(self._collection.count())

    def dim(self) -> int | None:
        """Return the dimension that Chroma holds the collection to, which outlasts its records."""
        with translated(self.where):
            model = self._reopened().get_model()
        return None if model.dimension is None else int(model.dimension)

    def first(self) -> Found:
        """Return one record, whichever; none if there is none."""
        with translated(self.where):
            return self._found(self._collection.get(limit=1, include=["embeddings", "metadatas"]))

    def fetch(self, names: list[str], dim: int) -> Iterator[Found]:
        """Yield the records of distinct names, those that are there, piece by piece."""
        for piece in pieces(names, max(1, min(LOOKUP_IDS, ANSWER_VALUES // dim))):
            with translated(self.where):
                found = self._collection.get(ids=piece, include=["embeddings", "metadatas"])
            if found["ids"]:
                yield self._found(found)

    def get(self, names: list[str], dim: int) -> Records:
        """Return the records of the names, in their order, without those that are not there."""
        rows: dict[str, tuple[FloatArray, Label, str]] = {}
        for found in self.fetch(list(dict.fromkeys(names)), max(1, dim)):
            parts = zip(found.vectors, found.labels, found.metadata, strict=True)
            rows.update(zip(found.ids, parts, strict=True))
        kept = [name for name in names if name in rows]
        vectors = np.empty((len(kept), dim), dtype=np.float32)
        for place, name in enumerate(kept):
            vectors[place] = rows[name][0]
        labels = as_label_array([rows[name][1] for name in kept])
        return Records(texts(kept), vectors, labels, [json.loads(rows[name][2]) for name in kept])

    def names(self, label: Label | None = None) -> list[str]:
        """Return all ids, or those of the records with one label."""
        condition = None if label is None else {LABEL_KEY: label}  # Chroma tells 1 from "1"
        with translated(self.where):
            return list(self._collection.get(where=condition, include=[])["ids"])

    def labels(self, names: list[str]) -> Listing:
        """Return the labels of those of a few names that are there."""
        with translated(self.where):
            found = self._collection.get(ids=names, include=["metadatas"])
        rows = self._checked(found)
        return Listing(texts(list(found["ids"])), as_label_array([row[LABEL_KEY] for row in rows]))

    def candidates(self, queries: FloatArray, length: int) -> Iterator[Found]:
        """Yield for each query about `length` records near it, which Chroma's graph led to."""
        if self._metric is Metric.COSINE:
            queries = unit_rows(queries, row_norms(queries))
        step = max(1, ANSWER_VALUES // (length * queries.shape[1]))
        for start in range(0, len(queries), step):
            with translated(self.where):
                answer = self._collection.query(
                    query_embeddings=queries[start : start + step],
                    n_results=length,
                    include=["embeddings", "metadatas"],
                )
            for row in range(len(answer["ids"])):
                yield self._found({key: answer[key][row] for key in ("ids", "embeddings", "metadatas")})

    def read_manifest(self) -> str:
        """Return the manifest's JSON text."""
        with translated(self.where):
            return str((self._reopened().metadata or {}).get(MANIFEST_KEY, "{}"))

    def write_manifest(self, text: str) -> None:
        """Put the manifest's JSON text into the collection's metadata, in one transaction of Chroma's."""
        with translated(self.where):
            kept = dict(self._reopened().metadata or {})
            self._collection.modify(metadata={**kept, MANIFEST_KEY: text})

    def _reopened(self) -> Any:
        """Return the collection as it is now: an object of it does not follow what others change."""
        return self._connection.client.get_collection(self._connection.collection, embedding_function=None)

    def _metadatas(self, batch: Batch, piece: slice) -> list[dict[str, Any]]:
        rows = [
            {LABEL_KEY: label, METADATA_KEY: text}
            for label, text in zip(batch.labels[piece].tolist(), batch.metadata[piece], strict=True)
        ]
        if self._metric is Metric.COSINE:
            for row, norm in zip(rows, batch.norms[piece].tolist(), strict=True):
                row[NORM_KEY] = norm
        return rows

    def _found(self, answer: dict[str, Any]) -> Found:
        ids = list(answer["ids"])
        if not ids:
            return Found([], np.empty((0, 0), dtype=np.float32), [], [])
        rows = self._checked(answer)
        vectors = np.array(answer["embeddings"], dtype=np.float32)
        if self._metric is Metric.COSINE:
            norms = np.array([row.get(NORM_KEY, 1.0) for row in rows], dtype=np.float64)
            vectors = (vectors * (norms / row_norms(vectors))[:, None]).astype(np.float32)
        return Found(ids, vectors, [row[LABEL_KEY] for row in rows], [row[METADATA_KEY] for row in rows])

    def _checked(self, answer: dict[str, Any]) -> list[dict[str, Any]]:
        """Return what is kept beside each record of an answer, refusing records that are not ours."""
        rows = [row or {} for row in answer["metadatas"]]
        for name, row in zip(answer["ids"], rows, strict=True):
            if type(row.get(LABEL_KEY)) not in (int, str) or not isinstance(row.get(METADATA_KEY), str):
                raise StoreCorruptedError(
                    f"the record {name!r} in {self.where} lacks {LABEL_KEY!r} or {METADATA_KEY!r}: something "
                    "other than ChromaStore wrote it; delete it"
                )
        return rows


def texts(names: list[str]) -> AnyArray:
    """Return an array of object that holds the names."""
    packed = np.empty(len(names), dtype=object)
    packed[:] = names
    return packed


def pieces(names: list[str], most: int = LOOKUP_IDS) -> Iterator[list[str]]:
    """Cut ids into parts that one request may hold."""
    for start in range(0, len(names), most):
        yield names[start : start + most]
