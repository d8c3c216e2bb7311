"""Cascades whose exits before the last keep no vectors: every change is as exact as with them."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
from cascades import STAGES, Crops, forced, quietly
from PIL import Image
from warm_process import run_warm

from clipretrieval import CascadeClassifier, RetrievalClassifier, StagedEncoder
from clipretrieval.errors import (
    InvalidInputError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.heads.index_statistics import IndexStatistics
from clipretrieval.images import iter_images
from clipretrieval.retrieval.changes import is_changing
from clipretrieval.stores import MemoryStore


def files(folder: Path, data: Crops) -> Crops:
    """Write images into files of their own, and return the paths in their place."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, image in enumerate(data.images):
        paths.append(str(folder / f"{number:03}.png"))
        Image.fromarray(image).save(paths[-1])
    return Crops(paths, data.labels)


@pytest.fixture(scope="session")
def stored(tmp_path_factory, few) -> Crops:
    return files(tmp_path_factory.mktemp("stored"), few)


@pytest.fixture
def movable(tmp_path, stored) -> Crops:
    """Files that a test may change."""
    folder = tmp_path / "images"
    shutil.copytree(Path(stored.images[0]).parent, folder)
    return Crops([str(folder / Path(path).name) for path in stored.images], stored.labels)


def make(encoder, *, keep_vectors=False, **options):
    options = {"head": "discriminant", "store": "memory", **options}
    return CascadeClassifier(encoder, STAGES, keep_vectors=keep_vectors, **options)


def ids_of(paths):
    return [each.id for each in iter_images(list(paths))]


def assert_equal(found, expected, images):
    """Statistics to 1e-9 of their scale, and answers, of all exits are the same."""
    assert found.classes_.tolist() == expected.classes_.tolist()
    for mine, theirs in zip(found.exits_, expected.exits_, strict=True):
        a, b = mine.class_statistics(), theirs.class_statistics()
        np.testing.assert_array_equal(a.counts, b.counts)
        for name in ("sums", "second_moment"):
            scale = np.abs(getattr(b, name)).max()
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=0, atol=1e-9 * scale)
    for threshold in (None, 1.0):
        mine, theirs = forced(found, threshold), forced(expected, threshold)
        np.testing.assert_allclose(
            quietly(mine.predict_proba, images), quietly(theirs.predict_proba, images), atol=1e-6
        )


@pytest.mark.parametrize("head", ["discriminant", "quadratic"])
def test_answers_are_those_with_vectors(encoder, stored, asked, head):
    with_vectors = make(encoder, keep_vectors=True, head=head).fit(*stored)
    assert_equal(make(encoder, head=head).fit(*stored), with_vectors, asked.images)


@pytest.mark.parametrize("store", ["memory", "faiss folder", "chroma"])
def test_changes_are_exact(encoder, stored, asked, store, tmp_path):
    """Added in parts, forgotten by id and by label, relabeled, given anew: as fitted on what is left."""
    options = {"store": store.split()[0]}
    if store != "memory":
        options["store_options"] = {"path": tmp_path}
    paths, labels = stored.images[:60], stored.labels[:60]
    cascade = make(encoder, **options)
    for start in range(0, 60, 25):
        cascade.partial_fit(paths[start : start + 25], labels[start : start + 25])
    assert_equal(cascade, make(encoder, keep_vectors=True).fit(paths, labels), asked.images)
    gone = cascade.forget(ids_of(paths[:7]))
    assert (len(gone.ids), gone.remaining) == (7, 53)
    cascade.forget(label=labels[0])
    kept = [row for row in range(7, 60) if labels[row] != labels[0]]
    paths, labels = [paths[row] for row in kept], [labels[row] for row in kept]
    assert cascade.relabel(iter(ids_of(paths[:5])), "new") == 5
    cascade.partial_fit(paths[5:8], ["new"] * 3)
    labels[:8] = ["new"] * 8
    assert_equal(cascade, make(encoder, keep_vectors=True).fit(paths, labels), asked.images)
    for each in cascade.exits_:
        each.store_.close()


