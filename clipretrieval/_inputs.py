"""What a classifier is given, checked and turned into streams of vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d, validate_data

from clipretrieval._labels import label_kind, stored_labels
from clipretrieval._manifest import vector_fingerprint
from clipretrieval._streams import image_batches, vector_batches
from clipretrieval._timing import Timing
from clipretrieval.encoding.base import EncodedBatch
from clipretrieval.errors import DimensionMismatchError, InvalidInputError
from clipretrieval.images import SkippedImage, check_on_error, count_hint
from clipretrieval.stores import create_store
from clipretrieval.stores.base import VectorStore
from clipretrieval.types import FloatArray, Metric
from clipretrieval.voting import WEIGHTINGS

if TYPE_CHECKING:
    from clipretrieval.classifier import RetrievalClassifier

__all__ = ["Source", "check_k", "check_params", "fit_source", "gather", "make_store", "query_source"]

_STORE_MEMBERS = (
    *("metric", "dim", "upsert", "search", "get", "delete", "count"),
    *("read_manifest", "write_manifest", "flush", "close"),
)
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
    Metric.parse(classifier.metric)
    weights, temperature = classifier.weights, classifier.temperature
    if not callable(weights) and weights not in WEIGHTINGS:
        raise InvalidInputError(
            f"unknown weights {weights!r}; choose one of {', '.join(map(repr, WEIGHTINGS))}, or pass a "
            "callable"
        )
    if not isinstance(temperature, int | float | np.number) or not 0 < temperature < np.inf:
        raise InvalidInputError(f"temperature must be a positive number; got {temperature!r}")
    encoder = classifier.encoder
    missing = (
        [] if encoder is None else [name for name in _ENCODER_MEMBERS if not hasattr(type(encoder), name)]
    )
    missing = [name for name in missing if name not in getattr(encoder, "__dict__", {})]
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
        If it is not a whole number of at least 1.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise InvalidInputError(f"k must be a whole number of at least 1; got {k!r}")
    return int(k)


def make_store(classifier: RetrievalClassifier) -> VectorStore:
    """Make the store that a name stands for, or check the one that was given."""
    store, options = classifier.store, dict(classifier.store_options or {})
    metric = Metric.parse(classifier.metric)
    if isinstance(store, str):
        return create_store(store, **{"metric": metric, **options})
    missing = [name for name in _STORE_MEMBERS if not hasattr(store, name)]
    if missing:
        raise InvalidInputError(
            f"store={store!r} is not a vector store: it lacks {', '.join(missing)}. Pass a registered name, "
            "or an object that follows clipretrieval.stores.VectorStore"
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
    if y is not None and hasattr(y, "__len__"):
        labels = y.tolist() if hasattr(y, "tolist") else list(y)
        if labels:
            stored_labels(labels, label_kind(labels))
        y = labels
    batches = image_batches(classifier.encoder, X, y, on_error=on_error, skipped=skipped)
    return Source(batches, classifier.encoder.fingerprint, metric, count_hint(X), skipped)


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
    except ValueError as error:
        raise _translated(error) from error
    if y is None:
        return vector_batches(rows)
    labels = np.asarray(y)
    if labels.shape != (len(rows),):
        raise InvalidInputError(
            f"there are {len(rows)} vectors and labels of shape {labels.shape}; pass one each"
        )
    return vector_batches(rows, labels)


def gather(batches: Batches, size: int, timing: Timing) -> Batches:
    """Join small batches until `size` items are together, and count the time they took to come."""
    waiting: list[tuple[EncodedBatch, FloatArray]] = []
    for batch, vectors in batches:
        for part, seconds in batch.seconds.items():
            timing.add(part, seconds, len(batch))
        waiting.append((batch, vectors))
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
    if y is None:
        raise InvalidInputError(
            "RetrievalClassifier requires y to be passed, but the target y is None; pass one label for "
            "each vector"
        )
    try:
        with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused as such
            rows, labels = validate_data(classifier, X, y, dtype=np.float32, order="C")
        check_classification_targets(labels)
        labels = column_or_1d(labels)
    except ValueError as error:
        raise _translated(error) from error
    stored_labels(labels.tolist(), label_kind(labels.tolist()))
    return rows, labels


def _translated(error: ValueError) -> InvalidInputError:
    kind = DimensionMismatchError if "features, but" in str(error) else InvalidInputError
    return kind(str(error))
