"""The half of the classifier that learns: fitting, adding, forgetting, correcting."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from sklearn.base import BaseEstimator

from clipretrieval._util.checks import check_bool, check_int, check_sequence
from clipretrieval._util.labels import label_kind, stored_labels
from clipretrieval._util.progress import Progress, check_progress, open_progress
from clipretrieval._util.secrets import MaskedDict
from clipretrieval._util.timing import Timing
from clipretrieval._util.warning import warn_caller
from clipretrieval.encoding.base import Encoder
from clipretrieval.errors import InvalidInputError
from clipretrieval.heads.votes import Weighting
from clipretrieval.images.sources import check_class_names, class_names
from clipretrieval.retrieval import edit as _changing
from clipretrieval.retrieval import fill as _filling
from clipretrieval.retrieval import inputs as _inputs
from clipretrieval.retrieval.ballot import CLASSES_LOCK, listed_classes
from clipretrieval.retrieval.conflicts import describe_conflicts, lookalikes
from clipretrieval.retrieval.exclusive import one_at_a_time, sole_writer
from clipretrieval.retrieval.parameters import check_params, recipe, store_to_fill
from clipretrieval.retrieval.putter import Existing, open_putter
from clipretrieval.retrieval.reports import FitReport, ForgetReport
from clipretrieval.retrieval.retriever import check_fitted
from clipretrieval.stores.base import VectorStore
from clipretrieval.types import AnyArray, Metric

if TYPE_CHECKING:
    from clipretrieval.images.stream import SkippedImage

__all__ = ["Learner"]

Self = TypeVar("Self", bound="Learner")


class Learner(BaseEstimator):
    """What a classifier has learned lies in a store, and changes there; see `RetrievalClassifier`."""

    store_: VectorStore
    classes_: AnyArray
    n_features_in_: int
    fit_report_: FitReport
    _label_kind: str
    _class_names: dict[int, str]
    """Names of classes that were fitted by their numbers in a dataset."""
    _kept_in: dict[str, str | None]
    """Folders that this classifier was loaded from or saved to, and the digest of what was there then."""

    def __init__(
        self,
        encoder: Encoder | None = None,
        store: str | VectorStore = "faiss",
        *,
        k: int = 1,
        weights: Weighting = "uniform",
        temperature: float = 0.07,
        metric: Metric | str = "l2",
        normalize: bool = False,
        store_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.encoder = encoder
        self.store = store
        self.k = k
        self.weights = weights
        self.temperature = temperature
        self.metric = metric
        self.normalize = normalize
        self.store_options = store_options

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments by name; `store_options` is printed with its secrets masked."""
        params: dict[str, Any] = super().get_params(deep)
        options = params["store_options"]
        if isinstance(options, Mapping) and not isinstance(options, MaskedDict):
            params["store_options"] = MaskedDict(options)
        return params

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        if isinstance(state["store_options"], Mapping):
            state["store_options"] = MaskedDict(state["store_options"])  # pickles have no secrets
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
        picture that cannot be decoded, a generator that raises, Ctrl-C) is stored and flushed: the same call
        with ``resume=True`` goes on from there.

        Parameters
        ----------
        X : images, or array of shape (n, d) without an encoder
            Whatever `clipretrieval.images.iter_images` takes: paths, pictures, arrays, a folder with
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
            a notebook.

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
            If, with `resume`, a different encoder or metric filled the store.
        StoreLockedError
            If another process writes to the store: one in a folder is held from the beginning of the fit, and
            one that has no lock is compared with what it was before anything is put there.
        ImageDecodeError
            If an image cannot be decoded.

        Warns
        -----
        ClipRetrievalWarning
            If an image comes under several labels (``fit_report_.conflicts`` lists such images), labels
            differ in case, spaces or Unicode normalisation alone, there is only one class, or float32 loses
            what tells vectors apart.
        """
        overwrite, resume = check_bool(overwrite, "overwrite"), check_bool(resume, "resume")
        if overwrite and resume:
            raise InvalidInputError("overwrite=True and resume=True exclude each other; pass one of them")
        with one_at_a_time(self), self._restored_on_failure():
            self._learn(
                X,
                y,
                existing="replace" if overwrite else "resume" if resume else "refuse",
                flush_every=flush_every,
                on_error=on_error,
                progress=progress,
            )
            self._tuned: frozenset[str] = frozenset()
        self._warn_of_labels(())
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
        may be divided into calls in any way.

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
        known = getattr(self, "classes_", ())
        with one_at_a_time(self), self._restored_on_failure():
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
        self._warn_of_labels(known)
        return self

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
        check_fitted(self)
        with one_at_a_time(self), sole_writer(self.store_):
            return _changing.forget(self, ids, label)

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
        check_fitted(self)
        with one_at_a_time(self), sole_writer(self.store_):
            known = self.classes_.tolist()
            changed = _changing.relabel(self, ids, labels)
        self._warn_of_lookalikes(known)
        return changed

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
        started, timing = time.perf_counter(), Timing()
        check_params(self)
        check_progress(progress)
        interval = None if flush_every is None else check_int(flush_every, "flush_every")
        listed = [] if classes is None else check_sequence(classes, "classes", "int or of str")
        # The last quarter of an interval is for what is being encoded; see `fill`.
        ahead = None if interval is None else max(1, interval // 4)
        names = class_names(X) if y is None else {}
        if existing == "add":
            check_class_names(getattr(self, "_class_names", {}), names)
            names = {**getattr(self, "_class_names", {}), **names}
        source = _inputs.fit_source(self, X, y, on_error, reset=onto is None, ahead=ahead)
        store = onto if onto is not None else store_to_fill(self, existing != "refuse")
        closing = _filling.closed_on_failure(store, unless=(self.store, getattr(self, "store_", None)))
        with ExitStack() as entered:
            entered.enter_context(closing)
            if existing == "refuse":  # what it holds says more than that somebody else may hold the store
                open_putter(store, source, existing)
            entered.enter_context(sole_writer(store))
            putter = open_putter(store, source, existing)
            if listed:
                putter.kind = label_kind(listed, putter.kind, "those that the store holds")
                putter.classes.update(stored_labels(listed, putter.kind))
            with open_progress(progress, "fitting") as shown:
                _filling.fill(putter, timing, shown, interval)
        with CLASSES_LOCK:  # others may be asking, and take up classes
            self.store_ = store
            self._label_kind = str(putter.kind)
            self.classes_ = listed_classes(self, putter.listed, self._label_kind)
        self._made_of: Any = recipe(self) if onto is None else self._made_of
        self.n_features_in_ = int(store.dim or 0)
        self.skipped_: list[SkippedImage] = source.skipped
        self._class_names = names
        n_conflicts, conflicts = putter.given.count_and_list(self._label_kind)
        self.fit_report_ = FitReport(
            new=putter.new,
            already_there=putter.already_there,
            relabelled=putter.relabelled,
            skipped=tuple(source.skipped),
            timing=timing,
            seconds=time.perf_counter() - started,
            n_conflicts=n_conflicts,
            conflicts=conflicts,
        )

    def _warn_of_labels(self, known: Iterable[Any]) -> None:
        """Say which labels of the last fit are probably mistakes; groups of `known` classes are no news."""
        report = self.fit_report_
        if report.n_conflicts:
            conflicts = describe_conflicts(report.n_conflicts, report.conflicts, vectors=self.encoder is None)
            warn_caller(
                f"{conflicts}; the last label counts. fit_report_.conflicts lists them; correct them with "
                "relabel or forget"
            )
        self._warn_of_lookalikes(known)

    def _warn_of_lookalikes(self, known: Iterable[Any]) -> None:
        """Name the classes that readers take for one; groups of `known` classes are no news."""
        groups = lookalikes(self.classes_.tolist(), known)
        if groups:
            listed = "; ".join(" and ".join(map(ascii, group)) for group in groups[:5])
            differ = (
                "1 group of labels differs" if len(groups) == 1 else f"{len(groups)} groups of labels differ"
            )
            warn_caller(
                f"{differ} in case, spaces or Unicode normalisation alone, and each label is a class of its "
                f"own: {listed}{'; …' if len(groups) > 5 else ''}. Where they mean the same, give them one "
                "spelling"
            )

    @property
    def fit_timing_(self) -> Timing:
        """Seconds and images of each part of the last fit."""
        return self.fit_report_.timing

    @contextmanager
    def _restored_on_failure(self) -> Iterator[None]:
        """Leave the estimator as it was when the block fails, the fit before it included."""
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            for name in set(vars(self)) - set(before):
                delattr(self, name)
            self.__dict__.update(before)  # by name: other threads may be asking
            raise
