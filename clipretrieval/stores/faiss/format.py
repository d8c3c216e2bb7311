"""FAISS's files of approximate indexes, checked before FAISS reads them.

FAISS trusts much of what it reads: a number that is too large takes all memory, a link to a vector that is
not there is followed. So a file is compared, value by value, with an empty index of the same factory string,
which has all that does not depend on the vectors; what does depend on them is checked by itself.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import faiss as _faiss
import numpy as np

from clipretrieval.stores.exact import row_norms
from clipretrieval.stores.faiss.factory import transforms
from clipretrieval.types import AnyArray

__all__ = ["MalformedIndexError", "UnknownFormatError", "check_index_file", "is_checkable"]

# Much of what FAISS offers is missing in its type information.
faiss: Any = _faiss

# Beyond these the squared distances to what is coded leave float32, on which FAISS aborts when it adds.
LARGEST = 4e18
LARGEST_EFFORT = 1 << 16


class MalformedIndexError(ValueError):
    """The file is not what FAISS would have written."""


class UnknownFormatError(ValueError):
    """The file may be whole, but is of a form that is not known here."""


def check_index_file(
    content: AnyArray,
    template: Any,
    least: int,
    most: int | None = None,
    rows: int | None = None,
    *,
    bounded: bool = True,
) -> None:
    """Check that FAISS can read, search and change an index.

    Parameters
    ----------
    content : ndarray of uint8, shape (n,)
        Of the file.
    template : faiss.Index
        An empty index of the same factory string, dimension and metric.
    least, most : int
        How many vectors it must hold; `most` is `least` when left out.
    rows : int, optional
        Inverted lists must hold different ids from 0 to `rows` - 1; `least` when left out.
    bounded : bool
        Whether to refuse vectors that are not finite or so long that FAISS cannot add to an index of them.

    Raises
    ------
    MalformedIndexError
        If it is not such an index.
    UnknownFormatError
        If it is of a form that is not known here: of an index that is not `is_checkable`, or of another
        version of FAISS.
    """
    reader = _IndexReader(content, LARGEST if bounded else math.inf, least if rows is None else rows)
    _check_index(reader, template, range(least, (most or least) + 1))
    reader.end()


def is_checkable(index: Any) -> bool:
    """Tell whether the files of such an index can be checked."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return all(type(step) in _TRANSFORMS for step in transforms(index)) and is_checkable(index.index)
    if isinstance(index, faiss.IndexIVF):
        return type(index) in _INDEXES and is_checkable(index.quantizer)
    return type(index) in _INDEXES


def _check_index(reader: _IndexReader, template: Any, totals: range) -> None:
    template = faiss.downcast_index(template)
    found = _INDEXES.get(type(template))
    if found is None:
        raise UnknownFormatError(f"it should hold a {type(template).__name__}")
    kinds, check = found
    reader.kind(*kinds)
    reader.expect("the dimension", "i", template.d)
    total = reader.value("the number of vectors", "q")
    if total not in totals:
        raise MalformedIndexError(f"it holds {total} vectors, not {totals.start}")
    reader.array("what is reserved", "u1", 16)
    reader.expect("whether it is trained", "?", 1)
    reader.expect("the metric", "i", template.metric_type)
    check(reader, template, total)


def _check_flat(reader: _IndexReader, template: Any, total: int) -> None:
    reader.floats("the vectors", total * template.d, template.d)


def _check_scalar(reader: _IndexReader, template: Any, total: int) -> None:
    _check_scalar_quantizer(reader, template.sq)
    reader.vector("the codes", "u1", total * template.sq.code_size)


def _check_product(reader: _IndexReader, template: Any, total: int) -> None:
    _check_product_quantizer(reader, template.pq)
    reader.vector("the codes", "u1", total * template.pq.code_size)
    reader.expect("the type of search", "i", template.search_type)
    reader.expect("whether signs are encoded", "?", template.encode_signs)
    reader.expect("the threshold of Hamming distances", "i", template.polysemous_ht)


