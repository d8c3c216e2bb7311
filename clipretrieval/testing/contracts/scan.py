"""The conformance suite's tests of scans, for stores that can go through all they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import pytest

from clipretrieval.errors import InvalidInputError
from clipretrieval.stores.base import ScannableStore, VectorStore, label_counter
from clipretrieval.testing.contracts.base import ContractBase, names
from clipretrieval.testing.contracts.threads import MANY
from clipretrieval.types import Label, Listing

__all__ = ["ScanContract", "scanned"]


class Scannable(VectorStore, Protocol):
    """A store that can be scanned."""

    def scan(self, label: Label | None = None) -> Iterator[Listing]: ...


def scanned(listings: Iterator[Listing]) -> list[tuple[str, Label]]:
    """Read a scan to its end and return its records, sorted, having looked at the types of its arrays."""
    found: list[tuple[str, Label]] = []
    for listing in listings:
        assert listing.ids.dtype == object, f"ids must be an array of object (str); found {listing.ids.dtype}"
        assert listing.labels.dtype in (np.int64, object), (
            f"labels must be int64 or object; found {listing.labels.dtype}"
        )
        assert listing.ids.shape == listing.labels.shape == (len(listing),)
        assert len(listing), "a listing must hold a record; where there are no more, the scan ends"
        found += zip(listing.ids.tolist(), listing.labels.tolist(), strict=True)
    ids = [name for name, _ in found]
    assert len(set(ids)) == len(ids), "a scan must list each record once; some came twice"
    return sorted(found)


class ScanContract(ContractBase):
    """A scan lists every record once, with its own label."""

    @pytest.fixture
    def scannable(self, store: VectorStore) -> Scannable:
        """Open an empty store; skip where it has no `scan`."""
        if not isinstance(store, ScannableStore):
            pytest.skip(f"{type(store).__name__} has no scan (ScannableStore)")
        return store

    def test_an_empty_store_lists_nothing(self, scannable: Scannable) -> None:
        """A store without records, new or emptied, yields no listing."""
        assert list(scannable.scan()) == []
        assert list(scannable.scan(1)) == []
        assert list(scannable.scan("1")) == []
        self.put(scannable, ["a"], self.normal(0, 1), [1])
        self.drop(scannable, ["a"])
        assert list(scannable.scan()) == []

    def test_a_scan_lists_10001_records_once(self, scannable: Scannable) -> None:
        """All records of a store larger than any page are listed, each once and with its own label."""
        ids = names(MANY)
        rows = self.normal(1, MANY)
        self.put(scannable, ids, rows, [place % 7 for place in range(MANY)])
        assert scanned(scannable.scan()) == sorted((name, place % 7) for place, name in enumerate(ids)), (
            "a scan must list every record with its own label"
        )
        assert scanned(scannable.scan(3)) == sorted((name, 3) for name in ids[3::7]), (
            "a scan of one label must list every record that has it, and no other"
        )

    @pytest.mark.parametrize(
        ("labels", "others"),
        [
            ([0, 1, -1, 2**63 - 1, -(2**63)], ["0", "1", "", 2]),
            (["1", "", "é", "a'b", "-1"], [1, -1, "e", "É", "a", "None"]),
        ],
        ids=["int", "str"],
    )
    def test_a_scan_takes_a_label(
        self, scannable: Scannable, labels: Sequence[Label], others: Sequence[Label]
    ) -> None:
        """Just the records of the label are listed; 1 is not "1", and an unknown label is that of none."""
        ids = names(3 * len(labels))
        self.put(scannable, ids, self.normal(2, len(ids)), [*labels] * 3)
        for place, label in enumerate(labels):
            expected = sorted((name, label) for name in ids[place :: len(labels)])
            assert scanned(scannable.scan(label)) == expected, f"the records labeled {label!r} were asked for"
        for label in others:
            assert scanned(scannable.scan(label)) == [], f"no record is labeled {label!r}"
        assert scanned(scannable.scan()) == sorted(zip(ids, [*labels] * 3, strict=True))

    @pytest.fixture
    def counted(self, store: VectorStore) -> Callable[[Label], int]:
        """Return what counts the records of a label in the open store; skip where its `count` takes none."""
        counter = label_counter(store)
        if counter is None:
            pytest.skip(f"{type(store).__name__} counts no labels (its count takes none)")
        return counter

    @pytest.mark.parametrize(
        ("labels", "others"),
        [([0, 1, -1, 2**63 - 1], ["0", "", 2]), (["1", "", "é", "a'b"], [1, 0, "e", "É", "a"])],
        ids=["int", "str"],
    )
    def test_a_count_takes_a_label(
        self,
        store: VectorStore,
        counted: Callable[[Label], int],
        labels: Sequence[Label],
        others: Sequence[Label],
    ) -> None:
        """Records are counted under their own labels, through all changes; 1 is not "1"."""
        assert [counted(label) for label in (*labels, *others)] == [0] * (len(labels) + len(others))
        ids = names(3 * len(labels))
        self.put(store, ids, self.normal(2, len(ids)), [*labels] * 3)
        assert [counted(label) for label in labels] == [3] * len(labels)
        assert [counted(label) for label in others] == [0] * len(others), "other labels are of no record"
        assert store.count() == len(ids), "a count without a label is that of all records"
        self.put(store, ids[:1], self.normal(3, 1), [labels[1]])
        assert [counted(label) for label in labels[:2]] == [2, 4], "a record counts under its latest label"
        self.drop(store, ids[:2])
        assert [counted(label) for label in labels] == [2, 2, *[3] * (len(labels) - 2)]
        self.drop(store, ids)
        assert [counted(label) for label in labels] == [0] * len(labels)

    @pytest.mark.parametrize("label", [True, 1.0, b"cat", ["cat"]], ids=repr)
    def test_a_count_refuses_what_is_no_label(self, counted: Callable[[Label], int], label: Any) -> None:
        """What is neither int nor str is refused."""
        with pytest.raises(InvalidInputError):
            counted(label)

    def test_a_scan_follows_writes(self, scannable: Scannable) -> None:
        """What was deleted is listed no more, and what was stored again under its new label only."""
        ids = names(6)
        self.put(scannable, ids, self.normal(3, 6), ["old"] * 6)
        self.drop(scannable, ids[:2])
        self.put(scannable, [ids[2], "more"], self.normal(4, 2), ["new", "old"])
        left = {ids[2]: "new", ids[3]: "old", ids[4]: "old", ids[5]: "old", "more": "old"}
        assert scanned(scannable.scan()) == sorted(left.items())
        assert scanned(scannable.scan("new")) == [(ids[2], "new")]
        assert [name for name, _ in scanned(scannable.scan("old"))] == sorted([*ids[3:], "more"])

    def test_a_scan_lists_unicode_ids(self, scannable: Scannable) -> None:
        """Ids come back letter for letter, however they are written in the backend."""
        if not self.unicode_ids:
            pytest.skip(f"{type(self).__name__}.unicode_ids is False")
        ids = ["é", "e\u0301", "猫/🐈", "a b", " ", "%20", "~x", "'", '"', "x" * 600, "\u0416" * 300]
        self.put(scannable, ids, self.normal(5, len(ids)), list(range(len(ids))))
        assert scanned(scannable.scan()) == sorted(zip(ids, range(len(ids)), strict=True))

    def test_a_scan_is_a_copy(self, scannable: Scannable) -> None:
        """Changing what a scan returned changes nothing in the store."""
        self.put(scannable, ["a", "b"], self.normal(6, 2), [1, 2])
        for listing in scannable.scan():
            listing.ids[:] = "changed"
            listing.labels[:] = 9
        assert scanned(scannable.scan()) == [("a", 1), ("b", 2)]

    @pytest.mark.parametrize("label", [True, 1.0, b"cat", ["cat"]], ids=repr)
    def test_a_scan_refuses_what_is_no_label(self, scannable: Scannable, label: Any) -> None:
        """What is neither int nor str is refused, in an empty store too."""
        with pytest.raises(InvalidInputError):
            list(scannable.scan(label))
        self.put(scannable, ["a"], self.normal(7, 1), [1])
        with pytest.raises(InvalidInputError):
            list(scannable.scan(label))

    def test_the_loop_over_a_scan_may_write(self, scannable: Scannable) -> None:
        """Records may be deleted as they are listed, which is how those of one label are forgotten."""
        ids = names(30)
        self.put(scannable, ids, self.normal(9, 30), ["keep", "drop", "drop"] * 10)
        removed = [scannable.delete(listing.ids.tolist()) for listing in scannable.scan("drop")]
        self.settle(scannable)
        assert sum(removed) == 20
        assert scanned(scannable.scan()) == sorted((name, "keep") for name in ids[::3])

    def test_a_scan_beside_a_writer_lists_what_stays(self, scannable: Scannable) -> None:
        """Whatever comes, goes and changes beside it, a record that stays as it is is listed once."""
        if not self.thread_safe:
            pytest.skip(f"{type(self).__name__}.thread_safe is False")
        stay, come = names(300), [f"come {place}" for place in range(40)]
        self.put(scannable, stay, self.normal(10, 300), [1] * 300)

        def write() -> None:
            for round_ in range(8):
                scannable.upsert(come, self.normal(round_, 40), [2 + round_ % 2] * 40)
                scannable.delete(come[: 20 + round_])

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            last = False
            while not last:
                last = writing.done()  # one more scan after the last write
                for label in (None, 1):
                    found = dict(scanned(scannable.scan(label)))
                    missed = sorted(set(stay) - set(found))
                    assert not missed, f"a scan beside a writer missed {missed[:3]}"
                    assert {found.pop(name) for name in stay} == {1}
                    assert set(found) <= set(come)
                    assert set(found.values()) <= ({2, 3} if label is None else set())
            writing.result()
