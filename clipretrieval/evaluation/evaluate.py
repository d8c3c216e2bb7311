"""Run a classifier over labelled images and collect what it answered."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from clipretrieval._labels import label_kind
from clipretrieval._timing import Progress, Timing
from clipretrieval.errors import InvalidInputError
from clipretrieval.evaluation.report import EvaluationReport
from clipretrieval.images import SkippedImage, count_hint

if TYPE_CHECKING:
    from clipretrieval.classifier import RetrievalClassifier

__all__ = ["evaluate"]


def evaluate(
    classifier: RetrievalClassifier,
    X: Any,
    y: Any = None,
    *,
    on_error: str = "raise",
    progress: Progress | None = None,
) -> EvaluationReport:
    """Classify labelled images and measure how right and how fast that was.

    Parameters
    ----------
    classifier : RetrievalClassifier
        Fitted.
    X, y, on_error, progress
        As for `RetrievalClassifier.fit`.

    Returns
    -------
    EvaluationReport

    Raises
    ------
    InvalidInputError
        If labels are missing or of another type than those that were fitted.
    """
    started = time.perf_counter()
    timing, skipped = Timing(), list[SkippedImage]()
    total = count_hint(X) if classifier.encoder is not None else len(X)
    kind: str | None = None
    truth: list[Any] = []
    answers, nearest = [], []
    for batch, near in classifier.search_batches(X, y=y, on_error=on_error, skipped=skipped, timing=timing):
        kind = label_kind(batch.labels, kind)
        truth += batch.labels
        answers.append(classifier.classes_[classifier.vote(near)[0]])
        nearest.append(near.distances[:, 0])
        if progress is not None:
            progress(len(truth) + len(skipped), total)
    y_true, y_pred = np.asarray(truth), np.concatenate(answers)
    if (y_true.dtype.kind == "U") != (y_pred.dtype.kind == "U"):
        raise InvalidInputError(
            f"the labels given are {kind}, but the classifier was fitted on labels such as "
            f"{classifier.classes_[0]!r}; pass labels of the same type"
        )
    return EvaluationReport(
        y_true=y_true,
        y_pred=y_pred,
        distances=np.concatenate(nearest),
        classes=np.unique(np.concatenate([classifier.classes_, y_true])),
        setting=_setting(classifier),
        timing=timing,
        fit_timing=getattr(classifier, "fit_timing_", Timing()),
        seconds=time.perf_counter() - started,
        skipped=tuple(skipped),
    )


def _setting(classifier: RetrievalClassifier) -> dict[str, Any]:
    encoder, store = classifier.encoder, classifier.store
    weights = classifier.weights
    return {
        "n_train": classifier.store_.count(),
        "model": getattr(encoder, "model", None) if encoder is not None else None,
        "pretrained": getattr(encoder, "pretrained", None) if encoder is not None else None,
        "stage": getattr(encoder, "stage", None) if encoder is not None else None,
        "dim": classifier.n_features_in_,
        "store": store if isinstance(store, str) else type(store).__name__,
        "metric": str(classifier.store_.metric),
        "k": int(classifier.k),
        "weights": weights if isinstance(weights, str) else getattr(weights, "__name__", "callable"),
    }
