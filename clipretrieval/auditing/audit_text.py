"""An audit's report as plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipretrieval._util.tables import aligned_table
from clipretrieval._util.text import readable, shortened
from clipretrieval.auditing.finding import KINDS, Finding

if TYPE_CHECKING:
    from clipretrieval.auditing.audit_report import AuditReport

__all__ = ["ROWS", "audit_text"]

ROWS = 5
"""Findings of each kind that are shown, if no other number is given."""
WIDEST_NAME, WIDEST_LABEL, WIDEST_NOTE = 48, 20, 88

_TITLES = {
    "label": "labels that are probably wrong",
    "duplicate": "images that are equal or nearly",
    "leak": "images of both sets that are equal or nearly",
    "outlier": "images unlike all others",
    "harm": "stored images that mislead answers to test images",
    "confusion": "classes that are confused",
    "broken": "files that cannot be decoded",
    "tiny": "tiny images",
    "blank": "blank images",
}


def audit_text(report: AuditReport, rows: int = ROWS) -> str:
    """Return how many findings of each kind there are, and the first of each.

    Parameters
    ----------
    report : AuditReport
    rows : int
        Findings of each kind; at least 0.
    """
    against = f", compared with {report.n_test:,} test images" if report.n_test else ""
    lines = [f"{report.n_images:,} images of {len(report.classes):,} classes{against}", ""]
    table = [("", "found", "probably real")]
    for kind in KINDS:
        if kind in report.counts:
            estimate = report.estimates.get(kind)
            real = "" if estimate is None else f"{estimate.low:,.0f} to {estimate.high:,.0f}"
            table.append((_TITLES[kind], f"{report.counts[kind]:,}", real))
    if len(table) > 1:
        lines += [line.rstrip() for line in aligned_table(table)]
    for kind in KINDS:
        found = report.of(kind)[:rows]
        if found:
            lines += ["", f"{_TITLES[kind]}:"]
            lines += [f"  {line}" for line in _rows(kind, found)]
            more = report.counts.get(kind, len(found)) - len(found)
            if more > 0:
                lines.append(f"  … and {more:,} more")
    if report.left_out:
        lines += ["", *(f"left out: {kind}: {readable(why)}" for kind, why in report.left_out.items())]
    return "\n".join(lines)


def _rows(kind: str, found: tuple[Finding, ...]) -> list[str]:
    if kind == "confusion":
        return [readable(each.note) for each in found]
    cells = [_cells(each) for each in found]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def _cells(each: Finding) -> list[str]:
    name = shortened(each.source or each.id or "", WIDEST_NAME)
    label = "" if each.label is None else shortened(each.label, WIDEST_LABEL)
    if each.kind == "broken":
        return [shortened(each.note, WIDEST_NOTE)]
    if each.kind == "label":
        likely = "" if each.probability is None else f"{each.probability:.0%}"
        return [name, label, f"→ {shortened(each.suggested, WIDEST_LABEL)}", likely]
    if each.kind in ("duplicate", "leak"):
        return [f"group {each.group}", name, label, each.where, readable(each.note)]
    shown = [f"{each.score:.3g}"] if each.kind in ("outlier", "harm") else []
    return [name, label, *shown, shortened(each.note, WIDEST_NOTE)]
