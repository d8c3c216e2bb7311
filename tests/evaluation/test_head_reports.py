"""Reports and explanations of answers that no votes decided speak of probabilities."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from clipretrieval import RetrievalClassifier
from clipretrieval.heads import Discriminant, Fused, Ridge

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "report.schema.json").read_text(encoding="utf-8"))
RNG = np.random.default_rng(3)
LABELS = np.array(["a", "b", "c"])[RNG.integers(0, 3, 90)]
POINTS = RNG.normal(size=(90, 4)) + (LABELS[:, None] == ["a", "b", "c", "d"])
ASKED = np.array(["a", "b", "c"])[RNG.integers(0, 3, 40)]
QUERIES = RNG.normal(size=(40, 4)) + (ASKED[:, None] == ["a", "b", "c", "d"])
SMALL = Fused(k=6, ridge=Ridge(features=16))
HEADS = {
    "discriminant": "discriminant",
    "quadratic": "quadratic",
    "ridge": "ridge",
    "fused": "fused, k 20",
    Discriminant(0.5): "discriminant(shrinkage=0.5)",
    SMALL: "fused(k=6, ridge=ridge(features=16)), k 6",
}


def fitted(head, **params):
    return RetrievalClassifier(store="memory", head=head, **params).fit(POINTS, LABELS)


@pytest.mark.parametrize("head", list(HEADS), ids=lambda head: str(head).split("(")[0])
def test_a_report_says_what_decided(head):
    """The head stands where k and weights of votes stand, and the share is a probability everywhere."""
    classifier = fitted(head)
    report = classifier.evaluate(QUERIES, ASKED)
    name, _, k = HEADS[head].partition(", k ")
    assert f", head {HEADS[head]}, 90 stored vectors\n" in str(report)
    content = report.to_dict()
    jsonschema.validate(content, SCHEMA)
    assert (content["head"], content.get("k"), content.get("weights")) == (name, int(k) if k else None, None)
    np.testing.assert_allclose(report.confidence, classifier.predict_proba(QUERIES).max(axis=1), atol=1e-12)
    assert report.y_pred.tolist() == classifier.predict(QUERIES).tolist()
    assert {mistake["head"] for mistake in content["mistakes"]} == {name}
    markdown, page = report.to_markdown(), report.to_html()
    assert f"| head | {name} |" in markdown
    assert "| probability |" in markdown
    assert "Calibration: probability and accuracy" in page
    assert "% probability</small>" in page
    for text in (str(report), markdown, page, repr(report)):
        assert "of the votes" not in text
        assert "whole vote" not in text
        assert "had no vote" not in text
    assert f"head={name!r}" in repr(report)
    axes = report.plot_calibration()
    assert axes.get_xlabel() == "confidence"
    assert report.plot_risk_coverage(by="share").get_xlabel() == "share of answers kept"


def test_a_report_of_votes_is_as_it_was():
    """k and weights say it; the JSON names the head too."""
    report = fitted("votes", k=5, weights="softmax", normalize=True).evaluate(QUERIES, ASKED)
    assert ", k 5, weights softmax, 90 stored vectors\n" in str(report)
    assert "| head |" not in report.to_markdown()
    assert "Calibration: share of the votes and accuracy" in report.to_html()
    assert "head=" not in repr(report)
    content = report.to_dict()
    jsonschema.validate(content, SCHEMA)
    assert (content["head"], content["k"], content["weights"]) == ("votes", 5, "softmax")
    assert "head" not in content["mistakes"][0]


@pytest.mark.parametrize("by", ["share", "margin", "distance"])
def test_an_explanation_shows_the_nearest_without_votes(by):
    """The text says how probable the answer is; neighbors have no share, and none is faint."""
    classifier = fitted("discriminant", k=3)
    (found,) = classifier.explain(QUERIES[:1], by=by)
    shares = np.sort(classifier.predict_proba(QUERIES[:1])[0])[::-1]
    assert found.head == "discriminant"
    assert (found.share, found.margin) == pytest.approx((shares[0], shares[0] - shares[1]))
    assert found.answer == classifier.predict(QUERIES[:1])[0]
    assert found.top == ((found.answer, found.share),)
    near = classifier.kneighbors(QUERIES[:1])
    assert [each.id for each in found.neighbors] == near.ids[0].tolist()
    headline, header, *rows = str(found).splitlines()
    written = {
        "share": f"({found.share:.1%} probable)",
        "margin": f"({found.margin:.1%} ahead of the second class)",
        "distance": f"(distance {found.distance:.4g})",
    }
    assert headline == f"{found.answer} {written[by]}"
    assert header.split()[0] == "share"
    assert [row.split()[0] for row in rows] == ["-"] * 3
    assert "opacity" not in found._repr_html_()
    assert found.to_dict()["head"] == "discriminant"


def test_the_most_probable_classes_are_listed():
    """As many as are asked for, the answer first, with the probabilities of `predict_proba`."""
    from clipretrieval.explanation import explain_stream

    classifier = fitted("fused")
    expected = classifier.predict_proba(QUERIES)
    for most in (2, 5):
        for found, shares in zip(explain_stream(classifier, QUERIES, top=most), expected, strict=True):
            order = np.argsort(-shares, kind="stable")[:most]
            assert [label for label, _ in found.top] == classifier.classes_[order].tolist()
            assert [share for _, share in found.top] == pytest.approx(shares[order].tolist())
    (voted,) = explain_stream(fitted("votes"), QUERIES[:1], top=3)
    assert voted.top == ()
    assert voted.counts_votes


def test_parts_of_a_fused_head_are_told():
    """Text, JSON and HTML say what votes, discriminant and ridge would have answered."""
    (found,) = fitted(SMALL).explain(QUERIES[:1])
    parts = {part.name: part for part in found.parts}
    assert list(parts) == ["votes", "discriminant", "ridge"]
    told = str(found).splitlines()[1]
    for name, part in parts.items():
        assert f"{name}: {part.answer}" in told
        assert f"{name}: {part.answer}" in found._repr_html_()
    assert [each["name"] for each in found.to_dict()["parts"]] == list(parts)
