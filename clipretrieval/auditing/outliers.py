"""Which images are unlike all others."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from clipretrieval.types import FloatArray

__all__ = ["SCORE_LISTED", "outlier_scores"]

SCORE_LISTED = 4.0
"""From which on an image is listed: of a normal distribution three in 100,000 are above."""
NEAREST = 10
"""Neighbors whose distance is averaged."""
TO_SPREAD = 1.4826
"""From the median deviation to the standard deviation of a normal distribution."""


def outlier_scores(distances: FloatArray) -> npt.NDArray[np.float64]:
    """Return how far each record lies from its nearest others, in robust standard deviations.

    The mean distance to the nearest ten [1]_, of which the logarithm is compared with the median of all.

    Parameters
    ----------
    distances : ndarray of float32, shape (n, k)
        To the nearest others; +inf where there are no more.

    Returns
    -------
    ndarray of float64, shape (n,)
        0 where all are as far.

    References
    ----------
    .. [1] F. Angiulli, C. Pizzuti, "Fast outlier detection in high dimensional spaces", PKDD (2002).
    """
    near = distances[:, :NEAREST].astype(np.float64)
    there = np.isfinite(near)
    if not there.any():
        return np.zeros(len(near))
    # Under ip a distance may be negative; what counts is how much farther one is than the nearest of all.
    low = min(0.0, float(near[there].min()))
    means = np.where(there, near - low, 0.0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    positive = means[means > 0]
    if not len(positive):
        return np.zeros(len(near))
    logs = np.log(np.maximum(means, positive.min()))
    middle = float(np.median(logs))
    # Equal images have no say in what is usual.
    spread = TO_SPREAD * float(np.median(np.abs(logs[means > 0] - np.median(logs[means > 0]))))
    if spread <= 1e-9:
        return np.zeros(len(near))
    found: npt.NDArray[np.float64] = (logs - middle) / spread
    return found
