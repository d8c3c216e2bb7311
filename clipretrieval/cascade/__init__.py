"""Several stages as exits, of which each image takes the first that is sure."""

from __future__ import annotations

from clipretrieval._util.lazy import attach

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clipretrieval.cascade.calibration import Calibration
    from clipretrieval.cascade.cascade_classifier import CascadeClassifier
    from clipretrieval.cascade.cascade_explanation import CascadeExplanation, ExitStep
    from clipretrieval.cascade.cascade_report import CascadeReport, ExitFigures
    from clipretrieval.cascade.exit_policy import ExitEvidence, ExitPolicy
    from clipretrieval.cascade.risk_control import betting_p_value, last_accepted, least_sample

__all__ = [
    "Calibration",
    "CascadeClassifier",
    "CascadeExplanation",
    "CascadeReport",
    "ExitEvidence",
    "ExitFigures",
    "ExitPolicy",
    "ExitStep",
    "betting_p_value",
    "last_accepted",
    "least_sample",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "calibration": ["Calibration"],
        "cascade_classifier": ["CascadeClassifier"],
        "cascade_explanation": ["CascadeExplanation", "ExitStep"],
        "cascade_report": ["CascadeReport", "ExitFigures"],
        "exit_policy": ["ExitEvidence", "ExitPolicy"],
        "risk_control": ["betting_p_value", "last_accepted", "least_sample"],
    },
)
