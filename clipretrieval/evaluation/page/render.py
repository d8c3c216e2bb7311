"""Evaluation reports as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipretrieval._util.checks import (
    check_bool,
    check_path,
    check_sequence,
    check_strings,
    check_text,
    shown,
)
from clipretrieval._util.files import write_report
from clipretrieval.errors import InvalidInputError
from clipretrieval.evaluation.figures import Figures
from clipretrieval.evaluation.page.document import SHARED, read_thumbnails, render_document
from clipretrieval.evaluation.page.parts import (
    COMPARISON_COLUMNS,
    PageTable,
    comparison_part,
    report_part,
    table_part,
)
from clipretrieval.evaluation.page.svg import time_chart

__all__ = ["COMPARISON_COLUMNS", "PageTable", "render_page", "write_page"]


def render_page(
    reports: Sequence[tuple[str | None, Figures]] | Mapping[str, Figures],
    *,
    comparison: Sequence[Mapping[str, Any]] = (),
    tables: Sequence[PageTable] = (),
    title: str | None = None,
    notes: Sequence[str] = (),
    remarks: Sequence[str] = (),
    pictures: bool = True,
) -> str:
    """Return one page for one report, or for several with a table that compares them.

    Parameters
    ----------
    reports : sequence of (str or None, EvaluationReport), or mapping of str to EvaluationReport
        Each with the name of its section. Thumbnails are read from their files now.
    comparison : sequence of mapping
        Rows with any of the keys of `COMPARISON_COLUMNS`. What is missing, or None, or not finite shows as a
        dash; a column that no row has is left out.
    tables : sequence of PageTable
        More tables, shown after the comparison.
    title : str, optional
    notes : sequence of str
        Paragraphs of plain text at the head of the page.
    remarks : sequence of str
        Sentences of plain text below the comparison: what its columns are, and how they were measured.
    images : bool
        Whether to show the worst mistakes with thumbnails, or with words alone.

    Returns
    -------
    str
        HTML.

    Raises
    ------
    InvalidInputError
        If there is nothing to show.
    """
    pictures = check_bool(pictures, "pictures")
    title = None if title is None else check_text(title, "title", empty=True)
    notes, remarks = check_strings(notes, "notes"), check_strings(remarks, "remarks")
    comparison = check_sequence(comparison, "comparison", "mappings, one for each row")
    if not all(isinstance(row, Mapping) for row in comparison):
        raise InvalidInputError("comparison must be a sequence of mappings, one for each row")
    tables = check_sequence(tables, "tables", "PageTable")
    if not all(isinstance(table, PageTable) for table in tables):
        raise InvalidInputError("tables must be a sequence of PageTable")
    pairs = list(reports.items()) if isinstance(reports, Mapping) else reports
    named = check_sequence(pairs, "reports", "pairs (name, EvaluationReport)")
    for pair in named:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not hasattr(pair[1], "y_pred"):
            raise InvalidInputError(
                f"reports must be pairs (name, EvaluationReport), or a mapping of these; got {shown(pair)}"
            )
        if pair[0] is not None:
            check_text(pair[0], "a report's name", empty=True)
    if not (named or comparison or tables):
        raise InvalidInputError("a page needs at least one report or table; pass one")
    read = read_thumbnails() if pictures else lambda path: None
    parts = [report_part(name, report, read) for name, report in named]
    several = len(parts) > 1 or bool(comparison) or bool(tables)
    return render_document(
        SHARED,
        "page.html",
        styles=["page.css"],
        scripts=["page.js", "tables.js"],
        title=title or ("Comparison" if several else "Evaluation"),
        notes=notes,
        remarks=remarks,
        several=several,
        comparison=comparison_part(comparison),
        time_chart=time_chart(comparison),
        tables=[table_part(table) for table in tables],
        reports=parts,
        data=[part["data"] for part in parts],
    )


def write_page(
    path: str | Path,
    reports: Sequence[tuple[str | None, Figures]] | Mapping[str, Figures],
    **options: Any,
) -> None:
    """Write what `render_page` returns into a file, atomically.

    Parameters
    ----------
    path : str or Path
    reports, **options
        As for `render_page`.

    Raises
    ------
    InvalidInputError
        If there is nothing to show, or the file cannot be written.
    """
    path = check_path(path, "path")
    write_report(path, render_page(reports, **options), "page")
