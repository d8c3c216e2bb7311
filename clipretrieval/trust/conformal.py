"""Split conformal prediction: sets of classes that contain the true one with a given probability.

The *nonconformity score* of a class is higher, the worse it fits an image. If images are exchangeable, the
score of the true class is higher than those of all but a share α of the held-out images for at most a share α
of the images [1]_. So the set of all classes with lower scores contains the true one with probability 1 − α,
however good or bad the probabilities are. Better ones give smaller sets.

References
----------
.. [1] V. Vovk, A. Gammerman, G. Shafer, "Algorithmic learning in a random world" (2005); with one part of the
   data held out: H. Papadopoulos et al., "Inductive confidence machines for regression", ECML (2002).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import check_bool, check_choice, check_int, check_number, shown
from clipretrieval.errors import InvalidInputError

__all__ = [
    *("SCORES", "ConformalRule", "Ranked", "check_coverage", "draws", "greater_share", "least_images"),
    *("choose_regularisation",),
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SCORES = ("lac", "aps", "raps")
PENALTIES = (0.001, 0.01, 0.1, 0.2, 0.5)
"""Of RAPS, that are compared: those of the paper's own code."""
DIGITS = 12
"""Of a score: sums of the same shares in another order differ in their last bits, and are ties."""


@dataclass(frozen=True)
class ConformalRule:
    """Which nonconformity score, and which images it is compared with.

    Attributes
    ----------
    score : {"lac", "aps", "raps"}
        1 − p of the class [1]_; the probabilities of all classes that are more probable, and a random part
        of its own [2]_; that, and a penalty for each rank behind the first few [3]_.
    class_conditional : bool
        Whether a class is compared with held-out images of that class only, and coverage is guaranteed for
        each class [4]_.
    randomized : bool
        Whether the part of its own, and the order of ties, are random; otherwise the sets are larger, and
        the coverage is exceeded.
    random_state : int
        Of these draws, which are made from the images' content ids.
    penalty : float or None
        Of RAPS, λ. None: chosen; see `choose_regularisation`.
    free_classes : int or None
        Of RAPS, k_reg: how many classes are not penalised.

    References
    ----------
    .. [1] M. Sadinle, J. Lei, L. Wasserman, "Least ambiguous set-valued classifiers with bounded error
       levels", Journal of the American Statistical Association 114 (2019), pages 223-234.
    .. [2] Y. Romano, M. Sesia, E. Candès, "Classification with valid and adaptive coverage", NeurIPS (2020).
    .. [3] A. Angelopoulos, S. Bates, J. Malik, M. I. Jordan, "Uncertainty sets for image classifiers using
       conformal prediction", ICLR (2021), equation 4.
    .. [4] V. Vovk, "Conditional validity of inductive conformal predictors", ACML (2012): Mondrian ones.
    """

    score: str = "lac"
    class_conditional: bool = False
    randomized: bool = True
    random_state: int = 0
    penalty: float | None = None
    free_classes: int | None = None

    def __post_init__(self) -> None:
        check_choice(self.score, "score", SCORES)
        check_bool(self.class_conditional, "class_conditional")
        check_bool(self.randomized, "randomized")
        check_int(self.random_state, "random_state", least=0)
        given = {"penalty": self.penalty, "free_classes": self.free_classes}
        for name, value in given.items():
            if value is not None and self.score != "raps":
                raise InvalidInputError(
                    f"{name} is for score='raps'; got score={self.score!r}, so leave it out"
                )
        if (self.penalty is None) != (self.free_classes is None):
            raise InvalidInputError("pass both penalty and free_classes, or neither to have them chosen")
        if self.penalty is not None:
            check_number(self.penalty, "penalty", least=0)
            check_int(self.free_classes, "free_classes", least=0)

    @property
    def chooses(self) -> bool:
        """Whether the penalty is chosen on some of the held-out images, which are then not used otherwise."""
        return self.score == "raps" and self.penalty is None

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments as JSON values."""
        return dict(vars(self))

    def scores(self, ranked: Ranked, parts: Floats, penalty: float = 0.0, free_classes: int = 0) -> Floats:
        """Return the nonconformity scores of classes.

        Parameters
        ----------
        ranked : Ranked
        parts : ndarray of float64
            Drawn from [0, 1) for each image, of a shape that broadcasts with those of `ranked`.
        penalty, free_classes
            Of RAPS.
        """
        if self.score == "lac":
            return np.round(1.0 - ranked.own, DIGITS)
        found = ranked.above + (parts if self.randomized else 1.0) * ranked.own
        if self.score == "raps":
            found = found + penalty * np.maximum(ranked.rank - free_classes, 0)
        return np.round(found, DIGITS)


@dataclass(frozen=True, eq=False)
class Ranked:
    """Classes of images, and how each ranks among all classes of its image.

    Attributes
    ----------
    own : ndarray of float64
        Its probability.
    above : ndarray of float64
        The sum of those of the classes ranked above it; equally probable ones rank in their order.
    rank : ndarray of int64
        Its place, counted from 1.
    """

    own: Floats
    above: Floats
    rank: Ints

    @classmethod
    def of(cls, probabilities: Floats) -> Ranked:
        """Rank all classes; each array has the shape (n, n_classes) of the probabilities."""
        order = np.argsort(-probabilities, axis=1, kind="stable")
        own = np.take_along_axis(probabilities, order, axis=1)
        above, rank = np.empty_like(own), np.empty(own.shape, dtype=np.int64)
        np.put_along_axis(above, order, np.cumsum(own, axis=1) - own, axis=1)
        np.put_along_axis(rank, order, np.arange(1, own.shape[1] + 1)[None, :], axis=1)
        return cls(probabilities, above, rank)

    def at(self, codes: Ints) -> Ranked:
        """Return one class of each image, each array of shape (n,)."""
        rows = np.arange(len(codes))
        return Ranked(self.own[rows, codes], self.above[rows, codes], self.rank[rows, codes])

    def take(self, rows: Any) -> Ranked:
        """Return some of the images."""
        return Ranked(self.own[rows], self.above[rows], self.rank[rows])


def check_coverage(coverage: Any, name: str = "coverage", example: float = 0.95) -> float:
    """Return a number above 0 and below 1; an error names the example.

    Raises
    ------
    InvalidInputError
    """
    found = check_number(coverage, name)
    if not 0 < found < 1:
        raise InvalidInputError(
            f"{name} must lie between 0 and 1, such as {example:g}; got {shown(coverage)}"
        )
    return found


def least_images(error: float) -> int:
    """Return how many held-out images an error rate α, 1 − coverage, takes at least: ⌈1 / α⌉ − 1.

    Raises
    ------
    InvalidInputError
        If `error` is not between 0 and 1.
    """
    error = check_coverage(error, "error", 0.05)
    return math.ceil(round(1 / error, 9)) - 1


def draws(ids: Sequence[str], random_state: int, purpose: str) -> Floats:
    """Draw a number from [0, 1) for each image, seeded by its content id.

    Returns
    -------
    ndarray of float64, shape (n,)
    """
    digests = (
        hashlib.blake2b(f"{purpose}:{random_state}:{name}".encode(), digest_size=8).digest() for name in ids
    )
    numbers = np.frombuffer(b"".join(digests), dtype=">u8")
    found: Floats = (numbers >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return found


def greater_share(held: Floats, scores: Floats, ties: Floats | float) -> Floats:
    """Return the p-values of scores: the share that is at least as high, the score itself included.

    Parameters
    ----------
    held : ndarray of float64, shape (n,)
        Of held-out images, ascending.
    scores : ndarray of float64
    ties : ndarray of float64, or 1.0
        How much those of the same score count: 1; or a number drawn from [0, 1), which makes the p-values of
        exchangeable images uniform [1]_.

    References
    ----------
    .. [1] V. Vovk, A. Gammerman, G. Shafer, "Algorithmic learning in a random world" (2005), section 2.2:
       smoothed conformal predictors.
    """
    at_least = len(held) - np.searchsorted(held, scores, side="left")
    above = len(held) - np.searchsorted(held, scores, side="right")
    found: Floats = (above + ties * (at_least - above + 1)) / (len(held) + 1)
    return found


def choose_regularisation(
    rule: ConformalRule, probabilities: Floats, codes: Ints, parts: Floats, error: float
) -> tuple[float, int]:
    """Choose λ and k_reg of RAPS on images that are not used otherwise.

    Parameters
    ----------
    rule : ConformalRule
    probabilities : ndarray of float64, shape (n, n_classes)
    codes : ndarray of int64, shape (n,)
        The true classes.
    parts : ndarray of float64, shape (n,)
    error : float

    Returns
    -------
    penalty : float
        The candidate that gives the smallest sets.
    free_classes : int
        The rank within which the true class of a share 1 − `error` of them is.

    References
    ----------
    A. Angelopoulos et al., "Uncertainty sets for image classifiers using conformal prediction", ICLR (2021),
    algorithms 4 and 5.
    """
    ranked = Ranked.of(probabilities)
    true = ranked.at(codes)
    place = min(math.ceil((1 - error) * (len(codes) + 1)), len(codes)) - 1
    free = int(np.sort(true.rank)[place])
    sizes = []
    for penalty in PENALTIES:
        held = np.sort(rule.scores(true, parts, penalty, free))
        sizes.append(
            float((rule.scores(ranked, parts[:, None], penalty, free) <= held[place]).sum(axis=1).mean())
        )
    return PENALTIES[int(np.argmin(sizes))], free
