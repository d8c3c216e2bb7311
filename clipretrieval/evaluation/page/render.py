"""Evaluation reports as one HTML page that needs nothing else: no network, no other file.

The page holds its style, its script and its images. A policy within it forbids every request, and every
script but its own. All that comes from a user (names of classes, paths, titles) is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from clipretrieval._util.checks import (
    check_bool,
    check_path,
    check_sequence,
    check_strings,
    check_text,
    shown,
)
from clipretrieval._util.files import write_report
from clipretrieval._util.text import readable, shortened
from clipretrieval._version import __version__
from clipretrieval.errors import InvalidInputError
from clipretrieval.evaluation.figures import Figures
from clipretrieval.evaluation.page.parts import (
    COMPARISON_COLUMNS,
    PageTable,
    comparison_part,
    report_part,
    table_part,
)
from clipretrieval.evaluation.page.svg import time_chart
from clipretrieval.evaluation.words import number_words
from clipretrieval.images.thumbnail import thumbnail

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
    read = _thumbnails() if pictures else lambda path: None
    parts = [report_part(name, report, read) for name, report in named]
    script = _file("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    several = len(parts) > 1 or bool(comparison) or bool(tables)
    return _template().render(
        title=title or ("Comparison" if several else "Evaluation"),
        notes=notes,
        remarks=remarks,
        several=several,
        comparison=comparison_part(comparison),
        time_chart=time_chart(comparison),
        tables=[table_part(table) for table in tables],
        reports=parts,
        data=[part["data"] for part in parts],
        style=Markup(_file("page.css")),  # noqa: S704  our own
        script=Markup(script),  # noqa: S704  our own
        script_digest=digest,
        version=__version__,
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


def _thumbnails() -> Callable[[str], str | None]:
    """Return what reads thumbnails, each file once for a page: stages are wrong about the same images."""

    @cache
    def read(path: str) -> str | None:
        found = thumbnail(path)
        return found and f"data:image/jpeg;base64,{found}"

    return read


def _file(name: str) -> str:
    return (resources.files("clipretrieval.evaluation.page") / "templates" / name).read_text(encoding="utf-8")


@cache
def _template() -> jinja2.Template:
    surroundings = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    surroundings.filters["readable"] = readable
    surroundings.filters["shortened"] = shortened
    surroundings.filters["file_name"] = os.path.basename
    surroundings.filters["percent"] = lambda value: f"{value:.2%}"
    surroundings.filters["number"] = lambda value: (
        "–" if value is None or not math.isfinite(value) else number_words(value)
    )
    return surroundings.get_template("page.html")
