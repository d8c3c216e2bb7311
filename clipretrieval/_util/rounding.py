"""Vectors are kept as float32: warnings where that loses what tells them apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.warning import warn_caller
from clipretrieval.types import FloatArray, Metric

__all__ = ["RangeWatch", "warn_of_range", "warn_of_rounding", "without_range_warnings"]

DoubleArray = npt.NDArray[np.float64]

EXACT = 2**24
"""float32 holds every whole number up to this one, float64 those up to 2⁵³."""
COMPARED = 4096
"""Rows that are compared together."""
STEP, LEAST_STEP = 2.0**-23, 2.0**-149
"""Between neighboring values of float32: relative to them, and at least."""
SHARE_OF_SPREAD = 2.0**-20
"""What part of a column's spread float32 tells apart, unless the column lies far from 0."""
NOISE = 2.0**-40
"""Two float64 values that differ by less, relative to their size, may be the same one computed twice."""
MOST_ROUNDED = 2.0**-5
"""Beside the vectors' distances from their mean: rounding by more may change which is nearest."""
LARGE = float(np.sqrt(np.finfo(np.float32).max)) / 2
"""Norm up to which no squared distance exceeds float32."""
SMALL = float(np.sqrt(np.finfo(np.float32).tiny))
"""Norm below which squared distances are too small for float32."""

CENTER = (
    "Subtract the same offset from all vectors, those to be classified included, so that each column lies "
    "around 0"
)

_watched: ContextVar[bool] = ContextVar("watched", default=False)


def warn_of_rounding(given: Any, rows: FloatArray, what: str = "vectors") -> bool:
    """Warn where float32 loses more than the last digits of a value; return whether it has warned.

    That is where whole numbers are rounded, a vector's values vanish, or different rows become equal because
    of an offset: the columns' distance from 0 takes the digits that tell the rows apart.

    Parameters
    ----------
    given : array_like, shape (n, dim)
        What was converted.
    rows : ndarray of float32, shape (n, dim)
        What became of it.
    what : str
        What the warning calls them.

    Warns
    -----
    ClipRetrievalWarning
        Names the first value, or the first two rows.
    """
    wide = np.asarray(given)
    kind, size = wide.dtype.kind, wide.dtype.itemsize
    if (
        wide.shape != rows.shape
        or kind not in "iufO"
        or (kind == "f" and size <= 4)
        or (kind != "O" and size <= 2)
    ):
        return False
    for start in range(0, len(rows), COMPARED):
        part, kept = wide[start : start + COMPARED], rows[start : start + COMPARED]
        lost = _lost_values(part, kept) if kind != "O" else _lost_objects(part, kept)
        if lost.any():
            row, column = np.argwhere(lost)[0]
            value = part[row, column]
            warn_caller(
                f"{what} are kept as float32, which cannot hold some of the values: {value} in row "
                f"{start + row} becomes {float(kept[row, column])!r}. "
                f"{CENTER if abs(value) > 1 else 'Multiply all vectors by the same number'}"
            )
            return True
    if kind not in "fO":
        return False
    merged = _merged(wide, rows)
    if merged is None:
        share = _rounded_share(wide, rows)
        if share > MOST_ROUNDED:
            warn_caller(
                f"{what} are kept as float32, which rounds off {share:.0%} of what tells them apart: their "
                f"distances from each other are small beside their values. {CENTER}"
            )
            return True
        return False
    one, other, column = merged
    values = " and ".join(str(wide[row, column]) for row in (one, other))
    warn_caller(
        f"{what} are kept as float32, in which rows {one} and {other} are equal: {values} in column {column} "
        f"both become {float(rows[one, column])!r}. {CENTER}"
    )
    return True


class RangeWatch:
    """Warns once if squared distances or products leave the range of float32.

    Parameters
    ----------
    metric : Metric
        Nothing is watched under the cosine, which has no scale.
    stored : bool
        Whether the rows are to be stored: those to be looked up may be as small as they are.
    """

    def __init__(self, metric: Metric, *, stored: bool) -> None:
        self._active = metric is not Metric.COSINE
        self._stored = stored
        self._longest = 0.0
        self._tiny: FloatArray | None = None

    def see(self, rows: FloatArray, norms: DoubleArray) -> None:
        """Look at some rows, float32 of shape (n, dim), with their norms."""
        if not self._active or not len(rows):
            return
        self._longest = max(self._longest, float(norms.max()))
        if self._longest > LARGE:
            self._warn(
                f"vectors have norms up to {self._longest:.3g}: squared distances beyond float32's largest "
                "value, 3.4e38, all count as equal to it. Divide all vectors by the same number"
            )
        elif self._stored:
            self._look_for_tiny(rows, norms)

    def end(self) -> None:
        """Say that all rows were seen."""
        if self._active and self._stored and 0 < self._longest < SMALL:
            self._warn_of_small()

    def _look_for_tiny(self, rows: FloatArray, norms: DoubleArray) -> None:
        tiny = rows[norms < SMALL]
        if not len(tiny):
            return
        first = tiny[:1] if self._tiny is None else self._tiny
        self._tiny = first.copy()
        if (tiny != first).any():
            self._warn_of_small()

    def _warn_of_small(self) -> None:
        self._warn(
            "different vectors are so close to 0 that their squared distances are too small for float32, and "
            "count as equal. Multiply all vectors by the same number"
        )

    def _warn(self, message: str) -> None:
        self._active = False
        warn_caller(f"{message}; or compare directions alone, with normalize=True or metric='cosine'")


