"""Classifiers saved to a folder and opened elsewhere."""

from __future__ import annotations

import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from saved_files import rewrite
from warm_process import run_warm

from clipretrieval import (
    ClipRetrievalError,
    ClipRetrievalWarning,
    FingerprintMismatchError,
    InvalidInputError,
    NotFittedError,
    RetrievalClassifier,
    StagedEncoder,
    StoreCorruptedError,
    StoreLockedError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.stores import FaissStore, MemoryStore

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(40, 6)).astype(np.float32)
LABELS = RNG.integers(0, 3, 40)
QUERIES = RNG.normal(size=(15, 6)).astype(np.float32)

SECOND_PROCESS = """
import sys, json, pathlib
from clipretrieval import RetrievalClassifier
paths = sorted(pathlib.Path(sys.argv[1]).rglob("*.*g"))
for folder in sys.argv[2:]:
    classifier = RetrievalClassifier.load(folder)
    near = classifier.kneighbors(paths)
    print(json.dumps([classifier.predict(paths).tolist(), near.distances.tolist(), near.ids.tolist()]))
"""


def contents(folder):
    """List what a saved classifier consists of; the lock that saving took stays behind empty."""
    return sorted(path.name for path in folder.iterdir() if path.name != "LOCK")


def same_answers(one, other, queries):
    """Compare everything that two classifiers answer."""
    a, b = one.kneighbors(queries), other.kneighbors(queries)
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.distances, b.distances)
    np.testing.assert_array_equal(one.predict(queries), other.predict(queries))
    assert one.predict(queries).dtype == other.predict(queries).dtype
    np.testing.assert_array_equal(one.predict_proba(queries), other.predict_proba(queries))
    np.testing.assert_array_equal(one.classes_, other.classes_)


@pytest.mark.parametrize("store", ["memory", "faiss"])
@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("kind", [int, str, bool, float])
def test_a_saved_classifier_answers_the_same(tmp_path, store, metric, kind):
    """Parameters, labels and their type, ids and distances come back."""
    fitted = RetrievalClassifier(store=store, k=3, metric=metric, weights="softmax", temperature=0.3)
    fitted.fit(POINTS, [kind(label) for label in LABELS])
    fitted.save(tmp_path / "saved")
    loaded = RetrievalClassifier.load(tmp_path / "saved")
    assert loaded.get_params() == fitted.get_params()
    same_answers(fitted, loaded, QUERIES)


def test_a_second_process_gives_the_same_answers(tmp_path, tiny_model, class_folder, monkeypatch):
    """Another process needs only the folder: it builds the encoder again and answers alike."""
    folders = [tmp_path / store for store in ("memory", "faiss")]
    fitted = [
        RetrievalClassifier(StagedEncoder(tiny_model, stage="mid"), folder.name, k=3) for folder in folders
    ]
    for classifier, folder in zip(fitted, folders, strict=True):
        classifier.fit(class_folder / "train").save(folder)
    monkeypatch.chdir(tmp_path)
    done = run_warm(["-c", SECOND_PROCESS, class_folder / "test", *folders], check=True)
    paths = sorted((class_folder / "test").rglob("*.*g"))
    for classifier, line in zip(fitted, done.stdout.splitlines(), strict=True):
        predictions, distances, ids = json.loads(line)
        near = classifier.kneighbors(paths)
        assert predictions == classifier.predict(paths).tolist()
        assert ids == near.ids.tolist()
        np.testing.assert_array_equal(np.array(distances, np.float32), near.distances)


def test_another_encoder_is_refused_with_what_differs(tmp_path, tiny_model, other_model, class_folder):
    """Loading with another stage, model, weights or none at all names what differs."""
    RetrievalClassifier(StagedEncoder(tiny_model, stage="mid")).fit(class_folder / "train").save(
        tmp_path / "s"
    )
    for encoder, named in (
        (StagedEncoder(tiny_model, stage="late"), "stage: stored 'mid', given 'late'"),
        (StagedEncoder(other_model, stage="mid"), "weights: stored 'sha256:"),
        (StagedEncoder("RN50", None, "mid"), "model: stored 'ModifiedResNet"),
    ):
        with pytest.raises(FingerprintMismatchError, match=named):
            RetrievalClassifier.load(tmp_path / "s", encoder)


