"""Neighbors to class scores.

A *weighting* turns the distances of the k neighbors into the weight of each one's vote; a class's score
is the sum of its neighbors' weights. Padding (see `clipretrieval.types.Neighbors`) never votes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import check_number, shown
from clipretrieval._util.foreign import as_array
from clipretrieval.errors import InvalidInputError
from clipretrieval.types import FloatArray, Metric

__all__ = [
    *("WEIGHTINGS", "Weighting", "check_weighting", "class_scores"),
    *("vote_weights", "weighting_name"),
]

Weighting: TypeAlias = str | Callable[[FloatArray], npt.ArrayLike]
ScoreArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]

WEIGHTINGS = ("uniform", "distance", "softmax")


def vote_weights(
    distances: FloatArray, weighting: Weighting, *, metric: Metric = Metric.L2, temperature: float = 0.07
) -> ScoreArray:
    """Compute how much each neighbor's vote counts.

    Parameters
    ----------
    distances : ndarray of float32, shape (n, k)
        Lower is nearer; ``+inf`` where padded.
    weighting : {"uniform", "distance", "softmax"} or callable
        - ``"uniform"``: 1 each, the majority vote [1]_.
        - ``"distance"``: the inverse of the distance, as scikit-learn's ``KNeighborsClassifier`` has it
          [2]_; where a neighbor lies at distance 0, those at 0 count 1 and all others 0. Not for the
          ``ip`` metric, whose distances can be negative. Note that ``l2`` is the *squared* distance.
        - ``"softmax"``: exp(similarity / temperature) [3]_, with which DINO is evaluated [4]_, divided by
          that of the nearest: the classes' shares are those of the softmax over the neighbors used. The
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

    Notes
    -----
    The weights that are known by name depend on the distance and on the nearest one alone, so those of
    the first j of k neighbors are the first j columns.

    References
    ----------
    .. [1] T. M. Cover, P. E. Hart, "Nearest neighbor pattern classification", IEEE Transactions on
       Information Theory 13 (1967), pages 21-27.
    .. [2] ``weights="distance"`` of ``sklearn.neighbors.KNeighborsClassifier``; the inverse is that of
       D. Shepard, "A two-dimensional interpolation function for irregularly-spaced data", Proceedings of
       the 23rd ACM National Conference (1968), pages 517-524.
    .. [3] Z. Wu, Y. Xiong, S. X. Yu, D. Lin, "Unsupervised feature learning via non-parametric instance
       discrimination", CVPR (2018), section 3.4; temperature 0.07.
    .. [4] M. Caron et al., "Emerging properties in self-supervised vision transformers", ICCV (2021).
    """
    valid = np.isfinite(distances)
    metric, temperature = Metric.parse(metric), check_number(temperature, "temperature", above=0)
    if callable(weighting) and not isinstance(weighting, type):
        return _called(weighting, distances, valid)
    check_weighting(weighting, metric)
    if weighting == "uniform":
        return valid.astype(np.float64)
    if weighting == "distance":
        return _inverse(distances, valid)
    return _softmax(distances, valid, metric, temperature)


def check_weighting(weighting: Any, metric: Metric) -> None:
    """Refuse what is no weighting, or none that goes with the metric.

    Raises
    ------
    InvalidInputError
    """
    if callable(weighting) and not isinstance(weighting, type):
        return
    if not isinstance(weighting, str) or weighting not in WEIGHTINGS:
        raise InvalidInputError(
            f"unknown weights {shown(weighting)}; choose one of {', '.join(map(repr, WEIGHTINGS))}, or pass "
            "a callable"
        )
    if weighting == "distance" and metric == Metric.IP:
        raise InvalidInputError(
            "weights='distance' needs distances that are not negative; with metric='ip' use 'softmax'"
        )


def class_scores(codes: IntArray, weights: ScoreArray, n_classes: int) -> ScoreArray:
    """Add up the votes.

    Parameters
    ----------
    codes : ndarray of int64, shape (n, k)
        Each neighbor's class as a place in ``classes_``; any value where its weight is 0.
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


def weighting_name(weighting: Weighting) -> str:
    """Return what reports call a weighting: a callable by its ``__name__``."""
    return weighting if isinstance(weighting, str) else str(getattr(weighting, "__name__", "callable"))


def _called(weighting: Callable[[FloatArray], Any], distances: FloatArray, valid: Any) -> ScoreArray:
    given = weighting(distances.copy())
    try:
        weights: ScoreArray = as_array(given, "weights").astype(np.float64, casting="same_kind")
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"the weights callable returned a {type(given).__name__} that is no array of real numbers; it "
            f"must return weights of shape {distances.shape}, that of the distances it is given"
        ) from error
    if weights.shape != distances.shape:
        raise InvalidInputError(
            f"the weights callable returned shape {weights.shape}; it must return {distances.shape}, that of "
            "the distances it is given"
        )
    weights = np.where(valid, weights, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(weights.sum(axis=1)).all()
    if not finite or (weights < 0).any():
        raise InvalidInputError(
            "the weights callable returned weights that are NaN, infinite or negative, or whose sum is "
            "infinite; each must be finite and at least 0"
        )
    if not weights.any(axis=1).all():
        raise InvalidInputError("the weights callable returned only zeros for a row; one must be positive")
    return weights


def _inverse(distances: FloatArray, valid: Any) -> ScoreArray:
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
