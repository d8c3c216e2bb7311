"""Which labels are probably wrong, and how many."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clipretrieval.auditing.estimate import Estimate
from clipretrieval.auditing.evidence import Evidence
from clipretrieval.auditing.subject import Ints
from clipretrieval.evaluation.metrics import wilson_interval

__all__ = ["LabelErrors", "find_label_errors"]

Floats = npt.NDArray[np.float64]

FITTED_ON = 20_000
"""Records that the mixture is fitted on, at most."""
SUREST = 0.2
"""Share of the records, those whose answer is the surest, among which wrong labels are counted directly."""
STARTS = ((-6.0, -3.0, -1.0, 1.0, 3.0), (-6.0, -2.0, 0.0), (-6.0, -3.0, -1.0))
"""Values of log a (of scores in units of their usual gap), log b and logit ε among which the fit begins."""
STARTED_ON, SEARCHES = 2_000, 2
"""Records, about, on which these are compared, and how many of the best are improved on."""
LEAST_ACCURACY, MOST_NOISE = 0.7, 0.2
"""Of the head and of the labels, beyond which an encoder more probably separates the classes badly."""
FLOOR = 0.01
"""Of the share of votes of a class that no neighbor is of."""


@dataclass(frozen=True, eq=False)
class LabelErrors:
    """How probably each label is wrong.

    Attributes
    ----------
    probabilities : ndarray of float64, shape (n,)
        0 where it cannot be told, as nothing else is of the class.
    odds : ndarray of float64, shape (n,)
        The log odds of the best other class against the record's own; ranks finer than the probabilities.
    suggested : ndarray of int32, shape (n,)
        The best other class.
    estimate : Estimate
    kept : int
        Confirmed labels that would be listed otherwise.
    accuracy : float
        How often the head, which does not know the record, answers its label.
    noise : float
        The share ε of wrong labels.
    """

    probabilities: Floats
    odds: Floats
    suggested: Ints
    estimate: Estimate
    kept: int = 0
    accuracy: float = 1.0
    noise: float = 0.0

    @property
    def is_doubtful(self) -> bool:
        """Whether the head knows the classes too badly for most of what is listed to be wrong labels."""
        return self.accuracy < LEAST_ACCURACY or self.noise > MOST_NOISE

    def ranked(self) -> npt.NDArray[np.int64]:
        """Return the records as numbers, the most probably wrong first."""
        return np.lexsort((-self.odds, -self.probabilities))


def find_label_errors(
    evidence: Evidence, codes: Ints, n_classes: int, confirmed: npt.NDArray[np.bool_] | None = None
) -> LabelErrors:
    """Estimate the probability that each label is wrong.

    The head without the record, and the votes of its neighbors, predict a class c with probability

        s(c) ∝ exp(a · score(c) + b · log votes(c)).

    With probability 1 − ε the label is drawn from s; with probability ε it is any other class, uniformly:

        P(label) = (1 − ε) s(label) + ε (1 − s(label)) / (n_classes − 1).

    The weights a and b and the share ε of wrong labels are fit to the labels by maximum likelihood. This
    assumes noise that depends on the class at most, as in [1]_ and [2]_; a label's probability of being wrong
    is the share of the second term. If the head's mistakes look like wrong labels, ε is too high; if labels
    are wrong in the same way as the head, it is too low.

    Parameters
    ----------
    evidence : Evidence
    codes : ndarray of int32, shape (n,)
    n_classes : int
        At least 2.
    confirmed : ndarray of bool, shape (n,), optional
        Labels that are known to be correct.

    References
    ----------
    .. [1] G. Patrini et al., "Making deep neural networks robust to label noise: a loss correction approach",
       CVPR (2017).
    .. [2] C. G. Northcutt, L. Jiang, I. L. Chuang, "Confident learning: estimating uncertainty in dataset
       labels", Journal of Artificial Intelligence Research 70 (2021), pages 1373-1411, whose count of
       confident disagreements takes the head's own mistakes for wrong labels.
    """
    own_place, scores, votes = _scores(evidence, codes, n_classes)
    judged = np.isfinite(evidence.own)
    wanted = np.flatnonzero(judged)
    if not len(wanted):
        nothing = np.zeros(len(codes))
        return LabelErrors(nothing, nothing, codes, Estimate(0.0, 0.0, 0.0, 0, 0, _METHOD))
    some = wanted[:: max(1, -(-len(wanted) // FITTED_ON))]
    weights = _most_probable(scores[some], votes[some], own_place[some], n_classes)
    own, logs = _own_share(scores, votes, own_place, weights)
    noise = weights[2] * (1 - own) / (n_classes - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        wrong = np.where(judged, noise / ((1 - weights[2]) * own + noise), 0.0)
    wrong = np.nan_to_num(wrong)
    rows = np.arange(len(codes))
    others = logs.copy()
    others[rows, own_place] = -np.inf
    best = others.argmax(axis=1)
    listed = np.concatenate([evidence.answers, codes[:, None]], axis=1)
    odds = np.where(judged, others[rows, best] - np.maximum(logs[rows, own_place], -1e6), -np.inf)
    accuracy = float((evidence.answers[judged, 0] == codes[judged]).mean())
    kept = 0
    if confirmed is not None and confirmed.any():
        kept = int((wrong[confirmed] > 0.5).sum())
        wrong, odds = np.where(confirmed, 0.0, wrong), np.where(confirmed, -np.inf, odds)
        judged = judged & ~confirmed
    if not judged.any():
        return LabelErrors(wrong, odds, codes, Estimate(0.0, 0.0, 0.0, 0, 0, _METHOD), kept, accuracy)
    estimate = _estimate(wrong, judged, logs, own_place)
    suggested = listed[rows, best].astype(np.int32)
    return LabelErrors(wrong, odds, suggested, estimate, kept, accuracy, float(weights[2]))


_METHOD = (
    "labels as a mixture of what the head would answer and of any other class, fitted to all labels; the "
    "bounds reach to the share of labels that contradict the surest answers"
)


def _scores(evidence: Evidence, codes: Ints, n_classes: int) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
    """Return each record's place of its own class, and scores and log votes of its classes.

    Columns are those of the answers, and one for the own class, −inf where that is among them.
    """
    listed = np.concatenate([evidence.answers, codes[:, None]], axis=1)
    inside = evidence.answers == codes[:, None]
    twice = inside.any(axis=1)
    own_place = np.where(twice, inside.argmax(axis=1), listed.shape[1] - 1)
    own = np.where(twice, -np.inf, evidence.own)
    scores = np.concatenate([evidence.scores, own[:, None]], axis=1).astype(np.float64)
    there = evidence.near >= 0
    neighbors = np.where(there, codes[np.maximum(evidence.near, 0)], -1)
    counts = np.stack([(neighbors == column[:, None]).sum(axis=1) for column in listed.T], axis=1)
    total = there.sum(axis=1, keepdims=True)
    votes = np.log((counts + FLOOR) / (total + FLOOR * n_classes))
    return own_place, scores, votes


def _own_share(
    scores: Floats, votes: Floats, own_place: npt.NDArray[np.int64], weights: Floats
) -> tuple[Floats, Floats]:
    """Return s of each record's own class, and the log of s of all its classes."""
    from scipy.special import log_softmax

    logs = log_softmax(weights[0] * scores + weights[1] * votes, axis=1)
    return np.exp(logs[np.arange(len(logs)), own_place]), logs


