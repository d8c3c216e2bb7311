"""Cascades that change: what is added, forgotten, relabelled or set, and changes that fail half-way."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
from cascades import STAGES, crops, forced, quietly
from sklearn.base import clone

from clipretrieval import (
    CascadeClassifier,
    ClipRetrievalWarning,
    FingerprintMismatchError,
    ImageDecodeError,
    InvalidInputError,
    RetrievalClassifier,
    StagedEncoder,
    StoreUnavailableError,
)
from clipretrieval.images import iter_images
from clipretrieval.stores import FaissStore, MemoryStore

TWO = ("layer1", "late")


def make(encoder, stages=STAGES, **options):
    return CascadeClassifier(encoder, stages, **{"head": "discriminant", "store": "memory", **options})


def ids_of(images):
    return [each.id for each in iter_images(images)]


def assert_equal(found, expected, images):
    """Statistics and answers of all exits are the same."""
    assert found.classes_.tolist() == expected.classes_.tolist()
    for mine, theirs in zip(found.exits_, expected.exits_, strict=True):
        a, b = mine.class_statistics(), theirs.class_statistics()
        np.testing.assert_array_equal(a.counts, b.counts)
        np.testing.assert_allclose(a.sums, b.sums, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(a.second_moment, b.second_moment, rtol=1e-6, atol=1e-6)
    for threshold in (None, 1.0):
        mine, theirs = forced(found, threshold), forced(expected, threshold)
        assert quietly(mine.predict, images).tolist() == quietly(theirs.predict, images).tolist()
        np.testing.assert_allclose(
            quietly(mine.predict_proba, images), quietly(theirs.predict_proba, images), atol=1e-6
        )


@pytest.mark.parametrize("store", ["memory", "faiss folder"])
def test_what_has_changed_equals_a_fresh_fit(encoder, few, asked, store, tmp_path):
    """Added in parts, forgotten by id and by label, relabelled: each time as fitted on what is left."""
    options = {"store": "faiss", "store_options": {"path": tmp_path}} if store != "memory" else {}
    images, labels = few.images[:60], few.labels[:60]
    cascade = make(encoder, **options)
    for start in range(0, 60, 25):
        cascade.partial_fit(images[start : start + 25], labels[start : start + 25])
    assert_equal(cascade, make(encoder).fit(images, labels), asked.images)
    gone = cascade.forget(ids_of(images[:7]))
    assert (len(gone.ids), gone.remaining) == (7, 53)
    cascade.forget(label=labels[0])
    kept = [row for row in range(7, 60) if labels[row] != labels[0]]
    images, labels = [images[row] for row in kept], [labels[row] for row in kept]
    assert_equal(cascade, make(encoder).fit(images, labels), asked.images)
    labels[:5] = ["new"] * 5
    names = ids_of(images[:5])
    assert cascade.relabel(iter(names), iter(labels[:5])) == 5
    assert cascade.relabel(names, "new") == 0
    assert_equal(cascade, make(encoder).fit(images, labels), asked.images)
    assert "new" in cascade.classes_


def test_an_image_given_anew_changes_its_label_everywhere(encoder, few):
    """partial_fit relabels what is there, at each exit; the calibration stays."""
    cascade = make(encoder, TWO, head="votes").fit(*few)
    cascade.calibrate(*crops(80, 5), max_loss=0.2)
    before = cascade.calibration_
    cascade.partial_fit(few.images[:1], ["other"])
    for each in cascade.exits_:
        assert each.store_.get(ids_of(few.images[:1])).labels.tolist() == ["other"]
        assert each.store_.count() == 72
    assert cascade.calibration_ == before
    assert cascade.fit_report_.relabelled == 1


def test_calibrating_after_changes_learns_the_rule_anew(encoder, fitted_on):
    """The first of many parts has too few images to learn from; calibrating learns from all."""
    cascade = make(encoder, TWO).partial_fit(fitted_on.images[:20], fitted_on.labels[:20])
    assert cascade.policy_.regressions == ()
    cascade.partial_fit(fitted_on.images[20:], fitted_on.labels[20:])
    cascade.calibrate(*crops(80, 5), max_loss=0.2)
    fresh = make(encoder, TWO).fit(*fitted_on).calibrate(*crops(80, 5), max_loss=0.2)
    found, expected = cascade.policy_.regressions, fresh.policy_.regressions
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_copies_of_an_image_count_once(encoder, few):
    """A few images, however often they are given, promise nothing more; labels of the first count."""
    cascade, (images, labels) = make(encoder, TWO).fit(*few), crops(20, 5)
    with pytest.raises(InvalidInputError, match="20 images are too few"):
        cascade.calibrate(images * 8, labels * 8, max_loss=0.05)
    cascade.calibrate(images * 8, labels * 8, budget=0.9 * encoder.multiply_adds(TWO[-1]))
    assert cascade.calibration_.n == 20


def test_a_failed_calibration_leaves_the_one_before(encoder, fitted_on):
    """Also after changes."""
    cascade = make(encoder, TWO).fit(*fitted_on).calibrate(*crops(80, 5), max_loss=0.2)
    before = cascade.policy_, cascade.calibration_
    cascade.partial_fit(*crops(5, 11))
    with pytest.raises(InvalidInputError, match="are stored"):
        cascade.calibrate([*crops(80, 5).images, crops(5, 11).images[0]], ["x"] * 81, max_loss=0.2)
    assert (cascade.policy_, cascade.calibration_) == before


def test_a_calibration_that_is_out_of_date_says_so(encoder, fitted_on, asked):
    """A few images more are of no consequence, a class more or a quarter of the images less is."""
    cascade = make(encoder, TWO).fit(*fitted_on).calibrate(*crops(80, 5), max_loss=0.2)
    cascade.partial_fit(*crops(5, 11)).predict(asked.images)
    cascade.partial_fit(crops(1, 12).images, ["another"])
    with pytest.warns(
        ClipRetrievalWarning, match=r"calibrated with .* of 4 classes, and .* of 5 are stored now"
    ):
        cascade.predict(asked.images)
    cascade.forget(label="another")
    cascade.predict(asked.images)
    cascade.forget(label=fitted_on.labels[0])
    with pytest.warns(ClipRetrievalWarning, match="of 3 are stored now, .* calibrate again"):
        cascade.predict(asked.images)


class Failing(MemoryStore):
    """A store that fails when it is to delete, as often as is told."""

    failures = 0

    def delete(self, ids):
        if self.failures:
            self.failures -= 1
            raise StoreUnavailableError("the plug was pulled")
        return super().delete(ids)


@pytest.mark.parametrize("by", ["ids", "label"])
def test_an_interrupted_forget_can_be_repeated(encoder, few, asked, by):
    """The last exit fails after the others have changed: the same call finishes it."""
    stores = {stage: Failing() for stage in TWO}
    cascade = make(encoder, TWO, store=stores).fit(*few)
    label = few.labels[0]
    rows = [row for row, each in enumerate(few.labels) if each == label]
    given = {"label": label} if by == "label" else {"ids": ids_of([few.images[row] for row in rows])}
    stores["late"].failures = 1
    with pytest.raises(StoreUnavailableError, match="the plug"):
        cascade.forget(**given)
    assert [store.count() for store in stores.values()] == [54, 72]
    quietly(cascade.predict_proba, asked.images)  # it still answers
    assert cascade.forget(**given).remaining == 54
    kept = [row for row in range(72) if row not in rows]
    fresh = make(encoder, TWO).fit([few.images[r] for r in kept], [few.labels[r] for r in kept])
    assert_equal(cascade, fresh, asked.images)


@pytest.mark.parametrize(
    "change",
    [
        lambda cascade: cascade.forget(["0" * 64]),
        lambda cascade: cascade.forget(label="dog"),
        lambda cascade: cascade.forget(),
        lambda cascade: cascade.forget([]),
        lambda cascade: cascade.relabel(["0" * 64], ["x"]),
        lambda cascade: cascade.relabel(ids_of(crops(160, 1).images[:2]), ["x"]),
        lambda cascade: cascade.relabel(ids_of(crops(160, 1).images[:2]), [1, 2]),
        lambda cascade: cascade.partial_fit(crops(2, 9).images, [1, 2]),
        lambda cascade: cascade.partial_fit(crops(2, 9).images),
        lambda cascade: cascade.partial_fit([]),
        lambda cascade: cascade.fit(*crops(2, 9), overwrite=True, resume=True),
    ],
)
def test_a_wrong_change_changes_nothing(calibrated, change):
    """Unknown ids, missing or wrong labels: refused before the first exit changes."""
    before, state = [each.store_.read_manifest() for each in calibrated.exits_], dict(vars(calibrated))
    with pytest.raises(InvalidInputError):
        change(calibrated)
    assert [each.store_.count() for each in calibrated.exits_] == [160] * 4
    assert [each.store_.read_manifest() for each in calibrated.exits_] == before
    assert vars(calibrated) == state


def test_relabelling_warns_of_lookalikes_once(encoder, few):
    """All exits have changed where the warning is made an error."""
    cascade = make(encoder, TWO, head="votes").fit(*few)
    names = ids_of(few.images[:1])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cascade.relabel(names, ["Flower, upper half"])
    assert len([each for each in told if issubclass(each.category, ClipRetrievalWarning)]) == 1
    with pytest.raises(ClipRetrievalWarning):
        cascade.relabel(names, ["Flower, lower half"])
    for each in cascade.exits_:
        assert each.store_.get(names).labels.tolist() == ["Flower, lower half"]


def test_a_failed_fit_leaves_what_was_fitted(encoder, few, asked, tmp_path):
    """A broken image in a refit, with other arguments set: set them back, and all is as before."""
    cascade = make(encoder, TWO).fit(*few)
    answers = quietly(cascade.predict_proba, asked.images)
    cascade.set_params(stages=("layer2", "late"), head="votes")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(ImageDecodeError):
        cascade.fit([tmp_path / "broken.png"], ["x"])
    with pytest.raises(InvalidInputError, match=r"fitted with the stages layer1, late.*fit again"):
        cascade.predict(asked.images)
    cascade.set_params(stages=TWO, head="discriminant")
    np.testing.assert_array_equal(quietly(cascade.predict_proba, asked.images), answers)
    cascade.set_params(stages=("layer2", "late"), head="votes").fit(*few)
    np.testing.assert_array_equal(
        quietly(cascade.predict, asked.images),
        RetrievalClassifier(encoder, "memory").fit(*few).predict(asked.images),
    )


def test_arguments_count_as_they_are_when_it_is_asked(encoder, few, calibrated_on, asked):
    """Another head answers at once, and has to be calibrated; one set back has lost its calibration."""
    cascade = make(encoder, TWO).fit(*few).calibrate(*calibrated_on, max_loss=0.2)
    cascade.set_params(head="discriminant")
    cascade.predict(asked.images)
    cascade.set_params(head="votes", k=3)
    with pytest.warns(ClipRetrievalWarning, match="never calibrated"):
        found = cascade.predict(asked.images)
    own = RetrievalClassifier(encoder, "memory", k=3).fit(*few)
    np.testing.assert_array_equal(found, own.predict(asked.images))
    assert cascade.calibration_ is None
    cascade.calibrate(*calibrated_on, max_loss=0.2).predict(asked.images)


def test_another_encoder_is_refused(encoder, few, asked, other_model):
    """Its vectors are not compared with those that are stored."""
    cascade = make(encoder, TWO).fit(*few)
    cascade.set_params(encoder=StagedEncoder(other_model, precision="fp32"))
    for ask in (cascade.predict, cascade.explain):
        with pytest.raises(FingerprintMismatchError, match="weights"):
            ask(asked.images)
    with pytest.raises(FingerprintMismatchError, match="weights"):
        cascade.partial_fit(*asked)
    cascade.set_params(encoder=encoder)
    quietly(cascade.predict, asked.images)


def test_a_fit_over_what_is_stored_has_to_be_asked_for(encoder, few, asked):
    """Stores that hold something are refused, resumed or overwritten, all in the same way."""
    stores = {"layer1": MemoryStore(), "late": MemoryStore()}
    cascade = make(encoder, TWO, store=stores).fit(*few)
    with pytest.raises(InvalidInputError, match="overwrite"):
        make(encoder, TWO, store=stores).fit(*asked)
    again = make(encoder, TWO, store=stores).fit(*asked, resume=True)
    assert [store.count() for store in stores.values()] == [112, 112]
    assert again.fit_report_.new == 40
    cascade.fit(*asked, overwrite=True)
    assert [store.count() for store in stores.values()] == [40, 40]


def test_a_fit_forgets_what_was_calibrated(encoder, few, calibrated_on):
    """After a new fit the cascade is uncalibrated, and may be evaluated on what it was calibrated on."""
    cascade = make(encoder, TWO).fit(*few).calibrate(*calibrated_on, max_loss=0.2)
    cascade.fit(*few, overwrite=True)
    assert cascade.calibration_ is None
    quietly(cascade.score, *calibrated_on)


def test_stores_filled_for_other_stages_are_refused(encoder, few):
    """Swapped stores are told apart by what fills them."""
    stores = {stage: MemoryStore() for stage in ("layer1", "layer2", "late")}
    make(encoder, tuple(stores), store=stores).fit(*few)
    swapped = {"layer1": stores["layer2"], "layer2": stores["layer1"], "late": stores["late"]}
    with pytest.raises(FingerprintMismatchError, match="stage"):
        CascadeClassifier.from_stores(swapped, encoder)
    with pytest.raises(FingerprintMismatchError, match="stage"):
        make(encoder, tuple(stores), store=swapped).fit(*few, resume=True)
    with pytest.raises(FingerprintMismatchError, match="stage"):
        make(encoder, tuple(stores), store=swapped).partial_fit(*few)
    with pytest.raises(InvalidInputError, match="no classifier has filled"):
        CascadeClassifier.from_stores({"layer1": MemoryStore(), "late": stores["late"]}, encoder)
    with pytest.raises(InvalidInputError, match="pass one for each of"):
        CascadeClassifier.from_stores(stores, encoder, stages=("layer1", "late"))
    assert [store.count() for store in stores.values()] == [72] * 3


def test_parameters_are_told_set_and_cloned(encoder, calibrated):
    """As scikit-learn's estimators: a clone has the arguments, and is not fitted."""
    params = calibrated.get_params()
    assert params["stages"] == STAGES
    assert params["certainty"] == "combined"
    copied = clone(calibrated)
    assert copied.get_params().keys() == params.keys()
    assert not hasattr(copied, "exits_")
    assert copied.set_params(certainty="margin", stages=TWO).stages == TWO
    assert calibrated.certainty == "combined"
    assert "CascadeClassifier(" in repr(calibrated)
    assert not hasattr(calibrated, "transform")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda fitted: pickle.loads(pickle.dumps(fitted))])
