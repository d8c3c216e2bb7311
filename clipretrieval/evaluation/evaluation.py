"""Run a classifier over labelled images and collect what it answered."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from clipretrieval._util.checks import check_bool, check_int
from clipretrieval._util.labels import Spelling, class_array, label_kind, stored_labels
from clipretrieval._util.progress import Progress, image_counter, open_progress
from clipretrieval._util.timing import Timing
from clipretrieval._util.warning import warn_caller
from clipretrieval.errors import InvalidInputError, StoreError
from clipretrieval.evaluation.mistakes import Mistake, WorstMistakes
from clipretrieval.evaluation.report import EvaluationReport
from clipretrieval.evaluation.validation import check_untuned
from clipretrieval.heads.votes import weighting_name
from clipretrieval.images.sources import check_class_names, class_names, count_hint
from clipretrieval.images.stream import SkippedImage
from clipretrieval.images.tables import labelled_source
from clipretrieval.retrieval.manifest import manifest_classes, view_manifest
from clipretrieval.retrieval.retriever import QUERY_VECTORS, open_ballot, search_batches, vote
from clipretrieval.types import AnyArray

if TYPE_CHECKING:
    from clipretrieval.classifier import RetrievalClassifier

__all__ = ["check_kind", "check_truth", "evaluate"]


def evaluate(
    classifier: RetrievalClassifier,
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
    classifier : RetrievalClassifier
        Fitted.
    X, y, on_error, progress
        As for `RetrievalClassifier.fit`.
    allow_tuned : bool
        Whether to evaluate on images that `RetrievalClassifier.sweep` has tuned on since the last fit.
    mistakes : int
        How many of the worst mistakes to keep, with their neighbours; 0 asks the store nothing more.

    Returns
    -------
    EvaluationReport

    Raises
    ------
    InvalidInputError
        If labels are missing or of another type than those that were fitted, an image was tuned on, or
        `mistakes` is negative.
    """
    allow_tuned, mistakes = check_bool(allow_tuned, "allow_tuned"), check_int(mistakes, "mistakes", least=0)
    with open_progress(progress, "evaluating") as shown:
        return _evaluate(
            classifier, X, y, on_error=on_error, progress=shown, allow_tuned=allow_tuned, mistakes=mistakes
        )


def _evaluate(
    classifier: RetrievalClassifier,
    X: Any,
    y: Any,
    *,
    on_error: str,
    progress: Progress,
    allow_tuned: bool,
    mistakes: int,
) -> EvaluationReport:
    started = time.perf_counter()
    timing, skipped = Timing(), list[SkippedImage]()
    check_truth(classifier, X, y)
    X = labelled_source(X, y) if classifier.encoder is not None else X
    total = count_hint(X) if classifier.encoder is not None else None
    kind: str | None = None
    truth: list[Any] = []
    answers, nearest, shares, margins = [], [], [], []
    sources, positions = list[str | None](), list[int]()
    worst = WorstMistakes(mistakes)
    known = 0
    tell = image_counter(progress, total, skipped)
    ballot = open_ballot(classifier)
    spelling = Spelling(classifier.classes_.tolist())
    batches = search_batches(
        classifier, X, y=y, ballot=ballot, on_error=on_error, skipped=skipped, timing=timing, tell=tell
    )
    for batch, near in batches:
        if not allow_tuned:
            check_untuned(classifier, batch.ids, len(truth))
        kind = label_kind(batch.labels, kind, places=batch.indices)
        check_kind(kind, classifier._label_kind)
        true = spelling.apply(stored_labels(batch.labels, kind, classifier._label_kind))
        votes = vote(classifier, near, ballot)
        codes, (share, margin) = votes.answers, votes.share_and_margin
        if mistakes:
            wrong = ballot.numbers(true) != codes
            vectors = batch.vectors[QUERY_VECTORS]
            worst.add(len(truth), wrong, share, margin, near, batch.sources, vectors)
        truth += true
        if classifier.encoder is not None:
            own = near.ids == np.array(batch.ids, dtype=object)[:, None]
            known += int(np.count_nonzero(own.any(axis=1)))
        answers.append(codes)
        nearest.append(near.distances[:, 0])
        shares.append(share)
        margins.append(margin)
        sources += batch.sources
        positions += batch.indices
    y_pred = ballot.labels(np.concatenate(answers))
    y_true = class_array(truth, classifier._label_kind, sort=False)
    # Not the classifier's own: another one may have forgotten all images of a class since.
    listed = manifest_classes(view_manifest(classifier.store_))
    met = stored_labels(y_pred.tolist(), classifier._label_kind)
    if known:
        warn_caller(
            f"{known} of the {len(y_true)} images are stored in the classifier and find themselves, so the "
            "accuracy is too high; evaluate on images that it was not fitted on"
        )
    fitted = getattr(classifier, "fit_report_", None)  # a loaded classifier has none
    return EvaluationReport(
        y_true=y_true,
        y_pred=y_pred,
        distances=np.concatenate(nearest),
        confidence=np.concatenate(shares),
        margin=np.concatenate(margins),
        sources=tuple(sources),
        positions=np.array(positions, dtype=np.int64),
        mistakes=_explained(worst, classifier, y_true, y_pred),
        classes=class_array({*listed, *truth, *met}, classifier._label_kind),
        setting=_setting(classifier),
        timing=timing,
        fit_timing=fitted.timing if fitted else Timing(),
        fit_seconds=fitted.seconds if fitted else 0.0,
        seconds=time.perf_counter() - started,
        skipped=tuple(skipped),
    )


