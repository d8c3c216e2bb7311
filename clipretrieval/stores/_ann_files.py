"""Approximate indexes in a store's folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from clipretrieval._checks import check_number
from clipretrieval._warning import warn_caller
from clipretrieval.errors import InvalidInputError, UnsupportedOperationError
from clipretrieval.stores._ann import DEFAULT_RECALL, AnnRows
from clipretrieval.stores._ann_format import check_index_file
from clipretrieval.stores._ann_index import AnnIndex
from clipretrieval.stores._ann_reader import MalformedIndexError, UnknownFormatError
from clipretrieval.stores._ann_state import AnnState
from clipretrieval.stores._factory import AUTO, FLAT, check_factory, inner_index, make_index
from clipretrieval.stores._flat import FlatRows, read_index
from clipretrieval.stores._folder import Part
from clipretrieval.stores._folder_manifest import MANIFEST_NAME, FolderManifest, damaged
from clipretrieval.stores._rows import dump_array, read_array

__all__ = ["check_index_state", "index_parts", "kept_target", "read_ann"]

# A store's tombstones are at most a quarter of an index; see `AnnRows`.
MOST_TOTAL = 2


def index_parts(rows: AnnRows) -> tuple[dict[str, Part], dict[str, Any]]:
    """Return the files of an approximate index and what the manifest says of it.

    An index whose file could not be checked before FAISS reads it is not kept: it is built anew.
    """
    index, state = rows.index, rows.state
    if index is None or state is None or not index.is_checkable:
        return {}, {"target": rows.target, "built": None}
    parts = {"ann": Part("ann", ".faiss", index.dump)}
    labels = index.labels
    if labels is not None:

        def dump(write: Callable[[bytes], object]) -> None:
            dump_array(labels, write)

        parts["ann_labels"] = Part("ann", ".npy", dump)
    return parts, {"target": rows.target, "built": asdict(state)}


def check_index_state(folder: Path, manifest: FolderManifest) -> None:
    """Check what a manifest says of the index, whether or not one is built.

    Raises
    ------
    StoreCorruptedError
        If a store cannot have written it.
    """
    state = manifest.state or {}
    try:
        if check_factory(manifest.index) != manifest.index:
            raise InvalidInputError("the index is not in the form that a store keeps")
        if manifest.index not in (AUTO, FLAT) and manifest.dim is not None:
            make_index(manifest.index, manifest.dim, manifest.metric)
        check_number(state.get("target", DEFAULT_RECALL), "target", above=0, most=1)
        built = state.get("built")
        if (built is None) != ("ann" not in manifest.files):
            raise InvalidInputError("the file of an index and what is known of it do not go together")
        if built is not None:
            AnnState.from_values(built)
    except (InvalidInputError, UnsupportedOperationError) as error:
        raise damaged(folder / MANIFEST_NAME, str(error)) from error


def read_ann(
    folder: Path, manifest: FolderManifest, flat: FlatRows, target: float | None, mmap: bool
) -> AnnRows:
    """Return rows with the approximate index that the manifest names, if any.

    Parameters
    ----------
    folder : Path
    manifest : FolderManifest
        One that `check_index_state` has seen.
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

    Warns
    -----
    ClipRetrievalWarning
        If the index is of a form that cannot be checked, and is left alone.
    """
    entry, built = manifest.files.get("ann"), (manifest.state or {}).get("built")
    rows = AnnRows(flat, manifest.metric, manifest.index, target or kept_target(manifest.state))
    if entry is None or built is None:
        return rows
    path, state = folder / entry.name, AnnState.from_values(built)
    labels = manifest.files.get("ann_labels")
    try:
        template = make_index(state.factory, flat.dim, manifest.metric)
        lists = _has_lists(template)
        if lists != (labels is None):
            raise MalformedIndexError("the labels of its vectors are missing, or too many")
        check_index_file(path, template, manifest.count, manifest.count * (1 if lists else MOST_TOTAL))
    except UnknownFormatError as error:
        warn_caller(
            f"{path} cannot be checked by this version of clipretrieval and is not used: {error}. Searches "
            "are exact until the store is next written to and flushed"
        )
        return rows
    except (MalformedIndexError, InvalidInputError, UnsupportedOperationError) as error:
        raise damaged(path, str(error)) from error
    index = read_index(path, mmap)
    kept = None if labels is None else _read_labels(folder / labels.name, manifest.count, int(index.ntotal))
    rows.adopt(AnnIndex(state.factory, index, kept), state)
    return rows


def kept_target(state: dict[str, Any] | None) -> float:
    """Return the recall to reach that a manifest names."""
    return float((state or {}).get("target", DEFAULT_RECALL))


def _has_lists(index: Any) -> bool:
    return hasattr(inner_index(index), "nlist")


def _read_labels(path: Path, count: int, total: int) -> Any:
    labels = read_array(path, np.int64, (count,))
    if not np.all((labels >= 0) & (labels < total)) or len(np.unique(labels)) < count:
        raise damaged(path, f"its labels are not those of {count} vectors among {total}")
    return labels
