"""Go through what is stored and find what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipretrieval._util.progress import Progress
from clipretrieval.auditing.audit_report import AuditReport
from clipretrieval.encoding.base import Encoder

__all__ = ["audit"]


def audit(
    X: Any,
    y: Any = None,
    *,
    encoder: Encoder | None = None,
    X_test: Any = None,
    y_test: Any = None,
    parts: Sequence[str] | None = None,
    limit: int | None = 1000,
    output: str | Path | None = None,
    progress: Progress | bool | None = None,
) -> AuditReport:
    """Find wrong labels, duplicates, leaks, outliers, harmful images, confused classes and bad files."""
    raise NotImplementedError
