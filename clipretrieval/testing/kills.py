"""Kill a process amid its writes, again and again, and look for what a store has lost.

``python -m clipretrieval.testing.kills STORE OPTIONS FIRST`` is the process that is killed; where FIRST is
``only``, it makes one great upsert.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from clipretrieval.errors import ClipRetrievalWarning, StoreError
from clipretrieval.stores.base import BlobStore, VectorStore
from clipretrieval.stores.registry import create_store
from clipretrieval.types import FloatArray

__all__ = ["Kill", "kill_first_upserts", "kill_writers"]

ROWS, DIM = 20, 16
# The id that every batch replaces.
LATEST = "latest"
# The blob that every batch replaces, by one of so many bytes more than the last.
BLOB, GROWTH = "latest", 1000
# A store that can be compacted is, after each so many batches.
COMPACTED = 2
# How many batches are awaited before a kill, and the seconds within which it then comes.
MOST_BATCHES = 6
MOST_SECONDS = 0.1
# Records of the one upsert, a single request to Chroma, and the word that asks for it.
GREAT = 4000
ONLY = "only"


@dataclass(frozen=True)
class Kill:
    """What a store holds after a kill.

    Attributes
    ----------
    flushed : int
        Batches of 20 vectors whose flush had returned, since the first writer began.
    lost : list of str
        What of them is missing or not as it was written; empty for a store that keeps its promise.
    """

    flushed: int
    lost: list[str]


def kill_writers(store: str, options: Mapping[str, Any], *, times: int, seed: int = 0) -> Iterator[Kill]:
    """Let a process fill a store and kill it with SIGKILL, time after time, at random moments.

    Each process goes on where the last one was killed: it upserts a batch, writes the manifest and, where the
    store keeps blobs, a blob, flushes, tells that the flush has returned, and begins the next; a store with
    `compact` is compacted now and then. Moments are drawn among those of opening and of writing. After each
    kill the store is opened, and everything flushed so far by all processes is looked up.

    Parameters
    ----------
    store : str
        A name that `create_store` knows in every process.
    options : mapping
        JSON values; they open the same store each time. Nothing else may write to it.
    times : int
        How many processes are killed.
    seed : int
        Of the moments.

    Yields
    ------
    Kill
        After each kill.

    Raises
    ------
    StoreError
        If a process ends by itself, or the store cannot be opened after a kill.
    """
    moments = random.Random(seed)  # noqa: S311  no secret
    flushed = 0
    for _ in range(times):
        flushed = _kill_one(store, options, flushed, moments)
        with closing(_opened(store, options)) as opened:
            lost = _missing(opened, flushed)
        yield Kill(flushed, lost)


def kill_first_upserts(
    store: str, options: Callable[[int], Mapping[str, Any]], *, times: int, seed: int = 0
) -> Iterator[int]:
    """Kill processes amid the first upsert that a store ever sees, and count what is left of it.

    Parameters
    ----------
    store : str
        A name that `create_store` knows in every process.
    options : callable
        Given 0, 1, …, returns JSON values that open an empty store, another one each time.
    times : int
        How many processes are killed.
    seed : int
        Of the moments, which are drawn from the time that the upsert takes when nobody disturbs it; early
        ones more often, since records may be committed long before an index has taken them up.

    Yields
    ------
    int
        The records left after each kill: 0 or `GREAT` where an upsert is stored wholly or not at all.

    Raises
    ------
    StoreError
        If a process ends by itself, or the store cannot be opened after a kill.
    """
    moments = random.Random(seed)  # noqa: S311  no secret
    took = _kill_upsert(store, options(0), None)
    for number in range(1, times + 1):
        _kill_upsert(store, options(number), took * moments.random() ** 5)
        with closing(_opened(store, options(number))) as opened:
            yield opened.count()


def _opened(store: str, options: Mapping[str, Any]) -> VectorStore:
    """Open a store, which may say that it mends what the kill has damaged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClipRetrievalWarning)
        return create_store(store, **options)


