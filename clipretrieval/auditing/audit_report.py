"""The report of an audit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipretrieval._util.checks import check_choice, check_int, check_path, shown
from clipretrieval._util.files import read_file, write_report
from clipretrieval._util.repr import short_repr
from clipretrieval._util.tables import aligned_table
from clipretrieval._util.text import counted, json_document, parse_json, readable, shortened
from clipretrieval.auditing.estimate import Estimate
from clipretrieval.auditing.finding import KINDS, Finding
from clipretrieval.auditing.words import KIND_TITLES
from clipretrieval.errors import InvalidInputError

__all__ = ["AUDIT_SCHEMA", "AuditReport"]

AUDIT_SCHEMA = 1
_KIND = "audit"
ROWS = 5
"""Findings of each kind that are shown, if no other number is given."""
WIDEST_NAME, WIDEST_LABEL, WIDEST_NOTE = 48, 20, 88


@dataclass(frozen=True, eq=False)
class AuditReport:
    """The findings of an audit, ranked within each kind.

    Attributes
    ----------
    findings : tuple of Finding
        Kind by kind, in the order of `KINDS`; the strongest first, groups together.
    n_images, n_test : int
        Images that were audited, and that they were compared with.
    classes : tuple of (bool, int, float or str)
        Of the audited images, sorted.
    fingerprint : mapping of JSON values
        What was audited: ``"encoder"``, ``"metric"``, ``"normalize"``, ``"dim"``, ``"count"``, ``"state"``
        (the token of the store's state; None where it has none) and ``"contents"`` (a digest of all ids and
        labels).
    counts : mapping of str to int
        By kind, how many findings there are, also where the report has fewer.
    kept : mapping of str to int
        By kind, how many findings are omitted and not counted, as earlier decisions keep their images.
    estimates : mapping of str to Estimate
        By kind, how many are probably real, if the audit can estimate it.
    left_out : mapping of str to str
        By kind, why the audit has not looked for it, or not completely.
    cautions : mapping of str to str
        By kind, why to doubt what was found.
    setting : mapping of JSON values
        The arguments; what was audited (``"audited"``: ``"classifier"``, ``"images"`` or ``"vectors"``, and
        the ``"folder"`` of images, if it is one); the head that judged labels and how often it predicts the
        label of an image that it does not know (``"head"``, ``"held_out_accuracy"``).
    seconds : mapping of str to float
        Wall times of the audit's parts, and ``"total"``.
    """

    findings: tuple[Finding, ...]
    n_images: int
    classes: tuple[Any, ...]
    fingerprint: Mapping[str, Any]
    n_test: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    kept: Mapping[str, int] = field(default_factory=dict)
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    cautions: Mapping[str, str] = field(default_factory=dict)
    setting: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def of(self, kind: str) -> tuple[Finding, ...]:
        """Return the findings of one kind, the strongest first.

        Raises
        ------
        InvalidInputError
            If there is no such kind; the message lists them.
        """
        check_choice(kind, "kind", KINDS)
        return tuple(each for each in self.findings if each.kind == kind)

    def groups(self, kind: str) -> list[tuple[Finding, ...]]:
        """Return the findings of one kind in groups, the strongest group first.

        Raises
        ------
        InvalidInputError
            If there is no such kind.
        """
        found: dict[Any, list[Finding]] = {}
        for place, each in enumerate(self.of(kind)):
            found.setdefault(("alone", place) if each.group is None else each.group, []).append(each)
        return [tuple(group) for group in found.values()]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, which `from_dict` takes.

        Returns
        -------
        dict
            ``schema_version``, ``kind`` (``"audit"``), and the attributes by their names.
        """
        return {
            "schema_version": AUDIT_SCHEMA,
            "kind": _KIND,
            "n_images": self.n_images,
            "n_test": self.n_test,
            "classes": list(self.classes),
            "fingerprint": dict(self.fingerprint),
            "counts": dict(self.counts),
            "kept": dict(self.kept),
            "estimates": {kind: each.to_dict() for kind, each in self.estimates.items()},
            "left_out": dict(self.left_out),
            "cautions": dict(self.cautions),
            "setting": dict(self.setting),
            "seconds": dict(self.seconds),
            "findings": [each.to_dict() for each in self.findings],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AuditReport:
        """Read what `to_dict` returned.

        Raises
        ------
        InvalidInputError
            If it is anything else, or of another version; the message says what is wrong.
        """
        known = values if isinstance(values, Mapping) else {}
        if known.get("kind") != _KIND:
            raise InvalidInputError(
                "this is no audit report; pass a file written by AuditReport.to_json or "
                "clipretrieval audit --json"
            )
        if known.get("schema_version") != AUDIT_SCHEMA:
            raise InvalidInputError(
                f"the audit report has schema version {shown(known.get('schema_version'))}; this version of "
                f"the library reads {AUDIT_SCHEMA}. Run the audit again"
            )
        try:
            return cls(
                findings=tuple(Finding.from_dict(each) for each in known["findings"]),
                n_images=int(known["n_images"]),
                n_test=int(known["n_test"]),
                classes=tuple(known["classes"]),
                fingerprint=dict(known["fingerprint"]),
                counts={str(kind): int(count) for kind, count in known["counts"].items()},
                kept={str(kind): int(count) for kind, count in known.get("kept", {}).items()},
                estimates={kind: Estimate.from_dict(each) for kind, each in known["estimates"].items()},
                left_out={str(kind): str(why) for kind, why in known["left_out"].items()},
                cautions={str(kind): str(why) for kind, why in known.get("cautions", {}).items()},
                setting=dict(known["setting"]),
                seconds={str(part): float(taken) for part, taken in known["seconds"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidInputError(f"the audit report is damaged: {error}. Run the audit again") from error

    def to_json(self, path: str | Path | None = None) -> str:
        """Return `to_dict` as JSON, and write it to `path`, atomically, if one is given.

        Raises
        ------
        InvalidInputError
            If the file cannot be written.
        """
        return write_report(path, json_document(self.to_dict(), 1))

    def to_html(
        self,
        path: str | Path | None = None,
        *,
        title: str | None = None,
        pictures: bool = True,
        most: int = 300,
    ) -> str:
        """Return one HTML page that needs nothing else, and write it to `path` if one is given.

        You decide on images on the page; it saves the decisions in a file for `apply_decisions`.

        Parameters
        ----------
        path : str or Path, optional
            Written atomically.
        title : str, optional
            Of the page.
        pictures : bool
            Whether to embed thumbnails, which are read from the images' files now.
        most : int
            Findings of each kind, the strongest first. Beyond 24 MiB of thumbnails there are fewer; the page
            says how many are left out.

        Returns
        -------
        str

        Raises
        ------
        InvalidInputError
            If the file cannot be written.
        """
        from clipretrieval.auditing.page.render import render_audit

        return write_report(path, render_audit(self, title=title, pictures=pictures, most=most), "page")

    @classmethod
    def from_json(cls, path: str | Path) -> AuditReport:
        """Read a file that `to_json` wrote.

        Raises
        ------
        InvalidInputError
            If there is no such file, or it holds something else.
        """
        place = check_path(path, "path")
        try:
            content = parse_json(read_file(place))
        except OSError as error:
            raise InvalidInputError(
                f"the audit report {str(place)!r} cannot be read: {error.strerror or error}"
            ) from error
        except ValueError as error:
            raise InvalidInputError(f"{str(place)!r} holds no JSON: {error}") from error
        return cls.from_dict(content)

    def text(self, rows: int = ROWS) -> str:
        """Return a table of all kinds and the first so many findings of each, as ``str`` does.

        Raises
        ------
        InvalidInputError
            If `rows` is no number of at least 0.
        """
        return _audit_text(self, check_int(rows, "rows", least=0))

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return short_repr(self, n_images=self.n_images, n_test=self.n_test, **self.counts)


def _audit_text(report: AuditReport, rows: int) -> str:
    """Return how many findings of each kind there are, and the first of each."""
    against = f", compared with {counted(report.n_test, 'test image')}" if report.n_test else ""
    lines = [f"{counted(report.n_images, 'image')} of {counted(len(report.classes), 'class')}{against}", ""]
    table = [("", "found", "probably real")]
    for kind in KINDS:
        if kind in report.counts:
            estimate = report.estimates.get(kind)
            real = "" if estimate is None else f"{estimate.low:,.0f} to {estimate.high:,.0f}"
            table.append((KIND_TITLES[kind], f"{report.counts[kind]:,}", real))
    if len(table) > 1:
        lines += [line.rstrip() for line in aligned_table(table)]
    for kind in KINDS:
        found = report.of(kind)[:rows]
        if found:
            lines += ["", f"{KIND_TITLES[kind]}:"]
            lines += [f"  {line}" for line in _rows(kind, found)]
            more = report.counts.get(kind, len(found)) - len(found)
            if more > 0:
                lines.append(f"  … and {more:,} more")
    if report.kept:
        kept = ", ".join(f"{count:,} {kind}" for kind, count in report.kept.items())
        lines += ["", f"not listed, as earlier decisions keep their images: {kept}"]
    if report.cautions:
        lines += ["", *(f"caution: {kind}: {readable(why)}" for kind, why in report.cautions.items())]
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
        return [readable(each.note)]
    if each.kind == "label":
        likely = "" if each.probability is None else f"{each.probability:.0%}"
        return [name, label, f"→ {shortened(each.suggested, WIDEST_LABEL)}", likely]
    if each.kind in ("duplicate", "leak"):
        return [f"group {each.group}", name, label, each.where, readable(each.note)]
    shown = [f"{each.score:.3g}"] if each.kind in ("outlier", "harm") else []
    return [name, label, *shown, shortened(each.note, WIDEST_NOTE)]
