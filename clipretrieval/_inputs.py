"""What a classifier is given, checked and turned into streams of vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d, validate_data

from clipretrieval._labels import label_kind, stored_labels
from clipretrieval._manifest import plain_fingerprint, vector_fingerprint
from clipretrieval._sources import open_labels
from clipretrieval._streams import image_batches, vector_batches
from clipretrieval._timing import Timing
from clipretrieval.encoding.base import EncodedBatch
from clipretrieval.errors import DimensionMismatchError, InvalidInputError, StoreError
from clipretrieval.images import SkippedImage, check_on_error, count_hint
from clipretrieval.stores import create_store
from clipretrieval.stores.base import VectorStore
from clipretrieval.types import FloatArray, Metric, Neighbors
from clipretrieval.voting import WEIGHTINGS

if TYPE_CHECKING:
    from clipretrieval.classifier import RetrievalClassifier

__all__ = [
    "Source",
    "check_k",
    "check_neighbors",
    "check_params",
    "fit_source",
    "gather",
    "make_store",
    "query_source",
]

_STORE_MEMBERS = (
    *("metric", "dim", "upsert", "search", "get", "delete", "count"),
    *("read_manifest", "write_manifest", "flush", "close"),
)
MOST_NEIGHBORS = 1_000_000
_ENCODER_MEMBERS = ("dim", "fingerprint", "encode")

Batches = Iterator[tuple[EncodedBatch, FloatArray]]


@dataclass
class Source:
    """Labelled vectors on their way into a store.

    Attributes
    ----------
    batches : iterator of (EncodedBatch, ndarray)
    fingerprint : mapping
        Of the encoder.
    metric : Metric
    total : int or None
        Number of images, where it is known beforehand.
    skipped : list of SkippedImage
        Grows as the batches are read.
    """

    batches: Batches
    fingerprint: Mapping[str, Any]
    metric: Metric
    total: int | None
    skipped: list[SkippedImage] = field(default_factory=list)


def check_params(classifier: RetrievalClassifier) -> None:
    """Refuse constructor arguments that cannot work; scikit-learn has them checked at fit."""
    check_k(classifier.k)
    metric = Metric.parse(classifier.metric)
    weights, temperature = classifier.weights, classifier.temperature
    if not callable(weights) and (not isinstance(weights, str) or weights not in WEIGHTINGS):
        raise InvalidInputError(
            f"unknown weights {weights!r}; choose one of {', '.join(map(repr, WEIGHTINGS))}, or pass a "
            "callable"
        )
    if not isinstance(temperature, int | float | np.number) or not 0 < temperature < np.inf:
        raise InvalidInputError(f"temperature must be a positive number; got {temperature!r}")
    if isinstance(weights, str) and weights == "distance" and metric == Metric.IP:
        raise InvalidInputError(
            "weights='distance' needs distances that are not negative; with metric='ip' use 'softmax'"
        )
    encoder = classifier.encoder
    missing = (
        [] if encoder is None else [name for name in _ENCODER_MEMBERS if not hasattr(type(encoder), name)]
    )
    missing = [] if encoder is None else [name for name in _ENCODER_MEMBERS if not hasattr(encoder, name)]
    if isinstance(encoder, type):
        missing = ["an instance: it is a class"]
    if missing:
        raise InvalidInputError(
            f"encoder={encoder!r} is not an encoder: it lacks {', '.join(missing)}. Pass a StagedEncoder, an "
            "object that follows clipretrieval.encoding.Encoder, or None to classify vectors"
        )


def check_k(k: Any) -> int:
    """Return `k` as an int.

    Raises
    ------
    InvalidInputError
        If it is not a whole number from 1 to a million.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise InvalidInputError(f"k must be a whole number of at least 1; got {k!r}")
    if k > MOST_NEIGHBORS:
        raise InvalidInputError(f"k must be at most {MOST_NEIGHBORS}; got {k!r}")
    return int(k)


def make_store(classifier: RetrievalClassifier) -> VectorStore:
    """Make the store that a name stands for, or check the one that was given."""
    store, options = classifier.store, classifier.store_options or {}
    if not isinstance(options, Mapping):
        raise InvalidInputError(f"store_options must be a mapping of argument names; got {options!r}")
    metric = Metric.parse(classifier.metric)
    if "metric" in options and Metric.parse(options["metric"]) != metric:
        raise InvalidInputError(
            f"store_options say metric={str(options['metric'])!r} and the classifier {str(metric)!r}; pass "
            "the metric to the classifier alone"
        )
    if isinstance(store, str):
        return create_store(store, **{"metric": metric, **options})
    missing = [name for name in _STORE_MEMBERS if not hasattr(store, name)]
    if missing or isinstance(store, type):
        raise InvalidInputError(
            f"store={store!r} is not a vector store: it lacks {', '.join(missing) or 'an instance'}. Pass a "
            "registered name, or an object that follows clipretrieval.stores.VectorStore"
        )
    if options:
        raise InvalidInputError(
            "store_options are for a store given by name; this one is an instance already"
        )
    if Metric.parse(store.metric) != metric:
        raise InvalidInputError(
            f"the store's metric is {str(store.metric)!r} and the classifier's {str(metric)!r}; "
            f"pass metric={str(store.metric)!r}"
        )
    return store


