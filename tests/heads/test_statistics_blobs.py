"""Class statistics as blobs in a store: damaged ones are gathered anew, those of other heads are removed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from pinecone import Pinecone

from clipretrieval import ClipRetrievalWarning, RetrievalClassifier, StoreCorruptedError
from clipretrieval.errors import StoreUnavailableError
from clipretrieval.heads.quadratic import Quadratic
from clipretrieval.heads.ridge import Ridge
from clipretrieval.heads.statistics import Moments
from clipretrieval.stores import ChromaStore, FaissStore, MemoryStore, PineconeStore
from clipretrieval.testing import PineconeEmulator

VECTORS, PER_CLASS, FEATURES = (
    Moments().name,
    Quadratic().moments[0].name,
    Ridge().moments[0].name,
)
MINE = "moments-of-mine"
RNG = np.random.default_rng(0)
LABELS = (np.arange(60) % 3).tolist()
ROWS = (np.eye(3, 5)[LABELS] * 2 + RNG.standard_normal((60, 5))).astype(np.float32)
ASKED = RNG.standard_normal((20, 5)).astype(np.float32)
RIGHT = RetrievalClassifier(store="memory", head="discriminant").fit(ROWS, LABELS).predict_proba(ASKED)


def blobs(store: Any) -> list[str]:
    """Return the names of the blobs that a store holds, of those that there may be."""
    return [name for name in (VECTORS, PER_CLASS, FEATURES, MINE) if store.read_blob(name) is not None]


def assert_gathered_anew(opened: Callable[[], Any], why: str) -> None:
    """Ask and change a store whose blob is damaged; the change mends it."""
    with opened() as store:
        reader = RetrievalClassifier.from_store(store, head="discriminant")
        with pytest.warns(ClipRetrievalWarning, match=rf"{why}.*gathered anew by reading all 60 vectors"):
            found = reader.predict_proba(ASKED)
        np.testing.assert_allclose(found, RIGHT, atol=1e-9)
    with opened() as store:
        writer = RetrievalClassifier.from_store(store, head="discriminant")
        with pytest.warns(ClipRetrievalWarning, match=rf"{why}.*gathered anew by reading all 61 vectors"):
            writer.partial_fit(ASKED[:1], [0])
        writer.forget(label=2)
        writer.partial_fit(ROWS[2::3], LABELS[2::3])
    with opened() as store:
        found = RetrievalClassifier.from_store(store, head="discriminant").predict_proba(ASKED)
        labels = [*LABELS, 0]
        fresh = RetrievalClassifier(store="memory", head="discriminant")
        right = fresh.fit(np.concatenate([ROWS, ASKED[:1]]), labels).predict_proba(ASKED)
        np.testing.assert_allclose(found, right, atol=1e-9)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_keeps_nobody_from_a_folder(tmp_path: Path, damage: str) -> None:
    """The folder opens, its statistics are gathered anew with a warning, and the next change keeps them."""
    with FaissStore(tmp_path / "s") as store:
        RetrievalClassifier(store=store, head="discriminant").fit(ROWS, LABELS)
    DAMAGES[damage](tmp_path / "s" / f"blob-{VECTORS}-1.bin")
    assert_gathered_anew(lambda: FaissStore(tmp_path / "s"), rf"blob-{VECTORS}-1.bin is damaged: ")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_keeps_nobody_from_a_saved_classifier(tmp_path: Path, damage: str) -> None:
    """One that was saved with a store in memory loads, and answers as before."""
    RetrievalClassifier(store="memory", head="discriminant").fit(ROWS, LABELS).save(tmp_path / "saved")
    (path,) = (tmp_path / "saved").rglob(f"blob-{VECTORS}-*.bin")
    DAMAGES[damage](path)
    loaded = RetrievalClassifier.load(tmp_path / "saved")
    with pytest.warns(ClipRetrievalWarning, match=r"is damaged: .*gathered anew by reading all 60 vectors"):
        found = loaded.predict_proba(ASKED)
    np.testing.assert_allclose(found, RIGHT, atol=1e-9)


@pytest.mark.parametrize("damage", ["changed part", "changed head", "missing part", "missing head"])
def test_a_damaged_blob_in_chroma_is_gathered_anew(tmp_path: Path, damage: str) -> None:
    """Whichever collection of the blob's is not as it was."""
    with ChromaStore(tmp_path / "s", collection="animals") as store:
        RetrievalClassifier(store=store, head="discriminant").fit(ROWS, LABELS)
    client = chromadb.PersistentClient(str(tmp_path / "s"))
    what, part = damage.split()
    names = [
        each.name for each in client.list_collections() if each.name.startswith(f"animals.blob-{VECTORS}.")
    ]
    (name,) = (each for each in names if each.endswith(".head") == (part == "head"))
    if what == "missing":
        client.delete_collection(name)
    else:
        found = client.get_collection(name)
        found.modify(metadata=dict.fromkeys(found.metadata, "AAAA"))
    client.close()
    why = (
        f"the blob '{VECTORS}' is missing"
        if damage == "missing head"
        else f"the blob '{VECTORS}' of .* damaged"
    )
    assert_gathered_anew(lambda: ChromaStore(tmp_path / "s", collection="animals"), why)


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_blob_at_pinecone_is_gathered_anew(damage: str) -> None:
    """One whose record was changed, or deleted."""
    with PineconeEmulator("key", address="127.0.3.1") as emulator:

        def opened() -> PineconeStore:
            return PineconeStore(index="damaged", api_key="key", host=emulator.host)

        with opened() as store:
            RetrievalClassifier(store=store, head="discriminant").fit(ROWS, LABELS)
        space = "__clipretrieval_blobs__"
        with Pinecone(api_key="key", host=emulator.host) as client, client.index(name="damaged") as index:
            if damage == "missing":
                index.delete(ids=[VECTORS], namespace=space)
            else:
                fields = {**emulator.contents("damaged", space)[VECTORS][1], "text": "AAAA"}
                index.upsert(vectors=[(VECTORS, [1.0, *[0.0] * 4], fields)], namespace=space)
        assert_gathered_anew(opened, f"the blob '{VECTORS}' (is missing|in the Pinecone index is incomplete)")


