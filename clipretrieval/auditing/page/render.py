"""The report of an audit as one HTML page, on which images can be decided on."""

from __future__ import annotations

import shlex

from clipretrieval._util.checks import check_bool, check_int, check_text
from clipretrieval.auditing.page.parts import Audited, page_values
from clipretrieval.evaluation.page.document import read_thumbnails, render_document

__all__ = ["MOST_FINDINGS", "render_audit"]

MOST_FINDINGS = 300
"""Of each kind: more than anybody goes through at a time."""


def render_audit(
    report: Audited,
    *,
    title: str | None = None,
    pictures: bool = True,
    most: int = MOST_FINDINGS,
) -> str:
    """Return the page; see `AuditReport.to_html`."""
    title = None if title is None else check_text(title, "title", empty=True)
    read = read_thumbnails() if check_bool(pictures, "pictures") else lambda path: None
    return render_document(
        "clipretrieval.auditing.page",
        "audit.html",
        styles=["page.css", "audit.css"],
        scripts=["audit.js", "tables.js"],
        title=title or "Audit",
        notes=(),
        in_shell=shlex.quote,
        pictures=pictures,
        **page_values(report, read, check_int(most, "most")),
    )
