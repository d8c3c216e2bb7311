"""Measure every store beside bare FAISS and scikit-learn: filling, searching, recall, reopening.

Run ``python benchmarks/stores.py --json s.json``. All sides answer the same queries, in turns, in one
process; ratios are taken round by round. Memory and reopening are measured in a fresh process each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from _clusters import Array, clustered
from _stores import Search, Side, all_sides, bare_faiss, bytes_in, fill, searcher, sklearn_brute

from clipretrieval import ClipRetrievalWarning
from clipretrieval.stores import VectorStore

BARE, BRUTE = "bare FAISS", "scikit-learn"
SIDES = ("memory", "faiss", "chroma", "lance", "pinecone")
"""What needs no server of the user's; add pgvector where the environment names one."""
SINGLE = 50
"""Queries asked one by one."""


def main() -> None:
    """Parse the arguments, measure each dimension, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--dims", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--stores", nargs="+", default=list(SIDES), help="names, or how they begin: 'faiss, exact' chroma"
    )
    parser.add_argument("--child", nargs=3, metavar=("NAME", "FOLDER", "DIM"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, folder, dim = arguments.child
        print(json.dumps(_reopened(name, folder, int(dim), arguments.count)))
        return
    found = {
        "machine": _machine(),
        "count": arguments.count,
        "queries": arguments.queries,
        "rounds": arguments.rounds,
        "dims": {str(dim): _measure(arguments, dim) for dim in arguments.dims},
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    print(render(found))


def _measure(arguments: argparse.Namespace, dim: int) -> dict[str, Any]:
    rows, queries = clustered(arguments.count, dim, arguments.queries)
    table: dict[str, dict[str, Any]] = {}
    # Some sides are there to measure the graph that stores warn of.
    warnings.simplefilter("ignore", ClipRetrievalWarning)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        searches: dict[str, Search] = {}
        for side in all_sides(folder, stack, arguments.stores):
            _say(f"{dim}: filling {side.name}")
            store, table[side.name] = _fill_side(side, rows, folder, arguments.count)
            stack.callback(store.close)
            searches[side.name] = searcher(store)
        searches[BARE] = bare_faiss(rows, folder / "bare.faiss")[0]
        searches[BRUTE] = sklearn_brute(rows)
        _search_in_turns(searches, table, queries, arguments.rounds)
    return table


def _fill_side(side: Side, rows: Array, folder: Path, count: int) -> tuple[VectorStore, dict[str, Any]]:
    """Fill a store beside a bare index that is filled and written, reopen it, and say what that took."""
    _, bare_seconds = bare_faiss(rows, folder / "bare.faiss")
    store = side.open()
    started = time.perf_counter()
    fill(store, rows)
    seconds = time.perf_counter() - started
    figures: dict[str, Any] = {}
    if side.indexed:
        started = time.perf_counter()
        store.build_index()  # type: ignore[attr-defined]
        figures["index_s"] = time.perf_counter() - started
    started = time.perf_counter()
    store.upsert(["one more"], rows[:1] + 9, [0])
    store.flush()
    figures["one_upsert_ms"] = 1e3 * (time.perf_counter() - started)
    store.delete(["one more"])
    figures |= {
        "upserts_per_s": len(rows) / seconds,
        "fill_time_over_bare": seconds / bare_seconds,
        "disk_bytes": None,
    }
    if side.remote:
        return store, figures
    if side.folder is not None:
        store.close()
        figures["disk_bytes"] = bytes_in(side.folder)
    command = [sys.executable, __file__, "--count", str(count), "--child", side.name, str(folder)]
    shown = subprocess.run([*command, str(rows.shape[1])], check=True, stdout=subprocess.PIPE).stdout
    figures |= json.loads(shown)
    return side.open() if side.folder is not None else store, figures


def _reopened(name: str, folder: str, dim: int, count: int) -> dict[str, float | None]:
    """Open a filled store in this fresh process and search once; return seconds and bytes of memory."""
    rows, _ = clustered(count if name == "memory" else 1, dim, 1)
    with contextlib.ExitStack() as stack:
        (side,) = all_sides(Path(folder), stack, [name], exactly=True)
        before, started = _resident(), time.perf_counter()
        store = side.open()
        seconds = time.perf_counter() - started
        if side.folder is None:
            fill(store, rows)
        store.search(rows[:1], 1)
        memory = _resident() - before
        store.close()
    return {"open_s": None if side.folder is None else seconds, "memory_bytes": memory}


def _resident() -> int:
    """Return this process's resident memory in bytes; 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


