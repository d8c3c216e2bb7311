"""Classify by looking up what is near: the estimator that users hold."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score

from clipretrieval import _filling, _inputs
from clipretrieval._asking import check_fitted, open_ballot, search_batches, vote
from clipretrieval._labels import class_array
from clipretrieval._timing import Progress, Timing
from clipretrieval.encoding.base import Encoder
from clipretrieval.errors import (
    ClipRetrievalWarning,
)
from clipretrieval.stores.base import VectorStore
from clipretrieval.types import AnyArray, Metric, Neighbors
from clipretrieval.voting import Weighting

if TYPE_CHECKING:
    from clipretrieval.evaluation.report import EvaluationReport
    from clipretrieval.explanation import Explanation
    from clipretrieval.images import SkippedImage

__all__ = ["RetrievalClassifier"]


class RetrievalClassifier(ClassifierMixin, BaseEstimator):
    """Classify images by the votes of the nearest labelled ones.

    A scikit-learn estimator. Nothing is trained: fitting encodes the images and puts the vectors, with
    their labels, into a vector store.

    Parameters
    ----------
    encoder : Encoder, optional
        Usually a `~clipretrieval.StagedEncoder`. Without one, the classifier takes float arrays of
        shape (n, d) instead of images.
    store : str or VectorStore
        A registered name (``"memory"``, ``"faiss"``, …), which makes a new store at every fit, or a
        store of your own, which is filled once.
    k : int
        Neighbours that vote, at least 1.
    weights : {"uniform", "distance", "softmax"} or callable
        How their votes count; see `clipretrieval.voting.vote_weights`.
    temperature : float
        Of ``weights="softmax"``; positive.
    metric : {"l2", "cosine", "ip"}
        Must be the store's own where `store` is an instance.
    store_options : dict, optional
        Arguments for the store that a name makes.

    Attributes
    ----------
    classes_ : ndarray, shape (n_classes,)
        The labels, sorted, of the type that was fitted.
    store_ : VectorStore
        What was filled.
    n_features_in_ : int
        Dimension of the vectors.
    fit_timing_ : Timing
        Seconds and items of decoding, encoding and storing at the last fit.
    skipped_ : list of SkippedImage
        What the last fit passed over under ``on_error="skip"``.

    Notes
    -----
    Ties: a tie between classes goes to the one with the nearest neighbour, then to the first in
    ``classes_``. Neighbours at the same distance are taken in the order of their ids.

    Examples
    --------
    >>> from clipretrieval import RetrievalClassifier
    >>> classifier = RetrievalClassifier(k=1).fit([[0.0, 0.0], [1.0, 1.0]], ["low", "high"])
    >>> classifier.predict([[0.1, 0.2], [0.9, 0.7]]).tolist()
    ['low', 'high']
    """

    def __init__(
        self,
        encoder: Encoder | None = None,
        store: str | VectorStore = "faiss",
        *,
        k: int = 1,
        weights: Weighting = "uniform",
        temperature: float = 0.07,
        metric: Metric | str = "l2",
        store_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.encoder = encoder
        self.store = store
        self.k = k
        self.weights = weights
        self.temperature = temperature
        self.metric = metric
        self.store_options = store_options

    def fit(
        self, X: Any, y: Any = None, *, on_error: str = "raise", progress: Progress | None = None
    ) -> RetrievalClassifier:
        """Encode labelled images and store them.

        Parameters
        ----------
        X : images, or array of shape (n, d) without an encoder
            Whatever `clipretrieval.images.iter_images` takes: paths, pictures, arrays, a folder with
            a sub-folder for each class, a dataset, an iterator; also of pairs (image, label).
        y : sequence of int or of str, length n, optional
            May be left out where `X` brings the labels.
        on_error : {"raise", "skip"}
            What to do about an image that cannot be decoded. Skipped ones are listed in ``skipped_``.
        progress : callable, optional
            Called with (images done, total or None) after every batch.

        Returns
        -------
        RetrievalClassifier
            Itself.

        Raises
        ------
        InvalidInputError
            If there are no images, labels are missing, too many or of mixed types, or `store` is an
            instance that already holds vectors.
        ImageDecodeError
            If an image cannot be decoded.
        """
        before = dict(vars(self))
        try:
            self._fit(X, y, on_error, progress)
        except BaseException:
            # A fit that fails leaves the estimator as it was, the one before it included.
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        if len(self.classes_) == 1:
            warnings.warn(
                f"there is only one class, {self.classes_.tolist()[0]!r}: every prediction will be that",
                ClipRetrievalWarning,
                stacklevel=2,
            )
        return self

    def _fit(self, X: Any, y: Any, on_error: str, progress: Progress | None) -> None:
        _inputs.check_params(self)
        source = _inputs.fit_source(self, X, y, on_error)
        store = _inputs.make_store(self)
        _filling.check_fillable(store, source.fingerprint)
        timing = Timing()
        filled = _filling.fill(store, source, timing, progress)
        self.store_ = store
        self._label_kind = filled.label_kind
        self.classes_ = class_array(filled.classes, filled.label_kind)
        self.n_features_in_ = filled.dim
        self.fit_timing_ = timing
        self.skipped_: list[SkippedImage] = source.skipped

    def predict(self, X: Any) -> AnyArray:
        """Return the label of each image.

        Parameters
        ----------
        X : images, or array of shape (n, d) without an encoder

        Returns
        -------
        ndarray, shape (n,)
            Of the type that was fitted.

        Raises
        ------
        NotFittedError
        ImageDecodeError
        FingerprintMismatchError
            If the store was meanwhile filled by a different encoder.
        """
        ballot = open_ballot(self)
        codes = [vote(self, near, ballot)[0] for _, near in search_batches(self, X, ballot=ballot)]
        return ballot.labels(np.concatenate(codes))

    def predict_proba(self, X: Any) -> AnyArray:
        """Return each class's share of the votes.

        Returns
        -------
        ndarray of float64, shape (n, n_classes)
            In [0, 1], rows sum to 1; columns in the order of ``classes_``.
        """
        ballot = open_ballot(self)
        parts = [vote(self, near, ballot)[1] for _, near in search_batches(self, X, ballot=ballot)]
        # A class that turned up on the way has no votes in the batches before it.
        scores = np.concatenate([np.pad(part, ((0, 0), (0, len(ballot) - part.shape[1]))) for part in parts])
        shares: AnyArray = ballot.columns(scores / scores.sum(axis=1, keepdims=True))
        return shares

    def kneighbors(self, X: Any, k: int | None = None) -> Neighbors:
        """Return the stored images nearest to each image.

        Parameters
        ----------
        X : images, or array of shape (n, d) without an encoder
        k : int, optional
            The classifier's own `k` when left out.

        Returns
        -------
        Neighbors
            ids, distances and labels, each of shape (n, k).
        """
        k = self.k if k is None else _inputs.check_k(k)
        parts = [near for _, near in search_batches(self, X, k)]
        return Neighbors(
            ids=np.concatenate([part.ids for part in parts]),
            distances=np.concatenate([part.distances for part in parts]),
            labels=np.concatenate([part.labels for part in parts]),
        )

    def explain(self, X: Any, k: int | None = None) -> list[Explanation]:
        """Tell of each image what `predict` answers, and which stored images that rests on.

        Parameters
        ----------
        X : images, or array of shape (n, d) without an encoder
        k : int, optional
            Neighbours to show, where there should be more than vote.

        Returns
        -------
        list of Explanation
            One for each image; also a single image gives a list.
        """
        from clipretrieval.explanation import explain_stream

        return list(explain_stream(self, X, k))

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the accuracy on labelled images, in [0, 1].

        Parameters
        ----------
        X, y
            As for `fit`.
        sample_weight : array-like of shape (n,), optional
        """
        report = self.evaluate(X, y)
        return float(accuracy_score(report.y_true, report.y_pred, sample_weight=sample_weight))

    def evaluate(
        self, X: Any, y: Any = None, *, on_error: str = "raise", progress: Progress | None = None
    ) -> EvaluationReport:
        """Classify labelled images and measure how right and how fast that was.

        Parameters
        ----------
        X, y, on_error, progress
            As for `fit`.

        Returns
        -------
        EvaluationReport
        """
        from clipretrieval.evaluation.evaluate import evaluate

        return evaluate(self, X, y, on_error=on_error, progress=progress)

    def save(self, path: str | Path) -> None:
        """Write the fitted classifier into a folder, atomically; see `clipretrieval.persistence.save`."""
        from clipretrieval.persistence import save

        check_fitted(self)
        save(self, path)

    @classmethod
    def load(
        cls, path: str | Path, encoder: Encoder | None = None, *, store: VectorStore | None = None
    ) -> RetrievalClassifier:
        """Open a classifier that `save` wrote; see `clipretrieval.persistence.load`."""
        from clipretrieval.persistence import load

        return load(cls, path, encoder, store=store)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "store_")
