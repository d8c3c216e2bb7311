"""Reports as small pieces of HTML for notebooks: no scripts, no pictures, nothing from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from clipretrieval._util.text import shortened
from clipretrieval.comparison.views import comparison_table
from clipretrieval.evaluation.text import MEASURE_HEAD, measure_rows, summary_rows
from clipretrieval.evaluation.words import best_words

if TYPE_CHECKING:
    from clipretrieval.comparison.report import ComparisonReport
    from clipretrieval.evaluation.report import EvaluationReport

__all__ = ["comparison_html", "report_html"]

CLASSES = 20
"""The most classes that are listed."""

LONGEST = 200
"""Letters of a cell or a paragraph."""


def report_html(report: EvaluationReport) -> str:
    """Return the figures of a report, its measures of confidence and its classes."""
    classes = [
        [row["class"], *(f"{row[name]:.2%}" for name in ("precision", "recall", "f1")), row["support"]]
        for row in report.per_class[:CLASSES]
    ]
    more = len(report.per_class) - len(classes)
    parts = [
        _table(("measure", "value"), summary_rows(report)),
        _table(MEASURE_HEAD, measure_rows(report)),
        _paragraph(best_words(report)),
        _table(("class", "precision", "recall", "F1", "images"), classes),
        *([_paragraph(f"and {more:,} more classes")] if more else []),
        _paragraph("report.to_html(path) writes the whole page."),
    ]
    return f"<div>{''.join(parts)}</div>"


def comparison_html(report: ComparisonReport) -> str:
    """Return the table of a comparison."""
    head, *rows = comparison_table(report)
    note = f"{report.n_test:,} images classified; report.to_html(path) writes the whole page."
    return f"<div>{_table(head, rows)}{_paragraph(note)}</div>"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    heads = "".join(f"<th>{_escaped(cell)}</th>" for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{_escaped(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>"


def _paragraph(text: str) -> str:
    return f"<p>{_escaped(text)}</p>"


def _escaped(text: Any) -> str:
    return html.escape(shortened(text, LONGEST))
