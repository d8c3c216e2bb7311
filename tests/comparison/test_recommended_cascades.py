"""Cascades among what is recommended: what is learned for them, where, and what they cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patterns import draw_patterns
from PIL import Image

import clipretrieval
from clipretrieval import CascadeClassifier, InvalidInputError, RetrievalClassifier, StagedEncoder, recommend
from clipretrieval.cascade import ExitEvidence, ExitPolicy
from clipretrieval.cascade.calibration import calibrate_policy
from clipretrieval.comparison import recommendation
from clipretrieval.comparison.advice import Choice, pareto_front
from clipretrieval.comparison.candidates import stage_vectors
from clipretrieval.comparison.cascade_trial import PARTS, CascadeTrial
from clipretrieval.comparison.folds import divide
from clipretrieval.encoding.staged_encoder import stopped_at
from clipretrieval.evaluation import wilson_interval
from clipretrieval.images import iter_images

STAGES = ("stem", "layer1", "late")
IMAGES, LABELS = draw_patterns(240, 0)
PROMISE: dict[str, Any] = {"max_loss": 0.15, "confidence": 0.9}
QUICK: dict[str, Any] = {"heads": "discriminant", "timed_images": 2, **PROMISE}
N = 400


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return StagedEncoder(tiny_model, precision="fp32")


@pytest.fixture(scope="module")
def found(encoder):
    return recommend(IMAGES, LABELS, encoder=encoder, stages=STAGES, **QUICK)


def said(seed=0):
    """Draw what three stages say by one head; deeper ones are right more often, and surer where they are."""
    drawn = np.random.default_rng(seed)
    right = drawn.random((3, N)) < np.array([[0.6], [0.75], [0.9]])
    answers = np.where(right, 0, drawn.integers(1, 4, (3, N)))
    margins = np.clip(0.6 * right + drawn.uniform(0, 0.4, (3, N)), 0, 1)
    return answers, margins, right


def table_of(right, tried):
    """Make the rows of the stages."""
    return [
        {
            "stage": each.encoder.stage,
            "pooling": "mean",
            "head": "own",
            "dim": each.output.dim,
            "accuracy": float(one.mean()),
            "encode_ms": 1.0 + place,
            "query_ms": 0.5,
            "multiply_adds": each.encoder.multiply_adds() + 0.1,
            "head_multiply_adds": 0.1,
        }
        for place, (each, one) in enumerate(zip(tried, right, strict=True))
    ]


def trial(tried, **promise):
    return CascadeTrial(tried, 1, N, 5, **{**PROMISE, **promise})


def test_each_part_is_answered_by_a_rule_from_the_others(encoder):
    """Answers and cost are those of a policy learned and calibrated on other images."""
    tried = stage_vectors(encoder, STAGES, None)
    answers, margins, right = said()
    given, rows, remark = trial(tried).run(table_of(right, tried), (answers, margins, right))
    assert (remark, len(rows)) == ("", 2)
    costs = [encoder.multiply_adds(stage) for stage in STAGES]
    evidence = ExitEvidence.from_answers(answers, margins, np.full((3, N), np.nan), right)
    exits = np.zeros(N, dtype=int)
    for part in range(PARTS):
        asked = np.arange(part, N, PARTS)
        others = np.setdiff1d(np.arange(N), asked)
        policy = ExitPolicy.learn(evidence.take(others[:90]), "combined")
        policy, calibration = calibrate_policy(
            policy, evidence.take(others[90:170]), costs, budget=None, **PROMISE
        )
        assert calibration.n == N // 5
        exits[asked] = policy.exits(evidence.take(asked))
    assert 0 < (exits < 2).mean() < 1
    assert given[0].tolist() == right[exits, np.arange(N)].tolist()
    row = rows[0]
    assert row["stage"] == "stem, layer1, late"
    assert row["exits"] == pytest.approx([(exits == place).mean() for place in range(3)])
    assert (row["accuracy"], row["low"], row["high"]) == (
        given[0].mean(),
        *wilson_interval(int(given[0].sum()), N),
    )
    assert row["head_multiply_adds"] == pytest.approx(0.1 * (1 + exits).mean())
    assert row["multiply_adds"] == pytest.approx((np.array(costs)[exits] + 0.1 * (1 + exits)).mean())
    assert row["encode_ms"] == pytest.approx((1 + exits).mean())
    assert row["total_ms"] == row["encode_ms"] + row["query_ms"]


@pytest.mark.parametrize("part", [0, 7])
def test_no_image_helps_to_decide_about_itself(encoder, part):
    """Whatever is right of a part's images, they leave where they left before."""
    tried = stage_vectors(encoder, STAGES, None)
    answers, margins, right = said(1)
    rows = table_of(right, tried)
    before, *_ = trial(tried).run(rows, (answers, margins, right))
    own = np.arange(part, N, PARTS)
    other = right.copy()
    other[:, own] = ~other[:, own]
    after, *_ = trial(tried).run(rows, (answers, margins, other))
    assert (after[0][own] == ~before[0][own]).all()


