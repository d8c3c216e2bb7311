"""Vectors that exist already, as what a fit takes."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clipretrieval._util.checks import check_sequence, shown
from clipretrieval._util.foreign import is_instance, plain_value
from clipretrieval._util.labels import label_kind, stored_labels
from clipretrieval._util.unit_length import to_unit_length
from clipretrieval._util.warning import warn_caller
from clipretrieval.encoding.base import EncodedBatch, Encoder, select_images
from clipretrieval.encoding.fingerprint import differences
from clipretrieval.encoding.streams import VECTORS
from clipretrieval.errors import DimensionMismatchError, FingerprintMismatchError, InvalidInputError
from clipretrieval.images.stream import SkippedImage, check_on_error
from clipretrieval.retrieval.inputs import FitSource, read_vectors, ready, vector_labels
from clipretrieval.retrieval.manifest import Origin, plain_fingerprint, vector_fingerprint
from clipretrieval.retrieval.parameters import check_encoder
from clipretrieval.retrieval.transform_plan import NORM, TRANSFORM
from clipretrieval.retrieval.unusable import direction_needed
from clipretrieval.stores.exact import row_norms
from clipretrieval.types import Metric
from clipretrieval.vectors.array_reader import ArrayReader
from clipretrieval.vectors.arrow_content import is_arrow_table, open_arrow_table
from clipretrieval.vectors.arrow_reader import ArrowReader
from clipretrieval.vectors.column_names import ColumnNames
from clipretrieval.vectors.part_manifest import SOURCE
from clipretrieval.vectors.vector_block import VectorBlock
from clipretrieval.vectors.vector_files import means_files, open_vector_files
from clipretrieval.vectors.vector_reader import VectorReader

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

__all__ = ["ReadyVectors", "joint_encoder"]

_UNIT = 0.01
"""By how much a length may differ from one where vectors were scaled to it, and then rounded to float16."""
_OWN_KEYS = frozenset({SOURCE, NORM, TRANSFORM})
"""Of a record's metadata, what the library itself keeps there."""