def _scale(scores: Floats) -> float:
    """Return how far the two best scores of a record usually lie apart; 1 where they are equal."""
    if scores.shape[1] < 2:
        return 1.0
    top = np.partition(scores, -2, axis=1)[:, -2:]
    gaps = (top[:, 1] - top[:, 0])[np.isfinite(top).all(axis=1)]
    gaps = gaps[np.isfinite(gaps) & (gaps > 0)]
    return float(np.median(gaps)) if len(gaps) else 1.0


def _most_probable(scores: Floats, votes: Floats, own_place: npt.NDArray[np.int64], n_classes: int) -> Floats:
    """Return a, b and ε under which the labels are most probable.

    Where a is much too large or too small, the softmax is saturated or flat, and nothing leads from there
    to a better one. So the search begins at the best few points of a grid.
    """
    from scipy.optimize import minimize

    scale = _scale(scores)
    scores = scores / scale

    def natural(raw: Floats) -> Floats:
        return np.array([np.exp(raw[0]), np.exp(raw[1]), 1 / (1 + np.exp(-raw[2]))])

    def loss(raw: Floats, step: int = 1) -> float:
        weights = natural(raw)
        own, _ = _own_share(scores[::step], votes[::step], own_place[::step], weights)
        told = (1 - weights[2]) * own + weights[2] * (1 - own) / (n_classes - 1)
        return float(-np.log(np.maximum(told, 1e-300)).mean()) + 1e-4 * float(raw[:2] @ raw[:2])

    step = max(1, len(scores) // STARTED_ON)
    grid = sorted((loss(np.array(raw), step), raw) for raw in itertools.product(*STARTS))
    found = [
        minimize(loss, raw, method="L-BFGS-B", bounds=[(-7.0, 3.0), (-7.0, 1.0), (-10.0, 0.0)])
        for _, raw in grid[:SEARCHES]
    ]
    best = natural(min(found, key=lambda each: float(each.fun)).x)
    best[0] /= scale
    return best


def _estimate(
    wrong: Floats, judged: npt.NDArray[np.bool_], logs: Floats, own_place: npt.NDArray[np.int64]
) -> Estimate:
    """Count wrong labels in two ways: by the mixture, and where the answers are the surest."""
    count = int(judged.sum())
    expected = float(wrong.sum())
    spread = 2 * float(np.sqrt((wrong * (1 - wrong)).sum()))
    top = np.partition(logs[judged], -2, axis=1)[:, -2:]
    sure = np.argsort(top[:, 0] - top[:, 1], kind="stable")[: max(1, int(SUREST * count))]
    contradicted = (logs[judged].argmax(axis=1) != own_place[judged])[sure]
    least, most = wilson_interval(int(contradicted.sum()), len(sure))
    # A probability of 0 or 1 has no spread, however few labels it was learned from.
    few, many = wilson_interval(round(expected), count)
    return Estimate(
        expected=expected,
        low=max(0.0, min(few * count, min(expected, most * count) - spread)),
        high=min(float(count), max(many * count, max(expected, least * count) + spread)),
        checked=count,
        listed=min(count, max(round(expected), int((wrong > 0.5).sum()))),
        method=_METHOD,
    )
