"""A store on Pinecone: a managed service that keeps the vectors elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from clipretrieval._util.checks import check_int, check_number
from clipretrieval._util.forks import ForkLock, renew_after_fork
from clipretrieval._util.repr import safe_repr
from clipretrieval.errors import (
    MissingDependencyError,
    StoreError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.stores.base import unclonable
from clipretrieval.stores.checks import (
    check_batch,
    check_blob,
    check_blob_name,
    check_dim,
    check_k,
    check_label,
    check_lookup_ids,
    check_queries,
    json_text,
    storable_ids,
)
from clipretrieval.types import FloatArray, Label, Listing, Metric, Neighbors, Records

try:
    from clipretrieval.stores.pinecone.api_key import ApiKey, control_plane
    from clipretrieval.stores.pinecone.namespace import Namespace
    from clipretrieval.stores.pinecone.records import (
        as_listing,
        as_records,
        check_limits,
        key_of,
        label_condition,
        upsert_parts,
    )
    from clipretrieval.stores.pinecone.requests import Requests
    from clipretrieval.stores.pinecone.search import MAX_TOP_K, NeighborSearch, as_neighbors
    from clipretrieval.stores.pinecone.session import MAX_DIMENSION, Address, Session
except ModuleNotFoundError as error:
    if error.name not in ("httpx", "orjson", "pinecone", "tenacity"):
        raise
    raise MissingDependencyError(
        f"PineconeStore needs {error.name!r}, which is not installed; run: pip install "
        '"clipretrieval[pinecone]"',
        name=error.name,
    ) from error

__all__ = ["IncompleteDeleteError", "IncompleteUpsertError", "PineconeStore"]

LONGEST_TIMEOUT = 1_000_000

Self = TypeVar("Self", bound="PineconeStore")


class IncompleteUpsertError(StoreUnavailableError):
    """Some of an upsert's vectors could not be stored; the others are.

    Attributes
    ----------
    ids : list of str
        Those whose storing is not confirmed. An upsert of them again does no harm.
    """

    def __init__(self, message: str, ids: list[str]) -> None:
        super().__init__(message)
        self.ids = ids


class IncompleteDeleteError(StoreUnavailableError):
    """Some records could not be deleted; the others are.

    Attributes
    ----------
    ids : list of str
        Those whose removal is not confirmed. Deleting them again does no harm.
    """

    def __init__(self, message: str, ids: list[str]) -> None:
        super().__init__(message)
        self.ids = ids


class PineconeStore:
    """Vectors in a serverless index of the Pinecone service.

    An index that is not there is made at the first write, when the vectors' dimension is known. Requests are
    cut to the service's limits, sent side by side, and retried until they succeed or their time is over.
    Pinecone shows writes after a while: every method of this object waits until it can see what this object
    wrote, and `flush` waits for it explicitly. The service may report a count with some more delay.

    Neighbors and distances are the service's: its search is approximate, its arithmetic float32. Threads may
    share the store. Its verbs are those of `~clipretrieval.stores.VectorStore`, and it is a context manager.

    Parameters
    ----------
    index : str
        The index's name: 1 to 45 lower-case letters, digits and hyphens.
    namespace : str
        The part of the index to use; ASCII.
    api_key : str, optional
        The environment variable ``PINECONE_API_KEY`` if left out, which is sent to Pinecone's own hosts and
        to that of ``PINECONE_CONTROLLER_HOST`` alone. The key is in no message, no representation of the
        store and nothing that it writes.
    metric : {"l2", "cosine", "ip"} or Metric
        Must be that of the index.
    dim : int, optional
        The vectors' dimension, if known beforehand: then a manifest can be stored before any vector.
    host : str, optional
        The control plane's address, for a proxy or an emulator: https, or http on this machine, without user
        and password. ``PINECONE_CONTROLLER_HOST`` if left out, else the service.
    cloud, region : str
        Where a new index is made; the cloud is ``"aws"``, ``"gcp"`` or ``"azure"``.
    create : bool
        Make the index where it is not there.
    timeout : float
        Seconds within which each request has to succeed, retries included; and that `flush` waits. Above 0,
        at most a million.
    concurrency : int
        How many requests of one call run side by side, 1 to 64.

    Raises
    ------
    InvalidInputError
        If an argument is none of these, there is no key, or the environment's would be sent to `host`.
    FingerprintMismatchError
        If the index has another metric or dimension.
    StoreUnavailableError
        If the service cannot be reached, refuses the key, or a quota is exhausted, or, with ``create=False``,
        there is no index.

    Notes
    -----
    A vector must be zero or have a value of magnitude 1e-8 or more, and id, label and metadata of a record
    must fit 40,000 bytes. A search for more than 10,000 neighbors raises UnsupportedOperationError where the
    store holds more. Where some vectors are not known to be stored, `upsert` raises
    `~clipretrieval.stores.IncompleteUpsertError`, and `delete` likewise
    `~clipretrieval.stores.IncompleteDeleteError`: their ``ids`` can be sent again.
    """

    part_option = "index"  # whose vectors have one dimension, in every namespace

    def __init__(
        self,
        index: str,
        *,
        namespace: str = "",
        api_key: str | None = None,
        metric: Metric | str = Metric.L2,
        dim: int | None = None,
        host: str | None = None,
        cloud: str = "aws",
        region: str = "us-east-1",
        create: bool = True,
        timeout: float = 60.0,
        concurrency: int = 8,
    ) -> None:
        key = ApiKey(api_key)
        del api_key  # tracebacks may be printed with local variables
        metric = Metric.parse(metric)
        timeout = check_number(timeout, "timeout", above=0, most=LONGEST_TIMEOUT)
        concurrency = check_int(concurrency, "concurrency", most=64)
        dim = None if dim is None else check_int(dim, "dim", most=MAX_DIMENSION)
        self._address = Address(index, namespace, metric, host, cloud, region, create)
        key.check_receiver(control_plane(host))
        self._closed = False
        # Whether the connections are those of the process that this one was forked from.
        self._inherited = False
        self._reconnecting = ForkLock()
        self._session = Session(self._address, dim, key, Requests(key, timeout, concurrency))
        renew_after_fork(self)

    @property
    def metric(self) -> Metric:
        """How nearness is measured."""
        return self._address.metric

    @property
    def dim(self) -> int | None:
        """The vectors' dimension; None until it is given, or there is an index."""
        return self._session.dim

    def upsert(
        self,
        ids: Sequence[str],
        vectors: FloatArray,
        labels: Sequence[Label],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        batch = check_batch(ids, vectors, labels, metadata, self.metric)
        check_limits(batch)
        self._require_open()
        with self._session.prepared(batch) as namespace:
            failed, reason = _failures(namespace.upsert(upsert_parts(batch)))
        if reason is not None:
            raise IncompleteUpsertError(
                f"{len(failed)} of {len(batch.ids)} vectors are not known to be stored ({_some(failed)}): "
                f"{reason}. Upsert them again: the error's `ids` lists them",
                failed,
            )

    def search(self, vectors: FloatArray, k: int) -> Neighbors:
        queries, _ = check_queries(vectors, self.metric)
        wanted = check_k(k)
        self._require_open()
        namespace = self._session.find()
        check_dim(queries.shape[1], self.dim)
        if namespace is None:
            return as_neighbors([[] for _ in queries], wanted)
        if wanted > MAX_TOP_K and self.count() > MAX_TOP_K:
            raise UnsupportedOperationError(
                f"Pinecone returns at most {MAX_TOP_K} neighbors; found k={wanted}"
            )
        namespace.settle()
        search = NeighborSearch(namespace, queries, min(wanted, MAX_TOP_K), self.metric)
        return as_neighbors(search.run(), wanted)

    def get(self, ids: Sequence[str]) -> Records:
        names = storable_ids(check_lookup_ids(ids))
        self._require_open()
        namespace = self._session.find()
        if namespace is None or not names:
            return as_records([], {}, self.dim)
        namespace.settle()
        return as_records(names, namespace.fetch(list({key_of(name): None for name in names})), self.dim)

    def delete(self, ids: Sequence[str]) -> int:
        names = storable_ids(check_lookup_ids(ids))
        self._require_open()
        namespace = self._session.find()
        if namespace is None or not names:
            return 0
        namespace.settle()
        keys = {key_of(name): name for name in names}
        found = namespace.fetch(list(keys))
        failed, reason = _failures(namespace.delete(keys))
        if reason is not None:
            raise IncompleteDeleteError(
                f"{len(failed)} of {len(keys)} records are not known to be deleted ({_some(failed)}): "
                f"{reason}. Delete them again: the error's `ids` lists them",
                failed,
            )
        return len(found)

    def scan(self, label: Label | None = None) -> Iterator[Listing]:
        """Go through all ids and labels, or those of one label; vectors are read on the way and let go."""
        wanted = check_label(label)
        self._require_open()
        namespace = self._session.find()
        return iter(()) if namespace is None else self._listings(namespace, wanted)

    def count(self) -> int:
        self._require_open()
        namespace = self._session.find()
        if namespace is None:
            return 0
        namespace.settle()
        return namespace.count()

    def read_manifest(self) -> dict[str, Any]:
        self._require_open()
        text = self._session.manifest()
        found: dict[str, Any] = json.loads(text or "{}")
        return found

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Keep a small JSON object beside the vectors, replacing the one before.

        Where there is no index yet and no `dim` to make one, it is stored with the first vectors; `flush` and
        `close` raise as long as it waits.
        """
        text = json_text(manifest, "the manifest")
        self._require_open()
        self._session.replace_manifest(text)

    def read_blob(self, name: str) -> bytes | None:
        """Return the blob that `write_blob` last kept under this name; None if there is none."""
        name = check_blob_name(name)
        self._require_open()
        return self._session.blob(name)

    def write_blob(self, name: str, content: bytes | None) -> None:
        """Keep bytes beside the vectors, or with None no more; see `BlobStore.write_blob`.

        A megabyte takes some 40 records, in a namespace of their own. Where there is no index yet and no
        `dim` to make one, the blob is stored with the first vectors; `flush` and `close` raise as long as it
        waits.
        """
        name, content = check_blob(name, content)
        self._require_open()
        self._session.replace_blob(name, content)

    def flush(self) -> None:
        """Return when searches see everything that this object wrote.

        Raises
        ------
        StoreUnavailableError
            If that takes longer than the timeout.
        StoreError
            If a manifest or a blob waits for an index that is not made yet.
        """
        self._require_open()
        self._session.settle()

    def close(self) -> None:
        """Flush and close the connections, even if the flush fails; calling it again does nothing."""
        if self._closed:
            return
        if self._inherited:
            self._closed = True
            return
        try:
            self.flush()
        finally:
            self._closed = True
            self._session.close()

    def location(self) -> dict[str, Any]:
        """Return the options that open the same contents elsewhere, where PINECONE_API_KEY is set."""
        at = self._address
        options = {"index": at.index, "namespace": at.namespace, "metric": str(at.metric)}
        return options if at.host is None else {**options, "host": at.host}

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @safe_repr
    def __repr__(self) -> str:
        at = self._address
        return (
            f"PineconeStore({at.index!r}, namespace={at.namespace!r}, metric={str(at.metric)!r}, "
            f"dim={self._session.dim}{', closed' if self._closed else ''})"
        )

    def __getstate__(self) -> dict[str, Any]:
        raise UnsupportedOperationError(
            f"{self!r} holds an API key and cannot be pickled or copied; open it again with "
            "PineconeStore(**store.location())"
        )

    def __sklearn_clone__(self) -> PineconeStore:
        raise unclonable(self)

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError("this PineconeStore is closed; open it anew")
        if self._inherited:
            with self._reconnecting.current:
                if self._inherited:
                    self._session.reconnect()
                    self._inherited = False

    def _after_fork(self) -> None:
        """Leave the connections to the parent: an answer to one process could be read by the other."""
        self._inherited = True

    def _listings(self, namespace: Namespace, label: Label | None) -> Iterator[Listing]:
        """Yield ids and labels of all records, or of those with one label.

        The true ids and the labels are in the records' metadata, and the service returns these only together
        with the vectors, where it does not search.
        """
        self._require_open()
        namespace.settle()
        seen: set[str] = set()
        parts = namespace.everything() if label is None else namespace.matching(label_condition(label))
        for found in parts:
            # By metadata, the order of the pages is not documented, nor what a write between two does.
            fresh = {key: record for key, record in found.items() if key not in seen}
            seen.update(fresh)
            if fresh:
                yield as_listing(fresh)
            self._require_open()  # also reconnects a forked process before the next request


def _failures(parts: Iterable[tuple[list[str], StoreError | None]]) -> tuple[list[str], StoreError | None]:
    """Return the ids of the parts that failed, and why the first did."""
    failed: list[str] = []
    reason: StoreError | None = None
    for names, error in parts:
        if error is not None:
            failed += names
            reason = reason or error
    return failed, reason


def _some(names: list[str]) -> str:
    return ", ".join(repr(name[:60]) for name in names[:5]) + (", …" if len(names) > 5 else "")