def test_an_overwriting_fit_does_not_miss_what_was_damaged(tmp_path: Path) -> None:
    """What goes need not be gathered, nor is there a warning."""
    with FaissStore(tmp_path / "s") as store:
        RetrievalClassifier(store=store, head="discriminant").fit(ROWS, LABELS)
    flip(tmp_path / "s" / f"blob-{VECTORS}-1.bin")
    with FaissStore(tmp_path / "s") as store:
        made = RetrievalClassifier(store=store, head="discriminant").fit(ROWS, LABELS, overwrite=True)
        np.testing.assert_allclose(made.predict_proba(ASKED), RIGHT, atol=1e-9)


def test_a_damaged_transform_is_refused(tmp_path: Path) -> None:
    """It cannot be computed from the vectors: the store opens, no classifier does, and a new fit mends it."""
    with FaissStore(tmp_path / "s") as store:
        RetrievalClassifier(store=store, transform="whiten").fit(ROWS, LABELS)
    (path,) = (tmp_path / "s").glob("blob-transform-*.bin")
    flip(path)
    with FaissStore(tmp_path / "s") as store:
        assert store.count() == 60
        with pytest.raises(
            StoreCorruptedError, match=r"transform .*cannot be read .*fit again with overwrite"
        ):
            RetrievalClassifier.from_store(store)
        with pytest.raises(StoreCorruptedError, match="cannot be read"):
            RetrievalClassifier(store=store, transform="whiten").partial_fit(ROWS, LABELS)
        RetrievalClassifier(store=store, transform="whiten").fit(ROWS, LABELS, overwrite=True)
    with FaissStore(tmp_path / "s") as store:
        assert RetrievalClassifier.from_store(store).predict(ROWS).tolist() == LABELS


