"""What an evaluation found, ready to be read, compared and written down."""

from __future__ import annotations

import csv
import io
import math
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipretrieval._util.files import write_report
from clipretrieval._util.foreign import data_frame
from clipretrieval._util.repr import short_repr
from clipretrieval._util.text import json_document
from clipretrieval._version import __version__
from clipretrieval.errors import InvalidInputError
from clipretrieval.evaluation import charts, plots
from clipretrieval.evaluation.figures import Figures, timed_parts
from clipretrieval.evaluation.metrics import summarise_distances
from clipretrieval.evaluation.reliability import Reliability
from clipretrieval.evaluation.text import notebook_html, report_markdown, report_text
from clipretrieval.evaluation.words import counts_votes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

__all__ = ["SCHEMA_VERSION", "EvaluationReport"]

SCHEMA_VERSION = 1
"""Raised when a field goes or changes its meaning; new fields leave it as it is."""

CURVE_POINTS = 200
"""The most points of the risk-coverage curve that are written down."""

WHOLE_MATRIX = 1000
"""Classes up to which the whole confusion matrix is written down."""

_PACKAGES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "onnxruntime",
    "openvino",
    "numpy",
    "faiss-cpu",
    "scikit-learn",
    "pillow",
)


@dataclass(frozen=True, eq=False)
class EvaluationReport(Figures):
    """A classifier's answers on labeled images, and what follows from them.

    Attributes
    ----------
    y_true, y_pred : ndarray, shape (n_test,)
    distances : ndarray of float32, shape (n_test,)
        From each image to its nearest neighbor, in the store's metric; ``+inf`` where there was none.
    classes : ndarray, shape (n_classes,)
        Every label fitted or met, sorted.
    setting : mapping
        ``n_train``, ``model``, ``pretrained``, ``stage``, ``plan``, ``dim``, ``store``, ``metric``, ``head``;
        ``k`` where it reads neighbors, and ``weights`` where they vote.
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
    ece_before : float or None
        The expected calibration error of the head's own probabilities, where the classifier is calibrated.
    unknown : UnknownFigures or None
        How well images of no class are known as such, where any were given.
    """

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
        return write_report(path, encodable.removesuffix("\n"), "table")

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
        confusion, calibration = self._confusion, self.calibration
        histogram = self.distance_histogram()
        return {
            "schema_version": SCHEMA_VERSION,
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.accuracy_interval),
            **self.macro,
            "n_test": self.n_test,
            "n_skipped": len(self.skipped),
            **self.setting,
            "classes": self.classes.tolist(),
            "per_class": self.per_class,
            "confusion_matrix": confusion.matrix().tolist() if confusion.n_classes <= WHOLE_MATRIX else None,
            "confusion_cells": {
                "true": confusion.true.tolist(),
                "answer": confusion.answer.tolist(),
                "count": confusion.count.tolist(),
            },
            "distances": {
                "right": summarise_distances(self.distances[self.correct]).to_dict(),
                "wrong": summarise_distances(self.distances[~self.correct]).to_dict(),
            },
            "histogram": {
                "edges": histogram.edges.tolist(),
                "right": histogram.right.tolist(),
                "wrong": histogram.wrong.tolist(),
            },
            # What the distance tells stands at the top too, as it did before there were other measures.
            "reliability": {
                **_reliability_values(self.reliability("distance")),
                "best_measure": self.best_measure,
                "by": {by: _reliability_values(found) for by, found in self.reliabilities.items()},
            },
            "calibration": None
            if calibration is None
            else {
                "ece": calibration.ece,
                "ece_before": self.ece_before,
                "mce": calibration.mce,
                "bins": calibration.rows(),
            },
            "unknown": None if self.unknown is None else self.unknown.to_dict(),
            "mistakes": [mistake.to_dict() for mistake in self.mistakes],
            "timing": _timing_values(self),
            "versions": _versions(),
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """Return `to_dict` as JSON, and write it to `path`, atomically, if one is given.

        Raises
        ------
        InvalidInputError
            If the file cannot be written.
        """
        return write_report(path, json_document(self.to_dict(), 2))

    def to_markdown(self, path: str | Path | None = None) -> str:
        """Return the report as Markdown, and write it to `path`, atomically, if one is given.

        Raises
        ------
        InvalidInputError
            If the file cannot be written.
        """
        return write_report(path, report_markdown(self))

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
        images : bool
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

        return write_report(path, render_page([(None, self)], title=title, pictures=pictures))

    def plot_distances(self, ax: Axes | None = None, *, bins: int = 40) -> Axes:
        """Draw the histograms of the distance of correct and of incorrect answers.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            A figure is made where there is none.
        bins : int

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        MissingDependencyError
            If matplotlib is not installed.
        """
        return plots.draw_chart(charts.histogram_chart(self, bins=bins), ax)

    def plot_risk_coverage(self, ax: Axes | None = None, *, by: str = "distance") -> Axes:
        """Draw the share of incorrect answers over the share that is kept.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            A figure is made where there is none.
        by : {"distance", "share", "margin"}
            The measure of confidence by which the least sure are withheld first.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        InvalidInputError
            If the report does not have that measure.
        MissingDependencyError
            If matplotlib is not installed.
        """
        return plots.draw_chart(charts.risk_chart(self, by), ax)

    def plot_deciles(self, ax: Axes | None = None, *, by: str = "distance") -> Axes:
        """Draw the accuracy of each tenth, with its interval; arguments as for `plot_risk_coverage`."""
        return plots.draw_chart(charts.decile_chart(self, by), ax)

    def plot_calibration(self, ax: Axes | None = None) -> Axes:
        """Draw the accuracy over the confidence; arguments as for `plot_distances`.

        Raises
        ------
        InvalidInputError
            If the report has no confidence.
        MissingDependencyError
            If matplotlib is not installed.
        """
        chart = charts.calibration_chart(self)
        if chart is None:
            raise InvalidInputError(
                "this report has no confidence to compare with; make it with `evaluate`, which notes the "
                "shares"
            )
        return plots.draw_chart(chart, ax)

    def plot_confusion(self, ax: Axes | None = None) -> Axes:
        """Draw the confusion matrix, each row in parts of its class; arguments as for `plot_distances`.

        Of more than 1,000 classes, as many neighbors in their order share a row and a column as are needed.
        """
        return plots.draw_confusion(self, ax)

    def __str__(self) -> str:
        return report_text(self)

    def __repr__(self) -> str:
        named = ("stage", "store", "k") if counts_votes(self) else ("stage", "store", "head", "k")
        facts = {name: self.setting.get(name) for name in named}
        known = {name: value for name, value in facts.items() if value is not None}
        return short_repr(
            self, accuracy=self.accuracy, n_test=self.n_test, classes=len(self.classes), **known
        )

    def _repr_html_(self) -> str:
        return notebook_html(self)


