"""A report's charts, each described once: the page draws them as SVG, `plots` with matplotlib."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from clipretrieval.evaluation.figures import Figures
from clipretrieval.evaluation.reliability import distance_histogram
from clipretrieval.evaluation.words import measure_axis, measure_name, value_words

__all__ = [
    *("Axis", "Bars", "Chart", "Curve", "Level", "Steps"),
    *("calibration_chart", "decile_chart", "histogram_chart", "risk_chart"),
]

SHARE_BINS = 20
"""Of the histograms of shares and margins, from 0 to 1."""

Values: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Axis:
    """What a chart measures in one direction.

    Attributes
    ----------
    label : str
        Below a caption and beside percentages.
    low, high : float
        What the axis reaches from and to.
    shares : bool
        Whether the values are parts of a whole.
    alone : str
        The label of a chart that has no caption, whose shares are fractions; empty where it is the same.
    ticks : int
        The most of them.
    clipped : bool
        Whether values beyond `high` may be left out of sight.
    """

    label: str
    low: float
    high: float
    shares: bool = False
    alone: str = ""
    ticks: int = 6
    clipped: bool = False


@dataclass(frozen=True, eq=False)
class Curve:
    """A line through points.

    Attributes
    ----------
    xs, ys : ndarray
    role : {"measured", "reference", "best"}
        The figures themselves, what they are held against, or the best that there could be.
    name : str
        In a legend; empty for none.
    counts : ndarray of int, optional
        Answers that each point stands for, where the points are to be seen.
    """

    xs: Values
    ys: Values
    role: str
    name: str = ""
    counts: Values | None = None


@dataclass(frozen=True)
class Level:
    """A horizontal line to hold curves against."""

    y: float
    name: str


@dataclass(frozen=True, eq=False)
class Steps:
    """The outline of a histogram: of "correct" answers, or of "incorrect" ones."""

    edges: Values
    counts: Values
    name: str


@dataclass(frozen=True, eq=False)
class Bars:
    """Heights, each with the interval that it lies in."""

    places: Values
    heights: Values
    lows: Values
    highs: Values


@dataclass(frozen=True)
class Chart:
    """A chart: its axes, what is drawn between them, and a sentence for those who cannot see it.

    Attributes
    ----------
    key : {"histogram", "risk", "deciles", "calibration"}
    x, y : Axis
    marks : tuple of Curve, Level, Steps or Bars
    summary : str
    """

    key: str
    x: Axis
    y: Axis
    marks: tuple[Curve | Level | Steps | Bars, ...]
    summary: str


def histogram_chart(report: Figures, by: str = "distance", *, bins: int = 40) -> Chart:
    """Describe how many correct and incorrect answers have which value of a measure."""
    measured = report.reliability(by)
    if by == "distance":
        found = report.distance_histogram(bins)
    else:
        found = distance_histogram(measured.values, measured.correct, SHARE_BINS, (0.0, 1.0))
    axis = measure_axis(report, by)
    told = [
        f"{name} answers: {counts.sum():,}, median {value_words(by, float(np.median(values)))}"
        for name, counts, values in (
            ("correct", found.right, measured.values[report.correct]),
            ("incorrect", found.wrong, measured.values[~report.correct]),
        )
        if len(values)
    ]
    most = max(1, found.right.max(), found.wrong.max())
    return Chart(
        "histogram",
        Axis(axis, float(found.edges[0]), float(found.edges[-1]), shares=by != "distance"),
        Axis("answers", 0.0, float(most * 1.05)),
        (Steps(found.edges, found.right, "correct"), Steps(found.edges, found.wrong, "incorrect")),
        f"Histograms of the {axis}; {'; '.join(told)}.",
    )


def risk_chart(report: Figures, by: str = "distance", *, points: int | None = None) -> Chart:
    """Describe the share of incorrect answers over the share of answers kept, the surest kept first.

    Parameters
    ----------
    report : Figures
    by : str
    points : int, optional
        The most points of the curve.
    """
    whole = report.reliability(by).risk_coverage
    curve = whole if points is None else whole.thinned(points)
    coverage, error = whole.coverage, 1 - report.accuracy
    # The first few answers alone may be all wrong, and would flatten all the rest.
    settled = whole.risk[coverage >= 0.02]
    top = min(1.0, max(0.01, float(settled.max()), error) * 1.1)
    grid = np.linspace(0.01, 1, 100)
    surest = [
        f"of the surest {share:.0%}, {whole.risk[np.searchsorted(coverage, share)]:.1%}"
        for share in (0.75, 0.5, 0.25)
    ]
    return Chart(
        "risk",
        Axis("answers kept", 0.0, 1.0, shares=True, alone="share of answers kept"),
        Axis(
            "incorrect among them",
            *(0.0, top),
            shares=True,
            alone="share of incorrect answers among them",
            clipped=True,
        ),
        (
            Curve(curve.coverage, curve.risk, "measured", f"by {by}, area {whole.area:.4f}"),
            Level(error, "at random"),
            Curve(grid, np.maximum(0.0, (grid - report.accuracy) / grid), "best"),
        ),
        f"Risk-coverage curve: of all answers {error:.1%} are incorrect; {'; '.join(surest)}.",
    )


def decile_chart(report: Figures, by: str = "distance") -> Chart:
    """Describe the accuracy of each tenth of the answers, with its interval."""
    rows = report.reliability(by).deciles
    told = ", ".join(f"{row['decile']}: {row['accuracy']:.1%}" for row in rows)
    columns = [np.array([row[name] for row in rows]) for name in ("decile", "accuracy", "low", "high")]
    return Chart(
        "deciles",
        Axis(
            "tenth of the answers, surest first",
            *(0.5, 10.5),
            alone=f"tenth of the answers by {by}, the surest first",
            ticks=10,
        ),
        Axis("correct answers", 0.0, 1.0, shares=True, alone="accuracy"),
        (Bars(*columns),),
        f"Accuracy of each tenth of the answers by {by}; {told}.",
    )


def calibration_chart(report: Figures) -> Chart | None:
    """Describe the accuracy over the confidence; None where the report has no confidence."""
    curve = report.calibration
    if curve is None:
        return None
    ends = np.array([0.0, 1.0])
    return Chart(
        "calibration",
        Axis(measure_name(report, "share"), 0.0, 1.0, shares=True, alone="confidence"),
        Axis("correct answers", 0.0, 1.0, shares=True, alone="accuracy"),
        (
            Curve(ends, ends, "reference", "perfect"),
            Curve(curve.confidence, curve.accuracy, "measured", f"ECE {curve.ece:.4f}", curve.count),
        ),
        f"Calibration curve; expected calibration error {curve.ece:.4f}, at most {curve.mce:.4f} in a bin.",
    )
