"""Stores that were filled apart, made one."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from own_encoder import Quarters
from warm_process import WarmProcess, run_warm

from clipretrieval import (
    FingerprintMismatchError,
    InvalidInputError,
    RetrievalClassifier,
    StoreLockedError,
    UnsupportedOperationError,
)
from clipretrieval.heads import Moments, Whitening
from clipretrieval.stores import ChromaStore, FaissStore, MemoryStore
from clipretrieval.vectors import merge_stores

pytestmark = pytest.mark.filterwarnings("ignore:there is only one class:clipretrieval.ClipRetrievalWarning")

FILL = """
import sys
import numpy as np
from clipretrieval import RetrievalClassifier
from clipretrieval.heads import Fused, Ridge
from clipretrieval.stores import FaissStore
folder, rows, part, head = sys.argv[1:]
with np.load(rows) as given:
    vectors, labels = given["vectors"][int(part)::4], given["labels"][int(part)::4]
head = {"fused": Fused(ridge=Ridge(64)), "ridge": Ridge(64)}.get(head, head)
with FaissStore(folder) as store:
    RetrievalClassifier(store=store, head=head, k=5).fit(vectors, labels)
"""
MERGE = """
import os, signal, sys
from clipretrieval.stores import FaissStore
from clipretrieval.vectors import merge_stores
target, action, stop, *shards = sys.argv[1:]
stores = [FaissStore(shard) for shard in shards]
with FaissStore(target) as store:
    own, calls = getattr(store, action), [0]
    def dying(*given, **more):
        calls[0] += 1
        if calls[0] == int(stop):
            os.kill(os.getpid(), signal.SIGKILL)
        return own(*given, **more)
    setattr(store, action, dying)
    print(merge_stores(store, stores))
