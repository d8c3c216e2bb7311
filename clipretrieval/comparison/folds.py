"""The parts that labelled images are divided into, so that nothing is measured on what it was chosen by."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval.errors import InvalidInputError
from clipretrieval.types import Label

__all__ = ["CROSSED", "LEAST", "Folds", "check_class_sizes", "divide"]

Ints = npt.NDArray[np.int64]

CROSSED = 2000
"""Images up to which all are answered in turn; of more, a fifth tells enough."""

LEAST = 3
"""Images that each class needs: one to be stored, one to choose on, one to measure on."""

MOST = 10_000
"""Images that are chosen on, and measured on, at most, where not all are."""

NAMED = 5
"""Small classes that an error names."""


@dataclass(frozen=True, eq=False)
class Folds:
    """A division of images.

    Attributes
    ----------
    numbers : ndarray of int64, shape (n,)
        The fold of each image. Where not all are answered in turn, those of fold 0 are chosen on, those of
        fold 1 measured on, and the others are stored, all of them fold 2.
    crossed : bool
        Whether each fold is answered by what the others hold.
    """

    numbers: Ints
    crossed: bool

    @property
    def count(self) -> int:
        """Number of folds."""
        return int(self.numbers.max()) + 1

    @property
    def chosen_on(self) -> Ints:
        """Places of the images whose answers the choice is made by, ascending."""
        return np.arange(len(self.numbers)) if self.crossed else np.flatnonzero(self.numbers == 0)

    @property
    def turns(self) -> list[tuple[Ints, Ints]]:
        """Places of the images that are stored, and of those that are answered by them, of each turn."""
        if not self.crossed:
            return [(np.flatnonzero(self.numbers > 1), self.chosen_on)]
        numbers = range(self.count)
        return [(np.flatnonzero(self.numbers != one), np.flatnonzero(self.numbers == one)) for one in numbers]

    @property
    def measured_on(self) -> tuple[Ints, Ints]:
        """Places of the images that are stored, and of those that the choice is measured on by them."""
        return np.flatnonzero(self.numbers != 1), np.flatnonzero(self.numbers == 1)


def check_class_sizes(labels: Sequence[Any]) -> None:
    """Refuse labels of which nothing can be measured.

    Raises
    ------
    InvalidInputError
        If there are fewer than two classes, or fewer than three images of a class.
    """
    counts = Counter(labels)
    if len(counts) < 2:
        raise InvalidInputError(
            f"there is only one class, {next(iter(counts))!r}; pass labeled images of at least two"
            if counts
            else "there are no labeled images; pass images of at least two classes"
        )
    small = [(label, count) for label, count in counts.items() if count < LEAST]
    if small:
        told = ", ".join(f"{label!r} has {count}" for label, count in small[:NAMED])
        raise InvalidInputError(
            f"each class needs at least {LEAST} different images, to be stored, chosen on and measured on: "
            f"{told}{', …' if len(small) > NAMED else ''}. Add images, or leave such classes out"
        )


def divide(ids: Sequence[str], labels: Sequence[Label], folds: int, seed: int, crossed: bool) -> Folds:
    """Divide images, each class for itself, by the contents of all of them.

    The order in which they come changes nothing. One image more or less divides them anew: did an image's own
    content decide, then whatever is drawn from the same images would be measured on the same few of them, and
    err the same way each time.

    Parameters
    ----------
    ids : sequence of str, length n
        Content ids, each once.
    labels : sequence of (int or str), length n
        As stored, at least `LEAST` of each.
    folds : int
        At least 3. Of a class with fewer images, some folds have none.
    seed : int
    crossed : bool
        Whether all images are answered in turn.
    """
    salt = _digest("\n".join([str(seed), *sorted(ids)]))
    ranks = {place: _digest(f"{salt}:{name}") for place, name in enumerate(ids)}
    members: dict[Label, list[int]] = {}
    for place in sorted(ranks, key=ranks.__getitem__):
        members.setdefault(labels[place], []).append(place)
    part = min(1 / folds, MOST / len(ids))
    numbers = np.full(len(ids), 2, dtype=np.int64)
    begun = 0
    for label in sorted(members):
        places = np.array(members[label])
        if crossed:
            # Each class goes on where the one before it has ended, so that small ones do not heap up.
            numbers[places] = (begun + np.arange(len(places))) % folds
            begun += len(places)
            continue
        size = max(1, round(part * len(places)))
        numbers[places[:size]], numbers[places[size : 2 * size]] = 0, 1
    return Folds(numbers, crossed)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
