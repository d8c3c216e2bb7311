"""Tables as aligned text, Markdown and HTML, in which names of classes and files stay text."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

from clipretrieval._util.text import shortened

__all__ = ["aligned_table", "html_paragraph", "html_table", "markdown_table", "number_cell"]

MARKDOWN_LENGTH, HTML_LENGTH = 80, 200
"""The most letters of a cell, or a paragraph."""

_MARKDOWN = re.compile(r"([\\`*_\[\]|~$])")


def aligned_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each row: the first column to the left, the others, numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([first.ljust(widths[0]), *map(str.rjust, numbers, widths[1:])]) for first, *numbers in rows
    ]


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: bool = False) -> str:
    """Write a table in GitHub's form, each cell in one line.

    Parameters
    ----------
    head : sequence of str
    rows : iterable of sequence
    numbers : bool
        Whether all columns but the first are numbers, which stand at the right.
    """
    marks = ["---", *(["---:" if numbers else "---"] * (len(head) - 1))]
    lines = [head, marks, *(map(_markdown_text, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def html_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Write a table without any style."""
    heads = "".join(f"<th>{_html_text(cell)}</th>" for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{_html_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>"


def html_paragraph(text: str) -> str:
    """Write a paragraph of plain text."""
    return f"<p>{_html_text(text)}</p>"


def number_cell(value: float | None, form: str) -> str:
    """Format a number, or write a dash where there is none."""
    return "-" if value is None else format(value, form)


def _markdown_text(text: Any) -> str:
    """Escape what Markdown or HTML would take for more than text; line breaks become visible."""
    return _MARKDOWN.sub(r"\\\1", html.escape(shortened(text, MARKDOWN_LENGTH), quote=False))


def _html_text(text: Any) -> str:
    return html.escape(shortened(text, HTML_LENGTH))