@pytest.mark.parametrize("kind", ["memory", "faiss", "chroma"])
def test_statistics_of_other_heads_go_when_they_are_out_of_date(tmp_path: Path, kind: str) -> None:
    """They stay while they describe the records, and a blob of somebody else's stays for good."""
    makers: dict[str, Callable[[], Any]] = {
        "memory": MemoryStore,
        "faiss": lambda: FaissStore(tmp_path / "s"),
        "chroma": lambda: ChromaStore(tmp_path / "s"),
    }
    with makers[kind]() as store:
        store.write_blob(MINE, b"mine")
        made = RetrievalClassifier(store=store, head="discriminant").fit(ROWS[:50], LABELS[:50])
        first = made.predict_proba(ROWS[:50])
        assert blobs(store) == [VECTORS, MINE]
        ridge = RetrievalClassifier.from_store(store, head="ridge")
        ridge.partial_fit(ROWS[:50], LABELS[:50])  # all of them are there: nothing changes
        assert blobs(store) == [VECTORS, FEATURES, MINE]
        again = RetrievalClassifier.from_store(store, head="discriminant")
        np.testing.assert_allclose(again.predict_proba(ROWS[:50]), first, atol=1e-9)
        ridge.partial_fit(ROWS[50:], LABELS[50:])
        assert blobs(store) == [FEATURES, MINE]
        both = RetrievalClassifier.from_store(store, head="fused")
        both.relabel(store.get(next(store.scan()).ids.tolist()).ids.tolist()[:1], [0])
        assert blobs(store) == [VECTORS, FEATURES, MINE]
        quadratic = RetrievalClassifier.from_store(store, head="quadratic")
        quadratic.forget(label=2)
        assert blobs(store) == [PER_CLASS, MINE]
        made = RetrievalClassifier(store=store, head="discriminant").fit(ROWS, LABELS, overwrite=True)
        assert blobs(store) == [VECTORS, MINE]
        np.testing.assert_allclose(made.predict_proba(ASKED), RIGHT, atol=1e-9)
        assert store.read_manifest()["statistics_blobs"] == [VECTORS]
        for label in (0, 1, 2):
            made.forget(label=label)
        RetrievalClassifier(store=store, head="ridge").fit(ROWS, LABELS)
        assert blobs(store) == [FEATURES, MINE]
        assert store.read_blob(MINE) == b"mine"


def test_a_manifest_that_names_other_blobs_removes_none() -> None:
    """Only what is named as statistics are goes, whatever the manifest says."""
    store = MemoryStore()
    made = RetrievalClassifier(store=store, head="discriminant").fit(ROWS[:50], LABELS[:50])
    store.write_blob("statistics", b"mine")
    named = ["statistics", "moments-", 5, None, VECTORS, "../moments-x", "moments-X"]
    store.write_manifest({**store.read_manifest(), "statistics_blobs": named})
    made.partial_fit(ROWS[50:], LABELS[50:])
    assert store.read_blob("statistics") == b"mine"
    for step, wrong in enumerate([5, "moments-vectors", {}, None]):
        store.write_manifest({**store.read_manifest(), "statistics_blobs": wrong})
        made.partial_fit(ROWS + 1 + step, LABELS)
        assert store.read_manifest()["statistics_blobs"] == [VECTORS]


class Keeping(MemoryStore):
    """A store that cannot remove blobs for a while."""

    keeps = False

    def write_blob(self, name: str, content: bytes | None) -> None:
        if self.keeps and content is None:
            raise StoreUnavailableError("the network is gone")
        super().write_blob(name, content)


def test_what_could_not_be_removed_goes_next_time() -> None:
    """It costs no image, and is not forgotten."""
    store = Keeping()
    RetrievalClassifier(store=store, head="discriminant").fit(ROWS[:50], LABELS[:50])
    store.keeps = True
    ridge = RetrievalClassifier.from_store(store, head="ridge").partial_fit(ROWS[50:59], LABELS[50:59])
    assert (store.count(), blobs(store)) == (59, [VECTORS, FEATURES])
    store.keeps = False
    ridge.partial_fit(ROWS[59:], LABELS[59:])
    assert blobs(store) == [FEATURES]