def warn_of_range(rows: FloatArray, norms: DoubleArray, metric: Metric, *, stored: bool) -> None:
    """Do what a `RangeWatch` does for one call of a store, unless that is a classifier's."""
    if not _watched.get():
        watch = RangeWatch(metric, stored=stored)
        watch.see(rows, norms)
        watch.end()


@contextmanager
def without_range_warnings() -> Iterator[None]:
    """Keep a store from warning of what a classifier has looked at before."""
    token = _watched.set(True)
    try:
        yield
    finally:
        _watched.reset(token)


def _lost_values(wide: npt.NDArray[Any], rows: FloatArray) -> npt.NDArray[np.bool_]:
    """Return where whole numbers are not exact, and where a row of other values than zero becomes zero."""
    lost: npt.NDArray[np.bool_]
    if wide.dtype.kind in "iu":
        lost = np.array((wide > EXACT) | (wide < -EXACT), dtype=np.bool_)
        large: list[int] = wide[lost].tolist()
        lost[lost] = [a != int(b) for a, b in zip(large, rows[lost].tolist(), strict=True)]
        return lost
    size = np.abs(wide)
    lost = np.array((size > EXACT) & (size <= 2**53) & (wide != rows) & (wide == np.floor(wide)))
    vanished = (size > 0) & np.logical_not(np.any(rows, axis=1, keepdims=True))
    return np.array(lost | vanished)


def _lost_objects(wide: npt.NDArray[Any], rows: FloatArray) -> npt.NDArray[np.bool_]:
    """Do the same for Python's own numbers, which can be of any size."""
    pairs = zip(wide.ravel().tolist(), rows.ravel().tolist(), strict=True)
    return np.array(
        [isinstance(a, int) and abs(a) > EXACT and a != int(b) for a, b in pairs], dtype=bool
    ).reshape(wide.shape)


def _merged(wide: npt.NDArray[Any], rows: FloatArray) -> tuple[int, int, int] | None:
    """Find two rows that an offset makes equal in float32, and a column where they differ.

    Where a column's spread is about as large as its values, values that float32 rounds to one differ by a
    millionth of it at most, and nothing can be done. What differs by more lies in a column far from 0.
    """
    if len(rows) < 2:
        return None
    low, high = rows.min(axis=0).astype(np.float64), rows.max(axis=0).astype(np.float64)
    step = np.maximum(STEP * np.maximum(np.abs(low), np.abs(high)), LEAST_STEP)
    with np.errstate(invalid="ignore"):  # rows that are not finite are refused elsewhere
        spread = high - low
    coarse = np.flatnonzero(step > SHARE_OF_SPREAD * (spread + step))
    if not len(coarse):
        return None
    pairs = _equal_pairs(rows, int(np.argmax(spread / step)))
    exact: Any = np.longdouble if wide.dtype == np.longdouble else np.float64
    for start in range(0, len(pairs), COMPARED):
        part = pairs[start : start + COMPARED]
        part = part[(rows[part[:, 0]] == rows[part[:, 1]]).all(axis=1)]
        left, right = (wide[np.ix_(part[:, side], coarse)].astype(exact) for side in (0, 1))
        bound = np.maximum(SHARE_OF_SPREAD * spread[coarse], NOISE * np.abs(left))
        found = np.argwhere(np.abs(left - right) > bound)
        if len(found):
            pair, column = found[0]
            return int(part[pair, 0]), int(part[pair, 1]), int(coarse[column])
    return None


def _rounded_share(wide: npt.NDArray[Any], rows: FloatArray) -> float:
    """Return how far rounding moves the rows, beside their distances from their mean (root mean squares)."""
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = rows.min(axis=0).astype(np.float64), rows.max(axis=0).astype(np.float64)
        sizes = np.maximum(np.abs(low), np.abs(high))
        far = (high > low) & (STEP * sizes > MOST_ROUNDED * (high - low) / COMPARED**0.5)
        if not far.any():
            return 0.0
        mean, lost, total = rows.mean(axis=0, dtype=np.float64), 0.0, 0.0
        for start in range(0, len(rows), COMPARED):
            part = wide[start : start + COMPARED].astype(np.float64)
            lost += float(np.square(part - rows[start : start + COMPARED]).sum())
            total += float(np.square(part - mean).sum())
    return float(np.sqrt(lost / total)) if 0 < total < np.inf else 0.0


def _equal_pairs(rows: FloatArray, column: int) -> npt.NDArray[np.int64]:
    """Return each row whose hash is that of one before it, with the first such, shape (n_pairs, 2).

    Parameters
    ----------
    rows : ndarray of float32, shape (n, dim)
    column : int
        One with many values: only rows that share theirs are compared as a whole.
    """
    _, inverse, counts = np.unique(rows[:, column], return_inverse=True, return_counts=True)
    shared = np.flatnonzero(counts[inverse] > 1)
    first: dict[int, int] = {}
    pairs = []
    for start in range(0, len(shared), COMPARED):
        places = shared[start : start + COMPARED]
        block = rows[places] + np.float32(0)  # -0.0 becomes 0.0, its equal
        for place, row in zip(places.tolist(), block, strict=True):
            before = first.setdefault(hash(row.tobytes()), place)
            if before != place:
                pairs.append((before, place))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)
