"""FAISS's files of approximate indexes, checked before FAISS reads them.

FAISS trusts much of what it reads: a number that is too large takes all memory, a link to a vector that is
not there is followed. So a file is compared, value by value, with an empty index of the same factory string,
which has all that does not depend on the vectors; what does depend on them is checked by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np

from clipretrieval.stores.faiss.links import check_links
from clipretrieval.stores.faiss.reader import IndexReader, MalformedIndexError, UnknownFormatError
from clipretrieval.stores.faiss.transforms import TRANSFORMS, chain, check_transform

__all__ = ["check_index_file", "is_checkable"]

# Much of what FAISS offers is missing in its type information.
faiss: Any = _faiss

# Beyond these the squared distances to what is coded leave float32, on which FAISS aborts when it adds.
LARGEST = 4e18


def check_index_file(
    path: Path,
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
    path : Path
        A regular file.
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
    if not path.stat().st_size:  # which cannot be mapped
        raise MalformedIndexError("it is empty")
    content = np.memmap(path, dtype=np.uint8, mode="r")
    reader = IndexReader(content, LARGEST if bounded else math.inf, least if rows is None else rows)
    _check_index(reader, template, range(least, (most or least) + 1))
    reader.end()


def is_checkable(index: Any) -> bool:
    """Tell whether the files of such an index can be checked."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return all(type(step) in TRANSFORMS for step in chain(index)) and is_checkable(index.index)
    if isinstance(index, faiss.IndexIVF):
        return type(index) in _INDEXES and is_checkable(index.quantizer)
    return type(index) in _INDEXES


def _check_index(reader: IndexReader, template: Any, totals: range) -> None:
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


def _check_flat(reader: IndexReader, template: Any, total: int) -> None:
    reader.floats("the vectors", total * template.d, template.d)


def _check_scalar(reader: IndexReader, template: Any, total: int) -> None:
    _check_scalar_quantizer(reader, template.sq)
    reader.vector("the codes", "u1", total * template.sq.code_size)


def _check_product(reader: IndexReader, template: Any, total: int) -> None:
    _check_product_quantizer(reader, template.pq)
    reader.vector("the codes", "u1", total * template.pq.code_size)
    reader.expect("the type of search", "i", template.search_type)
    reader.expect("whether signs are encoded", "?", template.encode_signs)
    reader.expect("the threshold of Hamming distances", "i", template.polysemous_ht)


