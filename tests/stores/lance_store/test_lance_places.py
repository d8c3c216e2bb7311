"""LanceStore in folders and object storage: what is there, who else writes, what is kept secret, kills."""

from __future__ import annotations

import copy
import json
import os
import pickle
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from database_writers import check_two_writers
from filelock import FileLock

from clipretrieval import RetrievalClassifier
from clipretrieval.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.stores import LanceStore, create_store

lancedb = pytest.importorskip("lancedb")
ROWS = np.eye(3, 4, dtype=np.float32)
SECRET = "aws-SECRET-0123"  # noqa: S105  nobody's


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "needs a path"),
        ({"path": "a", "uri": "s3://b"}, "not both"),
        ({"path": "s3://bucket/a"}, "as uri="),
        ({"uri": "folder"}, "s3://bucket/animals"),
        ({"path": "a", "table": "../b"}, "table must be"),
        ({"path": "a", "table": "b-about"}, "'-about'"),
        ({"uri": f"az://box/a?sig={SECRET}"}, "in the environment"),
        ({"path": "a", "metric": "l1"}, "metric"),
        ({"path": "a", "storage_options": "x"}, "mapping"),
        ({"path": "a", "timeout": 0}, "timeout"),
    ],
)
def test_malformed_options_are_refused(
    options: dict[str, Any], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is made."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInputError, match=expected) as caught:
        create_store("lance", **options)
    assert SECRET not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_another_table_is_refused(tmp_path: Path) -> None:
    """Of another metric, of something else, or none where none may be made; two of a folder are apart."""
    LanceStore(tmp_path, metric="cosine").upsert(["a"], ROWS[:1], [1])
    with pytest.raises(FingerprintMismatchError, match="'cosine'"):
        LanceStore(tmp_path)
    lancedb.connect(str(tmp_path)).create_table("theirs", data=[{"a": 1}])
    with pytest.raises(InvalidInputError, match="not made by LanceStore"):
        LanceStore(tmp_path, table="theirs")
    with LanceStore(tmp_path, table="second") as second:
        assert second.count() == 0
    for place, table in ((tmp_path, "none"), (tmp_path / "none", "clipretrieval")):
        with pytest.raises(StoreUnavailableError, match="check the path"):
            LanceStore(place, table=table, create=False)
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailableError, match="cannot be made"):
        LanceStore(tmp_path / "file")


def test_a_folder_that_goes_is_unavailable(tmp_path: Path) -> None:
    """The error names it; what is damaged is no crash."""
    store = LanceStore(tmp_path / "a")
    store.upsert(["a"], ROWS[:1], [1])
    (file,) = (tmp_path / "a" / "clipretrieval.lance" / "data").glob("*.lance")
    file.write_bytes(b"no data")
    with pytest.raises(StoreError, match=r"tmp|pytest"):
        store.get(["a"])
    (tmp_path / "a").rename(tmp_path / "b")
    for call in (store.count, lambda: store.write_manifest({})):
        with pytest.raises(StoreError, match=r"'clipretrieval' in"):
            call()
    assert not (tmp_path / "a").exists()


def test_nobody_waits_for_ever_for_another_writer(tmp_path: Path) -> None:
    """A writer that holds the folder keeps others out, who are told after their time; readers go on."""
    store = LanceStore(tmp_path, timeout=0.05)
    store.upsert(["a"], ROWS[:1], [1])
    with FileLock(tmp_path / ".clipretrieval.lock") as lock:
        with pytest.raises(StoreLockedError, match="another writer"):
            store.upsert(["b"], ROWS[:1], [1])
        assert store.search(ROWS[:1], 2).ids.tolist() == [["a", ""]]
        with LanceStore(tmp_path, timeout=60) as patient, ThreadPoolExecutor(2) as pool:
            waiting = pool.submit(patient.upsert, ["b"], ROWS[1:2], [1])
            assert pool.submit(patient.search, ROWS[:1], 2).result(30).ids.tolist() == [["a", ""]]
            lock.release()
            waiting.result(30)
    assert store.delete(["a", "b"]) == 2


def test_two_writers_lose_and_double_nothing(tmp_path: Path) -> None:
    """Two processes write other and the same ids into one new folder."""
    check_two_writers("lance", {"path": str(tmp_path)}, rounds=3)


def test_without_a_lock_nothing_is_doubled(tmp_path: Path) -> None:
    """As in object storage, where nobody can lock: Lance sees that two insert the same ids."""
    ready = threading.Barrier(2)
    with LanceStore(uri=f"file-object-store://{tmp_path}") as first:
        first.upsert(["first"], np.zeros((1, 4)), [0])

    def fill(number: int) -> None:
        store = LanceStore(uri=f"file-object-store://{tmp_path}")
        for each in range(4):
            names = [f"{each}-{row}" for row in range(20)][:: 1 - 2 * number]
            ready.wait(60)
            store.upsert(names, np.full((20, 4), number), [number] * 20)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fill, range(2)))
    with LanceStore(uri=f"file-object-store://{tmp_path}") as store:
        names = [f"{each}-{row}" for each in range(4) for row in range(20)]
        found = store.get(names)
        assert (store.count(), found.ids.tolist()) == (81, names)
        assert found.vectors[:, 0].tolist() == found.labels.tolist()


