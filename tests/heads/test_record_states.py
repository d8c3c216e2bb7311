"""What the manifest says of the records' state, and who learns by it that others have changed them."""

from __future__ import annotations

import inspect

import pytest
from statistics_parts import Failing, assert_as_fresh, clouds, gathers
from warm_process import run_warm

from clipretrieval import ClipRetrievalWarning, RetrievalClassifier, StoreUnavailableError
from clipretrieval.stores import ChromaStore, FaissStore, MemoryStore

RELABEL = """
import sys
from clipretrieval import RetrievalClassifier
from clipretrieval.stores import FaissStore
with FaissStore(sys.argv[1]) as store:
    exchange(RetrievalClassifier.from_store(store))
"""


def many():
    """More records than anybody lists at each question: a hundred of two classes, the others of a third."""
    rows, _ = clouds(n=10_100, classes=1)
    rows[:50] += [0, 4, 0, 0, 0]
    rows[50:100] += [0, 0, 4, 0, 0]
    return rows, ["class 0"] * 50 + ["class 1"] * 50 + ["class 2"] * 10_000


def exchange(votes):
    """Give the images of two classes each other's label, so that all counts are what they were."""
    ids = {label: [] for label in ("class 0", "class 1")}
    for label, found in ids.items():
        for listing in votes.store_.scan(label):
            found.extend(listing.ids.tolist())
    assert len(ids["class 0"]) == len(ids["class 1"])
    others = ["class 1"] * len(ids["class 0"]) + ["class 0"] * len(ids["class 1"])
    votes.relabel(ids["class 0"] + ids["class 1"], others)


def assert_exchanged(before, after):
    """Compare what was answered before and after `exchange`."""
    names = {"class 0": "class 1", "class 1": "class 0"}
    assert set(before) == {"class 0", "class 1", "class 2"}
    assert after.tolist() == [names.get(label, label) for label in before.tolist()]


@pytest.mark.parametrize("kind", [FaissStore, ChromaStore])
def test_exchanged_labels_are_noticed_in_a_large_folder(kind, tmp_path):
    """By one who votes, follows no statistics, and leaves all counts as they were; and again, back."""
    rows, labels = many()
    with kind(tmp_path / "store") as store:
        votes = RetrievalClassifier(store=store).fit(rows, labels)
        asked = RetrievalClassifier.from_store(store, head="discriminant")
        for _ in range(2):
            before = asked.predict(rows[:300])
            exchange(votes)
            assert_exchanged(before, asked.predict(rows[:300]))
        exchange(asked)
        assert not gathers(RetrievalClassifier.from_store(store, head="discriminant"), rows[:300])


def test_labels_that_another_process_exchanges_are_noticed_in_a_large_folder(tmp_path):
    """It votes; who has the folder open answers by what it has flushed."""
    rows, labels = many()
    with FaissStore(tmp_path / "store") as store:
        RetrievalClassifier(store=store, head="discriminant").fit(rows, labels)
    with FaissStore(tmp_path / "store") as store:
        asked = [RetrievalClassifier.from_store(store, head="discriminant") for _ in range(2)]
        before = [each.predict(rows[:300]) for each in asked]
        run_warm(["-c", inspect.getsource(exchange) + RELABEL, tmp_path / "store"], check=True)
        for each, answers in zip(asked, before, strict=True):  # the second one finds the store refreshed
            assert_exchanged(answers, each.predict(rows[:300]))


@pytest.mark.parametrize("changer", ["votes", "discriminant"])
def test_after_a_change_that_was_cut_short_nothing_is_trusted_until_the_next(changer):
    """Whoever asks gathers at every question, and is told what ends that."""
    rows, labels = clouds()
    store = Failing()
    RetrievalClassifier(store=store, head="discriminant").fit(rows, labels)
    other = RetrievalClassifier.from_store(store, head=changer)
    asked = RetrievalClassifier.from_store(store, head="discriminant")
    ids = asked.kneighbors(rows[:3], 1).ids[:, 0].tolist()
    store.fail = "half"
    with pytest.raises(StoreUnavailableError):
        other.relabel(ids, ["class 1", "class 2", "class 0"])
    store.fail = ""
    assert store.read_manifest()["statistics"] == {"changing": True}
    assert_as_fresh(asked, rows)
    held = store.get(ids)
    for label in ("class 0", "class 2"):  # a writer that is still at it
        store.upsert(ids, held.vectors, [label] * 3, held.metadata)
        with pytest.warns(ClipRetrievalWarning, match="a change of the 60 records was cut short, or is"):
            assert asked.class_statistics().counts.sum() == 60
        with pytest.warns(ClipRetrievalWarning, match="the next fit, forget or relabel ends that"):
            assert_as_fresh(asked, rows)
    other.fit(rows, labels, resume=True)
    assert_as_fresh(asked, rows)
    assert not gathers(asked, rows)
    assert_as_fresh(asked, rows)


