"""How far a cascade may go, so that what it loses stays within a bound with a given confidence."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

__all__ = ["betting_p_value", "last_accepted", "least_sample"]

Floats = npt.NDArray[np.float64]


def betting_p_value(losses: Floats, bound: float, confidence: float) -> float:
    """Return a p-value of the hypothesis that the mean loss is greater than a bound.

    A gambler who starts with 1 bets on each loss in turn that the mean is below the bound. Under the
    hypothesis the capital is a supermartingale, so by Ville's inequality it ever reaches c with a probability
    of at most 1/c [1]_, whatever the losses' distribution and number.

    Parameters
    ----------
    losses : ndarray of float64, shape (n,)
        In [-1, 1], of independent images in an order that does not depend on them: what a cascade loses on
        each beside the last exit, 1 where only that is right and −1 where only the cascade is.
    bound : float
        In [0, 1).
    confidence : float
        In (0, 1), at which the stakes are best; the p-value holds at any other.

    Returns
    -------
    float
        In (0, 1].

    References
    ----------
    .. [1] I. Waudby-Smith, A. Ramdas, "Estimating means of bounded random variables by betting", Journal of
       the Royal Statistical Society B 86 (2024), section 4, with the stakes of equation 26.
    """
    n = len(losses)
    if not n:
        return 1.0
    scaled, mean = (losses + 1) / 2, (bound + 1) / 2
    number = np.arange(1, n + 1)
    seen = (0.5 + np.cumsum(scaled)) / (number + 1)
    spread = (0.25 + np.cumsum((scaled - seen) ** 2)) / (number + 1)
    before = np.concatenate([[0.25], spread[:-1]])  # a stake is set before the loss is seen
    stakes = np.minimum(np.sqrt(2 * np.log(1 / (1 - confidence)) / (n * before)), 0.99 / (1 - mean))
    capital = np.cumsum(np.log1p(-stakes * (scaled - mean)))
    return float(np.exp(-max(0.0, float(capital.max()))))


def last_accepted(losses: Iterable[Floats], bound: float, confidence: float) -> int | None:
    """Return the last of several settings that are all within a bound, with confidence.

    They are tested one after the other until one fails, each at the whole level: the first whose mean loss
    is greater than the bound is accepted with a probability of at most 1 − confidence, and none behind it is
    tested unless it was (fixed-sequence testing, in Learn then Test [1]_). So their order, the safest first,
    must not come from the images that they are tested on.

    Parameters
    ----------
    losses : iterable of ndarray of float64, shape (n,)
        Of each setting; see `betting_p_value`.
    bound, confidence : float

    Returns
    -------
    int or None
        None where the first one fails already.

    References
    ----------
    .. [1] A. N. Angelopoulos et al., "Learn then Test: Calibrating predictive algorithms to achieve risk
       control", Annals of Applied Statistics 19 (2025), arXiv 2110.01052; for early exits: M. Jazbec et al.,
       "Fast yet Safe: Early-Exiting with Risk Control", NeurIPS (2024), arXiv 2405.20915.
    """
    accepted = None
    for number, each in enumerate(losses):
        # A bet may win early and lose later: valid, but nobody would believe it.
        if betting_p_value(each, bound, confidence) > 1 - confidence or each.mean() > bound:
            break
        accepted = number
    return accepted


def least_sample(bound: float, confidence: float) -> int | None:
    """Return how many images it takes to accept a setting that loses none of them; None for a bound of 0."""
    if bound <= 0:
        return None
    least, most = 0, 1
    while betting_p_value(np.zeros(most), bound, confidence) > 1 - confidence:
        least, most = most, 2 * most
    while most - least > 1:
        middle = (least + most) // 2
        if betting_p_value(np.zeros(middle), bound, confidence) > 1 - confidence:
            least = middle
        else:
            most = middle
    return most