def _check_product_fast(reader: _IndexReader, template: Any, total: int) -> None:
    _check_product_quantizer(reader, template.pq)
    for name in ("implem", "bbs", "qbs"):
        reader.expect(name, "i", getattr(template, name))
    padded = -(-total // template.bbs) * template.bbs
    reader.expect("the padded number of vectors", "Q", padded)
    reader.expect("the padded number of parts", "Q", template.M2)
    reader.vector("the codes", "u1", padded * template.M2 // 2)


def _check_hashes(reader: _IndexReader, template: Any, total: int) -> None:
    reader.expect("the number of bits", "i", template.nbits)
    reader.expect("whether vectors are rotated", "?", template.rotate_data)
    reader.expect("whether thresholds are trained", "?", template.train_thresholds)
    reader.floats("the thresholds", template.nbits if template.train_thresholds else 0)
    reader.expect("the size of a code", "i", template.code_size)
    _check_transform(reader, template.rrot, used=template.rotate_data)
    reader.vector("the codes", "u1", total * template.code_size)


def _check_bits(reader: _IndexReader, template: Any, total: int) -> None:
    quantizer = template.rabitq
    reader.expect("the quantizer's dimension", "Q", quantizer.d)
    reader.expect("the size of a code", "Q", quantizer.code_size)
    reader.expect("the quantizer's metric", "i", quantizer.metric_type)
    reader.vector("the codes", "u1", total * quantizer.code_size)
    reader.floats("the centre", template.d, template.d)
    reader.expect("the bits of a query", "B", template.qb)


def _check_halves(reader: _IndexReader, template: Any, total: int) -> None:
    _check_product_quantizer(reader, template.pq)


def _check_scalar_quantizer(reader: _IndexReader, quantizer: Any) -> None:
    reader.expect("the type of codes", "i", quantizer.qtype)
    reader.expect("how ranges are found", "i", quantizer.rangestat)
    reader.expect("the argument of ranges", "f", quantizer.rangestat_arg)
    reader.expect("the quantizer's dimension", "Q", quantizer.d)
    reader.expect("the size of a code", "Q", quantizer.code_size)
    ranged = quantizer.qtype in (quantizer.QT_8bit, quantizer.QT_6bit, quantizer.QT_4bit)
    reader.floats("the ranges", 2 * quantizer.d if ranged else 0, quantizer.d)


def _check_product_quantizer(reader: _IndexReader, quantizer: Any) -> None:
    for name in ("d", "M", "nbits"):
        reader.expect(f"{name} of the product quantizer", "Q", getattr(quantizer, name))
    reader.floats("the centroids", quantizer.d * quantizer.ksub, quantizer.dsub)


def _check_graph(reader: _IndexReader, template: Any, total: int) -> None:
    _check_links(reader, template.hnsw, total)
    _check_index(reader, template.storage, range(total, total + 1))


def _check_lists_head(reader: _IndexReader, template: Any) -> None:
    reader.expect("the number of lists", "Q", template.nlist)
    if not 1 <= reader.value("the number of lists to look into", "Q") <= template.nlist:
        raise MalformedIndexError("the number of lists to look into is out of range")
    _check_index(reader, template.quantizer, range(template.nlist, template.nlist + 1))
    reader.expect("the map of ids", "B", 0)
    reader.vector("the map of ids", "<i8", 0)


def _check_flat_lists(reader: _IndexReader, template: Any, total: int) -> None:
    _check_lists_head(reader, template)
    _check_lists(reader, template, total)


def _check_scalar_lists(reader: _IndexReader, template: Any, total: int) -> None:
    _check_lists_head(reader, template)
    _check_scalar_quantizer(reader, template.sq)
    reader.expect("the size of a code", "Q", template.code_size)
    reader.expect("whether residuals are coded", "?", template.by_residual)
    _check_lists(reader, template, total)


def _check_product_lists(reader: _IndexReader, template: Any, total: int) -> None:
    _check_lists_head(reader, template)
    reader.expect("whether residuals are coded", "?", template.by_residual)
    reader.expect("the size of a code", "Q", template.code_size)
    _check_product_quantizer(reader, template.pq)
    _check_lists(reader, template, total)


def _check_product_fast_lists(reader: _IndexReader, template: Any, total: int) -> None:
    _check_lists_head(reader, template)
    reader.expect("whether residuals are coded", "?", template.by_residual)
    reader.expect("the size of a code", "Q", template.code_size)
    reader.expect("bbs", "i", template.bbs)
    reader.expect("the padded number of parts", "Q", template.M2)
    reader.expect("implem", "i", template.implem)
    reader.expect("qbs2", "Q", template.qbs2)
    _check_product_quantizer(reader, template.pq)
    _check_blocks(reader, template, total)


def _check_lists(reader: _IndexReader, template: Any, total: int) -> None:
    reader.kind(b"ilar")
    reader.expect("the number of lists", "Q", template.nlist)
    reader.expect("the size of a code", "Q", template.code_size)
    form = reader.code()
    if form == b"full":
        sizes = reader.vector("the lengths of lists", "<i8", template.nlist)
    elif form == b"sprs":
        pairs = reader.vector("the lengths of lists", "<i8")
        if len(pairs) % 2 or not np.all((pairs[::2] >= 0) & (pairs[::2] < template.nlist)):
            raise MalformedIndexError("the lengths of lists are no pairs of a list and its length")
        sizes = np.zeros(template.nlist, dtype=np.int64)
        sizes[pairs[::2]] = pairs[1::2]
    else:
        raise MalformedIndexError("the lengths of lists are of no known form")
    if not np.all((sizes >= 0) & (sizes <= total)) or int(sizes.sum()) != total:
        raise MalformedIndexError(f"the lists do not hold {total} vectors")
    ids = [np.empty(0, dtype=np.int64)]
    for size in sizes[sizes > 0].tolist():
        codes = reader.array("the codes of a list", "u1", size * template.code_size)
        if isinstance(template, faiss.IndexIVFFlat):
            reader.check_lengths("the vectors", codes.view("<f4"), template.d)
        ids.append(reader.array("the ids of a list", "<i8", size))
    _check_list_ids(np.concatenate(ids), total, reader.rows)


def _check_blocks(reader: _IndexReader, template: Any, total: int) -> None:
    blocks = faiss.downcast_InvertedLists(template.invlists)
    reader.kind(b"ilbl")
    reader.expect("the number of lists", "Q", template.nlist)
    reader.expect("the size of a code", "Q", blocks.code_size)
    reader.expect("the vectors of a block", "Q", blocks.n_per_block)
    reader.expect("the size of a block", "Q", blocks.block_size)
    ids = []
    for _ in range(template.nlist):
        ids.append(reader.vector("the ids of a list", "<i8"))
        padded = -(-len(ids[-1]) // blocks.n_per_block)
        reader.vector("the codes of a list", "u1", padded * blocks.block_size)
    _check_list_ids(np.concatenate(ids), total, reader.rows)


def _check_list_ids(ids: Any, total: int, rows: int) -> None:
    if len(ids) != total or not np.all((ids >= 0) & (ids < rows)):
        raise MalformedIndexError(f"its ids are not those of {total} of {rows} rows")
    if np.any(np.bincount(ids) > 1):
        raise MalformedIndexError("it holds an id more than once")


def _check_chain(reader: _IndexReader, template: Any, total: int) -> None:
    steps = transforms(template)
    reader.expect("the number of transforms", "i", len(steps))
    for step in steps:
        _check_transform(reader, step)
    _check_index(reader, template.index, range(total, total + 1))


def _check_links(reader: _IndexReader, graph: Any, total: int) -> None:
    """Check that no link, level or offset leads a search out of the graph's memory.

    Parameters
    ----------
    reader : _IndexReader
        Before the graph.
    graph : faiss.HNSW
        An empty one with as many links.
    total : int
        How many vectors it must hold.

    Raises
    ------
    MalformedIndexError
        If one does.
    """
    reader.vector("the chances of levels", "<f8", graph.assign_probas.size())
    widths = faiss.vector_to_array(graph.cum_nneighbor_per_level)
    if not np.array_equal(reader.vector("the widths of levels", "<i4"), widths):
        raise MalformedIndexError("the widths of levels are not those of the index")
    levels = reader.vector("the levels", "<i4", total)
    if not np.all((levels >= 1) & (levels < len(widths))):
        raise MalformedIndexError("a vector has no level")
    ends = np.cumsum(widths[levels], dtype=np.int64)
    offsets = reader.vector("the offsets", "<i8", total + 1)
    if offsets[0] != 0 or not np.array_equal(offsets[1:], ends):
        raise MalformedIndexError("the offsets do not follow from the levels")
    links = reader.vector("the links", "<i4", int(ends[-1]))
    if not np.all((links >= -1) & (links < total)):
        raise MalformedIndexError("a link leads to no vector")
    for level in range(1, len(widths) - 1):
        upper = np.flatnonzero(levels > level)
        places = offsets[upper, None] + np.arange(widths[level], widths[level + 1])
        ahead = links[places.ravel()]
        if not np.all(levels[ahead[ahead >= 0]] > level):
            raise MalformedIndexError("a link leads to a vector below its level")
    entry = reader.value("the entry", "i")
    if not 0 <= entry < total or reader.value("the highest level", "i") != levels[entry] - 1:
        raise MalformedIndexError("the entry is no vector of the highest level")
    for name in ("the effort of building", "the effort of a search"):
        if not 1 <= reader.value(name, "i") <= LARGEST_EFFORT:
            raise MalformedIndexError(f"{name} is out of range")
    reader.array("what is reserved", "u1", 4)


def _check_transform(reader: _IndexReader, template: Any, used: bool = True) -> None:
    """Read one transform and compare it with `template`; ``used`` tells whether it should be trained."""
    found = _TRANSFORMS.get(type(template))
    if found is None:
        raise UnknownFormatError(f"it should hold a {type(template).__name__}")
    kind, check = found
    reader.kind(kind)
    check(reader, template, used)
    reader.expect("the dimension before a transform", "i", template.d_in)
    reader.expect("the dimension after a transform", "i", template.d_out)
    reader.expect("whether a transform is trained", "?", used)


def _check_linear(reader: _IndexReader, template: Any, used: bool) -> None:
    shifted = reader.value("whether a transform shifts", "B")
    weights = reader.vector("the matrix of a transform", "<f4")
    shifts = reader.vector("the shift of a transform", "<f4")
    sizes = range(template.d_in * template.d_out, max(template.d_in, template.d_out) ** 2 + 1)
    if shifted > 1 or len(shifts) != shifted * template.d_out or len(weights) not in (sizes if used else {0}):
        raise MalformedIndexError("the matrix of a transform has another size")
    if not (np.all(np.isfinite(weights)) and np.all(np.isfinite(shifts))):
        raise MalformedIndexError("the matrix of a transform is not finite")


def _check_components(reader: _IndexReader, template: Any, used: bool) -> None:
    reader.expect("the power of eigenvalues", "f", template.eigen_power)
    reader.expect("the smallest eigenvalue", "f", template.epsilon)
    reader.expect("whether components are rotated", "?", template.random_rotation)
    reader.expect("the balanced bins", "i", template.balanced_bins)
    reader.floats("the mean", template.d_in)
    reader.floats("the eigenvalues", template.d_in)
    reader.floats("the components", template.d_in**2)
    _check_linear(reader, template, used)


def _check_order(reader: _IndexReader, template: Any, used: bool) -> None:
    if not np.array_equal(reader.vector("the order", "<i4"), faiss.vector_to_array(template.map)):
        raise MalformedIndexError("the dimensions are in another order")


def _check_normalization(reader: _IndexReader, template: Any, used: bool) -> None:
    reader.expect("the norm", "f", template.norm)


class _IndexReader:
    """Goes through the bytes of a file.

    Parameters
    ----------
    content : ndarray of uint8, shape (n,)
    largest : float
        How long vectors may be; with infinity, they are not looked at.
    rows : int
        How many rows the ids of inverted lists may name.
    """

    def __init__(self, content: AnyArray, largest: float, rows: int) -> None:
        self._content, self._largest, self.rows = content, largest, rows
        self._place = 0

    def array(self, name: str, dtype: str, count: int) -> AnyArray:
        """Return the next `count` values."""
        size = count * np.dtype(dtype).itemsize
        if count < 0 or size > len(self._content) - self._place:
            raise MalformedIndexError(f"{count} values of {name} are beyond its end")
        found = self._content[self._place : self._place + size]
        self._place += size
        return found.view(dtype) if count else np.empty(0, dtype=dtype)

    def value(self, name: str, form: str) -> Any:
        """Return the next value, in the notation of `struct`."""
        return struct.unpack(f"<{form}", self.array(name, "u1", struct.calcsize(f"<{form}")).tobytes())[0]

    def code(self) -> bytes:
        """Return the four letters that say what follows."""
        return bytes(self.value("its kind", "4s"))

    def expect(self, name: str, form: str, wanted: Any) -> None:
        """Read a value that can be but one."""
        found = self.value(name, "B" if form == "?" else form)  # another byte than 0 and 1 is no bool in C++
        if found != wanted:
            raise MalformedIndexError(f"{name} is {found}, not {wanted}")

    def kind(self, *wanted: bytes) -> None:
        """Read the four letters of one of the kinds that can be there."""
        found = self.code()
        if found not in wanted:
            raise UnknownFormatError(f"it holds {found!r}, not {' or '.join(map(repr, wanted))}")

    def vector(self, name: str, dtype: str, count: int | None = None) -> AnyArray:
        """Return values that are preceded by their number."""
        found = self.value(f"the number of {name}", "Q")
        if count is not None and found != count:
            raise MalformedIndexError(f"it holds {found} values of {name}, not {count}")
        return self.array(name, dtype, found)

    def floats(self, name: str, count: int, width: int = 1) -> AnyArray:
        """Return `count` floats that are preceded by their number, each `width` of them a vector."""
        found = self.vector(name, "<f4", count)
        self.check_lengths(name, found, width)
        return found

    def check_lengths(self, name: str, values: AnyArray, width: int) -> None:
        """Refuse vectors of `width` values of which one is not finite, or too long."""
        if not values.size or self._largest == math.inf:
            return
        with np.errstate(invalid="ignore"):
            norms = row_norms(values.reshape(-1, width))
        if not np.all(norms <= self._largest):
            raise MalformedIndexError(f"{name} are not finite, or too large")

    def end(self) -> None:
        """Make sure that nothing is left."""
        if self._place != len(self._content):
            raise MalformedIndexError(f"{len(self._content) - self._place} bytes are left at its end")


_TRANSFORMS: dict[type, tuple[bytes, Callable[[_IndexReader, Any, bool], None]]] = {
    faiss.RandomRotationMatrix: (b"rrot", _check_linear),
    faiss.OPQMatrix: (b"LTra", _check_linear),
    faiss.PCAMatrix: (b"Pcam", _check_components),
    faiss.RemapDimensionsTransform: (b"RmDT", _check_order),
    faiss.NormalizationTransform: (b"VNrm", _check_normalization),
}
_FLAT = (b"IxF2", b"IxFI"), _check_flat
_INDEXES: dict[type, tuple[tuple[bytes, ...], Callable[[_IndexReader, Any, int], None]]] = {
    faiss.IndexFlat: _FLAT,
    faiss.IndexFlatL2: _FLAT,
    faiss.IndexFlatIP: _FLAT,
    faiss.IndexScalarQuantizer: ((b"IxSQ",), _check_scalar),
    faiss.IndexPQ: ((b"IxPq",), _check_product),
    faiss.IndexPQFastScan: ((b"IPfs",), _check_product_fast),
    faiss.IndexLSH: ((b"IxHe",), _check_hashes),
    faiss.MultiIndexQuantizer: ((b"Imiq",), _check_halves),
    faiss.IndexHNSWFlat: ((b"IHNf",), _check_graph),
    faiss.IndexHNSWSQ: ((b"IHNs",), _check_graph),
    faiss.IndexHNSWPQ: ((b"IHNp",), _check_graph),
    faiss.IndexIVFFlat: ((b"IwFl",), _check_flat_lists),
    faiss.IndexIVFScalarQuantizer: ((b"IwSq",), _check_scalar_lists),
    faiss.IndexIVFPQ: ((b"IwPQ",), _check_product_lists),
    faiss.IndexIVFPQFastScan: ((b"IwPf",), _check_product_fast_lists),
    faiss.IndexPreTransform: ((b"IxPT",), _check_chain),
}
if hasattr(faiss, "IndexRaBitQ"):  # since FAISS 1.11
    _INDEXES[faiss.IndexRaBitQ] = (b"Ixrq",), _check_bits