def test_early_exits_take_the_room_of_their_records(encoder, stored, tmp_path):
    sizes = {}
    for kept in (True, False):
        folder = tmp_path / str(kept)
        options = {"store": "faiss", "store_options": {"path": folder}}
        cascade = make(encoder, keep_vectors=kept, **options).fit(*stored)
        for each in cascade.exits_:
            each.store_.close()
        sizes[kept] = {
            stage: sum(file.stat().st_size for file in (folder / stage).rglob("*")) for stage in STAGES
        }
    for stage, each in zip(STAGES[:-1], cascade.exits_[:-1], strict=True):
        saved = sizes[True][stage] - sizes[False][stage]
        assert saved == pytest.approx(4 * (each.n_features_in_ - 1) * 72, rel=0.1), stage
    assert sizes[True]["late"] == pytest.approx(sizes[False]["late"], abs=100)


def test_calibrating_and_evaluating_need_no_vectors(encoder, tmp_path, fitted_on, calibrated_on, asked):
    """The rule is learned on stored images, encoded again: the same as of stored vectors."""
    paths = files(tmp_path, fitted_on)
    both = [make(encoder, keep_vectors=kept).fit(*paths) for kept in (False, True)]
    for each in both:
        each.calibrate(*calibrated_on, max_loss=0.1, confidence=0.9)
    without, with_vectors = both
    learned = [each.policy_.to_dict() for each in both]
    np.testing.assert_allclose(learned[0]["regressions"], learned[1]["regressions"], atol=1e-6)
    assert learned[0]["threshold"] == pytest.approx(learned[1]["threshold"])
    assert without.predict(asked.images).tolist() == with_vectors.predict(asked.images).tolist()
    reports = [each.evaluate(*asked) for each in both]
    assert len(set(reports[0].places.tolist())) > 1
    np.testing.assert_array_equal(reports[0].places, reports[1].places)
    assert reports[0].accuracy == reports[1].accuracy
    reports[0].to_html(tmp_path / "page.html")


def test_explanations_show_neighbors_at_the_last_exit_alone(encoder, stored, asked):
    cascade = make(encoder).fit(*stored)
    for early in (forced(cascade, 1.0), forced(cascade, None)):
        told = quietly(early.explain, asked.images[:5], k=3)
        last = [each.stage == "late" for each in told]
        assert [len(each.neighbors) for each in told] == [3 if each else 0 for each in last]
        assert all(str(each) and each.to_dict() for each in told)
    with pytest.raises(UnsupportedOperationError, match=r"keeps no vectors .* no neighbors to show"):
        cascade.exits_[0].kneighbors(asked.images[:1])


@pytest.mark.parametrize("store", ["memory", "faiss folder"])
def test_saved_and_loaded_it_goes_on(encoder, stored, asked, tmp_path, store):
    options = {"store": "faiss", "store_options": {"path": tmp_path / "v"}} if store != "memory" else {}
    cascade = make(encoder, **options).fit(*stored)
    cascade.save(tmp_path / "kept")
    if options:
        for each in cascade.exits_:
            each.store_.close()
    loaded = CascadeClassifier.load(tmp_path / "kept")
    assert loaded.keep_vectors is False
    loaded.forget(ids_of(stored.images[:9]))
    expected = make(encoder, keep_vectors=True).fit(stored.images[9:], stored.labels[9:])
    assert_equal(loaded, expected, asked.images)
    for each in loaded.exits_:
        each.store_.close()


def test_stores_are_attached_to_again(encoder, stored, asked):
    stores = {stage: MemoryStore() for stage in STAGES}
    cascade = make(encoder, store=stores).fit(*stored)
    again = CascadeClassifier.from_stores(stores, encoder, head="discriminant")
    assert again.keep_vectors is False
    assert_equal(again, cascade, asked.images)
    again.forget(ids_of(stored.images[:3]))
    assert stores["stem"].count() == 69
    single = RetrievalClassifier.from_store(stores["layer1"], again.exits_[1].encoder, head="discriminant")
    assert single.predict(asked.images).tolist() == again.exits_[1].predict(asked.images).tolist()
    report = single.evaluate(*asked)
    assert report.accuracy == np.mean(single.predict(asked.images) == np.array(asked.labels))
    assert [each.neighbors for each in single.explain(asked.images[:2])] == [(), ()]
    with pytest.raises(UnsupportedOperationError, match="nothing to rewrite"):
        single.set_params(transform="whiten").refit_transform()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cascade: pickle.loads(pickle.dumps(cascade))])