def test_cascades_are_tried_for_each_pooling_with_the_heads_that_are_worth_it(encoder):
    """Equal depths are one exit; the best head, and the cheapest that is no worse, each have two cascades."""
    tried = stage_vectors(encoder, ("final", "layer1", "stem+layer1", "mid"), ("mean", "max"))
    names = [(each.encoder.stage, each.pooling) for each in tried]
    answers, margins, right = (np.repeat(each[2:], 2 * len(tried), axis=0) for each in said())
    right[-1] = True  # the second head is the best at the last stage, and for less at no other
    rows = [
        {**row, "multiply_adds": row["multiply_adds"] + 9 * (number % 2)}
        for number, row in enumerate(table_of(right, [each for each in tried for _ in range(2)]))
    ]
    tested = CascadeTrial(tried, 2, N, 5, **PROMISE)
    _, made, _ = tested.run(rows, (answers, margins, right))
    told = [
        (row["stage"], row["pooling"], cascade.setting)
        for row, cascade in zip(made, tested.cascades, strict=True)
    ]
    assert names[-1] == ("mid", "max")
    assert told == [
        ("layer1, mid, final", "mean", 0),
        ("mid, final", "mean", 0),
        ("layer1, mid, final", "max", 1),
        ("mid, final", "max", 1),
    ]


def test_rows_of_cascades_are_compared_as_others(found):
    """They have an interval, a p-value and a place on the front; other rows have no exits."""
    *single, whole, deeper = found.rows
    assert [row["stage"] for row in (whole, deeper)] == ["stem, layer1, late", "layer1, late"]
    assert [row["exits"] for row in single] == [None] * 3
    assert sum(whole["exits"]) == pytest.approx(1)
    assert all(row.keys() == whole.keys() for row in single)
    front = pareto_front(
        *(np.array([row[name] for row in found.rows]) for name in ("multiply_adds", "accuracy"))
    )
    for place, row in enumerate(found.rows):
        assert row["front"] == (place in front)
        assert (row["p_value"] is None) == (row is found.best)
    assert "layer1, late" in found.table()
    assert "cascade (layer1, late), discriminant" in found.to_html()
    assert found.to_dict()["remarks"] == []


