"""Measure what a change of a store costs as the store grows, beside bare libraries.

    python benchmarks/growth.py --json growth.json
    python benchmarks/growth.py --json growth.json --counts 1000000 --sides FaissStore LanceDB

For each count every side is filled in a folder of its own, with ids, labels and metadata, and closed; then
another process opens it, asks, adds and removes. Sides take turns, step by step and round by round. Up to
100,000 vectors all compare all of them, but for usearch, which has nothing but its graph; beyond, each has
lists of a byte a value. Bare FAISS and usearch keep ids, labels and metadata in SQLite, and write the index
file whole where one vector changes, as they can do no other.

Prints processor seconds (PostgreSQL's own included, if it runs on this machine), megabytes given to the
system to write, and the most megabytes of anonymous memory: pages of mapped files, which the system takes
back where it needs them, do not count. At the end come the exponents b of n**b between the first count and
the last. Linux only. A million vectors of 512 dimensions take 8 GB of disk; a run that is cut short keeps its
rows, and goes on with them where the JSON file is there. PostgreSQL is found by PGHOST, PGDATABASE, ….
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np
from _findings import Findings, markdown_table

from clipretrieval import stores
from clipretrieval.stores.faiss.factory import auto_factory, sizes

faiss: Any = _faiss
BATCH, CENTRES, QUERIES, ASKED, GONE, CHANGES, K = 10_000, 192, 1000, 100, 1000, 8, 10
EXACT_VALUES = 1 << 27
"""What LanceStore and PgVectorStore compare one by one, by default."""
LARGE = "FaissStore, 4 GB"
STEPS = (
    *("fill", "index and close", "open", "first query", "one of 100 queries", "one, again", "batch of 1,000"),
    *("first change, flushed", "one more, flushed", "delete 1,000, flushed", "scan"),
)
FIGURES = ("seconds", "written_mb", "peak_mb")


def vectors(seed: int, count: int, dim: int) -> tuple[Any, list[str]]:
    """Return vectors about centres, and the names of their centres."""
    centres = np.random.default_rng(7).standard_normal((CENTRES, dim), dtype=np.float32)
    rng = np.random.default_rng(seed)
    which = rng.integers(0, CENTRES, count)
    rows = centres[which] + rng.standard_normal((count, dim), dtype=np.float32)
    return rows, [f"label {each}" for each in which.tolist()]


def records(start: int, count: int) -> tuple[list[str], list[dict[str, str]]]:
    """Return the ids and the metadata of some places."""
    places = range(start, start + count)
    return [f"id {place}" for place in places], [{"path": f"images/{place}.jpg"} for place in places]


def _texts(metadata: list[dict[str, str]]) -> list[str]:
    return [json.dumps(each) for each in metadata]


class Own:
    """One of our stores."""

    name = "FaissStore"

    def __init__(self, folder: Path, count: int, dim: int) -> None:
        self.folder, self.count, self.dim = folder, count, dim
        self.kind: Any = getattr(stores, self.name)  # imports what it needs

    def open(self) -> None:
        self.store = self.made()

    def made(self) -> Any:
        return self.kind(self.folder)

    def add(self, start: int, rows: Any, labels: list[str]) -> None:
        ids, metadata = records(start, len(rows))
        self.store.upsert(ids, rows, labels, metadata)

    def close(self) -> None:
        if self.store.count() * self.dim > EXACT_VALUES and hasattr(self.store, "build_index"):
            self.store.build_index()
        self.store.close()

    def flush(self) -> None:
        self.store.flush()

    def search(self, queries: Any) -> list[list[str]]:
        found: list[list[str]] = self.store.search(queries, K).ids.tolist()
        return found

    def delete(self, places: range) -> None:
        self.store.delete([f"id {place}" for place in places])

    def scan(self) -> int:
        return sum(map(len, self.store.scan()))


class Budget(Own):
    """A FaissStore that may take four gigabytes."""

    def made(self) -> Any:
        return self.kind(self.folder, memory="4 GB")


class Lance(Own):
    """A LanceStore."""

    name = "LanceStore"


class Postgres(Own):
    """A PgVectorStore; its table is left to whoever gave the database."""

    name = "PgVectorStore"

    def made(self) -> Any:
        return self.kind(table=f"growth-{self.folder.parent.name}")


class BareFaiss:
    """FAISS's own index in a file, the vectors in another, the records in SQLite."""

    def __init__(self, folder: Path, count: int, dim: int) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.count, self.dim = folder, count, dim
        self.path, self.rows = folder / "index", folder / "vectors"

    def open(self) -> None:
        self.table = sqlite3.connect(self.folder / "records.sqlite")
        self.table.execute("PRAGMA journal_mode = WAL")
        columns = "place INTEGER PRIMARY KEY, id TEXT UNIQUE, label TEXT, metadata TEXT"
        self.table.execute(f"CREATE TABLE IF NOT EXISTS records ({columns})")
        self.index = self.read() if self.path.exists() else self.made()

    def read(self) -> Any:
        index = faiss.read_index(str(self.path))
        if hasattr(index, "nprobe"):
            index.nprobe = 16
        return index

    def made(self) -> Any:
        return faiss.index_factory(self.dim, auto_factory(self.count) or "IDMap,Flat")

    def add(self, start: int, rows: Any, labels: list[str]) -> None:
        places = range(start, start + len(rows))
        ids, metadata = records(start, len(rows))
        values = zip(places, ids, labels, _texts(metadata), strict=True)
        self.table.executemany("INSERT INTO records VALUES (?, ?, ?, ?)", values)
        self.put(np.arange(start, start + len(rows)), rows)

    def put(self, places: Any, rows: Any) -> None:
        with self.rows.open("ab") as file:
            rows.tofile(file)
        if self.index.is_trained:
            self.index.add_with_ids(rows, places)

    def close(self) -> None:
        if not self.index.is_trained:
            rows = np.memmap(self.rows, np.float32, "r").reshape(-1, self.dim)
            most = min(self.count, sizes(self.index)[1])
            sample = np.random.default_rng(0).choice(self.count, most, replace=False)
            self.index.train(rows[np.sort(sample)])
            for start in range(0, self.count, BATCH):
                part = rows[start : start + BATCH]
                self.index.add_with_ids(part, np.arange(start, start + len(part)))
        self.flush()
        self.table.close()

    def flush(self) -> None:
        self.table.commit()
        faiss.write_index(self.index, str(self.path))

    def search(self, queries: Any) -> list[list[str]]:
        return self.named(self.index.search(queries, K)[1])

    def named(self, places: Any) -> list[list[str]]:
        """Look the ids and labels of places up."""
        known = {place: (name, label) for place, name, label in self.looked_up(set(places.ravel().tolist()))}
        return [[known[place][0] for place in row] for row in places.tolist()]

    def looked_up(self, places: set[int]) -> Iterator[Any]:
        text = json.dumps(list(places))
        query = "SELECT place, id, label FROM records WHERE place IN (SELECT value FROM json_each(?))"
        yield from self.table.execute(query, (text,))

    def delete(self, places: range) -> None:
        self.table.executemany("DELETE FROM records WHERE id = ?", ((f"id {place}",) for place in places))
        self.remove(np.array(places))

    def remove(self, places: Any) -> None:
        self.index.remove_ids(faiss.IDSelectorBatch(places))

    def scan(self) -> int:
        return sum(1 for _ in self.table.execute("SELECT id, label FROM records"))


