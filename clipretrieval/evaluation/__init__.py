"""Measure a classifier: the numbers, and the report that holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipretrieval._lazy import attach

if TYPE_CHECKING:
    from clipretrieval.evaluation.evaluate import evaluate
    from clipretrieval.evaluation.metrics import (
        DistanceSummary,
        class_table,
        summarise_distances,
        wilson_interval,
    )
    from clipretrieval.evaluation.report import EvaluationReport

__all__ = [
    "DistanceSummary",
    "EvaluationReport",
    "class_table",
    "evaluate",
    "summarise_distances",
    "wilson_interval",
]

_lazy_getattr, _lazy_dir = attach(
    __name__,
    {
        "evaluate": ["evaluate"],
        "metrics": ["DistanceSummary", "class_table", "summarise_distances", "wilson_interval"],
        "report": ["EvaluationReport"],
    },
)


def __getattr__(name: str) -> Any:
    return _lazy_getattr(name)


def __dir__() -> list[str]:
    return _lazy_dir()
