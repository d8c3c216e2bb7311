"""Cascades that answer: as the stages alone, whatever leaves where, in whatever form images come."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from cascades import STAGES, crops, forced, quietly
from PIL import Image

from clipretrieval import (
    CascadeClassifier,
    ClipRetrievalWarning,
    ImageDecodeError,
    InvalidInputError,
    NotFittedError,
    RetrievalClassifier,
    StagedEncoder,
    UnknownStoreError,
)
from clipretrieval.cascade import CascadeExplanation
from clipretrieval.encoding.staged_encoder import stopped_at
from clipretrieval.heads import Fused, Ridge

ALL_LEAVE = 1.0
"""A threshold at which the first exit lets everything go."""


def alone(cascade, stage, data):
    """Return a classifier at one of a cascade's stages, fitted on the same images."""
    classifier = RetrievalClassifier(
        stopped_at(cascade.encoder, stage),
        "memory",
        head=cascade.head,
        k=cascade.k,
        weights=cascade.weights,
        metric=cascade.metric,
        normalize=cascade.normalize,
        priors=cascade.priors,
    )
    return classifier.fit(*data)


@pytest.mark.parametrize(
    "options",
    [
        {"head": "discriminant"},
        {"head": Fused(ridge=Ridge(features=64))},
        {"head": "votes", "k": 3, "weights": "distance"},
        {"head": "votes", "metric": "cosine", "normalize": True},
        {"head": "quadratic", "priors": "empirical"},
        {"head": "discriminant", "store": "faiss", "stages": ("stem+layer1", "layer2", "mid+late")},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_exits_forced_at_none_and_at_all_answer_as_the_stages_alone(encoder, few, asked, options):
    """Bit for bit: answers, probabilities and explanations of the last and of the first stage."""
    given = {"stages": STAGES, "store": "memory", **options}
    cascade = CascadeClassifier(encoder, **given).fit(*few)
    for threshold, stage in ((None, cascade.stages[-1]), (ALL_LEAVE, cascade.stages[0])):
        own, cut = alone(cascade, stage, few), forced(cascade, threshold)
        np.testing.assert_array_equal(quietly(cut.predict, asked.images), own.predict(asked.images))
        found = quietly(cut.predict_proba, asked.images)
        np.testing.assert_array_equal(found, own.predict_proba(asked.images))
        for mine, theirs in zip(
            quietly(cut.explain, asked.images[:6], 5), own.explain(asked.images[:6], 5), strict=True
        ):
            assert mine.stage == stage
            assert [each.id for each in mine.neighbors] == [each.id for each in theirs.neighbors]
            for name in ("answer", "share", "margin", "neighbors", "head", "by"):
                assert getattr(mine, name) == getattr(theirs, name)
    assert list(cascade.classes_) == sorted(set(few.labels))


def test_each_answer_is_that_of_the_stage_where_the_image_left(calibrated, fitted_on, asked):
    """Some leave at each exit, and answers and probabilities are those of that stage alone."""
    explained = calibrated.explain(asked.images)
    left = [each.stage for each in explained]
    assert len(set(left)) > 1
    own = {stage: alone(calibrated, stage, fitted_on) for stage in STAGES}
    expected = {stage: each.predict_proba(asked.images) for stage, each in own.items()}
    found = calibrated.predict_proba(asked.images)
    for row, stage in enumerate(left):
        # The head's products are rounded otherwise where other images are in the batch.
        np.testing.assert_allclose(found[row], expected[stage][row], rtol=1e-9)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    answers = calibrated.predict(asked.images)
    np.testing.assert_array_equal(answers, calibrated.classes_[found.argmax(axis=1)])
    assert answers.dtype == calibrated.classes_.dtype
    assert [each.answer for each in explained] == answers.tolist()


def test_explanations_tell_why_an_image_stopped_where_it_did(calibrated, asked):
    """Each exit on the way says how great its risk was; where the image left it was small enough."""
    for each in calibrated.explain(asked.images):
        assert isinstance(each, CascadeExplanation)
        assert [step.stage for step in each.steps] == list(STAGES[: len(each.steps)])
        for step in each.steps[:-1]:
            assert step.risk > step.threshold
            assert "went on" in str(each)
        last = each.steps[-1]
        if last.stage == STAGES[-1]:
            assert last.risk is last.threshold is None
            assert "late" in str(each).splitlines()[-1]
        else:
            assert last.risk <= last.threshold
            assert ", left: risk" in str(each).splitlines()[-1]
        assert each.steps[0].agrees is None
        assert (last.answer, last.share) == (each.answer, each.share)
        told = each.to_dict()
        assert told["stage"] == each.stage
        assert len(told["steps"]) == len(each.steps)
        assert f"stage={each.stage!r}" in repr(each)


def test_an_uncalibrated_cascade_goes_to_the_end_and_says_so(uncalibrated, fitted_on, asked):
    """The warning says what to do, and answers are those of the last stage."""
    with pytest.warns(ClipRetrievalWarning, match=r"never calibrated.*call calibrate"):
        found = uncalibrated.predict(asked.images)
    np.testing.assert_array_equal(found, alone(uncalibrated, "late", fitted_on).predict(asked.images))
    (explained,) = quietly(uncalibrated.explain, asked.images[:1])
    assert [step.stage for step in explained.steps] == list(STAGES)
    assert "went on: nothing leaves before it is calibrated" in str(explained)


def test_single_images_threads_and_iterators_answer_as_a_batch(calibrated, asked):
    """One image at a time, eight threads at once, and a source that can be read once."""
    expected = calibrated.predict_proba(asked.images)
    answers = calibrated.predict(asked.images).tolist()
    assert calibrated.predict(iter(asked.images)).tolist() == answers
    assert [calibrated.predict(image)[0] for image in asked.images[:12]] == answers[:12]
    np.testing.assert_allclose(calibrated.predict_proba(asked.images[5]), expected[5:6], rtol=1e-9)
    assert [each.answer for each in calibrated.explain(iter(asked.images))] == answers
    found, together = {}, threading.Barrier(8)

    def ask(number):
        together.wait()
        found[number] = calibrated.predict_proba(asked.images[number:] + asked.images[:number])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        np.testing.assert_allclose(found[number], np.roll(expected, -number, axis=0), rtol=1e-9)


@pytest.fixture
def with_broken(tmp_path, asked):
    """Twenty files, of which five cannot be decoded."""
    paths = [tmp_path / f"{number:02}.png" for number in range(20)]
    for number, path in enumerate(paths):
        Image.fromarray(asked.images[number]).save(path)
    for number in (0, 6, 7, 13, 19):
        paths[number].write_bytes(b"nothing")
    return paths


def test_skipped_images_keep_the_places_of_the_others(calibrated, with_broken, asked):
    """Empty answers, NaN, None: where a file is broken, and nowhere else."""
    answers = calibrated.predict(asked.images[:20]).tolist()
    shares = calibrated.predict_proba(asked.images[:20])
    broken = [0, 6, 7, 13, 19]
    with pytest.warns(ClipRetrievalWarning, match=r"5 of 20 images were skipped.*00\.png"):
        found = calibrated.predict(with_broken, on_error="skip")
    assert found.tolist() == [None if row in broken else answers[row] for row in range(20)]
    assert found.dtype == object
    shares[broken] = np.nan
    np.testing.assert_array_equal(calibrated.predict_proba(with_broken, on_error="skip"), shares)
    with pytest.warns(ClipRetrievalWarning, match="5 of 20 images were skipped and have no explanation"):
        explained = calibrated.explain(with_broken, on_error="skip")
    assert [None if each is None else each.answer for each in explained] == found.tolist()
    assert [row for row, each in enumerate(explained) if each is None] == broken
    whole = calibrated.predict(asked.images[:20], on_error="skip")
    assert (whole.dtype, whole.tolist()) == (object, answers)
    for ask in (calibrated.predict, calibrated.predict_proba, calibrated.explain):
        with pytest.raises(ImageDecodeError, match=r"00\.png"):
            ask(with_broken)
        with pytest.raises(InvalidInputError, match="none of the 1 images to classify"):
            ask(with_broken[:1], on_error="skip")
        with pytest.raises(InvalidInputError, match=r"no images|empty"):
            ask([])


def test_images_whose_vectors_cannot_be_used_are_skipped(encoder, few, asked):
    """A NaN that the encoder makes at an inner exit is skipped, or named, as one at the last."""
    cascade = CascadeClassifier(encoder, STAGES, head="votes", store="memory").fit(*few)
    expected = quietly(cascade.predict, asked.images).tolist()
    cut = forced(cascade, None)
    cut.encoder = object.__new__(Spoiled)
    vars(cut.encoder).update(vars(encoder))
    with pytest.warns(ClipRetrievalWarning, match="2 of 40 images were skipped"):
        found = quietly(cut.predict, asked.images, on_error="skip")
    assert found.tolist() == [None if row in (3, 17) else each for row, each in enumerate(expected)]
    with pytest.raises(InvalidInputError, match="NaN"):
        quietly(cut.predict, asked.images)


class Spoiled(StagedEncoder):
    """An encoder that gives NaN for two images at the stage layer2."""

    def stream_exits(self, X, y=None, *, stay_on, **options):
        def spoiled(place, batch):
            for row, index in enumerate(batch.indices):
                if "layer2" in batch.vectors and index in (3, 17):
                    batch.vectors["layer2"][row] = np.nan
            return stay_on(place, batch)

        return super().stream_exits(X, y, stay_on=spoiled, **options)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (("layer2", "layer1"), "the exit 'layer1' is not deeper than 'layer2'.*shallow to deep"),
        (("layer1", "layer1"), "not deeper"),
        (("layer1", "nowhere"), "nowhere"),
        (("late",), "at least two exits.*use RetrievalClassifier"),
        ((), "at least two exits"),
        ("late", "stages must be"),
        (None, "stages must be"),
        ((1, 2), "unknown stage 1"),
    ],
)
def test_exits_go_from_shallow_to_deep(encoder, few, stages, message):
    """Stages out of order, twice, unknown, one or none are refused, and nothing is stored."""
    cascade = CascadeClassifier(encoder, stages, store="memory")
    with pytest.raises(InvalidInputError, match=message):
        cascade.fit(*few)
    assert not hasattr(cascade, "exits_")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"certainty": "hope"}, "certainty must be"),
        ({"head": "no"}, "head"),
        ({"k": 0}, "k must be"),
        ({"store": "nowhere"}, "no store is called 'nowhere'"),
        ({"store": {"late": None}}, "pass one for each of 'stem', 'layer1', 'layer2', 'late'"),
        ({"metric": "no"}, "metric"),
        ({"store_options": 3}, "store_options"),
        ({"encoder": None}, "encoder must be a StagedEncoder"),
        ({"normalize": 2}, "normalize"),
    ],
)
def test_wrong_parameters_are_refused_at_fit(encoder, few, options, message):
    """As scikit-learn's estimators do, with what was expected."""
    given = {"encoder": encoder, "stages": STAGES, "store": "memory", **options}
    with pytest.raises((InvalidInputError, UnknownStoreError), match=message):
        CascadeClassifier(**given).fit(*few)


