"""Changes of a FaissStore's folder, killed at random: a flush, a compaction, the carry-over from format 1."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from clipretrieval.errors import ClipRetrievalError
from clipretrieval.stores import FaissStore
from clipretrieval.stores.local.folder import find_manifest
from clipretrieval.stores.local.folder_manifest import MANIFEST_NAME
from clipretrieval.stores.local.writer_lock import LOCK_NAME

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "stores"))

from format1_folders import write_format1

COUNT, DIM, SEGMENTS = 20_000, 64, 6
IDS = [f"id {place}" for place in range(COUNT)]
CHANGES = ("flush", "compact", "carry-over")
BEFORE, AFTER = "whole, as before the change", "whole, as after the change"
KILLED = """
import sys
from pathlib import Path
import numpy as np
from clipretrieval.stores import FaissStore

store = FaissStore(sys.argv[1])
if sys.argv[2] != "compact":
    rows = np.random.default_rng(1).standard_normal((5000, store.dim), dtype=np.float32)
    store.upsert([f"new {place}" for place in range(5000)], rows, ["new"] * 5000, [{"new": True}] * 5000)
    store.delete([f"id {place}" for place in range(0, 9000, 2)])
    store.write_manifest({"changed": ["long" * 8] * 2000})
    store.write_blob("kept", bytes(200_000))
print("ready", flush=True)
(store.compact if sys.argv[2] == "compact" else store.flush)()
print("done", flush=True)
"""


def prepare(folder: Path, change: str) -> None:
    """Fill a folder that the change is made of."""
    rows = np.random.default_rng(0).standard_normal((COUNT, DIM), dtype=np.float32)
    labels = [f"label {place % 7}" for place in range(COUNT)]
    if change == "carry-over":
        write_format1(folder, IDS, rows, labels, user={"changed": ["short"]}, blobs={"kept": b"old"})
        return
    with FaissStore(folder) as store:
        for part in range(SEGMENTS):
            some = slice(part * COUNT // SEGMENTS, (part + 1) * COUNT // SEGMENTS)
            store.upsert(IDS[some], rows[some], labels[some], [{"place": name} for name in IDS[some]])
            store.write_manifest({"changed": ["short"]})
            store.write_blob("kept", b"old")
            store.flush()
        store.delete(IDS[::9])


def generation_of(folder: Path) -> int:
    """Return which flush of a store is in force."""
    manifest = find_manifest(folder)
    return -1 if manifest is None else manifest.generation


def contents(folder: Path) -> str:
    """Return a digest of all that a folder's store tells, having verified it."""
    with FaissStore.load(folder) as store:
        store.verify()
        ids = sorted(name for listing in store.scan() for name in listing.ids.tolist())
        records = store.get(ids)
        told = (
            ids,
            records.labels.tolist(),
            records.metadata,
            store.read_manifest(),
            store.read_blob("kept"),
        )
        return hashlib.sha256(repr(told).encode() + records.vectors.tobytes()).hexdigest()


def kill_changes(folder: Path, change: str, *, times: int, seed: int) -> Iterator[str]:
    """Kill a change at random moments; yield what each left: ``BEFORE``, ``AFTER`` or what is wrong.

    After each, another writer adds a record, and has to leave no file that its manifest does not name.
    """
    first, moments = folder / "first", random.Random(seed)
    prepare(first, change)
    took = _run(first, folder / "whole", change, None)
    begun, known = generation_of(first), (contents(first), contents(folder / "whole"))
    if (change == "compact") != (known[0] == known[1]) or generation_of(folder / "whole") == begun:
        raise SystemExit("the change is not what it should be")
    for number in range(times):
        place = folder / str(number)
        _run(first, place, change, moments.uniform(0, 1.1 * took))
        try:
            after = generation_of(place) > begun
            left = (AFTER if after else BEFORE) if contents(place) == known[after] else "other records"
            with FaissStore(place) as store:
                store.upsert(["last"], np.ones((1, DIM)), ["last"])
                store.flush()
                count = store.count()
            with FaissStore.load(place) as store:
                store.verify()
                if store.count() != count:
                    left = f"{store.count()} records after a flush of {count}"
            manifest, there = find_manifest(place), {path.name for path in place.iterdir()}
            if manifest is None or there != {*manifest.names, MANIFEST_NAME, LOCK_NAME}:
                left = f"other files than are in force: {sorted(there)}"
        except ClipRetrievalError as error:
            left = str(error)
        yield left
        shutil.rmtree(place)


def _run(first: Path, place: Path, change: str, wait: float | None) -> float:
    """Make the change of a copy in a process that is killed after so long; return the seconds it took."""
    shutil.copytree(first, place)
    command = [sys.executable, "-c", KILLED, str(place), change]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None or process.stdout.readline() != "ready\n":
            raise SystemExit("the process that makes the change has failed")
        started = time.monotonic()
        if wait is None:
            process.stdout.readline()
        else:
            time.sleep(wait)
            process.kill()
        return time.monotonic() - started
