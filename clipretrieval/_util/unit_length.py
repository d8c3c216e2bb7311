"""Vectors scaled to length one."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["to_unit_length"]

Rows = TypeVar("Rows", npt.NDArray[np.float32], npt.NDArray[np.float64])

LEAST_SQUARABLE, MOST_SQUARABLE = 2.0**-40, 2.0**40
"""Values between these can be squared and added up in float32."""


def to_unit_length(rows: Rows) -> Rows:
    """Return the rows divided by their Euclidean norms, in a new array; a row of zeros stays one.

    The squares of very large or small values leave float32. Such rows are multiplied by a power of two first,
    which changes no digit.

    Parameters
    ----------
    rows : ndarray of float32 or float64, shape (n, dim)
        Finite.
    """
    if not rows.size:
        return rows.copy()
    largest = np.abs(rows).max(axis=1)
    far = (largest > 0) & ((largest < LEAST_SQUARABLE) | (largest > MOST_SQUARABLE))
    if far.any():
        rows = rows.copy()
        rows[far] = np.ldexp(rows[far], -np.frexp(largest[far])[1][:, None])
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    norms[norms == 0] = 1
    scaled: Rows = rows / norms[:, None]
    return scaled