def test_weights_that_changed_under_the_folder_are_refused(tmp_path, tiny_model, other_model, class_folder):
    """When the model's own folder was overwritten meanwhile, loading says that the weights differ."""
    folder = shutil.copytree(tiny_model.removeprefix("local-dir:"), tmp_path / "model")
    encoder = StagedEncoder(f"local-dir:{folder}", stage="mid")
    RetrievalClassifier(encoder).fit(class_folder / "train").save(tmp_path / "saved")
    shutil.copytree(other_model.removeprefix("local-dir:"), folder, dirs_exist_ok=True)
    with pytest.raises(FingerprintMismatchError, match="weights: stored"):
        RetrievalClassifier.load(tmp_path / "saved")


def test_a_relative_model_folder_is_found_from_elsewhere(tmp_path, tiny_model, class_folder, monkeypatch):
    """The model's folder is written down in full, so that the working folder does not matter."""
    shutil.copytree(tiny_model.removeprefix("local-dir:"), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    encoder = StagedEncoder("local-dir:model", stage="mid")
    RetrievalClassifier(encoder).fit(class_folder / "train").save("saved")
    monkeypatch.chdir("/")
    assert RetrievalClassifier.load(tmp_path / "saved").n_features_in_ == encoder.dim


def test_a_store_with_a_place_of_its_own_is_named_not_copied(tmp_path):
    """A FAISS folder stays where it is; the saved classifier points to it."""
    fitted = RetrievalClassifier(store=FaissStore(tmp_path / "index")).fit(POINTS, LABELS)
    fitted.save(tmp_path / "saved")
    assert contents(tmp_path / "saved") == ["classifier.json"]
    same_answers(fitted, RetrievalClassifier.load(tmp_path / "saved"), QUERIES)


class Forwarding:
    """A store of a user's own, which the library knows nothing of."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        if name in ("save", "load", "location"):
            raise AttributeError(name)
        return getattr(self._inner, name)


def test_a_store_of_ones_own_has_to_be_given_again(tmp_path):
    """What the library cannot open by itself is asked for, and then used."""
    store = Forwarding(MemoryStore())
    fitted = RetrievalClassifier(store=store).fit(POINTS, LABELS)
    with pytest.warns(ClipRetrievalWarning, match="Forwarding is not part of what was saved") as caught:
        fitted.save(tmp_path / "saved")
    assert [warning.filename for warning in caught] == [__file__]
    assert "lost" not in str(caught[0].message)
    with pytest.raises(InvalidInputError, match="store=your_store"):
        RetrievalClassifier.load(tmp_path / "saved")
    same_answers(fitted, RetrievalClassifier.load(tmp_path / "saved", store=store), QUERIES)
    other = MemoryStore()
    RetrievalClassifier(store=other).fit(POINTS[:, :2], LABELS)
    with pytest.raises(FingerprintMismatchError, match="dim"):
        RetrievalClassifier.load(tmp_path / "saved", store=other)


class Brightness:
    """An encoder of a user's own."""

    dim = 1
    fingerprint = {"encoder": "Brightness"}

    def encode(self, images):
        return np.array([[np.asarray(image).mean()] for image in images], dtype=np.float32)


def test_an_encoder_of_ones_own_has_to_be_given_again(tmp_path, class_folder):
    """It cannot be rebuilt from a file, so loading asks for it."""
    fitted = RetrievalClassifier(Brightness()).fit(class_folder / "train")
    fitted.save(tmp_path / "saved")
    with pytest.raises(InvalidInputError, match=r"Brightness.*load\(path, encoder\)"):
        RetrievalClassifier.load(tmp_path / "saved")
    same_answers(fitted, RetrievalClassifier.load(tmp_path / "saved", Brightness()), class_folder / "test")


def test_saving_again_replaces_the_earlier_one(tmp_path):
    """The second save leaves one store folder, and its answers."""
    RetrievalClassifier().fit(POINTS, LABELS).save(tmp_path / "saved")
    later = RetrievalClassifier(k=5).fit(POINTS[:20], LABELS[:20])
    later.save(tmp_path / "saved")
    assert len(contents(tmp_path / "saved")) == 2
    same_answers(later, RetrievalClassifier.load(tmp_path / "saved"), QUERIES)


def test_a_save_that_fails_leaves_the_earlier_one(tmp_path, monkeypatch):
    """When the disk is full half-way, the folder still opens as it was, and nothing is left behind."""
    first = RetrievalClassifier().fit(POINTS, LABELS)
    first.save(tmp_path / "saved")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clipretrieval.persistence.classifier_file.write_text", full)
    with pytest.raises(StoreUnavailableError, match="No space left"):
        RetrievalClassifier().fit(POINTS[:5], LABELS[:5]).save(tmp_path / "saved")
    same_answers(first, RetrievalClassifier.load(tmp_path / "saved"), QUERIES)
    assert len(contents(tmp_path / "saved")) == 2


def test_a_loaded_classifier_can_be_saved_anywhere(tmp_path):
    """Saving over its own folder, or into another, copies the store: neither needs the other afterwards."""
    fitted = RetrievalClassifier().fit(POINTS, LABELS)
    fitted.save(tmp_path / "a")
    RetrievalClassifier.load(tmp_path / "a").save(tmp_path / "a")
    RetrievalClassifier.load(tmp_path / "a").save(tmp_path / "b")
    same_answers(fitted, RetrievalClassifier.load(tmp_path / "a"), QUERIES)
    shutil.rmtree(tmp_path / "a")
    same_answers(fitted, RetrievalClassifier.load(tmp_path / "b"), QUERIES)


def test_a_first_save_that_was_killed_can_be_repeated(tmp_path):
    """The store's copy alone, without classifier.json, does not bar the next save, which removes it."""
    fitted = RetrievalClassifier().fit(POINTS, LABELS)
    fitted.save(tmp_path / "saved")
    (tmp_path / "saved" / "classifier.json").unlink()
    fitted.save(tmp_path / "saved")
    assert len(contents(tmp_path / "saved")) == 2
    same_answers(fitted, RetrievalClassifier.load(tmp_path / "saved"), QUERIES)


@pytest.mark.parametrize("left", [".classifier.json.0123abcd.tmp", ".store-0123abcd.99ff.tmp"])
def test_unfinished_files_do_not_bar_a_save(tmp_path, left):
    """What a killed process left half-written is removed by the next save."""
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / left).write_text("half")
    RetrievalClassifier().fit(POINTS, LABELS).save(tmp_path / "saved")
    assert left not in contents(tmp_path / "saved")


