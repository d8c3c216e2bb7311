"""The links of a graph in a FAISS file, each of which a search follows without looking."""

from __future__ import annotations

from typing import Any

import faiss as _faiss
import numpy as np

from clipretrieval.stores.faiss.reader import IndexReader, MalformedIndexError

__all__ = ["check_links"]

# Much of what FAISS offers is missing in its type information.
faiss: Any = _faiss
LARGEST_EFFORT = 1 << 16


def check_links(reader: IndexReader, graph: Any, total: int) -> None:
    """Check that no link, level or offset leads a search out of the graph's memory.

    Parameters
    ----------
    reader : IndexReader
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