class Usearch(BareFaiss):
    """A graph of usearch's in a file, the records in SQLite."""

    def made(self) -> Any:
        from usearch.index import Index

        return Index(ndim=self.dim, metric="l2sq")

    def read(self) -> Any:
        from usearch.index import Index

        return Index.restore(self.path)

    def put(self, places: Any, rows: Any) -> None:
        self.index.add(places, rows)

    def close(self) -> None:
        self.flush()
        self.table.close()

    def flush(self) -> None:
        self.table.commit()
        self.index.save(self.path)

    def search(self, queries: Any) -> list[list[str]]:
        return self.named(np.asarray(self.index.search(queries, K).keys).reshape(len(queries), K))

    def remove(self, places: Any) -> None:
        self.index.remove(places)


class BareLance:
    """A table of LanceDB's, through its own API: appends, a merge by key, and lists of byte codes."""

    def __init__(self, folder: Path, count: int, dim: int) -> None:
        import lancedb

        self.folder, self.count, self.dim = folder, count, dim
        self.connect: Callable[[str], Any] = lancedb.connect

    def open(self) -> None:
        there = self.folder.exists()
        self.database = self.connect(str(self.folder))
        self.table = self.database.open_table("vectors") if there else None

    def add(self, start: int, rows: Any, labels: list[str]) -> None:
        import pyarrow as pa

        ids, metadata = records(start, len(rows))
        values = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), self.dim)
        batch = pa.table({"id": ids, "vector": values, "label": labels, "metadata": _texts(metadata)})
        if self.table is None:
            self.table = self.database.create_table("vectors", data=batch)
        elif len(rows) == BATCH:
            self.table.add(batch)
        else:
            merge = self.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(batch)

    def close(self) -> None:
        from lancedb.index import BTree, IvfSq

        self.table.create_index("id", config=BTree())
        if auto_factory(self.count) is not None:
            self.table.create_index("vector", config=IvfSq(distance_type="l2"))

    def flush(self) -> None:
        """Do nothing: a call that returned has written its files."""

    def search(self, queries: Any) -> list[list[str]]:
        found: list[list[str]] = [[] for _ in queries]
        for start in range(0, len(queries), ASKED):
            query = self.table.search(queries[start : start + ASKED], vector_column_name="vector")
            query = query.distance_type("l2").limit(K).select(["id", "label", "_distance"])
            if auto_factory(self.count) is not None:
                query = query.nprobes(16).refine_factor(10)
            rows = query.to_arrow()
            several = "query_index" in rows.column_names
            places = rows["query_index"].to_pylist() if several else [0] * len(rows)
            for place, name in zip(places, rows["id"].to_pylist(), strict=True):
                found[start + place].append(name)
        return found

    def delete(self, places: range) -> None:
        ids = ", ".join(f"'id {place}'" for place in places)
        self.table.delete(f"id IN ({ids})")

    def scan(self) -> int:
        batches = self.table.search().select(["id", "label"]).to_batches()
        return sum(len(batch["id"].to_pylist()) for batch in batches)


