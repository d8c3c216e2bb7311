"""The conformance suite's tests of blobs, for stores that keep bytes beside their records."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from clipretrieval.errors import InvalidInputError, StoreError
from clipretrieval.stores.base import BlobStore, DetachableStore, PortableStore, ScannableStore, VectorStore
from clipretrieval.testing.contracts.base import ContractBase, Stores, contents

__all__ = ["BlobContract"]

LARGE = 1_000_000
ALL_BYTES = bytes(range(256))
LONGEST = "a" + "-9" * 31 + "z"
"""The longest name that a blob may have."""
BAD_NAMES = ["", "A", "é", "9", "-a", "a_b", "a.b", "a/b", "../a", "a\n", LONGEST + "z", b"a", 1, None]
BAD_CONTENTS = ["text", bytearray(b"x"), memoryview(b"x"), [1], 5]


class Keeping(VectorStore, Protocol):
    """A store that keeps blobs."""

    def read_blob(self, name: str) -> bytes | None: ...

    def write_blob(self, name: str, content: bytes | None) -> None: ...


def large(seed: int) -> bytes:
    """Return a megabyte that does not compress."""
    return np.random.default_rng(seed).bytes(LARGE)


class BlobContract(ContractBase):
    """A few blobs of bytes are kept beside the records."""

    @pytest.fixture
    def keeping(self, store: VectorStore) -> Keeping:
        """Open an empty store; skip where it keeps no blobs."""
        return self.require_blobs(store)

    def require_blobs(self, store: VectorStore) -> Keeping:
        """Return the store; skip where it keeps no blobs."""
        if not isinstance(store, BlobStore):
            pytest.skip(f"{type(store).__name__} keeps no blobs (BlobStore)")
        return store

    def test_a_new_store_has_no_blobs(self, keeping: Keeping) -> None:
        """What was never written is None, and can be removed all the same."""
        assert keeping.read_blob("statistics") is None
        keeping.write_blob("statistics", None)
        assert keeping.read_blob("statistics") is None

    def test_blobs_are_kept_byte_for_byte(self, keeping: Keeping) -> None:
        """Bytes of any value and number come back at once, and after a flush; none are not nothing."""
        kept = {"a": ALL_BYTES, "empty": b"", "large": large(0), LONGEST: b"\n\x00\r\n" * 3}
        for name, content in kept.items():
            keeping.write_blob(name, content)
            assert keeping.read_blob(name) == content, "a blob that was written must be read at once"
        self.settle(keeping)
        for name, content in kept.items():
            found = keeping.read_blob(name)
            assert type(found) is bytes
            assert found == content, f"the blob {name!r} must come back byte for byte"

    def test_a_blob_is_replaced_whole(self, keeping: Keeping) -> None:
        """What was written last is what is read, whichever is the longer."""
        for content in (large(1), b"short", b"", large(2), large(2), ALL_BYTES):
            keeping.write_blob("a", content)
            assert keeping.read_blob("a") == content, "a blob must be replaced, with nothing left of the old"
        self.settle(keeping)
        assert keeping.read_blob("a") == ALL_BYTES

    def test_blobs_have_names(self, keeping: Keeping) -> None:
        """Blobs whose names begin alike are different ones, and go one by one."""
        names = ["a", "a-", "a-1", "a-1-1", "aa", LONGEST, LONGEST[:-1]]
        for name in names:
            keeping.write_blob(name, name.encode())
        for place, name in enumerate(names):
            keeping.write_blob(name, None)
            left = {each: keeping.read_blob(each) for each in names}
            gone = dict.fromkeys(names[: place + 1])
            assert left == {**{each: each.encode() for each in names}, **gone}, (
                "None must remove one blob, and no other"
            )

    def test_a_blob_is_no_record(self, keeping: Keeping) -> None:
        """Blobs are neither counted nor found nor listed, and stay when all records and the manifest go."""
        keeping.write_blob("a", ALL_BYTES)
        self.settle(keeping)
        assert (keeping.count(), keeping.read_manifest()) == (0, {})
        self.put(keeping, ["a", "b"], self.normal(0, 2), [1, 2])
        keeping.write_blob("b", b"x")
        keeping.write_manifest({"kept": 1})
        self.settle(keeping)
        before = contents(keeping, ["a", "b"])
        assert before["count"] == 2
        assert before["manifest"] == {"kept": 1}
        near = keeping.search(self.normal(1, 3), 4)
        assert near.valid.sum(axis=1).tolist() == [2, 2, 2]
        if isinstance(keeping, ScannableStore):
            assert sum(len(listing) for listing in keeping.scan()) == 2
        keeping.write_blob("b", None)
        self.settle(keeping)
        assert contents(keeping, ["a", "b"]) == before, "a blob that goes must leave the records alone"
        self.drop(keeping, ["a", "b"])
        keeping.write_manifest({})
        self.settle(keeping)
        assert keeping.read_blob("a") == ALL_BYTES, "blobs must not go with the records"

    @pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
    def test_what_is_no_name_is_refused(self, keeping: Keeping, name: Any) -> None:
        """A name that no blob can have is refused by reads and writes."""
        with pytest.raises(InvalidInputError):
            keeping.read_blob(name)
        for content in (b"x", None):
            with pytest.raises(InvalidInputError):
                keeping.write_blob(name, content)

    @pytest.mark.parametrize("content", BAD_CONTENTS, ids=lambda content: type(content).__name__)
    def test_what_is_no_bytes_is_refused(self, keeping: Keeping, content: Any) -> None:
        """A blob is bytes; anything else is refused, and the old blob stays."""
        keeping.write_blob("a", b"kept")
        with pytest.raises(InvalidInputError):
            keeping.write_blob("a", content)
        assert keeping.read_blob("a") == b"kept"

    def test_a_closed_store_keeps_no_blob(self, keeping: Keeping) -> None:
        """After close, blobs are neither read nor written."""
        keeping.write_blob("a", b"x")
        keeping.close()
        with pytest.raises(StoreError):
            keeping.read_blob("a")
        with pytest.raises(StoreError):
            keeping.write_blob("a", b"y")

    def test_reopened_stores_have_their_blobs(self, stores: Stores, metric: str) -> None:
        """Blobs are the same after closing and opening, with records and without, and can be replaced."""
        if not self.persistent:
            pytest.skip(f"{type(self).__name__}.persistent is False")
        store = self.require_blobs(stores.new(metric))
        kept = {"a": large(3), "empty": b"", "gone": None}
        store.write_blob("gone", b"x")
        self.settle(store)
        for name, content in kept.items():
            store.write_blob(name, content)
        for _ in range(2):
            store = self.require_blobs(stores.reopened(store))
            assert {name: store.read_blob(name) for name in kept} == kept, "blobs were lost on reopening"
            self.put(store, ["p"], self.normal(0, 1), [1])
        store.write_blob("a", b"other")
        store = self.require_blobs(stores.reopened(store))
        assert store.read_blob("a") == b"other"
        assert store.get(["p"]).labels.tolist() == [1]

    def test_flushed_blobs_are_there_for_others(self, stores: Stores) -> None:
        """When a flush returns, another store reads the blobs, though the first is still open."""
        for capability in ("flushed_is_visible", "persistent"):
            if not getattr(self, capability):
                pytest.skip(f"{type(self).__name__}.{capability} is False")
        store = self.require_blobs(stores.new(self.metrics[0]))
        store.upsert(["p"], self.normal(0, 1), [1])
        store.write_blob("a", large(4))
        store.write_blob("b", b"first")
        store.write_blob("gone", b"x")
        store.flush()
        store.write_blob("b", b"second")
        store.write_blob("gone", None)
        store.flush()
        other = self.require_blobs(stores.beside(store))
        found = [other.read_blob(name) for name in ("a", "b", "gone")]
        assert found == [large(4), b"second", None], "another store must read the blobs that were flushed"

    def test_a_copy_has_the_blobs(self, keeping: Keeping, tmp_path: Path) -> None:
        """What `save` writes has them too, and replaces those of the copy that was there."""
        if not isinstance(keeping, PortableStore):
            pytest.skip(f"{type(keeping).__name__} writes no copies (PortableStore)")
        keeping.write_blob("a", large(5))
        keeping.write_blob("b", b"x")
        keeping.save(tmp_path / "copy")
        keeping.write_blob("a", b"newer")
        first = self.require_blobs(type(keeping).load(tmp_path / "copy"))
        assert (first.read_blob("a"), first.read_blob("b")) == (large(5), b"x")
        first.close()
        keeping.write_blob("b", None)
        self.put(keeping, ["p"], self.normal(0, 1), [1])
        keeping.save(tmp_path / "copy")
        second = self.require_blobs(type(keeping).load(tmp_path / "copy"))
        assert (second.read_blob("a"), second.read_blob("b"), second.count()) == (b"newer", None, 1)
        second.close()

    def test_a_detached_store_keeps_its_blobs(self, stores: Stores) -> None:
        """A store that leaves its place goes on with what it has read there, and changes nothing there."""
        if not self.persistent:
            pytest.skip(f"{type(self).__name__}.persistent is False")
        store = self.require_blobs(stores.new(self.metrics[0]))
        if not isinstance(store, DetachableStore):
            pytest.skip(f"{type(store).__name__} cannot leave its place (DetachableStore)")
        store.write_blob("a", ALL_BYTES)
        store = self.require_blobs(stores.reopened(store))
        assert isinstance(store, DetachableStore)
        store.leave_when_written()
        store.write_blob("b", b"x")
        assert (store.read_blob("a"), store.read_blob("b")) == (ALL_BYTES, b"x")
        other = self.require_blobs(stores.beside(store))
        assert (other.read_blob("a"), other.read_blob("b")) == (ALL_BYTES, None)

    def test_threads_read_a_blob_while_one_writes(self, keeping: Keeping) -> None:
        """Every read gives the old blob or the new one, whole."""
        if not self.thread_safe:
            pytest.skip(f"{type(self).__name__}.thread_safe is False")
        written = [bytes([number]) * (LARGE // (1 + number % 3)) for number in range(6)]
        keeping.write_blob("a", written[0])

        def write() -> None:
            for content in written[1:]:
                keeping.write_blob("a", content)
                keeping.flush()

        def read() -> set[bytes | None]:
            return {keeping.read_blob("a") for _ in range(10)}

        with ThreadPoolExecutor(3) as pool:
            writing, *reading = [pool.submit(write), pool.submit(read), pool.submit(read)]
            for each in reading:
                assert each.result() <= set(written), "a read gave neither the old blob nor the new one"
            writing.result()
        assert keeping.read_blob("a") == written[-1]
