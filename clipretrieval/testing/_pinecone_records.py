"""What an emulated index holds, and when its writes can be seen."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["IndexData", "Namespace", "Record", "scores"]


@dataclass(frozen=True, eq=False)
class Record:
    """A stored vector.

    Attributes
    ----------
    id : str
    values : ndarray of float32, shape (dimension,)
    metadata : dict
    """

    id: str
    values: npt.NDArray[np.float32]
    metadata: dict[str, Any]


class Namespace:
    """Records as written, and as they can be seen: each write shows after a delay, in the log's order."""

    def __init__(self, delay: float) -> None:
        self.latest: dict[str, Record] = {}
        self.lsn = 0
        self._delay = delay
        self._log: deque[tuple[float, Callable[[dict[str, Record]], None]]] = deque()
        self._seen: dict[str, Record] = {}
        self._seen_lsn = 0
        self._matrix: npt.NDArray[np.float32] | None = None

    def upsert(self, records: Iterable[Record]) -> int:
        """Write records and return the write's log sequence number."""
        added = {record.id: record for record in records}
        return self._write(lambda held: held.update(added))

    def delete(self, names: Iterable[str]) -> int:
        """Remove records and return the write's log sequence number."""
        gone = list(names)

        def remove(held: dict[str, Record]) -> None:
            for name in gone:
                held.pop(name, None)

        return self._write(remove)

    def catch_up(self) -> None:
        """Let reads find everything written so far."""
        self._log = deque((0.0, change) for _, change in self._log)

    def seen(self) -> tuple[dict[str, Record], int]:
        """Return the records that reads find now, and the number of the last write among them."""
        now = time.monotonic()
        while self._log and self._log[0][0] <= now:
            self._log.popleft()[1](self._seen)
            self._seen_lsn += 1
            self._matrix = None
        return self._seen, self._seen_lsn

    def matrix(self) -> npt.NDArray[np.float32]:
        """Return the vectors of the records that reads find, in their order, shape (n, dimension)."""
        records, _ = self.seen()
        if self._matrix is None:
            self._matrix = np.array([record.values for record in records.values()], dtype=np.float32)
        return self._matrix

    def _write(self, change: Callable[[dict[str, Record]], None]) -> int:
        change(self.latest)
        self._log.append((time.monotonic() + self._delay, change))
        self.lsn += 1
        return self.lsn


@dataclass(eq=False)
class IndexData:
    """One index.

    Attributes
    ----------
    dimension : int
    metric : {"euclidean", "cosine", "dotproduct"}
    delay : float
        Seconds until a write can be seen.
    namespaces : dict of str to Namespace
    """

    dimension: int
    metric: str
    delay: float
    namespaces: dict[str, Namespace] = field(default_factory=dict)

    def namespace(self, name: str) -> Namespace:
        """Return a namespace; writes make those that are not there."""
        return self.namespaces.setdefault(name, Namespace(self.delay))


def scores(
    query: npt.NDArray[np.float32], rows: npt.NDArray[np.float32], metric: str
) -> npt.NDArray[np.float32]:
    """Score rows as the service does, shape (n,): squared distances under euclidean, else similarities."""
    left, right = query.astype(np.float64), rows.astype(np.float64)
    found = np.square(right - left).sum(axis=1) if metric == "euclidean" else right @ left
    if metric == "cosine":
        lengths = np.linalg.norm(right, axis=1) * np.linalg.norm(left)
        found = np.divide(found, lengths, out=np.zeros_like(found), where=lengths > 0)
    limit = float(np.finfo(np.float32).max)
    return np.clip(found, -limit, limit).astype(np.float32)