def test_a_copy_goes_its_own_way(encoder, stored, asked, copied):
    cascade = make(encoder).fit(*stored)
    other = copied(cascade)
    other.forget(ids_of(stored.images[:10]))
    assert_equal(cascade, make(encoder, keep_vectors=True).fit(*stored), asked.images)
    left = stored.images[10:], stored.labels[10:]
    assert_equal(other, make(encoder, keep_vectors=True).fit(*left), asked.images)


@pytest.mark.parametrize(
    ("change", "loss"),
    [
        *(("forget", "gone"), ("forget", "other"), ("forget", "broken")),
        *(("relabel", "gone"), ("partial_fit", "gone")),
    ],
)
def test_a_lost_image_changes_nothing(encoder, movable, asked, change, loss):
    """The error names the file; nothing is changed, and with the file back it works."""
    paths, labels = movable.images, movable.labels
    cascade = make(encoder).fit(*movable)
    content = Path(paths[2]).read_bytes()
    if loss == "gone":
        Path(paths[2]).unlink()
    else:
        Path(paths[2]).write_bytes(Path(paths[3]).read_bytes() if loss == "other" else b"\x89PNG")

    def run():
        if change == "forget":
            return cascade.forget(names)
        if change == "relabel":
            return cascade.relabel(names, "new")
        return cascade.partial_fit([given], ["new"])

    names, given = ids_of(paths[:2]), paths[2]
    names.append(ids_of([_written(paths[2] + "-copy.png", content)])[0])
    given = paths[2] + "-copy.png"
    if change != "partial_fit":  # which encodes what it is given
        before = make(encoder, keep_vectors=True).fit(_copies(paths, 2, given), labels)
        with pytest.raises(
            StoreUnavailableError, match=r"^'[^,]*002.png' (is gone|holds another|cannot be read)"
        ):
            run()
        assert_equal(cascade, before, asked.images)
        assert [each.store_.count() for each in cascade.exits_] == [72] * 4
        Path(paths[2]).write_bytes(content)
    run()
    left = list(zip(_copies(paths, 2, given), labels, strict=True))
    if change == "forget":
        left = left[3:]
    elif change == "relabel":
        left = [(path, "new" if row < 3 else label) for row, (path, label) in enumerate(left)]
    else:
        left[2] = (given, "new")
    after = make(encoder, keep_vectors=True).fit(*zip(*left, strict=True))
    assert_equal(cascade, after, asked.images)


def _written(path, content):
    Path(path).write_bytes(content)
    return path


def _copies(paths, place, path):
    return [path if row == place else each for row, each in enumerate(paths)]


@pytest.mark.parametrize("changed", ["normalize", "encoder"])
def test_a_fit_by_other_arguments_starts_anew(encoder, stored, asked, changed, other_model):
    """What is forgotten is taken out by the encoder that put it in."""
    cascade = make(encoder).fit(*stored)
    other = StagedEncoder(other_model, precision="fp32") if changed == "encoder" else encoder
    normalize = changed == "normalize"
    cascade.set_params(encoder=other, normalize=normalize).fit(*stored, overwrite=True)
    cascade.forget(ids_of(stored.images[:9]))
    left = stored.images[9:], stored.labels[9:]
    expected = make(other, keep_vectors=True, normalize=normalize).fit(*left)
    assert_equal(cascade, expected, asked.images)


