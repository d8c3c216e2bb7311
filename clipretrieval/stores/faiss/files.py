"""Approximate indexes in a store's folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np

from clipretrieval._util.checks import check_number
from clipretrieval._util.warning import warn_caller
from clipretrieval.errors import InvalidInputError, UnsupportedOperationError
from clipretrieval.stores.exact import IndexArray
from clipretrieval.stores.faiss.approximate import DEFAULT_RECALL, AnnRows, AnnState
from clipretrieval.stores.faiss.factory import AUTO, FLAT, check_factory, inner_index, make_index
from clipretrieval.stores.faiss.flat import FlatRows, read_index
from clipretrieval.stores.faiss.format import MalformedIndexError, UnknownFormatError, check_index_file
from clipretrieval.stores.faiss.index import AnnIndex
from clipretrieval.stores.local.folder import GenerationFile
from clipretrieval.stores.local.folder_manifest import MANIFEST_NAME, FolderManifest, damaged
from clipretrieval.stores.local.rows import dump_array, read_array

__all__ = ["check_index_state", "index_files", "kept_target", "read_ann"]

# Much of what FAISS offers is missing in its type information.
faiss: Any = _faiss

# A store's tombstones are at most a quarter of an index; see `AnnRows`.
MOST_TOTAL = 2


def index_files(rows: AnnRows) -> tuple[dict[str, GenerationFile], dict[str, Any]]:
    """Return the files of an approximate index and what the manifest says of it.

    An index whose file could not be checked before FAISS reads it is not kept: it is built anew.
    """
    index, state = rows.index, rows.state
    if index is None or state is None or not index.is_checkable:
        return {}, {"target": rows.target, "built": None}
    parts = {"ann": GenerationFile("ann", ".faiss", index.dump)}
    labels = index.labels
    if labels is not None:

        def dump(write: Callable[[bytes], object]) -> None:
            dump_array(labels, write)

        parts["ann_labels"] = GenerationFile("ann", ".npy", dump)
    known = replace(state, outliers=len(index.outliers))
    if index.limits is not None:
        known = replace(known, code_limit=index.limits.code, list_limit=index.limits.list)
    return parts, {"target": rows.target, "built": asdict(known)}


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
        if state.outliers > manifest.count:
            raise MalformedIndexError(f"{state.outliers} of {manifest.count} vectors cannot be outliers")
        held = manifest.count - state.outliers
        check_index_file(path, template, held, held if lists else manifest.count * MOST_TOTAL, manifest.count)
    except UnknownFormatError as error:
        warn_caller(
            f"{path} cannot be checked by this version of clipretrieval and is not used: {error}. Searches "
            "are exact until the store is next written to and flushed"
        )
        return rows
    except (MalformedIndexError, InvalidInputError, UnsupportedOperationError) as error:
        raise damaged(path, str(error)) from error
    # What is mapped cannot be changed, as the lists of an index that may hold outliers are.
    raw = read_index(path, mmap and (state.limits is not None or not lists))
    kept = None
    if labels is not None:
        kept = _read_labels(folder / labels.name, manifest.count, int(raw.ntotal), state.outliers)
    outliers = _rows_left_out(raw, manifest.count) if kept is None else np.flatnonzero(kept < 0)
    index = AnnIndex(state.factory, raw, kept, outliers, state.limits)
    if state.limits is None and not index.leave_out(flat.view(), state.built_with) and state.written:
        warn_caller(
            f"{path} holds vectors that came after the index {state.factory!r} was trained, and its codes do "
            "not tell whether it represents them. Searches are exact until the store is next written to and "
            "flushed"
        )
        return rows
    rows.index, rows.state = index, state
    return rows


def kept_target(state: dict[str, Any] | None) -> float:
    """Return the recall to reach that a manifest names."""
    return float((state or {}).get("target", DEFAULT_RECALL))


def _has_lists(index: Any) -> bool:
    return hasattr(inner_index(index), "nlist")


def _rows_left_out(index: Any, count: int) -> IndexArray:
    """Return the rows that are in no inverted list."""
    if int(index.ntotal) == count:
        return np.empty(0, dtype=np.int64)
    lists, out = inner_index(index).invlists, np.ones(count, dtype=bool)
    for number in range(lists.nlist):
        size = lists.list_size(number)
        if size:
            out[faiss.rev_swig_ptr(lists.get_ids(number), size)] = False
    return np.flatnonzero(out)


def _read_labels(path: Path, count: int, total: int, outliers: int) -> Any:
    labels = read_array(path, np.int64, (count,))
    held = labels[labels != -1]
    if not np.all((held >= 0) & (held < total)) or len(np.unique(held)) != count - outliers:
        raise damaged(path, f"its labels are not those of {count - outliers} vectors among {total}")
    return labels
