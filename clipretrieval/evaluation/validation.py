"""Which images settings are tuned on, and that nothing is measured on those again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from clipretrieval._util.checks import check_int, check_number
from clipretrieval._util.timing import Timing
from clipretrieval.encoding.base import EncodedBatch, select_images
from clipretrieval.errors import InvalidInputError
from clipretrieval.types import Neighbors

__all__ = ["Validation", "check_untuned", "count_known"]

FRACTION = 0.5
_GIVEN = (
    "were given to {} since the last fit, so results on them are too good; evaluate on images that neither "
    "calibrate nor conformalize was given"
)
TUNED_BY = {
    "sweep": "were tuned on by sweep since the last fit, so results on them are too good; evaluate on "
    "others, such as those listed in held_out of the sweep's result",
    "calibrate": _GIVEN.format("calibrate"),
    "conformalize": _GIVEN.format("conformalize"),
    "cascade": "were used to calibrate the cascade, so results on them are too good; evaluate on others",
}
"""What may have been tuned, and how an error tells of its images."""


class Validation:
    """The validation part of a source: drawn by content, in whatever order the images come.

    An image belongs to it if a hash of its content id and the seed, as a number in [0, 1), lies below the
    fraction. So neither the number of images nor all labels need to be known beforehand, equal images
    fall on the same side, and an image stays on its side whatever comes with it. The part's size, and its
    share of each class, are those of independent draws: about the fraction.

    Parameters
    ----------
    fraction : float in (0, 1], "all" or None
        None means a half.
    seed : int
    before : frozenset of str
        Content ids that were tuned on earlier; they are not held out.

    Attributes
    ----------
    ids : set of str
        Content ids of the part; grows as batches are read.
    held_out : list of int
        Places in the source of the images that are neither in the part nor in `before`.
    """

    def __init__(self, fraction: float | str | None, seed: int, before: frozenset[str]) -> None:
        self.fraction = _check_fraction(fraction)
        self.seed = check_int(seed, "seed", least=-(2**63))
        self.before = before
        self.ids: set[str] = set()
        self.held_out: list[int] = []

    def pick(
        self,
        batches: Iterator[EncodedBatch],
        timing: Timing,
        tell: Callable[[int], None],
    ) -> Iterator[EncodedBatch]:
        """Yield the images of the part; count times, and `tell` the number of images, of all that come.

        Raises
        ------
        InvalidInputError
            At the end, if images came and none is in the part.
        """
        total = 0
        for batch in batches:
            total += len(batch)
            for part, seconds in batch.seconds.items():
                timing.add(part, seconds, len(batch))
            tell(len(batch))
            places = [place for place, image in enumerate(batch.ids) if self.draws(image)]
            chosen = set(places)
            self.ids.update(batch.ids[place] for place in places)
            self.held_out += [
                index
                for place, (index, image) in enumerate(zip(batch.indices, batch.ids, strict=True))
                if place not in chosen and image not in self.before
            ]
            if places:
                yield replace(select_images(batch, places), seconds={})
        if total and not self.ids:
            raise InvalidInputError(
                f"none of the {total} images fell into the validation part, validation={self.fraction}; pass "
                "more images, a larger fraction, or validation='all'"
            )

    def draws(self, image: str) -> bool:
        """Tell whether an image belongs to the part."""
        digest = hashlib.blake2b(f"{self.seed}:{image}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.fraction * 2.0**64


def check_untuned(tuned: Mapping[str, Set[str]], ids: Sequence[str], before: int) -> None:
    """Refuse to measure on images that something was tuned on since the last fit.

    Parameters
    ----------
    tuned : mapping of str to set of str
        Content ids of images, by what was tuned on them: a key of `TUNED_BY`.
    ids : sequence of str
        Content ids of the images that have just come.
    before : int
        Images that came before them.

    Raises
    ------
    InvalidInputError
    """
    for by, known in tuned.items():
        met = sum(image in known for image in ids)
        if met:
            raise InvalidInputError(
                f"{met} of the first {before + len(ids)} images {TUNED_BY[by]}, or pass allow_tuned=True"
            )


def count_known(ids: Sequence[str], near: Neighbors) -> int:
    """Count the images that are among their own neighbors: those that the store holds already.

    Parameters
    ----------
    ids : sequence of str, length n
        Content ids.
    near : Neighbors
        Each of shape (n, k). Old stores may hold repeats of an image, with a suffix behind a hyphen.
    """
    rows = near.ids.tolist()
    return sum(
        any(found.partition("-")[0] == own for found in row) for own, row in zip(ids, rows, strict=True)
    )


def _check_fraction(fraction: Any) -> float:
    if fraction is None:
        return FRACTION
    if isinstance(fraction, str) and fraction == "all":
        return 1.0
    return check_number(fraction, f"validation, unless it is 'all' or None for {FRACTION},", above=0, most=1)
