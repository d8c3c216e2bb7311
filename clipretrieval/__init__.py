"""Classify images by retrieval with CLIP's ResNet image encoder, stopped early.

Importing this package loads neither torch nor any store's SDK; each name is imported when it is first
used.
"""

from __future__ import annotations

from clipretrieval._util.lazy import attach
from clipretrieval._version import __version__

TYPE_CHECKING = False  # as type checkers know it; typing itself takes as long to import as all of this
if TYPE_CHECKING:
    from clipretrieval.auditing.audit_report import AuditReport
    from clipretrieval.auditing.auditing import audit
    from clipretrieval.cascade.cascade_classifier import CascadeClassifier
    from clipretrieval.classifier import RetrievalClassifier
    from clipretrieval.comparison.comparison import compare
    from clipretrieval.comparison.recommendation import recommend
    from clipretrieval.comparison.recommendation_report import Recommendation
    from clipretrieval.comparison.report import ComparisonReport
    from clipretrieval.encoding.function_encoder import FunctionEncoder
    from clipretrieval.encoding.onnx.onnx_encoder import OnnxEncoder
    from clipretrieval.encoding.staged_encoder import StagedEncoder
    from clipretrieval.errors import (
        ClipRetrievalError,
        ClipRetrievalWarning,
        DimensionMismatchError,
        FingerprintMismatchError,
        ImageDecodeError,
        InvalidInputError,
        MissingDependencyError,
        NotFittedError,
        StoreCorruptedError,
        StoreError,
        StoreLockedError,
        StoreUnavailableError,
        UnknownStoreError,
        UnsupportedOperationError,
        WeightsUnavailableError,
    )
    from clipretrieval.evaluation.report import EvaluationReport
    from clipretrieval.evaluation.sweep import SweepResult
    from clipretrieval.explanation import Explanation
    from clipretrieval.retrieval.reports import FitReport, ForgetReport, LabelConflict
    from clipretrieval.types import Metric, Neighbors, Records
    from clipretrieval.zeroshot import ZeroShotClassifier

__all__ = [
    "AuditReport",
    "CascadeClassifier",
    "ClipRetrievalError",
    "ClipRetrievalWarning",
    "ComparisonReport",
    "DimensionMismatchError",
    "EvaluationReport",
    "Explanation",
    "FingerprintMismatchError",
    "FitReport",
    "ForgetReport",
    "FunctionEncoder",
    "ImageDecodeError",
    "InvalidInputError",
    "LabelConflict",
    "Metric",
    "MissingDependencyError",
    "Neighbors",
    "NotFittedError",
    "OnnxEncoder",
    "Recommendation",
    "Records",
    "RetrievalClassifier",
    "StagedEncoder",
    "StoreCorruptedError",
    "StoreError",
    "StoreLockedError",
    "StoreUnavailableError",
    "SweepResult",
    "UnknownStoreError",
    "UnsupportedOperationError",
    "WeightsUnavailableError",
    "ZeroShotClassifier",
    "__version__",
    "audit",
    "compare",
    "recommend",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "auditing.auditing": ["audit"],
        "auditing.audit_report": ["AuditReport"],
        "evaluation.sweep": ["SweepResult"],
        "cascade.cascade_classifier": ["CascadeClassifier"],
        "classifier": ["RetrievalClassifier"],
        "encoding.function_encoder": ["FunctionEncoder"],
        "encoding.onnx.onnx_encoder": ["OnnxEncoder"],
        "encoding.staged_encoder": ["StagedEncoder"],
        "errors": [name for name in __all__ if name.endswith(("Error", "Warning"))],
        "comparison.comparison": ["compare"],
        "comparison.recommendation": ["recommend"],
        "comparison.recommendation_report": ["Recommendation"],
        "comparison.report": ["ComparisonReport"],
        "evaluation.report": ["EvaluationReport"],
        "explanation": ["Explanation"],
        "retrieval.reports": ["FitReport", "ForgetReport", "LabelConflict"],
        "types": ["Metric", "Neighbors", "Records"],
        "zeroshot": ["ZeroShotClassifier"],
    },
)
