"""What a classifier is given, checked and turned into streams of vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from clipretrieval._util.checks import shown
from clipretrieval._util.foreign import as_array, dense_vectors, is_instance, plain_value
from clipretrieval._util.labels import label_kind, stored_labels
from clipretrieval._util.rounding import RangeWatch, warn_of_rounding
from clipretrieval._util.unit_length import to_unit_length
from clipretrieval._util.warning import warn_caller
from clipretrieval.encoding.base import EncodedBatch, Encoder, KnownIds
from clipretrieval.encoding.streams import VECTORS, image_batches, vector_batches
from clipretrieval.errors import DimensionMismatchError, InvalidInputError
from clipretrieval.images.folders import ImageFolder
from clipretrieval.images.listing import listed as list_source
from clipretrieval.images.sources import count_hint, has_named_labels, open_labels
from clipretrieval.images.stream import SkippedImage, check_on_error
from clipretrieval.images.tables import ImageTable, is_table, labelled_source, single_column
from clipretrieval.retrieval.manifest import Origin, plain_fingerprint, vector_fingerprint
from clipretrieval.retrieval.transform import LinearTransform
from clipretrieval.retrieval.unusable import check_rows, direction_needed, usable_batches
from clipretrieval.stores.exact import row_norms
from clipretrieval.types import FloatArray, Metric

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

__all__ = [
    *("FitSource", "read_vectors", "none_left", "open_fit_source", "ready", "vector_labels"),
]


@dataclass
class FitSource:
    """Labelled vectors on their way into a store.

    Attributes
    ----------
    open : callable
        Given a `KnownIds` or None, starts to read: an iterator of `EncodedBatch`.
    origin : Origin
        What the vectors are made by.
    total : int or None
        Number of images, where it is known beforehand.
    skipped : list of SkippedImage
        Grows as the batches are read.
    named : bool
        Whether the labels are names of folders, or of a CSV file, which may have any Unicode form.
    dim : int
        Of the vectors.
    labels : sequence
        As they were given; empty where they are not known beforehand.
    on_other_vector : callable, optional
        As for `IndexWriter`; where the ids are not the library's own.
    """

    open: Callable[[KnownIds | None], Iterator[EncodedBatch]]
    origin: Origin
    total: int | None
    skipped: list[SkippedImage] = field(default_factory=list)
    named: bool = False
    dim: int = 0
    labels: Sequence[Any] = ()
    on_other_vector: Callable[[str, int], None] | None = None


def open_fit_source(
    estimator: BaseEstimator,
    X: Any,
    y: Any,
    *,
    encoder: Encoder | None,
    metric: Metric,
    normalize: bool,
    on_error: str,
    reset: bool = True,
    ahead: int | None = None,
    stages: Sequence[str] = (),
) -> FitSource:
    """Check what `fit` was given, as far as that goes without reading it.

    Parameters
    ----------
    estimator : BaseEstimator
        Whose number and names of features vectors must have, or get.
    X, y, on_error
        As for `fit`.
    encoder : Encoder or None
    metric : Metric
    normalize : bool
    reset : bool
        Whether vectors may have another dimension than those before.
    ahead : int, optional
        The most images that are encoded before they are asked for.
    stages : sequence of str
        The vectors of these are given, by their names, instead of the encoder's own; it then has to be a
        `StagedEncoder`.
    """
    check_on_error(on_error)
    skipped: list[SkippedImage] = []
    if encoder is None:
        rows, labels = _fit_vectors(estimator, X, y, reset)
        if on_error == "raise":  # before the store is touched
            check_rows(rows, direction_needed(metric))
        return FitSource(
            lambda known: ready(
                vector_batches(rows, labels), None, metric, normalize, on_error, skipped, stored=True
            ),
            Origin(vector_fingerprint(rows.shape[1]), metric, normalize),
            len(rows),
            skipped,
            dim=rows.shape[1],
            labels=labels,
        )
    named = y is None and has_named_labels(X)
    X = labelled_source(list_source(X), y)
    listed = X.labels if y is None and isinstance(X, ImageFolder | ImageTable) else None
    if y is not None:
        length, each = open_labels(y)
        y = each if length is None else list(each)
        listed = y if length else None
    if listed:
        stored_labels(listed, label_kind(listed))
    if stages:
        streaming: Any = encoder
        return FitSource(
            lambda known: _stages_ready(
                streaming.stream(
                    X, y, stages=tuple(stages), on_error=on_error, skipped=skipped, known=known, ahead=ahead
                ),
                stages,
                metric,
                normalize,
                on_error,
                skipped,
            ),
            Origin(plain_fingerprint(encoder.fingerprint), metric, normalize),
            count_hint(X),
            skipped,
            named,
            int(encoder.dim),
            listed or (),
        )
    return FitSource(
        lambda known: ready(
            image_batches(encoder, X, y, on_error=on_error, skipped=skipped, known=known, ahead=ahead),
            encoder,
            metric,
            normalize,
            on_error,
            skipped,
            stored=True,
        ),
        Origin(plain_fingerprint(encoder.fingerprint), metric, normalize),
        count_hint(X),
        skipped,
        named,
        int(encoder.dim),
        listed or (),
    )


def none_left(purpose: str, skipped: Sequence[SkippedImage]) -> str:
    """Return what an error says where no image is left "to fit on"; the first that was skipped tells why."""
    if not skipped:
        return f"there are no images {purpose}; pass at least one"
    return f"none of the {len(skipped)} images {purpose} could be used; the first: {skipped[0].reason}"


def ready(
    batches: Iterable[EncodedBatch],
    encoder: Encoder | None,
    metric: Metric,
    normalize: bool,
    on_error: str,
    skipped: list[SkippedImage],
    *,
    stored: bool,
    transform: LinearTransform | None = None,
) -> Iterator[EncodedBatch]:
    """Return the vectors as they are stored and searched, without those that cannot be.

    Those that are stored go through their `transform` when they are put there, where it may be learned first.
    """
    directed = direction_needed(metric)
    usable = usable_batches(
        batches,
        {VECTORS: directed} if directed else {},
        encoder="" if encoder is None else f"{type(encoder).__name__}.encode",
        on_error=on_error,
        skipped=skipped,
    )
    prepared = _prepared(usable, normalize, metric, stored=stored)
    return prepared if transform is None else _mapped(prepared, transform)


def _stages_ready(
    batches: Iterable[EncodedBatch],
    stages: Sequence[str],
    metric: Metric,
    normalize: bool,
    on_error: str,
    skipped: list[SkippedImage],
) -> Iterator[EncodedBatch]:
    """Return the vectors of several stages as they are stored, without images of which one cannot be."""
    directed = direction_needed(metric)
    needs = {stage: f"{directed} at the stage {stage!r}" for stage in stages} if directed else {}
    usable = usable_batches(
        batches, needs, encoder="StagedEncoder.stream", on_error=on_error, skipped=skipped
    )
    for batch in usable:
        if normalize:
            scaled = {stage: to_unit_length(vectors) for stage, vectors in batch.vectors.items()}
            yield replace(batch, vectors=scaled)
        else:
            yield batch


def _prepared(
    batches: Iterable[EncodedBatch], unit: bool, metric: Metric, *, stored: bool
) -> Iterator[EncodedBatch]:
    """Scale vectors to length one where that is asked for, and watch the range of others."""
    watch = RangeWatch(metric, stored=stored)
    for batch in batches:
        vectors = batch.vectors[VECTORS]
        if unit:
            yield replace(batch, vectors={VECTORS: to_unit_length(vectors)})
            continue
        if len(vectors):
            watch.see(vectors, row_norms(vectors))
        yield batch
    if not unit:
        watch.end()


def _mapped(batches: Iterable[EncodedBatch], transform: LinearTransform) -> Iterator[EncodedBatch]:
    for batch in batches:
        yield (
            replace(batch, vectors={VECTORS: transform.apply(batch.vectors[VECTORS])[0]})
            if len(batch)
            else batch
        )


def read_vectors(estimator: BaseEstimator | None, X: Any, *, reset: bool) -> FloatArray:
    """Check vectors as scikit-learn does, and return them as float32, shape (n, d)."""
    from sklearn.utils.validation import validate_data

    _refuse_images(X)
    given = dense_vectors(X, "X")
    if getattr(getattr(given, "dtype", None), "kind", "") in ("M", "m"):
        raise InvalidInputError(f"vectors must be real numbers; found dtype {given.dtype}")
    try:
        with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused as such
            rows: FloatArray = validate_data(estimator, given, reset=reset, dtype=np.float32, order="C")
    except (ValueError, OverflowError) as error:  # a TypeError stays one, as scikit-learn has it
        raise _translated(error) from error
    warn_of_rounding(given, rows)
    return rows


def _fit_vectors(estimator: BaseEstimator, X: Any, y: Any, reset: bool) -> tuple[FloatArray, list[Any]]:
    from sklearn.utils.validation import assert_all_finite

    _refuse_images(X)
    if y is None:
        raise InvalidInputError(
            "RetrievalClassifier requires y to be passed, but the target y is None; pass one label for "
            "each vector"
        )
    rows = read_vectors(estimator, X, reset=reset)
    labels = vector_labels(y, len(rows))
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


def vector_labels(y: Any, count: int) -> list[Any]:
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
        from sklearn.exceptions import DataConversionWarning

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