class ReadyVectors:
    """Vectors with their labels and ids, read from files or handed over.

    Parameters
    ----------
    vectors, labels, ids, column
        As for `RetrievalClassifier.fit_vectors`.

    Raises
    ------
    InvalidInputError
        If files cannot be read, or parts of them were made by different encoders.
    """

    def __init__(self, vectors: Any, labels: Any, ids: Any, column: str | None) -> None:
        named = ColumnNames(
            column,
            ids if isinstance(ids, str) else None,
            labels if isinstance(labels, str) else None,
        )
        self._readers: Sequence[VectorReader] | None
        if means_files(vectors):
            self._readers = open_vector_files(vectors, named)
        elif is_arrow_table(vectors):
            self._readers = [ArrowReader(open_arrow_table(vectors), named)]
        else:
            self._readers = None
            _check_not_table(vectors)
            for name, value in (("labels", named.labels), ("ids", named.ids), ("column", column)):
                if value is not None:
                    raise InvalidInputError(
                        f"{name}={value!r} is the name of a column, and vectors have none: they are "
                        f"{shown(vectors)}. Pass {name} as a sequence, or the path of a file"
                    )
        self._given = vectors
        self._labels = None if labels is None or isinstance(labels, str) else labels
        self._ids = None if ids is None or isinstance(ids, str) else _checked_ids(ids)
        if self._readers is not None:
            _check_parts(self._readers)
            if self._labels is None:
                _check_labels(self._readers)

    @property
    def class_to_idx(self) -> Mapping[str, int]:
        """The names of classes, where the labels are their numbers."""
        first = self._readers[0] if self._readers else None
        return first.class_to_idx if first is not None and self._labels is None else {}

    def fit_source(
        self,
        estimator: BaseEstimator,
        *,
        encoder: Encoder | None,
        metric: Metric,
        normalize: bool,
        on_error: str,
        reset: bool = True,
        ahead: int | None = None,
    ) -> FitSource:
        """Return what a fit reads; the arguments are those of `open_fit_source`.

        Raises
        ------
        DimensionMismatchError
            If the vectors have another dimension than the encoder's, or than those before.
        FingerprintMismatchError
            If a file says that another encoder made them, or that they were scaled otherwise.
        InvalidInputError
            If a file says that an encoder made them, and there is none here.
        """
        check_on_error(on_error)
        readers = self._readers
        if readers is None:
            # An encoder's classifier has no features of its own, which a check would note.
            checking = estimator if encoder is None else copy.copy(estimator)
            try:
                rows = read_vectors(checking, self._given, reset=reset or encoder is not None)
            except TypeError as error:  # which scikit-learn has for what is no number
                raise InvalidInputError(
                    f"vectors must be an array of numbers of shape (n, d), or files of such ({error}); got "
                    f"{shown(self._given)}"
                ) from error
            readers = [ArrayReader(rows)]
        _check_origin(readers, encoder, normalize)
        _check_dim(readers, encoder, None if reset else getattr(estimator, "n_features_in_", None))
        counts = [reader.count for reader in readers]
        total = sum(counts) if None not in counts else None  # type: ignore[arg-type]
        labels = self._checked_labels(total)
        if self._ids is not None and total is not None and len(self._ids) != total:
            raise InvalidInputError(f"there are {total} vectors and {len(self._ids)} ids; pass one each")
        dim = readers[0].dim
        found = vector_fingerprint(dim) if encoder is None else plain_fingerprint(encoder.fingerprint)
        skipped: list[SkippedImage] = []

        begun: list[tuple[int, str]] = []  # at which place of the source, and which file

        def batches(known: Any) -> Iterator[EncodedBatch]:
            begun.clear()
            made = self._batches(readers, labels, metric, normalize, encoder, on_error, skipped, begun)
            return ready(made, None, metric, False, on_error, skipped, stored=True)

        def refuse(name: str, place: int) -> None:
            start, where = next(each for each in reversed(begun) if each[0] <= place)
            raise InvalidInputError(
                f"row {place - start} of {where} has the id {shown(name)}, under which another vector has "
                "come, or is stored. Give each vector an id of its own; to give a stored id another vector, "
                "forget it first"
            )

        return FitSource(
            batches,
            Origin(found, metric, normalize),
            total,
            skipped,
            dim=dim,
            labels=labels or (),
            on_other_vector=refuse,
        )

    def _checked_labels(self, total: int | None) -> list[Any] | None:
        if self._labels is None:
            return None
        if total is None:
            labels = [plain_value(each) for each in check_sequence(self._labels, "labels", "int or of str")]
        else:
            labels = vector_labels(self._labels, total)
        stored_labels(labels, label_kind(labels))
        return labels

    def _batches(
        self,
        readers: Sequence[VectorReader],
        labels: list[Any] | None,
        metric: Metric,
        normalize: bool,
        encoder: Encoder | None,
        on_error: str,
        skipped: list[SkippedImage],
        begun: list[tuple[int, str]],
    ) -> Iterator[EncodedBatch]:
        start = 0
        for reader in readers:
            begun.append((start, reader.name))
            scaled = reader.manifest is not None and reader.manifest.normalize
            own = 0  # rows of this file
            for block in reader.blocks():
                if start == 0 and not normalize and metric is not Metric.COSINE:
                    _warn_of_unit_length(block, reader, encoder)
                end = start + len(block)
                batch = EncodedBatch(
                    ids=_ids(block, None if self._ids is None else self._ids[start:end], reader.name, own),
                    vectors={VECTORS: block.vectors},
                    labels=_labels(block, None if labels is None else labels[start:end], reader.name, own),
                    sources=[None] * len(block) if block.sources is None else list(block.sources),
                    indices=list(range(start, end)),
                    metadata=[] if block.metadata is None else [_foreign(each) for each in block.metadata],
                )
                usable = _usable(batch, own - start, reader.name, metric, on_error, skipped)
                if normalize and not scaled:
                    usable.vectors[VECTORS] = to_unit_length(usable.vectors[VECTORS])
                if len(usable):
                    yield usable
                start, own = end, own + len(block)
        for what, given in (("labels", labels), ("ids", self._ids)):
            if given is not None and len(given) != start:
                raise InvalidInputError(f"there are {start} vectors and {len(given)} {what}; pass one each")


def joint_encoder(own: Encoder | None, given: Any) -> Encoder | None:
    """Return the encoder that made vectors: the classifier's own, or the one that a call is given.

    Raises
    ------
    FingerprintMismatchError
        If they are two, and compute different vectors.
    """
    if given is None or given is own:
        return own
    check_encoder(given)
    if own is None:
        found: Encoder = given
        return found
    faults = differences(
        plain_fingerprint(own.fingerprint),
        plain_fingerprint(given.fingerprint),
        words=("the classifier has", "the vectors'"),
    )
    if faults:
        raise FingerprintMismatchError(
            "the classifier has another encoder than the one that is said to have made the vectors: "
            f"{'; '.join(faults)}. Make the classifier with that one"
        )
    return own


