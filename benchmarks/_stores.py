"""The stores that `stores.py` compares, and what they are filled with."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import faiss
import numpy as np
import numpy.typing as npt
from _clusters import Array
from sklearn.neighbors import NearestNeighbors

from clipretrieval.stores import (
    ChromaStore,
    FaissStore,
    LanceStore,
    MemoryStore,
    PgVectorStore,
    PineconeStore,
    VectorStore,
)
from clipretrieval.testing import PineconeEmulator

Search = Callable[[Array, int], npt.NDArray[Any]]
"""Maps queries and k to the positions of the nearest rows, shape (n_queries, k)."""

BATCH = 10_000


@dataclass
class Side:
    """A store to be measured: how to open it, and where it lies."""

    name: str
    open: Callable[[], VectorStore]
    folder: Path | None = None
    remote: bool = False
    indexed: bool = False
    """Whether an index is to be built once the store is filled."""


def all_sides(
    folder: Path, stack: contextlib.ExitStack, chosen: list[str], *, exactly: bool = False
) -> list[Side]:
    """Return the sides named in `chosen`, by whole names or beginnings; servers run while the stack lasts."""

    def wanted(name: str) -> bool:
        return name in chosen if exactly else name.startswith(tuple(chosen))

    sides = [Side("memory", MemoryStore)]
    for label, index in (
        ("exact", "Flat"),
        ("SQfp16", "SQfp16"),
        ("IVF", "IVF1024,SQ8"),
        ("HNSW", "HNSW32"),
    ):
        place = folder / f"faiss-{label}"
        sides.append(Side(f"faiss, {label}", lambda p=place, i=index: FaissStore(p, index=i), place))  # type: ignore[misc]
    place = folder / "chroma"
    sides.append(Side("chroma, folder", lambda p=place: ChromaStore(p), place))  # type: ignore[misc]
    sides.append(
        Side("chroma, folder, graph", lambda: ChromaStore(folder / "graph", exact=False), folder / "graph")
    )
    for label, bound in (("copy", 1 << 62), ("index", 0)):
        place = folder / f"lance-{label}"
        sides.append(
            Side(
                f"lance, {label}",
                lambda p=place, b=bound: LanceStore(p, exact_up_to=b),  # type: ignore[misc]
                place,
                indexed=not bound,
            )
        )
    for label, bound in (("exact", 1 << 62), ("HNSW", 0)):
        sides.append(
            Side(
                f"pgvector, {label}",
                # A database that the environment names: PGHOST, PGDATABASE, …
                lambda t=label, b=bound: PgVectorStore(table=f"bench-{t}-{os.getpid()}", exact_up_to=b),  # type: ignore[misc]
                remote=True,
                indexed=not bound,
            )
        )
    sides = [side for side in sides if wanted(side.name)]
    if wanted("chroma, server, graph"):
        port = stack.enter_context(_chroma_server(folder / "served"))
        sides.append(
            Side(
                "chroma, server, graph",
                lambda: ChromaStore(host="127.0.0.1", port=port, exact=False),
                remote=True,
            )
        )
    if wanted("pinecone, emulator"):
        emulator = stack.enter_context(PineconeEmulator("benchmark"))
        sides.append(
            Side(
                "pinecone, emulator",
                lambda: PineconeStore("benchmark", host=emulator.host, api_key="benchmark"),
                remote=True,
            )
        )
    return sides


@contextlib.contextmanager
def _chroma_server(folder: Path) -> Iterator[int]:
    """Run a real Chroma server over a folder and yield its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = shutil.which("chroma", path=str(Path(sys.executable).parent)) or "chroma"
    server = subprocess.Popen(
        [command, "run", "--path", str(folder), "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urlopen(f"http://127.0.0.1:{port}/api/v2/heartbeat", timeout=1):
                    break
            except (URLError, OSError):
                if time.monotonic() > deadline or server.poll() is not None:
                    raise
                time.sleep(0.2)
        yield port
    finally:
        server.terminate()
        server.wait()


def fill(store: VectorStore, rows: Array) -> None:
    """Upsert all rows, ten thousand a call, and flush; the id tells the row."""
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        names = [str(place) for place in range(start, start + len(part))]
        store.upsert(names, part, [place % 10 for place in range(start, start + len(part))])
    store.flush()


def searcher(store: VectorStore) -> Search:
    """Search a store that `fill` filled."""

    def search(queries: Array, k: int) -> npt.NDArray[Any]:
        ids = store.search(queries, k).ids
        return np.array([[int(name) if name else -1 for name in row] for row in ids.tolist()])

    return search


def bare_faiss(rows: Array, path: Path) -> tuple[Search, float]:
    """Fill a bare flat index, write and sync it as a flush does; return its search and the time taken."""
    started = time.perf_counter()
    index = faiss.IndexFlatL2(rows.shape[1])
    for start in range(0, len(rows), BATCH):
        index.add(rows[start : start + BATCH])
    faiss.write_index(index, str(path))
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    return lambda queries, k: index.search(queries, k)[1], seconds


def sklearn_brute(rows: Array) -> Search:
    """Return scikit-learn's brute-force search."""
    model = NearestNeighbors(algorithm="brute").fit(rows)

    def search(queries: Array, k: int) -> npt.NDArray[Any]:
        return model.kneighbors(queries, k, return_distance=False)

    return search


def bytes_in(folder: Path | None) -> int | None:
    """Return how many bytes lie in a folder."""
    if folder is None:
        return None
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
