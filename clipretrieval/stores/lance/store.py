"""A store in LanceDB: a folder that several processes write without a server, or object storage."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from clipretrieval._util.checks import (
    check_bool,
    check_int,
    check_mapping,
    check_number,
    check_path,
    check_text,
    shown,
)
from clipretrieval._util.repr import safe_repr
from clipretrieval._util.rounding import without_range_warnings
from clipretrieval._util.secrets import MaskedDict, masked_text, without_secrets
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
from clipretrieval.stores.lance.search import LanceSearch
from clipretrieval.stores.lance.tables import BLOB, MANIFEST, LanceTables
from clipretrieval.stores.local.locks import ReadWriteLock
from clipretrieval.types import FloatArray, Label, Listing, Metric, Neighbors, Records

__all__ = ["LanceStore"]

DEFAULT_TABLE = "clipretrieval"
TABLE_NAME = "[A-Za-z0-9_][A-Za-z0-9_-]{0,99}"
ABOUT = "-about"
EXACT_VALUES = 1 << 27

Self = TypeVar("Self", bound="LanceStore")


class LanceStore:
    """Vectors in a table of a LanceDB database, in a folder or in object storage.

    Any number of processes may read and write, without a server. What a call wrote that returned is in files
    and seen by all; it is appended, so that its cost depends little on what is there. Threads may search
    while one writes. Its verbs are those of `~clipretrieval.stores.VectorStore`, and it is a context manager.

    Up to a size, searches compare all records, with the answers of `MemoryStore`: they are read once, and
    again after another process has written. Beyond, they go through Lance's index, once `build_index` has
    built one; the distances of what that leads to are computed exactly.

    Parameters
    ----------
    path : str or Path, optional
        A folder, made if it is not there.
    uri : str, optional
        Of object storage, in its place: ``"s3://bucket/animals"``, ``"gs://…"`` or ``"az://…"``.
    storage_options : mapping of str to str, optional
        Of the object storage, such as its region, as LanceDB takes them. Keys belong into the environment
        (``AWS_ACCESS_KEY_ID``, …); those that are given here are shown and saved nowhere.
    table : str
        The table's name, made if it is not there: 1 to 100 letters, digits, ``_`` and ``-``. Beside it lies
        ``TABLE-about``.
    metric : {"l2", "cosine", "ip"} or Metric
        Must be that of the table.
    exact_up_to : int
        The most values (records × dimension) that are compared in memory, by default 2²⁷, which is 131,072
        vectors of 1,024 dimensions; 0 searches the index wherever there is one.
    create : bool
        Make the folder and the tables where they are not there.
    timeout : float
        Seconds to wait for another writer of the folder.

    Raises
    ------
    InvalidInputError
        If the options contradict each other, or something else made the table.
    FingerprintMismatchError
        If the table has another metric.
    StoreLockedError
        If another writer holds the folder for longer than `timeout`.
    StoreUnavailableError
        If the place cannot be read or made, or, with ``create=False``, there is no table.
    """

    place_options = ("path", "uri")
    part_option = "table"

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        uri: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        table: str = DEFAULT_TABLE,
        metric: Metric | str = Metric.L2,
        exact_up_to: int = EXACT_VALUES,
        create: bool = True,
        timeout: float = 60.0,
    ) -> None:
        # Tracebacks may be printed with local variables.
        storage_options = MaskedDict(check_mapping(storage_options, "storage_options"))
        if (path is None) == (uri is None):
            raise InvalidInputError("LanceStore needs a path, or the uri of object storage, and not both")
        self._place: Path | str
        if path is not None:
            if "://" in str(path):
                raise InvalidInputError(f"path must be a folder; give object storage as uri={shown(path)}")
            self._place = check_path(path, "path").absolute()
        else:
            self._place = uri = check_text(uri, "uri")
            if masked_text(uri) != uri:
                self._place = uri = ""  # tracebacks may be printed with local variables
                raise InvalidInputError(
                    "uri holds a key or a password; give it in the environment (AWS_ACCESS_KEY_ID, …) or in "
                    "storage_options"
                )
            if "://" not in self._place:
                raise InvalidInputError(f"uri must be such as 's3://bucket/animals'; got {shown(uri)}")
        if not isinstance(table, str) or not re.fullmatch(TABLE_NAME, table) or table.endswith(ABOUT):
            raise InvalidInputError(
                f"table must be 1 to 100 of the characters a-z, A-Z, 0-9, '_' and '-', but not "
                f"{ABOUT!r} at the end; got {shown(table)}"
            )
        self._exact_up_to = check_int(exact_up_to, "exact_up_to", least=0)
        self._options, self._table, self._metric = storage_options, table, Metric.parse(metric)
        timeout = check_number(timeout, "timeout", above=0, most=1_000_000)
        self._lock = ReadWriteLock()
        self._closed = False
        self._tables = LanceTables(
            self._place, self._options, table, self._metric, check_bool(create, "create"), timeout
        )
        self._search = LanceSearch(self._tables, self._exact_up_to)
        self._dim: int | None = None

    @property
    def metric(self) -> Metric:
        """How nearness is measured."""
        return self._metric

    @property
    def dim(self) -> int | None:
        """The vectors' dimension; None until the first upsert."""
        if self._dim is None and not self._closed:
            self._require_open()
            self._dim = self._tables.dim()
        return self._dim

    def upsert(
        self,
        ids: Sequence[str],
        vectors: FloatArray,
        labels: Sequence[Label],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        batch = check_batch(ids, vectors, labels, metadata, self._metric)
        with self._writing():
            before, after = self._tables.upsert(batch)
            self._search.follow(
                before, after, lambda copy: copy.upsert(batch.ids, batch.vectors, batch.labels.tolist())
            )

    def search(self, vectors: FloatArray, k: int) -> Neighbors:
        queries, _ = check_queries(vectors, self._metric)
        reach = check_k(k)
        with self._lock.read():
            self._require_open()
            with without_range_warnings():  # the copy in memory has a check of its own
                return self._search.search(queries, reach)

    def get(self, ids: Sequence[str]) -> Records:
        names = storable_ids(check_lookup_ids(ids))
        with self._lock.read():
            self._require_open()
            return self._tables.get(names)

    def delete(self, ids: Sequence[str]) -> int:
        names = storable_ids(check_lookup_ids(ids))
        with self._writing():
            removed, before, after = self._tables.delete(names)
            self._search.follow(before, after, lambda copy: copy.delete(names))
            return removed

    def scan(self, label: Label | None = None) -> Iterator[Listing]:
        """Go through the ids and labels of all records as they are now, or of those with one label."""
        wanted = check_label(label)
        with self._lock.read():
            self._require_open()
            return self._tables.listings(wanted)

    def count(self, label: Label | None = None) -> int:
        """Return the number of stored vectors, or of those with one label."""
        wanted = check_label(label)
        with self._lock.read():
            self._require_open()
            return self._tables.count(wanted)

    def read_manifest(self) -> dict[str, Any]:
        with self._lock.read():
            self._require_open()
            found: dict[str, Any] = json.loads(self._tables.read(MANIFEST) or b"{}")
            return found

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        text = json_text(manifest, "the manifest")
        with self._writing():
            self._tables.write(MANIFEST, text.encode())

    def read_blob(self, name: str) -> bytes | None:
        """Return the blob that `write_blob` last kept under this name; None if there is none."""
        name = check_blob_name(name)
        with self._lock.read():
            self._require_open()
            return self._tables.read(BLOB + name)

    def write_blob(self, name: str, content: bytes | None) -> None:
        """Keep bytes beside the records, or with None no more; see `BlobStore.write_blob`."""
        name, content = check_blob(name, content)
        with self._writing():
            self._tables.write(BLOB + name, content)

    def build_index(self) -> float:
        """Build the index (IVF, one byte a value) that larger tables than `exact_up_to` are searched through.

        Records that come later are compared one by one until `compact` takes them in; build it anew when
        their number has doubled. Other writers of a folder wait.

        Returns
        -------
        float
            Recall@10 as measured on 100 stored vectors, at the least effort of those tried that finds 0.99 of
            their neighbors, or at the greatest. Searches use this effort.

        Raises
        ------
        UnsupportedOperationError
            If there are fewer than 1,000 records.
        """
        with self._writing(alone=False), without_range_warnings():
            return self._search.build()

    def compact(self) -> None:
        """Put small files together, take new records into the index, and remove versions older than an hour.

        Every fiftieth write of a store does the first and the last by itself.
        """
        with self._writing(alone=False):
            self._tables.tidy()

    def flush(self) -> None:
        """Return when everything written so far is on the device, if it is in a folder.

        What a call wrote that returned is in files, outlives this process, and is seen by all; a flush makes
        it outlast a loss of power too.
        """
        with self._lock.hold():
            self._require_open()
            self._tables.sync()

    def close(self) -> None:
        """Flush and free what the store holds; calling it again does nothing."""
        with self._lock.write():
            if self._closed:
                return
            self._closed = True
            self._search.forget()
            if not self._tables.inherited:
                self._dim = self._tables.dim()
                self._tables.sync()

    def location(self) -> dict[str, Any]:
        """Return the options that open the same table elsewhere, without keys of the object storage."""
        place = {"path": str(self._place)} if isinstance(self._place, Path) else {"uri": self._place}
        options = {"storage_options": without_secrets(dict(self._options))} if self._options else {}
        own = {"table": self._table, "metric": str(self._metric), "exact_up_to": self._exact_up_to}
        return {**place, **options, **own}

    @classmethod
    def exists_locally(cls, options: Mapping[str, Any]) -> bool:
        """Tell whether a store with these options would only open a table; see `LocalFilesStore`."""
        path, table = options.get("path"), options.get("table", DEFAULT_TABLE)
        known = {"path", "table", "metric", "exact_up_to"}
        if not isinstance(path, str) or not isinstance(table, str) or not set(options) <= known:
            return False
        named = re.fullmatch(TABLE_NAME, table) is not None and "://" not in path
        return named and (Path(path) / f"{table}-about.lance").is_dir()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @safe_repr
    def __repr__(self) -> str:
        state = "closed" if self._closed else self._tables.where
        return f"LanceStore(metric={str(self._metric)!r}, {state})"

    def __reduce__(self) -> Any:
        raise UnsupportedOperationError(
            f"{self!r} cannot be pickled or copied; open it elsewhere with LanceStore(**store.location())"
        )

    def __sklearn_clone__(self) -> LanceStore:
        raise unclonable(self)

    @contextmanager
    def _writing(self, alone: bool = True) -> Iterator[None]:
        """Keep other writers out and, where the copy changes too, this process's searches."""
        self._require_open()
        with self._tables.writing():
            try:
                with self._lock.write() if alone else self._lock.hold():
                    self._require_open()
                    yield
                self._tables.tidy_at_times()
            finally:
                self._tables.unsynced = True

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError("this LanceStore is closed; open it anew")
        self._tables.require_own_threads()
