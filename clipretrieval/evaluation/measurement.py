"""Measure a classifier: what it answered to labelled images, collected into a report."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from clipretrieval._util.foreign import is_instance
from clipretrieval._util.labels import Spelling, class_array, label_kind, stored_labels
from clipretrieval._util.progress import Progress, image_counter
from clipretrieval._util.timing import Timing
from clipretrieval._util.warning import warn_caller
from clipretrieval.encoding.base import EncodedBatch
from clipretrieval.encoding.streams import VECTORS
from clipretrieval.errors import StoreError
from clipretrieval.evaluation.mistakes import Mistake, WorstMistakes
from clipretrieval.evaluation.report import EvaluationReport
from clipretrieval.evaluation.unknown import UnknownFigures
from clipretrieval.evaluation.validation import check_untuned
from clipretrieval.heads.fitted_head import DecisionRule
from clipretrieval.images.sources import count_hint
from clipretrieval.images.stream import SkippedImage
from clipretrieval.images.tables import labelled_source
from clipretrieval.retrieval.answer_places import AnswerPlaces
from clipretrieval.retrieval.classes import ClassNumbers
from clipretrieval.retrieval.edit import held_ids
from clipretrieval.retrieval.labelled_index import LabelledIndex
from clipretrieval.retrieval.manifest import manifest_classes
from clipretrieval.retrieval.reports import FitReport
from clipretrieval.retrieval.retriever import Retriever
from clipretrieval.retrieval.true_labels import check_kind, check_truth
from clipretrieval.stores.base import view_manifest
from clipretrieval.trust.calibration_curve import calibration_curve
from clipretrieval.trust.trusted_decision import TrustedDecision
from clipretrieval.trust.trusted_rule import Gate
from clipretrieval.types import AnyArray, FloatArray, Label, Neighbors

__all__ = ["Measurement", "evaluate", "index_setting", "measure"]


class Evaluable(Protocol):
    """A classifier that measures itself."""

    def _evaluate(self, X: Any, y: Any, **options: Any) -> EvaluationReport: ...


def evaluate(
    classifier: Evaluable,
    X: Any,
    y: Any = None,
    *,
    on_error: str = "raise",
    progress: Progress | bool | None = None,
    allow_tuned: bool = False,
    mistakes: int = 12,
) -> EvaluationReport:
    """Classify labelled images and measure how right and how fast that was.

    The same as `RetrievalClassifier.evaluate`, as a function.
    """
    return classifier._evaluate(  # not its public method, which may be one that calls this function
        X, y, on_error=on_error, progress=progress, allow_tuned=allow_tuned, mistakes=mistakes
    )


class Measurement:
    """What is collected of a classifier's answers to labelled images, batch by batch.

    Parameters
    ----------
    index : LabelledIndex
    head : DecisionRule
    numbers : ClassNumbers
        From `index`, for this question.
    tuned : mapping of str to set of str
        Content ids of images that may not be measured on; see `check_untuned`.
    mistakes : int
        How many of the worst mistakes to keep, with their neighbors.
    """

    def __init__(
        self,
        index: LabelledIndex,
        head: DecisionRule,
        numbers: ClassNumbers,
        *,
        tuned: Mapping[str, Set[str]] = MappingProxyType({}),
        mistakes: int = 12,
    ) -> None:
        self._index, self._head, self._numbers, self._tuned = index, head, numbers, tuned
        self._fitted_kind = index.classes.kind
        self._spelling = Spelling(index.classes.labels.tolist())
        self._kind: str | None = None  # of the labels given
        self._worst = WorstMistakes(mistakes) if mistakes else None
        self._truth: list[Label] = []
        self._answers: list[npt.NDArray[np.int64]] = []
        self._nearest: list[FloatArray] = []
        self._shares: list[npt.NDArray[np.float64]] = []
        self._margins: list[npt.NDArray[np.float64]] = []
        self._sources: list[str | None] = []
        self._positions: list[int] = []
        self._raw: list[tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]] = []
        self._known = 0

    def add(self, batch: EncodedBatch, near: Neighbors) -> None:
        """Take labelled images that were looked up, with the vectors that were searched.

        Raises
        ------
        InvalidInputError
            If labels are missing or of another type than those that were fitted, or an image was tuned on.
        """
        index, numbers = self._index, self._numbers
        check_untuned(self._tuned, batch.ids, len(self._truth))
        self._kind = label_kind(batch.labels, self._kind, places=batch.indices)
        check_kind(self._kind, self._fitted_kind)
        truth = self._spelling.apply(stored_labels(batch.labels, self._kind, self._fitted_kind))
        decision = self._head.decide(batch.vectors[VECTORS], near, numbers)
        codes, (share, margin) = decision.answers, decision.share_and_margin
        if isinstance(decision, TrustedDecision) and decision.calibrated is not None:
            raw = decision.raw
            self._raw.append((raw.share_and_margin[0], raw.answers == numbers.of_labels(truth)))
        if self._worst is not None:
            wrong = numbers.of_labels(truth) != codes
            vectors = batch.vectors[VECTORS]
            self._worst.add(len(self._truth), wrong, share, margin, near, batch.sources, vectors)
        if not index.is_searchable:
            self._known += len(held_ids(index.store, batch.ids))
        elif index.encoder is not None:
            own = near.ids == np.array(batch.ids, dtype=object)[:, None]
            self._known += int(np.count_nonzero(own.any(axis=1)))
        self._truth += truth
        self._answers.append(codes)
        self._nearest.append(near.nearest)
        self._shares.append(share)
        self._margins.append(margin)
        self._sources += batch.sources
        self._positions += batch.indices

    def report(
        self,
        store_name: str,
        *,
        timing: Timing,
        skipped: Sequence[SkippedImage],
        started: float | None = None,
        fit_report: FitReport | None = None,
        unknown: UnknownFigures | None = None,
    ) -> EvaluationReport:
        """Make a report of all that was taken.

        Parameters
        ----------
        store_name : str
            What it calls the store.
        timing : Timing
        skipped : sequence of SkippedImage
        started : float, optional
            When the question began, by `time.perf_counter`; no time is reported without.
        fit_report : FitReport, optional
            Of the fit that filled the index.
        unknown : UnknownFigures, optional
        """
        index, kind = self._index, self._fitted_kind
        y_pred = self._numbers.labels(np.concatenate(self._answers))
        y_true = class_array(self._truth, kind, sort=False)
        # Not those known before: another process may have forgotten all images of a class since.
        listed = manifest_classes(view_manifest(index.store))
        met = stored_labels(y_pred.tolist(), kind)
        if self._known:
            warn_caller(
                f"{self._known} of the {len(y_true)} images are stored in the classifier and find "
                "themselves, so the accuracy is too high; evaluate on images that it was not fitted on"
            )
        return EvaluationReport(
            y_true=y_true,
            y_pred=y_pred,
            distances=np.concatenate(self._nearest),
            confidence=np.concatenate(self._shares),
            margin=np.concatenate(self._margins),
            sources=tuple(self._sources),
            positions=np.array(self._positions, dtype=np.int64),
            mistakes=self._mistakes(y_true, y_pred),
            classes=class_array({*listed, *self._truth, *met}, kind),
            setting=index_setting(index, self._head, store_name),
            timing=timing,
            fit_timing=fit_report.timing if fit_report else Timing(),
            fit_seconds=fit_report.seconds if fit_report else 0.0,
            seconds=0.0 if started is None else time.perf_counter() - started,
            skipped=tuple(skipped),
            ece_before=self._ece_before(),
            unknown=unknown,
        )

    def _ece_before(self) -> float | None:
        """Return how far the head's own probabilities are from the truth, where they were calibrated."""
        if not self._raw:
            return None
        shares, correct = (np.concatenate(column) for column in zip(*self._raw, strict=True))
        return calibration_curve(shares, correct).ece

    def _mistakes(self, y_true: AnyArray, y_pred: AnyArray) -> tuple[Mistake, ...]:
        """Look up what the worst mistakes rest on; an evaluation that took long is not lost for it."""
        if self._worst is None:
            return ()
        try:
            return tuple(self._worst.explained(self._index, self._head, y_true, y_pred))
        except StoreError as error:
            warn_caller(f"the report has no mistakes, as their neighbors could not be looked up: {error}")
            return ()


