"""Rows in a flat FAISS index."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from clipretrieval._util.forks import no_inherited_threads
from clipretrieval.stores.exact import DoubleArray, IndexArray, Shortlist
from clipretrieval.stores.faiss.format import MalformedIndexError, UnknownFormatError, check_index_file
from clipretrieval.stores.local.folder_manifest import FolderManifest, damaged
from clipretrieval.stores.local.table import Moves
from clipretrieval.types import FloatArray, Metric

__all__ = ["CAN_MAP", "PIECE_BYTES", "FlatRows", "faiss_alone", "read_index", "read_rows"]

CAN_MAP = hasattr(faiss, "IO_FLAG_MMAP_IFC") and hasattr(faiss, "ZeroCopyIOReader")
# Each piece of a file waits for the interpreter, so they are large.
PIECE_BYTES = 1 << 22
UNIT_ROUNDOFF = 2.0**-24
# Matrix products go through long vectors in pieces of at most about this many terms, each summed on its own.
LONGEST_SUM = 512
# How many times quicker a matrix product is than FAISS's loop over pairs; measured from 256 dimensions up.
PRODUCT_GAIN = 6


def faiss_alone() -> AbstractContextManager[None]:
    """Have FAISS compute without threads that stayed behind at a fork."""
    return no_inherited_threads(faiss.omp_get_max_threads, faiss.omp_set_num_threads)


class FlatRows:
    """Rows in an ``IndexFlat``, which searches them by matrix products in float32.

    The index numbers its vectors as the rows are numbered, so no id map is needed: a replaced vector is
    written over in place, and a removed one has its place taken by the last.

    Parameters
    ----------
    dim : int
    metric : Metric
        Under the cosine metric the rows must be of norm 1.
    """

    def __init__(self, dim: int, metric: Metric) -> None:
        self._metric = metric
        self._index: Any = faiss.IndexFlatL2(dim) if metric is Metric.L2 else faiss.IndexFlatIP(dim)

    @property
    def dim(self) -> int:
        return int(self._index.d)

    def view(self) -> FloatArray:
        count, dim = int(self._index.ntotal), self.dim
        if not count:
            return np.empty((0, dim), dtype=np.float32)
        flat: FloatArray = faiss.rev_swig_ptr(self._index.get_xb(), count * dim)
        return flat.reshape(count, dim)

    def write(self, vectors: FloatArray, places: IndexArray) -> None:
        count = int(self._index.ntotal)
        old = places < count
        if not old.any():
            self._index.add(vectors)
            return
        if not old.all():
            self._index.add(vectors[~old])
        self.view()[places[old]] = vectors[old]

    def remove(self, moves: Moves) -> None:
        view = self.view()
        if len(view) > moves.kept:
            view[moves.targets] = view[moves.sources]
            self._index.remove_ids(faiss.IDSelectorRange(moves.kept, len(view)))

    def restore(self, vectors: FloatArray, places: IndexArray, count: int) -> None:
        view = self.view()
        view[places] = vectors
        if len(view) > count:
            self._index.remove_ids(faiss.IDSelectorRange(count, len(view)))

    def drop_index(self) -> None:
        """Do nothing: the index is the rows."""

    def is_whole(self, count: int) -> bool:
        return int(self._index.ntotal) == count

    def shortlist(self, longest: float) -> Shortlist:
        """Return FAISS's own search, with a bound on its error.

        FAISS takes ``‖q‖² + ‖x‖² − 2 q·x`` in float32, whose rounding grows with the norms and not with the
        distance: vectors far from the origin and close to each other may come in any order.
        """
        dim = self.dim
        relative = (min(dim, LONGEST_SUM) + 16) * UNIT_ROUNDOFF
        # What may be lost where products are too small for float32.
        smallest = 4 * dim * float(np.finfo(np.float32).tiny)

        def search(queries: FloatArray, length: int) -> tuple[DoubleArray, IndexArray, DoubleArray]:
            values, found = _search_by_products(self._index, queries, length)
            norms = np.sqrt(np.einsum("ij,ij->i", queries, queries, dtype=np.float64))
            if self._metric is Metric.L2:
                return values.astype(np.float64), found, relative * np.square(norms + longest) + smallest
            if self._metric is Metric.IP:
                return -values.astype(np.float64), found, relative * norms * longest + smallest
            return 1.0 - values.astype(np.float64), found, np.full(len(queries), relative + smallest)

        return search

    def candidates(self, queries: FloatArray, k: int) -> None:
        """Return None: searches are exact."""

    def dump(self, write: Callable[[bytes], object]) -> None:
        faiss.write_index(self._index, faiss.PyCallbackIOWriter(write, PIECE_BYTES))  # type: ignore[attr-defined]

    def __getstate__(self) -> dict[str, Any]:
        return {"metric": self._metric, "index": faiss.serialize_index(self._index).tobytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._metric = state["metric"]
        self._index = faiss.deserialize_index(np.frombuffer(state["index"], dtype=np.uint8))


def _search_by_products(index: Any, queries: FloatArray, length: int) -> tuple[FloatArray, IndexArray]:
    """Search, with repeated queries added where so few make FAISS forgo a matrix product.

    FAISS compares pair by pair below ``distance_compute_blas_threshold``. Since 1.15 that counts queries
    times dimensions: a hundred queries of 1,024 take four times as long as a hundred and thirty. Before, it
    counted queries and was 20, so that nothing is added there.
    """
    enough = -(-int(faiss.cvar.distance_compute_blas_threshold) // index.d)
    count = len(queries)
    if enough / PRODUCT_GAIN < count < enough:
        queries = np.concatenate([queries, np.repeat(queries[-1:], enough - count, axis=0)])
    values, found = index.search(queries, length)
    return values[:count], found[:count]


def read_index(path: Path, mmap: bool) -> Any:
    """Read or map a FAISS index.

    The file is opened here: FAISS takes no path that is not UTF-8, and on Windows none that is not ASCII.

    Raises
    ------
    StoreCorruptedError
        If FAISS cannot read it.
    """
    try:
        if not mmap:
            with path.open("rb", buffering=0) as file:
                return faiss.read_index(faiss.PyCallbackIOReader(file.read, PIECE_BYTES))  # type: ignore[attr-defined]
        content = np.memmap(path, dtype=np.uint8, mode="r")
        reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(content), content.size)  # type: ignore[attr-defined]
        index: Any = faiss.read_index(reader, faiss.IO_FLAG_MMAP_IFC)
        object.__setattr__(index, "mapped_file", content)  # the index points into it; SWIG refuses new names
        return index
    except (RuntimeError, MemoryError) as error:
        raise damaged(path, f"FAISS cannot read it ({error})") from error


def read_rows(folder: Path, manifest: FolderManifest, mmap: bool = False) -> FlatRows:
    """Read or map the index that `FlatRows.dump` wrote.

    Raises
    ------
    StoreCorruptedError
        If it is not a flat index of as many vectors as the manifest says.
    """
    path, rows = folder / manifest.files["vectors"].name, FlatRows(manifest.dim or 1, manifest.metric)
    try:
        check_index_file(path, rows._index, manifest.count, bounded=False)
    except (MalformedIndexError, UnknownFormatError) as error:
        raise damaged(path, str(error)) from error
    rows._index = read_index(path, mmap)
    return rows