def _check_not_table(vectors: Any) -> None:
    """Refuse tables of kinds that are not read, and say what to pass.

    Raises
    ------
    InvalidInputError
    """
    if is_instance(vectors, "pandas", "DataFrame") and not all(
        getattr(kind, "kind", "O") in "biuf" for kind in vectors.dtypes
    ):
        raise InvalidInputError(
            "vectors is a DataFrame with columns that are no numbers; pass it as a table: "
            "pyarrow.Table.from_pandas(frame)"
        )
    for kind, what in (
        ("IterableDataset", "one that is not: load it without streaming=True"),
        ("DatasetDict", "one split of it"),
    ):
        if is_instance(vectors, "datasets", kind):
            raise InvalidInputError(f"vectors is a {kind} of Hugging Face's; pass {what}")


def _check_parts(readers: Sequence[VectorReader]) -> None:
    """Refuse files that were made by different encoders, or have different dimensions.

    Raises
    ------
    FingerprintMismatchError, DimensionMismatchError
        The message names two of the files.
    """
    first = readers[0]
    stated = next((each for each in readers if each.manifest is not None), None)
    for reader in readers:
        if stated is not None and reader.manifest is not None:
            faults = differences(_said(stated), _said(reader), words=("the first has", "the second"))
            if faults:
                raise FingerprintMismatchError(
                    f"{stated.name} and {reader.name} were made by different encoders: "
                    f"{'; '.join(faults)}. Their vectors cannot be compared; pass those of one encoder"
                )
        if reader.dim != first.dim:
            raise DimensionMismatchError(
                f"{first.name} has vectors of {first.dim} dimensions and {reader.name} of {reader.dim}; pass "
                "those of one encoder"
            )
    _check_shards(readers)


def _check_labels(readers: Sequence[VectorReader]) -> None:
    """Refuse files without labels, or whose labels are of several types, before anything is stored.

    Raises
    ------
    InvalidInputError
    """
    unlabelled = next((reader for reader in readers if not reader.has_labels), None)
    if unlabelled is not None:
        raise _without_labels(unlabelled.name)
    known = [reader for reader in readers if reader.label_type is not None]
    for reader in known:
        if reader.label_type != known[0].label_type:
            raise InvalidInputError(
                f"the labels of {known[0].name} are {known[0].label_type}, and those of {reader.name} "
                f"{reader.label_type}; write all of one type"
            )


def _check_shards(readers: Sequence[VectorReader]) -> None:
    """Refuse two parts of one shard, and warn where some of a source are not among the files.

    Raises
    ------
    InvalidInputError

    Warns
    -----
    ClipRetrievalWarning
    """
    there: dict[str, dict[int, VectorReader]] = {}
    cuts: dict[str, tuple[int, VectorReader]] = {}
    for reader in readers:
        shard = {} if reader.manifest is None else reader.manifest.shard
        source, number, of = (shard.get(key) for key in ("source", "number", "of"))
        if not isinstance(source, str) or type(number) is not int or type(of) is not int:
            continue
        cut, first = cuts.setdefault(source, (of, reader))
        if cut != of:
            raise InvalidInputError(
                f"{first.name} is of {source!r} cut into {cut} shards, and {reader.name} of the same cut "
                f"into {of}: images would be read twice. Pass the parts of one cut"
            )
        other = there.setdefault(source, {}).setdefault(number, reader)
        if other is not reader:
            raise InvalidInputError(
                f"{other.name} and {reader.name} are both of shard {number} of {source!r}, before and after "
                "its images changed: encode(…, replace=True) leaves the one that is right"
            )
    for source, numbers in there.items():
        of = cuts[source][0]
        if len(numbers) < of:
            missing = next(number for number in range(1, of + 1) if number not in numbers)
            warn_caller(
                f"{of - len(numbers)} of the {of} parts of {source!r} are not among the files, part "
                f"{missing} first; encode what is missing if the classifier is to have all images"
            )


def _said(reader: VectorReader) -> dict[str, Any]:
    manifest = reader.manifest
    if manifest is None:
        return {}
    return {**manifest.encoder, "normalize": manifest.normalize}


def _check_origin(readers: Sequence[VectorReader], encoder: Encoder | None, normalize: bool) -> None:
    """Compare what files say of their vectors with what the classifier is to search among."""
    for reader in readers:
        manifest = reader.manifest
        if manifest is None:
            continue
        if manifest.normalize and not normalize:
            raise FingerprintMismatchError(
                f"the vectors of {reader.name} were scaled to length one, and the classifier's are not; pass "
                "normalize=True"
            )
        stated = manifest.fingerprint
        if stated is None:
            continue
        if encoder is None:
            what = ", ".join(f"{key}={stated[key]!r}" for key in ("encoder", "stage") if key in stated)
            raise InvalidInputError(
                f"an encoder made the vectors of {reader.name} ({what or 'one of your own'}); pass the same: "
                "encoder=…"
            )
        own = plain_fingerprint(encoder.fingerprint)
        faults = differences(stated, own, words=("the file has", "the encoder"))
        if faults:
            raise FingerprintMismatchError(
                f"the vectors of {reader.name} were made by a different encoder: "
                f"{'; '.join(faults)}. Pass the one that made them"
            )


