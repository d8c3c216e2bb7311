"""Audit reports, written and read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clipretrieval import AuditReport, InvalidInputError
from clipretrieval.auditing import KINDS, Estimate, Finding, RelatedImage


@pytest.fixture
def report() -> AuditReport:
    """A report of a wrong label, a pair of duplicates, and a label that controls terminals."""
    near = RelatedImage("b", 'a "quoted"\n label', "folder/b.png", 0.25)
    wrong = Finding("label", "a", "cat\x1b[31m", "folder/\udcff.png", 2.5, 0.75, "dog", (near,))
    pair = [Finding("duplicate", name, "dog", score=1.0, group=0, note="equal images") for name in "cd"]
    return AuditReport(
        (wrong, *pair),
        n_images=40,
        classes=("cat\x1b[31m", "dog"),
        fingerprint={"count": 40},
        counts={"label": 1, "duplicate": 2},
        estimates={"label": Estimate(1.5, 0.5, 2.5, 40, 1, "as told")},
        left_out={"harm": "no test images were given"},
        seconds={"total": 1.0},
    )


def test_a_report_is_read_as_it_was_written(report: AuditReport, tmp_path: Path) -> None:
    """Every field comes back, whatever letters it has."""
    text = report.to_json(tmp_path / "audit.json")
    found = AuditReport.from_json(tmp_path / "audit.json")
    assert found.to_dict() == report.to_dict() == json.loads(text)
    assert found.findings == report.findings
    assert found.groups("duplicate") == [report.findings[1:]]
    assert found.groups("label") == [report.findings[:1]]
    assert repr(found) == "AuditReport(n_images=40, n_test=0, label=1, duplicate=2)"
    assert repr(found.findings[0]) == (
        "Finding(kind='label', score=2.5, id='a', label='cat\\x1b[31m', suggested='dog')"
    )


def test_the_text_shows_counts_and_first_findings(report: AuditReport) -> None:
    """Counts, bounds, the first findings, and what was left out; control characters are escapes."""
    assert str(report).splitlines() == [
        "40 images of 2 classes",
        "",
        "                                found  probably real",
        "labels that are probably wrong      1         0 to 2",
        "duplicates and near duplicates      2",
        "",
        "labels that are probably wrong:",
        "  folder/\\udcff.png  cat\\x1b[31m  → dog  75%",
        "",
        "duplicates and near duplicates:",
        "  group 0  c  dog  train  equal images",
        "  group 0  d  dog  train  equal images",
        "",
        "left out: harm: no test images were given",
    ]
    assert "  … and 1 more" in report.text(1)
    assert "group" not in report.text(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "comparison"}, "this is no audit report; pass a file written by AuditReport"),
        ({"schema_version": 2}, "has schema version 2; this version of the library reads 1"),
        ({"findings": 3}, "the audit report is damaged"),
        ({"n_images": "many"}, "the audit report is damaged"),
        ({"estimates": {"label": {}}}, "an estimate has not the fields"),
    ],
)
def test_what_is_no_report_is_refused(report: AuditReport, change: Any, message: str) -> None:
    """The message says what is wrong with it."""
    with pytest.raises(InvalidInputError, match=message):
        AuditReport.from_dict({**report.to_dict(), **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "wrong"}, "of the kind 'wrong', which is none of"),
        ({"score": "high"}, "the score is no finite number"),
        ({"probability": True}, "the probability is no finite number"),
        ({"group": "one"}, "a group is no number"),
        ({"id": 3}, "the id of an image is no text"),
        ({"label": []}, "a label is of a wrong type"),
        ({"where": "validation"}, "an image lies in 'validation'"),
        ({"neighbors": 3}, "the neighbors are no list"),
        ({"neighbors": [{}]}, "a RelatedImage must have the fields"),
        ({"more": 1}, "a Finding must have the fields"),
        ({"suggested": {}}, "a suggested label or a note is of a wrong type"),
    ],
)
def test_damaged_findings_are_refused(report: AuditReport, change: Any, message: str) -> None:
    """Whatever stands in a file, a finding that is not as it should be is named as damaged."""
    values = report.to_dict()
    values["findings"][0].update(change)
    with pytest.raises(InvalidInputError, match=message):
        AuditReport.from_dict(values)


def test_files_that_hold_no_report_are_refused(tmp_path: Path) -> None:
    """A missing file and one that is no JSON."""
    with pytest.raises(InvalidInputError, match="cannot be read: No such file"):
        AuditReport.from_json(tmp_path / "missing.json")
    (tmp_path / "text.json").write_text("NaN", encoding="utf-8")
    with pytest.raises(InvalidInputError, match="holds no JSON"):
        AuditReport.from_json(tmp_path / "text.json")


def test_unknown_kinds_and_rows_are_refused(report: AuditReport) -> None:
    """The kinds are listed."""
    with pytest.raises(InvalidInputError, match=f"kind must be one of {', '.join(map(repr, KINDS))}"):
        report.of("labels")
    with pytest.raises(InvalidInputError, match="rows must be a whole number, at least 0"):
        report.text(-1)
