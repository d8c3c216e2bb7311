"""Vectors are kept as float32: a warning where that loses what was given."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._warning import warn_caller
from clipretrieval.types import FloatArray

__all__ = ["warn_of_rounding"]

EXACT = 2**24
"""float32 holds every whole number up to this one, float64 those up to 2⁵³."""
COMPARED = 4096
"""Rows that are compared together."""


def warn_of_rounding(given: Any, rows: FloatArray) -> None:
    """Warn where whole numbers are rounded, or a vector's values vanish: other rounding is as fine as 6·10⁻⁸.

    Parameters
    ----------
    given : array_like, shape (n, dim)
        What was converted.
    rows : ndarray of float32, shape (n, dim)
        What became of it.

    Warns
    -----
    ClipRetrievalWarning
        Names the first value.
    """
    wide = np.asarray(given)
    if (wide.dtype.kind == "f" and wide.dtype.itemsize <= 4) or wide.shape != rows.shape:
        return
    for start in range(0, len(rows), COMPARED):
        part, kept = wide[start : start + COMPARED], rows[start : start + COMPARED]
        lost = _lost(part, kept) if part.dtype.kind in "iuf" else _lost_objects(part, kept)
        if lost.any():
            row, column = np.argwhere(lost)[0]
            warn_caller(
                f"vectors are kept as float32, which cannot hold some of the values: {part[row, column]} in "
                f"row {start + row} becomes {float(kept[row, column])!r}. Scale or shift them, so that they "
                "lie near 1"
            )
            return


def _lost(wide: npt.NDArray[Any], rows: FloatArray) -> npt.NDArray[np.bool_]:
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
