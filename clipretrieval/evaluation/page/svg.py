"""The page's charts as SVG. Colors come from the page's style, and follow its theme."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from markupsafe import Markup

from clipretrieval._util.text import shortened
from clipretrieval.evaluation.charts import Axis, Bars, Chart, Curve, Level, Steps
from clipretrieval.evaluation.words import number_words

__all__ = ["Frame", "cost_chart", "draw_svg", "exits_chart", "ticks", "time_chart"]

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 20, 12, 44

LINE = 13
"""Between the names of two points, in the charts' units."""

NAME = 25
"""The most letters of a name beside its point."""

_STEPS = (1, 2, 2.5, 5, 10)
_CURVES = {"reference": "faint dashed", "best": "faint", "measured": "main"}
"""The style of a curve by its role; those further down lie above the others."""
_HISTOGRAMS = {"correct": "right area", "incorrect": "wrong area hatched"}
_ISOLATED = "\u2068{}\u2069"  # a name's direction must not turn what stands around it


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers from `low` to `high`, at most so many."""
    if not high > low:
        return [low]
    rough = (high - low) / (most - 1)
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * each for each in _STEPS if scale * each >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{place * step:.12g}") for place in range(first, last + 1)]


@dataclass(frozen=True)
class Frame:
    """The plane of a chart.

    Attributes
    ----------
    x, y : Axis
    height : float
        In the chart's units, of which the width is 400.
    """

    x: Axis
    y: Axis
    height: float = HEIGHT

    def across(self, value: float) -> float:
        """Return where a value lies horizontally, in the chart's units."""
        return _place_on(self.x, value, LEFT, WIDTH - RIGHT)

    def up(self, value: float) -> float:
        """Return where a value lies vertically, in the chart's units; downwards is more."""
        return _place_on(self.y, value, self.height - BOTTOM, TOP)

    def axes(self) -> Markup:
        """Draw the grid, the ticks and the labels."""
        left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, self.height - BOTTOM
        across = [
            Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(left, self.up(value), right)
            + _text_at(left - 6, self.up(value) + 4, _tick_text(self.y, value), "end")
            for value in ticks(self.y.low, self.y.high, most=5)
        ]
        below = [
            _text_at(self.across(value), bottom + 17, _tick_text(self.x, value), "mid")
            for value in ticks(self.x.low, self.x.high, most=self.x.ticks)
        ]
        upright = Markup('<text transform="translate(12 {}) rotate(-90)" class="mid">{}</text>')
        return Markup("").join(
            [
                *across,
                *below,
                Markup('<path class="axis" d="M{} {}H{}"/>').format(left, bottom, right),
                _text_at((left + right) / 2, self.height - 8, self.x.label, "mid"),
                upright.format((top + bottom) / 2, self.y.label),
            ]
        )

    def line(self, xs: Iterable[float], ys: Iterable[float], css: str) -> Markup:
        """Draw a line through some points, no higher than the frame."""
        path = "L".join(
            f"{self.across(x):.1f} {self.up(min(y, self.y.high)):.1f}" for x, y in zip(xs, ys, strict=True)
        )
        return Markup('<path class="{}" d="M{}"/>').format(css, path)

    def steps(self, edges: Iterable[float], heights: Iterable[float], css: str) -> Markup:
        """Draw the outline of a histogram."""
        places = np.repeat([self.across(edge) for edge in edges], 2)
        tops = [self.up(0), *np.repeat([self.up(height) for height in heights], 2), self.up(0)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(places, tops, strict=True))
        return Markup('<path class="{}" d="M{}Z"/>').format(css, path)

    def bars(self, bars: Bars) -> Markup:
        """Draw bars with whiskers."""
        drawn, base = Markup(""), self.up(0)
        for place, height, low, high in zip(bars.places, bars.heights, bars.lows, bars.highs, strict=True):
            x = self.across(place)
            drawn += Markup(
                '<rect class="right solid" x="{:.1f}" y="{:.1f}" width="22" height="{:.1f}"/>'
                '<path class="whisker" d="M{:.1f} {:.1f}V{:.1f}"/>'
            ).format(x - 11, self.up(height), base - self.up(height), x, self.up(low), self.up(high))
        return drawn

    def circle(self, x: float, y: float, radius: float, css: str) -> Markup:
        """Draw a circle around a point; the radius is in the chart's units."""
        return Markup('<circle class="{}" r="{:.1f}" cx="{:.1f}" cy="{:.1f}"/>').format(
            css, radius, self.across(x), self.up(y)
        )

    def whole(self, inside: Markup, summary: str, key: str) -> Markup:
        """Return the SVG element, which tells the page's script where values lie."""
        return Markup(
            '<svg viewBox="0 0 {} {}" role="img" aria-label="{}" data-chart="{}" data-x="{!r} {!r} {} {}" '
            'data-y="{!r} {!r} {} {}">{}</svg>'
        ).format(
            *(WIDTH, self.height, summary, key),
            *(float(self.x.low), float(self.x.high), LEFT, WIDTH - RIGHT),
            *(float(self.y.low), float(self.y.high), self.height - BOTTOM, TOP),
            inside,
        )


