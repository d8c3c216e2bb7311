"""Measure what a change of a `FaissStore` costs as it grows, beside bare FAISS and SQLite.

    python benchmarks/growth.py --counts 10000 100000 1000000 --dim 512

For each count a store is filled in a folder, with labels and metadata, and closed; then another process opens
it, asks, adds and removes. Beside it, bare FAISS builds the same index of the same vectors in memory and
writes it to a file, and SQLite commits the same change to a table of the same records; one more vector costs
bare FAISS a file that is written whole. Prints, for each step, seconds of processor time, bytes given to the
system to write, and memory that is resident then, and at the end the exponents b of n**b between the first
count and the last. A million vectors of 512 dimensions take 5 GB of disk, 3 GB of memory and ten minutes of
one core.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np

from clipretrieval.stores import FaissStore
from clipretrieval.stores.faiss.factory import auto_factory, sizes

faiss: Any = _faiss
BATCH, CENTRES, QUERIES, GONE = 10_000, 192, 100, 1000
Figures = dict[str, dict[str, float]]


def vectors(seed: int, count: int, dim: int) -> tuple[Any, list[str]]:
    """Return vectors about centres, and the names of their centres."""
    centres = np.random.default_rng(7).standard_normal((CENTRES, dim), dtype=np.float32)
    rng = np.random.default_rng(seed)
    which = rng.integers(0, CENTRES, count)
    rows = centres[which] + rng.standard_normal((count, dim), dtype=np.float32)
    return rows, [f"label {each}" for each in which.tolist()]


def records(start: int, count: int) -> tuple[list[str], list[dict[str, str]]]:
    places = range(start, start + count)
    return [f"id {place}" for place in places], [{"path": f"images/{place}.jpg"} for place in places]


@contextmanager
def measured(figures: Figures, name: str) -> Iterator[None]:
    """Add what a block costs, but for what it says itself to leave out, to the figures."""
    begun, written = time.process_time(), _written()
    yield
    found = figures.setdefault(name, {"seconds": 0.0, "written_mb": 0.0, "resident_mb": 0.0})
    found["seconds"] += time.process_time() - begun
    found["written_mb"] += (_written() - written) / 1e6
    found["resident_mb"] = _resident()


def _written() -> int:
    """Return the bytes that this process has given to the system to write (Linux)."""
    return int(Path("/proc/self/io").read_text().split("wchar:")[1].split()[0])


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def fill(folder: Path, count: int, dim: int) -> Figures:
    figures: Figures = {}
    store = FaissStore(folder)
    for start in range(0, count, BATCH):
        rows, labels = vectors(start, BATCH, dim)
        ids, metadata = records(start, BATCH)
        with measured(figures, "fill"):
            store.upsert(ids, rows, labels, metadata)
    with measured(figures, "flush with index"):
        store.close()
    figures["flush with index"]["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return figures


def use(folder: Path, count: int, dim: int) -> Figures:
    figures: Figures = {}
    queries, labels = vectors(count + 1, QUERIES, dim)
    with measured(figures, "open"):
        store = FaissStore(folder)
    with measured(figures, "first query"):
        store.search(queries[:1], 10)
    with measured(figures, "100 queries, one by one"):
        for place in range(QUERIES):
            store.search(queries[place : place + 1], 10)
    with measured(figures, "batch of 100"):
        store.search(queries, 10)
    ids, metadata = records(count, 3)
    for place in range(3):
        name = "upsert and flush one" if place else "upsert and flush one, first"
        with measured(figures, name):
            part = slice(place, place + 1)
            store.upsert(ids[part], queries[part], labels[part], metadata[part])
            store.flush()
    gone = [f"id {place}" for place in range(0, count, count // GONE)]
    with measured(figures, "delete 1000"):
        store.delete(gone)
        store.flush()
    with measured(figures, "scan"):
        assert sum(map(len, store.scan())) == count + 3 - len(gone)
    store.leave_when_written()
    return figures


def bare(folder: Path, count: int, dim: int) -> Figures:
    figures: Figures = {}
    rows = np.concatenate([vectors(start, BATCH, dim)[0] for start in range(0, count, BATCH)])
    index = faiss.index_factory(dim, auto_factory(count) or "Flat")
    with measured(figures, "flush with index"):
        most = min(count, sizes(index)[1])
        if not index.is_trained:
            index.train(rows[np.sort(np.random.default_rng(0).choice(count, most, replace=False))])
        index.add(rows)
        faiss.write_index(index, str(folder / "bare.faiss"))
    with measured(figures, "open"):
        index = faiss.read_index(str(folder / "bare.faiss"))
    if hasattr(index, "nprobe"):
        index.nprobe = 16
    with measured(figures, "100 queries, one by one"):
        for place in range(QUERIES):
            index.search(rows[place : place + 1], 10)
    with measured(figures, "upsert and flush one"):
        index.add(rows[:1])
        faiss.write_index(index, str(folder / "bare.faiss"))
    with closing(sqlite3.connect(folder / "bare.sqlite")) as table:
        table.execute("PRAGMA journal_mode = WAL")
        table.execute("CREATE TABLE records (id TEXT PRIMARY KEY, label TEXT, metadata TEXT)")
        with measured(figures, "fill"):
            for start in range(0, count, BATCH):
                ids, metadata = records(start, BATCH)
                texts = [json.dumps(each) for each in metadata]
                table.executemany("INSERT INTO records VALUES (?, 'x', ?)", zip(ids, texts, strict=True))
                table.commit()
        with measured(figures, "delete 1000"):
            gone = [(f"id {place}",) for place in range(0, count, count // GONE)]
            table.executemany("DELETE FROM records WHERE id = ?", gone)
            table.commit()
    return figures


STEPS = {"fill": fill, "use": use, "bare": bare}


def main() -> None:
    """Measure each count in processes of their own, print tables and exponents."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--child", nargs=3, metavar=("STEP", "FOLDER", "COUNT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        step, folder, count = arguments.child
        print(json.dumps(STEPS[step](Path(folder), int(count), arguments.dim)))
        return
    found: dict[int, dict[str, Figures]] = {}
    for count in arguments.counts:
        with tempfile.TemporaryDirectory(dir=".") as work:
            found[count] = {}
            for step in STEPS:
                folder = Path(work) if step == "bare" else Path(work) / "store"
                command = [
                    sys.executable,
                    __file__,
                    "--dim",
                    str(arguments.dim),
                    "--child",
                    step,
                    folder,
                    str(count),
                ]
                told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[count][step] = json.loads(told)
                for name, figures in found[count][step].items():
                    values = ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
                    print(f"{count:>9} {step:5} {name:28} {values}", flush=True)
    first, last = min(found), max(found)
    if first < last:
        for name in ("open", "upsert and flush one", "delete 1000"):
            times = [found[count]["use"][name]["seconds"] for count in (first, last)]
            exponent = math.log(times[1] / times[0]) / math.log(last / first)
            print(f"{name}: n**{exponent:.2f} from {first} to {last}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
