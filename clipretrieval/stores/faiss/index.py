"""An approximate FAISS index whose vectors are numbered as a store's rows are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import faiss as _faiss
import numpy as np
import numpy.typing as npt

from clipretrieval.errors import StoreError
from clipretrieval.stores.exact import DoubleArray, IndexArray, Rows, Shortlist, nearest_rows, row_norms
from clipretrieval.stores.faiss.factory import inner_index, transforms
from clipretrieval.stores.faiss.flat import FlatRows
from clipretrieval.stores.faiss.format import is_checkable
from clipretrieval.stores.local.table import Moves
from clipretrieval.types import FloatArray, Metric

__all__ = ["EXTRA", "PIECE_BYTES", "AnnIndex", "BitArray", "Flat", "Knobs", "Limits"]

# Much of what FAISS offers is missing in its type information.
faiss: Any = _faiss
CodeArray = npt.NDArray[np.uint8]
BitArray = npt.NDArray[np.bool_]

# Each piece of a file waits for the interpreter, so they are large.
PIECE_BYTES = 1 << 22

# Beside k·over_fetch: ties and roundings at the end of a row.
EXTRA = 8
# Vectors are encoded so many at a time: the codes of inverted lists may be as long as the vectors.
PIECE_ROWS = 1 << 13
# A vector is left out where more is lost of it than so many times what is lost of all but a hundredth of the
# vectors that the index was built with; measured on so many of these.
TOLERANCE, SHARE, SAMPLE = 1.5, 0.99, 1024
# Where others may be among them, most are still such vectors, of which seldom more is lost than this.
MEDIAN_TOLERANCE = 3.0
SEED = 0
# The kinds of index to which codes may be added as they are, and come out as if the vectors had been.
_TAKES_CODES = {
    faiss.IndexFlat,
    faiss.IndexIVFFlat,
    faiss.IndexScalarQuantizer,
    faiss.IndexIVFScalarQuantizer,
    faiss.IndexPQ,
    faiss.IndexIVFPQ,
    faiss.IndexResidualQuantizer,
    faiss.IndexLocalSearchQuantizer,
}


class Flat(Protocol):
    """The vectors that an index is over, and an exact search of them."""

    @property
    def dim(self) -> int: ...

    def view(self) -> Rows:
        """Return all rows."""
        ...

    def longest(self) -> float:
        """Return a bound on the norms of the rows."""
        ...

    def shortlist(self, longest: float) -> Shortlist:
        """Return a fast source of candidates, given a bound on the norms of the rows."""
        ...


@dataclass(frozen=True)
class Knobs:
    """What a search may spend: the fields of `IndexInfo` of the same names."""

    nprobe: int | None
    ef_search: int | None
    over_fetch: int

    def fetch(self, k: int) -> int:
        """Return how many candidates a search for `k` neighbors asks for."""
        return k * self.over_fetch + EXTRA


@dataclass(frozen=True)
class Limits:
    """The greatest distortion of vectors that are in an index, as `_Quantizer.encode` measures it.

    Infinity lets in what cannot be measured; 0 keeps it out.
    """

    code: float
    list: float

    def fits(self, lost: DoubleArray) -> npt.NDArray[np.bool_]:
        """Tell which vectors are within them, given their distortion of shape (n, 2)."""
        within: npt.NDArray[np.bool_] = np.all(lost <= (self.code, self.list), axis=1)
        return within

    def closed(self) -> Limits:
        """Return limits that keep out what cannot be measured."""
        code, centroid = (limit if np.isfinite(limit) else 0.0 for limit in (self.code, self.list))
        return Limits(code, centroid)


class AnnIndex:
    """A trained index over rows 0 to n - 1, but for outliers, which its codes or lists do not represent.

    Inverted lists remove vectors, so there a vector's label is its row, and a row that moves is
    added anew. Other indexes number vectors in the order in which they were added, for ever: rows
    and labels are mapped to each other, and the label of a vector that is gone is a tombstone.

    Parameters
    ----------
    factory : str
    index
        The FAISS index.
    labels : ndarray of int64, shape (n,), optional
        Each row's label, -1 for an outlier; None where the index is empty, and for inverted lists.
    outliers : ndarray of int64, shape (m,), optional
        The rows that are not in the index, ascending.
    limits : Limits, optional
        What may be lost of a vector that is added; None before `build` or `leave_out`.
    """

    def __init__(
        self,
        factory: str,
        index: Any,
        labels: IndexArray | None = None,
        outliers: IndexArray | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.factory = factory
        self.outliers = _Outliers(outliers)
        self.limits = limits
        self._index = index
        # Parts of the index, which live as long as it does.
        self._inner = inner_index(index)
        self._wrapped = isinstance(faiss.downcast_index(index), faiss.IndexPreTransform)
        self._ivf = isinstance(self._inner, faiss.IndexIVF)
        self._hnsw = isinstance(self._inner, faiss.IndexHNSW)
        self._quantizer = _Quantizer(index, self._inner)
        self._labels: IndexArray = np.empty(0, dtype=np.int64) if labels is None else labels
        self._rows: IndexArray = np.full(0 if self._ivf else index.ntotal, -1, dtype=np.int64)
        if not self._ivf:
            held = np.flatnonzero(self._labels >= 0)
            self._rows[self._labels[held]] = held
        # What lets a search return only vectors that are rows, and for which removed ones it was made.
        self._alive: tuple[Any, BitArray | None] = None, None

    @property
    def lists(self) -> int:
        """The number of inverted lists; 0 where there are none."""
        return int(self._inner.nlist) if self._ivf else 0

    @property
    def is_graph(self) -> bool:
        """Whether ``ef_search`` has a meaning."""
        return self._hnsw

    @property
    def keeps_vectors(self) -> bool:
        """Whether the index compares the vectors themselves, and not codes of them."""
        return self._quantizer.is_lossless

    @property
    def is_checkable(self) -> bool:
        """Whether the index may be kept in a file, which is checked before it is read."""
        return is_checkable(self._index)

    @property
    def tombstones(self) -> int:
        """The number of vectors in the index that are no rows any more."""
        return 0 if self._ivf else len(self._rows) - len(self._labels) + len(self.outliers)

    @property
    def count(self) -> int:
        """The number of rows, outliers included."""
        return self.total + len(self.outliers) if self._ivf else len(self._labels)

    @property
    def total(self) -> int:
        """The number of vectors in the index, tombstones included."""
        return int(self._index.ntotal)

    def is_whole(self, count: int) -> bool:
        """Tell whether it is over `count` rows, and what is known of them agrees."""
        return self.count == count and (self._ivf or len(self._rows) == self.total)

    @property
    def dim(self) -> int:
        """The vectors' dimension."""
        return int(self._index.d)

    @property
    def labels(self) -> IndexArray | None:
        """Each row's label, if they are not the rows themselves."""
        return None if self._ivf else self._labels

    def search(
        self, queries: FloatArray, k: int, fetch: int, knobs: Knobs, removed: BitArray | None = None
    ) -> IndexArray:
        """Return about `fetch` rows, best first, among them probably the `k` nearest; -1 where there is none.

        Parameters
        ----------
        queries : ndarray of float32, shape (n_queries, dim)
        k, fetch : int
        knobs : Knobs
        removed : ndarray of bool, optional
            Which of the rows not to return; an array that never changes.

        Raises
        ------
        StoreError
            If FAISS fails.
        """
        length = min(fetch, self.total)
        if not (self._ivf or self._hnsw):
            more = self.tombstones + (0 if removed is None else int(np.count_nonzero(removed)))
            length = min(fetch + more, self.total)
        try:
            parameters = self._parameters(k, length, knobs, removed)
            _, found = self._index.search(queries, length, params=parameters)
        except (RuntimeError, MemoryError) as error:
            raise StoreError(f"FAISS could not search its index {self.factory!r}: {error}") from error
        if self._ivf:
            return np.asarray(found, dtype=np.int64)
        found = np.where(found < 0, -1, self._rows[found])
        return found if removed is None else np.where(removed[found], -1, found)

    def build(self, rows: Rows) -> None:
        """Add all rows to the empty, trained index, after measuring what is usually lost of them."""
        self.limits = self._quantizer.limits(rows)
        self.write(rows, np.arange(len(rows)))
        self.limits = self.limits.closed()

    def leave_out(self, rows: Rows, built_with: int) -> bool:
        """Remove the outliers from an index that was written without looking for any.

        Parameters
        ----------
        rows : ndarray of float32, shape (n, dim)
            All of them.
        built_with : int
            The number of rows when it was built: most of the first so many are the same.

        Returns
        -------
        bool
            False where its codes do not tell which rows are outliers.
        """
        limits = self._quantizer.limits(rows[:built_with], mixed=True)
        fits = np.ones(len(rows), dtype=bool)
        for part in _slices(len(rows)):
            fits[part] = limits.fits(self._quantizer.encode(rows[part])[1])
        places = np.flatnonzero(~fits)
        self._leave(places)
        self.outliers.replace(places, fits[places])
        self.limits = limits.closed()
        return self.limits == limits

    def write(self, vectors: Rows, places: IndexArray) -> None:
        """Put vectors under their rows, in the place of those that were there; outliers are left out."""
        if self.limits is None:
            raise ValueError("what may be lost of a vector is not known")
        if not self._ivf:
            more = int(places.max()) + 1 - len(self._labels)
            self._labels = np.concatenate([self._labels, np.full(max(0, more), -1, dtype=np.int64)])
        self._leave(places[places < self.count])
        fits, by_codes = np.ones(len(places), dtype=bool), self._quantizer.takes_codes
        for part in _slices(len(places)):
            codes, lost = self._quantizer.encode(vectors[part])
            fits[part] = self.limits.fits(lost)
            if by_codes:
                self._quantizer.add(codes[fits[part]], places[part][fits[part]])
        kept = places[fits]
        if not by_codes:
            for part in [slice(None)] if isinstance(vectors, np.ndarray) else _slices(len(places)):
                self._add(vectors[part][fits[part]], places[part][fits[part]])
        if not self._ivf:
            start = len(self._rows)
            self._labels[kept] = np.arange(start, start + len(kept))
            self._rows, self._alive = np.concatenate([self._rows, kept]), (None, None)
        self.outliers.replace(places, fits)

    def set_aside(self, places: IndexArray) -> None:
        """Take rows out of the index, so that every search compares them exactly."""
        places = np.setdiff1d(places, self.outliers.rows)
        self._leave(places)
        self.outliers.replace(places, np.zeros(len(places), dtype=bool))

    def remove(self, moves: Moves, moved: FloatArray) -> None:
        """Follow rows that were moved; `moved` are the vectors of ``moves.sources``."""
        known = ~np.isin(moves.sources, self.outliers.rows)
        sources, targets = moves.sources[known], moves.targets[known]
        dropped = np.concatenate([moves.targets, np.arange(moves.kept, self.count)])
        if self._ivf:
            self._leave(dropped)
            self._add(moved[known], targets)
        else:
            labels = self._labels[sources]
            self._labels[sources] = -1
            self._leave(dropped)
            self._labels[targets], self._rows[labels] = labels, targets
            self._labels = self._labels[: moves.kept].copy()
        self.outliers.move(moves)

    def _add(self, vectors: FloatArray, places: IndexArray) -> None:
        if len(places) and self._ivf:
            self._index.add_with_ids(vectors, places)
        elif len(places):
            self._index.add(vectors)

    def _leave(self, places: IndexArray) -> None:
        """Take the vectors of rows out of the index, or make tombstones of them."""
        if self._ivf:
            if len(places):
                self._index.remove_ids(faiss.IDSelectorBatch(places))
            return
        gone = self._labels[places]
        self._rows[gone[gone >= 0]] = -1
        self._labels[places], self._alive = -1, (None, None)

    def number_through(self, removed: BitArray) -> None:
        """Take out removed rows, and give the others the numbers that they have without them."""
        numbers, left = np.cumsum(~removed) - 1, ~removed
        self._leave(np.flatnonzero(removed))
        if self._ivf:
            lists = self._inner.invlists
            for number in range(lists.nlist):
                size = lists.list_size(number)
                if size:
                    ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
                    ids[:] = numbers[ids]
        else:
            self._labels = self._labels[left]
            held = self._rows >= 0
            self._rows[held] = numbers[self._rows[held]]
        rows = self.outliers.rows
        self.outliers = _Outliers(numbers[rows[left[rows]]])

    def leave_to_others(self, count: int) -> None:
        """Go on over `count` rows, of which those that are new are outliers."""
        new = np.arange(self.count, count)
        if not self._ivf:
            self._labels = np.concatenate([self._labels, np.full(len(new), -1, dtype=np.int64)])
        self.outliers = _Outliers(np.concatenate([self.outliers.rows, new]))

    def dump(self, write: Callable[[bytes], object]) -> None:
        """Write the index in FAISS's format."""
        faiss.write_index(self._index, faiss.PyCallbackIOWriter(write, PIECE_BYTES))

    def _parameters(self, k: int, length: int, knobs: Knobs, removed: BitArray | None) -> Any:
        """Return the parameters of one search: never is the index itself set, which others are searching."""
        if self._ivf:
            # Enough lists to hold k vectors four times over.
            needed = -(-4 * k * self.lists // max(1, self.total))
            probes = min(self.lists, max(knobs.nprobe or 1, needed))
            chosen = faiss.SearchParametersIVF(nprobe=probes, sel=self._selector(removed))
        elif self._hnsw:
            effort = max(knobs.ef_search or 0, 2 * length)
            chosen = faiss.SearchParametersHNSW(efSearch=effort, sel=self._selector(removed))
        else:
            return None
        return faiss.SearchParametersPreTransform(index_params=chosen) if self._wrapped else chosen

    def _selector(self, removed: BitArray | None) -> Any:
        """Return what lets a search of lists or of a graph return only vectors that are rows."""
        if removed is None and (self._ivf or not self.tombstones):
            return None
        selector, made_for = self._alive
        if selector is None or made_for is not removed:
            if self._ivf:
                alive = ~removed if removed is not None else np.ones(self.count, dtype=bool)
            else:
                alive = self._rows >= 0
                if removed is not None:
                    alive &= ~removed[self._rows]
            selector = faiss.IDSelectorBitmap(np.packbits(alive, bitorder="little"))
            self._alive = selector, removed
        return selector

    def __getstate__(self) -> dict[str, Any]:
        return {
            "factory": self.factory,
            "labels": self.labels,
            "outliers": self.outliers.rows,
            "limits": self.limits,
            "index": faiss.serialize_index(self._index).tobytes(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        index = faiss.deserialize_index(np.frombuffer(state["index"], dtype=np.uint8))
        kept = (state[name] for name in ("labels", "outliers", "limits"))
        self.__init__(state["factory"], index, *kept)  # type: ignore[misc]


class _Quantizer:
    """What a trained index makes of vectors: the transforms before it, its lists, and its codes.

    Parameters
    ----------
    index : faiss.Index
    inner : faiss.Index
        What stands behind the transforms of `index`.
    """

    def __init__(self, index: Any, inner: Any) -> None:
        self._index, self._inner = faiss.downcast_index(index), inner
        transformed = isinstance(self._index, faiss.IndexPreTransform)
        self._steps = transforms(self._index) if transformed else []
        self._lists = isinstance(inner, faiss.IndexIVF)
        self._storage = faiss.downcast_index(inner.storage) if isinstance(inner, faiss.IndexHNSW) else inner
        # FAISS follows this pointer, which is null in an index that it has read.
        if hasattr(inner, "fine_quantizer"):
            own = next((name for name in ("pq", "rq", "lsq", "prq", "plsq") if hasattr(inner, name)), None)
            if own is not None:
                inner.fine_quantizer = getattr(inner, own)

    @property
    def is_lossless(self) -> bool:
        """Whether the codes are the vectors themselves."""
        whole = isinstance(self._storage, (faiss.IndexFlat, faiss.IndexIVFFlat))
        return whole and not self._steps

    @property
    def takes_codes(self) -> bool:
        """Whether `add` may be given the codes of `encode`."""
        return type(self._inner) in _TAKES_CODES

    def encode(self, vectors: FloatArray) -> tuple[CodeArray, DoubleArray]:
        """Encode vectors, and measure what is lost.

        Parameters
        ----------
        vectors : ndarray of float32, shape (n, dim)

        Returns
        -------
        codes : ndarray of uint8, shape (n, code_size)
            Of code_size 0 where they tell nothing of what is lost.
        distortion : ndarray of float64, shape (n, 2)
            How far each vector lies from what its code stands for, and from the centroid of its list; 0 where
            nothing is lost or there are no lists, infinity where codes cannot be decoded.
        """
        lost = np.zeros((len(vectors), 2))
        nothing = np.empty((len(vectors), 0), dtype=np.uint8)
        if self.is_lossless and not self._lists:
            return nothing, lost
        if isinstance(self._storage, faiss.IndexLSH):  # the bits tell directions only
            lost[:, 0] = np.inf
            return nothing, lost
        turned = vectors
        for step in self._steps:
            turned = step.apply(turned)
        codes: CodeArray = self._storage.sa_encode(turned)
        with np.errstate(over="ignore", invalid="ignore"):
            if self._lists:
                lost[:, 1] = _lengths(turned - self._centroids(codes))
            if not self.is_lossless:
                lost[:, 0] = self._lost(vectors, codes)
        lost[np.isnan(lost)] = np.inf
        return codes, lost

    def limits(self, rows: Rows, mixed: bool = False) -> Limits:
        """Return limits by what is lost of rows.

        Parameters
        ----------
        rows : ndarray of float32, shape (n, dim)
            Those that the index is built with.
        mixed : bool
            Whether some of them may have come later.
        """
        picks = np.random.default_rng(SEED).choice(len(rows), min(SAMPLE, len(rows)), replace=False)
        _, lost = self.encode(rows[np.sort(picks)])
        share, tolerance = (0.5, MEDIAN_TOLERANCE) if mixed else (SHARE, TOLERANCE)
        most = tolerance * np.quantile(lost, share, axis=0, method="lower")
        return Limits(float(most[0]), float(most[1]))

    def add(self, codes: CodeArray, places: IndexArray) -> None:
        """Add codes of `encode`, under `places` where there are lists."""
        self._inner.add_sa_codes(codes, places if self._lists else None)
        self._index.ntotal = self._inner.ntotal

    def _lost(self, vectors: FloatArray, codes: CodeArray) -> DoubleArray | float:
        try:
            decoded = self._storage.sa_decode(codes)
            for step in reversed(self._steps):
                decoded = step.reverse_transform(decoded)
                if isinstance(step, faiss.PCAMatrix):  # which does not put back what it drops of the mean
                    mean = faiss.vector_to_array(step.mean)[None]
                    decoded += mean - step.reverse_transform(step.apply(mean))
        except RuntimeError:  # FAISS cannot decode such codes, or not undo such a transform
            return np.inf
        return _lengths(vectors - decoded)

    def _centroids(self, codes: CodeArray) -> FloatArray:
        """Return the centroid of each code's list, whose number its first bytes are."""
        width = self._inner.coarse_code_size()
        numbers = codes[:, :width].astype(np.int64) @ (256 ** np.arange(width, dtype=np.int64))
        centroids: FloatArray = self._inner.quantizer.reconstruct_batch(numbers)
        return centroids


class _Outliers:
    """Rows that every search compares exactly.

    Parameters
    ----------
    rows : ndarray of int64, shape (n,)
        Unique, ascending.
    """

    def __init__(self, rows: IndexArray | None = None) -> None:
        self.rows: IndexArray = np.empty(0, dtype=np.int64) if rows is None else rows
        self._copy: tuple[FlatRows, float] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def replace(self, places: IndexArray, fits: npt.NDArray[np.bool_]) -> None:
        """Follow a write into `places`, of which those are outliers that do not fit."""
        if len(self.rows):
            kept = np.setdiff1d(self.rows, places)
            if len(kept) < len(self.rows):
                self._set(kept)
        if not fits.all():
            self._set(np.union1d(self.rows, places[~fits]))

    def move(self, moves: Moves) -> None:
        """Follow rows that were moved."""
        if not len(self.rows):
            return
        stay = self.rows[(self.rows < moves.kept) & ~np.isin(self.rows, moves.targets)]
        self._set(np.union1d(stay, moves.targets[np.isin(moves.sources, self.rows)]))

    def join(self, found: IndexArray, queries: FloatArray, k: int, flat: Flat, metric: Metric) -> IndexArray:
        """Return candidates and the `k` nearest outliers of each query.

        Parameters
        ----------
        found : ndarray of int64, shape (n_queries, m)
            Rows, none of them an outlier; -1 where there is none.
        queries : ndarray of float32, shape (n_queries, dim)
        k : int
        flat : Flat
            All rows.
        metric : Metric

        Returns
        -------
        ndarray of int64, shape (n_queries, m + min(k, n))
        """
        if not len(self.rows):
            return found
        copy = self._copy
        if copy is None:
            vectors, held = flat.view()[self.rows], FlatRows(flat.dim, metric)
            held.write(vectors, np.arange(len(vectors)))
            copy = self._copy = held, float(row_norms(vectors).max())
        held, longest = copy
        reach = min(k, len(self.rows))
        order = np.arange(len(self.rows))
        near, _ = nearest_rows(queries, held.view(), order, reach, metric, held.shortlist(longest))
        return np.concatenate([found, self.rows[near]], axis=1)

    def _set(self, rows: IndexArray) -> None:
        self.rows, self._copy = rows, None


def _lengths(rows: FloatArray) -> DoubleArray:
    """Return the lengths of rows, in float32: those of an index are short enough."""
    lengths: DoubleArray = np.sqrt(np.einsum("ij,ij->i", rows, rows)).astype(np.float64)
    return lengths


def _slices(count: int) -> list[slice]:
    """Return slices that go through `count` vectors."""
    return [slice(start, start + PIECE_ROWS) for start in range(0, count, PIECE_ROWS)]
