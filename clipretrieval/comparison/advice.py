"""Which candidate to take: the cheapest that is good enough, and how much luck was in that choice."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from clipretrieval.evaluation.metrics import wilson_interval

__all__ = ["LEVEL", "Choice", "Wishes", "choose", "corrected_interval", "p_values", "pareto_front"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

LEVEL = 0.05
"""p of McNemar's test below which one candidate counts as worse than another."""

DRAWS = 200
"""Bootstrap samples: their mean has a tenth of one image's luck left."""


@dataclass(frozen=True)
class Wishes:
    """What the advice has to keep to.

    Attributes
    ----------
    max_cost : float or None
        In 10⁹ multiply-adds for an image.
    min_accuracy : float or None
        In (0, 1].
    """

    max_cost: float | None = None
    min_accuracy: float | None = None


@dataclass(frozen=True)
class Choice:
    """A candidate that was chosen.

    Attributes
    ----------
    place : int
    best : int
        The most accurate candidate that is not too expensive; the most accurate of all where all are.
    met : bool
        Whether the wishes are kept to.
    """

    place: int
    best: int
    met: bool


def pareto_front(costs: Floats, accuracies: Floats) -> list[int]:
    """Return the candidates of which no other one is at least as accurate and at most as expensive.

    Parameters
    ----------
    costs, accuracies : ndarray, shape (n,)

    Returns
    -------
    list of int
        The cheapest first; of equal ones the first.
    """
    front: list[int] = []
    for place in np.lexsort((-accuracies, costs)).tolist():
        if not front or accuracies[place] > accuracies[front[-1]]:
            front.append(place)
    return front


def p_values(gained: Ints, lost: Ints) -> Floats:
    """Return the p-values of McNemar's exact test; see `mcnemar_exact`."""
    found: Floats = np.minimum(2 * binom.cdf(np.minimum(gained, lost), gained + lost, 0.5), 1.0)
    return found


def choose(right: Bools, costs: Floats, wishes: Wishes) -> Choice:
    """Choose a candidate by its answers.

    Among those that are not too expensive, and without a wish for accuracy, it is the cheapest that McNemar's
    exact test does not show to be worse than the most accurate one. With such a wish, it is the cheapest that
    reaches it with the lower end of its 95 % Wilson interval. Where none keeps to the wishes, it is the
    nearest: the cheapest of all, or the most accurate one.

    Parameters
    ----------
    right : ndarray of bool, shape (n, n_candidates)
        Whether each candidate answers each image rightly.
    costs : ndarray of float64, shape (n_candidates,)
    wishes : Wishes
    """
    answers = right.astype(np.float64)
    return _choose(np.rint(answers.T @ answers).astype(np.int64), costs, wishes, _needed(len(right), wishes))


def corrected_interval(
    right: Bools, costs: Floats, wishes: Wishes, seed: int
) -> tuple[float, tuple[float, float]]:
    """Return how accurate the chosen candidate is, by the answers that it was chosen by.

    It is chosen for its luck too. How much better it looks than it is, the bootstrap estimates [1]_: the
    choice is made again on samples of the images, and by how much that choice is more accurate on its sample
    than on all images, on average, is taken off.

    Parameters
    ----------
    right, costs, wishes
        As for `choose`.
    seed : int
        Of the samples.

    Returns
    -------
    accuracy : float
        In [0, 1], with that taken off.
    interval : (low, high)
        From the lower end of the 95 % Wilson interval of that to the higher end of the interval without the
        correction: what more images than were stored in each fold add is to lie within it too.

    References
    ----------
    .. [1] B. Efron, "Estimating the error rate of a prediction rule: improvement on cross-validation",
       Journal of the American Statistical Association 78 (1983), pages 316-331.
    """
    n, place = len(right), choose(right, costs, wishes).place
    answers, needed = right.astype(np.float64), _needed(n, wishes)
    shares = answers.mean(axis=0)
    drawn = np.random.default_rng(seed)
    gains = []
    for _ in range(DRAWS):
        times = drawn.multinomial(n, np.full(n, 1 / n))
        together = np.rint((answers * times[:, None]).T @ answers).astype(np.int64)
        found = _choose(together, costs, wishes, needed).place
        # Less the gain of what was chosen of all images, which is none on average: it is the same luck.
        gain = np.diag(together) / n - shares
        gains.append(gain[found] - gain[place])
    own, luck = int(right[:, place].sum()), max(0.0, float(np.mean(gains)))
    left = max(0.0, own - luck * n)
    low = wilson_interval(int(left + 1e-9), n)[0]
    return left / n, (low, wilson_interval(own, n)[1])


def _needed(n: int, wishes: Wishes) -> int:
    """Return how many of n images must be answered rightly; n + 1 where no number is enough."""
    if wishes.min_accuracy is None:
        return 0
    return bisect_left(range(n + 1), wishes.min_accuracy, key=lambda count: wilson_interval(count, n)[0])


def _choose(together: Ints, costs: Floats, wishes: Wishes, needed: int) -> Choice:
    """Choose by how many images each pair of candidates both answer rightly, shape (n, n)."""
    counts = np.diag(together)
    by_accuracy, by_cost = np.lexsort((costs, -counts)), np.lexsort((-counts, costs))
    allowed = np.ones(len(costs), dtype=bool) if wishes.max_cost is None else costs <= wishes.max_cost
    if not allowed.any():
        return Choice(int(by_cost[0]), int(by_accuracy[0]), met=False)
    best = int(next(place for place in by_accuracy if allowed[place]))
    if wishes.min_accuracy is not None:
        good = allowed & (counts >= needed)
        if not good.any():
            return Choice(best, best, met=False)
    else:
        gained, lost = counts - together[:, best], counts[best] - together[:, best]
        good = allowed & ~((lost > gained) & (p_values(gained, lost) < LEVEL))
    return Choice(int(next(place for place in by_cost if good[place])), best, met=True)
