"""Labels to rely on: which stored images are wrong, doubled, leaked, strange or harmful."""

from __future__ import annotations

from clipretrieval._util.lazy import attach

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clipretrieval.auditing.audit_report import AuditReport
    from clipretrieval.auditing.auditing import audit
    from clipretrieval.auditing.estimate import Estimate
    from clipretrieval.auditing.finding import KINDS, Finding, RelatedImage

__all__ = ["KINDS", "AuditReport", "Estimate", "Finding", "RelatedImage", "audit"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "auditing": ["audit"],
        "audit_report": ["AuditReport"],
        "estimate": ["Estimate"],
        "finding": ["KINDS", "Finding", "RelatedImage"],
    },
)
