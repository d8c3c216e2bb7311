"""How well a distance, or a share of the votes, tells right answers from wrong ones.

Distances are lower for nearer neighbours under every metric, so a low one should mean a right answer. Where
there was no neighbour the distance is ``+inf``: the least trusted of all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from clipretrieval._checks import check_int
from clipretrieval.errors import InvalidInputError
from clipretrieval.evaluation.metrics import wilson_interval

__all__ = [
    "DistanceHistogram",
    "RiskCoverage",
    "accuracy_by_decile",
    "distance_histogram",
    "error_auroc",
    "risk_coverage",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DECILES = 10


@dataclass(frozen=True, eq=False)
class DistanceHistogram:
    """Counts of right and of wrong answers over the distance.

    Attributes
    ----------
    edges : ndarray of float64, shape (n_bins + 1,)
        Ascending. A bin holds its lower edge and not its upper one; the last one holds both.
    right, wrong : ndarray of int64, shape (n_bins,)
    """

    edges: Floats
    right: Ints
    wrong: Ints


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """What is kept, and how much of it is wrong, when answers beyond a distance are withheld.

    One point for each distinct distance: answers at the same distance are kept or withheld together.

    Attributes
    ----------
    thresholds : ndarray of float64, shape (n_points,)
        Ascending. Answers at this distance or nearer are kept; the last may be ``+inf``.
    kept : ndarray of int64, shape (n_points,)
        How many these are; the last is the number of all answers.
    errors : ndarray of int64, shape (n_points,)
        How many of those kept are wrong.
    """

    thresholds: Floats
    kept: Ints
    errors: Ints

    @property
    def coverage(self) -> Floats:
        """Share of the answers that are kept, in (0, 1]."""
        shares: Floats = self.kept / self.kept[-1]
        return shares

    @property
    def risk(self) -> Floats:
        """Share of wrong answers among those kept, in [0, 1]."""
        shares: Floats = self.errors / self.kept
        return shares

    @property
    def area(self) -> float:
        """The area under the curve, in [0, 1]; lower is better.

        The mean, over i = 1 … n, of the risk when the i nearest answers are kept [1]_. Answers at the same
        distance have no order: the mean over all their orders is taken.

        References
        ----------
        .. [1] Y. Geifman, G. Uziel, R. El-Yaniv, "Bias-reduced uncertainty estimation for deep neural
           classifiers", ICLR (2019), section 2.
        """
        before_kept = np.concatenate([[0], self.kept[:-1]])
        before_wrong = np.concatenate([[0], self.errors[:-1]])
        sizes = self.kept - before_kept
        # Of the first j of a group of ties, j × (errors of the group) / (its size) are expected to be wrong.
        rate = np.repeat((self.errors - before_wrong) / sizes, sizes)
        place = np.arange(1, self.kept[-1] + 1)
        wrong = np.repeat(before_wrong, sizes) + (place - np.repeat(before_kept, sizes)) * rate
        return float((wrong / place).mean())

    @property
    def best_area(self) -> float:
        """The least area that any order of these answers has: all right ones before all wrong ones."""
        n, wrong = int(self.kept[-1]), int(self.errors[-1])
        place = np.arange(1, n + 1)
        return float((np.maximum(place - (n - wrong), 0) / place).mean())

    def thinned(self, most: int) -> RiskCoverage:
        """Keep at most so many points, spread evenly over the coverage; each one stays exact.

        Parameters
        ----------
        most : int
            At least 2. The first and the last point are always among them.
        """
        if len(self.kept) <= most:
            return self
        wanted = np.linspace(self.kept[0], self.kept[-1], most)
        places = np.unique(np.minimum(np.searchsorted(self.kept, wanted), len(self.kept) - 1))
        return RiskCoverage(self.thresholds[places], self.kept[places], self.errors[places])


def distance_histogram(distances: npt.ArrayLike, correct: npt.ArrayLike, bins: int = 40) -> DistanceHistogram:
    """Count right and wrong answers over the distance, in bins of the same width.

    Parameters
    ----------
    distances : array-like, shape (n,)
        Infinite ones are left out.
    correct : array-like of bool, shape (n,)
    bins : int
        At least 1. There is one bin, with the distances in its middle, where all of them are equal.

    Raises
    ------
    InvalidInputError
    """
    values, right = _checked(distances, correct)
    bins = check_int(bins, "bins", most=100_000)
    finite = np.isfinite(values)
    values, right = values[finite], right[finite]
    if len(values) == 0:
        return DistanceHistogram(np.array([0.0, 1.0]), np.zeros(1, np.int64), np.zeros(1, np.int64))
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low, high, bins + 1)
    if not (np.diff(edges) > 0).all():
        # The bins would be narrower than the numbers are fine: one, of a width that can be seen, has to do.
        half = max(0.5, abs(low) * 1e-6)
        edges = np.array([low - half, high + half])
    counts = [np.histogram(values[mask], bins=edges)[0].astype(np.int64) for mask in (right, ~right)]
    return DistanceHistogram(edges, *counts)


def error_auroc(distances: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Return how well the distance detects errors: the area under its ROC curve.

    Parameters
    ----------
    distances : array-like, shape (n,)
        ``+inf`` where there was no neighbour.
    correct : array-like of bool, shape (n,)

    Returns
    -------
    float
        In [0, 1]: the probability that a wrong answer lies farther than a right one, ties counting one half.
        NaN where all answers are right, or all wrong.

    Raises
    ------
    InvalidInputError

    References
    ----------
    D. Hendrycks, K. Gimpel, "A baseline for detecting misclassified and out-of-distribution examples in
    neural networks", ICLR (2017); computed by ``sklearn.metrics.roc_auc_score``.
    """
    values, right = _checked(distances, correct)
    if right.all() or not right.any():
        return math.nan
    # The area depends on the order alone, and scikit-learn takes no infinite scores.
    return float(roc_auc_score(~right, rankdata(values, method="dense")))


