"""What an evaluation found, ready to be read, compared and written down."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.foreign import data_frame
from clipretrieval._util.repr import short_repr
from clipretrieval._util.timing import Timing
from clipretrieval.errors import InvalidInputError
from clipretrieval.evaluation import text as _report_views
from clipretrieval.evaluation.calibration import CalibrationCurve, calibration_curve
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
from clipretrieval.evaluation.report_json import SCHEMA_VERSION, report_values
from clipretrieval.evaluation.writing import written
from clipretrieval.heads.confidence import check_measure
from clipretrieval.images.stream import SkippedImage
from clipretrieval.types import AnyArray, FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

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
    margin : ndarray of float64, shape (n_test,), or None
        How far each answer's share is ahead of the second class's, in [0, 1].
    sources : tuple of (str or None), length n_test, or None
        Each image's file, where it came from one.
    positions : ndarray of int64, shape (n_test,), or None
        Each image's place among those that were passed in, counted from 0; skipped ones leave gaps.
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
            The answered class's share of the votes; how far that is ahead of the second class's share; or the
            distance to the nearest neighbour.

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

    def to_frame(self) -> DataFrame:
        """Return the single answers as a ``pandas.DataFrame`` with a row for each image that was answered.

        Returns
        -------
        pandas.DataFrame
            Columns ``source`` (the file, or None), ``true``, ``predicted``, ``correct``, ``share``,
            ``margin`` and ``distance``. The index, ``position``, is each image's place among those that were
            passed in, so that skipped ones leave gaps in it.

        Raises
        ------
        MissingDependencyError
            If pandas is not installed.
        """
        columns = self._columns()
        return data_frame(columns, columns.pop("position"), "position")

    def to_csv(self, path: str | Path | None = None) -> str:
        """Return the single answers as CSV with a line of names, and write it to `path` if one is given.

        The columns are ``position`` and those of `to_frame`. File names and labels stand there exactly as
        they are, for programs: a spreadsheet takes what begins with ``=``, ``+``, ``-`` or ``@`` for a
        formula.

        Parameters
        ----------
        path : str or Path, optional
            Written atomically, in UTF-8. Bytes of a file name that are no text are written as escapes.

        Raises
        ------
        InvalidInputError
            If the file cannot be written.
        """
        columns = self._columns()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        encodable = text.getvalue().encode("utf-8", "backslashreplace").decode("utf-8")
        return written(path, encodable.removesuffix("\n"), "table")

    def _columns(self) -> dict[str, Any]:
        """Return the single answers by column; what the report does not have is None."""
        nothing = [None] * self.n_test
        return {
            "position": np.arange(self.n_test) if self.positions is None else self.positions,
            "source": nothing if self.sources is None else list(self.sources),
            "true": self.y_true,
            "predicted": self.y_pred,
            "correct": self.correct,
            "share": nothing if self.confidence is None else self.confidence,
            "margin": nothing if self.margin is None else self.margin,
            "distance": self.distances,
        }

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
        from clipretrieval.evaluation.page.render import render_page

        return written(path, render_page([(None, self)], title=title, pictures=pictures))

    def plot_distances(self, ax: Axes | None = None, *, bins: int = 40) -> Axes:
        """Draw the histograms of the distance of correct and of incorrect answers; see `plots`."""
        from clipretrieval.evaluation import plots

        return plots.plot_distances(self, ax, bins=bins)

    def plot_risk_coverage(self, ax: Axes | None = None, *, by: str = "distance") -> Axes:
        """Draw the risk over the coverage by one measure of confidence; see `plots`."""
        from clipretrieval.evaluation import plots

        return plots.plot_risk_coverage(self, ax, by=by)

    def plot_deciles(self, ax: Axes | None = None, *, by: str = "distance") -> Axes:
        """Draw the accuracy of each tenth by one measure of confidence; see `plots`."""
        from clipretrieval.evaluation import plots

        return plots.plot_deciles(self, ax, by=by)

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

    def __repr__(self) -> str:
        facts = {name: self.setting.get(name) for name in ("stage", "store", "k")}
        known = {name: value for name, value in facts.items() if value is not None}
        return short_repr(
            self, accuracy=self.accuracy, n_test=self.n_test, classes=len(self.classes), **known
        )

    def _repr_html_(self) -> str:
        from clipretrieval.evaluation.notebook import report_html

        return report_html(self)