def _explained(
    worst: WorstMistakes, classifier: RetrievalClassifier, y_true: AnyArray, y_pred: AnyArray
) -> tuple[Mistake, ...]:
    """Look up what the worst mistakes rest on; an evaluation that took long is not lost for it."""
    try:
        return tuple(worst.explained(classifier, classifier._label_kind, y_true, y_pred))
    except StoreError as error:
        warn_caller(f"the report has no mistakes, as their neighbours could not be looked up: {error}")
        return ()


def check_truth(classifier: RetrievalClassifier, X: Any, y: Any) -> None:
    """Refuse vectors, which bring no labels of their own, without any, and integers of other classes."""
    if y is not None:
        return
    if classifier.encoder is None:
        raise InvalidInputError("the true labels are missing; pass one for each vector")
    check_class_names(getattr(classifier, "_class_names", {}), class_names(X))


def check_kind(kind: str, fitted: str) -> None:
    """Refuse true labels of a type that no answer can be equal to."""
    numbers = {"int", "float"}
    if kind != fitted and not {kind, fitted} <= numbers:
        raise InvalidInputError(
            f"the labels given are of the type {kind}, but the classifier was fitted on {fitted}; pass "
            "labels of the same type"
        )


def _setting(classifier: RetrievalClassifier) -> dict[str, Any]:
    encoder, store = classifier.encoder, classifier.store
    return {
        "n_train": classifier.store_.count(),
        **{name: _text(encoder, name) for name in ("model", "pretrained", "stage")},
        "plan": _plan(encoder),
        "dim": classifier.n_features_in_,
        "store": store if isinstance(store, str) else type(store).__name__,
        "metric": str(classifier.store_.metric),
        "k": int(classifier.k),
        "weights": weighting_name(classifier.weights),
    }


def _text(encoder: Any, name: str) -> str | None:
    """Return an encoder's attribute where it is a string: one of a user's own may mean something else."""
    value = getattr(encoder, name, None)
    return value if isinstance(value, str) else None


def _plan(encoder: Any) -> dict[str, Any] | None:
    """Return how the encoder runs, where it says so; nothing runs at the ``pixel`` stage."""
    if (
        getattr(encoder, "stage", None) in (None, "pixel")
        or "clipretrieval.encoding.engine.plan" not in sys.modules
    ):
        return None
    from clipretrieval.encoding.engine.plan import InferencePlan

    plan = getattr(encoder, "plan", None)
    return plan.to_dict() if isinstance(plan, InferencePlan) else None
