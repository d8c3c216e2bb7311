"""What is reported of a cascade: counted by hand, exit by exit."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from cascades import STAGES, forced, quietly
from PIL import Image

from clipretrieval import ClipRetrievalWarning, InvalidInputError
from clipretrieval.cascade import CascadeReport

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "report.schema.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def report(calibrated, asked):
    return calibrated.evaluate(*asked)


@pytest.fixture(scope="module")
def answers(calibrated, asked):
    """What each stage alone answers, shape (n_exits, n), and the number of the exit that each image took."""
    every = [
        quietly(cut.predict, asked.images)
        for cut in (_only(calibrated, place) for place in range(len(STAGES)))
    ]
    left = [STAGES.index(each.stage) for each in calibrated.explain(asked.images)]
    return np.array(every), np.array(left)


def _only(cascade, place):
    """Return a cascade where all leave at one exit."""
    cut = forced(cascade, None)

    class Only(type(cascade.policy_)):
        def leaves(self, at, margins, agrees, distances):
            return np.full(len(margins), at >= place)

    policy = cascade.policy_
    cut.policy_ = Only(policy.certainty, policy.n_exits, policy.regressions)
    return cut


def test_the_report_has_the_answers(report, calibrated, asked, answers):
    """Predictions, confidence and places are those of predict, predict_proba and explain."""
    assert isinstance(report, CascadeReport)
    assert report.y_pred.tolist() == calibrated.predict(asked.images).tolist()
    np.testing.assert_array_equal(report.confidence, calibrated.predict_proba(asked.images).max(axis=1))
    np.testing.assert_array_equal(report.places, answers[1])
    assert report.y_true.tolist() == asked.labels
    assert report.accuracy == np.mean(report.y_pred == report.y_true)
    assert report.setting["stage"] == ", ".join(STAGES)
    assert calibrated.score(*asked) == report.accuracy


def test_exits_are_counted_as_by_hand(report, calibrated, asked, answers):
    """The four quadrants, shares and accuracies, from the stages' own answers."""
    every, left = answers
    right = every == np.array(asked.labels)
    for place, figures in enumerate(report.exits):
        rows = left == place
        assert figures.stage == STAGES[place]
        assert (figures.left, figures.share) == (rows.sum(), rows.mean())
        assert figures.accuracy == (right[place, rows].mean() if rows.any() else None)
        assert figures.both == (right[place] & right[-1] & rows).sum()
        assert figures.only_here == (right[place] & ~right[-1] & rows).sum()
        assert figures.only_last == (~right[place] & right[-1] & rows).sum()
        assert figures.neither == (~right[place] & ~right[-1] & rows).sum()
        assert figures.accuracy_alone == right[place].mean()
        assert figures.multiply_adds == calibrated.encoder.multiply_adds(STAGES[place])
    costs = np.array([calibrated.encoder.multiply_adds(stage) for stage in STAGES])
    assert report.mean_multiply_adds == pytest.approx(costs[left].mean())
    assert report.arithmetic == pytest.approx(costs[left].mean() / costs[-1])
    assert report.loss == pytest.approx(right[-1].mean() - report.accuracy)
    times = [figures.image_ms for figures in report.exits]
    assert times[0] > 0
    assert times == sorted(times)


def test_the_curve_leads_from_the_first_exit_to_the_last(report, answers, asked):
    """From no threshold to the highest; the cascade as it is lies on it."""
    every, _ = answers
    points = report.curve
    assert [point["multiply_adds"] for point in points] == sorted(point["multiply_adds"] for point in points)
    assert points[-1]["multiply_adds"] == report.multiply_adds[-1]
    assert points[-1]["accuracy"] == np.mean(every[-1] == asked.labels)
    own = (report.mean_multiply_adds, report.accuracy)
    assert any((point["multiply_adds"], point["accuracy"]) == pytest.approx(own) for point in points)


def test_texts_and_pages_show_the_exits(report, tmp_path):
    """Terminal, Markdown, JSON and HTML: each stage has a line, and JSON has no NaN."""
    for text in (str(report), report.to_markdown(tmp_path / "report.md")):
        for stage in STAGES:
            assert stage in text
        assert f"{report.loss:.2%}" in text
    content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    jsonschema.validate(content, SCHEMA)
    told = content["cascade"]
    assert [each["stage"] for each in told["exits"]] == list(STAGES)
    assert told["multiply_adds"] == report.mean_multiply_adds
    assert len(told["curve"]) == len(report.curve)
    page = report.to_html(tmp_path / "report.html", pictures=False)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == f"{page}\n"
    assert "only last" in page