SIDES: dict[str, Any] = {
    "FaissStore": Own,
    "FAISS + SQLite": BareFaiss,
    "usearch + SQLite": Usearch,
    "LanceStore": Lance,
    "LanceDB": BareLance,
    "PgVectorStore": Postgres,
}
NEEDED = {
    "usearch + SQLite": "usearch",
    "LanceStore": "lancedb",
    "LanceDB": "lancedb",
    "PgVectorStore": "psycopg",
}


def absent(side: str) -> str | None:
    """Return why a side cannot be measured here."""
    if side in NEEDED and importlib.util.find_spec(NEEDED[side]) is None:
        return f"{NEEDED[side]} is not installed"
    if side == "PgVectorStore" and not {"PGHOST", "PGSERVICE"} & set(os.environ):
        return "no PGHOST names a server"
    return None


class Meter:
    """What each step costs this process and, where it is asked, PostgreSQL's."""

    def __init__(self, served: bool) -> None:
        self.figures: dict[str, dict[str, float]] = {}
        self._served, self._peak = served, 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self._peak = max(self._peak, _status("RssAnon"))
            time.sleep(0.02)

    @contextmanager
    def step(self, name: str, times: int = 1) -> Iterator[None]:
        """Add a block's seconds and bytes, of one of so many times, to those of a step."""
        begun, started, self._peak = self._spent(), time.perf_counter(), 0.0
        yield
        walled = time.perf_counter() - started
        spent = [(now - then) / times for then, now in zip(begun, self._spent(), strict=True)]
        found = self.figures.setdefault(name, dict.fromkeys((*FIGURES, "wall"), 0.0))
        found["seconds"] += spent[0]
        found["written_mb"] += spent[1] / 1e6
        found["wall"] += walled / times
        found["peak_mb"] = max(found["peak_mb"], self._peak, _status("RssAnon"))
        found["resident_mb"] = _status("VmRSS")

    def _spent(self) -> tuple[float, float]:
        """Return processor seconds and bytes given to the system to write, so far."""
        written = float(Path("/proc/self/io").read_text().split("wchar:")[1].split()[0])
        seconds = time.process_time()
        if self._served:
            import psutil

            for each in psutil.process_iter(["name"]):
                if each.info["name"] == "postgres":  # those that have ended count as their parent's
                    seconds += sum(each.cpu_times()[:4])
                    written += each.io_counters().write_chars
        return seconds, written


def _status(key: str) -> float:
    """Return a figure of this process's memory in megabytes."""
    return int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0]) / 1e3


