"""Measure a classifier: the numbers, and the report that holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipretrieval._util.lazy import attach

if TYPE_CHECKING:
    from clipretrieval.comparison.comparison import compare
    from clipretrieval.comparison.report import ComparisonReport, ComparisonRow
    from clipretrieval.comparison.reproduction import reproduce
    from clipretrieval.comparison.reproduction_report import Reproduction
    from clipretrieval.evaluation.measurement import evaluate
    from clipretrieval.evaluation.metrics import (
        DistanceSummary,
        McNemar,
        class_table,
        confused_pairs,
        macro_averages,
        mcnemar_exact,
        summarise_distances,
        wilson_interval,
    )
    from clipretrieval.evaluation.mistakes import Mistake
    from clipretrieval.evaluation.page.parts import PageTable
    from clipretrieval.evaluation.page.render import render_page, write_page
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
    from clipretrieval.evaluation.unknown import UnknownFigures
    from clipretrieval.trust.calibration_curve import CalibrationCurve, calibration_curve

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
    "UnknownFigures",
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

__getattr__, __dir__ = attach(
    __name__,
    {
        ".comparison.comparison": ["compare"],
        ".comparison.report": ["ComparisonReport", "ComparisonRow"],
        ".comparison.reproduction": ["reproduce"],
        ".comparison.reproduction_report": ["Reproduction"],
        ".trust.calibration_curve": ["CalibrationCurve", "calibration_curve"],
        "measurement": ["evaluate"],
        "metrics": [
            "DistanceSummary",
            "McNemar",
            "class_table",
            "confused_pairs",
            "macro_averages",
            "mcnemar_exact",
            "summarise_distances",
            "wilson_interval",
        ],
        "mistakes": ["Mistake"],
        "page.parts": ["PageTable"],
        "page.render": ["render_page", "write_page"],
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
        "unknown": ["UnknownFigures"],
    },
)
