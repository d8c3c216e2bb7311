"""Evaluation reports as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipretrieval._util.lazy import attach

if TYPE_CHECKING:
    from clipretrieval.evaluation.page.parts import COMPARISON_COLUMNS, PageTable
    from clipretrieval.evaluation.page.render import render_page, write_page

__all__ = ["COMPARISON_COLUMNS", "PageTable", "render_page", "write_page"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "parts": ["COMPARISON_COLUMNS", "PageTable"],
        "render": ["render_page", "write_page"],
    },
)
