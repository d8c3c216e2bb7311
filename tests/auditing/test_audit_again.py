"""What was decided to be kept is not listed again, until something about it is another."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audited import Shade, draw, file_id

from clipretrieval import AuditReport, ClipRetrievalWarning, InvalidInputError, RetrievalClassifier, audit
from clipretrieval.auditing import Decisions, Finding, ImageDecision

FAR = np.full((1, 8), 30, dtype=np.float32)


@pytest.fixture(scope="module")
def points() -> tuple[Any, Any]:
    """Two classes that lie apart, of each of which two have the other's label."""
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1], 40)
    vectors = (6 * truth[:, None] + rng.standard_normal((80, 8))).astype(np.float32)
    given = truth.copy()
    given[[3, 5, 43, 45]] = 1 - given[[3, 5, 43, 45]]
    return vectors, np.array(["ant", "bee"])[given]


def keeping(*findings: Finding) -> Decisions:
    return Decisions({}, [ImageDecision.on(each, "keep") for each in findings])


@pytest.mark.parametrize("store", [None, "memory"])
def test_a_label_that_was_kept_is_taken_for_right(store: str | None, points: Any, tmp_path: Path) -> None:
    """It is neither listed nor counted nor expected to be wrong; the others are as they were."""
    vectors, labels = points
    made = (vectors, labels) if store is None else (RetrievalClassifier(store=store).fit(vectors, labels),)
    first = audit(*made, parts=["label"])
    kept, *others = first.of("label")
    assert len(others) == 3
    keeping(kept).to_json(tmp_path / "decisions.json")
    again = audit(*made, parts=["label"], decisions=tmp_path / "decisions.json")
    assert again.of("label") == tuple(others)
    assert (again.counts, again.kept, first.kept) == ({"label": 3}, {"label": 1}, {})
    before, after = first.estimates["label"], again.estimates["label"]
    assert after.expected == pytest.approx(before.expected - kept.probability)
    assert (after.checked, after.listed) == (79, 3)
    assert AuditReport.from_dict(again.to_dict()).kept == again.kept
    assert "not listed, as earlier decisions keep their images: 1 label" in str(again)
    assert "Not listed, as earlier decisions keep their images: 1 label." in again.to_html()
    everything = audit(*made, parts=["label"], decisions=[keeping(kept), keeping(*others)])
    assert (everything.counts, everything.kept) == ({"label": 0}, {"label": 4})
    assert "keep their images" not in str(first) + first.to_html()


def test_a_decision_is_about_one_label_and_what_was_shown(points: Any) -> None:
    """Another label, another finding, and a later decision show the image again."""
    vectors, labels = points
    kept = audit(vectors, labels, parts=["label"]).of("label")[0]
    decided = keeping(kept)
    later = Decisions({}, [ImageDecision.on(kept, "relabel", kept.suggested)])
    assert audit(vectors, labels, parts=["label"], decisions=[decided, later]).counts == {"label": 4}
    assert audit(vectors, labels, parts=["label"], decisions=[later, decided]).counts == {"label": 3}
    more = Decisions({}, [ImageDecision("keep", kept.id, None, kept.label, None, ("outlier",))])
    assert audit(vectors, labels, parts=["label"], decisions=[decided, more]).counts == {"label": 3}
    anything = Decisions({}, [ImageDecision("keep", kept.id, None, kept.label)])
    assert audit(vectors, labels, parts=["label"], decisions=anything).counts == {"label": 3}
    for change in ({"before": "cow"}, {"findings": ("outlier",)}):
        (decision,) = decided.decisions
        values = {**vars(decision), **change}
        other = Decisions({}, [ImageDecision(**values)])
        assert audit(vectors, labels, parts=["label"], decisions=other).counts == {"label": 4}
    both = Decisions(
        {}, [*decided.decisions, ImageDecision("keep", kept.id, None, kept.label, None, ("harm",))]
    )
    assert [each.findings for each in both.decisions] == [("label", "harm")]
    assert Decisions.from_dict(json.loads(both.to_json())).decisions[0].findings == ("label", "harm")