def _check_product_fast(reader: IndexReader, template: Any, total: int) -> None:
    _check_product_quantizer(reader, template.pq)
    for name in ("implem", "bbs", "qbs"):
        reader.expect(name, "i", getattr(template, name))
    padded = -(-total // template.bbs) * template.bbs
    reader.expect("the padded number of vectors", "Q", padded)
    reader.expect("the padded number of parts", "Q", template.M2)
    reader.vector("the codes", "u1", padded * template.M2 // 2)


def _check_hashes(reader: IndexReader, template: Any, total: int) -> None:
    reader.expect("the number of bits", "i", template.nbits)
    reader.expect("whether vectors are rotated", "?", template.rotate_data)
    reader.expect("whether thresholds are trained", "?", template.train_thresholds)
    reader.floats("the thresholds", template.nbits if template.train_thresholds else 0)
    reader.expect("the size of a code", "i", template.code_size)
    check_transform(reader, template.rrot, used=template.rotate_data)
    reader.vector("the codes", "u1", total * template.code_size)


def _check_bits(reader: IndexReader, template: Any, total: int) -> None:
    quantizer = template.rabitq
    reader.expect("the quantizer's dimension", "Q", quantizer.d)
    reader.expect("the size of a code", "Q", quantizer.code_size)
    reader.expect("the quantizer's metric", "i", quantizer.metric_type)
    reader.vector("the codes", "u1", total * quantizer.code_size)
    reader.floats("the centre", template.d, template.d)
    reader.expect("the bits of a query", "B", template.qb)


def _check_halves(reader: IndexReader, template: Any, total: int) -> None:
    _check_product_quantizer(reader, template.pq)


def _check_scalar_quantizer(reader: IndexReader, quantizer: Any) -> None:
    reader.expect("the type of codes", "i", quantizer.qtype)
    reader.expect("how ranges are found", "i", quantizer.rangestat)
    reader.expect("the argument of ranges", "f", quantizer.rangestat_arg)
    reader.expect("the quantizer's dimension", "Q", quantizer.d)
    reader.expect("the size of a code", "Q", quantizer.code_size)
    ranged = quantizer.qtype in (quantizer.QT_8bit, quantizer.QT_6bit, quantizer.QT_4bit)
    reader.floats("the ranges", 2 * quantizer.d if ranged else 0, quantizer.d)


def _check_product_quantizer(reader: IndexReader, quantizer: Any) -> None:
    for name in ("d", "M", "nbits"):
        reader.expect(f"{name} of the product quantizer", "Q", getattr(quantizer, name))
    reader.floats("the centroids", quantizer.d * quantizer.ksub, quantizer.dsub)


def _check_graph(reader: IndexReader, template: Any, total: int) -> None:
    check_links(reader, template.hnsw, total)
    _check_index(reader, template.storage, range(total, total + 1))


def _check_lists_head(reader: IndexReader, template: Any) -> None:
    reader.expect("the number of lists", "Q", template.nlist)
    if not 1 <= reader.value("the number of lists to look into", "Q") <= template.nlist:
        raise MalformedIndexError("the number of lists to look into is out of range")
    _check_index(reader, template.quantizer, range(template.nlist, template.nlist + 1))
    reader.expect("the map of ids", "B", 0)
    reader.vector("the map of ids", "<i8", 0)


def _check_flat_lists(reader: IndexReader, template: Any, total: int) -> None:
    _check_lists_head(reader, template)
    _check_lists(reader, template, total)


def _check_scalar_lists(reader: IndexReader, template: Any, total: int) -> None:
    _check_lists_head(reader, template)
    _check_scalar_quantizer(reader, template.sq)
    reader.expect("the size of a code", "Q", template.code_size)
    reader.expect("whether residuals are coded", "?", template.by_residual)
    _check_lists(reader, template, total)


def _check_product_lists(reader: IndexReader, template: Any, total: int) -> None:
    _check_lists_head(reader, template)
    reader.expect("whether residuals are coded", "?", template.by_residual)
    reader.expect("the size of a code", "Q", template.code_size)
    _check_product_quantizer(reader, template.pq)
    _check_lists(reader, template, total)


def _check_product_fast_lists(reader: IndexReader, template: Any, total: int) -> None:
    _check_lists_head(reader, template)
    reader.expect("whether residuals are coded", "?", template.by_residual)
    reader.expect("the size of a code", "Q", template.code_size)
    reader.expect("bbs", "i", template.bbs)
    reader.expect("the padded number of parts", "Q", template.M2)
    reader.expect("implem", "i", template.implem)
    reader.expect("qbs2", "Q", template.qbs2)
    _check_product_quantizer(reader, template.pq)
    _check_blocks(reader, template, total)


def _check_lists(reader: IndexReader, template: Any, total: int) -> None:
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
    _check_ids(np.concatenate(ids), total, reader.rows)


def _check_blocks(reader: IndexReader, template: Any, total: int) -> None:
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
    _check_ids(np.concatenate(ids), total, reader.rows)


def _check_ids(ids: Any, total: int, rows: int) -> None:
    if len(ids) != total or not np.all((ids >= 0) & (ids < rows)):
        raise MalformedIndexError(f"its ids are not those of {total} of {rows} rows")
    if np.any(np.bincount(ids) > 1):
        raise MalformedIndexError("it holds an id more than once")


def _check_chain(reader: IndexReader, template: Any, total: int) -> None:
    steps = chain(template)
    reader.expect("the number of transforms", "i", len(steps))
    for step in steps:
        check_transform(reader, step)
    _check_index(reader, template.index, range(total, total + 1))


_FLAT = (b"IxF2", b"IxFI"), _check_flat
_INDEXES: dict[type, tuple[tuple[bytes, ...], Callable[[IndexReader, Any, int], None]]] = {
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