def draw_svg(chart: Chart) -> Markup:
    """Draw a chart, with what the page's slider moves in it."""
    frame = Frame(chart.x, chart.y)
    inside = frame.axes()
    for mark in sorted(chart.marks, key=_layer):
        if isinstance(mark, Steps):
            inside += frame.steps(mark.edges, mark.counts, _HISTOGRAMS[mark.name])
        elif isinstance(mark, Bars):
            inside += frame.bars(mark)
        elif isinstance(mark, Level):
            inside += frame.line([chart.x.low, chart.x.high], [mark.y, mark.y], _CURVES["reference"])
        else:
            inside += frame.line(mark.xs, mark.ys, _CURVES[mark.role])
            if mark.counts is not None:
                # A circle's area goes with the answers that it stands for.
                for x, y, part in zip(mark.xs, mark.ys, mark.counts / mark.counts.max(), strict=True):
                    inside += frame.circle(x, y, 3 + 7 * math.sqrt(part), "right area")
            if chart.key == "risk" and mark.role == "measured":
                inside += frame.circle(mark.xs[-1], mark.ys[-1], 5, "marker")
    if chart.key == "histogram":
        inside += Markup('<path class="threshold" d="M0 {}V{}" hidden/>').format(TOP, HEIGHT - BOTTOM)
    return frame.whole(inside, chart.summary, chart.key)


