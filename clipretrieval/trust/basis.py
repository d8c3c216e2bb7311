"""What predictions depend on: a store's contents as they are now, and the rule that decides by them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from clipretrieval.heads.decision import Decision
from clipretrieval.heads.fitted_head import DecisionRule, FittedHead
from clipretrieval.heads.index_statistics import IndexStatistics
from clipretrieval.heads.statistics import Moments
from clipretrieval.heads.voting import Voting
from clipretrieval.retrieval.changes import is_changing, state_token
from clipretrieval.retrieval.classes import ClassNumbers
from clipretrieval.retrieval.labelled_index import LabelledIndex
from clipretrieval.stores.base import view_manifest
from clipretrieval.trust.calibration_images import CalibrationImages
from clipretrieval.trust.likeness import Likeness, MahalanobisLikeness, NeighborLikeness
from clipretrieval.types import FloatArray, Neighbors, no_neighbors

__all__ = ["Basis", "BasisKey", "Remembered"]

Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class BasisKey:
    """Identifies a basis.

    Attributes
    ----------
    state : tuple or None
        Of the store's contents: the manifest's token, how many records there are, and the digest of what they
        went through. None while they are changed, or may be.
    answering : mapping of JSON values, or None
        The arguments that affect predictions; None if they cannot be written down.
    rule : object
        What decides, in their place.
    more : str or None
        What else the value depends on.
    """

    state: tuple[str | None, int, str | None] | None
    answering: Mapping[str, Any] | None
    rule: Any
    more: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "rule": None}  # what a head has learned may be no thing to copy

    def is_same(self, other: BasisKey) -> bool:
        """Tell whether what was computed with one is valid with the other."""
        if self.state is None or self.state != other.state or self.more != other.more:
            return False
        if self.answering is not None and other.answering is not None:
            return self.answering == other.answering
        if isinstance(self.rule, Voting):
            return bool(self.rule == other.rule)
        return self.rule is not None and self.rule is other.rule


@dataclass(frozen=True, eq=False)
class Remembered(Generic[Value]):
    """A value that was computed by a basis."""

    key: BasisKey
    value: Value


@dataclass(frozen=True, eq=False)
class Basis:
    """What predictions are made with.

    Attributes
    ----------
    index : LabelledIndex
    rule : DecisionRule
        The head's own, not calibrated.
    statistics : callable
        Returns what follows the index's records.
    answering : mapping of JSON values, or None
        As for `BasisKey`.
    """

    index: LabelledIndex
    rule: DecisionRule
    statistics: Callable[[], IndexStatistics]
    answering: Mapping[str, Any] | None

    def key(self, more: str | None = None) -> BasisKey:
        """Return what identifies it; to be called before anything is computed."""
        rule = self.rule.learned if isinstance(self.rule, FittedHead) else self.rule
        return BasisKey(self._state, self.answering, rule, more)

    @cached_property
    def _state(self) -> tuple[str | None, int, str | None] | None:
        manifest, transform = view_manifest(self.index.store), self.index.transform
        if is_changing(manifest):
            return None
        return state_token(manifest), self.index.store.count(), transform.digest if transform else None

    def counted(self, images: CalibrationImages) -> npt.NDArray[np.intp]:
        """Return the rows of the images that are not stored and whose class still exists."""
        return images.counted(self.index.store, self.index.classes.codes)

    def decide(
        self, images: CalibrationImages, numbers: ClassNumbers, rule: DecisionRule | None = None
    ) -> Iterator[tuple[FloatArray, Neighbors, Decision]]:
        """Answer images, by the head's own rule or another one; yield a part of them at a time."""
        asked = self.rule if rule is None else rule
        for vectors, near in self.look_up(images, asked.k):
            yield vectors, near, asked.decide(vectors, near, numbers)

    def look_up(self, images: CalibrationImages, k: int) -> Iterator[tuple[FloatArray, Neighbors]]:
        """Yield the vectors of a part of the images as they are searched, and what is near them."""
        wanted = min(k, self.index.store.count())
        for part in images.parts():
            vectors = part.vectors
            if self.index.transform is not None:
                vectors = self.index.transform.apply(vectors)[0]
            yield vectors, self.index.look_up(vectors, wanted) if wanted else no_neighbors(len(part))

    def likeness(self) -> Likeness:
        """Return what measures how similar an image is to the stored ones: what works best for the index."""
        index, rule = self.index, self.rule
        summed = isinstance(rule, FittedHead) and Moments() in rule.head.moments
        if not index.is_searchable or (index.transform is not None and summed):
            return MahalanobisLikeness.of(index, self.statistics())
        return NeighborLikeness.of(index)
