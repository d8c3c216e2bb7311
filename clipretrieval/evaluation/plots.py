"""A report's figures as matplotlib charts; each returns the axes that it drew on.

matplotlib is an extra, ``pip install "clipretrieval[plots]"``, and is imported when the first chart is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from clipretrieval._util.text import shortened
from clipretrieval.errors import InvalidInputError, MissingDependencyError
from clipretrieval.evaluation.words import distance_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from clipretrieval.evaluation.report import EvaluationReport

__all__ = ["plot_calibration", "plot_confusion", "plot_deciles", "plot_distances", "plot_risk_coverage"]

RIGHT, WRONG = "#1f6fb2", "#c8501e"

NAMED_CLASSES = 30
"""Classes up to which the confusion matrix names them."""
COUNTED_CLASSES = 12
"""Classes up to which the confusion matrix shows its counts."""
DRAWN_CELLS = 1000
"""Cells along an edge of the confusion matrix at most; of more classes, neighbours share one."""


def plot_distances(report: EvaluationReport, ax: Axes | None = None, *, bins: int = 40) -> Axes:
    """Draw the histograms of the distance of correct and of incorrect answers.

    Parameters
    ----------
    report : EvaluationReport
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
    ax = _axes(ax)
    found = report.distance_histogram(bins)
    ax.stairs(found.right, found.edges, fill=True, alpha=0.35, color=RIGHT, label="correct")
    ax.stairs(found.right, found.edges, color=RIGHT)
    ax.stairs(found.wrong, found.edges, color=WRONG, fill=False, hatch="////", label="incorrect")
    ax.set(xlabel=distance_axis(report), ylabel="answers")
    ax.legend()
    return ax


def plot_risk_coverage(report: EvaluationReport, ax: Axes | None = None, *, by: str = "distance") -> Axes:
    """Draw the share of incorrect answers over the share that is kept.

    Parameters
    ----------
    report, ax
        As for `plot_distances`.
    by : {"distance", "share", "margin"}
        The measure of confidence by which the least sure are withheld first.

    Raises
    ------
    InvalidInputError
        If the report does not have that measure.
    MissingDependencyError
        If matplotlib is not installed.
    """
    ax = _axes(ax)
    curve = report.reliability(by).risk_coverage
    ax.plot(curve.coverage, curve.risk, color=RIGHT, label=f"by {by}, area {curve.area:.4f}")
    ax.axhline(1 - report.accuracy, color="0.5", linestyle="--", label="at random")
    ax.set(xlabel="share of answers kept", ylabel="share of incorrect answers among them", xlim=(0, 1))
    ax.set_ylim(bottom=0)
    ax.legend()
    return ax


def plot_deciles(report: EvaluationReport, ax: Axes | None = None, *, by: str = "distance") -> Axes:
    """Draw the accuracy of each tenth with its interval; arguments as for `plot_risk_coverage`."""
    ax = _axes(ax)
    deciles = report.reliability(by).deciles
    places = [row["decile"] for row in deciles]
    heights = np.array([row["accuracy"] for row in deciles])
    # Rounding may put the interval's end a hair within the accuracy.
    below = np.maximum(heights - [row["low"] for row in deciles], 0)
    above = np.maximum([row["high"] for row in deciles] - heights, 0)
    ax.bar(places, heights, color=RIGHT, yerr=[below, above], capsize=3)
    ax.set(xlabel=f"tenth of the answers by {by}, the surest first", ylabel="accuracy", ylim=(0, 1))
    ax.set_xticks(range(1, 11))
    return ax


def plot_calibration(report: EvaluationReport, ax: Axes | None = None) -> Axes:
    """Draw the accuracy over the confidence; arguments as for `plot_distances`.

    Raises
    ------
    InvalidInputError
        If the report has no confidence.
    MissingDependencyError
        If matplotlib is not installed.
    """
    curve = report.calibration
    if curve is None:
        raise InvalidInputError(
            "this report has no confidence to compare with; make it with `evaluate`, which notes the shares"
        )
    ax = _axes(ax)
    ax.plot([0, 1], [0, 1], color="0.5", linestyle="--", label="perfect")
    ax.plot(curve.confidence, curve.accuracy, "o-", color=RIGHT, label=f"ECE {curve.ece:.4f}")
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.legend()
    return ax


def plot_confusion(report: EvaluationReport, ax: Axes | None = None) -> Axes:
    """Draw the confusion matrix, each row in parts of its class; arguments as for `plot_distances`.

    Of more than 1,000 classes, as many neighbours in their order share a row and a column as are needed.
    """
    ax = _axes(ax)
    n_classes = len(report.classes)
    side = -(-n_classes // DRAWN_CELLS)
    matrix = report._confusion.matrix(side)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    end = side * len(matrix) - 0.5
    image = ax.imshow(shares, vmin=0, vmax=1, cmap="Blues", extent=(-0.5, end, end, -0.5))
    figure = ax.get_figure()
    if figure is not None:
        figure.colorbar(image, ax=ax, label="share of the class" if side == 1 else f"share of {side} classes")
    if n_classes <= NAMED_CLASSES:
        # Dollars would begin a formula.
        names = [shortened(label, 24).replace("$", r"\$") for label in report.classes.tolist()]
        ax.set_xticks(range(len(names)), names, rotation=90)
        ax.set_yticks(range(len(names)), names)
    if n_classes <= COUNTED_CLASSES:
        for (row, column), count in np.ndenumerate(matrix):
            ink = "white" if shares[row, column] > 0.5 else "black"
            ax.text(column, row, f"{count}", ha="center", va="center", color=ink)
    ax.set(xlabel="answer", ylabel="true class")
    return ax


def _axes(ax: Axes | None) -> Any:
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise MissingDependencyError(
            'plots need matplotlib, which is not installed; run: pip install "clipretrieval[plots]"',
            name=error.name,
        ) from error
    return pyplot.subplots(layout="constrained")[1] if ax is None else ax
