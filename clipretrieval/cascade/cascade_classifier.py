"""Classify by retrieval at several stages, each image only as deep as it has to go."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

from clipretrieval._util.argument_only import ArgumentOnly
from clipretrieval._util.checks import (
    check_bool,
    check_choice,
    check_int,
    check_list,
    check_mapping,
    check_sequence,
    shown,
)
from clipretrieval._util.labels import class_array
from clipretrieval._util.progress import Progress, check_progress, open_progress
from clipretrieval._util.secrets import MaskedDict
from clipretrieval._util.timing import Timing
from clipretrieval._util.unavailable import Unavailable
from clipretrieval._util.warning import warn_caller
from clipretrieval.cascade.calibration import (
    Calibration,
    calibrate_policy,
    check_enough,
    check_promise,
    read_state,
)
from clipretrieval.cascade.cascade_explanation import CascadeExplanation, explain_answers
from clipretrieval.cascade.cascade_measurement import LabelledAnswers, evidence_of, measure_cascade
from clipretrieval.cascade.cascade_pass import CascadePass, ExitAnswer
from clipretrieval.cascade.cascade_report import CascadeReport
from clipretrieval.cascade.exit_policy import CERTAINTIES, ExitEvidence, ExitPolicy
from clipretrieval.cascade.policy_learning import learn_policy
from clipretrieval.classifier import RetrievalClassifier
from clipretrieval.encoding.staged_encoder import StagedEncoder, stopped_at
from clipretrieval.errors import (
    InvalidInputError,
    NotFittedError,
    StoreCorruptedError,
)
from clipretrieval.evaluation.scoring import weighted_accuracy
from clipretrieval.heads.base import Head
from clipretrieval.heads.choice import choose_head, head_name
from clipretrieval.heads.confidence import check_measure
from clipretrieval.heads.voting import TEMPERATURE
from clipretrieval.heads.weighting import Weighting
from clipretrieval.heads.whitening import AUTO, Whitening
from clipretrieval.images.sources import check_class_names, class_names, count_hint, open_labels
from clipretrieval.images.stream import SkippedImage
from clipretrieval.images.tables import labelled_source
from clipretrieval.images.tars import without_labels
from clipretrieval.persistence.saving import load_cascade, save
from clipretrieval.prompts import Templates
from clipretrieval.retrieval.changes import is_changing
from clipretrieval.retrieval.conflicts import warn_of_labels, warn_of_lookalikes
from clipretrieval.retrieval.edit import held_ids, ids_to_forget, ids_to_relabel
from clipretrieval.retrieval.exclusive import one_at_a_time
from clipretrieval.retrieval.fill import fill_stores
from clipretrieval.retrieval.index_writer import Existing
from clipretrieval.retrieval.inputs import FitSource, open_fit_source
from clipretrieval.retrieval.labelled_index import LabelledIndex
from clipretrieval.retrieval.manifest import plain_fingerprint
from clipretrieval.retrieval.parameters import params_of, restored_on_failure
from clipretrieval.retrieval.reports import FitReport, ForgetReport
from clipretrieval.retrieval.transform_plan import warn_of_growth
from clipretrieval.retrieval.true_labels import check_truth
from clipretrieval.retrieval.vectorless_store import VectorlessStore, holding
from clipretrieval.stores.base import VectorStore, view_manifest
from clipretrieval.stores.checks import check_k
from clipretrieval.stores.registry import DEFAULT_STORE, options_for_part
from clipretrieval.text_search import PLAIN
from clipretrieval.types import AnyArray, Metric, Neighbors

__all__ = ["CascadeClassifier"]

Self = TypeVar("Self", bound="CascadeClassifier")

STAGES = ("layer1", "layer2", "mid", "late")
MOST_CHANGED = 0.1
"""The share of the stored images that may come or go before a calibration is held to be out of date."""
_EXIT_PARAMS = ("head", "k", "weights", "temperature", "priors", "metric", "normalize")
_ATTACHED = ("store_options", "head", "k", "weights", "temperature", "priors", "transform")
_SINGLE = (
    "scores of different exits do not compare. Use a classifier of the last stage: "
    "last = cascade.exits_[-1]; RetrievalClassifier.from_store(last.store_, last.encoder, head=cascade.head)"
)
NOT_FITTED = "this CascadeClassifier is not fitted yet; call fit with labeled images, or load a saved one"


class CascadeClassifier(ClassifierMixin, BaseEstimator):
    """Classify images at the first of several stages that is sure.

    Each exit is a `~clipretrieval.RetrievalClassifier` at a stage of its own; all are filled by one pass over
    the images, which are added, forgotten and relabeled at all of them. `calibrate` decides how sure an exit
    has to be. An image that goes on computes nothing twice.

    Parameters
    ----------
    encoder : StagedEncoder
        Its own stage is of no consequence.
    stages : sequence of str
        The exits, at least two, each deeper than the one before. Joined stages, such as ``"layer1+layer2"``,
        cost what the deepest costs; ``"layer2:grid"`` has a pooling of its own.
    head, k, weights, temperature, priors, metric, normalize, transform
        As for `~clipretrieval.RetrievalClassifier`, of every exit.
    store : str, or mapping of stage to VectorStore
        A name opens a store for each stage.
    store_options : mapping, optional
        For the stores that a name makes. The option that tells several apart gets the stage's name behind
        what is given: a sub-folder of `path` with FAISS, ``collection-layer1`` with Chroma.
    certainty : {"combined", "margin", "agreement", "distance"}
        What tells how sure an exit is: how far the first class is ahead of the second, whether the exit
        before gave the same answer, the distance to the nearest neighbor, or the first two together. The
        risk of leaving is estimated from these by logistic regressions on stored images, each left out.
    keep_vectors : bool
        False: exits before the last keep class statistics and no vectors, which a head that reads no
        neighbors can do without (``"discriminant"``, ``"quadratic"``, ``"ridge"``). They show no neighbors
        then. Images have to be files that stay: they are encoded again where a vector is needed after all,
        which is in `forget`, `relabel`, `calibrate`, for another head, and after a change that was cut
        short. Changes take an encoder of the same precision and device.

    Attributes
    ----------
    exits_ : tuple of RetrievalClassifier
        One for each stage.
    classes_ : ndarray, shape (n_classes,)
    policy_ : ExitPolicy
        What lets images leave.
    calibration_ : Calibration or None
        What was last calibrated.
    fit_report_ : FitReport
        Of the last exit.
    skipped_ : list of SkippedImage
        What the last fit or calibration skipped under ``on_error="skip"``.

    """

    transform = ArgumentOnly()
    conformalize = Unavailable(_SINGLE)
    predict_set = Unavailable(_SINGLE)
    score_samples = Unavailable(_SINGLE)
    kneighbors = Unavailable(
        "each exit has neighbors of its own. Use cascade.exits_[-1].kneighbors(X), or explain(X), which "
        "shows those of the exit where an image leaves"
    )
    exits_: tuple[RetrievalClassifier, ...]
    policy_: ExitPolicy
    calibration_: Calibration | None
    fit_report_: FitReport
    skipped_: list[SkippedImage]

    def __init__(
        self,
        encoder: StagedEncoder,
        stages: Sequence[str] = STAGES,
        *,
        head: str | Head = "fused",
        store: str | Mapping[str, VectorStore] = DEFAULT_STORE,
        k: int = 1,
        weights: Weighting = "uniform",
        temperature: float = TEMPERATURE,
        priors: Any = "equal",
        metric: Metric | str = "l2",
        normalize: bool = False,
        transform: str | Whitening | None = AUTO,
        store_options: Mapping[str, Any] | None = None,
        certainty: str = "combined",
        keep_vectors: bool = True,
    ) -> None:
        self.encoder = encoder
        self.stages = stages
        self.head = head
        self.store = store
        self.k = k
        self.weights = weights
        self.temperature = temperature
        self.priors = priors
        self.metric = metric
        self.normalize = normalize
        self.transform = transform
        self.store_options = store_options
        self.certainty = certainty
        self.keep_vectors = keep_vectors

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments by name; `store_options` is printed with its secrets masked."""
        return params_of(self, deep)

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
        """Encode labeled images once, and store them at every exit.

        Parameters, errors and warnings are those of `RetrievalClassifier.fit`. With ``resume=True``, images
        are encoded that one exit or another does not have. The cascade has to be calibrated anew.

        Returns
        -------
        CascadeClassifier
            Itself.
        """
        overwrite, resume = check_bool(overwrite, "overwrite"), check_bool(resume, "resume")
        if overwrite and resume:
            raise InvalidInputError("overwrite=True and resume=True exclude each other; pass one of them")
        existing: Existing = "replace" if overwrite else "resume" if resume else "refuse"
        with one_at_a_time(self):
            self._learn(self._make_exits(), X, y, existing, flush_every, on_error, progress, anew=True)
        warn_of_labels(self.fit_report_, self.classes_, vectors=False)
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
        """Add labeled images at every exit; see `RetrievalClassifier.partial_fit`.

        What was calibrated stays as it was. Where a tenth of the images, or the number of classes, has
        changed since, the next question says so: calibrate again.
        """
        known = getattr(self, "classes_", None)
        with one_at_a_time(self):
            fitted = hasattr(self, "exits_")
            exits = self._fitted().exits_ if fitted else self._make_exits()
            self._learn(exits, X, y, "add", flush_every, on_error, progress, classes, anew=not fitted)
        warn_of_labels(self.fit_report_, self.classes_, known=known, vectors=False)
        return self

    def forget(self, ids: Any = None, *, label: Any = None) -> ForgetReport:
        """Remove images at every exit, by their ids or all of a class; see `RetrievalClassifier.forget`.

        If this is interrupted, repeat it: the last exit is the last to change.
        """
        with one_at_a_time(self._fitted()), ExitStack() as opened:
            *before, last = self.exits_
            names = ids_to_forget(last.retriever_.index, ids, label)
            for each in before:
                opened.enter_context(holding(each.store_, names))
            for each in before:  # where an interrupted call has been already, nothing is left to forget
                held = held_ids(each.store_, names)
                if held:
                    each.forget([name for name in names if name in held])
                elif is_changing(view_manifest(each.store_)):  # it was interrupted behind the last of them
                    each._finish_change()
            return last.forget(names)

    def relabel(self, ids: Any, labels: Any) -> int:
        """Give stored images other labels at every exit; see `RetrievalClassifier.relabel`.

        If this is interrupted, repeat it.
        """
        with one_at_a_time(self._fitted()):
            ids = ids if isinstance(ids, str) else check_sequence(ids, "ids", "str")
            labels = labels if isinstance(labels, str) else list(open_labels(labels)[1])
            known = self.classes_
            with ExitStack() as opened:
                for each in self.exits_:
                    due = ids_to_relabel(each.retriever_.index, ids, labels)
                    opened.enter_context(holding(each.store_, due))
                changed = [each._relabel(ids, labels) for each in self.exits_][-1]
        warn_of_lookalikes(self.classes_, known)
        return changed

    def calibrate(
        self: Self,
        X: Any,
        y: Any = None,
        *,
        max_loss: float = 0.005,
        confidence: float = 0.95,
        budget: float | None = None,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
    ) -> Self:
        """Set how sure an exit has to be, on images that were not fitted.

        With the given confidence over the draw of these images, the cascade's accuracy on others like them is
        at most `max_loss` below that of always going to the last exit: Learn then Test, with bets; see
        `clipretrieval.cascade.betting_p_value`. All images go to the last exit meanwhile.

        Parameters
        ----------
        X, y, on_error, progress
            As for `fit`; images that are not stored. Skipped ones are listed in ``skipped_``.
        max_loss : float
            Accuracy that may be lost, at least 0.00001 and below 1: 0.005 is half a point.
        confidence : float
            In (0, 1).
        budget : float, optional
            Instead of a promise: the mean arithmetic that an image may take, in 10⁹ multiply-adds.

        Returns
        -------
        CascadeClassifier
            Itself; ``calibration_`` tells what was set.

        Raises
        ------
        NotFittedError
        InvalidInputError
            If there are too few images to promise that (the message says how many it takes), one of them is
            stored, labels are missing or of another type, or the budget is below the first exit's arithmetic.
        """
        costs = self._fitted()._costs()
        max_loss, confidence, budget = check_promise(
            max_loss, confidence, budget, least=costs[0], first=self.stages[0]
        )
        total = count_hint(X)
        if budget is None and total is not None:
            check_enough(total, max_loss, confidence)
        with one_at_a_time(self):  # what is stored stays as it is meanwhile
            with open_progress(progress, "calibrating") as tell:
                found, skipped = self._asked_all(X, y, on_error, tell)
            # By ids, which are hashes: in no order of the source, and each image once.
            rows = np.unique(np.array(found.ids), return_index=True)[1]
            self._calibrate(evidence_of(found).take(rows), max_loss, confidence, budget)
            self._calibrated_on, self.skipped_ = frozenset(found.ids), skipped
        unseen = set(self.exits_[-1].classes_.tolist()) - set(found.truth)
        if unseen and budget is None:
            warn_caller(
                f"{len(unseen)} classes, such as {shown(min(unseen, key=str))}, have no image among those "
                "calibrated on, so nothing is promised of them"
            )
        return self

    def _calibrate(
        self, evidence: ExitEvidence, max_loss: float, confidence: float, budget: float | None
    ) -> None:
        """Learn the risk of leaving from what is stored, and set the threshold by images that are not."""
        self.policy_, found = calibrate_policy(
            learn_policy(self.exits_, self.certainty),
            evidence,
            self._costs(),
            max_loss=max_loss,
            confidence=confidence,
            budget=budget,
        )
        count = self.exits_[-1].store_.count()
        self.calibration_ = replace(found, n_stored=count, n_classes=len(self.classes_))

    def predict(
        self, X: Any, *, on_error: str = "raise", progress: Progress | bool | None = None
    ) -> AnyArray:
        """Return the label of each image; see `RetrievalClassifier.predict`.

        Warns
        -----
        ClipRetrievalWarning
            If the cascade was never calibrated: all images then go to the last exit. If a tenth of the stored
            images, or the number of classes, has changed since it was.
        """
        asked, total, answers = self._ask(), count_hint(X), dict[int, Any]()
        with open_progress(progress, "classifying") as tell:
            for batch, said in asked.answers(without_labels(X), on_error=on_error, tell=tell, total=total):
                answers.update(
                    (index, each[-1].answer) for index, each in zip(batch.indices, said, strict=True)
                )
        return _arranged(answers, asked, on_error)

    def predict_proba(
        self, X: Any, *, on_error: str = "raise", progress: Progress | bool | None = None
    ) -> AnyArray:
        """Return the probability of each class at the exit where an image leaves.

        Returns
        -------
        ndarray of float64, shape (n, n_classes)
            Rows sum to 1; columns in the order of ``classes_``. NaN where an image was skipped.
        """
        asked, total = self._ask(probabilities=True), count_hint(X)
        rows: dict[int, ExitAnswer] = {}
        with open_progress(progress, "classifying") as tell:
            for batch, said in asked.answers(without_labels(X), on_error=on_error, tell=tell, total=total):
                rows.update((index, each[-1]) for index, each in zip(batch.indices, said, strict=True))
        columns = {label: place for place, label in enumerate(asked.classes.tolist())}
        places = [
            np.array([columns[label] for label in numbers.labels(np.arange(len(numbers))).tolist()])
            for numbers in (each.numbers for each in asked.exits)
        ]
        count = max(*rows, *(image.index for image in asked.skipped), -1) + 1
        found = np.zeros((count, len(columns)))
        found[[image.index for image in asked.skipped]] = np.nan
        for index, answer in rows.items():
            if answer.probabilities is not None:
                found[index, places[answer.place][: len(answer.probabilities)]] = answer.probabilities
        return found

    def search_text(
        self, texts: str | Sequence[str], k: int = 10, *, templates: Templates = PLAIN
    ) -> Neighbors:
        """Return the images stored at the last exit, ``final``, that are nearest to texts.

        See `RetrievalClassifier.search_text`.
        """
        return self._fitted().exits_[-1].search_text(texts, k, templates=templates)

    @overload
    def explain(
        self,
        X: Any,
        k: int | None = None,
        *,
        by: str = "share",
        on_error: Literal["raise"] = "raise",
        progress: Progress | bool | None = None,
    ) -> list[CascadeExplanation]: ...

    @overload
    def explain(
        self,
        X: Any,
        k: int | None = None,
        *,
        by: str = "share",
        on_error: str,
        progress: Progress | bool | None = None,
    ) -> list[CascadeExplanation | None]: ...

    def explain(
        self,
        X: Any,
        k: int | None = None,
        *,
        by: str = "share",
        on_error: str = "raise",
        progress: Progress | bool | None = None,
    ) -> Any:
        """Tell of each image what `predict` answers, at which exit and why there, and the neighbors there.

        Parameters
        ----------
        X, k, by, on_error, progress
            As for `RetrievalClassifier.explain`.

        Returns
        -------
        list of CascadeExplanation
            One for each image; None for one that was skipped.
        """
        skipped = list[SkippedImage]()
        found: list[CascadeExplanation | None] = list(
            self.explain_stream(X, k, by=by, on_error=on_error, skipped=skipped, progress=progress)
        )
        if skipped:
            for image in sorted(skipped, key=lambda image: image.index):
                found.insert(image.index, None)
            warn_caller(
                f"{len(skipped)} of {len(found)} images were skipped and have no explanation; the first: "
                f"{min(skipped, key=lambda image: image.index).reason}"
            )
        return found

    def explain_stream(
        self,
        X: Any,
        k: int | None = None,
        *,
        by: str = "share",
        top: int = 1,
        on_error: str = "raise",
        skipped: list[SkippedImage] | None = None,
        progress: Progress | bool | None = None,
    ) -> Iterator[CascadeExplanation]:
        """Explain the answers for any number of images, as `explain` does, holding some thousands at most.

        Parameters and errors are those of `clipretrieval.explanation.explain_stream`.

        Yields
        ------
        CascadeExplanation
            One for each image that is not skipped, in their order.
        """
        width, by, top = 0 if k is None else check_k(k), check_measure(by), check_int(top, "top")
        check_list(skipped, "skipped")
        asked, total = self._ask(keep=True, probabilities=top > 1), count_hint(X)
        if skipped is not None:
            asked.skipped = skipped
        with open_progress(progress, "explaining") as tell:
            for _, said in asked.answers(without_labels(X), on_error=on_error, tell=tell, total=total):
                yield from explain_answers(
                    asked.exits, self.stages, asked.policy, said, k=width, by=by, top=top
                )

    def evaluate(
        self,
        X: Any,
        y: Any = None,
        *,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
        allow_tuned: bool = False,
        mistakes: int = 12,
        curve: bool = True,
    ) -> CascadeReport:
        """Classify labeled images and measure how accurate and how fast that was, exit by exit.

        Parameters
        ----------
        X, y, on_error, progress
            As for `fit`.
        allow_tuned : bool
            Whether to evaluate on images that were calibrated on.
        mistakes : int
            How many of the worst mistakes to keep, with their neighbors.
        curve : bool
            Whether to go through the images once more, all of them to the last exit, and tell what that loses
            or gains, and the accuracy that there would be at other costs.

        Returns
        -------
        CascadeReport

        Raises
        ------
        InvalidInputError
            If labels are missing or of another type than those fitted, an image was calibrated on, or `X` can
            be gone through only once and `curve` is True.
        """
        allow_tuned, curve = check_bool(allow_tuned, "allow_tuned"), check_bool(curve, "curve")
        mistakes = check_int(mistakes, "mistakes", least=0)
        if curve and (hasattr(X, "__next__") or hasattr(y, "__next__")):
            raise InvalidInputError(
                "images or labels that can be gone through only once do not give the curve, for which "
                "all are encoded again; pass a list or a folder, or curve=False"
            )
        self._ask()
        with open_progress(progress, "evaluating") as tell:
            return measure_cascade(
                partial(self._pass, shown=True),
                X,
                y,
                stages=self.stages,
                multiply_adds=self._costs(),
                policy=self.policy_,
                store_name=self.store
                if isinstance(self.store, str)
                else type(self.exits_[-1].store_).__name__,
                on_error=on_error,
                progress=tell,
                tuned=frozenset() if allow_tuned else getattr(self, "_calibrated_on", frozenset()),
                mistakes=mistakes,
                curve=curve,
                fit_report=getattr(self, "fit_report_", None),  # a loaded one has none
            )

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
        """Return the accuracy on labeled images, in [0, 1]; see `RetrievalClassifier.score`."""
        report = self.evaluate(
            X, y, on_error=on_error, progress=progress, allow_tuned=allow_tuned, mistakes=0, curve=False
        )
        return weighted_accuracy(report, sample_weight)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a fitted cascade into a folder, with what was calibrated.

        Parameters, errors and warnings are those of `RetrievalClassifier.save`; each exit's store is kept as
        that of a classifier.
        """
        self._fitted()
        self._saved_in = dict(getattr(self, "_saved_in", {}))
        save(
            {stage: each.retriever_.index for stage, each in zip(self.stages, self.exits_, strict=True)},
            path,
            params=self.exits_[-1]._saved_params(),
            saved_in=self._saved_in,
            overwrite=overwrite,
            encoder=self.encoder,
            cascade={
                "policy": self.policy_.to_dict(),
                "calibration": None if self.calibration_ is None else self.calibration_.to_dict(),
                "multiply_adds": self._costs(),
                "calibrated_on": sorted(self._calibrated_on),
            },
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        encoder: StagedEncoder | None = None,
        *,
        stores: Mapping[str, VectorStore] | None = None,
        allow_remote: bool = False,
    ) -> CascadeClassifier:
        """Open a cascade that `save` wrote.

        Parameters
        ----------
        path, encoder, allow_remote
            As for `RetrievalClassifier.load`.
        stores : mapping of stage to VectorStore, optional
            Of every exit, where they could not be kept.

        Raises
        ------
        InvalidInputError
            If the folder holds no cascade, or something has to be given.
        StoreCorruptedError
            If what it holds is damaged.
        StoreUnavailableError
            If it cannot be read, or a store is gone.
        FingerprintMismatchError
            If the encoder is not the one that filled the stores; the message names what differs.

        Warns
        -----
        ClipRetrievalWarning
            If the exits hold different numbers of images, as a change was interrupted.
        """
        saved = load_cascade(path, encoder, stores=stores, allow_remote=allow_remote, at_stage=_stopped_at)
        try:
            state = read_state(path, saved.state, len(saved.indexes))
        except StoreCorruptedError:
            for index in saved.indexes if stores is None else ():
                index.store.close()
            raise
        params = {name: value for name, value in saved.params.items() if name in _EXIT_PARAMS}
        cascade = cls(
            saved.encoder,  # type: ignore[arg-type]  # `_stopped_at` has refused any other
            saved.params["stages"],
            store=saved.store,
            certainty=state.policy.certainty,
            keep_vectors=all(index.is_searchable for index in saved.indexes),
            **params,
        )
        try:
            cascade._attach(saved.indexes, state.policy, state.calibration, state.calibrated_on)
        except BaseException:
            for index in saved.indexes if stores is None else ():
                index.store.close()
            raise
        cascade._saved_in = saved.saved_in
        return cascade

    @classmethod
    def from_stores(
        cls,
        stores: Mapping[str, VectorStore] | str,
        encoder: StagedEncoder,
        stages: Sequence[str] | None = None,
        **params: Any,
    ) -> CascadeClassifier:
        """Attach to stores that a cascade has filled, in this process or another.

        Parameters
        ----------
        stores : mapping of stage to VectorStore, or str
            In the exits' order; a name needs `store_options`, which tell where the stores lie.
        encoder : StagedEncoder
            The one that filled them.
        stages : sequence of str, optional
            The exits; those of the mapping, or the constructor's default, if not given.
        **params
            As for the constructor. `metric`, `normalize`, `transform` and `keep_vectors` are the stores' own.

        Returns
        -------
        CascadeClassifier
            Fitted, and not calibrated.

        Raises
        ------
        InvalidInputError
            If nothing has filled a store, or a cascade's arguments are wrong.
        FingerprintMismatchError
            If another encoder, stage or metric filled one; the message names what differs.
        """
        _check_stores(stores)
        given = stages if stages is not None else STAGES if isinstance(stores, str) else tuple(stores)
        params = MaskedDict(params)
        cascade = cls(encoder, given, store=stores, **params)
        indexes = list[LabelledIndex]()
        try:
            for each in cascade._make_exits():
                own = {
                    name: value for name, value in each.get_params(deep=False).items() if name in _ATTACHED
                }
                exit_ = RetrievalClassifier.from_store(each.store, each.encoder, **own)
                indexes.append(exit_.retriever_.index)
            cascade.set_params(
                metric=str(indexes[-1].metric),
                normalize=bool(indexes[-1].normalize),
                keep_vectors=all(index.is_searchable for index in indexes),
            )
            cascade._attach(indexes)
        except BaseException:
            for index in indexes if isinstance(stores, str) else ():
                index.store.close()
            raise
        return cascade

    def _attach(
        self,
        indexes: Sequence[LabelledIndex],
        policy: ExitPolicy | None = None,
        calibration: Calibration | None = None,
        calibrated_on: frozenset[str] = frozenset(),
    ) -> None:
        """Be fitted with stores that are filled."""
        exits = self._make_exits()
        for each, index in zip(exits, indexes, strict=True):
            each._become(index.store, index.classes, index.dim)
        self._take(exits, policy, calibration, calibrated_on)
        counts = [index.store.count() for index in indexes]
        classes = {tuple(index.classes.labels.tolist()) for index in indexes}
        if len(set(counts)) > 1 or len(classes) > 1:
            told = ", ".join(f"{stage}: {count}" for stage, count in zip(self.stages, counts, strict=True))
            warn_caller(
                f"the exits do not hold the same images and classes ({told}): a change was interrupted. "
                "Repeat it, or fit again, with resume=True where images are missing"
            )

    @property
    def classes_(self) -> AnyArray:
        """The labels, sorted, of the type that was fitted."""
        if not hasattr(self, "exits_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute 'classes_'")
        found = [each.classes_ for each in self.exits_]
        if all(np.array_equal(each, found[-1]) for each in found[:-1]):
            return found[-1]
        # A change was interrupted: answers may be of any exit.
        return class_array(
            {label for each in found for label in each.tolist()}, self.exits_[-1]._classes.kind
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "exits_")

    def _fitted(self: Self) -> Self:
        """Return itself, with exits that answer by the arguments as they are now."""
        if not hasattr(self, "exits_"):
            raise NotFittedError(NOT_FITTED)
        now, before = self._answering_params(), self._made_by
        if all(_is_same(now[name], before[name]) for name in now):
            return self
        if list(self.stages) != list(before["stages"]):
            raise InvalidInputError(
                f"this cascade was fitted with the stages {', '.join(before['stages'])}, and they have been "
                f"set to {shown(self.stages)} since; set them back, or fit again"
            )
        if self.keep_vectors != before["keep_vectors"]:
            raise InvalidInputError(
                f"this cascade was fitted with keep_vectors={before['keep_vectors']}, and that has been set "
                f"to {shown(self.keep_vectors)} since; set it back, or fit again"
            )
        with one_at_a_time(self):
            exits = self._make_exits()
            for each in exits:
                each.retriever_.index.check_manifest()  # refuses another encoder or metric
            self._take(exits)
        return self

    def _costs(self) -> list[float]:
        return [self.encoder.multiply_adds(stage) for stage in self.stages]

    def _ask(self, **options: Any) -> CascadePass:
        self._fitted()
        if self.calibration_ is None:
            warn_caller(
                "this cascade was never calibrated, so all images go to the last exit; call calibrate with "
                "labeled images that were not fitted"
            )
        else:
            self._warn_of_changes(self.calibration_)
        return self._pass(**options)

    def _warn_of_changes(self, then: Calibration) -> None:
        """Say that what was calibrated no longer applies, where much of what is stored has changed since."""
        count, classes = self.exits_[-1].store_.count(), len(self.classes_)
        if then.n_stored and (
            classes != then.n_classes or abs(count - then.n_stored) > MOST_CHANGED * then.n_stored
        ):
            warn_caller(
                f"this cascade was calibrated with {then.n_stored} images of {then.n_classes} classes, and "
                f"{count} of {classes} are stored now, so what was promised no longer applies; calibrate "
                "again"
            )

    def _pass(self, **options: Any) -> CascadePass:
        now = vars(self).copy()  # at once: another thread may be fitting
        return CascadePass(self.encoder, self.stages, now["exits_"], now["policy_"], **options)

    def _asked_all(
        self, X: Any, y: Any, on_error: str, tell: Progress
    ) -> tuple[LabelledAnswers, list[SkippedImage]]:
        """Have every exit answer labeled images that none of them holds; also return what was skipped."""
        asked = self._pass(complete=True)
        index, total = asked.exits[-1].index, count_hint(X)
        check_truth(index, X, y)
        X, found = labelled_source(X, y), LabelledAnswers(asked)
        for batch, said in asked.answers(X, y, on_error=on_error, tell=tell, total=total):
            self._refuse_stored(batch.ids)
            found.add(batch, said)
        if not set(self.classes_.tolist()) & set(found.truth):
            raise InvalidInputError(
                f"no label of the calibration images, such as {shown(found.truth[0])}, is a class that was "
                "fitted"
            )
        return found, asked.skipped

    def _refuse_stored(self, ids: Sequence[str]) -> None:
        held = set[str]().union(*(held_ids(each.store_, ids) for each in self.exits_))
        if held:
            raise InvalidInputError(
                f"images such as {min(held)!r} are stored, and would find themselves; calibrate on images "
                "that were not fitted"
            )

    def _make_exits(self) -> tuple[RetrievalClassifier, ...]:
        """Return a classifier for each stage, those that there are where they fit."""
        check_choice(self.certainty, "certainty", CERTAINTIES)
        stages = check_sequence(self.stages, "stages", "str")
        if len(stages) < 2:
            raise InvalidInputError(
                f"a cascade has at least two exits; got {shown(self.stages)}. With one stage, use "
                "RetrievalClassifier"
            )
        views = [_stopped_at(self.encoder, stage) for stage in stages]
        depths = [view.multiply_adds() for view in views]
        for before, after, cost, more in zip(stages, stages[1:], depths, depths[1:], strict=False):
            if more <= cost:
                raise InvalidInputError(
                    f"the exit {after!r} is not deeper than {before!r}, which comes before it; order stages "
                    "from shallow to deep"
                )
        _check_stores(self.store)
        if isinstance(self.store, Mapping) and set(self.store) != set(stages):
            raise InvalidInputError(
                f"store has stores for {', '.join(map(repr, self.store))}; pass one for each of "
                f"{', '.join(map(repr, stages))}"
            )
        found = []
        for number, (stage, view) in enumerate(zip(stages, views, strict=True)):
            held = getattr(self, "exits_", None)
            classifier = held[number] if held is not None and len(held) == len(stages) else None
            params = self._exit_params(stage, view)
            # A copy has the same store, and what there is stays as it is if this fit fails.
            made = RetrievalClassifier() if classifier is None else copy.copy(classifier)
            made.set_params(**params)
            made._keeps_vectors = bool(self.keep_vectors) or number == len(stages) - 1
            store = getattr(made, "store_", None)
            if isinstance(store, VectorlessStore) and not made._keeps_vectors:
                made.store_ = made._as_kept(store)  # by the encoder as it is now
            found.append(made)
        self._check_vectors_needed(found[0])
        return tuple(found)

    def _check_vectors_needed(self, first: RetrievalClassifier) -> None:
        """Refuse to keep no vectors where they are read."""
        if check_bool(self.keep_vectors, "keep_vectors"):
            return
        head = choose_head(self.head, self.k)
        reads_near = head is None or head.k > 0
        if reads_near or self.certainty == "distance":
            why = f"head={head_name(self.head)!r}" if reads_near else "certainty='distance'"
            raise InvalidInputError(
                f"{why} reads neighbors, which exits do not have with keep_vectors=False; pass "
                "head='discriminant', head='quadratic' or head='ridge' with another certainty, or fit with "
                "keep_vectors=True"
            )
        if first._plan().rule is not None:
            raise InvalidInputError(
                "a transform is learned of stored vectors, and exits have none with keep_vectors=False; pass "
                "transform=None, or fit with keep_vectors=True"
            )

    def _exit_params(self, stage: str, view: StagedEncoder) -> dict[str, Any]:
        options = MaskedDict(check_mapping(self.store_options, "store_options"))
        own = (
            {"store": self.store, "store_options": options_for_part(self.store, options, _part(stage))}
            if isinstance(self.store, str)
            else {"store": self.store[stage], "store_options": None}
        )
        params = {name: getattr(self, name) for name in _EXIT_PARAMS}
        return {"encoder": view, **own, **params, "transform": vars(self)["transform"]}

    def _learn(
        self,
        exits: tuple[RetrievalClassifier, ...],
        X: Any,
        y: Any,
        existing: Existing,
        flush_every: int | None,
        on_error: str,
        progress: Progress | bool | None,
        classes: Any = None,
        *,
        anew: bool,
    ) -> None:
        """Store labeled images at every exit, in one pass; be uncalibrated then where that is `anew`."""
        started, timing = time.perf_counter(), Timing()
        check_progress(progress)
        interval = None if flush_every is None else check_int(flush_every, "flush_every")
        listed = [] if classes is None else check_sequence(classes, "classes", "int or of str")
        names = class_names(X) if y is None else {}
        if existing == "add":
            known = getattr(exits[-1], "_class_names", {})
            check_class_names(known, names)
            names = {**known, **names}
        metric = exits[-1]._check_params()
        stages = list(self.stages)
        with ExitStack() as opened:
            for each in exits:
                opened.enter_context(one_at_a_time(each))
                opened.enter_context(restored_on_failure(each))
            source = open_fit_source(
                exits[-1],
                X,
                y,
                encoder=exits[-1].encoder,
                metric=metric,
                normalize=bool(self.normalize),
                on_error=on_error,
                ahead=None if interval is None else max(1, interval // 4),
                stages=stages,
            )
            writers = [
                opened.enter_context(
                    each._writing(
                        _at_exit(source, each.encoder),
                        existing,
                        getattr(each, "store_", None) if existing == "add" else None,
                        listed,
                        vectors=stage,
                    )
                )
                for each, stage in zip(exits, stages, strict=True)
            ]
            fill_stores(writers, source, timing=timing, progress=progress, flush_every=interval)
        if writers[-1].transform is not None:
            warn_of_growth(exits[-1].store_, writers[-1].listed)
        report = writers[-1].report(source.skipped, timing, time.perf_counter() - started)
        for each in exits:
            each.skipped_, each._class_names, each.fit_report_ = source.skipped, names, report
        if anew:
            self._take(exits)
        self.skipped_, self.fit_report_ = source.skipped, report

    def _take(
        self,
        exits: tuple[RetrievalClassifier, ...],
        policy: ExitPolicy | None = None,
        calibration: Calibration | None = None,
        calibrated_on: frozenset[str] = frozenset(),
    ) -> None:
        """Be fitted with exits, by the arguments as they are now."""
        self.__dict__.update(  # at once, as other threads may be asking
            exits_=exits,
            policy_=ExitPolicy(self.certainty, len(exits)) if policy is None else policy,
            calibration_=calibration,
            _calibrated_on=calibrated_on,
            _made_by=self._answering_params(),
        )

    def _answering_params(self) -> dict[str, Any]:
        """Return the arguments that decide answers."""
        names = ("encoder", "certainty", "keep_vectors", "transform", *_EXIT_PARAMS)
        stages = self.stages if isinstance(self.stages, str) else tuple(self.stages)
        return {"stages": stages, **{name: vars(self)[name] for name in names}}


def _arranged(answers: Mapping[int, Any], asked: CascadePass, on_error: str) -> AnyArray:
    """Return answers in the order of their images, of the type that was fitted."""
    skipped = asked.skipped
    if not skipped and on_error == "raise":
        return np.array([answers[index] for index in sorted(answers)], dtype=asked.classes.dtype)
    count = max(*answers, *(image.index for image in skipped), -1) + 1
    found = np.full(count, None, dtype=object)
    for index, answer in answers.items():
        found[index] = answer
    if skipped:
        warn_caller(
            f"{len(skipped)} of {count} images were skipped and have an empty answer; the first: "
            f"{skipped[0].reason}"
        )
    return found


def _is_same(argument: Any, before: Any) -> bool:
    """Tell whether an argument has not been set anew; copies of a cascade have copies of plain values."""
    plain = isinstance(argument, str | bool | int | float | tuple)
    return argument is before or (plain and type(argument) is type(before) and bool(argument == before))


def _check_stores(stores: Any) -> None:
    if not isinstance(stores, str | Mapping):
        raise InvalidInputError(
            f"store must be a name, or a mapping with a store for each stage; got {shown(stores)}"
        )


def _part(stage: str) -> str:
    """Return a stage's name as folders and collections may have it."""
    return re.sub(r"[^a-z0-9]", "-", stage)


def _at_exit(source: FitSource, encoder: Any) -> FitSource:
    """Return what is to be stored at one exit."""
    origin = replace(source.origin, fingerprint=plain_fingerprint(encoder.fingerprint))
    return replace(source, origin=origin, dim=int(encoder.dim))


def _stopped_at(encoder: Any, stage: str) -> StagedEncoder:
    if not isinstance(encoder, StagedEncoder):
        raise InvalidInputError(
            f"encoder must be a StagedEncoder, which can stop on the way; got {shown(encoder)}"
        )
    return stopped_at(encoder, stage)
