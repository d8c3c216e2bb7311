"""A Chroma collection, read and written in records, by requests of a size that it accepts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from chromadb.errors import NotFoundError

from clipretrieval.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    StoreCorruptedError,
    StoreUnavailableError,
)
from clipretrieval.stores.checks import Batch
from clipretrieval.stores.chroma.client import Connection
from clipretrieval.stores.chroma.errors import translated
from clipretrieval.stores.chroma.index import NEVER, ChromaIndex
from clipretrieval.stores.exact import row_norms, unit_rows
from clipretrieval.types import AnyArray, FloatArray, Label, Listing, Metric, Records, as_label_array

__all__ = ["FORMAT_KEY", "ChromaRecords", "Found", "id_chunks"]

# Of the collection's metadata.
FORMAT_KEY = "clipretrieval:format"
FORMAT_VERSION = 1
MANIFEST_KEY = "clipretrieval:manifest"
# Chroma's own metadata are flat and upserts merge them: these keys are written with every record.
LABEL_KEY = "clipretrieval:label"
METADATA_KEY = "clipretrieval:metadata"
NORM_KEY = "clipretrieval:norm"

# Denser than Chroma's default (100, 16, 100) and searched more widely: of 10,000 Gaussian vectors of 512
# dimensions it finds 99 of 100 neighbors, where the default of 5,000 finds 89, and takes a fourth longer.
GRAPH = {"ef_construction": 100, "max_neighbors": 32, "ef_search": 300}

# The server refuses a body of 40 MiB.
REQUEST_BYTES = 32 << 20
# A float32 in JSON, with its comma; the keys and punctuation of a record.
VALUE_BYTES = 25
RECORD_BYTES = 160
# Ids in a request: SQLite takes 32,766 variables in a statement.
LOOKUP_IDS = 5000
# Values of vectors in an answer.
ANSWER_VALUES = 1 << 20


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


class ChromaRecords:
    """The records of a collection, which is opened, or made if it is not there and may be made.

    Parameters
    ----------
    connection : Connection
    metric : Metric
        Under the cosine metric Chroma normalizes what it returns; the norms are kept beside the records.
    create : bool

    Raises
    ------
    FingerprintMismatchError
        If the collection is there with another metric.
    InvalidInputError
        If it is there and no `ChromaStore` made it.
    StoreUnavailableError
        If it is not there and may not be made.
    """

    def __init__(self, connection: Connection, metric: Metric, create: bool) -> None:
        self._connection = connection
        self._metric = metric
        self._collection = self._opened(create)
        self._label: AnyArray | None = None
        self._index = None
        if connection.folder is not None:
            self._index = ChromaIndex(connection.client, connection.folder, self._collection, self.where)
        with translated(self.where):
            self._most = int(connection.client.get_max_batch_size())

    @property
    def where(self) -> str:
        """The collection in words."""
        return self._connection.where

    @property
    def collection_id(self) -> str:
        """What tells the collection from another that has its name after it."""
        return str(self._collection.id)

    def _opened(self, create: bool) -> Any:
        client, name, where = self._connection.client, self._connection.collection, self.where
        with translated(where):
            try:
                collection = client.get_collection(name, embedding_function=None)
            except NotFoundError as error:
                if not create:
                    raise StoreUnavailableError(
                        f"there is no {where}; check the names, or leave out create=False to make it"
                    ) from error
                graph: dict[str, Any] = {"space": str(self._metric), **GRAPH}
                if self._connection.folder is not None or not self._connection.exclusive:
                    graph["sync_threshold"] = NEVER  # a killed process leaves an index torn
                collection = client.get_or_create_collection(
                    name,
                    configuration={"hnsw": graph},
                    metadata={FORMAT_KEY: FORMAT_VERSION},
                    embedding_function=None,
                )
        version = (collection.metadata or {}).get(FORMAT_KEY)
        if version is None:
            raise InvalidInputError(f"{where} was not made by ChromaStore; give another name as collection=")
        if version != FORMAT_VERSION:
            raise StoreCorruptedError(
                f"{where} is of format version {version!r}; this version of clipretrieval reads "
                f"version {FORMAT_VERSION}. Install one that reads version {version!r}"
            )
        # Chroma passes silently over a configuration that differs from the one at creation.
        configuration = collection.configuration_json
        space = (configuration.get("hnsw") or configuration.get("spann") or {}).get("space")
        if space != str(self._metric):
            raise FingerprintMismatchError(
                f"{where} was made with metric {space!r}; found metric={str(self._metric)!r}. "
                f"Open it with metric={space!r}, or give another collection"
            )
        return collection

    def plan(self, batch: Batch) -> list[slice]:
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
        plan: list[slice] = []
        start = size = 0
        for place, own in enumerate(sizes):
            if place > start and (size + own > REQUEST_BYTES or place - start == self._most):
                plan.append(slice(start, place))
                start, size = place, 0
            size += own
        plan.append(slice(start, len(sizes)))
        return plan

    def upsert(self, batch: Batch, plan: list[slice]) -> None:
        """Send a batch as `plan` divided it; a failure leaves the requests before it done.

        Something must have been read from the collection before: Chroma opens its index at the first read,
        and the write after that repeats as updates all that was written before, which takes seconds for
        thousands of records and minutes for more.
        """
        # Chroma normalizes in float32, where the squares of small values vanish.
        vectors = unit_rows(batch.vectors, batch.norms) if self._metric is Metric.COSINE else batch.vectors
        for part in plan:
            with self._changing(part.stop - part.start), translated(self.where):
                self._collection.upsert(
                    ids=batch.ids[part],
                    embeddings=vectors[part],
                    metadatas=self._metadatas(batch, part),
                )

    def delete(self, ids: list[str]) -> int:
        """Delete the records of the ids and return how many of them were there."""
        removed, self._label = 0, None
        for chunk in id_chunks(list(dict.fromkeys(ids))):
            with translated(self.where):
                there = self._collection.get(ids=chunk, include=[])["ids"]
            for part in id_chunks(there, self._most):
                with self._changing(len(part)), translated(self.where):
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
            dim = self._current().get_model().dimension
        return None if dim is None else int(dim)

    def any_label(self) -> AnyArray:
        """Return the label of a record, whichever; none if there is none.

        Chroma goes through all records to return one, so it is asked once, where nobody else may delete it.
        """
        if self._label is not None:
            return self._label
        with translated(self.where):
            answer = self._collection.get(limit=1, include=["metadatas"])
        found = as_label_array([each[LABEL_KEY] for each in self._checked(answer)])
        if self._connection.exclusive and len(found):
            self._label = found
        return found

    def fetch(self, ids: list[str], dim: int) -> Iterator[Found]:
        """Yield the records of distinct ids, those that are there, one answer at a time."""
        for chunk in id_chunks(ids, max(1, min(LOOKUP_IDS, ANSWER_VALUES // dim))):
            with translated(self.where):
                answer = self._collection.get(ids=chunk, include=["embeddings", "metadatas"])
            if answer["ids"]:
                yield self._found(answer)

    def get(self, ids: list[str], dim: int) -> Records:
        """Return the records of the ids, in their order, without those that are not there."""
        records: dict[str, tuple[FloatArray, Label, str]] = {}
        for found in self.fetch(list(dict.fromkeys(ids)), max(1, dim)):
            parts = zip(found.vectors, found.labels, found.metadata, strict=True)
            records.update(zip(found.ids, parts, strict=True))
        kept = [each for each in ids if each in records]
        vectors = np.empty((len(kept), dim), dtype=np.float32)
        for place, each in enumerate(kept):
            vectors[place] = records[each][0]
        labels = as_label_array([records[each][1] for each in kept])
        metadata = [json.loads(records[each][2]) for each in kept]
        return Records(np.array(kept, dtype=object), vectors, labels, metadata)

    def ids(self, label: Label | None = None) -> list[str]:
        """Return all ids, or those of the records with one label."""
        condition = None if label is None else {LABEL_KEY: label}  # Chroma tells 1 from "1"
        with translated(self.where):
            return list(self._collection.get(where=condition, include=[])["ids"])

    def listing(self, ids: list[str]) -> Listing:
        """Return the labels of those of a few ids that are there."""
        with translated(self.where):
            answer = self._collection.get(ids=ids, include=["metadatas"])
        labels = [each[LABEL_KEY] for each in self._checked(answer)]
        return Listing(np.array(answer["ids"], dtype=object), as_label_array(labels))

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
            for query in range(len(answer["ids"])):
                yield self._found({key: answer[key][query] for key in ("ids", "embeddings", "metadatas")})

    def read_manifest(self) -> str:
        """Return the manifest's JSON text."""
        with translated(self.where):
            return str((self._current().metadata or {}).get(MANIFEST_KEY, "{}"))

    def write_manifest(self, text: str) -> None:
        """Put the manifest's JSON text into the collection's metadata, in one transaction of Chroma's."""
        with translated(self.where):
            kept = dict(self._current().metadata or {})
            self._collection.modify(metadata={**kept, MANIFEST_KEY: text})

    def _changing(self, records: int) -> AbstractContextManager[None]:
        """Surround a request that changes so many records."""
        return nullcontext() if self._index is None else self._index.changing(records)

    def _current(self) -> Any:
        """Return the collection as it is now: an object of it does not follow what others change."""
        return self._connection.client.get_collection(self._connection.collection, embedding_function=None)

    def _metadatas(self, batch: Batch, part: slice) -> list[dict[str, Any]]:
        metadatas = [
            {LABEL_KEY: label, METADATA_KEY: text}
            for label, text in zip(batch.labels[part].tolist(), batch.metadata[part], strict=True)
        ]
        if self._metric is Metric.COSINE:
            for metadata, norm in zip(metadatas, batch.norms[part].tolist(), strict=True):
                metadata[NORM_KEY] = norm
        return metadatas

    def _found(self, answer: dict[str, Any]) -> Found:
        ids = list(answer["ids"])
        if not ids:
            return Found([], np.empty((0, 0), dtype=np.float32), [], [])
        metadatas = self._checked(answer)
        vectors = np.array(answer["embeddings"], dtype=np.float32)
        if self._metric is Metric.COSINE:
            norms = np.array([each.get(NORM_KEY, 1.0) for each in metadatas], dtype=np.float64)
            vectors = (vectors * (norms / row_norms(vectors))[:, None]).astype(np.float32)
        labels = [each[LABEL_KEY] for each in metadatas]
        return Found(ids, vectors, labels, [each[METADATA_KEY] for each in metadatas])

    def _checked(self, answer: dict[str, Any]) -> list[dict[str, Any]]:
        """Return what is kept beside each record of an answer, refusing records that are not ours."""
        metadatas = [each or {} for each in answer["metadatas"]]
        for name, metadata in zip(answer["ids"], metadatas, strict=True):
            label, text = metadata.get(LABEL_KEY), metadata.get(METADATA_KEY)
            if type(label) not in (int, str) or not isinstance(text, str):
                raise StoreCorruptedError(
                    f"the record {name!r} in {self.where} lacks {LABEL_KEY!r} or {METADATA_KEY!r}: something "
                    "other than ChromaStore wrote it; delete it"
                )
        return metadatas


def id_chunks(ids: list[str], most: int = LOOKUP_IDS) -> Iterator[list[str]]:
    """Cut ids into parts that one request may hold."""
    for start in range(0, len(ids), most):
        yield ids[start : start + most]