def test_an_encoder_that_computes_otherwise_answers_and_changes_nothing(encoder, stored, asked, tiny_model):
    """Of another precision, what it takes out would not be what was put in."""
    cascade = make(encoder).fit(stored.images[:60], stored.labels[:60])
    before = make(encoder, keep_vectors=True).fit(stored.images[:60], stored.labels[:60])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "this CPU has no bf16")
        cascade.set_params(encoder=StagedEncoder(tiny_model, precision="bf16"))
    assert len(quietly(cascade.predict, asked.images)) == len(asked.images)
    for call in (
        lambda: cascade.forget(ids_of(stored.images[:2])),
        lambda: cascade.relabel(ids_of(stored.images[:2]), "new"),
        lambda: cascade.partial_fit(stored.images[60:], stored.labels[60:]),
    ):
        with pytest.raises(InvalidInputError, match="computes in fp32, cpu, and this one computes in bf16"):
            call()
    quietly(cascade.set_params(encoder=encoder).predict, asked.images)
    assert_equal(cascade, before, asked.images)


def test_images_that_were_moved_are_found_again(encoder, movable, asked, tmp_path, monkeypatch):
    """Given once more, from where they are now; a relative path is kept in full."""
    monkeypatch.chdir(tmp_path)
    cascade = make(encoder).fit([os.path.relpath(path) for path in movable.images], movable.labels)
    monkeypatch.chdir("/")
    names = ids_of(movable.images[:5])
    cascade.forget(names[:2])
    Path(movable.images[0]).parent.rename(tmp_path / "moved")
    moved = [str(tmp_path / "moved" / Path(path).name) for path in movable.images]
    with pytest.raises(StoreUnavailableError, match=r"are gone.*add the images once more"):
        cascade.forget(names[2:])
    assert cascade.partial_fit(moved[2:], movable.labels[2:]).fit_report_.already_there == 70
    cascade.forget(names[2:])
    assert_equal(cascade, make(encoder, keep_vectors=True).fit(moved[5:], movable.labels[5:]), asked.images)


def test_a_path_that_no_text_can_hold_is_refused(encoder, movable):
    path = os.fsdecode(os.fsencode(Path(movable.images[0]).parent) + b"/a\xff.png")
    try:
        Path(movable.images[0]).rename(path)
    except OSError:
        pytest.skip("this file system takes no such names")
    with pytest.raises(InvalidInputError, match=r"1 of 72 images, such as .* not files that can be opened"):
        make(encoder).fit([path, *movable.images[1:]], movable.labels)


def test_an_interrupted_forget_that_is_repeated_ends(encoder, stored, asked, monkeypatch):
    """An exit where all records are gone already gets its statistics in step, too."""
    cascade = make(encoder).fit(*stored)
    keep, first = IndexStatistics.keep, []

    def fail(self, store):
        if not first:
            first.append(store)
            raise OSError("no space left")
        return keep(self, store)

    names = ids_of(stored.images[:4])
    monkeypatch.setattr(IndexStatistics, "keep", fail)
    with pytest.raises(OSError, match="no space"):
        cascade.forget(names)
    assert is_changing(cascade.exits_[0].store_.read_manifest())
    cascade.forget(names)
    assert not any(is_changing(each.store_.read_manifest()) for each in cascade.exits_)
    left = stored.images[4:], stored.labels[4:]
    assert_equal(cascade, make(encoder, keep_vectors=True).fit(*left), asked.images)


def test_nothing_is_encoded_for_a_change_that_is_refused_or_changes_nothing(encoder, movable):
    cascade = make(encoder).fit(*movable)
    names = ids_of(movable.images)
    for path in movable.images:
        Path(path).unlink()
    with pytest.raises(InvalidInputError, match="no image with the id 'nope'"):
        cascade.relabel([*names, "nope"], "x")
    assert cascade.relabel(names, movable.labels) == 0


def test_images_that_are_no_files_are_refused(encoder, few, stored, asked):
    cascade = make(encoder)
    with pytest.raises(InvalidInputError, match=r"72 of 72 images are not files .*keep_vectors=True"):
        cascade.fit(*few)
    cascade.fit(stored.images[:60], stored.labels[:60])
    with pytest.raises(InvalidInputError, match="2 of 2 images are not files"):
        cascade.partial_fit(asked.images[:2], asked.labels[:2])
    expected = make(encoder, keep_vectors=True).fit(stored.images[:60], stored.labels[:60])
    assert_equal(cascade, expected, asked.images)


