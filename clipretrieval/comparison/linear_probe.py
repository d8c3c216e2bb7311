"""A linear probe of a stage: the reference that its vectors are measured by elsewhere."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from clipretrieval.errors import InvalidInputError, UnsupportedOperationError
from clipretrieval.heads.base import Queries
from clipretrieval.heads.fitted_head import FittedHead
from clipretrieval.heads.priors import Priors
from clipretrieval.heads.store_contents import StoreContents
from clipretrieval.retrieval.labelled_index import LabelledIndex

__all__ = ["PROBE", "fit_probe"]

Floats = npt.NDArray[np.float64]

PROBE = "linear probe"
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Those of C, the inverse of scikit-learn's penalty, that are tried on columns of variance one."""
_UNTRIED = 1e-2
"""C where a class has a single image, so that no part of the images has all classes."""
_FOLDS = 3
_STEPS = 1000


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A logistic regression that has been trained, as a `LearnedHead`.

    Attributes
    ----------
    weights : ndarray of float64, shape (dim, n_classes)
    offsets : ndarray of float64, shape (n_classes,)
    strength : float
        C.
    folds : int
        Of the cross-validation that chose it; 0 for none.
    """

    weights: Floats
    offsets: Floats
    strength: float
    folds: int
    k: ClassVar[int] = 0

    def log_scores(self, queries: Queries) -> Floats:
        """Return the logarithms of what is proportional to the probabilities, shape (n, n_classes)."""
        found: Floats = queries.vectors.astype(np.float64) @ self.weights + self.offsets
        return found


@dataclass(frozen=True, eq=False)
class FittedProbe(FittedHead):
    """What answers by a probe."""

    def describe(self) -> dict[str, Any]:
        """Return its name, C, and the folds that chose it."""
        probe: Any = self.learned
        return {"head": PROBE, "C": probe.strength, "folds": probe.folds}


def fit_probe(index: LabelledIndex) -> FittedProbe:
    """Train a linear probe on all vectors that an index holds.

    Columns are scaled to variance one, the loss is multinomial, and C is the one of five with the highest
    accuracy in stratified cross-validation; folds are drawn with a seed, from the vectors in the order of
    their ids, so that equal contents give equal probes.

    Raises
    ------
    InvalidInputError
        If they are of one class.
    UnsupportedOperationError
        If the store cannot list what it holds.
    """
    contents = StoreContents(index, {}, Priors.parse("equal"))
    classes = contents.classes
    if len(classes) < 2:
        raise InvalidInputError(
            f"a linear probe tells classes apart, and there is one, {classes[0]!r}; pass probe=False"
        )
    try:
        sample = contents.sample(sys.maxsize)
    except UnsupportedOperationError as error:
        raise UnsupportedOperationError(
            f"a linear probe is trained on all stored vectors, and {type(index.store).__name__} cannot list "
            "what it holds (it has no scan method); pass probe=False, or compare in another store first"
        ) from error
    folds = min(_FOLDS, int(np.bincount(sample.codes, minlength=len(classes)).min()))
    chain = make_pipeline(StandardScaler(), LogisticRegression(C=_UNTRIED, max_iter=_STEPS))
    if folds > 1:
        draw = StratifiedKFold(folds, shuffle=True, random_state=0)
        search = GridSearchCV(chain, {"logisticregression__C": _STRENGTHS}, cv=draw, error_score="raise")
        chain = search.fit(sample.vectors, sample.codes).best_estimator_
    else:
        chain.fit(sample.vectors, sample.codes)
        folds = 0
    probe = _as_one(chain, folds)
    return FittedProbe(probe, probe, classes, 1, PROBE)  # type: ignore[arg-type]  # it has learned already


def _as_one(chain: Any, folds: int) -> LinearProbe:
    """Return scaling and regression as one linear map."""
    scaler, regression = chain[0], chain[-1]
    weights: Any = regression.coef_.astype(np.float64).T / scaler.scale_[:, None]
    offsets: Any = regression.intercept_.astype(np.float64) - scaler.mean_ @ weights
    if weights.shape[1] == 1:  # of two classes, scikit-learn keeps the second one's alone
        weights, offsets = (np.hstack([np.zeros_like(each), each]) for each in (weights, offsets))
    return LinearProbe(weights, offsets, float(regression.C), folds)