@pytest.fixture(scope="module")
def advised(encoder):
    """Two stages and their cascade, which is taken whatever it is worth, with a fold to measure on."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(recommendation, "choose", lambda *_: Choice(2, 2, met=True))
        options = {"stages": ("stem", "late"), "cross": False, "folds": 3, **QUICK}
        return recommend(IMAGES, LABELS, encoder=encoder, **options)


def test_an_advised_cascade_is_measured_on_images_of_its_own(advised, encoder):
    """What is learned on the fold that it was chosen by, and calibrated there, answers the other one."""
    assert (advised.exits, advised.advice["stage"]) == (("stem", "late"), "stem, late")
    ids = [image.id for image in iter_images(IMAGES)]
    order = np.argsort(ids)
    images, labels = [IMAGES[place] for place in order], np.array(LABELS)[order]
    folds = divide(sorted(ids), labels.tolist(), 3, 0, crossed=False)

    def evidence(stored, asked):
        reports = []
        for stage in advised.exits:
            made = RetrievalClassifier(stopped_at(encoder, stage), "memory", head="discriminant")
            made.fit([images[place] for place in stored], labels[stored])
            reports.append(made.evaluate([images[place] for place in asked], labels[asked]))
        return ExitEvidence.from_reports(reports)

    known = evidence(*folds.turns[0])
    count, costs = len(known) // 4, [encoder.multiply_adds(stage) for stage in advised.exits]
    policy = ExitPolicy.learn(known.take(np.arange(count)), "combined")
    rest = known.take(np.arange(count, len(known)))
    policy, _ = calibrate_policy(policy, rest, costs, budget=None, **PROMISE)
    asked = evidence(*folds.measured_on)
    right = asked.correct[policy.exits(asked), np.arange(len(asked))]
    assert (advised.accuracy, advised.n) == (right.mean(), len(right))
    assert advised.interval == wilson_interval(int(right.sum()), len(right))


def test_the_advised_classifier_and_its_code_are_the_cascades(advised):
    """It has the exits, the head and the encoder of the row."""
    built = advised.classifier()
    assert isinstance(built, CascadeClassifier)
    # The code is ours, and its strings are this test's.
    made = eval(advised.code, {name: getattr(clipretrieval, name) for name in clipretrieval.__all__})  # noqa: S307
    assert made.encoder.fingerprint == built.encoder.fingerprint
    for name in ("stages", "head", "k", "weights", "normalize"):
        assert getattr(made, name) == getattr(built, name)
    assert "advised: cascade (stem, late), discriminant, " in str(advised)


def test_the_program_of_a_cascade_fits_and_calibrates(advised, tmp_path):
    """It runs as it is, with the images that it names, and with a folder; votes are named."""
    names: dict[str, Any] = {"images": IMAGES, "labels": LABELS}
    exec(advised.program, names)  # noqa: S102  the code is ours, and its strings are this test's
    assert names["classifier"].calibration_.n == 80
    for number, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        path = Path(tmp_path / label / f"{number:03}.png")
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    voting = {"params": {"k": 3}, "images": json.dumps(str(tmp_path))}
    other = type(advised)(**dict(vars(advised), **voting))
    names = {}
    exec(other.program, names)  # noqa: S102
    assert (names["classifier"].head, names["classifier"].k) == ("votes", 3)
    assert names["classifier"].calibration_.max_loss == PROMISE["max_loss"]
    assert other.classifier().head == "votes"


def test_too_few_images_leave_cascades_out_and_a_remark_says_so(encoder):
    """There is none either where it is not wanted, or there is no other stage to go on to."""
    options = {**QUICK, "encoder": encoder, "stages": STAGES}
    few = recommend(IMAGES[:40], LABELS[:40], **options)
    assert [row["stage"] for row in few.rows] == list(STAGES)
    assert few.remarks == (
        "no cascade was tried: to promise max_loss=0.15 with a confidence of 0.9 takes 16 images to "
        "calibrate on, and there are 8",
    )
    assert few.remarks[0] in str(few)
    unwanted = recommend(IMAGES[:40], LABELS[:40], **options, cascades=False)
    alone = recommend(IMAGES[:40], LABELS[:40], **{**options, "stages": "late"})
    assert unwanted.remarks == alone.remarks == ()
    for options_, told in (
        ({"cascades": 1}, "cascades must be True or False"),
        ({"max_loss": 0}, "max_loss must be"),
        ({"confidence": 1}, "confidence must be"),
    ):
        with pytest.raises(InvalidInputError, match=told):
            recommend(IMAGES, LABELS, **{**options, **options_})
