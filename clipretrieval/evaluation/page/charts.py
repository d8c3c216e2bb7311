"""The charts of the HTML page, each drawn once into SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from markupsafe import Markup

from clipretrieval._util.text import shortened
from clipretrieval.evaluation.page.svg import BOTTOM, HEIGHT, TOP, Frame, number
from clipretrieval.evaluation.reliability import distance_histogram
from clipretrieval.evaluation.words import measure_axis, measure_name, value_words

if TYPE_CHECKING:
    from clipretrieval.evaluation.reliability import RiskCoverage
    from clipretrieval.evaluation.report import EvaluationReport

__all__ = ["calibration_chart", "decile_chart", "histogram_chart", "risk_chart", "time_chart"]

CURVE_POINTS = 400
"""The most points of a curve: more than a screen can tell apart."""

SHARE_BINS = 20
"""Of the histograms of shares and margins, from 0 to 1."""

LINE = 13
"""Between the names of two points, in the charts' units."""

NAME = 25
"""The most letters of a name beside its point."""

_ISOLATED = "\u2068{}\u2069"  # a name's direction must not turn what stands around it


def histogram_chart(report: EvaluationReport, by: str = "distance") -> Markup:
    """Draw how many correct and incorrect answers have which value of a measure."""
    measured = report.reliability(by)
    if by == "distance":
        found, text = report.distance_histogram(), number
    else:
        found = distance_histogram(measured.values, measured.correct, SHARE_BINS, (0.0, 1.0))
        text = _share
    frame = Frame((found.edges[0], found.edges[-1]), (0, max(1, found.right.max(), found.wrong.max()) * 1.05))
    inside = (
        frame.axes(measure_axis(report, by), "answers", x_text=text)
        + frame.steps(found.edges, found.right, "right area")
        + frame.steps(found.edges, found.wrong, "wrong area hatched")
        + Markup('<path class="threshold" d="M0 {}V{}" hidden/>').format(TOP, HEIGHT - BOTTOM)
    )
    told = [
        f"{name} answers: {counts.sum():,}, median {value_words(by, float(np.median(values)))}"
        for name, counts, values in (
            ("correct", found.right, measured.values[report.correct]),
            ("incorrect", found.wrong, measured.values[~report.correct]),
        )
        if len(values)
    ]
    told_of = f"Histograms of the {measure_axis(report, by)}; {'; '.join(told)}."
    return frame.whole(inside, told_of, "histogram")


def risk_chart(report: EvaluationReport, by: str = "distance") -> Markup:
    """Draw the share of incorrect answers over the share of answers kept, the surest kept first."""
    whole = report.reliability(by).risk_coverage
    curve = whole.thinned(CURVE_POINTS)
    error = 1 - report.accuracy
    # The first few answers alone may be all wrong, and would flatten all the rest.
    settled = whole.risk[whole.coverage >= 0.02]
    top = min(1.0, max(0.01, float(settled.max()), error) * 1.1)
    frame = Frame((0.0, 1.0), (0.0, top))
    grid = np.linspace(0.01, 1, 100)
    best = np.maximum(0.0, (grid - report.accuracy) / grid)
    inside = (
        frame.axes("answers kept", "incorrect among them", x_text=_share, y_text=_share)
        + frame.line([0, 1], [error, error], "faint dashed")
        + frame.line(grid, best, "faint")
        + frame.line(curve.coverage, np.minimum(curve.risk, top), "main")
        + _circle("marker", 5, frame.across(1), frame.up(error))
    )
    surest = [f"of the surest {share:.0%}, {_risk_at(whole, share):.1%}" for share in (0.75, 0.5, 0.25)]
    told = f"Risk-coverage curve: of all answers {error:.1%} are incorrect; {'; '.join(surest)}."
    return frame.whole(inside, told, "risk")


def decile_chart(report: EvaluationReport, by: str = "distance") -> Markup:
    """Draw the accuracy of each tenth of the answers, with its interval."""
    frame = Frame((0.5, 10.5), (0.0, 1.0))
    inside = frame.axes("tenth of the answers, surest first", "correct answers", y_text=_share, most=10)
    base, deciles = frame.up(0), report.reliability(by).deciles
    for row in deciles:
        x = frame.across(row["decile"])
        inside += Markup(
            '<rect class="right solid" x="{:.1f}" y="{:.1f}" width="22" height="{:.1f}"/>'
            '<path class="whisker" d="M{:.1f} {:.1f}V{:.1f}"/>'
        ).format(
            *(x - 11, frame.up(row["accuracy"]), base - frame.up(row["accuracy"])),
            *(x, frame.up(row["low"]), frame.up(row["high"])),
        )
    told = ", ".join(f"{row['decile']}: {row['accuracy']:.1%}" for row in deciles)
    return frame.whole(inside, f"Accuracy of each tenth of the answers by {by}; {told}.", "deciles")


