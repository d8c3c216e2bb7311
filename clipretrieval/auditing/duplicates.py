"""Which images are identical, or nearly: pairs, and the groups that they form."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clipretrieval.auditing.subject import Ints
from clipretrieval.types import FloatArray

__all__ = ["Pairs", "Scale", "UnionFind", "candidate_pairs"]

Floats = npt.NDArray[np.float64]

TRIED = 5
"""Neighbors of each image that may be its duplicates."""
FARTHEST = 20
"""The neighbor whose distance tells what is far around an image; nearer ones may be duplicates too."""
LEAST_NEIGHBORS = 5
"""Below, nothing can be said of what is usual: only equal vectors are duplicates."""
UNUSUAL = 10.0
"""Standard deviations of the logarithm of a ratio of distances, from which on it is unusually small."""
WIDEST = 0.1
"""Ratio of squared distances, above which vectors alone never show a duplicate."""
WORTH_LOOKING = 0.6
"""And above which no files are looked at."""
SMALLEST = 1e-9
"""Ratio of images that are as near as any two, where it cannot be told whether they are equal."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Images that may be the same, each pair once.

    Attributes
    ----------
    left, right : ndarray of int64, shape (n,)
        Their numbers; those of the test images are behind those of the records.
    distances : ndarray of float32, shape (n,)
        NaN where none was measured.
    ratios : ndarray of float64, shape (n,)
        The distance, in parts of what is far around the two; 0 where they are equal, NaN where none was
        measured.
    """

    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    distances: FloatArray
    ratios: Floats

    def __len__(self) -> int:
        return len(self.left)

    def take(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Pairs:
        """Return some of the pairs."""
        return Pairs(self.left[chosen], self.right[chosen], self.distances[chosen], self.ratios[chosen])

    @classmethod
    def joined(cls, parts: Iterable[Pairs]) -> Pairs:
        """Return the pairs of several, each once; of equal ones the first stays."""
        listed = list(parts)
        left, right = (np.concatenate([getattr(each, name) for each in listed]) for name in ("left", "right"))
        low, high = np.minimum(left, right), np.maximum(left, right)
        first = np.unique(np.stack([low, high]), axis=1, return_index=True)[1]
        distances, ratios = (
            np.concatenate([getattr(each, name) for each in listed])[first]
            for name in ("distances", "ratios")
        )
        return cls(low[first], high[first], distances, ratios)


@dataclass(frozen=True)
class Scale:
    """What is far, and how small a part of that is unusual, as the neighbors of all images show.

    Attributes
    ----------
    offset : float
        Taken from all distances; not 0 only where they may be negative.
    bound : float
        Ratio up to which vectors alone show a duplicate.
    """

    offset: float
    bound: float

    @classmethod
    def of(cls, distances: FloatArray) -> Scale:
        """Learn from the distances to the nearest others, shape (n, k)."""
        finite = distances[np.isfinite(distances)]
        offset = min(0.0, float(finite.min())) if len(finite) else 0.0
        ratios = _ratios(distances[:, :1], far(distances, offset)[:, None], offset).ravel()
        usual = ratios[np.isfinite(ratios) & (ratios > 0)]
        if distances.shape[1] < LEAST_NEIGHBORS or len(usual) < LEAST_NEIGHBORS or offset < 0:
            return cls(offset, 0.0)  # an inner product says nothing of whether two are the same
        logs = np.log(usual)
        middle, low, high = np.quantile(logs, (0.5, 0.16, 0.84))
        # Duplicates make the lower half wider, so that the upper one tells, where it is the narrower.
        spread = max(min(middle - low, 2 * (high - middle)), 1e-3)
        return cls(offset, float(min(WIDEST, np.exp(middle - UNUSUAL * spread))))


def far(distances: FloatArray, offset: float = 0.0) -> Floats:
    """Return the distance to the farthest neighbor that was looked up, at most the twentieth, shape (n,)."""
    width = min(distances.shape[1], FARTHEST)
    if not width:
        return np.zeros(len(distances))
    last = np.isfinite(distances[:, :width]).sum(axis=1) - 1
    rows = np.arange(len(distances))
    farthest: Floats = distances[rows, np.maximum(last, 0)].astype(np.float64) - offset
    return np.where(last >= 0, farthest, 0.0)


def _ratios(distances: FloatArray, scale: Floats, offset: float) -> Floats:
    measured = distances.astype(np.float64) - offset
    with np.errstate(divide="ignore", invalid="ignore"):
        found = measured / scale
    # Where distances may be negative, the least one is that of the two nearest, equal or not.
    found[measured == 0] = 0.0 if offset == 0 else SMALLEST
    return found


def candidate_pairs(
    first: int, near: Ints, distances: FloatArray, record_scale: Floats, scale: Scale
) -> Pairs:
    """Return the pairs of images with their nearest records that may be duplicates.

    Parameters
    ----------
    first : int
        The number of the first image; the next ones follow.
    near : ndarray of int32, shape (n, k)
    distances : ndarray of float32, shape (n, k)
    record_scale : ndarray of float64, shape (n_records,)
        What is far around each record.
    scale : Scale
    """
    width = min(TRIED, near.shape[1])
    own = far(distances, scale.offset)
    ratios = _ratios(distances[:, :width], own[:, None], scale.offset)
    there = near[:, :width] >= 0
    around = np.where(there, record_scale[np.maximum(near[:, :width], 0)], np.inf)
    other = _ratios(distances[:, :width], around, scale.offset)
    # An outlier is far from everything; what is unusual for one of the two is unusual.
    found = np.fmin(ratios, other)
    rows, columns = np.nonzero(there & (found <= WORTH_LOOKING))
    return Pairs(
        first + rows.astype(np.int64),
        near[rows, columns].astype(np.int64),
        distances[rows, columns],
        found[rows, columns],
    )


class UnionFind:
    """Images that belong together, directly or by way of others.

    R. E. Tarjan, "Efficiency of a good but not linear set union algorithm", Journal of the ACM 22 (1975).
    """

    def __init__(self) -> None:
        self._parents: dict[int, int] = {}

    def find(self, item: int) -> int:
        """Return the one that stands for an image's group."""
        root = item
        while self._parents.get(root, root) != root:
            root = self._parents[root]
        while self._parents.get(item, item) != root:
            self._parents[item], item = root, self._parents[item]
        return root

    def join(self, left: int, right: int) -> None:
        """Put two images into one group."""
        one, other = self.find(left), self.find(right)
        self._parents[max(one, other)] = self._parents[min(one, other)] = min(one, other)
