"""The training images that cascades are calibrated on, and that nothing is fitted on."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from clipretrieval._util.labels import label_kind, stored_labels
from clipretrieval.comparison.spool import Spool
from clipretrieval.encoding.base import EncodedBatch, select_images
from clipretrieval.evaluation.validation import Validation
from clipretrieval.types import Label

__all__ = ["CalibrationPart"]


class CalibrationPart:
    """A part of the training images, drawn by content as `Validation` draws it.

    The first image of each class is not in it, so that no class is without a stored one.

    Parameters
    ----------
    share : float
        In (0, 1).
    spool : Spool
        Takes their vectors.
    """

    def __init__(self, share: float, spool: Spool) -> None:
        self.spool = spool
        self._drawn = Validation(share, 0, frozenset())
        self._first: dict[Label, str] = {}

    def hold_out(self, batches: Iterator[EncodedBatch]) -> Iterator[EncodedBatch]:
        """Yield what is left of each batch.

        Raises
        ------
        InvalidInputError
            If labels are missing or of mixed types.
        """
        for batch in batches:
            stored = [image.label for image in batch.known]
            kind = label_kind(
                [*stored, *batch.labels], places=[*(i.index for i in batch.known), *batch.indices]
            )
            for image, label in zip(batch.known, stored_labels(stored, kind), strict=True):
                self._first.setdefault(label, image.id)
            labels = stored_labels(batch.labels, kind)
            places = [
                place
                for place, (image, label) in enumerate(zip(batch.ids, labels, strict=True))
                if self._first.setdefault(label, image) != image and self._drawn.draws(image)
            ]
            if places:
                self.spool.add(select_images(batch, places))
                held = set(places)
                left = [place for place in range(len(batch)) if place not in held]
                share = len(left) / len(batch)  # of the time, as the others count as images of no fit
                seconds = {part: each * share for part, each in batch.seconds.items()}
                batch = replace(select_images(batch, left), seconds=seconds)
            yield batch

    def rows(self, without: Collection[str] = ()) -> npt.NDArray[np.intp]:
        """Return a row of the spool for each different image, in the order of the ids, which are hashes.

        Parameters
        ----------
        without : collection of str
            Ids of images that are measured on.
        """
        last = {image: row for row, image in enumerate(self.spool.ids)}
        left_out = {
            *self._first.values(),
            *without,
        }  # a copy with another label may have been the first of it
        return np.array([last[image] for image in sorted(last.keys() - left_out)], dtype=np.intp)
