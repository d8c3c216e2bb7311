"""A chart's frame as SVG: scales, ticks, labels. Colours come from the page's style, and follow its theme."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

__all__ = ["Frame", "number", "ticks"]

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 20, 12, 44
_STEPS = (1, 2, 2.5, 5, 10)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers from `low` to `high`, at most so many."""
    if not high > low:
        return [low]
    rough = (high - low) / (most - 1)
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * each for each in _STEPS if scale * each >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{place * step:.12g}") for place in range(first, last + 1)]


def number(value: float) -> str:
    """Write a number in few digits, thousands apart."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1e7 or abs(value) < 1e-4:
        return f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


@dataclass(frozen=True)
class Frame:
    """The plane of a chart.

    Attributes
    ----------
    x, y : tuple of float
        What the axes reach from and to.
    height : float
        In the chart's units, of which the width is 400.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    height: float = HEIGHT

    def across(self, value: float) -> float:
        """Return where a value lies horizontally, in the chart's units."""
        return _placed(value, self.x, LEFT, WIDTH - RIGHT)

    def up(self, value: float) -> float:
        """Return where a value lies vertically, in the chart's units; downwards is more."""
        return _placed(value, self.y, self.height - BOTTOM, TOP)

    def axes(
        self,
        x_label: str,
        y_label: str,
        *,
        x_text: Callable[[float], str] = number,
        y_text: Callable[[float], str] = number,
        most: int = 6,
    ) -> Markup:
        """Draw the grid, the ticks (at most so many across) and the labels."""
        left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, self.height - BOTTOM
        across = [
            Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(left, self.up(value), right)
            + _text(left - 6, self.up(value) + 4, y_text(value), "end")
            for value in ticks(*self.y, most=5)
        ]
        below = [
            _text(self.across(value), bottom + 17, x_text(value), "mid")
            for value in ticks(*self.x, most=most)
        ]
        upright = Markup('<text transform="translate(12 {}) rotate(-90)" class="mid">{}</text>')
        return Markup("").join(
            [
                *across,
                *below,
                Markup('<path class="axis" d="M{} {}H{}"/>').format(left, bottom, right),
                _text((left + right) / 2, self.height - 8, x_label, "mid"),
                upright.format((top + bottom) / 2, y_label),
            ]
        )

    def line(self, xs: Iterable[float], ys: Iterable[float], css: str) -> Markup:
        """Draw a line through some points."""
        path = "L".join(f"{self.across(x):.1f} {self.up(y):.1f}" for x, y in zip(xs, ys, strict=True))
        return Markup('<path class="{}" d="M{}"/>').format(css, path)

    def steps(self, edges: Iterable[float], heights: Iterable[float], css: str) -> Markup:
        """Draw the outline of a histogram."""
        places = np.repeat([self.across(edge) for edge in edges], 2)
        tops = [self.up(0), *np.repeat([self.up(height) for height in heights], 2), self.up(0)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(places, tops, strict=True))
        return Markup('<path class="{}" d="M{}Z"/>').format(css, path)

    def whole(self, inside: Markup, description: str, key: str) -> Markup:
        """Return the SVG element, which tells the page's script where values lie."""
        return Markup(
            '<svg viewBox="0 0 {} {}" role="img" aria-label="{}" data-chart="{}" data-x="{!r} {!r} {} {}" '
            'data-y="{!r} {!r} {} {}">{}</svg>'
        ).format(
            *(WIDTH, self.height, description, key),
            *(
                *map(float, self.x),
                LEFT,
                WIDTH - RIGHT,
                *map(float, self.y),
                self.height - BOTTOM,
                TOP,
                inside,
            ),
        )


def _text(x: float, y: float, text: str, css: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(css, x, y, text)


def _placed(value: float, domain: tuple[float, float], start: float, end: float) -> float:
    low, high = domain
    return float(start if high == low else start + (value - low) / (high - low) * (end - start))
