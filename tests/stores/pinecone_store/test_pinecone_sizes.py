"""PineconeStore keeps the service's answers within their size, whatever the metadata and the ties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pinecone_parts import names, normal, same_neighbors, sent

from clipretrieval.errors import StoreError
from clipretrieval.stores import MemoryStore
from clipretrieval.testing import PineconeEmulator


def test_long_metadata_leave_a_search_what_it_is(make: Any, emulator: PineconeEmulator) -> None:
    """Where the neighbours' metadata exceed an answer's size they are read by id: the result is the same."""
    store, memory = make(), MemoryStore()
    rows = normal(40, 1100, 8)
    rows[1] = rows[0]  # a picture that is there twice
    rows[2] = 0
    ids = names(1100)
    for each in (store, memory):
        each.upsert(ids, rows, ["x", "y"] * 550, [{"caption": "c" * 6000}] * 1100)
    start = len(emulator.requests)
    same_neighbors(store.search(rows[:1], 1), memory.search(rows[:1], 1), 2e-7)
    reaches = [each.json()["topK"] for each in sent(emulator, "/query", start) if each.json()["topK"] > 1]
    assert reaches == [2, 18]
    for k in (600, 1100, 2000):
        same_neighbors(store.search(rows[:3], k), memory.search(rows[:3], k), 2e-7)


def test_a_tie_at_the_end_of_a_row_is_looked_through_step_by_step(
    make: Any, emulator: PineconeEmulator
) -> None:
    """Of seventy equal vectors with long metadata those with the first ids are returned, from 130 matches."""
    store, rows, ids = make(), np.tile(normal(41, 1, 4), (70, 1)), names(70)
    store.upsert([*ids, "far"], np.concatenate([rows, rows[:1] + 9]), [1] * 71, [{"c": "c" * 30_000}] * 71)
    near = store.search(rows[:1], 3)
    assert near.ids.tolist() == [sorted(ids)[:3]]
    assert not near.distances.any()
    assert max(each.json()["topK"] for each in sent(emulator, "/query")[-5:]) == 130


def test_reads_are_cut_by_the_bytes_of_their_answers(make: Any, emulator: PineconeEmulator) -> None:
    """No answer is asked for that is expected to exceed four megabytes, by id and by label."""
    store, rows, ids = make(), normal(42, 120, 4000), names(120)
    store.upsert(ids, rows, [1] * 120)
    start = len(emulator.requests)
    assert store.get(ids).vectors.tobytes() == rows.tobytes()
    parts = [len(each.parameters["ids"]) for each in sent(emulator, "/vectors/fetch", start)]
    assert sum(parts) == 120
    assert max(parts) * 4000 * 21 < 4_000_000
    assert sorted(name for listing in store.scan(1) for name in listing.ids) == sorted(ids)
    pages = [each.json()["limit"] for each in sent(emulator, "/vectors/fetch_by_metadata", start)]
    assert max(pages) * 4000 * 21 < 4_000_000


def test_a_read_that_is_refused_is_tried_in_halves(make: Any, other: Any) -> None:
    """Where an answer may have been too large fewer ids are asked for; what is refused alone is an error."""
    strict = other()
    store, rows, ids = make(host=strict.host), normal(43, 40, 4), names(40)
    store.upsert(ids, rows, [1] * 40)
    store.flush()
    start = len(strict.requests)
    strict.fail(script=["echo", "echo"], paths=["/vectors/fetch"])
    assert store.get(ids).vectors.tobytes() == rows.tobytes()
    parts = [len(each.parameters["ids"]) for each in sent(strict, "/vectors/fetch", start)]
    assert parts == [40, 20, 10, 10, 20]
    strict.fail(1.0, ("echo",), paths=["/vectors/fetch"])
    with pytest.raises(StoreError, match="refused"):
        store.get(ids)
    assert len(sent(strict, "/vectors/fetch", start)) <= 5 + 6
