"""Approximate indexes in a store's folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from clipretrieval.stores._ann import DEFAULT_RECALL, AnnRows
from clipretrieval.stores._ann_index import AnnIndex
from clipretrieval.stores._ann_state import AnnState
from clipretrieval.stores._flat import FlatRows, read_index
from clipretrieval.stores._folder import Part
from clipretrieval.stores._folder_manifest import FolderManifest, damaged
from clipretrieval.stores._rows import dump_array

__all__ = ["index_parts", "kept_target", "read_ann"]


def index_parts(rows: AnnRows) -> tuple[dict[str, Part], dict[str, Any]]:
    """Return the files of an approximate index and what the manifest says of it."""
    index, state = rows.index, rows.state
    if index is None or state is None:
        return {}, {"target": rows.target, "built": None}
    parts = {"ann": Part("ann", ".faiss", index.dump)}
    labels = index.labels
    if labels is not None:

        def dump(write: Callable[[bytes], object]) -> None:
            dump_array(labels, write)

        parts["ann_labels"] = Part("ann", ".npy", dump)
    return parts, {"target": rows.target, "built": asdict(state)}


def read_ann(
    folder: Path, manifest: FolderManifest, flat: FlatRows, target: float | None, mmap: bool
) -> AnnRows:
    """Return rows with the approximate index that the manifest names, if any.

    Parameters
    ----------
    folder : Path
    manifest : FolderManifest
    flat : FlatRows
        The vectors.
    target : float or None
        The recall to reach; None for that of the folder.
    mmap : bool
        Whether to map the index instead of reading it.

    Raises
    ------
    StoreCorruptedError
        If the index cannot be read or does not go with the vectors.
    """
    entry, built = manifest.files.get("ann"), (manifest.state or {}).get("built")
    rows = AnnRows(flat, manifest.metric, manifest.index, target or kept_target(manifest.state))
    if entry is None or built is None:
        return rows
    path = folder / entry.name
    try:
        state = AnnState(**built)
        index = AnnIndex(state.factory, read_index(path, mmap), _read_labels(folder, manifest))
    except (TypeError, IndexError) as error:
        raise damaged(path, f"what goes with it is malformed ({error})") from error
    expected = manifest.count + index.tombstones
    if index.total != expected or index.dim != flat.dim:
        found = f"{index.total} vectors of dimension {index.dim}"
        raise damaged(path, f"it holds {found}, not {expected} of dimension {flat.dim}")
    rows.adopt(index, state)
    return rows


def kept_target(state: dict[str, Any] | None) -> float:
    """Return the recall to reach that a manifest names."""
    return float((state or {}).get("target", DEFAULT_RECALL))


def _read_labels(folder: Path, manifest: FolderManifest) -> Any:
    entry = manifest.files.get("ann_labels")
    if entry is None:
        return None
    path = folder / entry.name
    try:
        labels = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise damaged(path, f"NumPy cannot read it ({error})") from error
    if labels.dtype != np.int64 or labels.shape != (manifest.count,):
        raise damaged(path, f"it does not hold {manifest.count} labels")
    return labels
