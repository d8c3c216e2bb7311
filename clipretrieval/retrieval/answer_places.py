"""Where each answer belongs among the images that were asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clipretrieval._util.warning import warn_caller
from clipretrieval.images.stream import SkippedImage
from clipretrieval.types import AnyArray

__all__ = ["AnswerPlaces"]


@dataclass
class AnswerPlaces:
    """The images of one question: those that were skipped, and the place of each that was answered.

    Answers have the places of their images in the source. So whoever pairs them with what was asked is right
    also where images were skipped: these have an empty answer.

    Attributes
    ----------
    skipped : list of SkippedImage
        Grows while images come.
    places : list of int
        The place in the source of each image that was answered.
    """

    skipped: list[SkippedImage] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def warn(self) -> None:
        """Say how many images have no answer."""
        if self.skipped:
            warn_caller(
                f"{len(self.skipped)} of {len(self.skipped) + len(self.places)} images were skipped and "
                f"have an empty answer; the first: {self.skipped[0].reason}"
            )

    def arrange(self, parts: Sequence[AnyArray], empty: Any) -> AnyArray:
        """Join the answers of all batches, with `empty` in the rows of skipped images."""
        joined: AnyArray = np.concatenate(parts)
        if not self.skipped:
            return joined
        whole: AnyArray = np.full((self.count, *joined.shape[1:]), empty, dtype=joined.dtype)
        whole[self.places] = joined
        return whole

    @property
    def count(self) -> int:
        """Images that have come, skipped ones included."""
        return max(*self.places, *(item.index for item in self.skipped), -1) + 1
