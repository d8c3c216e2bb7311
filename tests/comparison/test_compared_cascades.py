"""Cascades as rows of a comparison, held against cascades that were fitted and calibrated one by one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from patterns import draw_patterns

from clipretrieval import (
    CascadeClassifier,
    InvalidInputError,
    RetrievalClassifier,
    StagedEncoder,
    compare,
)
from clipretrieval.encoding.staged_encoder import stopped_at
from clipretrieval.evaluation import mcnemar_exact
from clipretrieval.evaluation.validation import Validation
from clipretrieval.images import iter_images
from clipretrieval.stores import FaissStore

EXITS = ("stem", "layer1", "late")
SHARE = 0.5
PROMISE: dict[str, Any] = {"max_loss": 0.15, "confidence": 0.9}
QUICK: dict[str, Any] = {"timed_images": 4, "single_images": 1, "open_clip": False, "stores": "memory"}
TRAIN, LABELS = draw_patterns(160, 0)
TEST, TRUTH = draw_patterns(40, 1)


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return StagedEncoder(tiny_model, precision="fp32")


@pytest.fixture(scope="module")
def compared(encoder):
    """One stage and two cascades, by neighbors and by a head that learns."""
    return compare(
        TRAIN,
        TEST,
        train_labels=LABELS,
        test_labels=TRUTH,
        encoder=encoder,
        stages="late",
        heads=("votes", "discriminant"),
        k=5,
        cascades=[EXITS, ("stem", "late")],
        calibration_share=SHARE,
        **PROMISE,
        **QUICK,
    )


@pytest.fixture(scope="module")
def parts():
    """Places of the images that are fitted on, and of those that are calibrated on."""
    draws = Validation(SHARE, 0, frozenset()).draws
    first = {LABELS.index(label) for label in LABELS}
    held = [place for place, image in enumerate(iter_images(TRAIN)) if draws(image.id) and place not in first]
    return sorted(set(range(len(TRAIN))) - set(held)), held


def of(places):
    return [TRAIN[place] for place in places], [LABELS[place] for place in places]


@pytest.mark.parametrize("head", ["votes", "discriminant"])
def test_a_row_answers_as_a_cascade_of_its_own(compared, encoder, parts, head):
    """Its answers, arithmetic and calibration are those of a cascade fitted on the rest of the images."""
    fitted, held = parts
    alone = CascadeClassifier(encoder, EXITS, head=head, k=5, store="memory").fit(*of(fitted))
    alone.calibrate(*of(held), **PROMISE)
    row = compared[f"stem, layer1, late {head}"]
    expected = alone.evaluate(TEST, TRUTH, curve=False)
    assert row.report.y_pred.tolist() == expected.y_pred.tolist()
    assert row.report.places.tolist() == expected.places.tolist()
    assert row.calibration == alone.calibration_
    shown = row.to_dict()
    assert shown["multiply_adds"] == expected.mean_multiply_adds
    assert shown["exits"] == [{"stage": each.stage, "share": each.share} for each in expected.exits]
    assert (shown["head"], shown["store"], shown["k"]) == (head, "memory", 5 if head == "votes" else None)
    dims = sum(encoder.stages[stage].dim for stage in EXITS)
    assert shown["bytes"] == (4 * dims * len(fitted) if head == "votes" else 0)
    assert row.speed.inference_s > 0 < row.speed.query_s
    assert len(row.speed.latencies_s) == 1


def test_other_rows_are_fitted_on_the_rest_too(compared, encoder, parts):
    """No row has the images that are calibrated on; a stage that only cascades have is no row."""
    fitted, held = parts
    assert [row.name for row in compared.rows] == [
        *("late votes", "late discriminant"),
        *("stem, layer1, late votes", "stem, layer1, late discriminant"),
        *("stem, late votes", "stem, late discriminant"),
    ]
    assert (compared.n_train, compared.n_calibration) == (len(fitted), len(held))
    alone = RetrievalClassifier(stopped_at(encoder, "late"), "memory", head="discriminant").fit(*of(fitted))
    row = compared["late discriminant"]
    assert row.report.y_pred.tolist() == alone.predict(TEST).tolist()
    assert row.to_dict()["multiply_adds"] == encoder.multiply_adds("late")
    assert (row.calibration, row.to_dict()["exits"]) == (None, None)


def test_cascades_are_tested_against_the_last_stage(compared):
    """The baseline is a stage, though cascades stand behind it; the texts and the page tell of the exits."""
    base = compared[compared.baseline]
    assert base.name == "late discriminant"
    for row in compared.rows:
        if row is not base:
            assert row.mcnemar == mcnemar_exact(row.report.correct, base.report.correct)
    text, page = str(compared), compared.to_html()
    for row in compared.rows[2:]:
        left = ", ".join(f"{each.share:.1%} at {each.stage}" for each in row.report.exits)
        assert f"{row.name}: left {left}; calibrated on {row.calibration.n} images" in text
        assert f"Exits of {row.name}" in page
    assert "at most 15.00% below always late, with a confidence of 0.9" in text
    assert json.loads(compared.to_json()) == compared.to_dict()


def run(encoder, train=TRAIN, labels=LABELS, test=TEST, truth=TRUTH, **options):
    return compare(
        train,
        test,
        train_labels=labels,
        test_labels=truth,
        encoder=encoder,
        stages="stem",
        heads="discriminant",
        **{**QUICK, "cascades": [("stem", "layer1")], "calibration_share": SHARE, **PROMISE, **options},
    )


def test_nothing_is_calibrated_on_test_images(encoder, parts):
    """Those that are among the training images too are left out, and copies count once."""
    fitted, held = parts
    some = held[:7]
    twice = [*TRAIN, *(TRAIN[place] for place in held[:3])]
    with_copies = [*LABELS, *(LABELS[place] for place in held[:3])]
    asked = [*TEST[:9], *(TRAIN[place] for place in some)]
    found = run(encoder, twice, with_copies, asked, [*TRUTH[:9], *(LABELS[place] for place in some)])
    assert found.n_train == len(fitted)
    assert found.n_calibration == len(held)
    assert found.rows[-1].calibration.n == len(held) - 7


def test_with_a_budget_a_cascade_keeps_to_its_cost(encoder):
    """No number of images is too small then, and the text says what it is."""
    budget = (encoder.multiply_adds("stem") + encoder.multiply_adds("layer1")) / 2
    found = run(encoder, budget=budget, calibration_share=0.1).rows[-1]
    assert found.calibration.multiply_adds <= budget
    assert found.calibration.max_loss is None
    assert found.report.mean_multiply_adds < encoder.multiply_adds("layer1")


def test_skipped_images_have_no_answer_of_a_cascade_either(encoder):
    """Broken images, in training and in test, are passed over in both passes."""
    found = run(
        encoder,
        [*[b"broken"] * 70, *TRAIN],
        [*["stripes"] * 70, *LABELS],
        [b"broken", *TEST],
        ["stripes", *TRUTH],
        on_error="skip",
    )
    assert found.rows[-1].report.positions.tolist() == list(range(1, 41))
    assert found.rows[-1].report.y_true.tolist() == TRUTH
    assert len(found.skipped) == 71


def test_what_was_held_out_is_held_out_again(encoder, parts, tmp_path):
    """With resume, filled stores stay as they are, and so do the figures."""
    stores = {"kept": lambda stage: FaissStore(tmp_path / stage)}
    once, again = (run(encoder, stores=stores, resume=resume) for resume in (False, True))
    assert (once.fit_timing.images["encode"], again.fit_timing.images.get("encode", 0)) == (len(parts[0]), 0)
    assert (again.n_train, again.n_calibration) == (once.n_train, once.n_calibration)
    assert again.rows[-1].calibration == once.rows[-1].calibration
    assert again.rows[-1].report.y_pred.tolist() == once.rows[-1].report.y_pred.tolist()


def test_a_class_of_one_image_is_stored(encoder):
    """The first image of a class is not held out, so that its class can be answered."""
    found = run(encoder, [*TRAIN, 255 - TRAIN[0]], [*LABELS, "rare"], calibration_share=0.9)
    assert "rare" in found.rows[-1].report.classes
    assert found.n_train + found.n_calibration == len(TRAIN) + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cascades": ("stem", "layer1")}, "each of cascades must be a sequence of str; got 'stem'"),
        ({"cascades": 3}, "cascades must be a sequence of sequences of stages"),
        ({"cascades": [("stem",)]}, "a cascade has at least two exits"),
        ({"cascades": [("layer1", "stem")]}, "'stem' is not deeper than 'layer1'"),
        ({"cascades": [("stem", "layer9")]}, "layer9"),
        ({"calibration_share": 1.0}, "calibration_share must be"),
        ({"max_loss": 0}, "max_loss must be"),
        ({"confidence": 1}, "confidence must be"),
        ({"budget": 1e-9}, r"less than the .* that it takes to reach the first exit, 'stem'"),
        ({"max_loss": 0.01}, r"calibration_share=0.5 of the training images are 80, and .* at least 249"),
        ({"test": iter(TEST)}, "can be gone through only once"),
        ({"truth": iter(TRUTH)}, "can be gone through only once"),
    ],
)
def test_what_cannot_be_promised_is_refused(encoder, options, message, monkeypatch):
    """Before any image is read, and the message says what was wrong."""
    monkeypatch.setattr(StagedEncoder, "stream", lambda *_, **__: pytest.fail("images were read"))
    with pytest.raises(InvalidInputError, match=message):
        run(encoder, **options)


def test_too_few_images_of_unknown_number_are_refused_once_they_are_stored(encoder):
    """A generator tells its length at its end; the test images are not encoded for nothing."""
    pairs = (pair for pair in zip(TRAIN, LABELS, strict=True))
    with pytest.raises(InvalidInputError, match="at least 249"):
        run(encoder, pairs, None, [b"broken"], ["stripes"], max_loss=0.01)