def test_what_is_not_fitted_says_so(encoder, asked):
    """Each method that needs a fitted cascade names what to call first."""
    cascade = CascadeClassifier(encoder, STAGES)
    calls = [
        lambda: cascade.predict(asked.images),
        lambda: cascade.predict_proba(asked.images),
        lambda: cascade.explain(asked.images),
        lambda: cascade.evaluate(*asked),
        lambda: cascade.score(*asked),
        lambda: cascade.calibrate(*asked),
        lambda: cascade.forget(["x"]),
        lambda: cascade.relabel(["x"], ["y"]),
        lambda: cascade.save("somewhere"),
    ]
    for call in calls:
        with pytest.raises(NotFittedError, match="not fitted yet; call fit"):
            call()
    with pytest.raises(AttributeError, match="classes_"):
        _ = cascade.classes_


def test_one_class_only_warns_and_is_always_answered(encoder, fitted_on, asked):
    """A cascade with one class answers it; there is nothing to lose by leaving early."""
    images = fitted_on.images[:120]
    cascade = CascadeClassifier(encoder, STAGES, head="votes", store="memory")
    with pytest.warns(ClipRetrievalWarning, match="only one class"):
        cascade.fit(images, ["it"] * 120)
    assert set(quietly(cascade.predict, asked.images)) == {"it"}
    cascade.calibrate(fitted_on.images[120:], ["it"] * 40, max_loss=0.3, confidence=0.9)
    assert cascade.calibration_.multiply_adds < cascade.calibration_.last_multiply_adds
    assert (cascade.predict_proba(asked.images[:3]) == 1).all()


