"""Held-out labelled images, kept as vectors."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import shown
from clipretrieval._util.labels import Spelling, label_kind, stored_labels
from clipretrieval._util.progress import Progress, image_counter
from clipretrieval._util.timing import Timing
from clipretrieval._util.warning import warn_caller
from clipretrieval.encoding.base import EncodedBatch
from clipretrieval.encoding.streams import VECTORS, gather
from clipretrieval.errors import InvalidInputError
from clipretrieval.images.stream import SkippedImage
from clipretrieval.images.tables import labelled_source
from clipretrieval.retrieval.edit import held_ids
from clipretrieval.retrieval.given_labels import GivenLabels
from clipretrieval.retrieval.inputs import none_left
from clipretrieval.retrieval.retriever import QUERIES, Retriever
from clipretrieval.retrieval.true_labels import check_kind, check_truth
from clipretrieval.stores.base import VectorStore
from clipretrieval.types import FloatArray, Label

__all__ = ["NAMED", "CalibrationImages"]

NAMED = 3
"""Images or classes that an error or a warning names, at most."""


@dataclass(frozen=True, eq=False)
class CalibrationImages:
    """Images with their labels, each once, in the order of their ids.

    Attributes
    ----------
    ids : tuple of str, length n
        Content ids.
    vectors : ndarray of float32, shape (n, dim)
        As they would be stored, before any `transform`, which may be learned anew.
    labels : tuple of (int or str), length n
        As stored.
    """

    ids: tuple[str, ...]
    vectors: FloatArray
    labels: tuple[Label, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def read(
        cls,
        retriever: Retriever,
        X: Any,
        y: Any,
        *,
        purpose: str,
        elsewhere: CalibrationImages | None,
        on_error: str,
        progress: Progress,
    ) -> tuple[CalibrationImages, list[SkippedImage]]:
        """Encode labelled images, and refuse those that the classifier has seen.

        Parameters
        ----------
        retriever : Retriever
        X, y, on_error, progress
            As for `RetrievalClassifier.conformalize`.
        purpose : {"conformalize", "calibrate"}
            The method that they are for.
        elsewhere : CalibrationImages, optional
            Those that the other method was given.

        Returns
        -------
        images : CalibrationImages
        skipped : list of SkippedImage

        Raises
        ------
        InvalidInputError
            If there are none, labels are missing, of another type, or none of the classes, or images are
            stored, or were given to the other method.
        """
        index, skipped = retriever.index, list[SkippedImage]()
        index.look()
        index.number_classes()  # takes up those that the store has gained
        check_truth(index, X, y)
        X = labelled_source(X, y) if index.encoder is not None else X
        tell = image_counter(progress, retriever.count_hint(X), skipped)
        raw = Retriever(replace(index, transform=None), retriever.estimator)
        found, given = dict[str, tuple[FloatArray, Label]](), GivenLabels()
        kind = None
        spelling = Spelling(index.classes.labels.tolist())
        for batch in gather(raw.encode(X, y, on_error, skipped), QUERIES, Timing(), tell):
            kind = label_kind(batch.labels, kind, places=batch.indices)
            check_kind(kind, index.classes.kind)
            labels = spelling.apply(stored_labels(batch.labels, kind, index.classes.kind))
            _check_classes(labels, set(index.classes.codes), purpose)
            _check_new(batch, held_ids(index.store, batch.ids), _FITTED[purpose])
            _check_new(batch, set(elsewhere.ids if elsewhere else ()), _ELSEWHERE[purpose])
            for name, label, source in zip(batch.ids, labels, batch.sources, strict=True):
                given.note(name, label, None if source is None else str(source))
            found.update(zip(batch.ids, zip(batch.vectors[VECTORS], labels, strict=True), strict=True))
        index.check_manifest()
        if not found:
            raise InvalidInputError(none_left(f"to {purpose} with", skipped))
        _warn_of_conflicts(given, str(index.classes.kind), purpose)
        ids = sorted(found)  # in no order of the source
        vectors = np.stack([found[name][0] for name in ids])
        return cls(tuple(ids), vectors, tuple(found[name][1] for name in ids)), skipped

    def counted(self, store: VectorStore, classes: Container[Label]) -> npt.NDArray[np.intp]:
        """Return the rows of the images that a store does not hold, and whose class is one of `classes`."""
        held = held_ids(store, self.ids)
        rows = [
            row
            for row, (name, label) in enumerate(zip(self.ids, self.labels, strict=True))
            if name not in held and label in classes
        ]
        return np.array(rows, dtype=np.intp)

    def take(self, rows: Sequence[int]) -> CalibrationImages:
        """Return some of them."""
        return CalibrationImages(
            tuple(self.ids[row] for row in rows),
            self.vectors[list(rows)],
            tuple(self.labels[row] for row in rows),
        )

    def parts(self, size: int = QUERIES) -> Iterator[CalibrationImages]:
        """Yield them in parts that are looked up together."""
        for start in range(0, len(self), size):
            yield self.take(range(start, min(start + size, len(self))))


_FITTED = {
    purpose: f"{{n}} of the images are stored in the classifier, such as {{name}}. {why}: {purpose} with "
    "images that it was not fit on, or forget those first"
    for purpose, why in (
        ("conformalize", "Coverage is guaranteed only by images that it has not seen"),
        (
            "calibrate",
            "Its probabilities for images that it has seen do not show how reliable it is on others",
        ),
    )
}
_ELSEWHERE = {
    "conformalize": "{n} of the images were given to calibrate, such as {name}: probabilities that were fit "
    "to them are too good. Split your held-out images in two, one part for each method",
    "calibrate": "{n} of the images were given to conformalize, such as {name}: its coverage would no longer "
    "be guaranteed. Split your held-out images in two, one part for each method",
}


def _check_classes(labels: Sequence[Label], known: set[Label], purpose: str) -> None:
    strange = sorted({label for label in labels if label not in known}, key=str)
    if strange:
        more = f" and {len(strange) - NAMED} more" if len(strange) > NAMED else ""
        raise InvalidInputError(
            f"the classifier has no class {', '.join(map(shown, strange[:NAMED]))}{more}; {purpose} with "
            "images of its classes, or add images of those first (partial_fit)"
        )


def _warn_of_conflicts(given: GivenLabels, kind: str, purpose: str) -> None:
    count, conflicts = given.count_and_list(kind)
    if count:
        images = "1 image was" if count == 1 else f"{count} images were"
        warn_caller(
            f"{images} given to {purpose} under several labels, such as {conflicts[0]}; the last label "
            f"counts. Correct the labels, and call {purpose} again"
        )


def _check_new(batch: EncodedBatch, known: set[str], message: str) -> None:
    met = [place for place, name in enumerate(batch.ids) if name in known]
    if met:
        source = batch.sources[met[0]]
        name = f"that at place {batch.indices[met[0]]} (counted from 0)" if source is None else shown(source)
        raise InvalidInputError(message.format(n=len(met), name=name))