def test_a_copy_goes_its_own_way(encoder, few, asked, copied, calibrated_on):
    """It answers as the one it was made of, calibrated, and neither changes the other."""
    cascade = make(encoder, TWO).fit(*few).calibrate(*calibrated_on, max_loss=0.2)
    other = copied(cascade)
    answers = cascade.predict_proba(asked.images)
    np.testing.assert_allclose(other.predict_proba(asked.images), answers, rtol=1e-6)
    assert other.calibration_ == cascade.calibration_
    other.forget(label=few.labels[0])
    assert len(other.classes_) == 3
    np.testing.assert_array_equal(cascade.predict_proba(asked.images), answers)


def test_secrets_are_shown_nowhere(encoder, few):
    """Neither repr nor parameters, errors or pickles show a key among the store's options."""
    secret = "sk-very-secret"  # noqa: S105  nobody's
    cascade = make(encoder, TWO, store="chroma", store_options={"api_key": secret})
    assert secret not in repr(cascade)
    assert secret not in repr(cascade.get_params())
    assert secret not in repr(clone(cascade))
    assert secret.encode() not in pickle.dumps(cascade)
    with pytest.raises(InvalidInputError) as refused:
        cascade.fit(*few)
    assert secret not in str(refused.value)
    assert secret not in repr(cascade)