def test_saving_side_by_side_leaves_one_whole_classifier(tmp_path):
    """Of two savers into one folder, one at a time succeeds; the folder always opens."""
    fitted = [RetrievalClassifier(k=k).fit(POINTS, LABELS) for k in (1, 3)]

    def save(classifier):
        try:
            classifier.save(tmp_path / "saved", overwrite=True)
        except StoreLockedError:
            return 0
        return 1

    with ThreadPoolExecutor(2) as pool:
        for _ in range(8):
            assert sum(pool.map(save, fitted)) >= 1
            assert RetrievalClassifier.load(tmp_path / "saved").k in (1, 3)


def test_loading_while_another_saves_never_fails(tmp_path):
    """A reader sees either the earlier classifier or the later one, whole."""
    fitted = [RetrievalClassifier(k=k).fit(POINTS, LABELS) for k in (1, 3)]
    fitted[0].save(tmp_path / "saved")

    def read():
        for _ in range(25):
            assert RetrievalClassifier.load(tmp_path / "saved").store_.count() == len(POINTS)

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        for number in range(12):
            fitted[number % 2].save(tmp_path / "saved", overwrite=True)
        reader.result()


def test_a_loaded_classifier_outlives_its_folder(tmp_path):
    """When the folder that it came from is moved away, it can still be saved elsewhere, whole."""
    fitted = RetrievalClassifier().fit(POINTS, LABELS)
    fitted.save(tmp_path / "a")
    loaded = RetrievalClassifier.load(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "moved")
    loaded.save(tmp_path / "c")
    same_answers(fitted, RetrievalClassifier.load(tmp_path / "c"), QUERIES)


@pytest.mark.parametrize("place", ["../other/store-01234567", "/elsewhere/store-01234567", "..", "store-0"])
def test_the_store_has_to_lie_in_the_folder(tmp_path, place):
    """A classifier.json that points elsewhere for its copy of the store is not followed."""
    fitted = RetrievalClassifier().fit(POINTS, LABELS)
    for name in ("saved", "other"):
        fitted.save(tmp_path / name)
    file = tmp_path / "saved" / "classifier.json"
    rewrite(file, store={"name": "faiss", "folder": place})
    with pytest.raises(StoreCorruptedError, match="lacks its store"):
        RetrievalClassifier.load(tmp_path / "saved")


