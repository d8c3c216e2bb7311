"""Whether two vectors that go by one id are of one image."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from clipretrieval.retrieval.rewriting import stored_norms
from clipretrieval.retrieval.transform import LinearTransform
from clipretrieval.types import FloatArray, Metric, Records

__all__ = ["is_other", "raw_vectors", "with_other_vectors"]

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


def with_other_vectors(
    rows: Iterable[tuple[str, int, int]],
    vectors: FloatArray,
    records: Records | None,
    transform: LinearTransform | None,
    metric: Metric,
) -> set[int]:
    """Return which places of a source come with another vector than the one before of the same id.

    Parameters
    ----------
    rows : iterable of (id, place in the source, row of `vectors`)
    vectors : ndarray of float32, shape (n, dim)
        Before any map.
    records : Records or None
        What a store holds under some of the ids.
    transform : LinearTransform or None
        The map that these went through. Vectors are compared before it, as it makes small differences great;
        behind it where it has cut dimensions.
    metric : Metric
    """
    before: dict[str, FloatArray] = {}
    if records is not None and len(records):
        if transform is not None and transform.is_cut:
            vectors, stored = transform.apply(vectors)[0], records.vectors
        else:
            stored = raw_vectors(records, transform)
        before = dict(zip(records.ids.tolist(), stored, strict=True))
    others = set[int]()
    for name, place, row in rows:
        vector = vectors[row]
        if is_other(vector, before.setdefault(name, vector), metric):
            others.add(place)
            before[name] = vector
    return others