def test_a_path_has_a_folder_for_each_exit(encoder, few, asked, tmp_path):
    """Joined stages, too; another cascade can attach to it by name, and is as the first."""
    stages = ("stem", "stem+layer1", "layer2.0", "late")
    options = {"store": "faiss", "store_options": {"path": tmp_path / "new" / "place"}}
    first = make(encoder, stages, **options).fit(*few)
    assert len(list((tmp_path / "new" / "place").iterdir())) == 4
    answers = quietly(first.predict_proba, asked.images)
    for each in first.exits_:
        each.store_.close()
    second = CascadeClassifier.from_stores(
        "faiss", encoder, stages, head="discriminant", store_options=options["store_options"]
    )
    assert [type(each.store_) for each in second.exits_] == [FaissStore] * 4
    np.testing.assert_allclose(quietly(second.predict_proba, asked.images), answers, rtol=1e-6)
    assert second.policy_ == first.policy_
    for each in second.exits_:
        each.store_.close()


def test_chroma_has_a_collection_for_each_exit(encoder, few, asked, tmp_path):
    """In one folder or beside each other in memory, none writes into another's."""
    options = {"path": str(tmp_path / "chroma")}
    cascade = make(encoder, TWO, store="chroma", store_options=options, head="votes")
    cascade.fit(few.images[:40], few.labels[:40])
    found = quietly(cascade.predict, asked.images)
    own = make(encoder, TWO, head="votes").fit(few.images[:40], few.labels[:40])
    assert found.tolist() == quietly(own.predict, asked.images).tolist()
    assert [each.store_.dim for each in cascade.exits_] == [encoder.stages[stage].dim for stage in TWO]
    for each in cascade.exits_:
        each.store_.close()
    again = CascadeClassifier.from_stores("chroma", encoder, TWO, store_options=options, head="votes")
    assert quietly(again.predict, asked.images).tolist() == found.tolist()
    for each in again.exits_:
        each.store_.close()
    together = make(encoder, TWO, store="chroma", store_options={"collection": "cascade"}, head="votes")
    together.fit(few.images[:40], few.labels[:40])
    assert [each.store_.count() for each in together.exits_] == [40, 40]