class Unreadable(MemoryStore):
    """A store that cannot be read any more once it holds more than a thousand records."""

    broken = True

    def get(self, ids):
        """Fail, or not."""
        if self.broken and self.count() > 1000:
            raise StoreUnavailableError("the disk is gone")
        return super().get(ids)


def test_a_fit_that_fails_between_two_writes_leaves_a_state_that_can_be_told():
    """What came before is there, and who asks learns of that once."""
    rows, labels = clouds(n=5000)
    store = Unreadable()
    votes = RetrievalClassifier(store=store).fit(rows[:300], labels[:300])
    before = store.read_manifest()["statistics"]
    asked = RetrievalClassifier.from_store(store, head="discriminant")
    assert_as_fresh(asked, rows[:300])
    with pytest.raises(StoreUnavailableError, match="the disk is gone"):
        votes.partial_fit(rows, labels)
    store.broken = False
    assert 1000 < store.count() < 5000
    assert store.read_manifest()["statistics"].keys() == before.keys() == {"token"}
    assert store.read_manifest()["statistics"] != before
    assert_as_fresh(asked, rows[:300])
    assert_as_fresh(asked, rows[:300])


def test_every_state_of_a_folder_can_be_told(tmp_path):
    """What is flushed amid a fit, and would be there after a kill, is no change that was cut short."""
    rows, labels = clouds(n=20_000)
    found = []

    def look(done, total):
        with FaissStore(tmp_path / "store", read_only=True) as seen:
            found.append(seen.read_manifest().get("statistics"))

    with FaissStore(tmp_path / "store") as store:
        votes = RetrievalClassifier(store=store).fit(rows[:100], labels[:100])
        look(0, 0)
        votes.partial_fit(rows, labels, flush_every=5000, progress=look)
    look(0, 0)
    assert {tuple(state) for state in found} == {("token",)}
    assert len({state["token"] for state in found}) > 2


class Counting(Failing):
    """Counts what is asked of the manifest, and notes what it says of the records' state."""

    reads, written = 0, ()

    def read_manifest(self):
        self.reads += 1
        return super().read_manifest()

    def write_manifest(self, manifest):
        self.written += (next(iter(manifest["statistics"])),)
        super().write_manifest(manifest)


@pytest.mark.parametrize(("head", "most"), [("votes", 4), ("discriminant", 5)])
def test_a_call_writes_the_manifest_twice_and_reads_it_a_few_times(head, most):
    """Before its first change and after its last; not at all where nothing changes."""
    rows, labels = clouds()
    store = Counting()
    classifier = RetrievalClassifier(store=store, head=head, transform=None)
    classifier.fit(rows[:40], labels[:40])
    classifier.predict(rows)
    store.reads = 0
    classifier.predict(rows)
    assert store.reads <= most
    assert classifier.predict_proba(rows).shape == (60, 3)
    assert store.reads <= 2 * most
    ids = classifier.kneighbors(rows[:9], 1).ids[:, 0].tolist()
    naming = ("changing",) if head == "discriminant" else ()  # the blobs that there will be, once
    assert store.written == ("changing", *naming, "token")
    for change in (
        lambda: classifier.partial_fit(rows[40:50], labels[40:50]),
        lambda: classifier.partial_fit(rows[50:52], ["new", "new"]),
        lambda: classifier.relabel(ids[:4], ["class 2", "newer", "class 0", "class 1"]),
        lambda: classifier.forget(ids[4:]),
        lambda: classifier.forget(label="new"),
    ):
        store.written = ()
        change()
        assert store.written == ("changing", "token")
    store.written = ()
    classifier.partial_fit(rows[40:50], labels[40:50])
    classifier.relabel(ids[1:2], "newer")
    assert store.written == ()


@pytest.mark.parametrize("head", ["votes", "discriminant"])
def test_a_store_whose_manifest_says_nothing_gets_a_token_by_the_next_call(head):
    """One that an earlier version has filled, or the user; until then, its count tells what it can."""
    rows, labels = clouds()
    source, store = MemoryStore(), MemoryStore()
    RetrievalClassifier(store=source).fit(rows[:50], labels[:50])
    store.upsert([f"{n}" for n in range(50)], rows[:50], labels[:50])
    manifest = source.read_manifest()
    del manifest["statistics"]
    store.write_manifest(manifest)
    asked = RetrievalClassifier.from_store(store, head="discriminant")
    assert_as_fresh(asked, rows)
    store.upsert(["50"], rows[50:51], labels[50:51])
    assert_as_fresh(asked, rows)
    assert "statistics" not in store.read_manifest()
    RetrievalClassifier.from_store(store, head=head).relabel(["50"], labels[50])  # as it is
    assert len(store.read_manifest()["statistics"]["token"]) == 32
    RetrievalClassifier.from_store(store, head=head).relabel(["50"], "class 0")
    assert_as_fresh(asked, rows)
