"""Several heads as one: the product of what each holds to be probable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import shown
from clipretrieval.errors import InvalidInputError
from clipretrieval.heads.base import Contents, Queries, StoredSample
from clipretrieval.heads.discriminant import Discriminant
from clipretrieval.heads.ridge import Ridge
from clipretrieval.heads.soft_votes import SoftVotes
from clipretrieval.heads.statistics import Moments
from clipretrieval.stores.checks import check_k

__all__ = ["Fused", "LearnedFused"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

VALIDATED_ON = 1000
"""Stored vectors that the weights are learned on, at most."""
LEAST_VALIDATED = 10
LEAST_WEIGHT = 0.01
"""Of a part: with no weight at all on any, there would be no answer."""
FLOOR = 0.001
"""Of a part's probabilities: none of them may forbid a class."""


class Expert(Protocol):
    """A learned head that can tell what it would have answered without each stored vector itself."""

    def log_scores(self, queries: Queries) -> Floats: ...

    def held_out_scores(self, sample: StoredSample) -> Floats: ...


@dataclass(frozen=True)
class Fused:
    """Votes, the linear discriminant and the ridge regression as a product of experts [1]_.

    The log probabilities of the three are added with weights, which maximise the likelihood of stored vectors
    that are left out one by one; these are chosen by their ids, so that equal contents give equal weights.

    Parameters
    ----------
    k : int
        Neighbors that vote, at least 1.
    discriminant : Discriminant
    ridge : Ridge

    References
    ----------
    .. [1] G. E. Hinton, "Training products of experts by minimizing contrastive divergence", Neural
       Computation 14 (2002), pages 1771-1800; with weights: T. Heskes, "Selecting weighting factors in
       logarithmic opinion pools", NIPS (1997).
    """

    wants_whitening: ClassVar[bool] = True

    k: int = 20
    discriminant: Discriminant = field(default_factory=Discriminant)
    ridge: Ridge = field(default_factory=Ridge)

    def __post_init__(self) -> None:
        check_k(self.k)
        for name, kind in (("discriminant", Discriminant), ("ridge", Ridge)):
            if not isinstance(getattr(self, name), kind):
                raise InvalidInputError(f"{name} must be a {kind.__name__}; got {shown(getattr(self, name))}")

    @property
    def moments(self) -> Sequence[Moments]:
        """Those of the discriminant and of the regression."""
        return (*self.discriminant.moments, *self.ridge.moments)

    def learn(self, contents: Contents) -> LearnedFused:
        """Learn each part, and how much it counts."""
        sample = self._held_out(contents)
        parts: dict[str, Expert] = {
            "votes": SoftVotes.learn(contents, sample, self.k),
            "discriminant": self.discriminant.learn(contents),
            "ridge": self.ridge.learn(contents),
        }
        return LearnedFused(parts, learn_weights(parts, sample, contents.priors), contents.priors)

    def _held_out(self, contents: Contents) -> StoredSample:
        """Return stored vectors that are not alone in their class: without one, its class is unknown."""
        sample = contents.sample(VALIDATED_ON)
        counts = contents.statistics(self.discriminant.moments[0]).counts
        rows = np.flatnonzero(counts[sample.codes] > 1)
        return StoredSample(sample.ids[rows], sample.vectors[rows], sample.codes[rows])


class LearnedFused:
    """Learned heads with their weights.

    Parameters
    ----------
    parts : mapping of str to Expert
    weights : mapping of str to float
        Not negative.
    priors : ndarray of float64, shape (n_classes,)
        A class whose prior is 0 is never answered, whatever the parts say.

    Attributes
    ----------
    parts : dict of str to Expert
    weights : dict of str to float
    """

    def __init__(self, parts: Mapping[str, Expert], weights: Mapping[str, float], priors: Floats) -> None:
        self.parts, self.weights = dict(parts), dict(weights)
        self._impossible = priors == 0

    def log_scores(self, queries: Queries) -> Floats:
        """Return the weighted sum of the parts' log probabilities, shape (n, n_classes)."""
        return self._sum(self.part_scores(queries))

    def held_out_scores(self, sample: StoredSample) -> Floats:
        """Return the log scores of `sample` by parts that left out each vector; the weights did not."""
        return self._sum(
            {name: log_probabilities(part.held_out_scores(sample)) for name, part in self.parts.items()}
        )

    def part_scores(self, queries: Queries) -> dict[str, Floats]:
        """Return each part's log probabilities, by its name."""
        return {name: log_probabilities(part.log_scores(queries)) for name, part in self.parts.items()}

    def _sum(self, found: Mapping[str, Floats]) -> Floats:
        total: Floats = np.sum([self.weights[name] * scores for name, scores in found.items()], axis=0)
        total[:, self._impossible] = -np.inf
        return total


def learn_weights(parts: Mapping[str, Expert], sample: StoredSample, priors: Floats) -> dict[str, float]:
    """Return the weights under which stored vectors, each left out, are most probable.

    Each class counts by its prior, however many vectors of it there are. Equal weights where there are hardly
    any vectors.
    """
    if len(sample.codes) < LEAST_VALIDATED:
        return dict.fromkeys(parts, 1.0 / len(parts))
    stacked = np.stack([log_probabilities(part.held_out_scores(sample)) for part in parts.values()])
    shares = class_shares(priors, sample.codes)
    if not shares.any():  # only of classes that are held to be impossible
        return dict.fromkeys(parts, 1.0 / len(parts))
    return dict(zip(parts, maximise(stacked, sample.codes, shares).tolist(), strict=True))


def class_shares(priors: Floats, codes: Ints) -> Floats:
    """Return how much each row counts, each class by its prior; they sum to 1, or are all 0."""
    shares: Floats = priors[codes] / np.bincount(codes, minlength=len(priors))[codes]
    total = shares.sum()
    return shares / total if total > 0 else shares


def maximise(stacked: Floats, codes: Ints, shares: Floats) -> Floats:
    """Return the most probable weights, each at least `LEAST_WEIGHT`: a strictly convex problem.

    They are normally distributed beforehand, around equal ones of the sum 1, with a standard deviation of 1.
    So they are well determined, and do not turn on rounding, also where the parts say the same or nothing.

    Parameters
    ----------
    stacked : ndarray of float64, shape (n_parts, n, n_classes)
        Log probabilities.
    codes : ndarray of int64, shape (n,)
        The true classes.
    shares : ndarray of float64, shape (n,)
        How much each row counts; they sum to 1.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    rows = np.arange(len(codes))
    begin = np.full(len(stacked), 1.0 / len(stacked))

    def loss(weights: Floats) -> tuple[float, Floats]:
        logs = log_softmax(np.tensordot(weights, stacked, 1), axis=1)
        mean = np.einsum("pnc,nc->pn", stacked, np.exp(logs))
        away = (weights - begin) / len(rows)
        found = -float(shares @ logs[rows, codes]) + float(away @ (weights - begin)) / 2
        return found, (mean - stacked[:, rows, codes]) @ shares + away

    bounds = [(LEAST_WEIGHT, None)] * len(stacked)
    found: Floats = minimize(
        loss, begin, jac=True, bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9}
    ).x
    return found


def log_probabilities(scores: Floats) -> Floats:
    """Return log probabilities that forbid no class."""
    from scipy.special import log_softmax

    found: Floats = np.log((1 - FLOOR) * np.exp(log_softmax(scores, axis=1)) + FLOOR / scores.shape[1])
    return found
