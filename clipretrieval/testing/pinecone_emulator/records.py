"""What a namespace of an emulated index holds, and when its writes can be seen."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["NamespaceContents", "Record"]

FLOAT32_MAX = float(np.finfo(np.float32).max)
# Far above the rounding of matrix products in float64.
SLACK = 1e-9


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


class NamespaceContents:
    """Records as written, and as they can be seen: each write shows after a delay, in the log's order."""

    def __init__(self, delay: float) -> None:
        self.latest: dict[str, Record] = {}
        self.lsn = 0
        self._delay = delay
        self._log: deque[tuple[float, Callable[[dict[str, Record]], None]]] = deque()
        self._seen: dict[str, Record] = {}
        self._seen_lsn = 0
        self._matrix: npt.NDArray[np.float64] | None = None
        self._squares = np.empty(0)

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

    def nearest(
        self, query: npt.NDArray[np.float32], count: int, metric: str
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Find the records that are nearest to a query.

        Parameters
        ----------
        query : ndarray of float32, shape (dimension,)
        count : int
            How many are wanted; equal scores at the end may make it more.
        metric : {"euclidean", "cosine", "dotproduct"}

        Returns
        -------
        places : ndarray of int64
            Which of the records that reads find, in their order, the best first.
        scores : ndarray of float32
            As the service gives them: squared distances under euclidean, else similarities.
        """
        records, _ = self.seen()
        if self._matrix is None:
            self._matrix = np.array([record.values for record in records.values()], dtype=np.float64)
            self._squares = np.einsum("ij,ij->i", self._matrix, self._matrix)
        left, sign = query.astype(np.float64), 1.0 if metric == "euclidean" else -1.0
        rough = self._matrix @ left
        if metric == "euclidean":
            rough = self._squares - 2 * rough + left @ left
        elif metric == "cosine":
            lengths = np.sqrt(self._squares * (left @ left))
            rough = np.divide(rough, lengths, out=np.zeros_like(rough), where=lengths > 0)
        rough *= sign
        if count < len(rough):
            slack = SLACK * (1.0 if metric == "cosine" else (left @ left + self._squares.max()))
            places = np.flatnonzero(rough <= np.partition(rough, count - 1)[count - 1] + slack)
        else:
            places = np.arange(len(rough))
        if metric == "euclidean":
            # By differences, which tell near vectors apart where products do not.
            exact = np.square(self._matrix[places] - left).sum(axis=1)
        else:
            exact = sign * rough[places]
        scores = np.clip(exact, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)
        # Equal scores in no useful order, as in the service.
        order = np.lexsort((-places, sign * scores))
        return places[order], scores[order]

    def _write(self, change: Callable[[dict[str, Record]], None]) -> int:
        change(self.latest)
        self._log.append((time.monotonic() + self._delay, change))
        self.lsn += 1
        return self.lsn