@pytest.mark.parametrize(
    "change",
    [
        {"label_kind": "colour"},
        {"label_kind": "str"},
        {"params": "xy"},
        {"params": {"k": 0}},
        {"n_features_in": "x"},
        {"n_features_in": 7},
        {"n_features_in": True},
        {"feature_names_in": 3},
        {"feature_names_in": ["a"]},
        {"params": {"k": 1, "weights": "uniform", "temperature": 0.0, "metric": "l2", "normalize": False}},
        {"params": {"k": 1, "weights": "uniform", "temperature": 0.1, "metric": "l2", "normalize": 0}},
        {"params": {"k": 1, "weights": "uniform", "temperature": 0.1, "metric": "l2"}},
        {"params": {"k": 1.0, "weights": "uniform", "temperature": 0.1, "metric": "l2", "normalize": False}},
        {"colour": "red"},
        {"library_version": None, "store": {"name": "faiss", "folder": 5}},
        {"store": {"name": "pinecone", "folder": "store-01234567"}},
        {"store": {"name": "unheard of", "options": {}}},
        {"store": {"name": "faiss", "options": {"path": 5}}},
        {"store": {"name": "faiss", "options": {"path": "\0"}}},
        {"encoder": {"class": "StagedEncoder", "config": {"model": 5, "pretrained": None}}},
        {"encoder": {"class": "StagedEncoder", "config": {"model": "RN50", "pretrained": None, "colour": 1}}},
        {"encoder": {"class": "StagedEncoder", "config": {"model": "RN50", "pretrained": None, "stage": []}}},
        {"store": {"name": "faiss"}},
        {"store": 5},
        {"encoder": 5},
    ],
)
def test_wrong_entries_are_refused(tmp_path, change):
    """Whatever entry of classifier.json is not what it should be, loading raises an error of ours."""
    RetrievalClassifier().fit(POINTS, LABELS).save(tmp_path / "saved")
    rewrite(tmp_path / "saved" / "classifier.json", **change)
    with pytest.raises(ClipRetrievalError, match=r"saved|unheard of"):
        RetrievalClassifier.load(tmp_path / "saved")


def test_feature_names_come_back(tmp_path):
    """A classifier that was fitted on named columns still checks them after loading."""
    frame = pd.DataFrame(POINTS, columns=list("abcdef"))
    RetrievalClassifier().fit(frame, LABELS).save(tmp_path / "saved")
    loaded = RetrievalClassifier.load(tmp_path / "saved")
    assert loaded.feature_names_in_.tolist() == list("abcdef")
    with pytest.raises(InvalidInputError, match="feature names"):
        loaded.predict(frame[list("fedcba")])


def test_a_store_that_has_gone_is_not_made_anew(tmp_path):
    """When the store's own folder was moved away, loading says so and puts nothing in its place."""
    RetrievalClassifier(store=FaissStore(tmp_path / "index")).fit(POINTS, LABELS).save(tmp_path / "saved")
    (tmp_path / "index").rename(tmp_path / "elsewhere")
    with pytest.raises(StoreUnavailableError, match="index"):
        RetrievalClassifier.load(tmp_path / "saved")
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("file", ["classifier.json", "MANIFEST.json", ".bin"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "emptied"])
def test_a_damaged_folder_is_refused(tmp_path, file, damage):
    """Whichever file was truncated or lost, loading or answering says so and names it or its folder."""
    RetrievalClassifier().fit(POINTS, LABELS).save(tmp_path / "saved")
    path = next(path for path in (tmp_path / "saved").rglob("*") if path.name.endswith(file))
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if damage == "truncated" else 0])
    expected = InvalidInputError if (file, damage) == ("classifier.json", "missing") else StoreCorruptedError
    with pytest.raises(expected, match=str(tmp_path / "saved")):
        RetrievalClassifier.load(tmp_path / "saved").predict(POINTS)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '"text"',
        '{"format": "other"}',
        "{}",
        '{"format": "clipretrieval.classifier", "format_version": 99}',
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    """A classifier.json that something else, or a later version, wrote is not taken for ours."""
    (tmp_path / "classifier.json").write_text(content)
    with pytest.raises((InvalidInputError, StoreCorruptedError), match=r"classifier\.json"):
        RetrievalClassifier.load(tmp_path)