def _search_in_turns(
    searches: dict[str, Search], table: dict[str, dict[str, Any]], queries: Array, rounds: int
) -> None:
    """Let all sides answer the same queries in turns, batch and single; the first round warms up."""
    truth = searches[BRUTE](queries, 10)
    times: dict[str, dict[str, list[float]]] = {
        name: {"batch1": [], "batch10": [], "single1": []} for name in searches
    }
    for number in range(rounds + 1):
        _say(f"round {number} of {rounds}")
        for name, search in searches.items():
            started = time.perf_counter()
            search(queries, 1)
            first = time.perf_counter()
            found = search(queries, 10)
            tenth = time.perf_counter()
            for query in queries[:SINGLE]:
                search(query[None], 1)
            last = time.perf_counter()
            if number:
                times[name]["batch1"].append((first - started) / len(queries))
                times[name]["batch10"].append((tenth - first) / len(queries))
                times[name]["single1"].append((last - tenth) / min(SINGLE, len(queries)))
                continue
            row = table.setdefault(name, {})
            row["recall_at_1"] = float((found[:, 0] == truth[:, 0]).mean())
            hits = [len(set(a) & set(b)) for a, b in zip(found.tolist(), truth.tolist(), strict=True)]
            row["recall_at_10"] = sum(hits) / (10 * len(queries))
    for name, taken in times.items():
        for part, seconds in taken.items():
            table[name][f"{part}_ms"] = 1e3 * statistics.median(seconds)
            table[name][f"{part}_ms_range"] = [1e3 * min(seconds), 1e3 * max(seconds)]
            for peer in (BARE, BRUTE):
                pairs = zip(seconds, times[peer][part], strict=True)
                table[name][f"{part} / {peer}"] = statistics.median(own / other for own, other in pairs)


COLUMNS = {
    "upserts_per_s": ("upserts/s", 1.0, ".0f"),
    "fill_time_over_bare": ("fill/bare", 1.0, ".2f"),
    "index_s": ("index s", 1.0, ".1f"),
    "one_upsert_ms": ("1 more ms", 1.0, ".1f"),
    "batch1_ms": ("k=1 ms", 1.0, ".2f"),
    f"batch1 / {BARE}": ("/bare", 1.0, ".2f"),
    f"batch1 / {BRUTE}": ("/sklearn", 1.0, ".2f"),
    "batch10_ms": ("k=10 ms", 1.0, ".2f"),
    f"batch10 / {BARE}": ("/bare", 1.0, ".2f"),
    "single1_ms": ("single ms", 1.0, ".2f"),
    f"single1 / {BARE}": ("/bare", 1.0, ".2f"),
    "recall_at_1": ("recall@1", 1.0, ".4f"),
    "recall_at_10": ("recall@10", 1.0, ".4f"),
    "disk_bytes": ("disk MB", 1e-6, ".0f"),
    "memory_bytes": ("memory MB", 1e-6, ".0f"),
    "open_s": ("open s", 1.0, ".2f"),
}


def render(found: dict[str, Any]) -> str:
    """Write the figures as a plain table."""
    machine = found["machine"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores; "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
        f"{found['count']:,} vectors, {found['queries']:,} queries at once or one by one, "
        f"medians of {found['rounds']} rounds; times are per query",
    ]
    for dim, table in found["dims"].items():
        lines += ["", f"dimension {dim}", f"{'':<24}" + "".join(f"{c[0]:>10}" for c in COLUMNS.values())]
        for name, row in table.items():
            cells = [
                "-" if row.get(key) is None else f"{row[key] * scale:{spec}}"
                for key, (_, scale, spec) in COLUMNS.items()
            ]
            lines.append(f"{name:<24}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


def _machine() -> dict[str, Any]:
    packages = ("faiss-cpu", "chromadb", "lancedb", "pinecone", "psycopg", "scikit-learn")
    processor = platform.processor()
    with contextlib.suppress(OSError):
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
        processor = names[0].split(":", 1)[1].strip() if names else processor
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
