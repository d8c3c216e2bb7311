"""FAISS factory strings: which of them a store can serve, and what their indexes need."""

from __future__ import annotations

import math
import re
from typing import Any

import faiss as _faiss

from clipretrieval._util.checks import shown
from clipretrieval.errors import InvalidInputError, UnsupportedOperationError
from clipretrieval.stores.faiss.memory_budget import MemoryBudget, most_trained_with
from clipretrieval.types import Metric

__all__ = [
    *("AUTO", "FLAT", "WITHIN", "auto_factory", "check_factory", "check_form", "inner_index", "is_auto"),
    *("make_index", "sizes", "transforms"),
]

# Much of what FAISS offers is missing in its type information.
faiss: Any = _faiss
AUTO, FLAT = "auto", "Flat"
WITHIN = re.compile(r"auto,([1-9][0-9]{0,17})", re.ASCII)
"""What "auto" is called within so many bytes."""
# Up to this many vectors "auto" searches exactly.
AUTO_LIMIT = 100_000
# Fewer vectors than this are compared one by one, whatever the index.
SMALLEST = 1000
# A power of two: with fewer lists a search goes through more than one vector in a thousand.
FEWEST_LISTS = 10
# FAISS asks for at least so many training vectors a centroid.
CENTROID_LEAST = 39
LARGEST_NLIST = 1 << 22
# The most floats that an empty index may take for the centroids of its codes, and its rotation.
MOST_CENTROIDS, MOST_ROTATION = 1 << 26, 1 << 24
# Dimensions with many divisors, to tell a string that is wrong from one that is wrong for a dimension.
TRIAL_DIMS = (64, 96, 120, 1024)

LONGEST = 100
_TRANSFORM = r"(?:PCAW?R?\d+|RR\d*|ITQ\d*|OPQ\d+(?:_\d+)?|L2[nN]orm|Pad\d+|HR)"
_SCALAR = "SQ(?:4|6|8|fp16|bf16|8_direct(?:_signed)?)"
_PRODUCT = r"PQ\d+(?:x\d+)?(?:np)?|PQ\d+x4fsr?(?:_\d+)?"
_ADDITIVE = r"P?(?:RQ|LSQ)\d+(?:x\d+)*(?:_\d+x\d+)*(?:fsr?(?:_\d+)?)?(?:_N[a-z0-9]+)?"
_CODES = rf"(?:Flat|{_SCALAR}|{_PRODUCT}|{_ADDITIVE}|RaBitQ\d?(?:fs(?:_\d+)?)?)"
_GRAPH = rf"HNSW\d*(?:[,_](?:Flat|{_SCALAR}|{_PRODUCT}))?"
_COARSE = rf"IVF\d+[kM]?(?:_HNSW\d*|\((?:{_TRANSFORM},){{0,2}}(?:{_GRAPH}|{_CODES})\))?|IMI2x\d+"
_LISTED = rf"(?:{_CODES}|FlatDedup|FlatPanorama\d*|(?:ITQ|PCAR?)\d*,SH[-0-9.e]*[gcm]?)"
GRAMMAR = re.compile(
    rf"(?:{_TRANSFORM},){{0,4}}(?:(?:{_COARSE}),{_LISTED}|{_GRAPH}|{_CODES}|LSH\d*r?t?)", re.ASCII
)
"""What FAISS is asked to make: it crashes, or does not end, on some of what else one may ask of it."""
UNFIT = re.compile(r"NSG|\+|Lattice|Refine|RFlat|MinMax|Residual|IDMap|R?CQ", re.ASCII)
OWN = re.compile(r"^IDMap2?,|,RFlat$")
"""What of a factory string is the store's own to do."""
SPACED_COMMA = re.compile(r"\s*,\s*")
BOUNDS = (
    (re.compile(r"IVF(\d+[kM]?)"), "the number of inverted lists", 1, LARGEST_NLIST),
    (re.compile(r"IMI2x(\d+)"), "nbits of a multi-index", 1, 11),
    (re.compile(r"HNSW(\d+)"), "the number of links of a graph", 2, 512),
    (re.compile(r"(?:PCAW?R?|RR|ITQ|Pad|OPQ\d+_)(\d+)"), "the number of dimensions", 1, 1 << 16),
    (re.compile(r"(?:PQ|RQ|LSQ|FlatPanorama)(\d+)"), "the number of parts", 1, 1 << 16),
    (re.compile(r"(?:PQ|RQ|LSQ)\d+(?:x\d+)*?x(\d+)(?:np|fs|_|,|$)"), "nbits", 1, 16),
    (re.compile(r"LSH(\d+)"), "the number of bits", 1, 1 << 12),
    (re.compile(r"fsr?_(\d+)"), "the size of a block", 32, 1024),
)
"""Numbers in a factory string: where, what they are, the least and the most."""

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
    factory = check_form(text)
    if is_auto(factory):
        return factory
    reason = ""
    parts = {int(number) for number in re.findall(r"\d+", factory) if int(number) <= 256}
    for dim in (*TRIAL_DIMS, *(16 * number for number in sorted(parts))):
        index, reason = _try_to_make(factory, dim, Metric.L2)
        if index is not None:
            _check_kind(factory, index)
            return factory
    raise InvalidInputError(f"index={text!r} is not an index that FAISS can make ({reason}); {KNOWN}")


