"""Answers to rely on: calibrated probabilities, prediction sets, and a label for unknown images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipretrieval._util.lazy import attach

if TYPE_CHECKING:
    from clipretrieval.trust.calibrated import CalibrationReport
    from clipretrieval.trust.conformal import least_images
    from clipretrieval.trust.conformalized import ConformalReport
    from clipretrieval.trust.trust import PredictionSets

__all__ = ["CalibrationReport", "ConformalReport", "PredictionSets", "least_images"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "calibrated": ["CalibrationReport"],
        "conformal": ["least_images"],
        "conformalized": ["ConformalReport"],
        "trust": ["PredictionSets"],
    },
)
