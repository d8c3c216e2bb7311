"""A report's charts drawn with matplotlib.

matplotlib is an extra, ``pip install "clipretrieval[plots]"``, and is imported when the first chart is drawn.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from clipretrieval._util.dependencies import require
from clipretrieval._util.text import shortened
from clipretrieval.evaluation.charts import Bars, Chart, Level, Steps
from clipretrieval.evaluation.figures import Figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_chart", "draw_confusion"]

RIGHT, WRONG = "#1f6fb2", "#c8501e"
REFERENCE: dict[str, Any] = {"color": "0.5", "linestyle": "--"}

NAMED_CLASSES = 30
"""Classes up to which the confusion matrix names them."""
COUNTED_CLASSES = 12
"""Classes up to which the confusion matrix shows its counts."""
DRAWN_CELLS = 1000
"""Cells along an edge of the confusion matrix at most; of more classes, neighbors share one."""


def draw_chart(chart: Chart, ax: Axes | None = None) -> Axes:
    """Draw a chart on axes, those of a new figure where none are given, and return them.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    """
    ax = _axes(ax)
    margin = 0.0
    for mark in chart.marks:
        if isinstance(mark, Steps) and mark.name == "correct":
            ax.stairs(mark.counts, mark.edges, fill=True, alpha=0.35, color=RIGHT, label=mark.name)
            ax.stairs(mark.counts, mark.edges, color=RIGHT)
        elif isinstance(mark, Steps):
            ax.stairs(mark.counts, mark.edges, color=WRONG, fill=False, hatch="////", label=mark.name)
        elif isinstance(mark, Level):
            ax.axhline(mark.y, label=mark.name, **REFERENCE)
        elif isinstance(mark, Bars):
            # Rounding may put the interval's end a hair within the height.
            below = np.maximum(mark.heights - mark.lows, 0)
            above = np.maximum(mark.highs - mark.heights, 0)
            ax.bar(mark.places, mark.heights, color=RIGHT, yerr=[below, above], capsize=3)
            ax.set_xticks(range(math.ceil(chart.x.low), math.floor(chart.x.high) + 1))
        elif mark.role == "reference":
            ax.plot(mark.xs, mark.ys, label=mark.name, **REFERENCE)
        elif mark.role == "measured":
            ax.plot(mark.xs, mark.ys, "-" if mark.counts is None else "o-", color=RIGHT, label=mark.name)
            margin = 0.0 if mark.counts is None else 0.02  # a point at an end is seen whole
        # The best order that there could be is left to the page, whose caption says what it is.
    ax.set(xlabel=chart.x.alone or chart.x.label, ylabel=chart.y.alone or chart.y.label)
    if chart.x.shares:
        ax.set_xlim(chart.x.low - margin, chart.x.high + margin)
    if chart.y.clipped:
        ax.set_ylim(bottom=chart.y.low)
    elif chart.y.shares:
        ax.set_ylim(chart.y.low - margin, chart.y.high + margin)
    if not any(isinstance(mark, Bars) for mark in chart.marks):
        ax.legend()
    return ax


def draw_confusion(report: Figures, ax: Axes | None = None) -> Axes:
    """Draw the confusion matrix; see `EvaluationReport.plot_confusion`."""
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
    pyplot = require("matplotlib.pyplot", "a plot", 'run: pip install "clipretrieval[plots]"')
    return pyplot.subplots(layout="constrained")[1] if ax is None else ax
