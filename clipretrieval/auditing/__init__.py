"""Labels to rely on: stored images that are mislabeled, duplicates, leaks, outliers or harmful."""

from __future__ import annotations

from clipretrieval._util.lazy import attach

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clipretrieval.auditing.applied_decisions import AppliedDecisions
    from clipretrieval.auditing.applying import apply_decisions
    from clipretrieval.auditing.audit_report import AuditReport
    from clipretrieval.auditing.auditing import audit
    from clipretrieval.auditing.decisions import Decisions
    from clipretrieval.auditing.estimate import Estimate
    from clipretrieval.auditing.finding import KINDS, Finding, RelatedImage
    from clipretrieval.auditing.image_decision import ACTIONS, ImageDecision

__all__ = [
    "ACTIONS",
    "KINDS",
    "AppliedDecisions",
    "AuditReport",
    "Decisions",
    "Estimate",
    "Finding",
    "ImageDecision",
    "RelatedImage",
    "apply_decisions",
    "audit",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "applied_decisions": ["AppliedDecisions"],
        "applying": ["apply_decisions"],
        "audit_report": ["AuditReport"],
        "auditing": ["audit"],
        "decisions": ["Decisions"],
        "estimate": ["Estimate"],
        "image_decision": ["ACTIONS", "ImageDecision"],
        "finding": ["KINDS", "Finding", "RelatedImage"],
    },
)
