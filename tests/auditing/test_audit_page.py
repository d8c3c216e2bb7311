"""The page of an audit as text: what is in it, and how much."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audited import report_of
from PIL import Image

from clipretrieval.auditing import Estimate, Finding, RelatedImage
from clipretrieval.auditing.page import parts
from clipretrieval.errors import InvalidInputError

HARM = "</script><b>\n"


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_all_that_is_decided_on_is_json_that_keeps_its_type(tmp_path: Path) -> None:
    """Long numbers, whole floats and names that are no text come out of the script's parts as they were."""
    for label in (2**60 + 1, 1.0, True, HARM):
        finding = Finding("label", "a" * 32 + "-2", label, "/nowhere/\udcff.png", suggested=label)
        page = report_of([finding], (label,), fingerprint={"encoder": {"stage": HARM}}).to_html(
            tmp_path / "a.html"
        )
        assert HARM not in page
        data = data_of(page)
        assert json.loads("{" + data["head"] + "}")["fingerprint"] == {"encoder": {"stage": HARM}}
        told = json.loads("{" + data["images"][0]["told"] + "}")
        assert told == {**told, "id": finding.id, "source": finding.source, "before": label}
        assert told["findings"] == [finding.kind]
        assert type(told["before"]) is type(label)
        assert data["labels"] == [json.dumps(label)]


def test_names_that_read_alike_are_told_apart() -> None:
    """A class with a line break, and one with the letters that stand for it."""
    page = report_of([Finding("outlier", "a", "x\n")], ("x\n", "x\\n", "y")).to_html()
    assert data_of(page)["names"] == ['"x\\n"', '"x\\\\n"', "y"]


def test_how_much_a_page_holds_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many findings of each kind, images of a group and bytes; what is left out is counted."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    source = str(tmp_path / "noise.png")
    findings = [Finding("outlier", f"o{number}", "cat", source) for number in range(5)]
    findings += [Finding("duplicate", f"d{number}", "cat", source, group=3) for number in range(40)]
    findings += [Finding("blank", f"b{number}", "cat", source) for number in range(5)]
    report = report_of(findings, ("cat",))
    whole = report.to_html()
    assert whole.count('class="card"') == 5 + 30 + 5
    assert "10 more of this group are not shown" in whole
    assert report.to_html(most=2).count('class="card"') == 2 + 30 + 2
    size = len(re.findall(r"data:image/jpeg;base64,[^\"]*", whole)[0])
    monkeypatch.setattr(parts, "MOST_BYTES", 34 * size)
    small = report.to_html()
    assert small.count('class="card"') == 30 + 4
    assert small.count("3 more of this kind are not on this page") == 2
    assert "data:image" not in report.to_html(pictures=False)
    with pytest.raises(InvalidInputError, match="most must be a whole number"):
        report.to_html(most=0)


def test_what_was_not_looked_for_or_not_found_is_said() -> None:
    """Estimates and reasons are in words; an audit without findings has a page too."""
    report = report_of(
        [Finding("confusion", None, "cat", suggested="dog", score=0.125, note="9 of 72")],
        ("cat", "dog"),
        estimates={"confusion": Estimate(12.4, 3, 20, 1000, 12, "by guessing")},
        left_out={"leak": "no test images were given"},
    )
    page = report.to_html(title="Über")
    assert "Probably about 12 of 1,000 images (between 3 and 20; by guessing)." in page
    assert "<li>Leaks: test images that are also among the audited ones: no test images were" in page
    assert "12.50%" in page
    assert "9 of 72" in page
    assert 'id="save"' not in page
    empty = report_of([], ("cat",)).to_html()
    assert "Nothing was found of: tiny images." in empty


def test_a_card_shows_its_image_with_others_beside_it(tmp_path: Path) -> None:
    """Framed by their labels; none that has a card in the same group; a file that is gone is named."""
    near = [
        RelatedImage(name, label, None, 0.5) for name, label in (("b", "dog"), ("c", "cat"), ("d", "emu"))
    ]
    single = report_of(
        [Finding("label", "a", "cat", str(tmp_path / "gone.png"), suggested="dog", neighbors=tuple(near))],
        ("cat", "dog", "emu"),
    ).to_html()
    frames = re.findall(r'<figure(?: class="(\w+)")?>', single)
    assert frames == ["asked", "right", "wrong", ""]
    assert "file is gone" in single
    group = [
        Finding("duplicate", name, "cat", neighbors=tuple(near), group=0, note="equal images")
        for name in ("a", "b", "c")
    ]
    page = report_of(group, ("cat", "dog", "emu")).to_html()
    assert page.count("<figcaption><bdi>emu</bdi>") == 3
    assert page.count("<figcaption><bdi>dog</bdi>") == 0
    assert page.count("equal images") == 1
