"""Whether two vectors that go by one id are of one image."""

from __future__ import annotations

import numpy as np

from clipretrieval.retrieval.rewriting import stored_norms
from clipretrieval.retrieval.transform import LinearTransform
from clipretrieval.types import FloatArray, Metric, Records

__all__ = ["comparable", "is_other", "raw_vectors"]

_NEAR = 0.05
"""Of their length, by which vectors of one image may differ: other devices, batches and precisions round
otherwise. Those of two images differ by several times as much."""


def is_other(vector: FloatArray, known: FloatArray, metric: Metric) -> bool:
    """Tell whether a vector cannot be the known one, computed or stored otherwise.

    Under the cosine metric, directions are compared: a store may keep no lengths.
    """
    if np.array_equal(vector, known):
        return False
    one, two = vector.astype(np.float64), known.astype(np.float64)
    norms = float(np.linalg.norm(one)), float(np.linalg.norm(two))
    if metric is Metric.COSINE and min(norms) > 0:
        one, two, norms = one / norms[0], two / norms[1], (1.0, 1.0)
    return bool(np.linalg.norm(one - two) > _NEAR * max(norms))


def raw_vectors(records: Records, transform: LinearTransform | None) -> FloatArray:
    """Return vectors as they were before a map, to float32 precision."""
    if transform is None:
        return records.vectors
    norms = stored_norms(records, range(len(records)))
    return transform.recover(records.vectors, norms).astype(np.float32)


def comparable(
    vectors: FloatArray, records: Records, transform: LinearTransform | None
) -> tuple[FloatArray, FloatArray]:
    """Return raw vectors and those of records so that they can be compared.

    Before the map, which makes small differences great; where that cannot be undone, behind it.
    """
    if transform is None or not transform.is_cut:
        return vectors, raw_vectors(records, transform)
    return transform.apply(vectors)[0], records.vectors
