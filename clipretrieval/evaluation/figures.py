"""The figures of an evaluation: a classifier's answers, and all that is computed from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.timing import Timing
from clipretrieval.errors import InvalidInputError
from clipretrieval.evaluation.confusion import Confusion
from clipretrieval.evaluation.metrics import class_table, macro_averages, wilson_interval
from clipretrieval.evaluation.mistakes import Mistake
from clipretrieval.evaluation.reliability import (
    DistanceHistogram,
    Reliability,
    RiskCoverage,
    best_measure,
    distance_histogram,
)
from clipretrieval.evaluation.unknown import UnknownFigures
from clipretrieval.heads.confidence import check_measure
from clipretrieval.images.stream import SkippedImage
from clipretrieval.trust.calibration_curve import CalibrationCurve, calibration_curve
from clipretrieval.types import AnyArray, FloatArray

__all__ = ["Figures", "timed_parts"]

_PARTS = ("decode", "encode", "store", "flush", "search")


@dataclass(frozen=True, eq=False, repr=False)
class Figures:
    """What text, pages and charts show of an evaluation.

    `EvaluationReport`, which documents the attributes, adds the methods that write a report. What they call
    takes `Figures`, and so needs to know nothing of the report.
    """

    y_true: AnyArray
    y_pred: AnyArray
    distances: FloatArray
    classes: AnyArray
    setting: Mapping[str, Any]
    timing: Timing
    fit_timing: Timing = field(default_factory=Timing)
    fit_seconds: float = 0.0
    seconds: float = 0.0
    skipped: tuple[SkippedImage, ...] = ()
    confidence: npt.NDArray[np.float64] | None = None
    mistakes: tuple[Mistake, ...] = ()
    margin: npt.NDArray[np.float64] | None = None
    sources: tuple[str | None, ...] | None = None
    positions: npt.NDArray[np.int64] | None = None
    ece_before: float | None = None
    unknown: UnknownFigures | None = None

    def __post_init__(self) -> None:
        optional = (self.confidence, self.margin, self.sources, self.positions)
        rows: list[Any] = [self.y_true, self.y_pred, self.distances]
        rows += [row for row in optional if row is not None]
        if len({np.shape(row) for row in rows}) > 1 or len(self.y_true) == 0:
            raise InvalidInputError(
                "a report needs a true label, an answer and a distance for each of at least one image; got "
                f"arrays of shape {', '.join(str(np.shape(row)) for row in rows)}"
            )
        known = set(np.asarray(self.classes).tolist())
        for label in [*np.asarray(self.y_true).tolist(), *np.asarray(self.y_pred).tolist()]:
            if label not in known:
                raise InvalidInputError(
                    f"the label {label!r} is none of the report's classes; list every label in classes, "
                    "sorted"
                )

    @property
    def n_test(self) -> int:
        """Number of images that were answered."""
        return len(self.y_true)

    @cached_property
    def correct(self) -> AnyArray:
        """Mask of shape (n_test,): where the answer was correct."""
        right: AnyArray = self.y_true == self.y_pred
        return right

    @property
    def accuracy(self) -> float:
        """Share of correct answers, in [0, 1]."""
        return float(self.correct.mean())

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """The accuracy's 95 % Wilson interval."""
        return wilson_interval(int(self.correct.sum()), self.n_test)

    @cached_property
    def _confusion(self) -> Confusion:
        return Confusion.of(self.y_true, self.y_pred, self.classes)

    @property
    def confusion_matrix(self) -> AnyArray:
        """Counts, int64 of shape (n_classes, n_classes): true classes in rows, answers in columns.

        Made anew each time, 8 × n_classes² bytes: `confused_pairs` and `per_class` need none.
        """
        return self._confusion.matrix()

    @cached_property
    def per_class(self) -> list[dict[str, Any]]:
        """Precision, recall, F1 and support of each class; see `metrics.class_table`."""
        return class_table(self.y_true, self.y_pred, self.classes)

    @cached_property
    def macro(self) -> dict[str, float]:
        """``balanced_accuracy`` and ``macro_f1``; see `metrics.macro_averages`."""
        return macro_averages(self.per_class)

    def confused_pairs(self, most: int | None = None) -> list[dict[str, Any]]:
        """Return which classes were taken for which, most often first; see `metrics.confused_pairs`."""
        return self._confusion.pairs(self.classes, most)

    def reliability(self, by: str) -> Reliability:
        """Tell how well a measure of confidence ranks the answers of this report.

        Parameters
        ----------
        by : {"share", "margin", "distance"}
            The answered class's share of the votes, or its probability; how far that is ahead of the second
            class's; or the distance to the nearest neighbor.

        Returns
        -------
        Reliability
            With ``error_auroc``, ``risk_coverage`` and ``deciles``.

        Raises
        ------
        InvalidInputError
            If `by` is none of these, or the report has no shares or margins.
        """
        if check_measure(by) not in self.reliabilities:
            raise InvalidInputError(
                f"this report has no {by} of each answer; make it with `evaluate`, which notes them"
            )
        return self.reliabilities[by]

    @cached_property
    def reliabilities(self) -> dict[str, Reliability]:
        """`reliability` by each measure that the report has, in the order share, margin, distance."""
        values = {"share": self.confidence, "margin": self.margin, "distance": self.distances}
        return {
            by: Reliability(by, np.asarray(each, dtype=np.float64), self.correct)
            for by, each in values.items()
            if each is not None
        }

    @cached_property
    def best_measure(self) -> str | None:
        """Which measure ranked these mistakes best; see `reliability.best_measure`.

        It is chosen on the images that it is measured on: a description of these, and no promise for others.
        """
        return best_measure(self.reliabilities.values())

    @property
    def error_auroc(self) -> float:
        """How well the distance detects errors: ``reliability("distance").error_auroc``."""
        return self.reliability("distance").error_auroc

    @property
    def risk_coverage(self) -> RiskCoverage:
        """What is kept at each distance: ``reliability("distance").risk_coverage``."""
        return self.reliability("distance").risk_coverage

    @property
    def deciles(self) -> list[dict[str, Any]]:
        """Accuracy from the nearest tenth to the farthest: ``reliability("distance").deciles``."""
        return self.reliability("distance").deciles

    @cached_property
    def calibration(self) -> CalibrationCurve | None:
        """Accuracy over confidence, in ten bins; None where there is no confidence."""
        return None if self.confidence is None else calibration_curve(self.confidence, self.correct)

    def distance_histogram(self, bins: int = 40) -> DistanceHistogram:
        """Count correct and incorrect answers over the distance; see `reliability.distance_histogram`."""
        return distance_histogram(self.distances, self.correct, bins)


def timed_parts(figures: Figures) -> Iterator[tuple[str, str, Timing]]:
    """Yield the name, the part and the clock of all that was timed, of the fit first."""
    for prefix, timing in (("fit_", figures.fit_timing), ("", figures.timing)):
        yield from ((f"{prefix}{part}", part, timing) for part in _PARTS if part in timing.images)
