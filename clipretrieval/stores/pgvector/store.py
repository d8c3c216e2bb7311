"""A store in PostgreSQL, with the extension pgvector: for teams that have a server, and for many writers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from clipretrieval._util.checks import check_bool, check_int, check_number, shown
from clipretrieval._util.repr import safe_repr
from clipretrieval._util.rounding import without_range_warnings
from clipretrieval.errors import InvalidInputError, StoreError, UnsupportedOperationError
from clipretrieval.stores.base import unclonable
from clipretrieval.stores.checks import (
    check_batch,
    check_blob,
    check_blob_name,
    check_k,
    check_label,
    check_lookup_ids,
    check_queries,
    json_text,
    storable_ids,
)
from clipretrieval.stores.pgvector.connections import Connections
from clipretrieval.stores.pgvector.search import PgVectorSearch
from clipretrieval.stores.pgvector.server import Secret, Server
from clipretrieval.stores.pgvector.tables import LONGEST_ID, MOST_DIMENSIONS, PgVectorTables
from clipretrieval.stores.release import release_of
from clipretrieval.types import FloatArray, Label, Listing, Metric, Neighbors, Records

__all__ = ["PgVectorStore"]

EXACT_VALUES = 1 << 27
TABLE_NAME = "[A-Za-z_][A-Za-z0-9_-]{0,49}"

Self = TypeVar("Self", bound="PgVectorStore")
Result = TypeVar("Result")


class PgVectorStore:
    """Vectors in a table of a PostgreSQL database that has the extension pgvector.

    Any number of processes and threads may read and write. Every call that writes is one transaction, durable
    and seen by all when it returns; writers of one table wait for each other. A connection that broke is made
    anew. Its verbs are those of `~clipretrieval.stores.VectorStore`, and it is a context manager.

    Up to a size a search compares all records, with the answers of `MemoryStore`. Beyond, it goes through
    pgvector's HNSW graph, once `build_index` has built one; the distances of what that leads to are computed
    exactly.

    Parameters
    ----------
    conninfo : str
        As libpq takes it: ``"host=db.example.com dbname=animals user=me"`` or
        ``"postgresql://me@db.example.com/animals"``. What it leaves out is found in the environment
        (``PGHOST``, ``PGPASSWORD``, …) and in ``~/.pgpass``.
    table : str
        The table's name, made if it is not there: a letter or ``_``, then letters, digits, ``_`` and ``-``,
        at most 50. Others begin with it: ``TABLE_store`` and ``TABLE_blobs``.
    metric : {"l2", "cosine", "ip"} or Metric
        Must be that of the table.
    password : str, optional
        If `conninfo` has none. It is in no message, no representation of the store and nothing that it
        writes.
    exact_up_to : int
        The most values (records × dimension) that are always compared, by default 2²⁷, which is 131,072
        vectors of 1,024 dimensions; 0 searches the graph wherever there is one.
    create : bool
        Make the tables where they are not there.
    timeout : float
        Seconds within which the server has to be reached, and to wait for another writer.

    Raises
    ------
    InvalidInputError
        If an argument is none of these, or something else made the table.
    FingerprintMismatchError
        If the table has another metric.
    StoreUnavailableError
        If the server cannot be reached or refuses the password, the database lacks pgvector, or, with
        ``create=False``, there is no table.

    Notes
    -----
    A vector may have up to 16,000 dimensions, and an id 2,048 bytes. Waiting longer than `timeout` for
    another writer is a StoreLockedError.
    """

    part_option = "table"

    def __init__(
        self,
        conninfo: str = "",
        *,
        table: str = "clipretrieval",
        metric: Metric | str = Metric.L2,
        password: str | None = None,
        exact_up_to: int = EXACT_VALUES,
        create: bool = True,
        timeout: float = 30.0,
    ) -> None:
        known = Secret(conninfo), Secret(password)
        del conninfo, password  # tracebacks may be printed with local variables
        server = Server(*known, check_number(timeout, "timeout", above=0, most=1_000_000))
        if not isinstance(table, str) or not re.fullmatch(TABLE_NAME, table):
            raise InvalidInputError(
                "table must be 1 to 50 of the characters a-z, A-Z, 0-9, '_' and '-', the first of them a "
                f"letter or '_'; got {shown(table)}"
            )
        create = check_bool(create, "create")
        self._exact_up_to = check_int(exact_up_to, "exact_up_to", least=0)
        self._tables = PgVectorTables(table, Metric.parse(metric))
        self._search = PgVectorSearch(self._tables, self._exact_up_to)
        self._server, self._connections, self._closed = server, Connections(server), False
        self._dim: int | None = None
        self._release = release_of(self, self._connections.close)
        try:
            self._connections.run(lambda connection: self._tables.open(connection, create))
        except BaseException:
            self._release()
            raise

    @property
    def metric(self) -> Metric:
        """How nearness is measured."""
        return self._tables.metric

    @property
    def dim(self) -> int | None:
        """The vectors' dimension; None until the first upsert."""
        if self._dim is not None or self._closed:
            return self._dim
        dim = self._connections.run(self._tables.dim, reading=True)
        if not self._connections.in_block:  # whose end may take it back
            self._dim = dim
        return dim

    def upsert(
        self,
        ids: Sequence[str],
        vectors: FloatArray,
        labels: Sequence[Label],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        batch = check_batch(ids, vectors, labels, metadata, self.metric)
        if batch.vectors.shape[1] > MOST_DIMENSIONS:
            raise InvalidInputError(
                f"pgvector takes up to {MOST_DIMENSIONS:,} dimensions; found {batch.vectors.shape[1]:,}"
            )
        long = next((name for name in batch.ids if len(name.encode()) > LONGEST_ID), None)
        if long is not None:
            raise InvalidInputError(
                f"an id must have at most {LONGEST_ID:,} bytes in UTF-8; {shown(long)} has "
                f"{len(long.encode()):,}"
            )
        self._run(self._tables.upsert, batch)

    def search(self, vectors: FloatArray, k: int) -> Neighbors:
        queries, _ = check_queries(vectors, self.metric)
        reach = check_k(k)
        with without_range_warnings():  # the copies in memory have a check of their own
            return self._run(self._search.search, queries, reach, reading=True)

    def get(self, ids: Sequence[str]) -> Records:
        names = storable_ids(check_lookup_ids(ids))
        return self._run(self._tables.get, names, reading=True)

    def delete(self, ids: Sequence[str]) -> int:
        names = storable_ids(check_lookup_ids(ids))
        return self._run(self._tables.delete, names)

    def scan(self, label: Label | None = None) -> Iterator[Listing]:
        """Go through all ids and labels, or those of one label; see `ScannableStore.scan`."""
        wanted = check_label(label)
        self._require_open()
        return self._listings(wanted)

    def _listings(self, label: Label | None) -> Iterator[Listing]:
        after = ""  # which is no id
        while len(listing := self._run(self._tables.listing, label, after, reading=True)):
            after = listing.ids[-1]
            yield listing

    def count(self, label: Label | None = None) -> int:
        """Return the number of stored vectors, or of those with one label."""
        return self._run(self._tables.count, check_label(label), reading=True)

    def read_manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._run(self._tables.read_manifest, reading=True))
        return found

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        self._run(self._tables.write_manifest, json_text(manifest, "the manifest"))

    def read_blob(self, name: str) -> bytes | None:
        """Return the blob that `write_blob` last kept under this name; None if there is none."""
        return self._run(self._tables.read_blob, check_blob_name(name), reading=True)

    def write_blob(self, name: str, content: bytes | None) -> None:
        """Keep bytes beside the records, or with None no more; see `BlobStore.write_blob`."""
        self._run(self._tables.write_blob, *check_blob(name, content))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make one transaction of all that this thread does in a block.

        At its end everything is stored, or, where it raises or the process dies, nothing: vectors and the
        manifest that belongs to them, say. A call whose error is caught in the block has stored nothing; so
        has a block within it. Other writers of the table wait from the first write on. A process that is
        forked in the block is not in it.
        """
        self._require_open()
        with self._connections.together():
            yield

    def build_index(self) -> float:
        """Build the HNSW graph that larger tables than `exact_up_to` are searched through, or build it anew.

        Others may read and write meanwhile. The graph follows later writes by itself, which it makes slower;
        after many deletions, build it anew. It needs memory: set PostgreSQL's ``maintenance_work_mem`` to
        about 6 bytes × records × dimension, or it takes many times as long.

        Returns
        -------
        float
            Recall@10 as measured on 100 stored vectors, at the least effort of those tried that finds 0.99 of
            their neighbors, or at the greatest. Searches use this effort.

        Raises
        ------
        UnsupportedOperationError
            If the vectors have more than 2,000 dimensions, there are none, or in a block of `transaction`.
        StoreLockedError
            If another build is under way.
        """
        self._require_open()
        if self._connections.in_block:  # for whose end the build would wait
            raise UnsupportedOperationError("build_index() cannot run in a block of transaction()")
        with self._server.translated(), self._server.connect() as connection, without_range_warnings():
            return self._search.build(connection)

    def flush(self) -> None:
        """Do nothing: what a call wrote that returned is durable, and seen by all."""
        self._require_open()

    def close(self) -> None:
        """Close the connections; calling it again does nothing."""
        self._closed = True
        self._release()

    def location(self) -> dict[str, Any]:
        """Return the options that open the same table elsewhere, where the password is known."""
        return {
            "conninfo": self._server.conninfo,
            "table": self._tables.name,
            "metric": str(self.metric),
            "exact_up_to": self._exact_up_to,
        }

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @safe_repr
    def __repr__(self) -> str:
        return (
            f"PgVectorStore(table {self._tables.name!r} of the {self._server.where}, "
            f"metric={str(self.metric)!r}{', closed' if self._closed else ''})"
        )

    def __getstate__(self) -> dict[str, Any]:
        raise UnsupportedOperationError(
            f"{self!r} holds connections and cannot be pickled or copied; open it again with "
            "PgVectorStore(**store.location())"
        )

    def __sklearn_clone__(self) -> PgVectorStore:
        raise unclonable(self)

    def _run(self, work: Callable[..., Result], *arguments: Any, reading: bool = False) -> Result:
        self._require_open()
        return self._connections.run(lambda connection: work(connection, *arguments), reading=reading)

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError("this PgVectorStore is closed; open it anew")
