"""What a classifier is given, checked and turned into streams of vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.exceptions import DataConversionWarning
from sklearn.preprocessing import normalize
from sklearn.utils.validation import assert_all_finite, validate_data

from clipretrieval._util.checks import shown
from clipretrieval._util.foreign import as_array, dense_vectors, is_instance, plain_value
from clipretrieval._util.labels import label_kind, stored_labels
from clipretrieval._util.rounding import RangeWatch, warn_of_rounding
from clipretrieval._util.timing import Timing
from clipretrieval._util.warning import warn_caller
from clipretrieval.encoding.base import EncodedBatch, KnownIds
from clipretrieval.encoding.streams import image_batches, vector_batches
from clipretrieval.errors import DimensionMismatchError, InvalidInputError, StoreError
from clipretrieval.images.folders import ImageFolder, scan_folder
from clipretrieval.images.sources import count_hint, has_named_labels, means_folder, open_labels
from clipretrieval.images.stream import SkippedImage, check_on_error
from clipretrieval.images.tables import ImageTable, is_table, labelled_source, single_column
from clipretrieval.retrieval.manifest import plain_fingerprint, vector_fingerprint
from clipretrieval.retrieval.unusable import check_rows, direction_needed, usable_pairs
from clipretrieval.stores.base import VectorStore
from clipretrieval.stores.exact import row_norms
from clipretrieval.types import FloatArray, Metric, Neighbors

if TYPE_CHECKING:
    from clipretrieval._learner import Learner
    from clipretrieval.classifier import RetrievalClassifier

__all__ = ["Source", "check_neighbors", "fit_source", "gather", "none_left", "query_source"]

Batches = Iterator[tuple[EncodedBatch, FloatArray]]

LEAST_SQUARABLE, MOST_SQUARABLE = 2.0**-40, 2.0**40
"""Values between these can be squared and added up in float32."""


@dataclass
class Source:
    """Labelled vectors on their way into a store.

    Attributes
    ----------
    open : callable
        Given a `KnownIds` or None, starts to read: an iterator of (EncodedBatch, ndarray).
    fingerprint : mapping
        Of the encoder.
    metric : Metric
    normalize : bool
        Whether the vectors have length one.
    total : int or None
        Number of images, where it is known beforehand.
    skipped : list of SkippedImage
        Grows as the batches are read.
    named : bool
        Whether the labels are names of folders, or of a CSV file, which may have any Unicode form.
    """

    open: Callable[[KnownIds | None], Batches]
    fingerprint: Mapping[str, Any]
    metric: Metric
    normalize: bool
    total: int | None
    skipped: list[SkippedImage] = field(default_factory=list)
    named: bool = False


def fit_source(
    classifier: Learner, X: Any, y: Any, on_error: str, *, reset: bool = True, ahead: int | None = None
) -> Source:
    """Check what `fit` was given, as far as that goes without reading it.

    Parameters
    ----------
    classifier : Learner
    X, y, on_error
        As for `fit`.
    reset : bool
        Whether vectors may have another dimension than those before.
    ahead : int, optional
        The most images that are encoded before they are asked for.
    """
    check_on_error(on_error)
    metric, unit = Metric.parse(classifier.metric), bool(classifier.normalize)
    skipped: list[SkippedImage] = []
    if classifier.encoder is None:
        rows, labels = _fit_vectors(classifier, X, y, reset)
        if on_error == "raise":  # before the store is touched
            check_rows(rows, direction_needed(metric))
        return Source(
            lambda known: _ready(classifier, vector_batches(rows, labels), on_error, skipped, stored=True),
            vector_fingerprint(rows.shape[1]),
            metric,
            unit,
            len(rows),
            skipped,
        )
    named = y is None and has_named_labels(X)
    X = labelled_source(scan_folder(X) if isinstance(X, str | PathLike) and means_folder(X) else X, y)
    listed = X.labels if y is None and isinstance(X, ImageFolder | ImageTable) else None
    if y is not None:
        length, each = open_labels(y)
        y = each if length is None else list(each)
        listed = y if length else None
    if listed:
        stored_labels(listed, label_kind(listed))
    encoder = classifier.encoder
    return Source(
        lambda known: _ready(
            classifier,
            image_batches(encoder, X, y, on_error=on_error, skipped=skipped, known=known, ahead=ahead),
            on_error,
            skipped,
            stored=True,
        ),
        plain_fingerprint(encoder.fingerprint),
        metric,
        unit,
        count_hint(X),
        skipped,
        named,
    )


def query_source(
    classifier: RetrievalClassifier, X: Any, y: Any, on_error: str, skipped: list[SkippedImage]
) -> Batches:
    """Open what a fitted classifier is asked about."""
    check_on_error(on_error)
    if classifier.encoder is not None:
        batches = image_batches(classifier.encoder, X, y, on_error=on_error, skipped=skipped)
    else:
        rows = _checked_rows(classifier, X, reset=False)
        labels = None if y is None else _vector_labels(y, len(rows))
        batches = vector_batches(rows, labels)
    return _ready(classifier, batches, on_error, skipped, stored=False)


def none_left(purpose: str, skipped: Sequence[SkippedImage]) -> str:
    """Return what an error says where no image is left "to fit on"; the first that was skipped tells why."""
    if not skipped:
        return f"there are no images {purpose}; pass at least one"
    return f"none of the {len(skipped)} images {purpose} could be used; the first: {skipped[0].reason}"


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


def gather(
    batches: Batches,
    size: int,
    timing: Timing,
    tell: Callable[[int], None] | None = None,
    keep: Callable[[], bool] = lambda: True,
) -> Batches:
    """Join small batches until `size` items are together; count the time they took to come, and `tell`.

    What came before a failure or Ctrl-C is still yielded, if `keep` says so.
    """
    waiting: list[tuple[EncodedBatch, FloatArray]] = []
    try:
        for batch, vectors in batches:
            for part, seconds in batch.seconds.items():
                timing.add(part, seconds, len(batch))
            waiting.append((batch, vectors))
            if tell is not None:
                tell(len(batch) + len(batch.known))
            if sum(len(b) + len(b.known) for b, _ in waiting) >= size:
                yield _joined(waiting)
                waiting = []
    except (Exception, KeyboardInterrupt):
        if waiting and keep():
            yield _joined(waiting)
        raise
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
        known=[item for batch in batches for item in batch.known],
    )
    return joined, vectors


def _ready(
    classifier: Learner, batches: Batches, on_error: str, skipped: list[SkippedImage], *, stored: bool
) -> Batches:
    """Return the vectors as they are stored and searched, without those that cannot be."""
    encoder, metric = classifier.encoder, Metric.parse(classifier.metric)
    usable = usable_pairs(
        batches,
        direction_needed(metric),
        encoder="" if encoder is None else f"{type(encoder).__name__}.encode",
        on_error=on_error,
        skipped=skipped,
    )
    return _prepared(usable, bool(classifier.normalize), metric, stored=stored)


def _prepared(batches: Batches, unit: bool, metric: Metric, *, stored: bool) -> Batches:
    """Scale vectors to length one where that is asked for, and watch the range of others."""
    watch = RangeWatch(metric, stored=stored)
    for batch, vectors in batches:
        if unit:
            yield batch, _unit(vectors)
            continue
        if len(vectors):
            watch.see(vectors, row_norms(vectors))
        yield batch, vectors
    if not unit:
        watch.end()


def _unit(vectors: FloatArray) -> FloatArray:
    """Scale rows to length one; a row of zeros stays one.

    The squares of very large or small values leave float32. Such rows are multiplied by a power of two first,
    which changes no digit.
    """
    if not len(vectors):
        return vectors
    largest = np.abs(vectors).max(axis=1)
    far = (largest > 0) & ((largest < LEAST_SQUARABLE) | (largest > MOST_SQUARABLE))
    if far.any():
        vectors = vectors.copy()
        vectors[far] = np.ldexp(vectors[far], -np.frexp(largest[far])[1][:, None])
    scaled: FloatArray = normalize(vectors)
    return scaled


def _checked_rows(classifier: Learner, X: Any, *, reset: bool) -> FloatArray:
    """Check vectors as scikit-learn does, and return them as float32, shape (n, d)."""
    _refuse_images(X)
    given = dense_vectors(X, "X")
    if getattr(getattr(given, "dtype", None), "kind", "") in ("M", "m"):
        raise InvalidInputError(f"vectors must be real numbers; found dtype {given.dtype}")
    try:
        with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused as such
            rows: FloatArray = validate_data(classifier, given, reset=reset, dtype=np.float32, order="C")
    except (ValueError, OverflowError) as error:  # a TypeError stays one, as scikit-learn has it
        raise _translated(error) from error
    warn_of_rounding(given, rows)
    return rows


def _fit_vectors(classifier: Learner, X: Any, y: Any, reset: bool) -> tuple[FloatArray, list[Any]]:
    _refuse_images(X)
    if y is None:
        raise InvalidInputError(
            "RetrievalClassifier requires y to be passed, but the target y is None; pass one label for "
            "each vector"
        )
    rows = _checked_rows(classifier, X, reset=reset)
    labels = _vector_labels(y, len(rows))
    kind = label_kind(labels)
    if kind == "float":
        try:
            assert_all_finite(np.array(labels, dtype=np.float64), input_name="y")
        except ValueError as error:
            raise _translated(error) from error
    stored_labels(labels, kind)
    return rows, labels


def _refuse_images(X: Any) -> None:
    """Refuse images where there is no encoder."""
    first = X[0] if isinstance(X, list | tuple) and X else X
    if isinstance(first, str | PathLike | bytes | Iterator) or is_instance(first, "PIL.Image", "Image"):
        raise InvalidInputError(
            f"this classifier has no encoder, so it takes vectors, an array of shape (n, d), and not "
            f"{shown(first)}; for images pass one: RetrievalClassifier(StagedEncoder(…))"
        )


def _vector_labels(y: Any, count: int) -> list[Any]:
    """Return one label for each of `count` vectors, as Python values that went through no other type.

    A table of one column, or an array of shape (n, 1), is taken with scikit-learn's warning.
    """
    given: Any = y
    first = y[0] if isinstance(y, list | tuple) and y else None
    if is_table(y) and not isinstance(y, str | PathLike):
        given = single_column(y)
    elif len(getattr(y, "shape", ())) == 2 or (
        isinstance(first, list | tuple | np.ndarray) and np.ndim(first)
    ):
        array = as_array(y, "y")
        given = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else None
    if given is None:
        shape = "one of several columns" if is_table(y) else f"one of the shape {np.shape(y)}"
        raise InvalidInputError(f"y should be a 1d array with one label for each vector; got {shape}")
    if given is not y:
        warn_caller(
            "A column-vector y was passed when a 1d array was expected. Please change the shape of y to "
            "(n_samples, ), for example using ravel().",
            DataConversionWarning,
        )
    labels = list(open_labels(given)[1])
    if len(labels) != count:
        raise InvalidInputError(f"there are {count} vectors and {len(labels)} labels; pass one each")
    return [plain_value(label) for label in labels]


def _translated(error: Exception) -> InvalidInputError:
    kind = DimensionMismatchError if "features, but" in str(error) else InvalidInputError
    return kind(str(error))
