"""Records for stores in folders, and what a folder and a store say of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from clipretrieval.stores.local.folder_manifest import _checksum

DIM = 8


def normal(seed: int, count: int, dim: int = DIM) -> Any:
    return np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)


def names(count: int, start: int = 0) -> list[str]:
    return [f"é{place}" for place in range(start, start + count)]


def fill(store: Any, count: int, start: int = 0, seed: int = 0, label: Any = "x") -> None:
    metadata = [{"place": place} if place % 3 else {} for place in range(count)]
    store.upsert(names(count, start), normal(seed, count), [label] * count, metadata)


def contents(store: Any, ids: list[str]) -> Any:
    """All that a store tells of some ids, and by a scan, and by an exact search."""
    records = store.get(ids)
    columns = [each.tolist() for each in (records.ids, records.vectors, records.labels)]
    listed = sorted(pair for each in store.scan() for pair in zip(each.ids, each.labels, strict=True))
    counted = Counter(label for _, label in listed)
    assert {label: store.count(label) for label in counted} == counted
    near = store.search(normal(9, 3), 7) if store.count() else None
    found = None if near is None else [each.tolist() for each in (near.ids, near.distances, near.labels)]
    return store.count(), records.metadata, columns, listed, found


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "LOCK"}


def segments_of(folder: Path) -> list[str]:
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    return [each["name"] for each in manifest["segments"]]


def seal(folder: Path, content: dict[str, Any]) -> None:
    """Put a manifest into a folder with the checksum that goes with it."""
    content = {name: value for name, value in content.items() if name != "sha256"}
    (folder / "MANIFEST.json").write_text(json.dumps({**content, "sha256": _checksum(content)}))


def bytes_written(folder: Path, change: Callable[[], object]) -> int:
    """Return the bytes of files that a change has made, and of the manifest, which it has replaced."""
    before = sizes(folder)
    change()
    return sum(size for name, size in sizes(folder).items() if name not in before or name == "MANIFEST.json")


def named(folder: Path) -> set[str]:
    """Return the names of the files that a folder's manifest names, and its own."""
    listed = json.loads((folder / "MANIFEST.json").read_text())
    parts = [*listed["segments"], *listed["files"].values(), *listed.get("blobs", {}).values()]
    return {"MANIFEST.json", *(each["name"] for each in parts)}
