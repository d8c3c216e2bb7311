"""Put CLIP itself and its stages side by side on the same pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipretrieval._util.lazy import attach

if TYPE_CHECKING:
    from clipretrieval.comparison.comparison import compare
    from clipretrieval.comparison.report import COMPARISON_SCHEMA, ZERO_SHOT, ComparisonReport, ComparisonRow
    from clipretrieval.comparison.reproduction import FILES, STAGES, Reproduction, reproduce

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

_lazy_getattr, _lazy_dir = attach(
    __name__,
    {
        "comparison": ["compare"],
        "report": ["COMPARISON_SCHEMA", "ZERO_SHOT", "ComparisonReport", "ComparisonRow"],
        "reproduction": ["FILES", "STAGES", "Reproduction", "reproduce"],
    },
)


def __getattr__(name: str) -> Any:
    return _lazy_getattr(name)


def __dir__() -> list[str]:
    return _lazy_dir()
