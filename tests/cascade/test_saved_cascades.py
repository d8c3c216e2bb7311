"""Cascades as folders: written, opened again, and refused where they are damaged."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from cascades import STAGES, forced, quietly
from saved_files import rewrite

from clipretrieval import (
    CascadeClassifier,
    ClipRetrievalError,
    ClipRetrievalWarning,
    FingerprintMismatchError,
    InvalidInputError,
    RetrievalClassifier,
    StagedEncoder,
    StoreCorruptedError,
    UnsupportedOperationError,
)
from clipretrieval.encoding.staged_encoder import stopped_at
from clipretrieval.persistence.saving import describe
from clipretrieval.stores import FaissStore, MemoryStore

TWO = ("layer1", "late")


@pytest.fixture(scope="module")
def saved(calibrated, tmp_path_factory):
    """A folder with a calibrated cascade; tests that change it copy it."""
    folder = tmp_path_factory.mktemp("cascade") / "saved"
    calibrated.save(folder)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copied")


def close(cascade):
    for each in cascade.exits_:
        each.store_.close()


def test_a_saved_cascade_answers_the_same(saved, calibrated, asked, encoder):
    """With its encoder built again, calibrated as it was, exit by exit."""
    loaded = CascadeClassifier.load(saved)
    assert (loaded.policy_, loaded.calibration_) == (calibrated.policy_, calibrated.calibration_)
    np.testing.assert_allclose(
        loaded.predict_proba(asked.images), calibrated.predict_proba(asked.images), rtol=1e-6
    )
    stops = [[each.stage for each in one.explain(asked.images)] for one in (loaded, calibrated)]
    assert stops[0] == stops[1]
    assert list(loaded.stages) == list(STAGES)
    assert loaded.classes_.tolist() == calibrated.classes_.tolist()
    assert describe(saved).cascade["stages"] == list(STAGES)
    given = CascadeClassifier.load(saved, encoder)
    assert given.predict(asked.images).tolist() == calibrated.predict(asked.images).tolist()


def test_a_loaded_cascade_goes_on_changing(copied, fitted_on, asked):
    """It forgets, learns, and is saved again into its own folder."""
    loaded = CascadeClassifier.load(copied)
    loaded.forget(label=fitted_on.labels[0])
    loaded.partial_fit(asked.images[:4], ["new"] * 4)
    loaded.save(copied)
    again = CascadeClassifier.load(copied)
    assert again.classes_.tolist() == loaded.classes_.tolist()
    assert "new" in again.classes_
    assert [each.store_.count() for each in again.exits_] == [124] * 4
    assert again.calibration_ == loaded.calibration_


def test_stores_in_folders_are_named_not_copied(encoder, few, asked, tmp_path):
    """FAISS at a path stays where it is; beneath the saved folder, both can be moved together."""
    folder = tmp_path / "model"
    options = {"path": folder / "stores"}
    cascade = CascadeClassifier(encoder, TWO, head="votes", store="faiss", store_options=options)
    cascade.fit(*few).save(folder)
    answers = quietly(cascade.predict, asked.images).tolist()
    close(cascade)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["stores"]
    moved = folder.rename(tmp_path / "moved")
    loaded = CascadeClassifier.load(moved)
    assert quietly(loaded.predict, asked.images).tolist() == answers
    assert loaded.calibration_ is None
    close(loaded)


def test_cascades_and_classifiers_are_opened_by_their_own_class(saved, few, encoder, tmp_path):
    """Each names the other where it is shown the other's folder, and opens nothing."""
    with pytest.raises(InvalidInputError, match=r"holds a cascade; open it with CascadeClassifier.load"):
        RetrievalClassifier.load(saved)
    RetrievalClassifier(encoder, "memory").fit(*few).save(tmp_path / "single")
    with pytest.raises(InvalidInputError, match=r"holds no cascade; open it with RetrievalClassifier.load"):
        CascadeClassifier.load(tmp_path / "single")
    with pytest.raises(InvalidInputError, match="there is no folder"):
        CascadeClassifier.load(tmp_path / "nothing")