@pytest.mark.parametrize(
    "options",
    [
        {"head": "fused"},
        {"head": "votes", "k": 3},
        {"certainty": "distance"},
        {"transform": "whiten"},
        {"keep_vectors": None},
    ],
)
def test_what_needs_vectors_is_refused(encoder, stored, options):
    with pytest.raises(InvalidInputError, match="keep_vectors"):
        make(encoder, **options).fit(*stored)


def test_a_store_with_vectors_is_not_filled_without(encoder, stored, tmp_path):
    """And the other way round: what is there decides where a fit goes on."""
    options = {"store": "faiss", "store_options": {"path": tmp_path}}
    first = make(encoder, keep_vectors=True, **options).fit(stored.images[:40], stored.labels[:40])
    for each in first.exits_:
        each.store_.close()
    for how in ("resume", "overwrite"):
        with pytest.raises(InvalidInputError, match="holds vectors of dimension"):
            make(encoder, **options).fit(*stored, **{how: True})
    again = make(encoder, keep_vectors=True, **options).fit(*stored, resume=True)
    assert [each.store_.count() for each in again.exits_] == [72] * 4
    for each in again.exits_:
        each.store_.close()


def test_a_fit_without_vectors_is_gone_on_with(encoder, stored, asked, tmp_path):
    options = {"store": "faiss", "store_options": {"path": tmp_path}}
    first = make(encoder, **options).fit(stored.images[:40], stored.labels[:40])
    for each in first.exits_:
        each.store_.close()
    again = make(encoder, **options).fit(*stored, resume=True)
    assert again.fit_report_.already_there == 40
    assert_equal(again, make(encoder, keep_vectors=True).fit(*stored), asked.images)
    held = [getattr(each.store_, "records", each.store_) for each in again.exits_]
    stores = dict(zip(STAGES, held, strict=True))
    with pytest.raises(InvalidInputError, match="keep_vectors=False filled the store"):
        make(encoder, keep_vectors=True, store=stores).fit(*stored, overwrite=True)
    with pytest.raises(InvalidInputError, match="keep_vectors=False, and that has been set to True"):
        again.set_params(keep_vectors=True).predict(asked.images)
    again.set_params(keep_vectors=False)
    again.fit(stored.images[:50], stored.labels[:50], overwrite=True)
    expected = make(encoder, keep_vectors=True).fit(stored.images[:50], stored.labels[:50])
    assert_equal(again, expected, asked.images)
    for each in again.exits_:
        each.store_.close()


PROGRAM = """
import os, signal, sys
from clipretrieval import CascadeClassifier, StagedEncoder
from cascades import STAGES
model, path, end, *paths = sys.argv[1:]
def images():
    for place, name in enumerate(paths):
        if place == int(end):
            os.kill(os.getpid(), signal.SIGKILL)
        yield name, ("a", "b", "c")[place % 3]
encoder = StagedEncoder(model, precision="fp32", batch_size=8)
options = {"head": "discriminant", "store": "faiss", "store_options": {"path": path}}
CascadeClassifier(encoder, STAGES, keep_vectors=False, **options).fit(images(), flush_every=10)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_fit_is_gone_on_with(movable, asked, tmp_path, tiny_model):
    """What was flushed before needs no encoding again: its files may be gone by then."""
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{PROGRAM}"
    done = run_warm(["-c", program, tiny_model, str(tmp_path / "killed"), "57", *movable.images])
    assert done.returncode == -signal.SIGKILL
    encoder = StagedEncoder(tiny_model, precision="fp32", batch_size=8)
    labels = [("a", "b", "c")[place % 3] for place in range(72)]
    whole = make(encoder, keep_vectors=True).fit(movable.images, labels)
    options = {"store": "faiss", "store_options": {"path": tmp_path / "killed"}}
    first = dict(zip(movable.images, labels, strict=True))
    for path in movable.images[:30]:
        Path(path).unlink()
        first.pop(path)
    killed = make(encoder, **options).fit(list(first), list(first.values()), resume=True)
    assert killed.fit_report_.already_there > 0
    assert_equal(killed, whole, asked.images)
    for each in killed.exits_:
        each.store_.close()
