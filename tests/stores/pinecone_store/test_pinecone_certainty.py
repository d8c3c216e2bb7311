"""What PineconeStore reported as failed is not sent later, and what is not known is not taken for certain."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from pinecone_parts import all_sent, hurried, names, normal, sent

from clipretrieval.errors import InvalidInputError, StoreError, StoreUnavailableError
from clipretrieval.stores import IncompleteDeleteError, IncompleteUpsertError

ONE = np.ones((1, 4), dtype=np.float32)


def test_what_was_reported_as_failed_is_not_sent_later(make: Any, other: Any) -> None:
    """A request that the service asked to repeat after the deadline stays unsent, also when it is due."""
    flaky = other()
    store = make(index="late", host=flaky.host, timeout=30)
    store.upsert(["a"], ONE, [0])
    with all_sent():
        flaky.fail(script=["429"], paths=["/vectors/upsert"], retry_after=31)
        with pytest.raises(IncompleteUpsertError):
            store.upsert(["a", "b"], np.ones((2, 4)), [1, 1])
        flaky.fail(script=["429"], paths=["/vectors/delete"], retry_after=31)
        with pytest.raises(StoreUnavailableError):
            store.delete(["a"])
        store.upsert(["a"], 2 * ONE, [2])
        store.close()
    assert {name: values for name, (values, _) in flaky.contents("late").items()} == {"a": [2.0] * 4}
    assert len(sent(flaky, "/vectors/upsert")) == 3
    assert len(sent(flaky, "/vectors/delete")) == 1


def test_nothing_is_sent_after_close(make: Any, other: Any) -> None:
    """An upsert that waits to be sent again when another thread closes the store fails, and stays unsent."""
    flaky = other()
    store = make(index="closed", host=flaky.host, timeout=30)
    store.upsert(["a"], ONE, [0])
    store.flush()
    flaky.fail(script=["429"], paths=["/vectors/upsert"], retry_after=20)
    errors: list[StoreError] = []

    def write() -> None:
        try:
            store.upsert(["b"], ONE, [1])
        except StoreError as error:
            errors.append(error)

    writer = threading.Thread(target=write)
    with all_sent():
        writer.start()
        while len(sent(flaky, "/vectors/upsert")) < 2:
            time.sleep(0.01)
        store.close()
        writer.join()
    assert [type(error) for error in errors] == [IncompleteUpsertError]
    assert "closed" in str(errors[0])
    assert list(flaky.contents("closed")) == ["a"]


@pytest.mark.parametrize("log_numbers", [True, False])
def test_a_write_that_may_have_been_applied_is_not_waited_for(
    make: Any, other: Any, log_numbers: bool
) -> None:
    """Reads show what the service has, and do not insist on the write before."""
    flaky = other(log_numbers=log_numbers)
    store = make(host=flaky.host)
    store.upsert(["a", "b"], np.ones((2, 4)), [0, 0])
    assert store.delete(["a"]) == 1
    flaky.fail(1.0, ("cut",), paths=["/vectors/upsert"])  # applied, and never answered
    with hurried(store, 1.0), pytest.raises(IncompleteUpsertError):
        store.upsert(["a"], 2 * ONE, [2])
    flaky.heal()
    store.flush()
    assert store.get(["a", "b"]).labels.tolist() == [2, 0]
    assert store.delete(["a"]) == 1
    assert store.get(["a", "b"]).ids.tolist() == ["b"]


def test_a_deletion_that_fails_in_part_names_the_ids(make: Any, other: Any) -> None:
    """What was deleted is gone for the next read, though the service shows it a while; the rest is named."""
    late = other(visibility_delay=0.3)
    store = make(index="parts", host=late.host)
    ids = names(2500)
    store.upsert(ids, normal(50, 2500, 2), [0] * 2500)
    store.flush()
    late.fail(script=["echo"], paths=["/vectors/delete"])  # one of three parts is refused
    with pytest.raises(IncompleteDeleteError) as caught:
        store.delete(ids)
    late.heal()
    left = caught.value.ids
    assert len(left) in (500, 1000)
    assert store.get(ids).ids.tolist() == left == [name for name in ids if name in set(left)]
    assert store.delete(left) == len(left)
    assert store.count() == 0


def test_a_deletion_that_may_have_been_done_is_not_waited_for(make: Any, other: Any) -> None:
    """An upsert that shows late is not insisted on once a deletion of it may have been applied."""
    flaky = other(log_numbers=False)
    store = make(host=flaky.host)
    store.upsert(["a", "b"], np.ones((2, 4)), [0, 0])
    flaky.fail(1.0, ("cut",), paths=["/vectors/delete"])  # applied, and never answered
    with hurried(store, 1.0), pytest.raises(IncompleteDeleteError) as caught:
        store.delete(["a"])
    assert caught.value.ids == ["a"]
    flaky.heal()
    assert store.get(["a", "b"]).ids.tolist() == ["b"]
    assert store.delete(["a"]) == 0


def test_labels_of_both_types_cannot_be_on_their_way_at_once(
    make: Any, other: Any, go_on: threading.Event
) -> None:
    """While one thread's int labels are being stored, str labels are refused, though none is stored yet."""
    slow = other()
    store = make(host=slow.host, dim=4)
    store.write_manifest({})
    slow.fail(script=["slow"], paths=["/vectors/upsert"])
    writer = threading.Thread(target=lambda: store.upsert(["a"], ONE, [1]))
    writer.start()
    while not store._session._state.sending:
        time.sleep(0.01)
    with pytest.raises(InvalidInputError, match="int labels"):
        store.upsert(["b"], ONE, ["x"])
    go_on.set()
    writer.join()
    assert store.search(ONE, 2).labels.tolist() == [[1, -1]]
    store.delete(["a"])
    store.upsert(["b"], ONE, ["x"])
    assert store.search(ONE, 2).labels.tolist() == [["x", ""]]


def test_labels_that_may_be_stored_yet_keep_out_the_other_type(
    make: Any, other: Any, go_on: threading.Event
) -> None:
    """After an upsert of which nothing is known, labels of the other type wait until its ids are settled."""
    slow = other()
    store = make(index="slow", host=slow.host, dim=4)
    store.write_manifest({})
    store.flush()
    slow.fail(script=["slow"], paths=["/vectors/upsert"])  # applied after it was given up
    with hurried(store, 0.8), pytest.raises(IncompleteUpsertError):
        store.upsert(["a"], ONE, [1])
    assert store.count() == 0
    with pytest.raises(InvalidInputError, match="int labels"):
        store.upsert(["b"], ONE, ["x"])
    go_on.set()
    while not slow.contents("slow"):
        time.sleep(0.05)
    assert store.delete(["a"]) == 1
    store.upsert(["b"], ONE, ["x"])
    assert store.search(ONE, 2).labels.tolist() == [["x", ""]]