def fit_source(classifier: RetrievalClassifier, X: Any, y: Any, on_error: str) -> Source:
    """Check what `fit` was given, as far as that goes without reading it, and open it."""
    check_on_error(on_error)
    metric = Metric.parse(classifier.metric)
    skipped: list[SkippedImage] = []
    if classifier.encoder is None:
        rows, labels = _fit_vectors(classifier, X, y)
        return Source(
            vector_batches(rows, labels), vector_fingerprint(rows.shape[1]), metric, len(rows), skipped
        )
    if y is not None:
        length, labels = open_labels(y)
        y = labels if length is None else list(labels)
        if length:
            stored_labels(y, label_kind(y))
    fingerprint = plain_fingerprint(classifier.encoder.fingerprint)
    batches = image_batches(classifier.encoder, X, y, on_error=on_error, skipped=skipped)
    return Source(batches, fingerprint, metric, count_hint(X), skipped)


def query_source(
    classifier: RetrievalClassifier, X: Any, y: Any, on_error: str, skipped: list[SkippedImage]
) -> Batches:
    """Open what a fitted classifier is asked about."""
    check_on_error(on_error)
    if classifier.encoder is not None:
        return image_batches(classifier.encoder, X, y, on_error=on_error, skipped=skipped)
    try:
        with np.errstate(over="ignore"):
            rows = validate_data(classifier, X, reset=False, dtype=np.float32, order="C")
    except ValueError as error:  # a TypeError stays one, as scikit-learn has it
        raise _translated(error) from error
    if y is None:
        return vector_batches(rows)
    labels = list(open_labels(y)[1])
    if len(labels) != len(rows):
        raise InvalidInputError(f"there are {len(rows)} vectors and {len(labels)} labels; pass one each")
    return vector_batches(rows, labels)


def check_neighbors(near: Neighbors, n: int, k: int, store: VectorStore) -> Neighbors:
    """Refuse what no store may answer.

    Raises
    ------
    StoreError
        If shapes are wrong, a distance is NaN, rows do not ascend, or a query found nothing.
    """
    fault = ""
    if not near.ids.shape == near.distances.shape == near.labels.shape == (n, k):
        fault = (
            f"arrays of shape {near.ids.shape}, {near.distances.shape} and {near.labels.shape}, not {(n, k)}"
        )
    elif np.isnan(near.distances).any() or (near.distances[:, 1:] < near.distances[:, :-1]).any():
        fault = "distances that are NaN or do not ascend"
    elif not np.isfinite(near.distances[:, 0]).all():
        fault = "no neighbour at all for a query, though it counts some"
    if fault:
        raise StoreError(f"{type(store).__name__}.search returned {fault}; the store has a fault of its own")
    return near


def gather(batches: Batches, size: int, timing: Timing, tell: Callable[[int], None] | None = None) -> Batches:
    """Join small batches until `size` items are together; count the time they took to come, and `tell`."""
    waiting: list[tuple[EncodedBatch, FloatArray]] = []
    for batch, vectors in batches:
        for part, seconds in batch.seconds.items():
            timing.add(part, seconds, len(batch))
        waiting.append((batch, vectors))
        if tell is not None:
            tell(len(batch))
        if sum(len(b) for b, _ in waiting) >= size:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[tuple[EncodedBatch, FloatArray]]) -> tuple[EncodedBatch, FloatArray]:
    batches = [batch for batch, _ in parts]
    vectors = np.concatenate([rows for _, rows in parts])
    joined = EncodedBatch(
        ids=[item for batch in batches for item in batch.ids],
        vectors={},
        labels=[item for batch in batches for item in batch.labels],
        sources=[item for batch in batches for item in batch.sources],
        indices=[item for batch in batches for item in batch.indices],
    )
    return joined, vectors


def _fit_vectors(classifier: RetrievalClassifier, X: Any, y: Any) -> tuple[FloatArray, Any]:
    first = X[0] if isinstance(X, list | tuple) and X else X
    if isinstance(first, str | Path | bytes):
        raise InvalidInputError(
            f"this classifier has no encoder, so it takes vectors, an array of shape (n, d), and not "
            f"{str(first)[:80]!r}; for images pass one: RetrievalClassifier(StagedEncoder(…))"
        )
    if y is None:
        raise InvalidInputError(
            "RetrievalClassifier requires y to be passed, but the target y is None; pass one label for "
            "each vector"
        )
    if isinstance(y, list | tuple) and y and not isinstance(y[0], list | tuple | np.ndarray):
        kind = label_kind(y)  # before NumPy makes one type of several, or drops a character
        if kind == "str":
            stored_labels(y, kind)
    try:
        with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused as such
            rows, labels = validate_data(classifier, X, y, dtype=np.float32, order="C")
        check_classification_targets(labels)
        labels = column_or_1d(labels)
    except ValueError as error:  # a TypeError stays one, as scikit-learn has it
        raise _translated(error) from error
    stored_labels(labels.tolist(), label_kind(labels.tolist()))
    return rows, labels


def _translated(error: Exception) -> InvalidInputError:
    kind = DimensionMismatchError if "features, but" in str(error) else InvalidInputError
    return kind(str(error))
