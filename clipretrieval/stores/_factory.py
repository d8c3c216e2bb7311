"""FAISS factory strings: which of them a store can serve, and what their indexes need."""

from __future__ import annotations

import math
import re
from typing import Any

import faiss as _faiss

from clipretrieval.errors import InvalidInputError, UnsupportedOperationError
from clipretrieval.types import Metric

__all__ = ["AUTO", "FLAT", "auto_factory", "check_factory", "inner_index", "make_index", "sizes"]

# Much of what FAISS offers is missing in its type information.
faiss: Any = _faiss
AUTO, FLAT = "auto", "Flat"
# Up to this many vectors "auto" searches exactly.
AUTO_LIMIT = 100_000
# Fewer vectors than this are compared one by one, whatever the index.
SMALLEST = 1000
# FAISS asks for at least 39 training vectors a centroid, and uses no more than 256.
CENTROID_LEAST, LIST_SAMPLE, CODE_SAMPLE = 39, 64, 256
LARGEST_NLIST = 1 << 22
# Dimensions with many divisors, to tell a string that is wrong from one that is wrong for a dimension.
TRIAL_DIMS = (64, 96, 120, 1024)

KNOWN = 'say "Flat", "SQfp16", "IVF1024,SQ8" or "HNSW32", or leave the choice to "auto"'


def check_factory(text: str) -> str:
    """Return a factory string in the form that the store keeps.

    A prefix ``IDMap,`` or ``IDMap2,`` and a suffix ``,RFlat`` are dropped: ids and refinement are the
    store's own.

    Raises
    ------
    InvalidInputError
        If it is not a str, or FAISS cannot make an index from it in any dimension.
    UnsupportedOperationError
        If the store cannot use such an index.
    """
    if not isinstance(text, str):
        raise InvalidInputError(f"index must be a FAISS factory string; found {text!r}. {KNOWN.capitalize()}")
    factory = text.strip()
    if factory == AUTO:
        return AUTO
    factory = re.sub(r"^IDMap2?,|,RFlat$", "", re.sub(r"\s*,\s*", ",", factory))
    _check_numbers(text, factory)
    reason = ""
    parts = {int(number) for number in re.findall(r"\d+", factory) if int(number) <= 256}
    for dim in (*TRIAL_DIMS, *(16 * number for number in sorted(parts))):
        index, reason = _attempt(factory, dim, Metric.L2)
        if index is not None:
            _check_kind(factory, index)
            return factory
    raise InvalidInputError(f"index={text!r} is not an index that FAISS can make ({reason}); {KNOWN}")


def make_index(factory: str, dim: int, metric: Metric) -> Any:
    """Return the empty index of a factory string.

    Raises
    ------
    InvalidInputError
        If it does not go with the dimension.
    UnsupportedOperationError
        If FAISS has no such index for the metric, or the store cannot use it.
    """
    index, reason = _attempt(factory, dim, metric)
    wanted = faiss.METRIC_L2 if metric is Metric.L2 else faiss.METRIC_INNER_PRODUCT
    if index is not None and inner_index(index).metric_type != wanted:
        index, reason = None, "FAISS takes it for l2"
    if index is not None:
        _check_kind(factory, index)
        return index
    if metric is not Metric.L2 and _attempt(factory, dim, Metric.L2)[0] is not None:
        raise UnsupportedOperationError(
            f"FAISS has no index {factory!r} for the metric {str(metric)!r} ({reason}); give another index, "
            "say 'HNSW32', or metric='l2'"
        )
    raise InvalidInputError(
        f"index={factory!r} does not go with vectors of dimension {dim} ({reason}); give one that does: the "
        "numbers of parts of PQ, OPQ and their like must divide the dimension"
    )


def auto_factory(count: int) -> str | None:
    """Return what "auto" stands for with `count` vectors; None for the exact index.

    Inverted lists remove natively, where a graph keeps tombstones; codes of a byte a value take a quarter of
    the vectors' memory. Clustered vectors, 120,000 of 256 dimensions, were indexed in 16 s on two busy cores
    (HNSW32: 22 s), and a query took 0.08 ms instead of 3.6 ms at a recall@10 of 0.997. The number of lists is
    the power of two nearest to 4·√n, or the greatest for which there are enough vectors to train.
    """
    if count <= AUTO_LIMIT:
        return None
    power = min(round(math.log2(count) / 2 + 2), int(math.log2(count / CENTROID_LEAST)))
    return f"IVF{2**power},SQ8"