def check_form(text: str) -> str:
    """Return a factory string as `check_factory` does, having made no index from it."""
    if not isinstance(text, str):
        raise InvalidInputError(
            f"index must be a FAISS factory string; found {shown(text)}. {KNOWN.capitalize()}"
        )
    factory = text.strip()
    if is_auto(factory):
        return factory
    if len(factory) > LONGEST:
        raise InvalidInputError(
            f"index must have {LONGEST} characters at most; found {len(factory)}, {shown(factory)}. "
            f"{KNOWN.capitalize()}"
        )
    factory = OWN.sub("", SPACED_COMMA.sub(",", factory))
    if not GRAMMAR.fullmatch(factory):
        if UNFIT.search(factory):
            raise UnsupportedOperationError(_cannot_use("such an index", factory))
        raise InvalidInputError(f"index={shown(text)} is not an index that FAISS can make; {KNOWN}")
    _check_sizes(text, factory)
    return factory


def make_index(factory: str, dim: int, metric: Metric) -> Any:
    """Return the empty index of a factory string.

    Raises
    ------
    InvalidInputError
        If it does not go with the dimension.
    UnsupportedOperationError
        If FAISS has no such index for the metric, or the store cannot use it.
    """
    index, reason = _try_to_make(factory, dim, metric)
    wanted = faiss.METRIC_L2 if metric is Metric.L2 else faiss.METRIC_INNER_PRODUCT
    if index is not None and inner_index(index).metric_type != wanted:
        index, reason = None, "FAISS takes it for l2"
    if index is not None:
        _check_kind(factory, index)
        return index
    if metric is not Metric.L2 and _try_to_make(factory, dim, Metric.L2)[0] is not None:
        raise UnsupportedOperationError(
            f"FAISS has no index {factory!r} for the metric {str(metric)!r} ({reason}); give another index, "
            "say 'HNSW32', or metric='l2'"
        )
    raise InvalidInputError(
        f"index={factory!r} does not go with vectors of dimension {dim} ({reason}); give one that does: the "
        "numbers of parts of PQ, OPQ and their like must divide the dimension"
    )


def is_auto(factory: str) -> bool:
    """Tell whether an index is chosen by the number of vectors."""
    return factory == AUTO or WITHIN.fullmatch(factory) is not None


def auto_factory(count: int, dim: int = 1, within: str = AUTO) -> str | None:
    """Return what "auto" stands for with `count` vectors; None for the exact index.

    Inverted lists remove natively, where a graph keeps tombstones; codes of a byte a value take a quarter of
    the vectors' memory. Clustered vectors, 120,000 of 256 dimensions, were indexed in 16 s on two busy cores
    (HNSW32: 22 s), and a query took 0.08 ms instead of 3.6 ms at a recall@10 of 0.997. The number of lists is
    the power of two nearest to 4·√n, or the greatest for which there are enough vectors to train.

    Parameters
    ----------
    count, dim : int
    within : str
        ``"auto"``, or what `WITHIN` matches: then the finest codes with which the index takes no more, and if
        there are none such, fewer lists.
    """
    if count <= AUTO_LIMIT:
        return None
    power = min(round(math.log2(count) / 2 + 2), int(math.log2(count / CENTROID_LEAST)))
    found = WITHIN.fullmatch(within)
    if found is None:
        return f"IVF{2**power},SQ8"
    budget = MemoryBudget(int(found[1]), dim)
    return next(
        (
            f"IVF{2**fewer},{codes}"
            for fewer in range(power, FEWEST_LISTS - 1, -1)
            for codes in budget.codes
            if budget.least(count, 2**fewer, codes) <= budget.size
        ),
        None,
    )