"""


def contents(store):
    ids = sorted(name for listing in store.scan() for name in listing.ids.tolist())
    records = store.get(ids)
    return ids, records.vectors.tolist(), records.labels.tolist(), records.metadata


def fitted(vectors, labels, ids=None, **options):
    return RetrievalClassifier(store=MemoryStore(), **options).fit_vectors(vectors, labels, ids).store_


@pytest.fixture
def few(few_features):
    """Heads that draw 64 random features."""


@pytest.mark.parametrize("head", ["votes", "discriminant", "quadratic", "ridge", "fused"])
def test_four_shards_of_four_processes_are_one_fit(clouds, tmp_path, few, head):
    """Predictions are those of one fit, and what the shards kept of their classes the target keeps of all."""
    vectors, labels, asked = clouds
    np.savez(tmp_path / "rows.npz", vectors=vectors, labels=labels)
    folders = [tmp_path / f"shard{part}" for part in range(4)]
    started = [
        WarmProcess(["-c", FILL, folder, tmp_path / "rows.npz", part, head])
        for part, folder in enumerate(folders)
    ]
    for process in started:
        out, err = process.communicate(120)
        assert process.poll() == 0, out + err
    whole = RetrievalClassifier(store="memory", head=head, k=5).fit(vectors, labels)
    target, shards = FaissStore(tmp_path / "target"), [FaissStore(folder) for folder in folders]
    report = merge_stores(target, shards)
    assert (report.read, report.new, report.count) == ((45,) * 4, 180, 180)
    for store in (target, *shards):
        store.close()
    with FaissStore(tmp_path / "target") as opened:
        merged = RetrievalClassifier.from_store(opened, head=head, k=5)
        assert merged.classes_.tolist() == whole.classes_.tolist()
        assert merged.predict(asked).tolist() == whole.predict(asked).tolist()
        np.testing.assert_allclose(merged.predict_proba(asked), whole.predict_proba(asked), atol=1e-5)
        if head != "votes":
            kept = opened.read_manifest()["statistics_blobs"]
            assert kept == whole.store_.read_manifest()["statistics_blobs"] != []
            assert opened.read_manifest()["statistics"]["count"] == 180
        found, wanted = (each.class_statistics(Moments()) for each in (merged, whole))
        assert found.counts.tolist() == wanted.counts.tolist()
        np.testing.assert_allclose(found.sums, wanted.sums, atol=1e-3 if head == "fused" else 1e-9)


@pytest.mark.parametrize(("action", "stop"), [("upsert", 2), ("flush", 1), ("write_manifest", 2)])
def test_a_merge_that_is_killed_is_gone_on_with(clouds, tmp_path, action, stop):
    """With SIGKILL amid records, before they are durable, and amid the manifest."""
    vectors, labels, _ = clouds
    many = np.concatenate([vectors + step for step in range(20)])
    names = [f"n{number}" for number in range(len(many))]
    folders = [str(tmp_path / f"shard{part}") for part in range(2)]
    for part, folder in enumerate(folders):
        with FaissStore(folder) as store:
            rows = slice(part, None, 2)
            RetrievalClassifier(store=store, head="discriminant").fit_vectors(
                many[rows], np.tile(labels, 20)[rows], names[rows]
            )
    target = str(tmp_path / "target")
    killed = run_warm(["-c", MERGE, target, action, stop, *folders])
    assert killed.returncode == -signal.SIGKILL
    done = run_warm(["-c", MERGE, target, action, 10**6, *folders], check=True)
    assert "3600 in all" in done.stdout
    whole = fitted(many, np.tile(labels, 20), names)
    with FaissStore(target) as store:
        assert contents(store) == contents(whole)
        assert store.read_manifest()["statistics"]["count"] == 3600
        assert store.read_manifest()["classes"] == ["a", "b", "ü"]


def test_an_image_of_several_shards_is_there_once(clouds):
    """With its metadata; a second merge finds all there, and a third adds to what is there."""
    vectors, labels, _ = clouds
    names = [str(number) for number in range(180)]
    one, two = MemoryStore(), MemoryStore()
    kept = [{"source": f"{name}.png", "by": ["me"]} for name in names]
    for store, rows in ((one, slice(0, 100)), (two, slice(60, 180))):
        store.upsert(names[rows], vectors[rows], labels[rows].tolist(), kept[rows])
        RetrievalClassifier.adopt_store(store)
    target = MemoryStore()
    first = merge_stores(target, [one])
    report = merge_stores(target, [one, two])
    assert (first.new, report.new, report.already_there, report.n_conflicts) == (100, 80, 140, 0)
    assert contents(target) == (
        *contents(fitted(vectors, labels, names))[:3],
        [kept[int(i)] for i in sorted(names)],
    )
    assert "220 records of 2 shards" in str(report)
    assert merge_stores(target, [one, two]).new == 0


def test_an_id_under_two_labels_is_refused_or_decided():
    """Nothing is stored where it is refused; the target's label comes first, the last shard's last."""
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    one = fitted(rows[:3], ["a", "a", "b"], ["x", "y", "z"])
    two = fitted(rows, ["a", "b", "c", "c"], ["x", "y", "z", "w"])
    target = MemoryStore()
    with pytest.raises(
        InvalidInputError, match=r"2 ids come .*y: 'a' in shard 0 .*, 'b' in shard 1"
    ) as refused:
        merge_stores(target, [one, two])
    assert "z: 'b' in shard 0" in str(refused.value)
    assert (target.count(), target.read_manifest()) == (0, {})

    def merged(shards, mode, onto=()):
        found = fitted(*onto) if onto else MemoryStore()
        report = merge_stores(found, shards, mode)
        return dict(zip(contents(found)[0], contents(found)[2], strict=True)), report

    labels, report = merged([one, two], "first")
    assert labels == {"x": "a", "y": "a", "z": "b", "w": "c"}
    assert (report.new, report.already_there, report.relabelled, report.n_conflicts) == (4, 3, 0, 2)
    labels, report = merged([one, two], "last")
    assert labels == {"x": "a", "y": "b", "z": "c", "w": "c"}
    assert (report.new, report.already_there, report.relabelled) == (4, 1, 2)
    assert [sorted(each.labels) for each in report.conflicts] == [["a", "b"], ["b", "c"]]
    assert "2 ids under several labels" in str(report)
    own = (rows[1:2], ["d"], ["y"])
    assert merged([one, two], "first", own)[0]["y"] == "d"
    assert merged([one, two], "last", own)[0]["y"] == "b"
    assert report.to_dict()["read"] == [3, 4]


def test_an_id_with_two_vectors_is_refused_or_decided():
    """As with row numbers that two files share: nothing is lost in silence."""
    rows = np.eye(4, dtype=np.float32)
    for options in ({}, {"metric": "cosine"}, {"transform": "whiten"}):
        store = [MemoryStore(options.get("metric", "l2")) for _ in range(3)]
        for each, these in zip(store, (rows, rows[::-1]), strict=False):
            RetrievalClassifier(store=each, **options).fit_vectors(these, [*"abab"], [*"wxyz"])
        with pytest.raises(
            InvalidInputError, match=r"4 ids come .* several vectors \(w: 'a' in shard 0 .*, 'a'"
        ):
            merge_stores(store[2], store[:2])
        assert store[2].count() == 0
        first, last = (MemoryStore(options.get("metric", "l2")) for _ in range(2))
        report = merge_stores(first, store[:2], "first")
        assert (report.new, report.already_there, report.n_conflicts) == (4, 4, 4)
        report = merge_stores(last, store[:2], "last")
        assert (report.new, report.relabelled, report.n_conflicts) == (4, 4, 4)
        if "transform" not in options:
            assert contents(first)[1] == contents(store[0])[1]
            assert contents(last)[1] == contents(store[1])[1]
        with pytest.raises(InvalidInputError, match="w: 'a' in the target"):
            merge_stores(first, store[1:2])


def test_statistics_follow_a_label_that_another_shard_changes(clouds):
    """They are those of the records that are there at last."""
    vectors, labels, asked = clouds
    names = [str(number) for number in range(180)]
    shards = [
        fitted(vectors, labels, names, head="discriminant"),
        fitted(vectors[:20], ["b"] * 20, names[:20], head="discriminant"),
    ]
    target = MemoryStore()
    merge_stores(target, shards, "last")
    wanted = RetrievalClassifier(store="memory", head="discriminant").fit(
        vectors, ["b"] * 20 + labels[20:].tolist()
    )
    found = RetrievalClassifier.from_store(target, head="discriminant")
    assert found.class_statistics().counts.tolist() == [40, 80, 60]
    np.testing.assert_allclose(found.predict_proba(asked), wanted.predict_proba(asked), atol=1e-9)


@pytest.mark.parametrize("labels", [[7, -1], [True, False], [1.0, 3.0]], ids=str)
def test_labels_keep_their_type_through_other_stores(clouds, labels):
    """From memory and Chroma into FAISS."""
    vectors, _, asked = clouds
    one = RetrievalClassifier(store=MemoryStore(), k=3).fit(vectors[:90], labels * 45).store_
    two = RetrievalClassifier(store=ChromaStore(), k=3).fit(vectors[90:], labels * 45).store_
    target = FaissStore()
    merge_stores(target, [one, two])
    whole = RetrievalClassifier(store="memory", k=3).fit(vectors, labels * 90)
    found = RetrievalClassifier.from_store(target, k=3)
    assert found.predict(asked).tolist() == whole.predict(asked).tolist()
    assert found.predict(asked).dtype == whole.predict(asked).dtype


def test_stores_that_were_filled_otherwise_are_refused_by_name(clouds, tmp_path):
    """Two shards, or a shard and the target; the message says what differs."""
    vectors, labels, _ = clouds
    one, target = fitted(vectors, labels), MemoryStore()

    for other, message in (
        (
            fitted(vectors[:, :4], labels),
            r"shard 0 .* and shard 1 .* encoder.dim: the first has 8, the second 4",
        ),
        (fitted(vectors, np.arange(180)), "label_kind: the first has 'str', the second 'int'"),
        (fitted(vectors, labels, normalize=True), "normalize: the first has False, the second True"),
        (fitted(vectors, labels, transform="whiten"), "transform.name"),
    ):
        with pytest.raises(FingerprintMismatchError, match=message):
            merge_stores(target, [one, other])
        with pytest.raises(FingerprintMismatchError, match="the target and shard 0"):
            merge_stores(other, [one])
    first, second = (
        RetrievalClassifier(Quarters(scale), MemoryStore()).fit_vectors(np.eye(12), [*"ab" * 6]).store_
        for scale in (1.0, 2.0)
    )
    with pytest.raises(FingerprintMismatchError, match=r"scale: the first has 1.0, the second 2.0"):
        merge_stores(target, [first, second])
    with pytest.raises(
        FingerprintMismatchError, match="the target's metric is 'cosine' and the shards' 'l2'"
    ):
        merge_stores(MemoryStore("cosine"), [one])
    assert target.count() == 0


def test_stores_that_cannot_be_merged_are_refused(clouds, tmp_path):
    """Without a manifest, given twice, cut, or being overwritten; and arguments that are none."""
    vectors, labels, _ = clouds
    one, bare, target = fitted(vectors, labels), MemoryStore(), MemoryStore()
    bare.upsert(["x"], np.ones((1, 8)), ["a"])
    cut = fitted(vectors, labels, transform=Whitening(dim=2))
    stopped = fitted(vectors, labels)
    stopped.write_manifest({**stopped.read_manifest(), "clearing": "x"})
    with FaissStore(tmp_path / "store") as store:
        RetrievalClassifier(store=store).fit(vectors, labels)
    for shards, kind, message in (
        ([], InvalidInputError, "shards is empty"),
        ([one, bare], InvalidInputError, "shard 1 .* 1 vectors and no manifest"),
        ([one, one], InvalidInputError, "shard 1 .* is the same store as shard 0"),
        ([target], InvalidInputError, "no manifest"),
        ([cut], UnsupportedOperationError, "2 of 8 dimensions"),
        ([stopped], StoreLockedError, "being overwritten"),
        (["faiss"], InvalidInputError, "not a vector store"),
    ):
        with pytest.raises(kind, match=message):
            merge_stores(target, shards)
    with pytest.raises(InvalidInputError, match=r"shard 0 .* is the same store as the target"):
        merge_stores(one, [one])
    with pytest.raises(InvalidInputError, match="the target holds 1 vectors and no manifest"):
        merge_stores(bare, [one])
    with (
        FaissStore(tmp_path / "store") as left,
        FaissStore(tmp_path / "store") as right,
        pytest.raises(InvalidInputError, match=r"shard 1 .* is the same store as shard 0"),
    ):
        merge_stores(target, [left, right])
    with pytest.raises(InvalidInputError, match="on_conflict must be one of"):
        merge_stores(target, [one], "newest")
    assert target.count() == 0
    one.scan = lambda: (one.write_manifest({**one.read_manifest(), "x": 1}), [*MemoryStore.scan(one)])[1]
    with pytest.raises(StoreLockedError, match="another process has changed shard 0"):
        merge_stores(MemoryStore(), [one])
    assert os.listdir(tmp_path) == ["store"]