def inner_index(index: Any) -> Any:
    """Return what stands behind the vector transforms of an index; the index itself if it has none."""
    index = faiss.downcast_index(index)
    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def sizes(index: Any) -> tuple[int, int]:
    """Return how many vectors it takes to build an index, and how many it is trained on at most."""
    outer: Any = faiss.downcast_index(index)
    inner = inner_index(index)
    lists = codes = 0
    if isinstance(inner, faiss.IndexIVF):
        coarse = faiss.downcast_index(inner.quantizer)
        lists = coarse.pq.ksub if isinstance(coarse, faiss.MultiIndexQuantizer) else inner.nlist
    elif isinstance(inner, faiss.IndexHNSW):
        codes = _code_centroids(faiss.downcast_index(inner.storage))
    codes = max(codes, _code_centroids(inner))
    least = max(SMALLEST, CENTROID_LEAST * max(lists, codes))
    most = max(LIST_SAMPLE * lists, CODE_SAMPLE * codes, 65536)
    if isinstance(
        outer, faiss.IndexPreTransform
    ):  # a rotation needs as many vectors as dimensions; OPQ quantizes to bytes
        turned = {type(faiss.downcast_VectorTransform(outer.chain.at(i))) for i in range(outer.chain.size())}
        least = max(least, int(outer.d), CENTROID_LEAST * 256 if faiss.OPQMatrix in turned else 0)
    return least, most


def _code_centroids(index: Any) -> int:
    """Return how many centroids each part of the index's codes chooses from; 0 if there are none."""
    if hasattr(index, "pq"):
        return int(index.pq.ksub)
    for name in ("rq", "lsq", "prq", "plsq", "aq"):
        if hasattr(index, name):
            return 1 << int(faiss.vector_to_array(getattr(index, name).nbits).max())
    return 0


def _attempt(factory: str, dim: int, metric: Metric) -> tuple[Any, str]:
    """Make an index; return it and no reason, or None and FAISS's reason."""
    kind = faiss.METRIC_L2 if metric is Metric.L2 else faiss.METRIC_INNER_PRODUCT
    try:
        return faiss.index_factory(dim, factory, kind), ""
    except MemoryError:
        return None, "it would not fit the memory"
    except RuntimeError as error:
        # "Error in FUNCTION at FILE:LINE: Error: 'CONDITION' failed: REASON", parts of which may be missing.
        lines = str(error).strip().splitlines() or [""]
        return None, re.sub(r"^.*?(?:failed: |\.cpp:\d+: )", "", lines[0]) or "no reason given"


def _check_numbers(text: str, factory: str) -> None:
    """Refuse sizes with which FAISS itself would crash or take all memory."""
    for pattern, name, low, high in (
        (r"IVF(\d+)", "inverted lists", 1, LARGEST_NLIST),
        (r"HNSW(\d+)", "links of a graph", 2, 512),
    ):
        for number in map(int, re.findall(pattern, factory)):
            if not low <= number <= high:
                raise InvalidInputError(
                    f"index={text!r}: the number of {name} must be between {low} and {high}; found {number}"
                )


def _check_kind(factory: str, index: Any) -> None:
    """Refuse indexes whose vectors cannot be added, found again and removed as a store has to."""
    inner = inner_index(index)
    known = (faiss.IndexFlatCodes, faiss.IndexFastScan, faiss.IndexHNSW, faiss.IndexIVF)
    unfit = (faiss.IndexIVFPQR, faiss.IndexLattice)
    # FAISS's building of an NSG does not end where many vectors are equal, and cannot be added to.
    if not isinstance(inner, known) or isinstance(inner, unfit) or "NSG" in factory:
        raise UnsupportedOperationError(
            f"FaissStore cannot use a {type(inner).__name__} (index={factory!r}); {KNOWN}. Distances are "
            "always refined by the vectors themselves, so leave out Refine and IDMap"
        )
