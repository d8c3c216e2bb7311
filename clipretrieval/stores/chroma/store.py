"""A store on Chroma: in memory, in a folder, at a server, or through a client of the user's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from clipretrieval._util.checks import check_bool, check_int
from clipretrieval._util.forks import ForkLock, renew_after_fork
from clipretrieval._util.repr import safe_repr
from clipretrieval._util.rounding import without_range_warnings
from clipretrieval.errors import StoreError, UnsupportedOperationError
from clipretrieval.stores.base import listings, unclonable
from clipretrieval.stores.checks import (
    check_batch,
    check_blob,
    check_blob_name,
    check_dim,
    check_k,
    check_label,
    check_label_kind,
    check_lookup_ids,
    check_queries,
    json_text,
    storable_ids,
)
from clipretrieval.stores.chroma.blobs import ChromaBlobs
from clipretrieval.stores.chroma.client import Connection, connect
from clipretrieval.stores.chroma.internals import holds_collection
from clipretrieval.stores.chroma.records import FORMAT_KEY, ChromaRecords, id_chunks
from clipretrieval.stores.chroma.search import ChromaSearch
from clipretrieval.stores.local.locks import ReadWriteLock
from clipretrieval.types import FloatArray, Label, Listing, Metric, Neighbors, Records, as_label_array

__all__ = ["ChromaStore"]

DEFAULT_COLLECTION = "clipretrieval"

Self = TypeVar("Self", bound="ChromaStore")


class ChromaStore:
    """Vectors in a Chroma collection, searched exactly up to a size and through Chroma's graph beyond.

    Without `path`, `host` or `client` the collection is in this process's memory and lost with it. One store
    at a time may use a folder. Threads may search while one writes.

    Chroma's own search is approximate at every setting. An exact one therefore reads the vectors and compares
    all of them here, with the answers of `MemoryStore`. They are read once, if the collection is this store's
    alone (in memory or in a folder), and at every search if others may change it (at a server or through
    `client`).

    Parameters
    ----------
    path : str or Path, optional
        A folder for Chroma, made if it is not there.
    host : str, optional
        Name or address of a Chroma server.
    port : int, optional
        The server's port; 8000 if not given.
    ssl : bool
        Speak HTTPS to the server.
    client : chromadb client, optional
        One that the caller made and closes, for credentials, tenants or databases.
    collection : str
        The collection's name, made if it is not there. In memory every store has a collection of its own.
    metric : {"l2", "cosine", "ip"} or Metric
        Must be that of the collection. Under ``"cosine"`` `get` returns vectors to within float32 rounding.
    exact : bool
        Miss no neighbor. False searches Chroma's graph and computes the distances of what it finds exactly.
    exact_up_to : int, optional
        The most values (records × dimension) that an exact search compares; a larger collection is searched
        through Chroma's graph, with a `ClipRetrievalWarning`. By default 2²⁷, or 2²³ where all searches read.
    create : bool
        Make the folder and the collection where they are not there. False is for what is to be read: a
        mistyped path is then an error, and nothing is made.

    Raises
    ------
    InvalidInputError
        If the options contradict each other, or something else made the collection.
    FingerprintMismatchError
        If the collection has another metric.
    StoreLockedError
        If another store, or a Chroma client of this process, holds the folder.
    StoreCorruptedError
        If the folder is damaged.
    StoreUnavailableError
        If the server cannot be reached or the folder cannot be read or made, or, with ``create=False``, there
        is no collection.
    """

    _connection: Connection
    _records: ChromaRecords
    _search: ChromaSearch
    _blobs: ChromaBlobs
    _dim: int | None
    # Whether the connection is that of the process that this one was forked from.
    _inherited: bool
    place_options = ("path", "host")
    part_option = "collection"

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        host: str | None = None,
        port: int | None = None,
        ssl: bool = False,
        client: Any = None,
        collection: str = DEFAULT_COLLECTION,
        metric: Metric | str = Metric.L2,
        exact: bool = True,
        exact_up_to: int | None = None,
        create: bool = True,
    ) -> None:
        create = check_bool(create, "create")
        self._metric = Metric.parse(metric)
        self._exact = check_bool(exact, "exact")
        self._lock = ReadWriteLock()
        self._closed = False
        self._exact_up_to = None if exact_up_to is None else check_int(exact_up_to, "exact_up_to")
        self._reconnecting = ForkLock()
        self._attach(connect(path, host, port, ssl, client, collection, create), create)
        renew_after_fork(self)

    @property
    def metric(self) -> Metric:
        """How nearness is measured."""
        return self._metric

    @property
    def dim(self) -> int | None:
        """The vectors' dimension; None until the first upsert."""
        return self._dim

    def upsert(
        self,
        ids: Sequence[str],
        vectors: FloatArray,
        labels: Sequence[Label],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Add vectors, replacing wholly those whose id is already there; see `VectorStore.upsert`.

        A call of up to 5,461 records and 32 MiB is one request, stored wholly or not at all. Where Chroma
        fails, a larger one may be stored in part: send it again.
        """
        batch = check_batch(ids, vectors, labels, metadata, self._metric)
        with self._lock.write():
            self._require_open()
            dim = batch.vectors.shape[1]
            check_dim(dim, self._held_dim())
            check_label_kind(batch.labels, self._records.any_label())
            plan = self._records.plan(batch)
            with self._search.changing() as copy:
                self._records.upsert(batch, plan)
                if copy is not None:
                    with without_range_warnings():
                        copy.upsert(batch.ids, batch.vectors, batch.labels.tolist())
            self._dim = dim

    def search(self, vectors: FloatArray, k: int) -> Neighbors:
        """Return the `k` nearest stored vectors of each query; see `VectorStore.search`.

        Distances are computed in float64 and rounded to float32, also where the neighbors are approximate.
        """
        queries, _ = check_queries(vectors, self._metric)
        reach = check_k(k)
        with self._lock.read():
            self._require_open()
            check_dim(queries.shape[1], self._held_dim())
            with without_range_warnings():  # the copy in memory has a check of its own
                return self._search.search(queries, reach)

    def get(self, ids: Sequence[str]) -> Records:
        """Return the records of `ids`, in that order; ids that are not stored are left out."""
        names = check_lookup_ids(ids)
        with self._lock.read():
            self._require_open()
            return self._records.get(storable_ids(names), self._held_dim() or 0)

    def delete(self, ids: Sequence[str]) -> int:
        """Remove the records of `ids` and return how many of them were there."""
        names = check_lookup_ids(ids)
        with self._lock.write():
            self._require_open()
            with self._search.changing() as copy:
                removed = self._records.delete(storable_ids(names))
                if copy is not None:
                    copy.delete(names)
            return removed

    def scan(self, label: Label | None = None) -> Iterator[Listing]:
        """Go through all ids and labels, or those of one label; see `ScannableStore.scan`.

        One request settles at the beginning which records it goes through. Without `label`, theirs are read
        on the way, a few thousand at a time.
        """
        wanted = check_label(label)
        with self._lock.read():
            self._require_open()
            found = self._records.ids(wanted)
        if wanted is None:
            return self._listings(found)
        return listings(np.array(found, dtype=object), as_label_array([wanted] * len(found)), wanted)

    def _listings(self, ids: list[str]) -> Iterator[Listing]:
        for chunk in id_chunks(ids):
            with self._lock.read():
                self._require_open()
                listing = self._records.listing(chunk)
            if len(listing):
                yield listing

    def count(self, label: Label | None = None) -> int:
        """Return the number of stored vectors, or of those with one label, whose ids Chroma then lists."""
        wanted = check_label(label)
        with self._lock.read():
            self._require_open()
            return self._records.count() if wanted is None else len(self._records.ids(wanted))

    def read_manifest(self) -> dict[str, Any]:
        """Return a copy of what `write_manifest` last kept; an empty dict if nothing was."""
        with self._lock.read():
            self._require_open()
            manifest: dict[str, Any] = json.loads(self._records.read_manifest())
            return manifest

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Keep a small JSON object in the collection's metadata, replacing the one before."""
        text = json_text(manifest, "the manifest")
        with self._lock.write():
            self._require_open()
            self._records.write_manifest(text)

    def read_blob(self, name: str) -> bytes | None:
        """Return the blob that `write_blob` last kept under this name; None if there is none."""
        name = check_blob_name(name)
        with self._lock.read():
            self._require_open()
            return self._blobs.read(name)

    def write_blob(self, name: str, content: bytes | None) -> None:
        """Keep bytes beside the records, or with None no more; see `BlobStore.write_blob`.

        They lie in collections of their own beside the store's, whose names begin with COLLECTION.blob-NAME.
        """
        name, content = check_blob(name, content)
        with self._lock.write():
            self._require_open()
            self._blobs.write(name, content)

    def flush(self) -> None:
        """Return when everything written so far is on the device, if it is in a folder.

        Chroma commits every request before it answers: what a call wrote that returned outlives this process,
        and the server's where there is one. In a folder, a flush also makes the end of the last commit, the
        removal of SQLite's journal, outlast a loss of power; at a server that is the server's to do.

        Raises
        ------
        StoreUnavailableError
            If the system cannot.
        """
        with self._lock.write():
            self._require_open()
            self._connection.sync()

    def close(self) -> None:
        """Flush and free what the store holds; calling it again does nothing."""
        with self._lock.write():
            if self._closed:
                return
            self._closed = True
            self._search.forget()
            if self._inherited:
                return
            try:
                self._connection.sync()
            finally:
                self._connection.release()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def location(self) -> dict[str, Any] | None:
        """Return the options that open the same collection elsewhere; None in memory or with a client."""
        place = self._connection.location
        if place is None:
            return None
        bound = {} if self._exact_up_to is None else {"exact_up_to": self._exact_up_to}
        return {**place, "metric": str(self._metric), "exact": self._exact, **bound}

    @classmethod
    def exists_locally(cls, options: Mapping[str, Any]) -> bool:
        """Tell whether a store with these options would only open a collection; see `LocalFilesStore`."""
        path, name = options.get("path"), options.get("collection", DEFAULT_COLLECTION)
        known = {"path", "collection", "metric", "exact", "exact_up_to"}
        return (
            isinstance(path, str) and set(options) <= known and holds_collection(Path(path), name, FORMAT_KEY)
        )

    @safe_repr
    def __repr__(self) -> str:
        state = "closed" if self._closed else self._connection.where
        return f"ChromaStore(metric={str(self._metric)!r}, dim={self._dim}, {state})"

    def __reduce__(self) -> Any:
        again = "open it elsewhere with ChromaStore(**store.location())"
        if self._connection.location is None and self._connection.exclusive:
            again = "to have an empty one for each process, pass it by name, store='chroma'"
        elif self._connection.location is None:
            again = "open it elsewhere with a client that is made there"
        raise UnsupportedOperationError(f"{self!r} cannot be pickled or copied; {again}")

    def __sklearn_clone__(self) -> ChromaStore:
        if self._connection.folder is not None or not self._connection.exclusive:
            raise unclonable(self)
        # Empty, as a clone is not fitted.
        return type(self)(metric=self._metric, exact=self._exact, exact_up_to=self._exact_up_to)

    def _attach(self, connection: Connection, create: bool) -> None:
        """Open the collection and use the connection from now on; where that fails, release it."""
        try:
            records = ChromaRecords(connection, self._metric, create)
            dim = records.dim()
        except BaseException:
            with suppress(StoreError):  # the first failure says more
                connection.release()
            raise
        self._connection, self._records, self._dim = connection, records, dim
        self._search = ChromaSearch(
            records, self._metric, connection.exclusive, self._exact, self._exact_up_to
        )
        self._blobs = ChromaBlobs(connection, records.collection_id)
        self._inherited = False

    def _held_dim(self) -> int | None:
        """Return the dimension, which another client of a server may have settled meanwhile."""
        if self._dim is None:
            self._dim = self._records.dim()
        return self._dim

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError("this ChromaStore is closed; open it anew")
        if self._inherited:
            with self._reconnecting.current:
                if self._inherited:
                    self._attach(self._connection.in_forked_process(), create=False)

    def _after_fork(self) -> None:
        """Leave the connection to the parent: an answer to one process could be read by the other."""
        self._lock = ReadWriteLock()
        self._inherited = True
