"""Classify by looking up what is near: the estimator that users hold."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

from clipretrieval._util.argument_only import ArgumentOnly
from clipretrieval._util.checks import check_bool, check_int, check_mapping, check_sequence, shown
from clipretrieval._util.progress import Progress, check_progress, open_progress
from clipretrieval._util.secrets import MaskedDict
from clipretrieval._util.timing import Timing
from clipretrieval._util.warning import warn_caller
from clipretrieval.encoding.base import Encoder
from clipretrieval.encoding.streams import VECTORS
from clipretrieval.errors import (
    InvalidInputError,
    NotFittedError,
    StoreLockedError,
    UnsupportedOperationError,
)
from clipretrieval.evaluation.scoring import weighted_accuracy
from clipretrieval.heads.answers import answer_labels, answer_probabilities
from clipretrieval.heads.base import Head
from clipretrieval.heads.chosen_head import ChosenHead
from clipretrieval.heads.class_texts import ClassTexts
from clipretrieval.heads.fitted_head import DecisionRule
from clipretrieval.heads.held_out import HeldOut, held_out
from clipretrieval.heads.index_statistics import IndexStatistics
from clipretrieval.heads.priors import Priors
from clipretrieval.heads.statistics import ClassStatistics, Moments
from clipretrieval.heads.text_prior import check_text_weight
from clipretrieval.heads.voting import TEMPERATURE
from clipretrieval.heads.weighting import Weighting
from clipretrieval.heads.whitening import AUTO, Whitening, plan_transform
from clipretrieval.images.sources import check_class_names, class_names
from clipretrieval.images.stream import SkippedImage
from clipretrieval.prompts import STUDY_PROMPT, Templates
from clipretrieval.retrieval.classes import CLASSES_LOCK, Classes
from clipretrieval.retrieval.conflicts import warn_of_labels, warn_of_lookalikes
from clipretrieval.retrieval.edit import finish_change, forget_records, relabel_records, replace_sources
from clipretrieval.retrieval.exclusive import one_at_a_time, sole_writer
from clipretrieval.retrieval.fill import fill_stores
from clipretrieval.retrieval.index_writer import Existing, IndexWriter, write_index
from clipretrieval.retrieval.inputs import FitSource, open_fit_source
from clipretrieval.retrieval.labelled_index import LabelledIndex
from clipretrieval.retrieval.manifest import check_vectors_only
from clipretrieval.retrieval.parameters import (
    can_be_reopened,
    check_encoder,
    check_store,
    make_store,
    params_of,
    restored_on_failure,
)
from clipretrieval.retrieval.reports import FitReport, ForgetReport
from clipretrieval.retrieval.retriever import NOT_FITTED, Retriever
from clipretrieval.retrieval.rewritten_store import rewrite_store
from clipretrieval.retrieval.transform import LinearTransform
from clipretrieval.retrieval.transform_plan import STORED, TransformPlan, warn_of_growth
from clipretrieval.retrieval.vectorless_store import VectorlessStore, as_kept
from clipretrieval.stores.base import VectorStore
from clipretrieval.stores.checks import check_k
from clipretrieval.stores.registry import DEFAULT_STORE
from clipretrieval.text_search import PLAIN, refuse_text, search_text
from clipretrieval.trust.answering_params import AnsweringParams
from clipretrieval.trust.basis import Basis
from clipretrieval.trust.calibrated import Calibrated, check_method
from clipretrieval.trust.calibration_images import CalibrationImages
from clipretrieval.trust.conformal import ConformalRule, check_coverage
from clipretrieval.trust.conformalized import Conformalized, ConformalReport, SetPredictor
from clipretrieval.trust.trust import (
    PredictionSets,
    Trust,
    check_unknown,
    predict_sets,
    score_samples,
)
from clipretrieval.trust.trusted_rule import gate_of
from clipretrieval.types import AnyArray, Label, Metric, Neighbors
from clipretrieval.vectors.adoption import adopt
from clipretrieval.vectors.exporting import export_index
from clipretrieval.vectors.ready_vectors import ReadyVectors, joint_encoder

if TYPE_CHECKING:
    from clipretrieval.evaluation.report import EvaluationReport
    from clipretrieval.evaluation.sweep import SweepResult
    from clipretrieval.explanation import Explanation
    from clipretrieval.trust.calibrated import CalibrationReport

__all__ = ["RetrievalClassifier"]

Self = TypeVar("Self", bound="RetrievalClassifier")


class RetrievalClassifier(ClassifierMixin, BaseEstimator):
    """Classify images by what is stored of labelled ones: by the nearest, or by their classes' statistics.

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
        Neighbors that vote, at least 1.
    weights : {"uniform", "distance", "softmax"} or callable
        How their votes count: 1 each; the inverse of the distance; exp(similarity / `temperature`), where the
        similarity is 1 − d for cosine, −d for ip and 1 − d/2 for l2; or as a callable says, which is given
        the distances, shape (n, k), and returns weights of that shape.
    temperature : float
        Of ``weights="softmax"``; positive.
    head : {"votes", "discriminant", "quadratic", "ridge", "fused"} or Head
        What turns the store's contents into an answer: the votes of the nearest; Gaussian classes with one
        covariance, or with one each; random features and ridge regression; or all but the quadratic one,
        weighed by what the stored images tell. See `clipretrieval.heads`, whose classes have more arguments.
        With ``"fused"``, a `k` of 1 stands for 20.
    priors : {"equal", "empirical"} or sequence of float
        How likely each class is, of any head but the votes: all the same, as often as it is stored, or one
        number for each of ``classes_``.
    text_weight : float, "auto" or None
        How much CLIP's zero-shot answer counts beside the head's: its log probabilities are added to those of
        the head, times this, at least 0. ``"auto"``: alone, unless stored images contradict the texts, or
        show, left out one by one, that the head surely adds to them; its parts are weighed anew then. None:
        no texts are read. Needs an encoder at the stage ``final`` with a text tower, and vectors without a
        `transform`. A class that is listed in ``classes_`` before it has an image is then answered, as
        probable as the texts hold it to be.
    class_names : mapping of label to str, optional
        Names for the prompts, of classes only. Those that are strings and have none are their own names, with
        spaces for underscores; those that are numbers need one.
    templates : str, callable, or sequence of these
        Prompts, as for `~clipretrieval.ZeroShotClassifier`.
    metric : {"l2", "cosine", "ip"}
        Must be the store's own where `store` is an instance.
    normalize : bool
        Scale vectors to length one before they are stored or looked up. With ``"l2"`` the neighbors are
        then those of the cosine, and ``"softmax"`` is the recipe of DINO.
    transform : {"auto", "whiten"}, None or Whitening
        A map that vectors go through before they are stored or looked up. ``"whiten"`` stands for
        `Whitening`, after which neighbors are near by what distinguishes the classes; it is learned at the
        end of the first fit, and kept in the store. ``"auto"``: that of the store; one that is filled from
        nothing gets it where the head wants it, as ``"fused"`` does, and the store can keep it.
    store_options : dict, optional
        Arguments for the store that a name makes.
    unknown : int or str, optional
        What `predict` returns for an image that is unlike all stored ones: a label that no class has.
        Call `conformalize` to set the threshold.
    max_turned_away : float
        The largest share of the images of known classes that may be answered so, above 0 and below 1.

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
        What the last fit, `conformalize` or `calibrate` skipped under ``on_error="skip"``.
    retriever_ : Retriever
        What looks images up: the encoder, and the index that was filled.
    head_ : DecisionRule
        What decides; it has learned from the store as it is when this is read.
    conformal_ : ConformalReport or None
        The coverage that the images given to `conformalize` are enough for; None if it was not called.
    calibration_ : CalibrationReport or None
        The calibration error before and after `calibrate`; None if it was not called.

    Notes
    -----
    Threads may predict side by side, also while another one adds images. Calls that change a classifier or a
    store (`fit`, `partial_fit`, `forget`, `relabel`) take their turns.

    Ties: a tie between classes goes to the one with the nearest neighbor, then to the first in
    ``classes_``. Neighbors at the same distance are taken in the order of their ids. These come from the
    images' contents, so neither the order in which images are fitted nor their division into calls changes an
    answer, with one exception: of several labels that an image is given, the last one counts.

    Examples
    --------
    >>> from clipretrieval import RetrievalClassifier
    >>> classifier = RetrievalClassifier(k=1).fit([[0.0, 0.0], [1.0, 1.0]], ["low", "high"])
    >>> classifier.predict([[0.1, 0.2], [0.9, 0.7]]).tolist()
    ['low', 'high']
    """

    transform = ArgumentOnly()
    store_: VectorStore
    n_features_in_: int
    fit_report_: FitReport
    skipped_: list[SkippedImage]
    _classes: Classes
    _statistics: IndexStatistics | None
    """Of the records of ``store_``, where a head reads any."""
    _map: LinearTransform | None
    """What the vectors of ``store_`` went through when it was last asked."""
    _class_names: Mapping[int, str]
    """Names of classes that were fitted by their numbers in a dataset."""
    _texts: ClassTexts
    """The texts' vectors, where any were asked for."""
    _made_of: Any
    """What decided which store was made; see `_store_recipe`."""
    _tuned: frozenset[str] = frozenset()
    """Content ids of the images that `sweep` has tuned on since the last fit."""
    _saved_in: dict[str, str | None]
    """Folders that this classifier was loaded from or saved to, and the digest of what was there then."""
    _trust = Trust()
    """What was learned of images that were held out, since the last fit."""
    _keeps_vectors = True
    """Whether a store that is filled from nothing gets the vectors; see `VectorlessStore`."""

    def __init__(
        self,
        encoder: Encoder | None = None,
        store: str | VectorStore = DEFAULT_STORE,
        *,
        k: int = 1,
        weights: Weighting = "uniform",
        temperature: float = TEMPERATURE,
        head: str | Head = "votes",
        priors: Any = "equal",
        text_weight: float | str | None = None,
        class_names: Mapping[Any, str] | None = None,
        templates: Templates = STUDY_PROMPT,
        metric: Metric | str = "l2",
        normalize: bool = False,
        transform: str | Whitening | None = AUTO,
        store_options: Mapping[str, Any] | None = None,
        unknown: Any = None,
        max_turned_away: float = 0.05,
    ) -> None:
        self.encoder = encoder
        self.store = store
        self.k = k
        self.weights = weights
        self.temperature = temperature
        self.head = head
        self.priors = priors
        self.text_weight = text_weight
        self.class_names = class_names
        self.templates = templates
        self.metric = metric
        self.normalize = normalize
        self.transform = transform
        self.store_options = store_options
        self.unknown = unknown
        self.max_turned_away = max_turned_away

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments by name; `store_options` is printed with its secrets masked."""
        return params_of(self, deep)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        if isinstance(state["store_options"], Mapping):
            state["store_options"] = MaskedDict(state["store_options"])  # pickles have no secrets
        state.pop("_texts", None)  # they are encoded again
        return state

    def fit(
        self: Self,
        X: Any,
        y: Any = None,
        *,
        overwrite: bool = False,
        resume: bool = False,
        flush_every: int | None = None,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
    ) -> Self:
        """Encode labelled images and store them.

        An image is stored once, however often it comes, with the label that came last. Decoding, encoding and
        storing overlap, and only a few images are in memory at a time. What was encoded before a failure (a
        image that cannot be decoded, a generator that raises, Ctrl-C) is stored and flushed: the same call
        with ``resume=True`` goes on from there.

        A `transform` is learned when all images are there, and what the store holds is rewritten by it; until
        that is done, nobody gets an answer. Where it cuts dimensions, the vectors are kept in memory until
        then, and what was encoded before a failure is not stored.

        Parameters
        ----------
        X : images, or array of shape (n, d) without an encoder
            Whatever `clipretrieval.images.iter_images` takes: paths, images, arrays, a folder with
            a sub-folder for each class, a dataset, an iterator; also of pairs (image, label).
        y : sequence of int or of str, length n, optional
            May be left out where `X` brings the labels.
        overwrite : bool
            Replace what the store holds, as soon as the first new images are encoded. A fit that fails before
            leaves all of it, and only ``overwrite=True`` replaces it then; one that fails later is gone on
            with by ``resume=True``. From Python 3.11 on, a note on the exception tells which it was.
        resume : bool
            Keep what the store holds, and encode only images that are not there. One that is there with
            another label gets the new one.
        flush_every : int, optional
            The most images that are encoded twice if the process is killed and resumed. When left out, the
            store is flushed as often as a twentieth of the time allows.
        on_error : {"raise", "skip"}
            What to do about an image that cannot be decoded, or whose vector cannot be used (NaN; all zeros
            under the cosine metric). Skipped ones are listed in ``skipped_``.
        progress : callable or True, optional
            Called with (images done, total or None) after every batch. True shows a bar, on a terminal or in
            a notebook, and elsewhere a line now and then.

        Returns
        -------
        RetrievalClassifier
            Itself; ``fit_report_`` tells what was done.

        Raises
        ------
        InvalidInputError
            If there are no images, labels are missing, too many or of mixed types, or the store already
            holds vectors and neither `overwrite` nor `resume` is given.
        FingerprintMismatchError
            If, with `resume`, a different encoder or metric filled the store, or its vectors went through
            another `transform`.
        UnsupportedOperationError
            If the store cannot keep the `transform`.
        StoreLockedError
            If another process writes to the store: one in a folder is held from the beginning of the fit, and
            one that has no lock is compared with what it was before anything is put there.
        ImageDecodeError
            If an image cannot be decoded.

        Warns
        -----
        ClipRetrievalWarning
            If an image comes under several labels (``fit_report_.conflicts`` lists such images), labels
            differ in case, spaces or Unicode normalisation alone, there is only one class, float32 loses
            what tells vectors apart, or a transform was learned from few of the images, or of the classes,
            that the store holds by now (once a process; `refit_transform` learns it anew).
        """
        overwrite, resume = check_bool(overwrite, "overwrite"), check_bool(resume, "resume")
        if overwrite and resume:
            raise InvalidInputError("overwrite=True and resume=True exclude each other; pass one of them")
        with one_at_a_time(self), restored_on_failure(self):
            self._learn(
                X,
                y,
                existing="replace" if overwrite else "resume" if resume else "refuse",
                flush_every=flush_every,
                on_error=on_error,
                progress=progress,
            )
            self._tuned, self._trust = frozenset(), Trust()
        warn_of_labels(self.fit_report_, self.classes_, vectors=self.encoder is None)
        if len(self.classes_) == 1:
            warn_caller(
                f"there is only one class, {self.classes_.tolist()[0]!r}: every prediction will be that"
            )
        return self

    def partial_fit(
        self: Self,
        X: Any,
        y: Any = None,
        *,
        classes: Any = None,
        flush_every: int | None = None,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
    ) -> Self:
        """Add labelled images, of known or of new classes.

        An image that is already there changes nothing, but for its label where that is another now. So images
        may be divided into calls in any way. A `transform` is learned at the end of the first one, and stays
        when images are added, forgotten or relabelled; `refit_transform` learns it anew.

        Parameters
        ----------
        X, y, flush_every, on_error, progress
            As for `fit`.
        classes : sequence of int or of str, optional
            Classes to be listed in ``classes_`` before they have an image.

        Returns
        -------
        RetrievalClassifier
            Itself; ``fit_report_`` tells what was done.

        Raises
        ------
        InvalidInputError
            As for `fit`, or if overwriting the store was interrupted: ``fit(…, resume=True)`` finishes that.
        FingerprintMismatchError
            If a different encoder or metric filled the store.
        StoreLockedError
            As for `fit`.

        Warns
        -----
        ClipRetrievalWarning
            As for `fit`, of what is new.
        """
        known = getattr(self, "classes_", None)
        with one_at_a_time(self), restored_on_failure(self):
            self._learn(
                X,
                y,
                existing="add",
                onto=getattr(self, "store_", None),
                classes=classes,
                flush_every=flush_every,
                on_error=on_error,
                progress=progress,
            )
        warn_of_labels(self.fit_report_, self.classes_, known=known, vectors=self.encoder is None)
        return self

    def fit_vectors(
        self: Self,
        vectors: Any,
        labels: Any = None,
        ids: Any = None,
        *,
        encoder: Encoder | None = None,
        column: str | None = None,
        overwrite: bool = False,
        resume: bool = False,
        flush_every: int | None = None,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
    ) -> Self:
        """Store labelled vectors that exist already, as `fit` does with those of images.

        Files are read a block at a time. One that says which encoder made its vectors, as `export` and
        `clipretrieval.vectors.encode` write it, is compared with `encoder`; of any other, that they are the
        encoder's is taken from the caller.

        Parameters
        ----------
        vectors : array of shape (n, d), path, list of paths, or Arrow table or Hugging Face Dataset
            A path is that of a file (``.npy``, ``.npz``, Parquet, Feather, Arrow), of a folder of such
            tables, of one that Hugging Face's ``save_to_disk`` or clip-retrieval wrote, or a pattern:
            ``"parts/*.parquet"``.
        labels : sequence of int or of str, length n, or str, optional
            Or the name of a column: when left out, ``"label"``. Of clip-retrieval's folders without one, the
            folder of each image's path is its label.
        ids : sequence of str or of int, length n, or str, optional
            Or the name of a column: when left out, ``"id"``. Without one, an id is a hash of its vector. An
            id that comes again, or is stored, has to have the same vector, but for rounding.
        encoder : Encoder, optional
            The one that made the vectors: when left out, the classifier's. A classifier that has none gets
            it.
        column : str, optional
            The column of vectors, where there are several.
        overwrite, resume, flush_every, on_error, progress
            As for `fit`.

        Returns
        -------
        RetrievalClassifier
            Itself; ``fit_report_`` tells what was done.

        Raises
        ------
        InvalidInputError
            As for `fit`, or if a file cannot be read, or has no such column; the message names it, and the
            columns that are there.
        DimensionMismatchError
            If the vectors have another dimension than the encoder's.
        FingerprintMismatchError
            As for `fit`, or if a file says that a different encoder made its vectors, or two files do.
        MissingDependencyError
            If a file is read by pyarrow, and that is not installed.

        Warns
        -----
        ClipRetrievalWarning
            As for `fit`, or if vectors were scaled to length one and `normalize` is not set.
        """
        ready = ReadyVectors(vectors, labels, ids, column)
        with one_at_a_time(self), restored_on_failure(self):
            self.encoder = joint_encoder(self.encoder, encoder)
            return self.fit(
                ready,
                overwrite=overwrite,
                resume=resume,
                flush_every=flush_every,
                on_error=on_error,
                progress=progress,
            )

    def partial_fit_vectors(
        self: Self,
        vectors: Any,
        labels: Any = None,
        ids: Any = None,
        *,
        encoder: Encoder | None = None,
        column: str | None = None,
        classes: Any = None,
        flush_every: int | None = None,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
    ) -> Self:
        """Add labelled vectors that exist already, as `partial_fit` does with those of images.

        Parameters
        ----------
        vectors, labels, ids, encoder, column
            As for `fit_vectors`, as are the errors.
        classes, flush_every, on_error, progress
            As for `partial_fit`.

        Returns
        -------
        RetrievalClassifier
            Itself; ``fit_report_`` tells what was done.
        """
        ready = ReadyVectors(vectors, labels, ids, column)
        with one_at_a_time(self), restored_on_failure(self):
            self.encoder = joint_encoder(self.encoder, encoder)
            return self.partial_fit(
                ready, classes=classes, flush_every=flush_every, on_error=on_error, progress=progress
            )

    def export(self, path: str | Path, *, progress: Progress | bool | None = None) -> int:
        """Write all that is stored into a Parquet file.

        Its columns are ``id``, ``label`` (of the type that was fitted), ``source`` (the image's path),
        ``metadata`` (what else is kept, as JSON) and ``vector`` (float32, as the encoder made it; where a
        `transform` maps those that are stored, recovered to float32 precision). The encoder's fingerprint is
        in the file's metadata. `fit_vectors` and `from_vectors` read it.

        Parameters
        ----------
        path : str or Path
            A file there is replaced, once the new one is complete.
        progress : callable or True, optional
            As for `fit`.

        Returns
        -------
        int
            How many records were written.

        Raises
        ------
        NotFittedError, FingerprintMismatchError
            As for `predict`.
        UnsupportedOperationError
            If the store cannot list what it holds, or a `transform` has cut dimensions.
        StoreUnavailableError
            If the file cannot be written.
        MissingDependencyError
            If pyarrow is not installed.
        """
        return export_index(self._index(refresh=True), path, progress)

    def _learn(
        self,
        X: Any,
        y: Any,
        *,
        existing: Existing,
        onto: VectorStore | None = None,
        classes: Any = None,
        flush_every: int | None,
        on_error: str,
        progress: Progress | bool | None,
    ) -> None:
        """Store labelled images, in the store `onto` or the one that the arguments stand for."""
        started, timing = time.perf_counter(), Timing()
        metric = self._check_params()
        check_progress(progress)
        if (texts := self._params().texts) is not None:
            texts.prepare()
        interval = None if flush_every is None else check_int(flush_every, "flush_every")
        listed = [] if classes is None else check_sequence(classes, "classes", "int or of str")
        # The last quarter of an interval is for what is being encoded; see `store_images`.
        ahead = None if interval is None else max(1, interval // 4)
        names = class_names(X) if y is None else {}
        if existing == "add":
            known = getattr(self, "_class_names", {})
            check_class_names(known, names)
            names = {**known, **names}
        read = X.fit_source if isinstance(X, ReadyVectors) else partial(open_fit_source, X=X, y=y)
        source = read(
            self,
            encoder=self.encoder,
            metric=metric,
            normalize=bool(self.normalize),
            on_error=on_error,
            reset=onto is None,
            ahead=ahead,
        )
        check_unknown(self.unknown, self._classes if onto is not None else None, [*source.labels, *listed])
        with self._writing(source, existing, onto, listed) as writer:
            fill_stores([writer], source, timing=timing, progress=progress, flush_every=interval)
        if writer.transform is not None:
            warn_of_growth(self.store_, writer.listed)
        self.skipped_ = source.skipped
        self._class_names = names
        self.fit_report_ = writer.report(source.skipped, timing, time.perf_counter() - started)

    @contextmanager
    def _writing(
        self,
        source: FitSource,
        existing: Existing,
        onto: VectorStore | None,
        listed: Sequence[Any],
        *,
        vectors: str = VECTORS,
    ) -> Iterator[IndexWriter]:
        """Have the block fill the store `onto`, or the one the arguments stand for, and be fitted with it.

        `listed` are classes that need not have an image; `vectors` is the name of those that the block gives.
        """
        store = onto if onto is not None else self._store_to_fill(existing != "refuse")
        keep_open = store is self.store or store is getattr(self, "store_", None)
        try:
            store = self._as_kept(store)
        except BaseException:
            if not keep_open:
                store.close()
            raise
        statistics = self._statistics_of(store)
        if statistics is not None:
            statistics.expect(set(source.labels), source.dim)
        with write_index(
            store,
            source.origin,
            existing,
            vectors=vectors,
            named=source.named,
            keep_open=keep_open,
            follower=statistics,
            plan=self._plan(),
            known=getattr(self, "_classes", None),
        ) as writer:
            writer.on_other_vector = source.on_other_vector
            writer.list_classes(listed)
            yield writer
        with CLASSES_LOCK:  # others may be asking, and take up classes
            dim = int(store.dim or 0) if writer.transform is None else writer.transform.dim
            self._become(store, writer.listed, dim, renew=onto is None)
            self._statistics, self._map = statistics, writer.transform

    def _become(self, store: VectorStore, classes: Classes, dim: int, *, renew: bool = True) -> None:
        """Be fitted with a store that is filled; `renew` where the arguments stand for it as they are now."""
        # At once, as `_index` reads it: other threads may be asking.
        statistics = getattr(self, "_statistics", None) if store is getattr(self, "store_", None) else None
        self.__dict__.update(
            store_=store,
            _classes=classes,
            n_features_in_=dim,
            _statistics=statistics,
            _map=None,
            _keeps_vectors=not isinstance(store, VectorlessStore),
        )
        if renew:
            self._made_of = self._store_recipe()

    def _as_kept(self, store: VectorStore) -> VectorStore:
        """Return the store as one that keeps no vectors, where none are to be kept."""
        plan = self._plan()
        return as_kept(store, self._keeps_vectors, self.encoder, bool(self.normalize), plan)

    def _store_to_fill(self, again: bool) -> VectorStore:
        """Return the store that a fit goes into.

        It is the one that the classifier has, if the same arguments made it and the fit goes on with it or
        replaces what it holds (`again`), or it is what keeps a second one out of its folder. Else it is a new
        one; the one before is freed as soon as nobody has it.
        """
        held: VectorStore | None = getattr(self, "store_", None)
        if getattr(self, "_made_of", None) != self._store_recipe() or can_be_reopened(held):
            held = None
        if held is not None and again:
            return held
        try:
            return make_store(self.store, self.store_options, Metric.parse(self.metric))
        except StoreLockedError:
            if held is None:
                raise
            return held

    def forget(self, ids: Any = None, *, label: Any = None) -> ForgetReport:
        """Remove images by their ids, or all of a class, and make certain that they are gone.

        Each is asked for by its id again, and its vector is searched for again; that takes the time of
        as many queries.

        Parameters
        ----------
        ids : str or sequence of str, optional
            As `kneighbors` and `explain` return them.
        label : int or str, optional
            Instead of ids: the class to forget.

        Returns
        -------
        ForgetReport

        Raises
        ------
        InvalidInputError
            If an id is unknown (the message names it), or no image has the label. Nothing is changed.
        UnsupportedOperationError
            If `label` is given and the store cannot list what it holds.
        FingerprintMismatchError
            If a different encoder or metric has filled the store anew.
        StoreLockedError
            If another process writes to the store.
        StoreError
            If the store still finds what it has deleted.
        """
        self._index()  # has to be fitted, before this waits for another thread's fit
        with one_at_a_time(self):
            index = self._index_to_change()
            with sole_writer(index.store):
                return forget_records(index, ids, label)

    def relabel(self, ids: Any, labels: Any) -> int:
        """Give stored images other labels.

        Parameters
        ----------
        ids : str or sequence of str
            As `kneighbors` and `explain` return them.
        labels : sequence of int or of str, one for each id; or one str for all

        Returns
        -------
        int
            How many labels changed.

        Raises
        ------
        InvalidInputError
            If an id is unknown (the message names it), or labels are of another type than those that
            were fitted. Nothing is changed.
        FingerprintMismatchError, StoreLockedError
            As for `forget`.

        Warns
        -----
        ClipRetrievalWarning
            If a new class differs from another in case, spaces or Unicode normalisation alone.
        """
        known = self._index().classes.labels
        changed = self._relabel(ids, labels)
        warn_of_lookalikes(self.classes_, known)
        return changed

    def _relabel(self, ids: Any, labels: Any) -> int:
        """Relabel stored images without a warning."""
        self._index()  # has to be fitted, before this waits for another thread's fit
        with one_at_a_time(self):
            index = self._index_to_change()
            with sole_writer(index.store):
                return relabel_records(index, ids, labels)

    def _finish_change(self, labels: Iterable[Any] = ()) -> None:
        """Bring what is kept of the store's contents in step, where a change of images was cut short.

        `labels` are those of which no image may be left.
        """
        with one_at_a_time(self):
            index = self._index_to_change()
            with sole_writer(index.store):
                finish_change(index, labels)

    def _replace_sources(self, files: Mapping[str, str]) -> int:
        """Note where the files of stored images are now, by id."""
        with one_at_a_time(self):
            index = self._index_to_change()
            with sole_writer(index.store):
                return replace_sources(index, files)

    def refit_transform(self: Self, *, progress: Progress | bool | None = None) -> Self:
        """Learn the `transform` anew of what the store holds now, and rewrite that.

        The vectors are recovered from what is stored, to float32 precision, so no image is needed. Afterwards
        the store is what a fresh fit of the same images would have made. It turns a raw store into a whitened
        one (``set_params(transform="whiten").refit_transform()``), and back with ``transform=None``. A
        transform that cuts dimensions is learned anew within those that it kept.

        Two passes over the store; no question is answered meanwhile. A rewriting that was interrupted is
        finished first, also by a classifier that is not fitted but has the encoder and the store.

        Parameters
        ----------
        progress : callable or True, optional
            As for `fit`, of the records that are rewritten.

        Returns
        -------
        RetrievalClassifier
            Itself.

        Raises
        ------
        NotFittedError
            If there is no store, or it holds nothing.
        InvalidInputError
            If `transform` is ``"auto"`` and the store has none.
        UnsupportedOperationError
            If the store cannot keep a transform, or the vectors would have another dimension: those of a
            store have one, and what was cut is not there any more.
        FingerprintMismatchError
            If a different encoder or metric filled the store.
        StoreLockedError
            If another process writes to it.
        StoreCorruptedError
            If something else than this library has written its vectors.
        """
        metric = self._check_params()
        check_progress(progress)
        with one_at_a_time(self), restored_on_failure(self):
            store, opened = getattr(self, "store_", None), None
            if store is None:
                try:
                    store = opened = make_store(self.store, self.store_options, metric, existing=True)
                except InvalidInputError as error:
                    if self.store_options:
                        raise
                    raise NotFittedError(NOT_FITTED) from error  # a store in memory would start empty
            statistics = self._statistics_of(store)
            try:
                with open_progress(progress, "rewriting") as shown:
                    rewrite_store(
                        store, self.encoder, metric, bool(self.normalize), self._plan(), statistics, shown
                    )
                if opened is not None:
                    index = LabelledIndex.open(store, self.encoder, metric, bool(self.normalize), plan=STORED)
                    self._become(store, index.classes, index.dim)
                self._statistics = statistics
            except BaseException:
                if opened is not None and opened is not self.store:
                    opened.close()
                raise
        return self

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
        return answer_labels(*self._answering(), X, on_error=on_error, progress=progress)

    @overload
    def predict_proba(
        self,
        X: Any,
        *,
        sparse: Literal[False] = False,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
    ) -> AnyArray: ...

    @overload
    def predict_proba(
        self,
        X: Any,
        *,
        sparse: bool,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
    ) -> Any: ...

    def predict_proba(
        self,
        X: Any,
        *,
        sparse: bool = False,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
    ) -> Any:
        """Return each class's share of the votes, or its probability by the head.

        Parameters
        ----------
        X, on_error, progress
            As for `predict`.
        sparse : bool
            Whether to keep only the shares that are not 0, of which votes give an image `k` at most: for many
            classes.

        Returns
        -------
        ndarray of float64, or scipy.sparse.csr_matrix, shape (n, n_classes)
            In [0, 1], rows sum to 1; columns in the order of ``classes_``. Where an image was skipped, NaN;
            with `sparse`, an empty row.

        Raises
        ------
        InvalidInputError
            If `sparse` is asked of a head that gives every class a probability: any but ``"votes"``, or one
            that is calibrated.
        NotFittedError, ImageDecodeError, FingerprintMismatchError
            As for `predict`.
        """
        return answer_probabilities(
            *self._answering(), X, sparse=sparse, on_error=on_error, progress=progress
        )

    def predict_set(
        self,
        X: Any,
        coverage: float = 0.95,
        *,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
    ) -> PredictionSets:
        """Return the label of each image, and a set of classes that contains the true one.

        For images that are exchangeable with those given to `conformalize`, a share of at least `coverage` of
        the sets contain the true class on average (or for each class, with ``class_conditional=True``),
        however good or bad the head's probabilities are; see `clipretrieval.trust`. A larger set means less
        confidence. A set may be empty, with any score. It is if the answer is `unknown`, so coverage may fall
        short by `max_turned_away`.

        Parameters
        ----------
        X, on_error, progress
            As for `predict`.
        coverage : float
            Above 0 and below 1.

        Returns
        -------
        PredictionSets
            ``labels``, shape (n,), and ``sets``, bool of shape (n, n_classes), columns as ``classes_``. The
            set of an image does not depend on the other images of the call.

        Raises
        ------
        NotFittedError
            If it is not conformalized.
        InvalidInputError
            If `coverage` is not between 0 and 1, or there are too few held-out images for it (the message
            says how many it takes).
        """
        index = self._index_to_ask()
        head, predictor = self._decision(index), self._trust.predictor(self._basis(index), coverage)
        return predict_sets(Retriever(index, self), head, predictor, X, on_error=on_error, progress=progress)

    def set_predictor(self, coverage: float) -> SetPredictor:
        """Return what computes prediction sets; see `predict_set`."""
        return self._trust.predictor(self._basis(self._index_to_ask()), coverage)

    def score_samples(
        self, X: Any, *, on_error: str = "raise", progress: Progress | bool | None = None
    ) -> AnyArray:
        """Return how similar each image is to the stored ones, regardless of class; higher is more similar.

        Minus the distance to the tenth nearest neighbor, relative to the length of the vector if an encoder
        computed it; for whitened vectors and a head that reads class statistics, minus the Mahalanobis
        distance to the nearest class, relative to that to the center of all. Scores have no unit, and are
        comparable only within one classifier.

        Parameters
        ----------
        X, on_error, progress
            As for `predict`.

        Returns
        -------
        ndarray of float64, shape (n,)
            NaN where an image was skipped.
        """
        index = self._index_to_ask()
        return score_samples(
            Retriever(index, self), self._basis(index), X, on_error=on_error, progress=progress
        )

    def conformalize(
        self: Self,
        X: Any,
        y: Any = None,
        *,
        score: str = "lac",
        class_conditional: bool = False,
        randomized: bool = True,
        random_state: int = 0,
        penalty: float | None = None,
        free_classes: int | None = None,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
    ) -> Self:
        """Prepare `predict_set` and `unknown` with labelled images that the classifier was not fit on.

        Their vectors are kept, and saved, and everything is recomputed when the store changes. An image that
        is stored later, or whose class is forgotten, is no longer used. A fit discards them all.

        Parameters
        ----------
        X, y, on_error, progress
            As for `fit`.
        score : {"lac", "aps", "raps"}
            The nonconformity score of a class: for the smallest sets on average; for sets that are larger for
            harder images; the same without very large sets. See `clipretrieval.trust`.
        class_conditional : bool
            Whether coverage is guaranteed for each class, which takes as many images of each class as
            otherwise in total. A class without any is in every set, and any number of its images may be
            rejected.
        randomized : bool
            Whether ties are broken at random, seeded by each image's content, so that coverage is met
            exactly.
        random_state : int
            Seed of that.
        penalty, free_classes : float and int, optional
            Of ``"raps"``: the penalty for each class beyond the first few, and how many these are. By default
            they are chosen on a fifth of the images, which are then not used otherwise.

        Returns
        -------
        RetrievalClassifier
            Itself.

        Raises
        ------
        NotFittedError
        InvalidInputError
            If an image is stored or was given to `calibrate`, labels are missing, of another type or of no
            known class, or an argument is wrong.
        """
        rule = ConformalRule(score, class_conditional, randomized, random_state, penalty, free_classes)
        with one_at_a_time(self):
            images = self._held_out_images(X, y, "conformalize", on_error, progress)
            conformal, index = Conformalized(images, rule), self._index_to_ask()
            trust = replace(self._trust, conformal=conformal)
            trust.report(self._basis(index))  # computed while others wait for nothing
            self._trust = trust
        conformal.warn_of_classes(index.classes.codes)
        return self

    def calibrate(
        self: Self,
        X: Any,
        y: Any = None,
        *,
        method: str = "temperature",
        on_error: str = "raise",
        progress: Progress | bool | None = None,
    ) -> Self:
        """Calibrate `predict_proba` on labelled images that the classifier was not fit on.

        As with `conformalize`, their vectors are kept, and the calibration is fit again when the store
        changes.

        Parameters
        ----------
        X, y, on_error, progress
            As for `fit`.
        method : {"temperature", "isotonic"}
            Temperature scaling, which changes no prediction and needs a few hundred images; or isotonic
            regression for each class, which needs about a hundred images of each and may change predictions.

        Returns
        -------
        RetrievalClassifier
            Itself; ``calibration_`` has the calibration error before and after.

        Raises
        ------
        NotFittedError
        InvalidInputError
            As for `conformalize`.
        """
        method = check_method(method)
        with one_at_a_time(self):
            images = self._held_out_images(X, y, "calibrate", on_error, progress)
            found = Calibrated(images, method, token_hex(16))
            report = found.report(self._basis(self._index_to_ask()))
            self._trust = replace(self._trust, calibrated=found)
        report.warn()
        return self

    def _held_out_images(
        self, X: Any, y: Any, purpose: str, on_error: str, progress: Progress | bool | None
    ) -> CalibrationImages:
        """Read images that are to be kept beside the store."""
        given = self._trust.calibrated if purpose == "conformalize" else self._trust.conformal
        with open_progress(progress, purpose.replace("ize", "izing").replace("ate", "ating")) as shown:
            images, self.skipped_ = CalibrationImages.read(
                self.retriever_,
                X,
                y,
                purpose=purpose,
                elsewhere=None if given is None else given.images,
                on_error=on_error,
                progress=shown,
            )
        return images

    @property
    def calibration_(self) -> CalibrationReport | None:
        """The calibration error before and after `calibrate`, for the store as it is."""
        found = self._trust.calibrated
        return None if found is None else found.report(self._basis(self._index_to_ask()))

    @property
    def conformal_(self) -> ConformalReport | None:
        """The coverage that the images given to `conformalize` are enough for, for the store as it is."""
        return self._trust.report(self._basis(self._index_to_ask())) if self._trust.conformal else None

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
        retriever = self.retriever_
        if self.encoder is not None:
            refuse_text(X)
        width = self.k if k is None else check_k(k)
        return retriever.neighbors(X, width, on_error=on_error, progress=progress)

    def search_text(
        self, texts: str | Sequence[str], k: int = 10, *, templates: Templates = PLAIN
    ) -> Neighbors:
        """Return the stored images that lie nearest to texts, by the cosine, as CLIP compares them.

        The stored vectors have to be of the stage ``final``, or of an encoder with a method `encode_text`.
        With ``metric="cosine"`` or ``normalize=True`` the store searches; under another metric, which ranks
        otherwise, all that it holds is read and compared.

        Parameters
        ----------
        texts : str or sequence of str
            One text, or one for each row.
        k : int
            Images for each text.
        templates : str, callable, or sequence of these
            Prompts, as for `~clipretrieval.ZeroShotClassifier`, of which each text takes the place ``{}``;
            the directions of several are averaged. By default, the text itself.

        Returns
        -------
        Neighbors
            ids, distances and labels, each of shape (n_texts, k). Distances are 1 − cosine, under every
            metric.

        Raises
        ------
        NotFittedError
        InvalidInputError
            If a text is empty, longer than the model reads, or no str; or if the encoder stops before
            ``final``, or knows no texts.
        UnsupportedOperationError
            If the stored vectors went through a `transform`, or have to be compared one by one and the store
            cannot list them.
        FingerprintMismatchError
            If a different encoder or metric filled the store.

        Warns
        -----
        ClipRetrievalWarning
            If `k` is more than the store holds; rows are padded then.
        """
        return search_text(self._index_to_ask(), texts, k, templates)

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
            Neighbors to show, where there should be more than vote.
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
        unknown_images: Any = None,
    ) -> EvaluationReport:
        """Classify labelled images and measure how right and how fast that was.

        Parameters
        ----------
        X, y, on_error, progress
            As for `fit`.
        allow_tuned : bool
            Whether to evaluate on images that `sweep` has tuned on, or that `calibrate` or `conformalize` was
            given, since the last fit.
        mistakes : int
            How many of the worst mistakes to keep, with their neighbors; 0 asks the store nothing more.
        unknown_images : images, or array of shape (n, d) without an encoder, optional
            Images of none of the classes: the report's `unknown` says how well `score_samples` recognizes
            them.

        Returns
        -------
        EvaluationReport

        Raises
        ------
        InvalidInputError
            If labels are missing or of another type than those fitted, an image was tuned or calibrated on,
            or `mistakes` is negative.
        """
        return self._evaluate(
            X,
            y,
            on_error=on_error,
            progress=progress,
            allow_tuned=allow_tuned,
            mistakes=mistakes,
            unknown_images=unknown_images,
        )

    def _evaluate(
        self,
        X: Any,
        y: Any,
        *,
        on_error: str,
        progress: Progress | bool | None,
        allow_tuned: bool,
        mistakes: int,
        unknown_images: Any = None,
    ) -> EvaluationReport:
        from clipretrieval.evaluation.measurement import measure

        allow_tuned, mistakes = (
            check_bool(allow_tuned, "allow_tuned"),
            check_int(mistakes, "mistakes", least=0),
        )
        with open_progress(progress, "evaluating") as shown:
            retriever, head = self._answering()
            gate = None if unknown_images is None else gate_of(head, self._basis(retriever.index))
            return measure(
                retriever,
                head,
                X,
                y,
                store_name=self.store if isinstance(self.store, str) else type(self.store).__name__,
                on_error=on_error,
                progress=shown,
                tuned={} if allow_tuned else {"sweep": self._tuned, **self._trust.given},
                mistakes=mistakes,
                fit_report=getattr(self, "fit_report_", None),  # a loaded classifier has none
                unknown_images=unknown_images,
                gate=gate,
            )

    def sweep(
        self,
        X: Any,
        y: Any = None,
        *,
        head: str | Head | Iterable[str | Head] | None = None,
        k: int | Iterable[int] = (1, 5, 20, 50),
        weights: Weighting | Iterable[Weighting] = ("uniform", "distance", "softmax"),
        temperature: float | Iterable[float] = (0.07,),
        validation: float | str | None = None,
        allow_known: bool = False,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
        seed: int = 0,
    ) -> SweepResult:
        """Measure the accuracy of many settings with one search, at the largest k.

        Each accuracy is what `evaluate` gives with the setting on the same images. All images are
        encoded; those of the validation part are searched. Heads learn from what the store holds, with the
        classifier's `priors`.

        Parameters
        ----------
        X, y, on_error, progress
            As for `fit`; images that are not in the store.
        head : str or Head, or several of them, optional
            What to try; the classifier's own when left out.
        k, weights, temperature
            What to try, one value or several, combined where the neighbors vote. The temperature is that of
            softmax alone. ``"fused"`` is tried with each k above 1, or with 20 where there is none; other
            heads once.
        validation : float in (0, 1], "all" or None
            The share of the images that settings are tuned on, drawn by their content; None: a half.
            ``"all"`` where `X` is a validation set of your own. `evaluate` refuses these images until
            the next fit.
        allow_known : bool
            Whether to tune on images that the store holds, each of which votes for itself.
        seed : int
            Of the draw.

        Returns
        -------
        SweepResult

        Raises
        ------
        InvalidInputError
            If a setting is none that the classifier takes, the validation part is empty, an image of it
            is in the store, or labels are missing or of another type than those fitted.

        Warns
        -----
        ClipRetrievalWarning
            If a k is more than the store holds; all vectors are used then.

        Examples
        --------
        >>> from clipretrieval import RetrievalClassifier
        >>> points, sides = [[0.0], [1.0], [4.0], [5.0]], ["left", "left", "right", "right"]
        >>> classifier = RetrievalClassifier(store="memory").fit(points, sides)
        >>> result = classifier.sweep([[0.4], [4.6]], ["left", "right"], k=[1, 3], validation="all")
        >>> result.best_params
        {'k': 1, 'weights': 'uniform'}
        """
        from clipretrieval.evaluation.sweep import sweep

        if check_text_weight(self.text_weight) is not None:
            raise UnsupportedOperationError(
                "sweep tries heads by themselves, without texts; set text_weight=None before, and again after"
            )

        def learn(heads: list[tuple[Head, str]]) -> Sequence[DecisionRule]:
            index = self._index()
            statistics = self._statistics_to_read(index)
            return statistics.fit_each(index, heads, Priors.parse(self.priors), 1)

        with open_progress(progress, "tuning") as shown:
            result, self._tuned = sweep(
                self.retriever_,
                X,
                y,
                head=head,
                own_head=self.head,
                learn=learn,
                k=k,
                weights=weights,
                temperature=temperature,
                validation=validation,
                allow_known=allow_known,
                tuned=self._tuned,
                on_error=on_error,
                progress=shown,
                seed=seed,
            )
            return result

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a fitted classifier into a folder.

        A store that lives only in this process is copied into the folder. A store that other processes can
        open (a folder, a server) is flushed and named, without secrets. Any other has to be handed to
        `load` again. The folder changes in one step, when ``classifier.json`` is replaced.

        Parameters
        ----------
        path : str or Path
            Made if missing. An earlier classifier in it is replaced; anything else in it stays.
        overwrite : bool
            Replace the classifier in it also where another one was saved there since this one was loaded from
            there or saved to it.

        Raises
        ------
        UnsupportedOperationError
            If ``weights`` is a callable, or ``head`` an object of your own, which cannot be written down.
        InvalidInputError
            If `path` is no path, a file, or a folder that holds other things, or a parameter is wrong.
        StoreLockedError
            If another process is saving into the folder; or, without `overwrite`, has saved there since:
            what it added would be lost.
        StoreUnavailableError
            If the folder cannot be written to, or the disk is full.

        Warns
        -----
        ClipRetrievalWarning
            If the store is not part of what was saved, and has to be passed to `load`.
        """
        from clipretrieval.persistence.saving import save

        index = self._index()
        self._saved_in = dict(getattr(self, "_saved_in", {}))
        save(
            {None: index},
            path,
            params=self._saved_params(index),
            feature_names=getattr(self, "feature_names_in_", ()),
            saved_in=self._saved_in,
            overwrite=overwrite,
            trust=self._trust,
            answers=self._saved_answers(index),
        )

    def _saved_answers(self, index: LabelledIndex) -> dict[str, Any] | None:
        """Return the arguments about unknown images as JSON values; None if nothing is saved of trust."""
        if not self._trust and self.unknown is None:
            return None
        return {
            "unknown": check_unknown(self.unknown, index.classes),
            "max_turned_away": float(self.max_turned_away),
        }

    def _saved_params(self, index: LabelledIndex | None = None) -> dict[str, Any]:
        """Return the arguments that affect predictions as JSON values; those about texts with an index."""
        self._check_params()  # they may have been set since it was fitted
        return self._params().to_dict(index)

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
            As for the constructor. `metric`, `normalize` and `transform` are the store's own.

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
        params = MaskedDict(params)  # tracebacks may be printed with local variables
        opened = store if not isinstance(store, str) else None
        try:
            if opened is None:
                probe = cls(encoder, store, **params)
                metric = probe._check_params()
                opened = make_store(store, probe.store_options, metric, existing=True)
            check_store(opened)
            manifest = opened.read_manifest()
            if not manifest:
                raise InvalidInputError(
                    f"no classifier has filled this {type(opened).__name__}: it holds {opened.count()} "
                    "vectors and no manifest. Fit one on it first, or check which store this is; if you know "
                    "which encoder made its vectors: RetrievalClassifier.adopt_store(store, encoder)"
                )
            own = {"metric": opened.metric, "normalize": bool(manifest.get("normalize", False))}
            classifier = cls(encoder, store, **{**own, **params})
            metric = classifier._check_params()
            if encoder is None:
                check_vectors_only(manifest)
            index = LabelledIndex.open(
                opened, encoder, metric, bool(classifier.normalize), plan=classifier._plan()
            )
            classifier._become(index.store, index.classes, index.dim)
        except BaseException:
            if isinstance(store, str) and opened is not None:
                opened.close()
            raise
        return classifier

    @classmethod
    def from_vectors(
        cls,
        store: str | VectorStore,
        vectors: Any,
        labels: Any = None,
        ids: Any = None,
        *,
        encoder: Encoder | None = None,
        column: str | None = None,
        overwrite: bool = False,
        resume: bool = False,
        flush_every: int | None = None,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
        **params: Any,
    ) -> RetrievalClassifier:
        """Fill a store with vectors that exist already, such as the parts that several machines encoded.

        Parameters
        ----------
        store : str or VectorStore
        vectors, labels, ids, encoder, column, overwrite, resume, flush_every, on_error, progress
            As for `fit_vectors`, as are the errors.
        **params
            As for the constructor.

        Returns
        -------
        RetrievalClassifier
        """
        params = MaskedDict(params)  # tracebacks may be printed with local variables
        return cls(encoder, store, **params).fit_vectors(
            vectors,
            labels,
            ids,
            column=column,
            overwrite=overwrite,
            resume=resume,
            flush_every=flush_every,
            on_error=on_error,
            progress=progress,
        )

    @classmethod
    def adopt_store(
        cls, store: VectorStore, encoder: Encoder | None = None, **params: Any
    ) -> RetrievalClassifier:
        """Attach to a store that something else has filled, by `VectorStore.upsert` alone.

        That its vectors are the encoder's is taken from the caller. The store gets the manifest that a fit
        would have written; what it holds stays as it is.

        Parameters
        ----------
        store : VectorStore
        encoder : Encoder, optional
            The one that made the vectors; none where images are not to be asked for.
        **params
            As for the constructor. ``normalize=True`` says that all stored vectors have length one.

        Returns
        -------
        RetrievalClassifier
            As from `from_store`.

        Raises
        ------
        InvalidInputError
            If the store has a manifest already, holds nothing, or shows that what was said is wrong.
        DimensionMismatchError
            If its vectors have another dimension than the encoder's.
        UnsupportedOperationError
            If it cannot list what it holds.
        StoreLockedError
            If another process writes to it.
        """
        params = MaskedDict(params)
        check_store(store)
        probe = cls(encoder, store, **{"metric": store.metric, **params})
        metric = probe._check_params()
        make_store(store, probe.store_options, metric)  # whose metric has to be the store's
        if not probe._plan().auto and probe._plan().rule is not None:
            raise InvalidInputError(
                "the vectors of the store went through no transform; adopt it with transform='auto', and "
                "set_params(transform='whiten').refit_transform() then"
            )
        adopt(store, encoder, metric, bool(probe.normalize))
        return cls.from_store(store, encoder, **params)

    @classmethod
    def load(
        cls,
        path: str | Path,
        encoder: Encoder | None = None,
        *,
        store: VectorStore | None = None,
        allow_remote: bool = False,
    ) -> RetrievalClassifier:
        """Open a classifier that `save` wrote.

        The folder may come from anybody: without `allow_remote`, nothing that it says makes this connect to a
        host, read a key, or make or change a file.

        Parameters
        ----------
        path : str or Path
        encoder : Encoder, optional
            The one that was saved, built again from its arguments, when left out. One of your own has to
            be given again.
        store : VectorStore, optional
            Likewise.
        allow_remote : bool
            Trust whoever saved it, and open also a store at a server or one that would be made, and a model
            of a hub. A key from the environment is not sent to any host but the service's own.

        Returns
        -------
        RetrievalClassifier

        Raises
        ------
        InvalidInputError
            If the folder holds no saved classifier, or an encoder, a store or `allow_remote` has to be given.
        StoreCorruptedError
            If what it holds is damaged.
        StoreUnavailableError
            If it cannot be read, or its store is gone.
        FingerprintMismatchError
            If the encoder is not the one that filled the store; the message names what differs.
        """
        from clipretrieval.persistence.saving import load

        saved = load(path, encoder, store=store, allow_remote=allow_remote)
        try:
            classifier = cls(saved.index.encoder, saved.store, **saved.params)
            classifier._become(saved.index.store, saved.index.classes, saved.index.dim)
            classifier._trust = saved.trust
        except BaseException:  # the arguments of a class of one's own
            if store is None:
                saved.index.store.close()
            raise
        if saved.feature_names:
            classifier.feature_names_in_ = np.array(saved.feature_names, dtype=object)
        classifier._saved_in = saved.saved_in
        return classifier

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "store_")

    @property
    def classes_(self) -> AnyArray:
        """The labels, sorted, of the type that was fitted."""
        if not hasattr(self, "_classes"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute 'classes_'")
        return self._classes.labels

    @property
    def retriever_(self) -> Retriever:
        """What looks images up: the encoder, and the index that was filled."""
        return Retriever(self._index_to_ask(), self)

    @property
    def head_(self) -> DecisionRule:
        """What decides: votes, or what `head` has learned from the store as it is now."""
        return self._decision(self._index_to_ask())

    def _answering(self) -> tuple[Retriever, DecisionRule]:
        """Return what looks images up, and what decides by the same index."""
        index = self._index_to_ask()
        return Retriever(index, self), self._decision(index)

    def _index_to_ask(self) -> LabelledIndex:
        """Return what was filled, with what other processes have written."""
        index = self._index(refresh=True)
        self._check_params()  # they may be others by now
        index.unknown = check_unknown(self.unknown, index.classes)
        return index

    def _decision(self, index: LabelledIndex) -> DecisionRule:
        """Return what decides by an index."""
        if not self._trust and self.unknown is None:
            return self._own_decision(index)
        return self._trust.rule(self._basis(index), self.max_turned_away)

    def _own_decision(self, index: LabelledIndex) -> DecisionRule:
        """Return what the head decides by, without what was learned of held-out images."""
        return self._chosen_head().decision(index, lambda: self._statistics_to_read(index))

    def _basis(self, index: LabelledIndex) -> Basis:
        """Return what is asked where more than an answer is wanted."""
        return self._params().basis(index, lambda: self._statistics_to_read(index))

    def class_statistics(self, moments: Moments = Moments()) -> ClassStatistics:  # noqa: B008  it is frozen
        """Return the counts, the sums and the second moments of the stored vectors as they are now.

        Parameters
        ----------
        moments : Moments
            Which statistics: when left out, the count and the sum of each class, and the second moment of
            all. With ``Moments(per_class=True)`` each class has one, too; with features, which
            `clipretrieval.heads.RandomFeatures` maps the vectors to, they are of those.

        Returns
        -------
        ClassStatistics
            A copy. Those that ``head`` reads, and those that the store has kept, are at hand; others are
            gathered by reading all that the store holds.

        Raises
        ------
        NotFittedError
        InvalidInputError
            If `moments` are none.
        UnsupportedOperationError
            If they have to be gathered and the store cannot list what it holds.
        """
        index = self._index()
        if not isinstance(moments, Moments):
            raise InvalidInputError(f"moments must be clipretrieval.heads.Moments; got {shown(moments)}")
        return self._statistics_to_read(index).statistics(index, moments)

    def _held_out(self, most: int) -> HeldOut | None:
        """Return what is answered to some stored images, each left out; None where the head cannot tell."""
        index = self._index(refresh=True)
        return held_out(index, self._own_decision(index), most)

    def _statistics_to_read(self, index: LabelledIndex) -> IndexStatistics:
        """Return what follows an index's records, from now on if nothing does yet."""
        if not isinstance(index.follower, IndexStatistics):
            index.follower = self._statistics = IndexStatistics()
        return index.follower

    def _params(self) -> AnsweringParams:
        """Return the arguments that affect predictions, as they are now; vectors of texts are kept."""
        now = dict(vars(self))  # at once: other threads may set arguments
        found = AnsweringParams(now, self.encoder, now.get("_class_names"), now.get("_texts"))
        if found.texts is not None:
            self._texts = found.texts
        return found

    def _chosen_head(self) -> ChosenHead:
        """Return what decides, as it was asked for."""
        return self._params().chosen_head

    def _index(self, *, refresh: bool = False) -> LabelledIndex:
        """Return what was filled, with the encoder and the metric that the arguments name now.

        `refresh` takes up what other processes have written.
        """
        fitted = dict(vars(self))
        if "store_" not in fitted:
            raise NotFittedError(NOT_FITTED)
        index = LabelledIndex(
            fitted["store_"],
            self.encoder,
            Metric.parse(self.metric),
            bool(self.normalize),
            fitted["_classes"],
            fitted["n_features_in_"],
            self._change_classes,
            fitted.get("_class_names", {}),
            fitted.get("_statistics"),
        )
        if refresh:
            index.refresh()
        index.follow_transform(self._plan(), fitted.get("_map"))
        self._map = index.transform
        return index

    def _plan(self) -> TransformPlan:
        return plan_transform(vars(self)["transform"], self._chosen_head().learner)

    def _statistics_of(self, store: VectorStore) -> IndexStatistics | None:
        """Return what follows the changes of a store; None where the head reads no statistics."""
        head = self._chosen_head().learner
        if head is None or not head.moments:
            return None
        own = store is getattr(self, "store_", None)
        statistics = (getattr(self, "_statistics", None) if own else None) or IndexStatistics()
        statistics.want(head.moments)
        return statistics

    def _index_to_change(self) -> LabelledIndex:
        """Return what was filled, with who follows its changes."""
        index = self._index()
        index.follower = self._statistics = self._statistics_of(index.store)
        return index

    def _change_classes(self, add: Iterable[Label], remove: Iterable[Label]) -> Classes:
        with CLASSES_LOCK:
            self._classes = self._classes.changed(add, remove)
            return self._classes

    def _check_params(self) -> Metric:
        """Refuse constructor arguments that cannot work; scikit-learn has them checked at fit."""
        check_k(self.k)
        metric = Metric.parse(self.metric)
        self._chosen_head().check()
        self._plan()
        check_bool(self.normalize, "normalize")
        check_coverage(self.max_turned_away, "max_turned_away", 0.05)
        check_encoder(self.encoder)
        if self._params().texts is not None and vars(self)["transform"] not in (None, AUTO):
            raise InvalidInputError(
                "text_weight needs vectors as the encoder gives them, and transform maps them; pass "
                "transform=None, or text_weight=None"
            )
        return metric

    def _store_recipe(self) -> tuple[Any, ...]:
        """Return what decides which store the arguments stand for."""
        options = MaskedDict(check_mapping(self.store_options, "store_options"))
        return (self.store, options, str(Metric.parse(self.metric)))

    @property
    def fit_timing_(self) -> Timing:
        """Seconds and images of each part of the last fit."""
        return self.fit_report_.timing
