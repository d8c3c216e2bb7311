"""What a ChromaStore in a folder costs beside bare Chroma, as the collection grows.

    python benchmarks/chroma_growth.py --counts 1000 10000 --json c.json

Each side fills, is opened, and adds vectors one by one in a process of its own; sides take turns, and ratios
are taken round by round. Times are of the processor, with all threads, and leave importing chromadb out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chromadb
from _clusters import Array, clustered
from _stores import fill
from chromadb.config import Settings

from clipretrieval.stores import ChromaStore
from clipretrieval.stores.chroma.records import GRAPH

OWN, BARE, SAME = "ChromaStore", "Chroma", "Chroma, same graph"
SIDES = {OWN: None, BARE: {}, SAME: GRAPH}
STEPS = ("fill", "open", "one")
REQUEST = 5000
SINGLES = 100


def main() -> None:
    """Measure each size and print seconds and ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--child", nargs=4, metavar=("STEP", "SIDE", "PATH", "N"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        step, side, folder, count = arguments.child
        print(json.dumps(_measured(step, side, Path(folder), int(count), arguments.dim)))
        return
    found = {str(count): _rounds(count, arguments) for count in arguments.counts}
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    for count, table in found.items():
        print(f"{int(count):,} vectors of {arguments.dim} dimensions, medians of {arguments.rounds} rounds")
        for side, steps in table.items():
            print(f"  {side:<20}" + "".join(_cell(steps[step], table[OWN][step], step) for step in STEPS))


def _cell(seconds: list[float], own: list[float], step: str) -> str:
    ratio = statistics.median(mine / theirs for mine, theirs in zip(own, seconds, strict=True))
    return f"  {step} {1e3 * statistics.median(seconds):9.1f} ms (ours / it {ratio:4.2f})"


def _rounds(count: int, arguments: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    table: dict[str, dict[str, list[float]]] = {
        side: {step: [] for step in STEPS} for side in arguments.sides
    }
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as place:
            for step in STEPS:
                for side in arguments.sides:
                    folder = Path(place) / str(list(SIDES).index(side))
                    command = [sys.executable, __file__, "--dim", str(arguments.dim), "--child"]
                    command += [step, side, str(folder), str(count)]
                    shown = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
                    table[side][step].append(json.loads(shown))
        print(f"{count:,}: round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
    return table


def _measured(step: str, side: str, folder: Path, count: int, dim: int) -> float:
    """Take one step in this process; return the processor's seconds, those for one vector where singly."""
    rows, more = clustered(count, dim, SINGLES)
    opened: Callable[[Path, str], Any] = _Bare if side != OWN else _Own
    started = time.process_time()
    store = opened(folder, side)
    if step == "open":
        store.read()
        return time.process_time() - started
    store.read()
    started = time.process_time()
    if step == "fill":
        store.fill(rows)
        return time.process_time() - started
    for place in range(SINGLES):
        store.add(f"more-{place}", more[place : place + 1])
    return (time.process_time() - started) / SINGLES


class _Own:
    """A ChromaStore."""

    def __init__(self, folder: Path, side: str) -> None:
        self._store = ChromaStore(folder)

    def read(self) -> None:
        """Read one record, if there is one."""
        self._store.get(["0"])

    def fill(self, rows: Array) -> None:
        """Upsert all rows and flush."""
        fill(self._store, rows)

    def add(self, name: str, row: Array) -> None:
        """Upsert one row."""
        self._store.upsert([name], row, [0])


class _Bare:
    """A collection of Chroma's own, with as much metadata."""

    def __init__(self, folder: Path, side: str) -> None:
        client = chromadb.PersistentClient(str(folder), Settings(anonymized_telemetry=False))
        self._collection = client.get_or_create_collection(
            "vectors", configuration={"hnsw": {"space": "l2", **(SIDES[side] or {})}}, embedding_function=None
        )

    def read(self) -> None:
        """Read one record, if there is one."""
        self._collection.get(ids=["0"], include=["embeddings", "metadatas"])

    def fill(self, rows: Array) -> None:
        """Upsert all rows, as many in a request as Chroma takes."""
        for start in range(0, len(rows), REQUEST):
            part = rows[start : start + REQUEST]
            names = [str(place) for place in range(start, start + len(part))]
            metadatas = [{"label": int(name) % 10, "metadata": "{}"} for name in names]
            self._collection.upsert(ids=names, embeddings=part, metadatas=metadatas)

    def add(self, name: str, row: Array) -> None:
        """Upsert one row."""
        self._collection.upsert(ids=[name], embeddings=row, metadatas=[{"label": 0, "metadata": "{}"}])


if __name__ == "__main__":
    main()
