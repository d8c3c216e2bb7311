"""The tables of one `LanceStore`: records, and beside them one of what is said about them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout

from clipretrieval._util.files import sync_folder
from clipretrieval._util.forks import LibraryThreads
from clipretrieval._util.secrets import masked_text
from clipretrieval.errors import (
    ClipRetrievalError,
    FingerprintMismatchError,
    InvalidInputError,
    StoreCorruptedError,
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.stores.candidates import CandidateRecords
from clipretrieval.stores.checks import Batch, check_dim, check_label_kind
from clipretrieval.types import AnyArray, FloatArray, Label, Listing, Metric, Records, as_label_array

__all__ = ["BLOB", "FOUND", "INDEX", "MANIFEST", "METRICS", "LanceTables", "candidates_in"]

FORMAT = 1
FORMAT_KEY, METRIC_KEY = b"clipretrieval:format", b"clipretrieval:metric"
# Keys in the table of what is said about the records.
MANIFEST, INDEX, BLOB = "manifest", "index", "blob:"
# An id that two writers insert at once, without a lock between them, would otherwise be there twice.
ID = pa.field("id", pa.string(), nullable=False, metadata={"lance-schema:unenforced-primary-key": "true"})
ABOUT = pa.schema([ID, pa.field("content", pa.large_binary(), nullable=False)])
FOUND = ["id", "vector", "label"]
BLOCK_VALUES, BLOCK_RECORDS = 1 << 23, 1 << 14
"""The most that is read at a time where all records are: 32 MiB of vectors."""
LOOKUP_IDS = 5000
MOST_ATTEMPTS = 5
"""How often a write begins anew where another changed the table under it; Lance repeats most by itself."""
TIDIED_AFTER = 50
"""Writes after which small files are put together and old versions let go."""
KEPT = timedelta(hours=1)
"""How long the files of an old version stay, which another process may be reading."""
CONTENDED = re.compile(
    "commit conflict for|too many concurrent|manifest contention|ncompatible transaction", re.I
)
"""What Lance says where other writers were in the way."""
FAILURES = (OSError, RuntimeError, ValueError, pa.ArrowException)
"""What Lance raises."""
METRICS: dict[Metric, Any] = {Metric.L2: "l2", Metric.COSINE: "cosine", Metric.IP: "dot"}
_threads = LibraryThreads()


class LanceTables:
    """Two tables of a database, which are opened, or made if they are not there and may be made.

    Parameters
    ----------
    place : Path or str
        A folder, or a URI of object storage.
    options : mapping
        Of the object storage.
    name : str
        Of the table of records.
    metric : Metric
    create : bool
    timeout : float
        Seconds to wait for another writer of the folder.
    """

    def __init__(
        self,
        place: Path | str,
        options: Mapping[str, Any],
        name: str,
        metric: Metric,
        create: bool,
        timeout: float,
    ) -> None:
        self.place, self.name, self.metric = place, name, metric
        self._options, self._timeout = options, timeout
        self._records: Any = None
        self._written, self._synced = 0, set[str]()
        self.unsynced = False
        self.require_own_threads()
        if isinstance(place, Path):
            try:
                if create:
                    place.mkdir(parents=True, exist_ok=True)
                there = place.is_dir()
            except OSError as error:
                raise StoreUnavailableError(f"the folder {str(place)!r} cannot be made: {error}") from error
            if not there:
                raise self._absent()
        with self.translated():
            self._database = lancedb.connect(str(place), storage_options=dict(options) or None)
        about = self._opened(f"{name}-about")
        self._about = self._made(create) if about is None else about
        self._check()

    @property
    def where(self) -> str:
        """The table in words."""
        return f"table {self.name!r} in {str(self.place)!r}"

    @property
    def inherited(self) -> bool:
        """Whether Lance's threads are those of a process that this one was forked from."""
        return not _threads.are_here()

    def require_own_threads(self) -> None:
        """Refuse Lance in a forked process, where it makes threads anew and then often crashes or hangs.

        Raises
        ------
        UnsupportedOperationError
        """
        if self.inherited:
            raise UnsupportedOperationError(
                f"the {self.where} cannot be used: a process that this one was forked from used LanceDB, "
                'whose threads stayed behind. Start this process by the method "spawn" or "forkserver" of '
                "multiprocessing, and open a LanceStore in it"
            )

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raise this library's errors in the place of Lance's, which are those of Python."""
        try:
            yield
        except ClipRetrievalError:
            raise
        except FAILURES as error:
            text = masked_text(" ".join(str(error).split())[:500])
            if CONTENDED.search(text):
                raise StoreLockedError(
                    f"other writers got in the way of this one too often: {text}"
                ) from error
            if isinstance(error, OSError) or "was not found" in text:
                raise StoreUnavailableError(
                    f"the {self.where} cannot be read or written: {text}. Look whether it is there, and who "
                    "may use it"
                ) from error
            raise StoreError(f"the {self.where} failed: {text}") from error

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other writers of a folder out; in object storage Lance settles who was first.

        Raises
        ------
        StoreLockedError
            If one of them holds it for too long.
        """
        lock: Any = nullcontext()
        try:
            if isinstance(self.place, Path):  # who may write the folder may lock it
                path, mode = self.place / f".{self.name}.lock", self.place.stat().st_mode & 0o666
                lock = FileLock(path, timeout=self._timeout, mode=mode, poll_interval=0.01)
            with lock, self.translated():
                yield
        except Timeout as error:
            raise StoreLockedError(
                f"another writer has held the {self.where} for {self._timeout:g} s; try again"
            ) from error
        except OSError as error:
            raise StoreUnavailableError(
                f"the {self.where} cannot be written: {error}; check the folder's permissions"
            ) from error

    def _opened(self, name: str) -> Any:
        """Return a table as it is now, or None where there is none of that name."""
        with self.translated():
            try:
                return self._database.open_table(name)
            except ValueError as error:
                if "was not found" not in str(error):
                    raise
        return None

    def _absent(self) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"there is no {self.where}; check the path and the name, or leave out create=False to make it"
        )

    def _made(self, create: bool) -> Any:
        if self._opened(self.name) is not None:
            raise InvalidInputError(f"the {self.where} was not made by LanceStore; give another as table=")
        if not create:
            raise self._absent()
        kept = {FORMAT_KEY: str(FORMAT).encode(), METRIC_KEY: str(self.metric).encode()}
        schema = ABOUT.with_metadata(kept)
        with self.writing():
            self.unsynced = True
            return self._database.create_table(f"{self.name}-about", schema=schema, exist_ok=True)

    def _check(self) -> None:
        kept = self._about.schema.metadata or {}
        version, metric = (kept.get(key, b"").decode() for key in (FORMAT_KEY, METRIC_KEY))
        if version != str(FORMAT):
            raise StoreCorruptedError(
                f"the {self.where} is of format version {version!r}; this version of clipretrieval reads "
                f"version {FORMAT}. Install one that reads version {version!r}"
            )
        if metric != str(self.metric):
            raise FingerprintMismatchError(
                f"the {self.where} was made with metric {metric!r}; found metric={str(self.metric)!r}. Open "
                f"it with metric={metric!r}, or give another table"
            )

    def records(self) -> Any:
        """Return the table of records as it is now; None before the first."""
        if self._records is None:
            self._records = self._opened(self.name)
        else:
            with self.translated():
                self._records.checkout_latest()
        return self._records

    def dim(self) -> int | None:
        """Return the dimension that the table holds vectors to."""
        records = self._records if self._records is not None else self.records()
        return None if records is None else int(records.schema.field("vector").type.list_size)

    def upsert(self, batch: Batch) -> tuple[int, int]:
        """Add or replace the records of a batch, in one step.

        Returns
        -------
        int, int
            The version before and the one after; the same one where the table was made.
        """
        rows = _rows(batch)
        records = self.records()
        if records is None:
            try:
                self._records = self._database.create_table(self.name, data=rows, schema=rows.schema)
            except ValueError as error:
                if "already exists" not in str(error):
                    raise
                records = self.records()  # without a lock, another has made it meanwhile
            else:
                return 0, 0
        check_dim(batch.vectors.shape[1], self.dim())
        kind = records.schema.field("label").type
        if kind != rows.schema.field("label").type:
            held = np.empty(records.count_rows(), dtype=object if kind == pa.string() else np.int64)
            check_label_kind(batch.labels, held)
            self._records = self._database.create_table(
                self.name, data=rows, schema=rows.schema, mode="overwrite"
            )
            return 0, 0
        return records.version, _merge(records, rows)

    def delete(self, ids: list[str]) -> tuple[int, int, int]:
        """Delete the records of the ids; return how many were there, and the versions before and after."""
        records = self.records()
        if records is None:
            return 0, 0, 0
        before, removed, after = records.version, 0, records.version
        for part in _parts(list(dict.fromkeys(ids))):
            done = records.delete(f"id IN ({part})")
            removed, after = removed + done.num_deleted_rows, done.version
        return removed, before, after

    def count(self, label: Label | None) -> int:
        """Return the number of records, or of those with a label."""
        records = self.records()
        with self.translated():
            return 0 if records is None else int(records.count_rows(_with_label(records, label)))

    def get(self, ids: list[str]) -> Records:
        """Return the records of the ids, in their order, without those that are not there."""
        records = self.records()
        found: dict[str, Any] = {}
        with self.translated():
            for part in _parts(list(dict.fromkeys(ids))) if records is not None else ():
                rows = records.search().where(f"id IN ({part})").to_arrow()
                parts = (_vectors(rows), _labels(rows).tolist(), rows["metadata"].to_pylist())
                found.update(zip(rows["id"].to_pylist(), zip(*parts, strict=True), strict=True))
        kept = [name for name in ids if name in found]
        vectors = np.empty((len(kept), self.dim() or 0), dtype=np.float32)
        for place, name in enumerate(kept):
            vectors[place] = found[name][0]
        labels = as_label_array([found[name][1] for name in kept])
        metadata = [json.loads(found[name][2]) for name in kept]
        return Records(np.array(kept, dtype=object), vectors, labels, metadata)

    def blocks(self, records: Any) -> Iterator[CandidateRecords]:
        """Yield all records of a version, some at a time."""
        size = min(BLOCK_RECORDS, max(1, BLOCK_VALUES // (self.dim() or 1)))
        with self.translated():
            for rows in records.search().select(FOUND).to_batches(size):
                if len(rows):
                    yield candidates_in(rows)

    def listings(self, label: Label | None) -> Iterator[Listing]:
        """Go through the ids and labels of the records as they are now."""
        records = self.records()
        if records is None:
            return iter(())
        with self.translated():
            query, condition = records.search().select(["id", "label"]), _with_label(records, label)
            rows = (query if condition is None else query.where(condition)).to_batches(4096)
        return (Listing(_ids(each), _labels(each)) for each in self._read(rows) if len(each))

    def _read(self, batches: Any) -> Iterator[pa.RecordBatch]:
        with self.translated():
            self.require_own_threads()
            for batch in batches:
                yield batch
                self.require_own_threads()  # before the next one is read

    def read(self, key: str) -> bytes | None:
        """Return what is kept under a key."""
        with self.translated():
            self._about.checkout_latest()
            rows = self._about.search().where(f"id = {_quoted(key)}").to_arrow()
        return rows["content"][0].as_py() if len(rows) else None

    def write(self, key: str, content: bytes | None) -> None:
        """Keep something under a key, or with None nothing any more."""
        self._about.checkout_latest()
        if content is None:
            self._about.delete(f"id = {_quoted(key)}")
        else:
            rows = [pa.array([key]), pa.array([content], pa.large_binary())]
            _merge(self._about, pa.table(rows, schema=self._about.schema))

    def sync(self) -> None:
        """Have the system put on the device what has come into a folder since the last time."""
        if not isinstance(self.place, Path) or not self.unsynced:
            return
        self.unsynced, there = False, set[str]()
        try:
            with self.translated():
                for name in (self.name, f"{self.name}-about"):
                    for folder, _, files in os.walk(self.place / f"{name}.lance"):
                        paths = {f"{folder}{os.sep}{file}" for file in files}
                        for path in paths - self._synced:  # no file changes once it is written
                            with suppress(FileNotFoundError):  # of an old version, which went meanwhile
                                _sync(path)
                        sync_folder(folder)
                        there |= paths
                sync_folder(self.place)
        except BaseException:
            self.unsynced = True
            raise
        self._synced = there

    def tidy(self) -> None:
        """Put small files together, take new records into the index, and let old versions go."""
        for table in (self.records(), self._about):
            if table is not None:
                table.checkout_latest()
                table.optimize(cleanup_older_than=KEPT)

    def tidy_at_times(self) -> None:
        """Tidy after many writes; another writer's may come between, and the next time will do."""
        self._written += 1
        if self._written % TIDIED_AFTER == 0:
            with suppress(*FAILURES, StoreError):
                self.tidy()


def candidates_in(rows: Any) -> CandidateRecords:
    """Return records from the columns id, vector and label."""
    return CandidateRecords(_ids(rows), _vectors(rows), _labels(rows))


def _rows(batch: Batch) -> pa.Table:
    width, texts = batch.vectors.shape[1], batch.labels.dtype == object
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(batch.vectors.ravel()), width)
    labels = pa.array(batch.labels.tolist(), pa.string() if texts else pa.int64())
    columns = {"vector": vectors, "label": labels, "metadata": pa.array(batch.metadata, pa.string())}
    fields = [pa.field(name, column.type, nullable=False) for name, column in columns.items()]
    return pa.table([pa.array(batch.ids, pa.string()), *columns.values()], schema=pa.schema([ID, *fields]))


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _merge(table: Any, rows: pa.Table) -> int:
    """Add or replace rows by their ids, and return the version after it."""
    merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
    for attempt in range(MOST_ATTEMPTS):
        try:
            return int(merge.execute(rows).version)
        except FAILURES as error:
            if "ncompatible transaction" not in str(error) or attempt == MOST_ATTEMPTS - 1:
                raise
        table.checkout_latest()
    raise AssertionError("unreachable")


def _ids(rows: Any) -> AnyArray:
    return np.array(rows["id"].to_pylist(), dtype=object)


def _vectors(rows: Any) -> FloatArray:
    column = rows["vector"]
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    values: FloatArray = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1) if len(column) else np.empty((0, 0), dtype=np.float32)


def _labels(rows: Any) -> AnyArray:
    return as_label_array(rows["label"].to_pylist())


def _with_label(records: Any, label: Label | None) -> str | None:
    if label is None:
        return None
    if isinstance(label, str) != (records.schema.field("label").type == pa.string()):
        return "false"
    return f"label = {_quoted(label) if isinstance(label, str) else _number(label)}"


def _number(label: int) -> str:
    return f"CAST('{label}' AS BIGINT)"  # the least of all is not read as a number


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _parts(ids: list[str]) -> Iterator[str]:
    for start in range(0, len(ids), LOOKUP_IDS):
        yield ", ".join(map(_quoted, ids[start : start + LOOKUP_IDS]))
