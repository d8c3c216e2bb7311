"""Tables of Markdown, and text in them that stays text."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

from clipretrieval._util.text import shortened

__all__ = ["markdown_table", "plain"]

_SPECIAL = re.compile(r"([\\`*_\[\]|~$])")


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: bool = False) -> str:
    """Write a table in GitHub's form.

    Parameters
    ----------
    head : sequence of str
    rows : iterable of sequence
        Whose cells are shown as text: see `plain`.
    numbers : bool
        Whether all columns but the first are numbers, which stand at the right.
    """
    marks = ["---", *(["---:" if numbers else "---"] * (len(head) - 1))]
    lines = [head, marks, *([plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: Any) -> str:
    """Escape what Markdown or HTML would take for more than text; line breaks become visible."""
    return _SPECIAL.sub(r"\\\1", html.escape(shortened(text, 80), quote=False))
