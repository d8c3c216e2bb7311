"""Approximate indexes in a store's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np

from clipretrieval._util.checks import check_number
from clipretrieval._util.warning import warn_caller
from clipretrieval.errors import InvalidInputError, UnsupportedOperationError
from clipretrieval.stores.exact import IndexArray
from clipretrieval.stores.faiss.approximate import DEFAULT_RECALL
from clipretrieval.stores.faiss.factory import FLAT, check_factory, inner_index, is_auto, make_index
from clipretrieval.stores.faiss.format import MalformedIndexError, UnknownFormatError, check_index_file
from clipretrieval.stores.faiss.index import PIECE_BYTES, AnnIndex
from clipretrieval.stores.faiss.state import AnnState
from clipretrieval.stores.local.folder_manifest import MANIFEST_NAME, FileEntry, FolderManifest, damaged
from clipretrieval.stores.local.mapped_file import MappedFile, unused, write_file
from clipretrieval.stores.local.rows import dump_array, read_array
from clipretrieval.types import Metric

__all__ = ["CAN_MAP", "check_index_state", "copy_file", "kept_target", "read_ann", "write_ann"]

# Much of what FAISS offers is missing in its type information.
faiss: Any = _faiss

CAN_MAP = hasattr(faiss, "IO_FLAG_MMAP_IFC") and hasattr(faiss, "ZeroCopyIOReader")
# A store's tombstones are at most a quarter of an index; see `IndexUpkeep`.
MOST_TOTAL = 2


def write_ann(folder: Path, generation: int, index: AnnIndex, count: int) -> dict[str, FileEntry]:
    """Write the files of an approximate index over so many rows, and return them by their roles.

    There are none where it could not be checked before FAISS reads it, or would then be refused.

    Raises
    ------
    OSError
        If one cannot be written.
    """
    if not index.is_checkable or index.total > MOST_TOTAL * count:
        return {}
    path, labels = unused(folder, f"ann-{generation}", ".faiss"), index.labels
    files = {"ann": write_file(path, index.dump)}
    if labels is not None:
        beside = unused(folder, f"ann-{generation}", ".npy")
        files["ann_labels"] = write_file(beside, lambda write: dump_array(labels, write))
    return files


def copy_file(folder: Path, generation: int, file: MappedFile, entry: FileEntry) -> FileEntry:
    """Write the content of an index's file into another folder.

    Raises
    ------
    StoreCorruptedError
        If it is not as it was written.
    OSError
        If it cannot be written.
    """

    def dump(write: Callable[[bytes], object]) -> None:
        for piece in file.pieces():
            write(piece.tobytes())

    copied = write_file(unused(folder, f"ann-{generation}", file.path.suffix), dump)
    if copied.sha256 != entry.sha256:
        raise damaged(file.path, "its content does not match its checksum")
    return copied


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
        if manifest.index != FLAT and not is_auto(manifest.index) and manifest.dim is not None:
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
    files: Mapping[str, MappedFile], state: AnnState, dim: int, metric: Metric, count: int, *, mmap: bool
) -> AnnIndex | None:
    """Return an approximate index over so many rows.

    Parameters
    ----------
    files : mapping of str to MappedFile
        Verified.
    state : AnnState
    dim : int
    metric : Metric
    count : int
    mmap : bool
        Whether to map the index instead of reading it: it then cannot be changed.

    Returns
    -------
    AnnIndex or None
        None where it is of a form that cannot be checked.

    Raises
    ------
    StoreCorruptedError
        If the index cannot be read or does not go with the vectors.

    Warns
    -----
    ClipRetrievalWarning
        If it cannot be checked.
    """
    file, labels = files["ann"], files.get("ann_labels")
    try:
        template = make_index(state.factory, dim, metric)
        lists = _has_lists(template)
        if lists != (labels is None):
            raise MalformedIndexError("the labels of its vectors are missing, or too many")
        if state.outliers > count:
            raise MalformedIndexError(f"{state.outliers} of {count} vectors cannot be outliers")
        held = count - state.outliers
        check_index_file(file.content, template, held, held if lists else count * MOST_TOTAL, count)
    except UnknownFormatError as error:
        warn_caller(
            f"{file.path} cannot be checked by this version of clipretrieval and is not used: {error}. "
            "Searches are exact until the store is next written to and flushed"
        )
        return None
    except (MalformedIndexError, InvalidInputError, UnsupportedOperationError) as error:
        raise damaged(file.path, str(error)) from error
    raw = _read_index(file, mmap and CAN_MAP)
    kept = None
    if labels is not None:
        kept = _read_labels(labels, count, int(raw.ntotal), state.outliers)
    outliers = _rows_left_out(raw, count) if kept is None else np.flatnonzero(kept < 0)
    return AnnIndex(state.factory, raw, kept, outliers, state.limits)


def _read_index(file: MappedFile, mmap: bool) -> Any:
    """Read or map a FAISS index; its path is not given to FAISS, which takes none that is not UTF-8."""
    content = file.content
    try:
        if not mmap:
            place = 0

            def read(size: int) -> bytes:
                nonlocal place
                place += size
                return content[place - size : place].tobytes()

            return faiss.read_index(faiss.PyCallbackIOReader(read, PIECE_BYTES))
        reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(content), content.size)
        index: Any = faiss.read_index(reader, faiss.IO_FLAG_MMAP_IFC)
        object.__setattr__(index, "mapped_file", content)  # the index points into it; SWIG refuses new names
        return index
    except (RuntimeError, MemoryError) as error:
        raise damaged(file.path, f"FAISS cannot read it ({error})") from error


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


def _read_labels(file: MappedFile, count: int, total: int, outliers: int) -> Any:
    labels = read_array(file, "<i8", (count,))
    held = labels[labels != -1]
    if not np.all((held >= 0) & (held < total)) or len(np.unique(held)) != count - outliers:
        raise damaged(file.path, f"its labels are not those of {count - outliers} vectors among {total}")
    return labels