@pytest.mark.parametrize("labels", [[3, 1], [True, False], [4.0, 2.0]])
def test_labels_keep_their_type(encoder, labels, asked):
    """Numbers and truth values come back as they were given."""
    images, _ = crops(24, 8)
    given = np.array(labels * 12)
    cascade = CascadeClassifier(encoder, ("layer1", "late"), head="votes", store="memory")
    cascade.fit(images, given)
    found = quietly(cascade.predict, images)
    assert found.dtype == given.dtype
    np.testing.assert_array_equal(found, given)


def test_calibration_changes_how_far_images_go(calibrated, asked):
    """Fewer multiply-adds than always the last exit, and a greater loss allows more."""
    told = calibrated.calibration_
    assert told.multiply_adds < told.last_multiply_adds == calibrated.encoder.multiply_adds("late")
    assert told.loss <= 0.1
    assert sum(told.shares) == pytest.approx(1)
    assert calibrated.policy_.threshold == told.threshold


def test_calibrating_says_what_it_needs(uncalibrated, fitted_on, calibrated_on, asked):
    """Stored images, missing or wrong labels, too few images, and budgets that nothing keeps are refused."""
    cascade = forced(uncalibrated, None)
    images, labels = calibrated_on.images + fitted_on.images[:1], [*calibrated_on.labels, "x"]
    with pytest.raises(InvalidInputError, match=r"are stored, .*calibrate on images that were not fitted"):
        cascade.calibrate(images, labels, max_loss=0.3)
    with pytest.raises(InvalidInputError, match=r"120 images are too few .* it takes at least [0-9]+"):
        cascade.calibrate(*calibrated_on)
    with pytest.raises(InvalidInputError, match="label"):
        cascade.calibrate(calibrated_on.images, max_loss=0.2)
    with pytest.raises(InvalidInputError, match="label"):
        cascade.calibrate(calibrated_on.images, list(range(120)), max_loss=0.2)
    with pytest.raises(InvalidInputError, match="no label of the calibration images, such as 'dog'"):
        cascade.calibrate(calibrated_on.images, ["dog"] * 120, max_loss=0.2)
    with pytest.raises(InvalidInputError, match="takes to reach the first exit, 'stem'; pass at least that"):
        cascade.calibrate(*calibrated_on, budget=1e-9)
    for options in ({"max_loss": 0}, {"max_loss": 1}, {"max_loss": "x"}, {"confidence": 1}, {"budget": -1}):
        with pytest.raises(InvalidInputError, match=next(iter(options))):
            cascade.calibrate(*calibrated_on, **options)
    assert cascade.calibration_ is None
    assert cascade.policy_ == uncalibrated.policy_