def _kill_upsert(store: str, options: Mapping[str, Any], wait: float | None) -> float:
    """Kill a process so many seconds into its upsert, or behind it; return the seconds until then."""
    command = [sys.executable, "-m", __name__, store, json.dumps(dict(options)), ONLY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:  # noqa: S603  our own command
        try:
            told = _numbers(writer.stdout)
            if next(told, None) is None:
                raise StoreError(f"the process that fills the store ended by itself: {writer.wait()}")
            started = time.monotonic()
            if wait is None:
                next(told, None)
            else:
                time.sleep(wait)
            return time.monotonic() - started
        finally:
            writer.kill()


def _kill_one(store: str, options: Mapping[str, Any], flushed: int, moments: random.Random) -> int:
    """Start a writer, kill it, and return how many batches are known to be flushed."""
    awaited, wait = flushed + moments.randrange(MOST_BATCHES), moments.uniform(0, MOST_SECONDS)
    command = [sys.executable, "-m", __name__, store, json.dumps(dict(options)), str(flushed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:  # noqa: S603  our own command
        try:
            told = _numbers(writer.stdout)
            seen = next((number for number in told if number >= awaited), None)
            if seen is None:
                raise StoreError(f"the process that fills the store ended by itself: {writer.wait()}")
            time.sleep(wait)
        finally:
            writer.kill()
        return max([seen, *told])


def _numbers(lines: IO[str] | None) -> Iterator[int]:
    return (int(line) for line in lines or ())


def _missing(store: VectorStore, flushed: int) -> list[str]:
    """Return what a store lacks of the first batches; one more may be there, flushed but not yet told."""
    lost = []
    for number in range(flushed):
        ids, rows = _batch(number)
        found = store.get(ids)
        places = {name: place for place, name in enumerate(found.ids.tolist())}
        for row, name in enumerate(ids):
            place = places.get(name)
            if place is None:
                lost.append(f"{name} is missing")
            elif found.vectors[place].tobytes() != rows[row].tobytes():
                lost.append(f"{name} has another vector")
            elif (found.labels[place], found.metadata[place]) != (number, {"batch": [number]}):
                lost.append(f"{name} has another label or metadata")
    allowed = [number for number in (flushed - 1, flushed) if number >= 0]
    if flushed:
        queries = np.stack([_batch(number)[1][0] for number in range(flushed)])
        near = store.search(queries, 1).ids[:, 0].tolist()
        lost += [f"{number}-0 is not found" for number in range(flushed) if near[number] != f"{number}-0"]
        latest = store.get([LATEST]).labels.tolist()
        if latest not in [[number] for number in allowed]:
            lost.append(f"{LATEST} has the label {latest}; {allowed} are right")
        written = store.read_manifest().get("batch")
        if written not in allowed:
            lost.append(f"the manifest is of batch {written}; {allowed} are right")
        if isinstance(store, BlobStore) and store.read_blob(BLOB) not in [
            _blob(number) for number in allowed
        ]:
            lost.append(f"the blob is of none of the batches {allowed}")
    counts = [flushed * ROWS + (flushed > 0), (flushed + 1) * ROWS + 1]
    if store.count() not in counts:
        lost.append(f"the count is {store.count()}; {counts} are right")
    return lost


def _batch(number: int) -> tuple[list[str], FloatArray]:
    rows = np.random.default_rng(number).standard_normal((ROWS, DIM), dtype=np.float32)
    return [f"{number}-{row}" for row in range(ROWS)], rows


def _blob(number: int) -> bytes:
    return bytes([number % 256]) * GROWTH * (number + 1)


def _fill(store: str, options: str, first: str) -> None:
    """Fill a store until killed; tell first, and after each flush, how many batches are flushed."""
    if first == ONLY:
        _fill_at_once(store, options)
        return
    number = int(first)
    print(number, flush=True)
    with closing(create_store(store, **json.loads(options))) as opened:
        while True:
            ids, rows = _batch(number)
            vectors = np.vstack([rows, np.full((1, DIM), number + 1, dtype=np.float32)])
            metadata = [{"batch": [number]}] * (ROWS + 1)
            opened.upsert([*ids, LATEST], vectors, [number] * (ROWS + 1), metadata)
            opened.write_manifest({"batch": number})
            if isinstance(opened, BlobStore):
                opened.write_blob(BLOB, _blob(number))
            opened.flush()
            number += 1
            print(number, flush=True)
            compact = getattr(opened, "compact", None)
            if compact is not None and number % COMPACTED == 0:
                compact()


def _fill_at_once(store: str, options: str) -> None:
    """Upsert many records in one call; tell before and after it."""
    rows = np.random.default_rng(0).standard_normal((GREAT, DIM), dtype=np.float32)
    with closing(create_store(store, **json.loads(options))) as opened:
        print(0, flush=True)
        opened.upsert([str(row) for row in range(GREAT)], rows, [0] * GREAT)
        opened.flush()
        print(1, flush=True)


if __name__ == "__main__":
    _fill(*sys.argv[1:])
