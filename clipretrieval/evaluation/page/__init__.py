"""Evaluation reports as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipretrieval._util.lazy import attach

if TYPE_CHECKING:
    from clipretrieval.evaluation.page.render import COMPARISON_COLUMNS, PageTable, render_page, write_page

__all__ = ["COMPARISON_COLUMNS", "PageTable", "render_page", "write_page"]

_lazy_getattr, _lazy_dir = attach(
    __name__,
    {
        "render": ["COMPARISON_COLUMNS", "PageTable", "render_page", "write_page"],
    },
)


def __getattr__(name: str) -> Any:
    return _lazy_getattr(name)


def __dir__() -> list[str]:
    return _lazy_dir()