def test_calibrating_on_few_classes_warns(uncalibrated, calibrated_on):
    """Nothing is promised of a class without an image; one that was not fitted is wrong everywhere."""
    cascade = forced(uncalibrated, None)
    rows = [row for row, label in enumerate(calibrated_on.labels) if "upper" in label]
    images, labels = [calibrated_on.images[row] for row in rows], [calibrated_on.labels[row] for row in rows]
    with pytest.warns(ClipRetrievalWarning, match="2 classes, such as 'flower, lower half', have no image"):
        cascade.calibrate(images, labels, max_loss=0.2)
    with pytest.warns(ClipRetrievalWarning, match="have no image"):
        cascade.calibrate(
            images, ["dog" if row % 2 else label for row, label in enumerate(labels)], max_loss=0.2
        )
    assert cascade.calibration_.n == 60


def test_a_budget_is_kept(uncalibrated, calibrated_on):
    """With a budget, the mean arithmetic is at most that, and nothing is promised."""
    cascade = forced(uncalibrated, None)
    costs = [cascade.encoder.multiply_adds(stage) for stage in STAGES]
    for budget in (costs[0], costs[2], costs[-1]):
        told = cascade.calibrate(*calibrated_on, budget=budget).calibration_
        assert told.multiply_adds <= budget
        assert (told.budget, told.max_loss) == (budget, None)
    assert told.shares == (0, 0, 0, 1)


def test_what_a_cascade_has_not_is_told_with_what_to_do(calibrated, calibrated_on, asked):
    """Of prediction sets, scores and neighbors; what is told works."""
    for name in ("conformalize", "predict_set", "score_samples"):
        assert not hasattr(calibrated, name)
        with pytest.raises(AttributeError, match=rf"^CascadeClassifier has no {name}: .*from_store\(last"):
            getattr(calibrated, name)
    with pytest.raises(AttributeError, match=r"Use cascade\.exits_\[-1\]\.kneighbors\(X\)"):
        calibrated.kneighbors(asked.images)
    assert calibrated.exits_[-1].kneighbors(asked.images[:2], 3).ids.shape == (2, 3)
    last = calibrated.exits_[-1]
    single = RetrievalClassifier.from_store(last.store_, last.encoder, head=calibrated.head)
    labels, sets = single.conformalize(*calibrated_on).predict_set(asked.images, 0.9)
    assert labels.tolist() == last.predict(asked.images).tolist()
    assert sets.shape == (40, len(calibrated.classes_))
    assert single.score_samples(asked.images).shape == (40,)