def risk_coverage(distances: npt.ArrayLike, correct: npt.ArrayLike) -> RiskCoverage:
    """Compute the risk-coverage curve of withholding the answers that lie beyond a distance.

    Parameters
    ----------
    distances : array-like, shape (n,)
        n ≥ 1; ``+inf`` where there was no neighbour.
    correct : array-like of bool, shape (n,)

    Raises
    ------
    InvalidInputError

    References
    ----------
    R. El-Yaniv, Y. Wiener, "On the foundations of noise-free selective classification", Journal of Machine
    Learning Research 11 (2010), pages 1605-1641.
    """
    values, right = _checked(distances, correct)
    order = np.argsort(values, kind="stable")
    ordered, wrong = values[order], np.cumsum(~right[order])
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    return RiskCoverage(ordered[last], (last + 1).astype(np.int64), wrong[last].astype(np.int64))


def accuracy_by_decile(distances: npt.ArrayLike, correct: npt.ArrayLike) -> list[dict[str, Any]]:
    """Return the accuracy of each tenth of the answers, from the nearest to the farthest.

    Parameters
    ----------
    distances : array-like, shape (n,)
        n ≥ 1; ``+inf`` where there was no neighbour.
    correct : array-like of bool, shape (n,)

    Returns
    -------
    list of dict
        ``decile`` (1 … 10), ``min`` and ``max`` (distances), ``count``, ``accuracy``, ``low`` and ``high``
        (its 95 % Wilson interval). Decile d ends with the ⌈d·n/10⌉-th smallest distance, and an answer
        belongs to the first decile that its distance is within: equal distances stay together, and deciles
        that get no answer are left out.

    Raises
    ------
    InvalidInputError
    """
    values, right = _checked(distances, correct)
    n = len(values)
    ordered = np.sort(values)
    # The limit of decile d is the ⌈d·n/10⌉-th smallest distance.
    limits = ordered[[-(-number * n // DECILES) - 1 for number in range(1, DECILES + 1)]]
    decile = np.searchsorted(limits, values)
    rows = []
    for number in range(DECILES):
        inside = decile == number
        count = int(inside.sum())
        if count == 0:
            continue
        hits = int(right[inside].sum())
        low, high = wilson_interval(hits, count)
        rows.append(
            {
                "decile": number + 1,
                "min": float(values[inside].min()),
                "max": float(values[inside].max()),
                "count": count,
                "accuracy": hits / count,
                "low": low,
                "high": high,
            }
        )
    return rows


def _checked(distances: npt.ArrayLike, correct: npt.ArrayLike) -> tuple[Floats, npt.NDArray[np.bool_]]:
    values, right = np.asarray(distances, dtype=np.float64), np.asarray(correct, dtype=np.bool_)
    if values.ndim != 1 or values.shape != right.shape or len(values) == 0:
        raise InvalidInputError(
            "distances and correctness must be of the same shape (n,), with n at least 1; got "
            f"{values.shape} and {right.shape}"
        )
    if np.isnan(values).any():
        raise InvalidInputError("distances must not be NaN; where there is no neighbour, pass +inf")
    return values, right