def test_folders_that_are_no_classifier_are_refused(tmp_path):
    """Loading from a missing or foreign folder, and saving over other things, are errors."""
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "notes.txt"):
        reason = "no saved classifier" if path.exists() else "there is no folder"
        with pytest.raises(InvalidInputError, match=reason):
            RetrievalClassifier.load(path)
        if path.exists():
            with pytest.raises(InvalidInputError, match="pass a"):
                RetrievalClassifier().fit(POINTS, LABELS).save(path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_cannot_be_saved_says_so(tmp_path):
    """An unfitted classifier, and one whose weights are a function, are refused and nothing is written."""
    with pytest.raises(NotFittedError):
        RetrievalClassifier().save(tmp_path / "saved")
    with pytest.raises(UnsupportedOperationError, match="callable"):
        RetrievalClassifier(weights=np.ones_like).fit(POINTS, LABELS).save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_saved_files_hold_no_pickle(tmp_path):
    """Everything in the folder is JSON or begins with the vectors themselves."""
    RetrievalClassifier().fit(POINTS, LABELS).save(tmp_path / "saved")
    starts = {path.suffix: path.read_bytes()[:16] for path in Path(tmp_path).rglob("*") if path.is_file()}
    assert set(starts) <= {".json", ".bin", ""}
    assert starts[".json"][:1] == b"{"
    assert starts[".bin"][:8] == np.asarray(POINTS[0][:2], dtype="<f4").tobytes()


def test_of_two_that_were_loaded_the_second_save_is_refused(tmp_path):
    """Two loads, each with an addition: the second save would undo the first, and is refused."""
    target = tmp_path / "saved"
    RetrievalClassifier().fit(POINTS, LABELS).save(target)
    first, second = RetrievalClassifier.load(target), RetrievalClassifier.load(target)
    first.partial_fit(QUERIES[:5], LABELS[:5])
    second.partial_fit(QUERIES[5:10], LABELS[5:10])
    first.save(target)
    with pytest.raises(StoreLockedError, match=r"Load it again and repeat your changes.*overwrite=True"):
        second.save(target)
    assert RetrievalClassifier.load(target).store_.count() == 45
    first.partial_fit(QUERIES[10:], LABELS[10:15])
    first.save(target)  # nobody else has saved since
    assert RetrievalClassifier.load(target).store_.count() == 50
    third = RetrievalClassifier.load(target).partial_fit(QUERIES[5:10], LABELS[5:10])
    third.save(target)
    assert RetrievalClassifier.load(target).store_.count() == 55
    second.save(tmp_path / "elsewhere")
    assert RetrievalClassifier.load(tmp_path / "elsewhere").store_.count() == 45
    second.save(target, overwrite=True)
    assert RetrievalClassifier.load(target).store_.count() == 45


def test_a_changed_folder_is_noticed_by_other_names_and_after_pickling(tmp_path):
    """The folder is the same through a link, for a copy of the classifier too."""
    target = tmp_path / "saved"
    RetrievalClassifier().fit(POINTS, LABELS).save(target)
    stale = pickle.loads(pickle.dumps(RetrievalClassifier(store="memory").fit(POINTS, LABELS)))
    stale.save(target)
    stale = pickle.loads(pickle.dumps(stale))
    RetrievalClassifier.load(target).save(target)
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(StoreLockedError, match="saved anew"):
        stale.save(tmp_path / "link")
    shutil.rmtree(target)
    stale.save(target)  # nothing is there that could be lost
    assert RetrievalClassifier.load(target).store_.count() == 40


def test_a_save_that_cannot_be_synced_is_told_truly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was saved is in place, its store included, when the fsync of its folder fails."""
    from clipretrieval._util import files as _atomic

    sync = _atomic.sync_folder

    def failing(folder: Path) -> None:
        if (folder / "classifier.json").exists():
            raise OSError(5, "Input/output error")
        sync(folder)

    vectors = np.eye(6, dtype=np.float32)
    classifier = RetrievalClassifier(k=1, store="memory").fit(vectors, list("aabbcc"))
    monkeypatch.setattr(_atomic, "sync_folder", failing)
    with pytest.raises(StoreUnavailableError, match="was saved but may not be on the disk"):
        classifier.save(tmp_path / "kept")
    assert RetrievalClassifier.load(tmp_path / "kept").predict(vectors).tolist() == list("aabbcc")
