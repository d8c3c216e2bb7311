"""A store on Pinecone: a managed service that keeps the vectors elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clipretrieval.errors import MissingDependencyError, UnsupportedOperationError
from clipretrieval.stores.checks import (
    check_batch,
    check_dim,
    check_k,
    check_lookup_ids,
    check_manifest,
    check_queries,
    storable_ids,
)
from clipretrieval.stores.scan import check_label
from clipretrieval.types import FloatArray, Label, Listing, Metric, Neighbors, Records

try:
    from clipretrieval.stores.pinecone.answers import as_neighbors, as_records, distance_of
    from clipretrieval.stores.pinecone.base import PineconeBase
    from clipretrieval.stores.pinecone.key import ApiKey
    from clipretrieval.stores.pinecone.records import check_limits, key_of
    from clipretrieval.stores.pinecone.scan import listed
    from clipretrieval.stores.pinecone.search import nearest
    from clipretrieval.stores.pinecone.session import Address
    from clipretrieval.stores.pinecone.writes import (
        IncompleteDeleteError,
        IncompleteUpsertError,
        remove,
        send,
    )
except ModuleNotFoundError as error:
    if error.name not in ("httpx", "orjson", "pinecone", "tenacity"):
        raise
    raise MissingDependencyError(
        f"PineconeStore needs {error.name!r}, which is not installed; run: pip install "
        '"clipretrieval[pinecone]"',
        name=error.name,
    ) from error

__all__ = ["IncompleteDeleteError", "IncompleteUpsertError", "PineconeStore"]

MAX_TOP_K = 10_000
# How many more neighbours are looked at to tell which of those at the last one's distance come first by id.
TIES = 1_000


class PineconeStore(PineconeBase):
    """Vectors in a serverless index of the Pinecone service.

    An index that is not there is made at the first write, when the vectors' dimension is known. Requests are
    cut to the service's limits, sent side by side, and retried until they succeed or their time is over.
    Pinecone shows writes after a while: every method of this object waits until it can see what this object
    wrote, and `flush` waits for it explicitly.

    Neighbours and distances are the service's: its search is approximate, its arithmetic float32. Threads may
    share the store.

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
    """

    part_option = "namespace"

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
        address = Address(index, namespace, Metric.parse(metric), host, cloud, region, create)
        super().__init__(address, dim, key, timeout, concurrency)

    def upsert(
        self,
        ids: Sequence[str],
        vectors: FloatArray,
        labels: Sequence[Label],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Add vectors, replacing wholly those whose id is already there.

        Parameters
        ----------
        ids : sequence of str, length n
            Not empty, unique within the call.
        vectors : array_like of real numbers, shape (n, dim)
            Finite, also as float32. Under the cosine metric, not zero; else zero, or with a value of
            magnitude 1e-8 or more in each row.
        labels : sequence of int or of str, length n
            Of the type that the store already holds.
        metadata : sequence of mappings, length n, optional
            JSON values. Id, label and metadata of a record must fit 40,000 bytes.

        Raises
        ------
        InvalidInputError
            On any malformed argument, before anything is stored.
        IncompleteUpsertError
            If some vectors could not be stored, or are not known to be; the error has their ids.
        StoreError
            If the store is closed, or the service fails before any vector is sent.
        """
        batch = check_batch(ids, vectors, labels, metadata, self.metric)
        check_limits(batch)
        self._require_open()
        with self._session.prepared(batch) as space:
            send(space, batch)

    def search(self, vectors: FloatArray, k: int) -> Neighbors:
        """Return the `k` nearest stored vectors of each query, as the service finds them.

        Parameters
        ----------
        vectors : array_like of real numbers, shape (n_queries, dim)
            Finite. Under the cosine metric, not zero.
        k : int
            At least 1. May exceed the count: the rest is padded.

        Returns
        -------
        Neighbors
            Arrays of shape (n_queries, k), rows ascending, equal distances ordered by id. Distances are made
            from the service's float32 scores: squared ones as they are, 1 − cosine clipped to [0, 2].

        Raises
        ------
        InvalidInputError
            On any malformed argument.
        UnsupportedOperationError
            If more than 10,000 neighbours are asked for and there are as many.
        StoreError
            If the store is closed or the service fails.
        """
        queries, _ = check_queries(vectors, self.metric)
        wanted = check_k(k)
        self._require_open()
        space = self._session.find()
        check_dim(queries.shape[1], self.dim)
        if space is None:
            return as_neighbors([[] for _ in queries], wanted)
        if wanted > MAX_TOP_K and self.count() > MAX_TOP_K:
            raise UnsupportedOperationError(
                f"Pinecone returns at most {MAX_TOP_K} neighbours; found k={wanted}"
            )
        space.settle()
        reach = min(wanted, MAX_TOP_K)
        widest = min(reach + TIES, MAX_TOP_K)
        return as_neighbors(nearest(space, queries, reach, widest, distance_of(self.metric)), wanted)

    def get(self, ids: Sequence[str]) -> Records:
        """Return the records of `ids`, in that order; ids that are not stored are left out.

        Raises
        ------
        InvalidInputError
            If `ids` is not a sequence of str.
        StoreError
            If the store is closed or the service fails.
        """
        names = storable_ids(check_lookup_ids(ids))
        self._require_open()
        space = self._session.find()
        if space is None or not names:
            return as_records([], {}, self.dim)
        space.settle()
        return as_records(names, space.fetch(list({key_of(name): None for name in names})), self.dim)

    def delete(self, ids: Sequence[str]) -> int:
        """Remove the records of `ids` and return how many of them were there.

        Raises
        ------
        InvalidInputError
            If `ids` is not a sequence of str.
        IncompleteDeleteError
            If some could not be removed, or are not known to be; the error has their ids.
        StoreError
            If the store is closed, or the service fails before any deletion is sent.
        """
        names = storable_ids(check_lookup_ids(ids))
        self._require_open()
        space = self._session.find()
        if space is None or not names:
            return 0
        space.settle()
        keys = {key_of(name): name for name in names}
        found = space.fetch(list(keys))
        remove(space, keys)
        return len(found)

    def scan(self, label: Label | None = None) -> Iterator[Listing]:
        """Go through all ids and labels, or those of one label; the vectors are read on the way and let go.

        Raises
        ------
        InvalidInputError
            If `label` is neither int nor str.
        StoreError
            If the store is closed or the service fails.
        """
        wanted = check_label(label)
        self._require_open()
        space = self._session.find()
        return iter(()) if space is None else listed(space, wanted, self._require_open)

    def count(self) -> int:
        """Return the number of stored vectors, which the service may report with some delay.

        Raises
        ------
        StoreError
            If the store is closed or the service fails.
        """
        self._require_open()
        space = self._session.find()
        if space is None:
            return 0
        space.settle()
        return space.count()

    def read_manifest(self) -> dict[str, Any]:
        """Return a copy of what `write_manifest` last kept; an empty dict if nothing was.

        Raises
        ------
        StoreCorruptedError
            If it is incomplete.
        StoreError
            If the store is closed or the service fails.
        """
        self._require_open()
        text = self._session.manifest()
        found: dict[str, Any] = json.loads(text or "{}")
        return found

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Keep a small JSON object beside the vectors, replacing the one before.

        Where there is no index yet and no `dim` to make one, it is stored with the first vectors; `flush` and
        `close` raise as long as it waits.

        Raises
        ------
        InvalidInputError
            If it holds anything but JSON values.
        StoreError
            If the store is closed or the service fails.
        """
        text = check_manifest(manifest)
        self._require_open()
        self._session.replace_manifest(text)
