"""Classify by looking up what is near: the estimator that users hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from sklearn.base import ClassifierMixin

from clipretrieval._learner import Learner
from clipretrieval._tuning import Tuning
from clipretrieval._util.progress import Progress
from clipretrieval._util.secrets import MaskedDict
from clipretrieval.encoding.base import Encoder
from clipretrieval.evaluation.scoring import weighted_accuracy
from clipretrieval.retrieval.parameters import check_k
from clipretrieval.retrieval.retriever import Asked, check_fitted, open_ballot, vote
from clipretrieval.stores.base import VectorStore
from clipretrieval.types import AnyArray, Neighbors

if TYPE_CHECKING:
    from clipretrieval.evaluation.report import EvaluationReport
    from clipretrieval.explanation import Explanation

__all__ = ["RetrievalClassifier"]


class RetrievalClassifier(Tuning, ClassifierMixin, Learner):
    """Classify images by the votes of the nearest labelled ones.

    A scikit-learn estimator. Nothing is trained: fitting encodes the images and puts the vectors, with
    their labels, into a vector store. Images can be added (`partial_fit`), removed (`forget`) and corrected
    (`relabel`) at any moment.

    Parameters
    ----------
    encoder : Encoder, optional
        Usually a `~clipretrieval.StagedEncoder`. Without one, the classifier takes float arrays of
        shape (n, d) instead of images.
    store : str or VectorStore
        A registered name (``"memory"``, ``"faiss"``, …), which opens a store at every fit, or a
        store of your own, which is filled once.
    k : int
        Neighbours that vote, at least 1.
    weights : {"uniform", "distance", "softmax"} or callable
        How their votes count; see `clipretrieval.heads.votes.vote_weights`.
    temperature : float
        Of ``weights="softmax"``; positive.
    metric : {"l2", "cosine", "ip"}
        Must be the store's own where `store` is an instance.
    normalize : bool
        Scale vectors to length one before they are stored or looked up. With ``"l2"`` the neighbours are
        then those of the cosine, and ``"softmax"`` is the recipe of DINO.
    store_options : dict, optional
        Arguments for the store that a name makes.

    Attributes
    ----------
    classes_ : ndarray, shape (n_classes,)
        The labels, sorted, of the type that was fitted. Strings have NumPy's fixed width, and are objects
        (``dtype=object``) where one has more than 256 characters, for which each of the others would take as
        much memory. `predict` returns the same dtype.
    store_ : VectorStore
        What was filled.
    n_features_in_ : int
        Dimension of the vectors.
    fit_report_ : FitReport
        What the last `fit` or `partial_fit` did, and how long each part of it took.
    fit_timing_ : Timing
        Seconds and images of each part, from ``fit_report_``.
    skipped_ : list of SkippedImage
        What the last fit passed over under ``on_error="skip"``.

    Notes
    -----
    Threads may predict side by side, also while another one adds images. Calls that change a classifier or a
    store (`fit`, `partial_fit`, `forget`, `relabel`) take their turns.

    Ties: a tie between classes goes to the one with the nearest neighbour, then to the first in
    ``classes_``. Neighbours at the same distance are taken in the order of their ids. These come from the
    images' contents, so neither the order in which images are fitted nor their division into calls changes an
    answer, with one exception: of several labels that an image is given, the last one counts.

    Examples
    --------
    >>> from clipretrieval import RetrievalClassifier
    >>> classifier = RetrievalClassifier(k=1).fit([[0.0, 0.0], [1.0, 1.0]], ["low", "high"])
    >>> classifier.predict([[0.1, 0.2], [0.9, 0.7]]).tolist()
    ['low', 'high']
    """

    def predict(
        self, X: Any, *, on_error: str = "raise", progress: Progress | bool | None = None
    ) -> AnyArray:
        """Return the label of each image.

        Parameters
        ----------
        X : images, or array of shape (n, d) without an encoder
        on_error : {"raise", "skip"}
            What to do about an image that cannot be decoded, or whose vector cannot be used. Under ``"skip"``
            its answer is empty, so that each answer keeps the place of its image, and a warning says how many
            are.
        progress : callable or True, optional
            As for `fit`.

        Returns
        -------
        ndarray, shape (n,)
            Of the type that was fitted; under ``on_error="skip"`` of objects, None where an image was
            skipped.

        Raises
        ------
        NotFittedError
        ImageDecodeError
        FingerprintMismatchError
            If the store was meanwhile filled by a different encoder.
        """
        ballot, asked = open_ballot(self), Asked()
        found = asked.search(self, X, ballot=ballot, on_error=on_error, progress=progress)
        codes = [vote(self, near, ballot).answers for _, near in found]
        labels = ballot.labels(np.concatenate(codes))
        return labels if on_error == "raise" else asked.placed([labels.astype(object)], None)

    def predict_proba(
        self, X: Any, *, on_error: str = "raise", progress: Progress | bool | None = None
    ) -> AnyArray:
        """Return each class's share of the votes.

        Parameters
        ----------
        X, on_error, progress
            As for `predict`.

        Returns
        -------
        ndarray of float64, shape (n, n_classes)
            In [0, 1], rows sum to 1; columns in the order of ``classes_``. NaN where an image was skipped.
        """
        ballot, asked = open_ballot(self), Asked()
        found = asked.search(self, X, ballot=ballot, on_error=on_error, progress=progress)
        parts = []
        for _, near in found:
            votes = vote(self, near, ballot)
            parts.append((len(near), votes.candidates.rows, votes.candidates.codes, votes.shares))
        shares = np.zeros((asked.count, len(ballot)))  # once: no other array has a column for each class
        shares[[item.index for item in asked.skipped]] = np.nan
        places, columns, first = np.array(asked.places), ballot.columns(), 0
        for count, rows, codes, part in parts:
            shares[places[first + rows], columns[codes]] = part
            first += count
        return shares

    def kneighbors(
        self,
        X: Any,
        k: int | None = None,
        *,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
    ) -> Neighbors:
        """Return the stored images nearest to each image.

        Parameters
        ----------
        X : images, or array of shape (n, d) without an encoder
        k : int, optional
            The classifier's own `k` when left out.
        on_error, progress
            As for `predict`.

        Returns
        -------
        Neighbors
            ids, distances and labels, each of shape (n, k). The row of a skipped image is padded: see
            `Neighbors.valid`.
        """
        k, asked = self.k if k is None else check_k(k), Asked()
        parts = [near for _, near in asked.search(self, X, k, on_error=on_error, progress=progress)]
        labels = [part.labels for part in parts]
        return Neighbors(
            ids=asked.placed([part.ids for part in parts], ""),
            distances=asked.placed([part.distances for part in parts], np.inf),
            labels=asked.placed(labels, "" if labels[0].dtype == object else -1),
        )

    @overload
    def explain(
        self,
        X: Any,
        k: int | None = None,
        *,
        by: str = "share",
        on_error: Literal["raise"] = "raise",
        progress: Progress | bool | None = None,
    ) -> list[Explanation]: ...

    @overload
    def explain(
        self,
        X: Any,
        k: int | None = None,
        *,
        by: str = "share",
        on_error: str,
        progress: Progress | bool | None = None,
    ) -> list[Explanation | None]: ...

    def explain(
        self,
        X: Any,
        k: int | None = None,
        *,
        by: str = "share",
        on_error: str = "raise",
        progress: Progress | bool | None = None,
    ) -> Any:
        """Tell of each image what `predict` answers, and which stored images that rests on.

        Parameters
        ----------
        X : images, or array of shape (n, d) without an encoder
        k : int, optional
            Neighbours to show, where there should be more than vote.
        by : {"share", "margin", "distance"}
            The measure of confidence that each explanation's text shows beside the answer. All three are its
            attributes.
        on_error, progress
            As for `predict`.

        Returns
        -------
        list of Explanation
            One for each image; also a single image gives a list. None for an image that was skipped.
        """
        from clipretrieval.explanation import explain_all

        return explain_all(self, X, k, by=by, on_error=on_error, progress=progress)

    def score(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
        allow_tuned: bool = False,
    ) -> float:
        """Return the accuracy on labelled images, in [0, 1].

        Parameters
        ----------
        X, y, on_error, progress, allow_tuned
            As for `evaluate`.
        sample_weight : array-like of shape (n,), optional
            One an image, those that are skipped included.
        """
        report = self.evaluate(
            X, y, on_error=on_error, progress=progress, allow_tuned=allow_tuned, mistakes=0
        )
        return weighted_accuracy(report, sample_weight)

    def evaluate(
        self,
        X: Any,
        y: Any = None,
        *,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
        allow_tuned: bool = False,
        mistakes: int = 12,
    ) -> EvaluationReport:
        """Classify labelled images and measure how right and how fast that was.

        Parameters
        ----------
        X, y, on_error, progress
            As for `fit`.
        allow_tuned : bool
            Whether to evaluate on images that `sweep` has tuned on since the last fit.
        mistakes : int
            How many of the worst mistakes to keep, with their neighbours; 0 asks the store nothing more.

        Returns
        -------
        EvaluationReport

        Raises
        ------
        InvalidInputError
            If labels are missing or of another type than those fitted, an image was tuned on, or
            `mistakes` is negative.
        """
        from clipretrieval.evaluation.evaluation import evaluate

        return evaluate(
            self, X, y, on_error=on_error, progress=progress, allow_tuned=allow_tuned, mistakes=mistakes
        )

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the fitted classifier into a folder, atomically; see `clipretrieval.persistence.save`."""
        from clipretrieval.persistence.persistence import save

        check_fitted(self)
        save(self, path, overwrite=overwrite)

    @classmethod
    def from_store(
        cls, store: str | VectorStore, encoder: Encoder | None = None, **params: Any
    ) -> RetrievalClassifier:
        """Attach to a store that a classifier has filled, in this process or another.

        Parameters
        ----------
        store : str or VectorStore
            A name needs `store_options` that tell where the store lies.
        encoder : Encoder, optional
            The one that filled it; none where it was filled with vectors.
        **params
            As for the constructor. `metric` and `normalize` are the store's own.

        Returns
        -------
        RetrievalClassifier
            Fitted. What others add to the store is seen by later questions.

        Raises
        ------
        InvalidInputError
            If no classifier has filled the store, or `encoder` is missing.
        FingerprintMismatchError
            If another encoder or metric filled it; the message names what differs.
        """
        from clipretrieval.retrieval.attaching import attach

        params = MaskedDict(params)  # tracebacks may be printed with local variables
        return attach(cls, store, encoder, params)

    @classmethod
    def load(
        cls,
        path: str | Path,
        encoder: Encoder | None = None,
        *,
        store: VectorStore | None = None,
        allow_remote: bool = False,
    ) -> RetrievalClassifier:
        """Open a classifier that `save` wrote; see `clipretrieval.persistence.load`."""
        from clipretrieval.persistence.persistence import load

        return load(cls, path, encoder, store=store, allow_remote=allow_remote)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "store_")
