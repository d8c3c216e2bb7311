"""Random features and ridge regression, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import check_int, check_number
from clipretrieval.heads.base import Contents, Queries, StoredSample
from clipretrieval.heads.covariance import Solve, solver
from clipretrieval.heads.features import MOST_FEATURES, RandomFeatures
from clipretrieval.heads.statistics import ClassStatistics, Moments

__all__ = ["LearnedRidge", "Ridge"]

Floats = npt.NDArray[np.float64]

TRIED = (0.00001, 0.0001, 0.001, 0.01, 0.1)
"""Penalties that are compared, relative to the mean eigenvalue of the features' second moment."""
VALIDATED_ON = 1000
"""Stored vectors that they are compared on, at most."""
UNTRIED_PENALTY, UNTRIED_SHARPNESS = 0.01, 10.0
"""Where too few classes have a second vector to compare with."""
LEAST_VALIDATED = 10


@dataclass(frozen=True)
class Ridge:
    """Ridge regression on the classes, from random features of the vectors [1]_.

    The second moment of the features follows every change as that of vectors does, and learning solves one
    system of equations of their number. A query takes dim × features multiply-adds.

    Parameters
    ----------
    features : int
        Number of random features, from 1 to 32,768, whose second moment takes 8.6 GB.
    penalty : float or None
        Relative to the mean eigenvalue of the features' second moment, above 0. None: the best of five on
        stored vectors that are left out one by one.
    seed : int
        Of the random features.

    References
    ----------
    .. [1] M. D. McDonnell et al., "RanPAC: Random projections and pre-trained models for continual learning",
       NeurIPS (2023), arXiv 2307.02251.
    """

    features: int = 2048
    penalty: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_int(self.features, "features", most=MOST_FEATURES)
        check_int(self.seed, "seed", least=0)
        if self.penalty is not None:
            check_number(self.penalty, "penalty", above=0)

    @property
    def k(self) -> int:
        """No neighbors are read."""
        return 0

    @property
    def moments(self) -> Sequence[Moments]:
        """The second moment of the random features."""
        return (Moments(features=RandomFeatures(self.features, self.seed)),)

    def learn(self, contents: Contents) -> LearnedRidge:
        """Solve the regression."""
        (moments,) = self.moments
        map_vectors = RandomFeatures(self.features, self.seed)
        statistics, sample = contents.statistics(moments), contents.sample(VALIDATED_ON)
        second = statistics.second_moment / statistics.count
        scale = max(float(np.trace(second)) / len(second), np.finfo(np.float64).tiny)
        mapped = map_vectors(sample.vectors)
        repeated = statistics.counts[sample.codes] > 1
        best: tuple[float, LearnedRidge] | None = None
        for penalty in TRIED if self.penalty is None else (self.penalty,):
            lifted = second.copy()
            lifted.flat[:: len(second) + 1] += penalty * scale
            learned = LearnedRidge(map_vectors, statistics, solver(lifted), contents.priors)
            if repeated.sum() < LEAST_VALIDATED:
                if self.penalty is not None or penalty == UNTRIED_PENALTY:
                    return learned
                continue
            scores = learned.held_out(mapped[repeated], sample.codes[repeated])
            loss, learned.sharpness = _sharpest(scores, sample.codes[repeated])
            if best is None or loss < best[0]:
                best = loss, learned
        if best is None:
            raise RuntimeError(f"{UNTRIED_PENALTY} is not among the penalties that are compared")
        return best[1]


@dataclass(eq=False)
class LearnedRidge:
    """The coefficients of a regression on the classes.

    Attributes
    ----------
    map_vectors : RandomFeatures
    statistics : ClassStatistics
        Of the features.
    solve : callable
        Solves by the features' penalised second moment.
    priors : ndarray of float64, shape (n_classes,)
        How much each class counts: a class of few vectors counts as much as one of many where they are equal.
    sharpness : float
        What scores are multiplied by to be log probabilities.
    """

    map_vectors: RandomFeatures
    statistics: ClassStatistics
    solve: Solve
    priors: Floats
    sharpness: float = UNTRIED_SHARPNESS
    _targets: Floats = field(init=False)
    _weights: Floats = field(init=False)

    def __post_init__(self) -> None:
        self._count, self._counts = self.statistics.count, self.statistics.counts
        self._targets = (self.statistics.means * self.priors[:, None]).T
        self._weights = self.solve(self._targets)
        del self.statistics  # it goes on changing

    def log_scores(self, queries: Queries) -> Floats:
        """Return the regression's answers, sharpened, shape (n, n_classes)."""
        found: Floats = self.sharpness * (self.map_vectors(queries.vectors) @ self._weights)
        found[:, self.priors == 0] = -np.inf
        return found

    def held_out_scores(self, sample: StoredSample) -> Floats:
        """Return the log scores of stored vectors as they are without each one itself."""
        scores = self.sharpness * self.held_out(self.map_vectors(sample.vectors), sample.codes)
        scores[:, self.priors == 0] = -np.inf
        alone = np.flatnonzero(self._counts[sample.codes] < 2)
        scores[alone, sample.codes[alone]] = -np.inf
        return scores

    def held_out(self, mapped: Floats, codes: npt.NDArray[np.int64]) -> Floats:
        """Return what the regression answers to features of which each row was left out.

        Leaving one out changes the second moment by a rank of one, and the mean of one class.
        """
        rows, n = np.arange(len(codes)), self._counts[codes].astype(np.float64)
        solved = self.solve(mapped.T).T
        leverage = np.minimum(np.einsum("ij,ij->i", solved, mapped) / self._count, 1 - 1e-9)
        scores: Floats = solved @ self._targets
        own = self.priors[codes] * np.einsum("ij,ij->i", solved, mapped)
        scores[rows, codes] = (n * scores[rows, codes] - own) / np.maximum(n - 1, 1)
        scores *= ((self._count - 1) / self._count / (1 - leverage))[:, None]
        return scores


def _sharpest(scores: Floats, codes: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Return the least mean log loss that multiplying the scores can reach, and the factor."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    def loss(power: float) -> float:
        return float(-log_softmax(np.exp(power) * scores, axis=1)[np.arange(len(codes)), codes].mean())

    bounds = (np.log(0.01), np.log(1e5))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    return float(found.fun), float(np.exp(found.x))
