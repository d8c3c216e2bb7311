"""What an evaluation found, ready to be read, compared and written down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix

from clipretrieval._timing import Timing
from clipretrieval.errors import InvalidInputError
from clipretrieval.evaluation import _report_views
from clipretrieval.evaluation._report_json import SCHEMA_VERSION, report_values
from clipretrieval.evaluation._writing import written
from clipretrieval.evaluation.calibration import CalibrationCurve, calibration_curve
from clipretrieval.evaluation.metrics import class_table, confused_pairs, macro_averages, wilson_interval
from clipretrieval.evaluation.mistakes import Mistake
from clipretrieval.evaluation.reliability import (
    DistanceHistogram,
    RiskCoverage,
    accuracy_by_decile,
    distance_histogram,
    error_auroc,
    risk_coverage,
)
from clipretrieval.images import SkippedImage
from clipretrieval.types import AnyArray, FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SCHEMA_VERSION", "EvaluationReport"]


@dataclass(frozen=True, eq=False)
class EvaluationReport:
    """A classifier's answers on labelled images, and what follows from them.

    Attributes
    ----------
    y_true, y_pred : ndarray, shape (n_test,)
    distances : ndarray of float32, shape (n_test,)
        From each image to its nearest neighbour, in the store's metric; ``+inf`` where there was none.
    classes : ndarray, shape (n_classes,)
        Every label fitted or met, sorted.
    setting : mapping
        ``n_train``, ``model``, ``pretrained``, ``stage``, ``plan``, ``dim``, ``store``, ``metric``, ``k``,
        ``weights``.
    timing : Timing
        Of this evaluation.
    fit_timing : Timing
        Of the fit before it, whose parts overlap; empty where the classifier was loaded.
    fit_seconds : float
        Wall time of that fit; 0.0 where the classifier was loaded.
    seconds : float
        Wall time of the evaluation.
    skipped : tuple of SkippedImage
    confidence : ndarray of float64, shape (n_test,), or None
        Each answer's share of the votes, or its probability, in [0, 1].
    mistakes : tuple of Mistake
        The worst ones first: those of the greatest confidence, and of these the nearest.
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

    def __post_init__(self) -> None:
        rows = [self.y_true, self.y_pred, self.distances]
        rows += [] if self.confidence is None else [self.confidence]
        if len({np.shape(row) for row in rows}) > 1 or len(self.y_true) == 0:
            raise InvalidInputError(
                "a report needs a true label, an answer and a distance for each of at least one image; got "
                f"arrays of shape {', '.join(str(np.shape(row)) for row in rows)}"
            )
        labels = np.unique(np.concatenate([self.y_true, self.y_pred]))
        strange = labels[~np.isin(labels, self.classes)]
        if len(strange):
            raise InvalidInputError(
                f"the label {strange.tolist()[0]!r} is none of the report's classes; list every label in "
                "classes, sorted"
            )

    @property
    def n_test(self) -> int:
        """Number of images that were answered."""
        return len(self.y_true)

    @cached_property
    def correct(self) -> AnyArray:
        """Mask of shape (n_test,): where the answer was right."""
        right: AnyArray = self.y_true == self.y_pred
        return right

    @property
    def accuracy(self) -> float:
        """Share of right answers, in [0, 1]."""
        return float(self.correct.mean())

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """The accuracy's 95 % Wilson interval."""
        return wilson_interval(int(self.correct.sum()), self.n_test)

    @cached_property
    def confusion_matrix(self) -> AnyArray:
        """Counts, shape (n_classes, n_classes): true classes in rows, answers in columns."""
        if len(self.classes) == 1:  # scikit-learn warns of this one
            return np.array([[self.n_test]])
        matrix: AnyArray = confusion_matrix(self.y_true, self.y_pred, labels=self.classes)
        return matrix

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
        return confused_pairs(self.confusion_matrix, self.classes, most)

    @cached_property
    def error_auroc(self) -> float:
        """How well the distance tells wrong answers from right ones; see `reliability.error_auroc`."""
        return error_auroc(self.distances, self.correct)

    @cached_property
    def risk_coverage(self) -> RiskCoverage:
        """What is kept, and how much of it is wrong, when answers beyond a distance are withheld."""
        return risk_coverage(self.distances, self.correct)

    @cached_property
    def deciles(self) -> list[dict[str, Any]]:
        """Accuracy from the nearest tenth to the farthest; see `reliability.accuracy_by_decile`."""
        return accuracy_by_decile(self.distances, self.correct)

    @cached_property
    def calibration(self) -> CalibrationCurve | None:
        """Accuracy over confidence, in ten bins; None where there is no confidence."""
        return None if self.confidence is None else calibration_curve(self.confidence, self.correct)

    def distance_histogram(self, bins: int = 40) -> DistanceHistogram:
        """Count right and wrong answers over the distance; see `reliability.distance_histogram`."""
        return distance_histogram(self.distances, self.correct, bins)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the single answers as JSON values; see ``docs/report.md`` for the fields."""
        return report_values(self)

    def to_json(self, path: str | Path | None = None) -> str:
        """Return `to_dict` as JSON, and write it to `path`, atomically, if one is given.

        Raises
        ------
        InvalidInputError
            If the file cannot be written.
        """
        return written(path, json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))

    def to_markdown(self, path: str | Path | None = None) -> str:
        """Return the report as Markdown, and write it to `path`, atomically, if one is given.

        Raises
        ------
        InvalidInputError
            If the file cannot be written.
        """
        return written(path, _report_views.as_markdown(self))

    def to_html(
        self, path: str | Path | None = None, *, title: str | None = None, pictures: bool = True
    ) -> str:
        """Return the report as one HTML page that needs nothing else, and write it to `path` if one is given.

        Parameters
        ----------
        path : str or Path, optional
            Written atomically.
        title : str, optional
            Of the page.
        pictures : bool
            Whether to put thumbnails of the worst mistakes into the page; they are read from their files now.

        Returns
        -------
        str

        Raises
        ------
        InvalidInputError
            If the file cannot be written.
        """
        from clipretrieval.evaluation.page import render_page

        return written(path, render_page([(None, self)], title=title, pictures=pictures))

    def plot_distances(self, ax: Axes | None = None, *, bins: int = 40) -> Axes:
        """Draw the histograms of the distance of right and of wrong answers; see `plots`."""
        from clipretrieval.evaluation import plots

        return plots.plot_distances(self, ax, bins=bins)

    def plot_risk_coverage(self, ax: Axes | None = None) -> Axes:
        """Draw the risk over the coverage; see `plots`."""
        from clipretrieval.evaluation import plots

        return plots.plot_risk_coverage(self, ax)

    def plot_deciles(self, ax: Axes | None = None) -> Axes:
        """Draw the accuracy of each tenth by distance; see `plots`."""
        from clipretrieval.evaluation import plots

        return plots.plot_deciles(self, ax)

    def plot_calibration(self, ax: Axes | None = None) -> Axes:
        """Draw the accuracy over the confidence; see `plots`."""
        from clipretrieval.evaluation import plots

        return plots.plot_calibration(self, ax)

    def plot_confusion(self, ax: Axes | None = None) -> Axes:
        """Draw the confusion matrix; see `plots`."""
        from clipretrieval.evaluation import plots

        return plots.plot_confusion(self, ax)

    def __str__(self) -> str:
        return _report_views.as_text(self)