def test_labels_are_of_the_type_that_the_table_was_made_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another makes it meanwhile too; an emptied one takes the other type, which all see."""
    store, other = (LanceStore(uri=f"file-object-store://{tmp_path}") for _ in range(2))

    def made_meanwhile() -> None:
        monkeypatch.undo()
        other.upsert(["a"], ROWS[:1], ["text"])

    monkeypatch.setattr(store._tables, "records", made_meanwhile)
    with pytest.raises(InvalidInputError, match="holds str labels"):
        store.upsert(["b"], ROWS[:1], [5])
    assert store.count() == store.count(label="text") == 1
    assert store.count(label=5) == 0
    store.delete(["a"])
    store.upsert(["b"], ROWS[:1], [5])
    assert other.search(ROWS[:1], 1).labels.tolist() == [[5]]
    assert other.count(label=5) == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_who_may_write_the_folder_may_lock_it(tmp_path: Path) -> None:
    """A folder that a group shares is written by all of it."""
    tmp_path.chmod(0o770)
    LanceStore(tmp_path).upsert(["a"], ROWS[:1], [1])
    assert (tmp_path / ".clipretrieval.lock").stat().st_mode & 0o777 == 0o660


def test_who_reads_syncs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor waits for a device, nor needs files that may be written."""
    LanceStore(tmp_path).upsert(["a"], ROWS[:1], [1])
    synced: list[str] = []
    monkeypatch.setattr("clipretrieval.stores.lance.tables._sync", synced.append)
    with LanceStore(tmp_path) as reader:
        assert reader.count() == 1
        reader.flush()
    assert not synced
    with LanceStore(tmp_path) as writer:
        writer.write_manifest({"a": 1})
    assert synced


def test_object_storage_is_told_without_its_keys(tmp_path: Path) -> None:
    """A region stays in what is saved; keys are in no representation, error or file."""
    options = {"region": "eu-central-1", "aws_secret_access_key": SECRET}
    uri = f"file-object-store://{tmp_path}"
    store = LanceStore(uri=uri, storage_options=options)
    store.upsert(["a"], ROWS[:1], [1])
    assert store.location() == {
        "uri": uri,
        "storage_options": {"region": "eu-central-1"},
        "table": "clipretrieval",
        "metric": "l2",
        "exact_up_to": 1 << 27,
    }
    texts = [repr(store), repr(vars(store))]
    for wrong in ({"metric": "cosine"}, {"table": "a b"}, {"exact_up_to": -1}):
        with pytest.raises((FingerprintMismatchError, InvalidInputError)) as caught:
            LanceStore(uri=uri, storage_options=options, **wrong)
        shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        shown.stack[:] = [frame for frame in shown.stack if "/clipretrieval/" in frame.filename]
        texts += shown.format()
    assert SECRET not in "".join(texts)
    assert LanceStore.exists_locally(store.location()) is False
    assert LanceStore(**store.location()).get(["a"]).labels.tolist() == [1]


def test_a_classifier_is_saved_with_its_place(tmp_path: Path) -> None:
    """It opens again by itself, as its store is there in local files."""
    options = {"path": tmp_path / "store"}
    classifier = RetrievalClassifier(store="lance", store_options=options).fit(ROWS, ["a", "b", "c"])
    classifier.save(tmp_path / "saved")
    again = RetrievalClassifier.load(tmp_path / "saved")
    assert again.predict(ROWS).tolist() == ["a", "b", "c"]
    assert again.partial_fit(2 * ROWS[:1], ["d"]).predict(2 * ROWS[:1]).tolist() == ["d"]
    assert classifier.predict(2 * ROWS[:1]).tolist() == ["d"], "what others write is seen"
    kept = json.loads((tmp_path / "saved" / "classifier.json").read_text())["store"]
    assert kept["name"] == "lance"


def test_a_closed_store_refuses_everything(tmp_path: Path) -> None:
    """After `close` every method but `close` raises; it cannot be copied before either."""
    store = LanceStore(tmp_path)
    store.upsert(["a"], ROWS[:1], [1])
    for attempt in (pickle.dumps, copy.copy):
        with pytest.raises(UnsupportedOperationError, match="location"):
            attempt(store)
    store.close()
    store.close()
    for call in (
        store.count,
        store.flush,
        store.compact,
        store.build_index,
        store.read_manifest,
        lambda: store.write_manifest({}),
        lambda: store.search(ROWS[:1], 1),
        lambda: store.get(["a"]),
        lambda: store.delete(["a"]),
        store.scan,
    ):
        with pytest.raises(StoreError, match="closed"):
            call()
    assert store.dim == 4
    assert "closed" in repr(store)
