"""An evaluation report as JSON values."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING, Any

from clipretrieval._util.timing import Timing
from clipretrieval._version import __version__
from clipretrieval.evaluation.metrics import summarise_distances

if TYPE_CHECKING:
    from clipretrieval.evaluation.reliability import Reliability
    from clipretrieval.evaluation.report import EvaluationReport

__all__ = ["SCHEMA_VERSION", "report_values", "timed_parts"]

SCHEMA_VERSION = 1
"""Raised when a field goes or changes its meaning; new fields leave it as it is."""

CURVE_POINTS = 200
"""The most points of the risk-coverage curve that are written down."""

WHOLE_MATRIX = 1000
"""Classes up to which the whole confusion matrix is written down."""

_PARTS = ("decode", "encode", "store", "flush", "search")
_PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy", "faiss-cpu", "scikit-learn", "pillow")


def report_values(report: EvaluationReport) -> dict[str, Any]:
    """Return all of a report but its single answers; null stands for what is not finite or not there."""
    return {
        "schema_version": SCHEMA_VERSION,
        "accuracy": report.accuracy,
        "accuracy_interval": list(report.accuracy_interval),
        **report.macro,
        "n_test": report.n_test,
        "n_skipped": len(report.skipped),
        **report.setting,
        "classes": report.classes.tolist(),
        "per_class": report.per_class,
        **_confusion(report),
        "distances": {
            "right": summarise_distances(report.distances[report.correct]).to_dict(),
            "wrong": summarise_distances(report.distances[~report.correct]).to_dict(),
        },
        "histogram": _histogram(report),
        "reliability": _reliability(report),
        "calibration": _calibration(report),
        "mistakes": [mistake.to_dict() for mistake in report.mistakes],
        "timing": _timing(report),
        "versions": _versions(),
    }


def timed_parts(report: EvaluationReport) -> Iterator[tuple[str, str, Timing]]:
    """Yield the name, the part and the clock of all that was timed, of the fit first."""
    for prefix, timing in (("fit_", report.fit_timing), ("", report.timing)):
        yield from ((f"{prefix}{part}", part, timing) for part in _PARTS if part in timing.images)


def _confusion(report: EvaluationReport) -> dict[str, Any]:
    """Return the cells that are not zero, and the whole matrix where that is small enough."""
    found = report._confusion
    return {
        "confusion_matrix": found.matrix().tolist() if found.n_classes <= WHOLE_MATRIX else None,
        "confusion_cells": {name: getattr(found, name).tolist() for name in ("true", "answer", "count")},
    }


def _histogram(report: EvaluationReport) -> dict[str, Any]:
    found = report.distance_histogram()
    return {name: getattr(found, name).tolist() for name in ("edges", "right", "wrong")}


def _reliability(report: EvaluationReport) -> dict[str, Any]:
    """Return what the distance tells at the top, as it was before other measures, and all of them below."""
    return {
        **_measured(report.reliability("distance")),
        "best_measure": report.best_measure,
        "by": {by: _measured(found) for by, found in report.reliabilities.items()},
    }


def _measured(found: Reliability) -> dict[str, Any]:
    curve = found.risk_coverage
    few = curve.thinned(CURVE_POINTS)
    return {
        "error_auroc": _finite(found.error_auroc),
        "risk_coverage": {
            "area": curve.area,
            "best_area": curve.best_area,
            "points": [
                {"threshold": _finite(threshold), "kept": kept, "errors": errors}
                for threshold, kept, errors in zip(
                    few.thresholds.tolist(), few.kept.tolist(), few.errors.tolist(), strict=True
                )
            ],
        },
        "deciles": [{**row, "min": _finite(row["min"]), "max": _finite(row["max"])} for row in found.deciles],
    }


def _calibration(report: EvaluationReport) -> dict[str, Any] | None:
    curve = report.calibration
    return None if curve is None else {"ece": curve.ece, "mce": curve.mce, "bins": curve.rows()}


def _timing(report: EvaluationReport) -> dict[str, Any] | None:
    """Return what was timed; None for a report whose passes were shared with others."""
    if not (report.seconds or report.fit_seconds or any(timed_parts(report))):
        return None
    parts = {
        name: {
            "seconds": timing.seconds.get(part, 0.0),
            "images": timing.images.get(part, 0),
            "images_per_second": timing.rate(part),
        }
        for name, part, timing in timed_parts(report)
    }
    return {
        "fit_s": report.fit_seconds,
        "encode_s": report.timing.seconds.get("encode", 0.0),
        "search_s": report.timing.seconds.get("search", 0.0),
        "total_s": report.fit_seconds + report.seconds,
        "parts": parts,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _versions() -> dict[str, str]:
    found = {"clipretrieval": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
