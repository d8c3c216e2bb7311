"""Put CLIP itself and its stages side by side on the same images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipretrieval._util.lazy import attach

if TYPE_CHECKING:
    from clipretrieval.comparison.comparison import compare
    from clipretrieval.comparison.report import COMPARISON_SCHEMA, ZERO_SHOT, ComparisonReport, ComparisonRow
    from clipretrieval.comparison.reproduction import STAGES, reproduce
    from clipretrieval.comparison.reproduction_report import FILES, Reproduction

__all__ = [
    "COMPARISON_SCHEMA",
    "FILES",
    "STAGES",
    "ZERO_SHOT",
    "ComparisonReport",
    "ComparisonRow",
    "Reproduction",
    "compare",
    "reproduce",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "comparison": ["compare"],
        "report": ["COMPARISON_SCHEMA", "ZERO_SHOT", "ComparisonReport", "ComparisonRow"],
        "reproduction": ["STAGES", "reproduce"],
        "reproduction_report": ["FILES", "Reproduction"],
    },
)
