"""What the HTML page shows of a table and of a report, as the template wants it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from markupsafe import Markup

from clipretrieval._util.repr import short_repr
from clipretrieval._util.text import readable
from clipretrieval.evaluation.charts import calibration_chart, decile_chart, histogram_chart, risk_chart
from clipretrieval.evaluation.figures import Figures, timed_parts
from clipretrieval.evaluation.metrics import wilson_interval
from clipretrieval.evaluation.mistakes import LISTED_NEIGHBORS, Mistake
from clipretrieval.evaluation.page.svg import draw_svg
from clipretrieval.evaluation.reliability import Reliability
from clipretrieval.evaluation.text import (
    MEASURE_HEAD,
    measure_rows,
    setting_rows,
    shown_classes,
    summary_rows,
)
from clipretrieval.evaluation.words import (
    best_words,
    counts_votes,
    distance_unit,
    measure_name,
    number_words,
    shown_measure,
    threshold_words,
    value_words,
)

__all__ = ["COMPARISON_COLUMNS", "PageTable", "comparison_part", "report_part", "table_part"]

LARGEST_TABLE, LARGEST_CANVAS = 20, 1000
"""Classes up to which the confusion matrix is a table, or else drawn with a pixel for each cell."""

CURVE_POINTS = 400
"""The most points of a curve, and the most places of a slider: more than a screen can tell apart."""

PAIRS = 30
"""The most pairs of confused classes in the table."""

COMPARISON_COLUMNS = (
    ("name", "name"),
    ("stage", "stage"),
    ("store", "store"),
    ("k", "k"),
    ("accuracy", "accuracy"),
    ("low", "95 % interval, from"),
    ("high", "to"),
    ("p_value", "p (McNemar)"),
    ("multiply_adds", "10⁹ multiply-adds"),
    ("inference_s_per_1000", "inference, s/1,000"),
    ("query_s_per_1000", "query, s/1,000"),
    ("p50_ms", "one image, ms"),
    ("p95_ms", "95th percentile, ms"),
    ("dim", "dimension"),
    ("bytes", "size"),
    ("speedup_same_engine", "speed-up over CLIP"),
    ("speedup_open_clip", "over open_clip"),
)
"""Keys of a comparison's rows, and what the page calls them."""

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True)
class PageTable:
    """A table for the page.

    Attributes
    ----------
    title : str
    columns : sequence of (str, str)
        A key of the rows, and what stands above its column. The keys of `COMPARISON_COLUMNS` are written as
        they are there (``accuracy`` as a percentage, ``bytes`` with a unit, …), other values as they are.
    rows : sequence of mapping
        Numbers, texts, or None for a dash.
    note : str
        Plain text below.
    chart : Markup, optional
        An SVG element above it; plain text is shown as text.
    """

    title: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Mapping[str, Any]]
    note: str = ""
    chart: Markup | None = None

    def __repr__(self) -> str:
        return short_repr(self, title=self.title, columns=len(self.columns), rows=len(self.rows))


def table_part(table: PageTable, best: str | None = None) -> dict[str, Any]:
    """Prepare a table: its cells as texts with what they are sorted by, without columns that are empty.

    Parameters
    ----------
    table : PageTable
    best : str, optional
        Key of the column whose highest value is marked.
    """
    columns = [(key, head) for key, head in table.columns if any(_known(row.get(key)) for row in table.rows)]
    top = max((row[best] for row in table.rows if _known(row.get(best))), default=None) if best else None
    rows = [
        [
            {
                "text": _written(key, row.get(key)),
                "sort": _sorted_by(row.get(key)),
                "number": isinstance(row.get(key), Real),
                "best": key == best and top is not None and row.get(key) == top,
            }
            for key, _ in columns
        ]
        for row in table.rows
    ]
    # A column of numbers stays one where some are missing.
    numeric = [any(row[place]["number"] for row in rows) for place in range(len(columns))]
    heads = [{"text": head, "number": number} for (_, head), number in zip(columns, numeric, strict=True)]
    return {
        "title": table.title,
        "note": table.note,
        "chart": table.chart or "",
        "heads": heads,
        "rows": rows,
    }


