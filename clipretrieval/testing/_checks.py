"""Distances worked out plainly in float64, and the checks of a search's answer against them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval.types import Neighbors, Records

__all__ = [
    "allowed_error",
    "check_arrays",
    "check_distances",
    "check_labels",
    "check_order",
    "share_found",
    "true_distances",
]

DoubleArray = npt.NDArray[np.float64]


def true_distances(queries: npt.NDArray[Any], rows: npt.NDArray[Any], metric: str) -> DoubleArray:
    """Return all distances in float64, shape (n_queries, n), by the definitions of `Metric`."""
    left, right = queries.astype(np.float64)[:, None, :], rows.astype(np.float64)[None, :, :]
    if metric == "l2":
        squared: DoubleArray = np.square(left - right).sum(axis=-1)
        return squared
    products: DoubleArray = (left * right).sum(axis=-1)
    if metric == "ip":
        return np.negative(products)
    squares: DoubleArray = np.square(left).sum(axis=-1) * np.square(right).sum(axis=-1)
    cosines: DoubleArray = products / np.sqrt(squares)
    return 1 - cosines


def allowed_error(
    queries: npt.NDArray[Any], rows: npt.NDArray[Any], metric: str, tolerance: float
) -> DoubleArray:
    """Return how far a distance may be off, shape (n_queries, n)."""
    if metric == "cosine":
        return np.full((len(queries), len(rows)), tolerance)
    left, right = (np.linalg.norm(each.astype(np.float64), axis=1) for each in (queries, rows))
    if metric == "ip":
        return np.asarray(tolerance * np.multiply.outer(left, right))
    return np.asarray(tolerance * np.square(np.add.outer(left, right)))


def check_arrays(near: Neighbors, n_queries: int, k: int, count: int) -> None:
    """Check shapes and types, and that a row is padded just where the store holds too few vectors."""
    shape = (n_queries, k)
    for name, array in (("ids", near.ids), ("distances", near.distances), ("labels", near.labels)):
        assert array.shape == shape, f"{name} must have shape (n_queries, k) = {shape}; found {array.shape}"
    assert near.distances.dtype == np.float32, f"distances must be float32; found {near.distances.dtype}"
    assert near.ids.dtype == object, f"ids must be an array of object (str); found {near.ids.dtype}"
    assert near.labels.dtype in (np.int64, object), (
        f"labels must be int64 or object; found {near.labels.dtype}"
    )
    expected = np.broadcast_to(np.arange(k) < count, shape)
    assert np.array_equal(near.valid, expected), (
        f"of {count} vectors a search with k={k} must return {min(k, count)} and pad the rest with the "
        f"distance +inf; the numbers of finite distances are {near.valid.sum(axis=1).tolist()}"
    )
    padding = near.labels[~expected].tolist()
    assert near.ids[~expected].tolist() == [""] * len(padding), 'where a row is padded, the id must be ""'
    assert set(padding) <= {-1, ""}, f'where a row is padded, the label must be -1 or ""; found {padding}'
    for row in near.ids.tolist():
        real = row[: min(k, count)]
        assert all(type(name) is str for name in real), f"ids must be str; found {real}"
        assert len(set(real)) == len(real), f"a search must return each id once; found {real}"


def check_distances(
    near: Neighbors, truth: Records, queries: npt.NDArray[Any], metric: str, tol: float
) -> None:
    """Check each distance against that of the query and the vector stored under the id."""
    if not near.valid.any():
        return
    places = {name: place for place, name in enumerate(truth.ids)}
    expected = true_distances(queries, truth.vectors, metric)
    allowed = allowed_error(queries, truth.vectors, metric, tol)
    for query, column in zip(*np.nonzero(near.valid), strict=True):
        name = near.ids[query, column]
        assert name in places, f"a search returned the id {name!r}, which is not stored"
        found, place = float(near.distances[query, column]), places[name]
        right = expected[query, place]
        assert abs(found - right) <= allowed[query, place], (
            f"under {metric!r} the distance to {name!r} must be {right:.7g} (lower is nearer: l2 is the "
            f"squared distance, cosine is 1 - cosine, ip is minus the inner product); found {found:.7g}"
        )


def check_order(near: Neighbors) -> None:
    """Check that each row ascends and that equal distances are in the order of their ids."""
    for distances, ids in zip(near.distances.tolist(), near.ids.tolist(), strict=True):
        assert distances == sorted(distances), f"the distances of a row must ascend; found {distances}"
        real = [pair for pair in zip(distances, ids, strict=True) if np.isfinite(pair[0])]
        assert real == sorted(real), f"equal distances must be in the order of their ids; found {real}"


def check_labels(near: Neighbors, truth: Records) -> None:
    """Check that each neighbour carries the label stored under its id."""
    labels = dict(zip(truth.ids.tolist(), truth.labels.tolist(), strict=True))
    for name, label in zip(near.ids[near.valid].tolist(), near.labels[near.valid].tolist(), strict=True):
        assert name in labels, f"a search returned the id {name!r}, which is not stored"
        right = labels[name]
        assert (label, type(label)) == (right, type(right)), (
            f"the neighbour {name!r} must carry its own label {right!r}; found {label!r}"
        )


def share_found(
    near: Neighbors, truth: Records, queries: npt.NDArray[Any], metric: str, tolerance: float
) -> float:
    """Return the share of the returned ids that are among the true nearest or tie with the last of them."""
    reach = min(near.ids.shape[1], len(truth))
    if not reach or not len(queries):
        return 1.0
    expected = true_distances(queries, truth.vectors, metric)
    limit = np.sort(expected, axis=1)[:, reach - 1, None]
    good = expected <= limit + 2 * allowed_error(queries, truth.vectors, metric, tolerance)
    hits = sum(
        len(set(near.ids[query].tolist()) & set(truth.ids[good[query]].tolist()))
        for query in range(len(queries))
    )
    return float(hits / (reach * len(queries)))