def fill(side: Any, meter: Meter, count: int, dim: int) -> None:
    """Fill a side, build its index, and close it."""
    side.open()
    for start in range(0, count, BATCH):
        rows, labels = vectors(start, BATCH, dim)
        with meter.step("fill"):
            side.add(start, rows, labels)
    with meter.step("index and close"):
        side.close()


def use(side: Any, meter: Meter, count: int, dim: int) -> list[list[str]]:
    """Open a side that is full, ask, add and remove; return the answers."""
    queries, labels = vectors(count + 1, QUERIES, dim)
    with meter.step("open"):
        side.open()
    with meter.step("first query"):
        side.search(queries[:1])
    for name in ("one of 100 queries", "one, again"):  # what is mapped has then been read, and verified
        with meter.step(name, times=ASKED):
            for place in range(ASKED):
                side.search(queries[place : place + 1])
    with meter.step("batch of 1,000"):
        answers: list[list[str]] = side.search(queries)
    for place in range(CHANGES + 1):
        more, times = ("one more, flushed", CHANGES) if place else ("first change, flushed", 1)
        with meter.step(more, times):
            side.add(count + place, queries[place : place + 1], labels[place : place + 1])
            side.flush()
    gone = range(0, count, count // GONE)
    with meter.step("delete 1,000, flushed"):
        side.delete(gone)
        side.flush()
    with meter.step("scan"):
        left = side.scan()
    if left != count + CHANGES + 1 - len(gone):
        raise SystemExit(f"{left:,} records are left")
    return answers[:ASKED]


def nearest(count: int, dim: int) -> list[list[str]]:
    """Return the answers to the first queries that comparing all vectors finds."""
    queries, found = vectors(count + 1, QUERIES, dim)[0][:ASKED], faiss.ResultHeap(ASKED, K)
    for start in range(0, count, BATCH):
        distances, places = faiss.knn(queries, vectors(start, BATCH, dim)[0], K)
        found.add_result(distances, places + start)
    found.finalize()
    return [[f"id {place}" for place in row] for row in found.I.tolist()]


def child(step: str, name: str, folder: Path, count: int, dim: int) -> None:
    """Take one step in this process, and print what it cost."""
    truth = folder.parent / "truth.json"
    if step == "truth":
        truth.write_text(json.dumps(nearest(count, dim)))
        return
    meter = Meter(name == "PgVectorStore")
    side = {**SIDES, LARGE: Budget}[name](folder, count, dim)
    if step == "fill":
        fill(side, meter, count, dim)
    else:
        pairs = zip(use(side, meter, count, dim), json.loads(truth.read_text()), strict=True)
        meter.figures["recall"] = {
            "of 10": sum(len(set(own) & set(all_)) for own, all_ in pairs) / (K * ASKED)
        }
    print(json.dumps(meter.figures), flush=True)
    os._exit(0)  # what closing costs has been measured in "fill"


def measure(found: Findings, count: int, dim: int, sides: list[str], rounds: int) -> None:
    """Measure all sides at one count in turns, and add their rows but for those that are there."""
    have = {
        (row["side"], row.get("round")) for row in found.rows if (row["count"], row["dim"]) == (count, dim)
    }
    for number in range(rounds):
        wanted = [side for side in sides if (side, number) not in have]
        with tempfile.TemporaryDirectory(dir=".", ignore_cleanup_errors=True) as work:
            costs: dict[str, dict[str, Any]] = {side: {} for side in wanted}
            if wanted:
                _run("truth", "", Path(work) / "none", count, dim)
            for step in ("fill", "use"):
                for side in wanted:
                    folder = Path(work) / side.replace(" ", "")
                    if step == "use" and not costs[side]:
                        continue
                    told = _run(step, side, folder, count, dim)
                    if isinstance(told, str):
                        found.add(count=count, dim=dim, side=side, failed=f"{step}: {told}")
                        costs[side] = {}
                        continue
                    costs[side] |= told
                    if step == "use":
                        found.add(count=count, dim=dim, side=side, round=number, costs=costs[side])


def _run(step: str, side: str, folder: Path, count: int, dim: int) -> dict[str, Any] | str:
    """Take a step in a process of its own; return what it costs, or how it failed."""
    command = [sys.executable, __file__, "--dim", str(dim), "--child", step, side, str(folder), str(count)]
    # Threads that wait for each other would count.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1][:200]
    told: dict[str, Any] = json.loads(done.stdout or "{}")
    return told


def render(rows: list[dict[str, Any]]) -> str:
    """Write a table for each count, and one of exponents."""
    sides = [side for side in (*SIDES, LARGE) if any(row["side"] == side for row in rows)]
    cells: dict[tuple[int, int], dict[str, dict[str, Any]]] = {}
    notes = list(dict.fromkeys(f"{row['side']}: {row['failed']}" for row in rows if "failed" in row))
    for row in rows:
        if "costs" in row:
            place = cells.setdefault((row["count"], row["dim"]), {}).setdefault(row["side"], {})
            for step, figures in row["costs"].items():
                for name, value in figures.items():
                    place.setdefault(step, {}).setdefault(name, []).append(value)
    parts = [
        "Processor seconds (of all rounds the least) / MB written / peak MB of anonymous memory (the most)."
    ]
    for (count, dim), table in sorted(cells.items()):
        for side in table.values():
            for step, figures in side.items():
                side[step] = {name: max(values) for name, values in figures.items()}
                for name in {"seconds", "wall"} & set(figures):  # other work on the machine only adds
                    side[step][name] = min(figures[name])
        lines = [[step, *(_cell(table, side, step) for side in sides)] for step in STEPS]
        recall = [f"{table[side]['recall']['of 10']:.3f}" if side in table else "–" for side in sides]
        parts.append(
            f"{count:,} × {dim}\n\n" + markdown_table(["", *sides], [*lines, ["recall@10", *recall]])
        )
    for dim in sorted({dim for _, dim in cells}):
        lines = []
        for step in STEPS:
            lines.append([step])
            for side in sides:
                there = sorted(count for (count, d), table in cells.items() if d == dim and side in table)
                lines[-1].append(_exponents(cells, there, dim, side, step))
        if any(cell != "–" for line in lines for cell in line[1:]):
            said = f"Exponents between a side's first count and its last, {dim} dimensions"
            parts.append(f"{said}\n\n" + markdown_table(["", *sides], lines))
    return "\n\n".join([*parts, *notes])


def _cell(table: dict[str, Any], side: str, step: str) -> str:
    if side not in table:
        return "–"
    return " / ".join(f"{table[side][step][name]:.3g}" for name in FIGURES)


def _exponents(cells: Any, counts: list[int], dim: int, side: str, step: str) -> str:
    if len(counts) < 2:
        return "–"
    ends = [cells[count, dim][side][step] for count in (counts[0], counts[-1])]
    found = []
    for name in FIGURES:
        few, many = (end[name] for end in ends)
        over = math.log(counts[-1] / counts[0])
        found.append(f"{math.log(many / few) / over:.2f}" if min(few, many) > 0 else "–")
    return " / ".join(found)


def main() -> None:
    """Measure each count and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--counts",
        type=int,
        nargs="*",
        default=[10_000, 100_000, 1_000_000],
        help="vectors, in multiples of 10,000 (default 10000 100000 1000000; none, for --large alone)",
    )
    parser.add_argument("--dim", type=int, default=512, help="dimensions (default 512)")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=1, help="how often all is measured (default once)")
    parser.add_argument(
        "--large", action="store_true", help='10,000,000 × 256 in a FaissStore, memory="4 GB"'
    )
    parser.add_argument("--json", type=Path, help="keep the figures there, and tables beside it (.md)")
    parser.add_argument(
        "--child", nargs=4, metavar=("STEP", "SIDE", "FOLDER", "COUNT"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    if arguments.child:
        step, side, folder, count = arguments.child
        child(step, side, Path(folder), int(count), arguments.dim)
        return
    if any(count < BATCH or count % BATCH for count in arguments.counts):
        parser.error(f"--counts must be multiples of {BATCH:,}")
    with Findings(arguments.json, render) as found:
        if arguments.json and arguments.json.exists():
            found.rows = [row for row in json.loads(arguments.json.read_text())["rows"] if "costs" in row]
        reasons = {side: absent(side) for side in arguments.sides}
        for side, reason in reasons.items():
            if reason is not None:
                found.add(count=0, dim=arguments.dim, side=side, failed=reason)
        sides = [side for side, reason in reasons.items() if reason is None]
        cases = [(count, arguments.dim, sides) for count in arguments.counts]
        for count, dim, chosen in cases + [(10_000_000, 256, [LARGE])] * arguments.large:
            measure(found, count, dim, chosen, arguments.rounds)


if __name__ == "__main__":
    main()