def test_a_group_is_shown_again_with_a_new_image(points: Any) -> None:
    """Equal images that are all kept are not listed; a new copy, or a new leak, shows all of them."""
    vectors, labels = points
    given, marks = np.concatenate([vectors, vectors[:2], vectors[:1]]), [*labels, *labels[:2], labels[0]]
    test = vectors[10:11]
    asked: dict[str, Any] = {"X_test": test, "parts": ["duplicate", "leak"]}
    report = audit(given, marks, **asked)
    assert report.counts == {"duplicate": 5, "leak": 2}
    pair, three = sorted(report.groups("duplicate"), key=len)
    stored = [each for each in report.of("leak") if each.where == "train"]
    decided = keeping(*three, pair[0], *stored)
    again = audit(given, marks, **asked, decisions=decided)
    assert (again.counts, again.kept) == ({"duplicate": 2, "leak": 0}, {"duplicate": 3, "leak": 2})
    assert {each.id for each in again.of("duplicate")} == {each.id for each in pair}
    # One of the three is gone, and the other two stay as they were decided.
    fewer = audit(given[:-1], marks[:-1], **asked, decisions=decided)
    assert {each.id for each in fewer.of("duplicate")} == {each.id for each in pair}
    more = audit(
        *(np.concatenate([given, vectors[:1]]), [*marks, labels[0]]),
        **{**asked, "X_test": np.concatenate([test, vectors[0:1]])},
        decisions=decided,
    )
    assert len([each for each in more.of("leak") if each.where == "train"]) == 4
    assert more.kept == {"leak": 2}


def test_outliers_and_harm_can_be_kept(points: Any) -> None:
    """Each by itself."""
    vectors, labels = points
    given, marks = np.concatenate([vectors, FAR]), [*labels, "ant"]
    classifier = RetrievalClassifier(store="memory").fit(given, marks)  # a single neighbor misleads
    asked: dict[str, Any] = {"X_test": vectors + 0.01, "y_test": np.repeat(["ant", "bee"], 40)}
    report = audit(classifier, parts=["outlier", "harm"], **asked)
    assert report.counts["outlier"] == 1
    assert report.counts["harm"] >= 1
    decided = keeping(*report.of("outlier"), report.of("harm")[0])
    again = audit(classifier, parts=["outlier", "harm"], **asked, decisions=decided)
    assert again.of("harm") == report.of("harm")[1:]
    assert (again.counts["outlier"], again.kept) == (0, {"outlier": 1, "harm": 1})


def test_files_are_kept_by_their_contents(tmp_path: Path) -> None:
    """A tiny or blank image as long as it is the same; one that cannot be read by its name."""
    for shade in range(0, 240, 20):
        draw(tmp_path / ("cat" if shade < 120 else "dog") / f"{shade}.png", shade)
    broken = tmp_path / "cat" / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    asked: dict[str, Any] = {"encoder": Shade(), "parts": ["blank", "broken"]}
    report = audit(tmp_path, **asked)
    assert report.counts == {"broken": 1, "blank": 12}
    decided = keeping(*report.of("broken"), *report.of("blank"))
    draw(tmp_path / "cat" / "0.png", 7)
    again = audit(tmp_path, **asked, decisions=decided)
    assert [each.id for each in again.of("blank")] == [file_id(tmp_path / "cat" / "0.png")]
    assert (again.counts, again.kept) == ({"broken": 0, "blank": 1}, {"broken": 1, "blank": 11})


def test_the_page_says_what_each_image_was_shown_for() -> None:
    """Every kind that has a card of it, and of a leak the test images."""
    one, other = "a" * 32, "b" * 32
    leaked = [Finding("leak", one, "x", group=0), Finding("leak", other, "x", group=0, where="test")]
    report = AuditReport((Finding("label", one, "x", suggested="y"), *leaked), 2, ("x", "y"), {})
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', report.to_html(), re.DOTALL)
    assert data is not None
    (image,) = json.loads(data[1])["images"]
    told = json.loads("{" + image["told"] + "}")
    assert told["findings"] == ["label", f"leak:{other}"]
    assert ImageDecision.from_dict({"action": "keep", "label": None, **told}).findings == tuple(
        told["findings"]
    )


def test_what_are_no_decisions_is_refused(points: Any, tmp_path: Path) -> None:
    """So are others' decisions, by a warning."""
    vectors, labels = points
    (tmp_path / "decisions.json").write_text("{}")
    for given, message in (
        (5, "decisions must be a sequence of Decisions or of paths"),
        ([tmp_path / "none.json"], "cannot be read"),
        (tmp_path / "decisions.json", "no decisions on an audit"),
        ([5], "decisions must be a path"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            audit(vectors, labels, decisions=given)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="the findings are"):
        ImageDecision("keep", "a" * 32, findings=["label"])  # type: ignore[arg-type]
    others = Decisions({}, [ImageDecision("keep", "a" * 32, None, "ant")])
    with pytest.warns(ClipRetrievalWarning, match="none of the 1 images that the decisions keep"):
        audit(vectors, labels, parts=["outlier"], decisions=others)