def test_another_encoder_is_refused(saved, other_model):
    """What differs is named, and so is an encoder that cannot stop on the way."""
    with pytest.raises(FingerprintMismatchError, match="weights"):
        CascadeClassifier.load(saved, StagedEncoder(other_model, precision="fp32"))
    with pytest.raises(InvalidInputError, match="encoder must be a StagedEncoder"):
        CascadeClassifier.load(saved, object())


DAMAGE = {
    "no policy": lambda state: state.pop("policy"),
    "policy": lambda state: state.update(policy=[1]),
    "certainty": lambda state: state["policy"].update(certainty="hope"),
    "coefficients": lambda state: state["policy"].update(regressions=[[1.0]] * 3),
    "exits": lambda state: state["policy"].update(n_exits=2, regressions=[]),
    "costs": lambda state: state.update(multiply_adds=[1.0]),
    "threshold": lambda state: state["policy"].update(threshold=[]),
    "calibration": lambda state: state.update(calibration=3),
    "no calibration": lambda state: state.pop("calibration"),
    "number": lambda state: state["calibration"].update(n=None),
    "strange": lambda state: state["calibration"].update(strange=1),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_state_is_refused(copied, damage):
    """What a cascade has calibrated cannot be read: the error says so, and nothing stays open."""
    file = copied / "classifier.json"
    cascade = json.loads(file.read_text())["cascade"]
    damage(cascade["state"])
    rewrite(file, cascade=cascade)
    with pytest.raises(StoreCorruptedError, match=r"is damaged.*Restore the folder from a copy"):
        CascadeClassifier.load(copied)


CHANGES = {
    "one stage": lambda found: {key: found[key][:1] for key in ("stages", "stores", "dims")},
    "stages": lambda found: {"stages": found["stages"][:3]},
    "no stores": lambda found: {"stores": None},
    "no dims": lambda found: {"dims": [0] * 4},
    "other dims": lambda found: {"dims": [dim + 1 for dim in found["dims"]]},
    "order": lambda found: {key: found[key][::-1] for key in ("stages", "stores", "dims")},
    "swapped": lambda found: {"stages": found["stages"][::-1]},
    "unknown stage": lambda found: {"stages": ["nowhere", *found["stages"][1:]]},
    "store name": lambda found: {"stores": [{"name": "nowhere", "folder": "x"}] * 4},
    "outside": lambda found: {"stores": [{"name": "memory", "folder": "../x"}] * 4},
    "state": lambda found: {"state": [1]},
    "strange": lambda found: {"strange": 1},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_folder_that_somebody_has_changed_is_refused(copied, change):
    """Stages, stores and dimensions that do not belong together, under a checksum that is right."""
    file = copied / "classifier.json"
    cascade = json.loads(file.read_text())["cascade"]
    rewrite(file, cascade={**cascade, **change(cascade)})
    with pytest.raises(ClipRetrievalError):
        CascadeClassifier.load(copied)


@pytest.mark.parametrize("damage", [b"", b"{", b"null", b"[]"])
def test_a_file_that_is_not_whole_is_refused(copied, damage):
    """Emptied, cut, or of another kind."""
    (copied / "classifier.json").write_bytes(damage)
    with pytest.raises((StoreCorruptedError, InvalidInputError)):
        CascadeClassifier.load(copied)
    content = (copied.parent / "copied" / "classifier.json").read_bytes()
    assert content == damage


def test_one_changed_byte_is_noticed(copied):
    """The checksum covers what was calibrated."""
    file = copied / "classifier.json"
    content = file.read_text()
    file.write_text(content.replace('"confidence": 0.9', '"confidence": 0.8', 1))
    with pytest.raises(StoreCorruptedError, match="checksum"):
        CascadeClassifier.load(copied)


def test_exits_that_are_not_equal_warn(encoder, few, asked, tmp_path):
    """An image that one exit alone holds, of a class of its own: a warning, and answers of all exits."""
    stores = {stage: MemoryStore() for stage in TWO}
    CascadeClassifier(encoder, TWO, store=stores, head="votes").fit(*few)
    one = RetrievalClassifier.from_store(stores["layer1"], stopped_at(encoder, "layer1"))
    one.partial_fit(asked.images[:1], ["a class with a very long name that no other exit has"])
    with pytest.warns(ClipRetrievalWarning, match=r"layer1: 73, late: 72.*a change was interrupted"):
        cascade = CascadeClassifier.from_stores(stores, encoder, head="votes")
    assert len(cascade.classes_) == 5
    early = forced(cascade, 1e9)
    found = quietly(early.predict, asked.images[:2])
    assert found[0] == "a class with a very long name that no other exit has"
    shares = quietly(early.predict_proba, asked.images[:2])
    assert shares[0].argmax() == cascade.classes_.tolist().index(found[0])
    assert quietly(forced(cascade, None).predict_proba, asked.images[:2]).shape == (2, 5)


def test_stores_are_given_where_they_cannot_be_kept(encoder, few, asked, tmp_path):
    """A store of one's own has to be passed again, one for each exit."""
    stores = {stage: Own() for stage in TWO}
    cascade = CascadeClassifier(encoder, TWO, store=stores, head="votes").fit(*few)
    with pytest.warns(ClipRetrievalWarning, match="Own"):
        cascade.save(tmp_path / "model")
    with pytest.raises(InvalidInputError, match="stores="):
        CascadeClassifier.load(tmp_path / "model")
    with pytest.raises(InvalidInputError, match="one for each of 'layer1', 'late'"):
        CascadeClassifier.load(tmp_path / "model", stores={"late": stores["late"]})
    loaded = CascadeClassifier.load(tmp_path / "model", stores=stores)
    assert quietly(loaded.predict, asked.images).tolist() == quietly(cascade.predict, asked.images).tolist()


class Own:
    """A store that no name stands for."""

    def __init__(self):
        self._store = MemoryStore()

    metric = property(lambda self: self._store.metric)
    dim = property(lambda self: self._store.dim)

    def upsert(self, *args, **kwargs):
        return self._store.upsert(*args, **kwargs)

    def search(self, *args, **kwargs):
        return self._store.search(*args, **kwargs)

    def get(self, ids):
        return self._store.get(ids)

    def delete(self, ids):
        return self._store.delete(ids)

    def count(self):
        return self._store.count()

    def read_manifest(self):
        return self._store.read_manifest()

    def write_manifest(self, manifest):
        self._store.write_manifest(manifest)

    def flush(self):
        self._store.flush()

    def close(self):
        self._store.close()


def test_what_cannot_be_saved_says_so(encoder, few, tmp_path):
    """A rule of one's own for votes, and a folder with other things."""
    cascade = CascadeClassifier(encoder, TWO, store="memory", head="votes", weights=lambda near: 1 / near)
    cascade.fit(*few)
    with pytest.raises(UnsupportedOperationError, match="weights is a callable"):
        cascade.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("all")
    cascade.set_params(weights="uniform")
    with pytest.raises(InvalidInputError, match="holds other things"):
        cascade.save(tmp_path / "other")


def test_two_saves_from_one_folder_do_not_undo_each_other(copied):
    """The second is refused unless it is told to overwrite."""
    first, second = CascadeClassifier.load(copied), CascadeClassifier.load(copied)
    first.save(copied)
    with pytest.raises(ClipRetrievalError, match="was saved anew"):
        second.save(copied)
    second.save(copied, overwrite=True)


def test_a_folder_is_opened_though_a_store_is_faiss(encoder, few, asked, tmp_path):
    """FAISS in memory is copied into the folder, and one at a path beside a store in memory is named."""
    stores = {"layer1": FaissStore(), "late": FaissStore(tmp_path / "late")}
    cascade = CascadeClassifier(encoder, TWO, store=stores, head="discriminant").fit(*few)
    cascade.save(tmp_path / "model")
    answers = quietly(cascade.predict, asked.images).tolist()
    close(cascade)
    loaded = CascadeClassifier.load(tmp_path / "model")
    assert quietly(loaded.predict, asked.images).tolist() == answers
    close(loaded)