def calibration_chart(report: EvaluationReport) -> Markup:
    """Draw the accuracy over the confidence; a circle's area goes with the answers of its bin."""
    curve = report.calibration
    if curve is None:
        return Markup("")
    frame = Frame((0.0, 1.0), (0.0, 1.0))
    inside = frame.axes(measure_name(report, "share"), "correct answers", x_text=_share, y_text=_share)
    inside += frame.line([0, 1], [0, 1], "faint dashed")
    inside += frame.line(curve.confidence, curve.accuracy, "main")
    for confidence, accuracy, count in zip(curve.confidence, curve.accuracy, curve.count, strict=True):
        radius = 3 + 7 * math.sqrt(count / curve.count.max())
        inside += _circle("right area", radius, frame.across(confidence), frame.up(accuracy))
    told = f"Calibration curve; expected calibration error {curve.ece:.4f}, at most {curve.mce:.4f} in a bin."
    return frame.whole(inside, told, "calibration")


def time_chart(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Draw accuracy over the time for 1,000 images, inference and query together; empty without times."""
    timed = [(row, _seconds(row)) for row in rows if _known(row.get("accuracy"))]
    placed = [(row, time) for row, time in timed if time is not None]
    if not placed:
        return Markup("")
    reached = [row.get(name) for row, _ in placed for name in ("accuracy", "low", "high")]
    known = [float(value) for value in reached if _known(value)]
    low, high = min(known), max(known)
    room = max(0.02, (high - low) * 0.15)
    slowest = max(time for _, time in placed) or 1.0
    # The names stand to the right of all points; the longest have as much room as these.
    needed = TOP + BOTTOM + LINE * len(placed)
    frame = Frame((0.0, slowest * 2.0), (max(0, low - room), min(1, high + room)), max(HEIGHT, needed))
    inside = frame.axes("seconds for 1,000 images", "correct answers", y_text=_share)
    points = [(frame.across(time), frame.up(row["accuracy"]), _named(row)) for row, time in placed]
    inside += _labels(points, frame.across(slowest) + 16, frame.height)
    for (row, time), (x, y, _) in zip(placed, points, strict=True):
        if _known(row.get("low")) and _known(row.get("high")):
            inside += frame.line([time, time], [row["low"], row["high"]], "whisker")
        inside += _circle("dot", 5, x, y)
    told = "; ".join(f"{_named(row)}: {row['accuracy']:.1%} in {number(time)} s" for row, time in placed)
    return frame.whole(inside, f"Accuracy over time for 1,000 images; {told}.", "time")


def _circle(css: str, radius: float, x: float, y: float) -> Markup:
    return Markup('<circle class="{}" r="{:.1f}" cx="{:.1f}" cy="{:.1f}"/>').format(css, radius, x, y)


def _labels(points: list[tuple[float, float, str]], left: float, height: float) -> Markup:
    """Write the points' names below each other at the right, each with a line to its point."""
    drawn, below = Markup(""), height - BOTTOM + LINE / 2
    # From the lowest upwards; where the uppermost would leave the chart, all begin further down.
    ordered = sorted(points, key=lambda point: -point[1])
    for place, (x, y, text) in enumerate(ordered):
        above = len(ordered) - place - 1
        level = max(min(y, below - LINE), TOP + above * LINE)
        below = level
        drawn += Markup('<path class="leader" d="M{:.1f} {:.1f}L{:.1f} {:.1f}H{:.1f}"/>').format(
            x, y, left - 10, level, left - 3
        ) + Markup('<text class="label" x="{:.1f}" y="{:.1f}">{}</text>').format(
            left, level + 4, _ISOLATED.format(text)
        )
    return drawn


def _seconds(row: Mapping[str, Any]) -> float | None:
    """Return the time that a row gives; what it does not tell counts nothing."""
    times = [row.get(name) for name in ("inference_s_per_1000", "query_s_per_1000")]
    known = [float(time) for time in times if _known(time)]
    return sum(known) if known else None


def _known(value: Any) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _named(row: Mapping[str, Any]) -> str:
    return shortened(row.get("name") or row.get("stage") or "-", NAME)


def _risk_at(curve: RiskCoverage, share: float) -> float:
    return float(curve.risk[np.searchsorted(curve.coverage, share)])


def _share(value: float) -> str:
    return f"{value * 100:.4g}%"