def _check_dim(readers: Sequence[VectorReader], encoder: Encoder | None, known: int | None) -> None:
    wanted = known if encoder is None else int(encoder.dim)
    if wanted is not None and readers[0].dim != wanted:
        whose = "those before them" if encoder is None else "the encoder's"
        raise DimensionMismatchError(
            f"{readers[0].name} has vectors of {readers[0].dim} dimensions, and {whose} have {wanted}; pass "
            "vectors of the same encoder, stage and pooling"
        )


def _checked_ids(ids: Any) -> list[str]:
    """Return ids as str, each of another vector.

    Raises
    ------
    InvalidInputError
        If one is no id, or comes twice.
    """
    found = [_id(each, f"ids[{row}]") for row, each in enumerate(check_sequence(ids, "ids", "str"))]
    if len(set(found)) < len(found):
        seen: dict[str, int] = {}
        for row, each in enumerate(found):
            if each in seen:
                raise InvalidInputError(
                    f"ids must be unique; {shown(each)} is that of the rows {seen[each]} and {row}"
                )
            seen[each] = row
    return found


def _id(value: Any, what: str) -> str:
    value = plain_value(value, "an id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise InvalidInputError(f"{what} is {shown(value)}; an id is a str that is not empty, or an int")
    return value


def _ids(block: VectorBlock, given: Sequence[str] | None, name: str, row: int) -> list[str]:
    if given is not None:
        return list(given)
    if block.ids is not None:
        return [_id(each, f"the id in row {row + place} of {name}") for place, each in enumerate(block.ids)]
    return [hashlib.blake2b(each.tobytes(), digest_size=16).hexdigest() for each in block.vectors]


def _labels(block: VectorBlock, given: Sequence[Any] | None, name: str, row: int) -> list[Any]:
    if given is not None:
        return [*given, *[None] * (len(block) - len(given))]
    if block.labels is None:
        raise _without_labels(name)
    missing = next((place for place, each in enumerate(block.labels) if _is_none(each)), None)
    if missing is not None:
        raise InvalidInputError(f"row {row + missing} of {name} has no label; give it one, or leave it out")
    return list(block.labels)


def _without_labels(name: str) -> InvalidInputError:
    return InvalidInputError(
        f"{name} has no labels; pass labels, one for each vector, or labels='…', the name of a column"
    )


def _is_none(label: Any) -> bool:
    return label is None or (isinstance(label, float) and math.isnan(label))


def _foreign(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key not in _OWN_KEYS}


def _usable(
    batch: EncodedBatch,
    shift: int,
    name: str,
    metric: Metric,
    on_error: str,
    skipped: list[SkippedImage],
) -> EncodedBatch:
    """Refuse or skip vectors that can be neither stored nor searched.

    `shift` is what takes a place in the source to a row of the file.
    """
    norms = row_norms(batch.vectors[VECTORS])
    faulty = ~np.isfinite(norms)
    needed = direction_needed(metric)
    zero = norms == 0 if needed else np.zeros(len(norms), dtype=bool)
    if not (faulty | zero).any():
        return batch
    for row in np.flatnonzero(faulty | zero).tolist():
        what = (
            "NaN or infinite values" if faulty[row] else f"nothing but zeros, and {needed} needs a direction"
        )
        reason = f"row {batch.indices[row] + shift} of {name} has {what}"
        if on_error == "raise":
            raise InvalidInputError(f"{reason}. Leave it out, or pass on_error='skip' to skip it")
        skipped.append(SkippedImage(batch.indices[row], batch.sources[row], reason))
    return select_images(batch, np.flatnonzero(~(faulty | zero)).tolist())


def _warn_of_unit_length(block: VectorBlock, reader: VectorReader, encoder: Encoder | None) -> None:
    """Warn of vectors that were scaled to length one, of an encoder that does not do so.

    Warns
    -----
    ClipRetrievalWarning
    """
    staged = is_instance(encoder, "clipretrieval.encoding.staged_encoder", "StagedEncoder")
    if reader.manifest is not None or not staged or "+" in f"{encoder.stage}{encoder.pooling}":  # type: ignore[union-attr]
        return
    if len(block) > 1 and (np.abs(row_norms(block.vectors) - 1) < _UNIT).all():
        warn_caller(
            f"the vectors of {reader.name} have length one, as clip-retrieval and others scale them, and the "
            "encoder's have not: pass normalize=True, or metric='cosine', or images will be compared wrongly"
        )
