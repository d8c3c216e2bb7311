"""Charts: described once, and drawn alike as SVG and with matplotlib."""

from __future__ import annotations

import re
from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pytest
from pages import made

from clipretrieval.evaluation.charts import (
    Bars,
    Chart,
    Steps,
    calibration_chart,
    decile_chart,
    histogram_chart,
    risk_chart,
)
from clipretrieval.evaluation.page.svg import draw_svg
from clipretrieval.evaluation.plots import draw_chart

REPORT = made(300, ["cat", "dog", "owl"])


@pytest.fixture
def axes() -> Iterator[mpl.axes.Axes]:
    mpl.use("agg")
    from matplotlib import pyplot

    yield pyplot.subplots()[1]
    pyplot.close("all")


def points(drawn: str, css: str) -> np.ndarray:
    """The points of an SVG's path in the chart's own values, shape (n, 2)."""
    path = re.findall(rf'<path class="{css}" d="M([^"]+?)Z?"/>', drawn)[0]
    found = np.array([list(map(float, pair.split())) for pair in path.split("L")])
    for column, name in enumerate("xy"):
        low, high, start, end = map(float, re.findall(rf'data-{name}="([^"]+)"', drawn)[0].split())
        found[:, column] = low + (found[:, column] - start) / (end - start) * (high - low)
    return found


@pytest.mark.parametrize(
    "chart", [risk_chart(REPORT), risk_chart(REPORT, "share"), calibration_chart(REPORT)]
)
def test_both_draw_the_same_curve(chart: Chart, axes: mpl.axes.Axes) -> None:
    """The measured curve has the same points in both; of early risks that are beyond the page's, the top."""
    draw_chart(chart, axes)
    [line] = [line for line in axes.lines if str(line.get_label()).startswith(("by ", "ECE "))]
    wanted = np.column_stack(line.get_data())
    wanted[:, 1] = np.minimum(wanted[:, 1], chart.y.high)
    np.testing.assert_allclose(points(draw_svg(chart), "main"), wanted, atol=2e-3)


def test_both_draw_the_same_histogram(axes: mpl.axes.Axes) -> None:
    """The outlines have the counts of the description."""
    chart = histogram_chart(REPORT, bins=9)
    draw_chart(chart, axes)
    for mark, patch, css in zip(
        chart.marks, (axes.patches[0], axes.patches[-1]), ("right area", "wrong area hatched"), strict=True
    ):
        assert isinstance(mark, Steps)
        assert patch.get_data().values.tolist() == mark.counts.tolist()
        tops = points(draw_svg(chart), css)[1:-1:2, 1]
        np.testing.assert_allclose(tops, mark.counts, atol=0.01 * chart.y.high)


def test_both_draw_the_same_bars(axes: mpl.axes.Axes) -> None:
    """A bar for each tenth, as high as it is accurate."""
    chart = decile_chart(REPORT, "margin")
    draw_chart(chart, axes)
    [bars] = chart.marks
    assert isinstance(bars, Bars)
    assert [patch.get_height() for patch in axes.patches] == bars.heights.tolist()
    drawn = re.findall(
        r'<rect class="right solid" x="[\d.]+" y="[\d.]+" width="22" height="([\d.]+)"', draw_svg(chart)
    )
    heights = np.array(list(map(float, drawn)))
    np.testing.assert_allclose(heights / heights.max(), bars.heights / bars.heights.max(), atol=2e-3)
    assert axes.get_xlabel() == "tenth of the answers by margin, the surest first"
