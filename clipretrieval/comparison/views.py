"""A comparison as text for terminals and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from clipretrieval.comparison.speed import OPEN_CLIP_BATCH
from clipretrieval.evaluation.markdown import markdown_table

if TYPE_CHECKING:
    from clipretrieval.comparison.report import ComparisonReport, ComparisonRow
    from clipretrieval.evaluation.page.parts import PageTable

__all__ = ["as_html", "as_markdown", "as_text", "comparison_table"]

_HEAD = [
    *("classifier", "accuracy", "95 % interval", "p (McNemar)", "inference s", "query s", "total s"),
    *("p50 ms", "p95 ms", "dim", "MB", "× CLIP", "× open_clip"),
]


def as_text(report: ComparisonReport) -> str:
    """Write a comparison as aligned columns with a line on what they are."""
    table = comparison_table(report)
    widths = [max(len(line[place]) for line in table) for place in range(len(_HEAD))]
    lines = [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]
    return "\n".join([*lines, "", *_notes(report)])


def comparison_table(report: ComparisonReport) -> list[list[str]]:
    """Return the table's head and its rows as texts."""
    return [_HEAD, *(_cells(row) for row in report.rows)]


def as_markdown(report: ComparisonReport) -> str:
    """Write a comparison as a table with its explanation."""
    notes = "\n".join(f"- {note}" for note in _notes(report))
    return f"# Comparison\n\n{markdown_table(_HEAD, map(_cells, report.rows), numbers=True)}\n\n{notes}"


def as_html(
    report: ComparisonReport,
    *,
    title: str | None = None,
    notes: Sequence[str] = (),
    tables: Sequence[PageTable] = (),
) -> str:
    """Write a comparison as one page, with each row's report behind the table."""
    from clipretrieval.evaluation.page.render import render_page

    rows = [row.to_dict() for row in report.rows]
    return render_page(
        report.reports, comparison=rows, tables=tables, title=title, notes=notes, remarks=_notes(report)
    )


def _cells(row: ComparisonRow) -> list[str]:
    found = row.to_dict()
    return [
        row.name,
        f"{found['accuracy']:.2%}",
        f"{found['low']:.2%} to {found['high']:.2%}",
        "< 1e-300" if found["p_value"] == 0 else _shown(found["p_value"], ".2g"),
        f"{found['inference_s_per_1000']:.2f}",
        f"{found['query_s_per_1000']:.2f}",
        f"{found['total_s_per_1000']:.2f}",
        _shown(found["p50_ms"], ".1f"),
        _shown(found["p95_ms"], ".1f"),
        str(found["dim"]),
        f"{found['bytes'] / 1e6:.1f}",
        _shown(found["speedup_same_engine"], ".2f"),
        _shown(found["speedup_open_clip"], ".2f"),
    ]


def _notes(report: ComparisonReport) -> list[str]:
    notes = [
        f"fitted on {report.n_train} images, {report.n_test} classified; intervals are Wilson's, p is of "
        f"McNemar's exact test against {report.baseline}",
        f"seconds per 1,000 images, measured on {report.timed_images} of the test images together; p50 and "
        "p95 are of single images, from picture to answer",
        "× CLIP: whole CLIP's time on the same engine divided by the row's; × open_clip: that of open_clip "
        f"as it comes, float32 by batches of {OPEN_CLIP_BATCH}"
        + (f", {report.open_clip.total_s:.2f} s" if report.open_clip else ", not measured"),
    ]
    plan = next((row.report.setting["plan"] for row in report.rows if row.report.setting["plan"]), None)
    if plan:
        notes.append(f"encoded in {plan['precision']} on {plan['device']}")
    if report.skipped:
        notes.append(f"{len(report.skipped)} images were skipped")
    return notes


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
