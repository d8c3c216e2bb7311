"""Which stored images cause mistakes on images whose labels are known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from clipretrieval.auditing.subject import Ints

__all__ = ["shapley_values"]

Floats = npt.NDArray[np.float64]


def shapley_values(near: Ints, matches: npt.NDArray[np.bool_], k: int, n: int) -> Floats:
    """Return how much each record adds to the accuracy of k nearest neighbors: its Shapley value.

    For one test image, of the records in the order of their distance, the nearest first [1]_:

        s(N) = match(N) / k · min(k, N) / N,
        s(i) = s(i + 1) + (match(i) − match(i + 1)) / k · min(k, i) / i.

    The values of records beyond the first few are below 1 / their number and are taken as 0 [2]_. The value
    of a record is the mean over the test images.

    Parameters
    ----------
    near : ndarray of int32, shape (n_test, width)
        The records nearest to each test image, by number, nearest first; -1 where there are no more.
    matches : ndarray of bool, shape (n_test, width)
        Whether their labels are the test image's.
    k : int
    n : int
        Records in all.

    Returns
    -------
    ndarray of float64, shape (n,)
        They sum to the accuracy in the mean share of right votes, up to what is cut off; negative where a
        record does harm.

    References
    ----------
    .. [1] R. Jia et al., "Efficient task-specific data valuation for nearest neighbor algorithms",
       Proceedings of the VLDB Endowment 12 (2019), pages 1610-1623, theorem 1.
    .. [2] The same, theorem 2.
    """
    values = np.zeros(n)
    width = near.shape[1]
    there = near >= 0
    right = matches & there
    if not width or not len(near):
        return values
    running = right[:, -1] / k * min(k, n) / n if width == n else np.zeros(len(near))
    found = np.zeros(near.shape)
    found[:, -1] = running
    for place in range(width - 2, -1, -1):
        rank = place + 1
        step = right[:, place].astype(np.float64) - right[:, place + 1]
        running = running + step / k * min(k, rank) / rank
        found[:, place] = running
    np.add.at(values, near[there], found[there])
    values /= len(near)
    return values
