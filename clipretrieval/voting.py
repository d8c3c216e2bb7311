"""Neighbours to class scores.

A *weighting* turns the distances of the k neighbours into the weight of each one's vote; a class's score
is the sum of its neighbours' weights. Padding (see `clipretrieval.types.Neighbors`) never votes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from clipretrieval.errors import InvalidInputError
from clipretrieval.types import FloatArray, Metric

__all__ = ["WEIGHTINGS", "Weighting", "choose_class", "class_scores", "vote_weights"]

Weighting: TypeAlias = str | Callable[[FloatArray], npt.ArrayLike]
ScoreArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]

WEIGHTINGS = ("uniform", "distance", "softmax")


def vote_weights(
    distances: FloatArray, weighting: Weighting, *, metric: Metric = Metric.L2, temperature: float = 0.07
) -> ScoreArray:
    """Compute how much each neighbour's vote counts.

    Parameters
    ----------
    distances : ndarray of float32, shape (n, k)
        Lower is nearer; ``+inf`` where padded.
    weighting : {"uniform", "distance", "softmax"} or callable
        - ``"uniform"``: 1 each.
        - ``"distance"``: the inverse of the distance, as scikit-learn's ``KNeighborsClassifier`` has it;
          where a neighbour lies at distance 0, those at 0 count 1 and all others 0. Not for the ``ip``
          metric, whose distances can be negative. Note that ``l2`` is the *squared* distance.
        - ``"softmax"``: exp(similarity / temperature), the k-NN evaluation of Wu et al. (2018,
          "Unsupervised Feature Learning via Non-Parametric Instance Discrimination") that DINO uses. The
          similarity is 1 − d for cosine, −d for ip and 1 − d/2 for l2, which is the cosine when the
          vectors have length one.
        - a callable: given the distances, returns weights of the same shape, finite and not negative.
    metric : Metric
    temperature : float
        Of ``"softmax"``; positive.

    Returns
    -------
    ndarray of float64, shape (n, k)
        0 where padded.

    Raises
    ------
    InvalidInputError
        If the weighting is unknown, does not suit the metric, or a callable returns something else.
    """
    valid = np.isfinite(distances)
    if callable(weighting):
        return _called(weighting, distances, valid)
    if weighting == "uniform":
        return valid.astype(np.float64)
    if weighting == "distance":
        return _inverse(distances, valid, metric)
    if weighting == "softmax":
        return _softmax(distances, valid, metric, temperature)
    raise InvalidInputError(
        f"unknown weights {weighting!r}; choose one of {', '.join(map(repr, WEIGHTINGS))} or pass a callable"
    )


def class_scores(codes: IntArray, weights: ScoreArray, n_classes: int) -> ScoreArray:
    """Add up the votes.

    Parameters
    ----------
    codes : ndarray of int64, shape (n, k)
        Each neighbour's class as a place in ``classes_``; any value where its weight is 0.
    weights : ndarray of float64, shape (n, k)
    n_classes : int

    Returns
    -------
    ndarray of float64, shape (n, n_classes)
    """
    n = len(codes)
    cells = (np.arange(n)[:, None] * n_classes + np.where(weights > 0, codes, 0)).ravel()
    scores = np.bincount(cells, weights=weights.ravel(), minlength=n * n_classes)
    return scores.reshape(n, n_classes).astype(np.float64)


def choose_class(scores: ScoreArray, codes: IntArray, distances: FloatArray) -> IntArray:
    """Pick the class with the highest score.

    A tie goes to the tied class with the nearest neighbour; where those are equally near, to the
    first in ``classes_``.

    Parameters
    ----------
    scores : ndarray of float64, shape (n, n_classes)
    codes : ndarray of int64, shape (n, k)
    distances : ndarray of float32, shape (n, k)
        Ascending along each row.

    Returns
    -------
    ndarray of int64, shape (n,)
    """
    best: IntArray = scores.argmax(axis=1).astype(np.int64)
    # Sums of the same weights in another order differ in their last bits; that is still a tie.
    tied = np.isclose(scores, scores.max(axis=1, keepdims=True), rtol=1e-12, atol=0)
    for row in np.flatnonzero(tied.sum(axis=1) > 1):
        best[row] = min(
            (distance, code)
            for distance, code in zip(distances[row], codes[row], strict=True)
            if np.isfinite(distance) and tied[row, code]
        )[1]
    return best


def _called(weighting: Callable[[FloatArray], Any], distances: FloatArray, valid: Any) -> ScoreArray:
    weights: ScoreArray = np.asarray(weighting(distances.copy()), dtype=np.float64)
    if weights.shape != distances.shape:
        raise InvalidInputError(
            f"the weights callable returned shape {weights.shape}; it must return {distances.shape}, that of "
            "the distances it is given"
        )
    weights = np.where(valid, weights, 0.0)
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise InvalidInputError("the weights callable returned NaN, infinite or negative weights")
    if not weights.any(axis=1).all():
        raise InvalidInputError("the weights callable returned only zeros for a row; one must be positive")
    return weights


def _inverse(distances: FloatArray, valid: Any, metric: Metric) -> ScoreArray:
    if metric == Metric.IP:
        raise InvalidInputError(
            "weights='distance' needs distances that are not negative; with metric='ip' use 'softmax'"
        )
    exact = distances <= 0
    with np.errstate(divide="ignore"):
        weights = 1.0 / distances.astype(np.float64)
    return np.where(exact.any(axis=1, keepdims=True), exact, np.where(valid, weights, 0.0)).astype(np.float64)


def _softmax(distances: FloatArray, valid: Any, metric: Metric, temperature: float) -> ScoreArray:
    halved = 2.0 if metric == Metric.L2 else 1.0
    # Relative to the nearest, so that the exponential can neither overflow nor vanish for all.
    with np.errstate(over="ignore"):  # a tiny temperature: infinitely far behind
        behind = (distances.astype(np.float64) - distances[:, :1]) / (halved * temperature)
    return np.where(valid, np.exp(-np.where(valid, behind, 0.0)), 0.0)