def inner_index(index: Any) -> Any:
    """Return what stands behind the vector transforms of an index; the index itself if it has none."""
    index = faiss.downcast_index(index)
    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def transforms(index: Any) -> list[Any]:
    """List the transforms before an index, in the order in which they are applied."""
    return [faiss.downcast_VectorTransform(index.chain.at(place)) for place in range(index.chain.size())]


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
    most = most_trained_with(lists, codes)
    if isinstance(outer, faiss.IndexPreTransform):
        # A rotation needs as many vectors as dimensions; OPQ quantizes to bytes.
        by_products = any(isinstance(step, faiss.OPQMatrix) for step in transforms(outer))
        least = max(least, int(outer.d), CENTROID_LEAST * 256 if by_products else 0)
    return least, most


def _code_centroids(index: Any) -> int:
    """Return how many centroids each part of the index's codes chooses from; 0 if there are none."""
    if hasattr(index, "pq"):
        return int(index.pq.ksub)
    for name in ("rq", "lsq", "prq", "plsq", "aq"):
        if hasattr(index, name):
            return 1 << int(faiss.vector_to_array(getattr(index, name).nbits).max())
    return 0


def _try_to_make(factory: str, dim: int, metric: Metric) -> tuple[Any, str]:
    """Make an index; return it and no reason, or None and FAISS's reason."""
    kind = faiss.METRIC_L2 if metric is Metric.L2 else faiss.METRIC_INNER_PRODUCT
    if _is_too_large(factory, dim):
        return None, "it would not fit the memory"
    try:
        return faiss.index_factory(dim, factory, kind), ""
    except MemoryError:
        return None, "it would not fit the memory"
    except RuntimeError as error:
        # "Error in FUNCTION at FILE:LINE: Error: 'CONDITION' failed: REASON", parts of which may be missing.
        lines = str(error).strip().splitlines() or [""]
        return None, re.sub(r"^.*?(?:failed: |\.cpp:\d+: )", "", lines[0]) or "no reason given"


def _check_sizes(text: str, factory: str) -> None:
    """Refuse sizes with which FAISS itself would crash or take all memory."""
    for pattern, name, low, high in BOUNDS:
        for number in pattern.findall(factory):
            digits = number.rstrip("kM")
            value = int(digits) * {"k": 1 << 10, "M": 1 << 20}.get(number[len(digits) :], 1)
            if not low <= value <= high:
                raise InvalidInputError(
                    f"index={text!r}: {name} must be between {low} and {high}; found {value}"
                )


def _is_too_large(factory: str, dim: int) -> bool:
    """Tell whether an empty index would already fill the memory, or take minutes to make."""
    widths = map(int, re.findall(r"(?:PCAW?R?|RR|ITQ|Pad|OPQ\d+_)(\d+)", factory))
    width = max([dim, *widths])
    bits = [int(number) for number in re.findall(r"(?:PQ\d+|IMI2)x(\d+)", factory)]
    rotation = re.search(r"LSH(\d*)r", factory)
    return (width << max(bits, default=8)) > MOST_CENTROIDS or (
        rotation is not None and width * int(rotation[1] or width) > MOST_ROTATION
    )


def _check_kind(factory: str, index: Any) -> None:
    """Refuse indexes whose vectors cannot be added, found again and removed as a store has to."""
    inner = inner_index(index)
    known = (faiss.IndexFlatCodes, faiss.IndexFastScan, faiss.IndexHNSW, faiss.IndexIVF)
    if not isinstance(inner, known) or isinstance(inner, faiss.IndexHNSW2Level):
        raise UnsupportedOperationError(_cannot_use(f"a {type(inner).__name__}", factory))


def _cannot_use(what: str, factory: str) -> str:
    return (
        f"FaissStore cannot use {what} (index={factory!r}); {KNOWN}. Distances are always refined by the "
        "vectors themselves, so leave out Refine and IDMap"
    )
