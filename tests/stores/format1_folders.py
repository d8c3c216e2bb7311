"""Folders of format 1, as versions before format 2 wrote them."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from clipretrieval.stores.local.folder_manifest import _checksum
from clipretrieval.stores.local.format1 import SCHEMA


def write_format1(
    folder: Path,
    ids: Sequence[str],
    vectors: Any,
    labels: Sequence[Any],
    *,
    metric: str = "l2",
    kind: str = "FaissStore",
    index: str = "auto",
    user: Mapping[str, Any] | None = None,
    blobs: Mapping[str, bytes] | None = None,
    ann: Any = None,
    built: Mapping[str, Any] | None = None,
) -> None:
    """Write generation 1 of a store, with the `AnnIndex` that is given and what is known of it."""
    folder.mkdir(parents=True)
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    files = {}
    if len(ids):
        if kind == "MemoryStore":
            np.save(folder / "vectors-1.npy", vectors)
        else:
            rows = (vectors / norms[:, None]).astype(np.float32) if metric == "cosine" else vectors
            flat = (faiss.IndexFlatL2 if metric == "l2" else faiss.IndexFlatIP)(vectors.shape[1])
            flat.add(rows)
            faiss.write_index(flat, str(folder / "index-1.faiss"))
        with closing(sqlite3.connect(folder / "records-1.sqlite", isolation_level=None)) as connection:
            connection.execute(SCHEMA)
            texts = [json.dumps({"place": place}) for place in range(len(ids))]
            rows = zip(range(len(ids)), ids, labels, texts, norms.tolist(), strict=True)
            connection.execute("BEGIN")  # or each row would be a transaction that waits for the disk
            connection.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?)", rows)
            connection.execute("COMMIT")
        vectors_file = "vectors-1.npy" if kind == "MemoryStore" else "index-1.faiss"
        files = {"vectors": entry(folder / vectors_file), "records": entry(folder / "records-1.sqlite")}
    content: dict[str, Any] = {
        "format": "clipretrieval-store",
        "format_version": 1,
        "kind": kind,
        "generation": 1,
        "metric": metric,
        "dim": vectors.shape[1],
        "index": index if kind == "FaissStore" else "Flat",
        "count": len(ids),
        "files": files,
        "manifest": dict(user or {}),
    }
    if index != "Flat" and kind == "FaissStore":
        content["index_state"] = {"target": 0.99, "built": built}
    if ann is not None:
        with open(folder / "ann-1.faiss", "wb") as file:
            ann.dump(file.write)
        files["ann"] = entry(folder / "ann-1.faiss")
        if ann.labels is not None:
            np.save(folder / "ann-1.npy", ann.labels)
            files["ann_labels"] = entry(folder / "ann-1.npy")
    if blobs:
        content["blobs"] = {}
        for name, blob in blobs.items():
            (folder / f"blob-{name}-1.bin").write_bytes(blob)
            content["blobs"][name] = entry(folder / f"blob-{name}-1.bin")
    (folder / "MANIFEST.json").write_text(json.dumps({**content, "sha256": _checksum(content)}, indent=2))


def entry(path: Path) -> dict[str, Any]:
    """Return what a manifest says of a file."""
    data = path.read_bytes()
    return {"name": path.name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
