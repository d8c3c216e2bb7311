"""A vector store for clipretrieval in one SQLite file, searched exactly."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval.errors import (
    DimensionMismatchError,
    FingerprintMismatchError,
    InvalidInputError,
    StoreCorruptedError,
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
)
from clipretrieval.stores import MemoryStore
from clipretrieval.types import Label, Listing, Metric, Neighbors, Records, as_label_array

__all__ = ["SqliteStore"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    id TEXT PRIMARY KEY, vector BLOB NOT NULL, label NOT NULL, metadata TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS records_by_label ON records (label);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
# Rows that are compared at a time: what a search keeps in memory beside its answer.
BLOCK_ROWS = 4096
FLOAT32_MAX = float(np.finfo(np.float32).max)


class SqliteStore:
    """Labelled vectors in one SQLite file; every write is a transaction, so nothing is stored by halves.

    Threads may share a store, and take turns. Several processes may open one file.

    Parameters
    ----------
    path : str or Path
        The file, made if it is not there.
    metric : {"l2", "cosine", "ip"} or Metric
        Must be that of the file.

    Raises
    ------
    FingerprintMismatchError
        If the file holds another metric.
    StoreCorruptedError
        If the file is not an SQLite database.
    StoreUnavailableError
        If it cannot be opened.
    """

    def __init__(self, path: str | Path, *, metric: Metric | str = "l2") -> None:
        self._metric = Metric.parse(metric)
        self._path = Path(path).absolute()
        self._lock = threading.RLock()
        self._open = True
        with self._translated():
            self._database = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        try:
            with self._translated():
                self._database.executescript(SCHEMA)
            with self._transaction(write=True):
                held = self._setting("metric")
                if held is None:
                    self._set("metric", str(self._metric))
        except BaseException:
            self._database.close()
            raise
        if held not in (None, str(self._metric)):
            self._database.close()
            raise FingerprintMismatchError(
                f"the store in {self._path} was made with metric {held!r}; found metric="
                f"{str(self._metric)!r}. Open it with metric={held!r}, or name a new file"
            )

    @property
    def metric(self) -> Metric:
        """How nearness is measured."""
        return self._metric

    @property
    def dim(self) -> int | None:
        """The vectors' dimension; None until the first upsert."""
        with self._transaction():
            found = self._setting("dim")
        return None if found is None else int(found)

    def upsert(
        self,
        ids: Sequence[str],
        vectors: npt.NDArray[np.float32],
        labels: Sequence[Label],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Add vectors, replacing wholly those whose id is already there."""
        batch = self._checked(ids, vectors, labels, metadata)
        texts = (json.dumps(each) for each in batch.metadata)
        blobs = (row.astype("<f4").tobytes() for row in batch.vectors)
        rows = zip(batch.ids.tolist(), blobs, batch.labels.tolist(), texts, strict=True)
        with self._transaction(write=True):
            self._check_dim(batch.vectors.shape[1])
            self._check_label(batch.labels[0])
            self._set("dim", str(batch.vectors.shape[1]))
            self._database.executemany("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)", rows)

    def search(self, vectors: npt.NDArray[np.float32], k: int) -> Neighbors:
        """Return the `k` nearest stored vectors of each query, exactly."""
        blank = MemoryStore(self._metric).search(vectors, k)  # checks the arguments and answers with padding
        queries = np.asarray(vectors, dtype=np.float32)
        nearest: list[list[tuple[float, str, Label]]] = [[] for _ in queries]
        with self._transaction():
            self._check_dim(queries.shape[1])
            for ids, rows, labels in self._blocks():
                for place, distances in enumerate(self._distances(queries, rows)):
                    first = np.argsort(distances, kind="stable")[: blank.ids.shape[1]].tolist()
                    found = [(float(distances[row]), ids[row], labels[row]) for row in first]
                    nearest[place] = sorted(nearest[place] + found)[: blank.ids.shape[1]]
        return self._packed(nearest, blank)

    def get(self, ids: Sequence[str]) -> Records:
        """Return the records of `ids`, in that order; ids that are not stored are left out."""
        lookup = self._lookup(ids)
        query = "SELECT id, vector, label, metadata FROM records WHERE id = ?"
        with self._transaction():
            found = [row for name in lookup for row in self._database.execute(query, (name,))]
            dim = self.dim or 0
        names = np.empty(len(found), dtype=object)
        names[:] = [row[0] for row in found]
        vectors = np.frombuffer(b"".join(row[1] for row in found), dtype="<f4").astype(np.float32)
        labels = as_label_array([row[2] for row in found])
        return Records(names, vectors.reshape(len(found), dim), labels, [json.loads(row[3]) for row in found])

    def delete(self, ids: Sequence[str]) -> int:
        """Remove the records of `ids` and return how many of them were there."""
        lookup = self._lookup(ids)
        query = "DELETE FROM records WHERE id = ?"
        with self._transaction(write=True):
            return sum(self._database.execute(query, (name,)).rowcount for name in lookup)

    def scan(self, label: Label | None = None) -> Iterator[Listing]:
        """Go through the ids and labels of all records, or of those with one label."""
        MemoryStore(self._metric).scan(label)  # checks the argument
        self.count()  # refuses here already what is closed or damaged
        return self._listings(label)

    def _listings(self, label: Label | None) -> Iterator[Listing]:
        query = """
            SELECT id, label FROM records
            WHERE id > :last AND (:label IS NULL OR label = :label) ORDER BY id LIMIT :most
        """
        last = ""  # before every id
        while True:
            with self._transaction():
                cursor = self._database.execute(query, {"last": last, "label": label, "most": BLOCK_ROWS})
                found = cursor.fetchall()
            if not found:
                return
            names = np.empty(len(found), dtype=object)
            names[:] = [row[0] for row in found]
            yield Listing(names, as_label_array([row[1] for row in found]))
            last = found[-1][0]

    def count(self, label: Label | None = None) -> int:
        """Return the number of stored vectors, or of those with one label."""
        MemoryStore(self._metric).count(label)  # checks the argument
        of_label = "SELECT count(*) FROM records WHERE label = :label"
        query = "SELECT count(*) FROM records" if label is None else of_label
        with self._transaction():
            return int(self._database.execute(query, {"label": label}).fetchone()[0])

    def read_manifest(self) -> dict[str, Any]:
        """Return what `write_manifest` last kept; an empty dict if nothing was."""
        with self._transaction():
            found: dict[str, Any] = json.loads(self._setting("manifest") or "{}")
        return found

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Keep a small JSON object beside the vectors, replacing the one before."""
        checker = MemoryStore(self._metric)
        checker.write_manifest(manifest)
        with self._transaction(write=True):
            self._set("manifest", json.dumps(checker.read_manifest()))

    def flush(self) -> None:
        """Do nothing: every write is durable when it returns."""

    def close(self) -> None:
        """Free the file; calling it again does nothing."""
        with self._lock:
            self._open = False
            self._database.close()

    def location(self) -> dict[str, Any]:
        """Return the options that open the same file elsewhere."""
        return {"path": str(self._path), "metric": str(self._metric)}

    @classmethod
    def exists_locally(cls, options: Mapping[str, Any]) -> bool:
        """Tell whether these options only open a file that a store has made: saved classifiers ask for it."""
        path = options.get("path")
        if not isinstance(path, str) or not set(options) <= {"path", "metric"} or not Path(path).is_file():
            return False
        try:
            with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as database:
                found = database.execute(
                    "SELECT COUNT(*) FROM sqlite_master "
                    "WHERE type = 'table' AND name IN ('records', 'settings')"
                ).fetchone()
        except sqlite3.Error:
            return False
        return bool(found == (2,))

    def _checked(self, *batch: Any) -> Records:
        """Return an upsert's arguments as records; a MemoryStore refuses what no store may take."""
        checker = MemoryStore(self._metric)
        batch = tuple(map(_listed, batch))
        checker.upsert(*batch)
        return checker.get(batch[0])

    def _lookup(self, ids: Sequence[str]) -> list[str]:
        """Return the ids that can be there: none that holds half a surrogate pair is ever stored."""
        names = _listed(ids)
        MemoryStore(self._metric).get(names)  # checks the argument
        return [name for name in names if name.encode("utf-8", "ignore").decode() == name]

    def _check_dim(self, found: int) -> None:
        dim = self.dim
        if dim not in (None, found):
            raise DimensionMismatchError(
                f"the vectors have dimension {found}; the store holds dimension {dim}"
            )

    def _check_label(self, label: Label) -> None:
        held = self._database.execute("SELECT label FROM records LIMIT 1").fetchone()
        if held is not None and isinstance(held[0], str) != isinstance(label, str):
            raise InvalidInputError(
                f"the store holds labels such as {held[0]!r}; found {label!r}. Convert them first"
            )

    def _blocks(self) -> Iterator[tuple[list[str], npt.NDArray[np.float64], list[Label]]]:
        """Yield ids, vectors and labels in the order of the ids."""
        cursor = self._database.execute("SELECT id, vector, label FROM records ORDER BY id")
        while block := cursor.fetchmany(BLOCK_ROWS):
            ids, blobs, labels = zip(*block, strict=True)
            rows = np.frombuffer(b"".join(blobs), dtype="<f4").reshape(len(ids), -1)
            yield list(ids), rows.astype(np.float64), list(labels)

    def _distances(
        self, queries: npt.NDArray[np.float32], rows: npt.NDArray[np.float64]
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Yield each query's distances to the rows, computed in float64."""
        for query in queries.astype(np.float64):
            if self._metric is Metric.L2:
                distances = np.square(rows - query).sum(axis=1)
            elif self._metric is Metric.IP:
                distances = -(rows @ query)
            else:
                cosines = rows @ query / np.sqrt(np.square(rows).sum(axis=1) * np.square(query).sum())
                distances = np.maximum(1 - cosines, 0)  # rounding may lead below
            # Only padding is at infinity.
            yield np.clip(distances, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)

    def _packed(self, nearest: list[list[tuple[float, str, Label]]], blank: Neighbors) -> Neighbors:
        """Write the neighbours over the padding."""
        if not nearest[0]:
            return blank
        if not isinstance(nearest[0][0][2], str):
            blank = Neighbors(blank.ids, blank.distances, np.full(blank.ids.shape, -1, dtype=np.int64))
        for place, found in enumerate(nearest):
            distances, ids, labels = zip(*found, strict=True)
            blank.distances[place, : len(found)] = distances
            blank.ids[place, : len(found)] = ids
            blank.labels[place, : len(found)] = labels
        return blank

    def _setting(self, name: str) -> str | None:
        found = self._database.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return None if found is None else str(found[0])

    def _set(self, name: str, value: str) -> None:
        self._database.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, value))

    @contextmanager
    def _transaction(self, *, write: bool = False) -> Iterator[None]:
        """Do all or nothing of what the block does, and see nothing change meanwhile."""
        with self._lock, self._translated():
            if not self._open:
                raise StoreError(f"the store in {self._path} is closed; open it anew")
            if self._database.in_transaction:  # a transaction within this thread's own
                yield
                return
            self._database.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            with self._database:
                yield

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise SQLite's errors as those that every store raises."""
        try:
            yield
        except sqlite3.OperationalError as error:
            kind = StoreLockedError if "locked" in str(error) else StoreUnavailableError
            raise kind(f"the store in {self._path} cannot be used: {error}") from error
        except sqlite3.DatabaseError as error:
            raise StoreCorruptedError(f"the store in {self._path} is damaged: {error}") from error


def _listed(values: Any) -> Any:
    """Return a list in the place of an iterator, which can be gone through only once."""
    return list(values) if isinstance(values, Iterator) else values