def test_without_the_curve_the_last_exit_is_not_asked(calibrated, asked, report):
    """Images that can be read once are enough; what they lose is not known."""
    short = calibrated.evaluate(iter(asked.images), iter(asked.labels), curve=False, mistakes=0)
    assert short.y_pred.tolist() == report.y_pred.tolist()
    assert (short.loss, short.curve, short.evidence) == (None, [], None)
    assert short.exits[0].both is short.exits[0].accuracy_alone is None
    assert short.mistakes == ()
    assert "lost" not in str(short)
    short.to_html(pictures=False)
    with pytest.raises(InvalidInputError, match=r"only once.*curve=False"):
        calibrated.evaluate(iter(asked.images), asked.labels)
    with pytest.raises(InvalidInputError, match="only once"):
        calibrated.evaluate(zip(asked.images, asked.labels, strict=True))


def test_the_worst_mistakes_are_kept_with_their_neighbors(calibrated, asked):
    """Those of the highest shares, explained at the exit where they left."""
    wrong = ["temple, upper half"] * 40
    report = calibrated.evaluate(asked.images, wrong, mistakes=3, curve=False)
    shares = report.confidence[report.y_pred != report.y_true]
    assert [each.explanation.share for each in report.mistakes] == sorted(shares, reverse=True)[:3]
    for each in report.mistakes:
        assert each.explanation.steps[-1].stage == STAGES[report.places[each.index]]
        assert len(each.explanation.neighbors) > 1


def test_skipped_images_are_listed_and_do_not_count(calibrated, asked, tmp_path):
    """The places of the others are those that they were given at."""
    paths = [tmp_path / f"{number:02}.png" for number in range(12)]
    for number, path in enumerate(paths):
        Image.fromarray(asked.images[number]).save(path)
    paths[4].write_bytes(b"nothing")
    report = calibrated.evaluate(paths, asked.labels[:12], on_error="skip")
    assert [each.index for each in report.skipped] == [4]
    assert report.positions.tolist() == [0, 1, 2, 3, *range(5, 12)]
    assert report.y_true.tolist() == [*asked.labels[:4], *asked.labels[5:12]]
    weights = [0.0] * 12
    weights[4] = weights[0] = 1.0
    score = calibrated.score(paths, asked.labels[:12], weights, on_error="skip")
    assert score == float(report.correct[0])
    again = forced(calibrated, None).calibrate(
        [paths[4], *[np.rot90(each) for each in asked.images], *[each[::-1] for each in asked.images]],
        ["x", *asked.labels, *asked.labels],
        max_loss=0.3,
        on_error="skip",
    )
    assert again.calibration_.n == 80
    assert [each.index for each in again.skipped_] == [0]


def test_images_that_were_calibrated_on_are_refused(calibrated, calibrated_on, asked):
    """Unless it is allowed; one of them among others is enough."""
    with pytest.raises(InvalidInputError, match=r"tuned|calibrated"):
        calibrated.evaluate(*calibrated_on)
    images, labels = [*asked.images, calibrated_on.images[3]], [*asked.labels, calibrated_on.labels[3]]
    with pytest.raises(InvalidInputError, match="allow_tuned"):
        calibrated.score(images, labels)
    assert calibrated.evaluate(images, labels, allow_tuned=True, curve=False).n_test == 41


def test_stored_images_warn(calibrated, fitted_on):
    """They find themselves."""
    with pytest.warns(ClipRetrievalWarning, match="10 of the 10 images are stored"):
        calibrated.evaluate(fitted_on.images[:10], fitted_on.labels[:10], curve=False)


def test_an_uncalibrated_cascade_is_evaluated_at_its_last_exit(uncalibrated, asked):
    """With the warning; nothing is lost, and the curve tells what could be saved."""
    with pytest.warns(ClipRetrievalWarning, match="never calibrated"):
        report = uncalibrated.evaluate(*asked)
    assert (report.loss, report.arithmetic) == (0, 1)
    assert [each.left for each in report.exits] == [0, 0, 0, 40]
    assert len(report.curve) > 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"y": None}, "label"),
        ({"y": list(range(40))}, "type"),
        ({"y": ["x"]}, "40|label"),
        ({"X": []}, "0 images but 40 labels"),
        ({"mistakes": -1}, "mistakes"),
        ({"curve": 3}, "curve"),
        ({"allow_tuned": "no"}, "allow_tuned"),
        ({"on_error": "ignore"}, "on_error"),
        ({"progress": 3}, "progress"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(calibrated, asked, given, message):
    """Labels of another type or number, no images, and unknown options."""
    with pytest.raises(InvalidInputError, match=message):
        calibrated.evaluate(**{"X": asked.images, "y": asked.labels, **given})


def test_progress_is_told_image_by_image(calibrated, asked, calibrated_on):
    """Every call that goes through images counts them, up to all."""
    for ask in (calibrated.predict, calibrated.predict_proba, calibrated.explain):
        told = []
        ask(asked.images, progress=lambda *done, told=told: told.append(done))
        assert told[-1] == (40, 40)
        assert [done for done, _ in told] == sorted(done for done, _ in told)