def index_setting(index: LabelledIndex, head: DecisionRule, store_name: str) -> dict[str, Any]:
    """Return what a report tells of the index and the head that answered."""
    encoder = index.encoder
    return {
        "n_train": index.store.count(),
        "model": _model(encoder),
        **{name: _text(encoder, name) for name in ("pretrained", "stage")},
        "plan": _plan(encoder),
        "dim": index.dim,
        "store": store_name,
        "metric": str(index.store.metric),
        **head.describe(),
    }


def measure(
    retriever: Retriever,
    head: DecisionRule,
    X: Any,
    y: Any,
    *,
    store_name: str,
    on_error: str,
    progress: Progress,
    tuned: Mapping[str, Set[str]],
    mistakes: int,
    fit_report: FitReport | None,
    unknown_images: Any = None,
    gate: Gate | None = None,
) -> EvaluationReport:
    """Answer labelled images and report on it; see `RetrievalClassifier.evaluate` and `Measurement`.

    `gate` measures how much images are like those stored, where `unknown_images` are given.
    """
    started, timing, skipped = time.perf_counter(), Timing(), list[SkippedImage]()
    index = retriever.index
    check_truth(index, X, y)
    X = labelled_source(X, y) if index.encoder is not None else X
    tell = image_counter(progress, count_hint(X) if index.encoder is not None else None, skipped)
    numbers = index.number_classes()
    measurement = Measurement(index, head, numbers, tuned=tuned, mistakes=mistakes)
    likeness = list[npt.NDArray[np.float64]]()
    for batch, near in retriever.search(
        X, head.shown, y=y, numbers=numbers, on_error=on_error, skipped=skipped, timing=timing, tell=tell
    ):
        measurement.add(batch, near)
        if gate is not None:
            likeness.append(gate.score(batch.vectors[VECTORS], near))
    unknown = None
    if gate is not None:
        places = AnswerPlaces()
        others = [
            gate.score(vectors, near)
            for vectors, near in retriever.answer(unknown_images, head.k, places, on_error=on_error)
        ]
        unknown = UnknownFigures.of(np.concatenate(likeness), np.concatenate(others), gate.least)
    return measurement.report(
        store_name,
        timing=timing,
        skipped=skipped,
        started=started,
        fit_report=fit_report,
        unknown=unknown,
    )


def _model(encoder: Any) -> str | None:
    """Return the name of an encoder's model, or the class of one that was built in memory."""
    model = getattr(encoder, "model", None)
    return type(model).__name__ if is_instance(model, "torch.nn", "Module") else _text(encoder, "model")


def _text(encoder: Any, name: str) -> str | None:
    """Return an encoder's attribute where it is a string: one of a user's own may mean something else."""
    value = getattr(encoder, name, None)
    return value if isinstance(value, str) else None


def _plan(encoder: Any) -> dict[str, Any] | None:
    """Return how the encoder runs, where it says so; nothing runs at the ``pixel`` stage."""
    module = sys.modules.get(
        "clipretrieval.encoding.engine.inference_plan"
    )  # an encoder may do without torch
    if module is None or getattr(encoder, "stage", None) in (None, "pixel"):
        return None
    plan = getattr(encoder, "plan", None)
    return plan.to_dict() if isinstance(plan, module.InferencePlan) else None