def comparison_part(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Prepare the table that compares, or None where there are no rows."""
    if not rows:
        return None
    return table_part(PageTable("Side by side", COMPARISON_COLUMNS, rows), best="accuracy")


def report_part(name: str | None, report: Figures, thumbnail: Callable[[str], str | None]) -> dict[str, Any]:
    """Prepare a report: its figures, its charts as SVG, and what the page's script needs."""
    classes = [readable(label) for label in report.classes.tolist()]
    pairs, listed = report.confused_pairs(), shown_classes(report)
    curve, calibration, shown = report.calibration, calibration_chart(report), shown_measure(report)
    return {
        "name": name,
        "accuracy": report.accuracy,
        "interval": report.accuracy_interval,
        "n_test": report.n_test,
        "n_wrong": int((~report.correct).sum()),
        "n_classes": len(classes),
        "summary": summary_rows(report)[3:],
        "measure_rows": measure_rows(report),
        "settings": setting_rows(report),
        "times": [
            (part.replace("_", " "), timing.seconds.get(key, 0.0), timing.rate(key))
            for part, key, timing in timed_parts(report)
        ],
        "distances": draw_svg(histogram_chart(report)),
        "measures": [
            _measure_part(report, found, found.by == shown) for found in report.reliabilities.values()
        ],
        "measure_head": MEASURE_HEAD,
        "best_words": best_words(report),
        "best_area": report.risk_coverage.best_area,
        "calibration_chart": calibration and draw_svg(calibration),
        "share_name": measure_name(report, "share"),
        "calibration": curve.rows() if curve is not None else [],
        # One neighbor, one vote: every answer is certain, and there is no curve to see.
        "one_confidence": curve is not None and len(curve.count) == 1,
        "single_vote": report.setting.get("k") == 1 and counts_votes(report),
        "counts_votes": counts_votes(report),
        "per_class": listed[0],
        "listed": listed[1],
        "pairs": pairs[:PAIRS],
        "more_pairs": max(0, len(pairs) - PAIRS),
        "matrix": _matrix_rows(report, classes) if len(classes) <= LARGEST_TABLE else None,
        "on_canvas": len(classes) <= LARGEST_CANVAS,
        "distance_unit": distance_unit(report),
        "mistakes": [_mistake_part(mistake, thumbnail) for mistake in report.mistakes],
        "data": _data(report, classes),
    }


def _measure_part(report: Figures, found: Reliability, shown: bool) -> dict[str, Any]:
    """Prepare what the page shows of one measure of confidence."""
    by = found.by
    return {
        "by": by,
        "name": measure_name(report, by),
        "shown": shown,
        "constant": found.constant,
        "best": by == report.best_measure,
        "threshold": threshold_words(report, by),
        "histogram": draw_svg(histogram_chart(report, by)),
        "risk": draw_svg(risk_chart(report, by, points=CURVE_POINTS)),
        "decile_chart": draw_svg(decile_chart(report, by)),
        "deciles": [
            {**row, "values": f"{value_words(by, row['min'])} to {value_words(by, row['max'])}"}
            for row in found.deciles
        ],
    }


def _data(report: Figures, classes: list[str]) -> dict[str, Any]:
    """Return the sliders' points, each exact, and the matrix where it is drawn."""
    found: dict[str, Any] = {
        "points": {by: _points(each) for by, each in report.reliabilities.items()},
        "wrong": int((~report.correct).sum()),
        "all": report.n_test,
    }
    if LARGEST_TABLE < len(classes) <= LARGEST_CANVAS:
        cells = report._confusion
        found["classes"] = classes
        found["cells"] = [cells.true.tolist(), cells.answer.tolist(), cells.count.tolist()]
        found["totals"] = cells.support.tolist()
    return found


def _points(found: Reliability) -> list[list[Any]]:
    """Return a slider's places: threshold, its text, answers kept, errors, ends of the interval."""
    curve = found.risk_coverage.thinned(CURVE_POINTS)
    points = []
    for threshold, kept, errors in zip(
        curve.thresholds.tolist(), curve.kept.tolist(), curve.errors.tolist(), strict=True
    ):
        low, high = wilson_interval(kept - errors, kept)
        shown = threshold if math.isfinite(threshold) else None
        text = value_words(found.by, threshold)
        points.append([shown, text, kept, errors, round(low, 6), round(high, 6)])
    return points


def _matrix_rows(report: Figures, classes: list[str]) -> list[dict[str, Any]]:
    matrix = report.confusion_matrix
    return [
        {
            "class": classes[row],
            "cells": [
                {"count": count, "share": round(count / total, 4) if total else 0, "right": row == column}
                for column, count in enumerate(counts)
            ],
        }
        for row, (counts, total) in enumerate(zip(matrix.tolist(), matrix.sum(axis=1).tolist(), strict=True))
    ]


def _mistake_part(mistake: Mistake, thumbnail: Callable[[str], str | None]) -> dict[str, Any]:
    explanation = mistake.explanation
    return {
        "index": mistake.index,
        "true": mistake.truth,
        "answer": explanation.answer,
        "share": explanation.share,
        "distance": mistake.distance,
        "query": explanation.query,
        "thumbnail": explanation.query and thumbnail(explanation.query),
        "neighbors": [
            {
                "label": each.label,
                "distance": each.distance,
                "voted": each.share > 0 or not explanation.counts_votes,
                "right": each.label == mistake.truth,
                "source": each.source,
                "thumbnail": each.source and thumbnail(each.source),
            }
            for each in explanation.neighbors[:LISTED_NEIGHBORS]
        ],
    }


def _known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _sorted_by(value: Any) -> str:
    if not _known(value):
        return ""
    return repr(float(value)) if isinstance(value, Real) else readable(value)


def _written(key: str, value: Any) -> str:
    if not _known(value):
        return "–"
    if not isinstance(value, Real) or isinstance(value, bool):
        return readable(value)
    if key in ("accuracy", "accuracy_alone", "share", "study_accuracy", "low", "high"):
        return f"{float(value):.2%}"
    if key == "accuracy_difference":
        return f"{100 * float(value):+.2f}".replace("-", "−")
    if key == "p_value":
        return "< 0.0001" if value < 0.0001 else f"{float(value):.4f}"
    if key == "bytes":
        return _sized(float(value))
    if key.startswith("speedup"):
        return f"{float(value):.2f} ×"
    if key.endswith(("s_per_1000", "_ms", "s_ratio")):
        return f"{float(value):,.2f}"
    return f"{value:,}" if isinstance(value, int) else number_words(float(value))


def _sized(count: float) -> str:
    for unit in _UNITS:
        if count < 1024 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
