"""Run CLIP's own classifier over labelled images and collect what it answered."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clipretrieval._labels import class_array, label_kind, stored_labels
from clipretrieval._timing import Progress, Timing
from clipretrieval.errors import InvalidInputError
from clipretrieval.evaluation.report import EvaluationReport
from clipretrieval.images import SkippedImage, count_hint
from clipretrieval.types import Label

if TYPE_CHECKING:
    from clipretrieval.zeroshot import ZeroShotClassifier

__all__ = ["check_labels", "evaluate", "make_report"]


def evaluate(
    classifier: ZeroShotClassifier,
    X: Any,
    y: Any = None,
    *,
    on_error: str = "raise",
    progress: Progress | None = None,
) -> EvaluationReport:
    """Classify labelled images and measure; see `ZeroShotClassifier.evaluate`."""
    started, timing, skipped = time.perf_counter(), Timing(), list[SkippedImage]()
    total, arrived = count_hint(X), 0

    def tell(images: int) -> None:
        nonlocal arrived
        arrived += images
        if progress is not None:
            progress(arrived + len(skipped), total)

    tell(0)
    truth: list[Label] = []
    parts = []
    for batch, cosines in classifier.cosine_batches(
        X, y, on_error=on_error, skipped=skipped, timing=timing, tell=tell
    ):
        truth += check_labels(classifier, batch.labels)
        parts.append(cosines)
    return make_report(
        classifier,
        np.concatenate(parts),
        truth,
        timing=timing,
        seconds=time.perf_counter() - started,
        skipped=tuple(skipped),
    )


def make_report(
    classifier: ZeroShotClassifier, cosines: npt.NDArray[np.float64], truth: Sequence[Label], **rest: Any
) -> EvaluationReport:
    """Make a report of answers that are known already.

    Parameters
    ----------
    classifier : ZeroShotClassifier
    cosines : ndarray of float64, shape (n, n_classes)
    truth : sequence of int or of str, length n
        As `check_labels` returns them.
    **rest
        The report's ``timing``, ``seconds`` and ``skipped``.
    """
    classes, codes = classifier.classes_, cosines.argmax(axis=1)
    return EvaluationReport(
        y_true=class_array(truth, label_kind(classes.tolist()), sort=False),
        y_pred=classes[codes],
        distances=(1 - cosines[np.arange(len(codes)), codes]).astype(np.float32),
        confidence=classifier.probabilities(cosines).max(axis=1),
        classes=classes,
        setting=_setting(classifier),
        **rest,
    )


def check_labels(classifier: ZeroShotClassifier, labels: Sequence[Any]) -> list[Label]:
    """Return true labels as they are stored.

    Raises
    ------
    InvalidInputError
        If one is missing, or none of the classes.
    """
    kind, classes = label_kind(labels), classifier.classes_.tolist()
    found = stored_labels(labels, kind)
    same = kind == label_kind(classes)
    unknown = [label for label in dict.fromkeys(labels) if not same or label not in set(classes)]
    if unknown:
        shown = ", ".join(map(repr, classes[:10])) + (", …" if len(classes) > 10 else "")
        raise InvalidInputError(
            f"the label {unknown[0]!r} is none of the {len(classes)} classes ({shown}), so no answer can be "
            "right for it; pass class_names that have it, where labels are numbers as a mapping "
            "{label: name}"
        )
    return found


def _setting(classifier: ZeroShotClassifier) -> dict[str, Any]:
    encoder = classifier.encoder_
    return {
        "n_train": 0,
        "model": encoder.model if isinstance(encoder.model, str) else None,
        "pretrained": encoder.pretrained,
        "stage": "zero-shot",
        "plan": encoder.plan.to_dict(),
        "dim": encoder.stages["final"].dim,
        "store": "prompts",
        "metric": "cosine",
        "k": 1,
        "weights": "softmax",
        "prompts": classifier.prompts_,
    }