def _reliability_values(found: Reliability) -> dict[str, Any]:
    curve = found.risk_coverage
    few = curve.thinned(CURVE_POINTS)
    return {
        "error_auroc": _finite_or_none(found.error_auroc),
        "risk_coverage": {
            "area": curve.area,
            "best_area": curve.best_area,
            "points": [
                {"threshold": _finite_or_none(threshold), "kept": kept, "errors": errors}
                for threshold, kept, errors in zip(
                    few.thresholds.tolist(), few.kept.tolist(), few.errors.tolist(), strict=True
                )
            ],
        },
        "deciles": [
            {**row, "min": _finite_or_none(row["min"]), "max": _finite_or_none(row["max"])}
            for row in found.deciles
        ],
    }


def _timing_values(report: EvaluationReport) -> dict[str, Any] | None:
    """Return what was timed; None for a report whose passes were shared with others."""
    if not (report.seconds or report.fit_seconds or any(timed_parts(report))):
        return None
    return {
        "fit_s": report.fit_seconds,
        "encode_s": report.timing.seconds.get("encode", 0.0),
        "search_s": report.timing.seconds.get("search", 0.0),
        "total_s": report.fit_seconds + report.seconds,
        "parts": {
            name: {
                "seconds": timing.seconds.get(part, 0.0),
                "images": timing.images.get(part, 0),
                "images_per_second": timing.rate(part),
            }
            for name, part, timing in timed_parts(report)
        },
    }


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _versions() -> dict[str, str]:
    found = {"clipretrieval": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
