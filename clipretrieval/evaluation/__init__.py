"""Measure a classifier: the numbers, and the report that holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipretrieval._util.lazy import attach

if TYPE_CHECKING:
    from clipretrieval.comparison.comparison import compare
    from clipretrieval.comparison.report import ComparisonReport, ComparisonRow
    from clipretrieval.comparison.reproduction import Reproduction, reproduce
    from clipretrieval.evaluation.calibration import CalibrationCurve, calibration_curve
    from clipretrieval.evaluation.measurement import evaluate
    from clipretrieval.evaluation.metrics import (
        DistanceSummary,
        class_table,
        confused_pairs,
        macro_averages,
        summarise_distances,
        wilson_interval,
    )
    from clipretrieval.evaluation.mistakes import Mistake
    from clipretrieval.evaluation.page.render import PageTable, render_page, write_page
    from clipretrieval.evaluation.reliability import (
        DistanceHistogram,
        Reliability,
        RiskCoverage,
        accuracy_by_decile,
        best_measure,
        distance_histogram,
        error_auroc,
        risk_coverage,
    )
    from clipretrieval.evaluation.report import EvaluationReport
    from clipretrieval.evaluation.significance import McNemar, mcnemar_exact

__all__ = [
    "CalibrationCurve",
    "ComparisonReport",
    "ComparisonRow",
    "DistanceHistogram",
    "DistanceSummary",
    "EvaluationReport",
    "McNemar",
    "Mistake",
    "PageTable",
    "Reliability",
    "Reproduction",
    "RiskCoverage",
    "accuracy_by_decile",
    "best_measure",
    "calibration_curve",
    "class_table",
    "compare",
    "confused_pairs",
    "distance_histogram",
    "error_auroc",
    "evaluate",
    "macro_averages",
    "mcnemar_exact",
    "render_page",
    "reproduce",
    "risk_coverage",
    "summarise_distances",
    "wilson_interval",
    "write_page",
]

_lazy_getattr, _lazy_dir = attach(
    __name__,
    {
        "significance": ["McNemar", "mcnemar_exact"],
        "calibration": ["CalibrationCurve", "calibration_curve"],
        ".comparison.comparison": ["compare"],
        ".comparison.report": ["ComparisonReport", "ComparisonRow"],
        "measurement": ["evaluate"],
        "metrics": [
            "DistanceSummary",
            "class_table",
            "confused_pairs",
            "macro_averages",
            "summarise_distances",
            "wilson_interval",
        ],
        "mistakes": ["Mistake"],
        "page": ["PageTable", "render_page", "write_page"],
        "reliability": [
            "DistanceHistogram",
            "Reliability",
            "RiskCoverage",
            "accuracy_by_decile",
            "best_measure",
            "distance_histogram",
            "error_auroc",
            "risk_coverage",
        ],
        "report": ["EvaluationReport"],
        ".comparison.reproduction": ["Reproduction", "reproduce"],
    },
)


def __getattr__(name: str) -> Any:
    return _lazy_getattr(name)


def __dir__() -> list[str]:
    return _lazy_dir()
