"""Run CLIP's own classifier over labelled images and collect what it answered."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.labels import Spelling, class_array, label_kind, stored_labels
from clipretrieval._util.progress import Progress, image_counter, open_progress
from clipretrieval._util.timing import Timing
from clipretrieval.encoding.base import EncodedBatch
from clipretrieval.errors import InvalidInputError
from clipretrieval.evaluation.report import EvaluationReport
from clipretrieval.evaluation.words import PROMPTS
from clipretrieval.heads.confidence import share_and_margin
from clipretrieval.images.sources import count_hint
from clipretrieval.images.stream import SkippedImage
from clipretrieval.images.tables import labelled_source
from clipretrieval.types import AnyArray, Label

if TYPE_CHECKING:
    from clipretrieval.zeroshot import ZeroShotClassifier

__all__ = ["Answers", "check_labels", "evaluate"]


@dataclass
class Answers:
    """Answers batch by batch: of each image the class, its cosine and its probability, and no more.

    Parameters
    ----------
    classifier : ZeroShotClassifier
    """

    classifier: ZeroShotClassifier
    _truth: list[Label] = field(default_factory=list)
    _codes: list[AnyArray] = field(default_factory=list)
    _nearest: list[AnyArray] = field(default_factory=list)
    _shares: list[AnyArray] = field(default_factory=list)
    _margins: list[AnyArray] = field(default_factory=list)
    _sources: list[str | None] = field(default_factory=list)
    _positions: list[int] = field(default_factory=list)

    def add(self, cosines: npt.NDArray[np.float64], batch: EncodedBatch) -> None:
        """Take a batch.

        Parameters
        ----------
        cosines : ndarray of float64, shape (n, n_classes)
        batch : EncodedBatch
            With the true labels.

        Raises
        ------
        InvalidInputError
            If a label is missing, or none of the classes.
        """
        self._truth += check_labels(self.classifier, batch.labels)
        codes = cosines.argmax(axis=1)
        self._codes.append(codes)
        self._nearest.append(cosines[np.arange(len(codes)), codes])
        probabilities = self.classifier.probabilities(cosines)
        self._shares.append(probabilities.max(axis=1))
        self._margins.append(share_and_margin(probabilities, codes)[1])
        self._sources += batch.sources
        self._positions += batch.indices

    def report(self, **rest: Any) -> EvaluationReport:
        """Make a report of all batches.

        Parameters
        ----------
        **rest
            The report's ``timing``, ``seconds`` and ``skipped``.
        """
        classes = self.classifier.classes_
        return EvaluationReport(
            y_true=class_array(self._truth, label_kind(classes.tolist()), sort=False),
            y_pred=classes[np.concatenate(self._codes)],
            distances=(1 - np.concatenate(self._nearest)).astype(np.float32),
            confidence=np.concatenate(self._shares),
            margin=np.concatenate(self._margins),
            sources=tuple(self._sources),
            positions=np.array(self._positions, dtype=np.int64),
            classes=classes,
            setting=_setting(self.classifier),
            **rest,
        )


def evaluate(
    classifier: ZeroShotClassifier,
    X: Any,
    y: Any = None,
    *,
    on_error: str = "raise",
    progress: Progress | bool | None = None,
) -> EvaluationReport:
    """Classify labelled images and measure; see `ZeroShotClassifier.evaluate`."""
    with open_progress(progress, "evaluating") as shown:
        return _evaluate(classifier, X, y, on_error=on_error, progress=shown)


def _evaluate(
    classifier: ZeroShotClassifier, X: Any, y: Any, *, on_error: str, progress: Progress
) -> EvaluationReport:
    started, timing, skipped = time.perf_counter(), Timing(), list[SkippedImage]()
    X = labelled_source(X, y)
    tell = image_counter(progress, count_hint(X), skipped)
    answers = Answers(classifier)
    for batch, cosines in classifier.cosine_batches(
        X, y, on_error=on_error, skipped=skipped, timing=timing, tell=tell
    ):
        answers.add(cosines, batch)
    return answers.report(timing=timing, seconds=time.perf_counter() - started, skipped=tuple(skipped))


def check_labels(classifier: ZeroShotClassifier, labels: Sequence[Any]) -> list[Label]:
    """Return true labels as they are stored.

    Raises
    ------
    InvalidInputError
        If one is missing, or none of the classes.
    """
    kind, classes = label_kind(labels), classifier.classes_.tolist()
    found = Spelling(classes).apply(stored_labels(labels, kind))
    same = kind == label_kind(classes)
    listed = set(classes)
    unknown = [label for label in dict.fromkeys(found) if not same or label not in listed]
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
        "store": PROMPTS,
        "metric": "cosine",
        "k": 1,
        "weights": "softmax",
        "prompts": classifier.prompts_,
    }