def time_chart(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Draw accuracy over the time for 1,000 images, inference and query together; empty without times."""
    timed = [(row, _seconds(row)) for row in rows if _is_finite(row.get("accuracy"))]
    placed = [(row, time) for row, time in timed if time is not None]
    if not placed:
        return Markup("")
    frame = _accuracy_frame("seconds for 1,000 images", placed, len(placed))
    points = [(frame.across(time), frame.up(row["accuracy"]), _row_name(row)) for row, time in placed]
    slowest = max(time for _, time in placed) or 1.0
    inside = frame.axes() + _point_names(points, frame.across(slowest) + 16, frame.height)
    for row, time in placed:
        inside += _measured_point(frame, row, time, "dot")
    told = "; ".join(
        f"{_row_name(row)}: {row['accuracy']:.1%} in {number_words(time)} s" for row, time in placed
    )
    return frame.whole(inside, f"Accuracy over time for 1,000 images; {told}.", "time")


def cost_chart(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Draw accuracy over arithmetic: all candidates, the Pareto front as steps, and the advised one.

    Parameters
    ----------
    rows : sequence of mapping
        Those of a `Recommendation`, at least one.
    """
    placed = [(row, float(row["multiply_adds"])) for row in rows]
    front = sorted((pair for pair in placed if pair[0]["front"]), key=lambda pair: pair[1])
    named = [pair for pair in placed if pair[0]["front"] or pair[0]["advised"]]
    frame = _accuracy_frame("10⁹ multiply-adds for an image", placed, len(named))
    dearest = max(cost for _, cost in placed)
    edges, heights = list[float](), list[float]()
    for row, cost in front:
        edges += [cost] if not edges else [cost, cost]
        heights += [row["accuracy"]] if not heights else [heights[-1], row["accuracy"]]
    inside = frame.axes() + frame.line([*edges, dearest], [*heights, heights[-1]], "main")
    points = [
        (frame.across(cost), frame.up(row["accuracy"]), f"{row['stage']} {row['head']}")
        for row, cost in named
    ]
    inside += _point_names(
        [(x, y, shortened(text, NAME)) for x, y, text in points], frame.across(dearest) + 16, frame.height
    )
    for row, cost in placed:
        if not row["front"]:
            inside += frame.circle(cost, row["accuracy"], 3, "right area")
    for row, cost in sorted(named, key=lambda pair: bool(pair[0]["advised"])):  # above its neighbors
        inside += _measured_point(frame, row, cost, "marker" if row["advised"] else "dot")
    told = "; ".join(
        f"{row['stage']} {row['head']}: {row['accuracy']:.1%} for {number_words(cost)}" for row, cost in front
    )
    advised = next(row for row in rows if row["advised"])
    summary = (
        f"Accuracy over 10⁹ multiply-adds for an image; on the front, {told}; advised, {advised['stage']} "
        f"{advised['head']}."
    )
    return frame.whole(inside, summary, "cost")


def exits_chart(curve: Sequence[Mapping[str, float]], points: Sequence[Mapping[str, Any]]) -> Markup:
    """Draw the accuracy that a cascade can have over its arithmetic, beside single stages.

    Parameters
    ----------
    curve : sequence of mapping
        With ``multiply_adds`` and ``accuracy``, the cheapest first; at least one.
    points : sequence of mapping
        With ``name``, ``cost``, ``accuracy``, ``low`` and ``high``; the last is the cascade's own.
    """
    placed = [(row, float(row["cost"])) for row in points]
    frame = _accuracy_frame("10⁹ multiply-adds for an image", placed, len(placed))
    inside = frame.axes() + frame.line(
        [point["multiply_adds"] for point in curve],
        [max(frame.y.low, point["accuracy"]) for point in curve],
        "main",
    )
    furthest = max(cost for _, cost in placed)
    names = [(frame.across(cost), frame.up(row["accuracy"]), _row_name(row)) for row, cost in placed]
    inside += _point_names(names, frame.across(furthest) + 16, frame.height)
    for row, cost in placed:
        inside += _measured_point(frame, row, cost, "marker" if row is placed[-1][0] else "dot")
    told = "; ".join(
        f"{_row_name(row)}: {row['accuracy']:.1%} for {number_words(cost)}" for row, cost in placed
    )
    return frame.whole(inside, f"Accuracy over 10⁹ multiply-adds for an image; {told}.", "exits")


def _accuracy_frame(label: str, placed: Sequence[tuple[Mapping[str, Any], float]], named: int) -> Frame:
    """Return a plane for accuracies, with room for the names of some points to the right of all."""
    reached = [row.get(name) for row, _ in placed for name in ("accuracy", "low", "high")]
    known = [float(value) for value in reached if _is_finite(value)]
    low, high = min(known), max(known)
    room = max(0.02, (high - low) * 0.15)
    furthest = max(value for _, value in placed) or 1.0
    # The longest names have as much room as the points.
    return Frame(
        Axis(label, 0.0, furthest * 2.0),
        Axis("correct answers", max(0, low - room), min(1, high + room), shares=True),
        max(HEIGHT, TOP + BOTTOM + LINE * named),
    )


def _measured_point(frame: Frame, row: Mapping[str, Any], x: float, css: str) -> Markup:
    """Draw an accuracy with its interval, where it has one."""
    drawn = Markup("")
    if _is_finite(row.get("low")) and _is_finite(row.get("high")):
        drawn += frame.line([x, x], [row["low"], row["high"]], "whisker")
    return drawn + frame.circle(x, row["accuracy"], 5, css)


def _layer(mark: Curve | Level | Steps | Bars) -> int:
    """Return how far up a mark lies: the figures above what they are held against."""
    return list(_CURVES).index(mark.role) if isinstance(mark, Curve) else 0


def _point_names(points: list[tuple[float, float, str]], left: float, height: float) -> Markup:
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
        ) + _text_at(left, level + 4, _ISOLATED.format(text), "label")
    return drawn


def _row_name(row: Mapping[str, Any]) -> str:
    return shortened(row.get("name") or row.get("stage") or "-", NAME)


def _seconds(row: Mapping[str, Any]) -> float | None:
    """Return the time that a row gives; what it does not tell counts nothing."""
    times = [row.get(name) for name in ("inference_s_per_1000", "query_s_per_1000")]
    known = [float(time) for time in times if _is_finite(time)]
    return sum(known) if known else None


def _is_finite(value: Any) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _text_at(x: float, y: float, text: str, css: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(css, x, y, text)


def _tick_text(axis: Axis, value: float) -> str:
    return f"{value * 100:.4g}%" if axis.shares else number_words(value)


def _place_on(axis: Axis, value: float, start: float, end: float) -> float:
    if axis.high == axis.low:
        return float(start)
    return float(start + (value - axis.low) / (axis.high - axis.low) * (end - start))
