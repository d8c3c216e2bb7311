"""What a head reads of a store: its statistics, some of its vectors, and what lies near them."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from clipretrieval import errors
from clipretrieval.errors import InvalidInputError, UnsupportedOperationError
from clipretrieval.heads.base import StoredSample
from clipretrieval.heads.priors import Priors
from clipretrieval.heads.statistics import ClassStatistics, Moments
from clipretrieval.retrieval.labelled_index import EMPTY, LabelledIndex
from clipretrieval.stores.base import ScannableStore
from clipretrieval.types import Label, Metric, Neighbors, no_neighbors

__all__ = ["StoreContents"]


@dataclass(frozen=True, eq=False)
class StoreContents:
    """The `Contents` of an index.

    Attributes
    ----------
    index : LabelledIndex
    held : mapping of Moments to ClassStatistics
        Of all that the store holds.
    given_priors : Priors
    """

    index: LabelledIndex
    held: Mapping[Moments, ClassStatistics]
    given_priors: Priors
    classes: list[Label] = field(init=False)
    priors: npt.NDArray[np.float64] = field(init=False)
    _samples: dict[int, StoredSample] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        known = next(iter(self.held.values()), None)
        classes = _stored_classes(self.index) if known is None else known.classes
        if not classes:  # another thread or process has emptied it since it was counted
            raise errors.NotFittedError(EMPTY)
        counts = np.ones(len(classes), dtype=np.int64) if known is None else known.counts
        if known is None and self.given_priors.given == "empirical":
            raise InvalidInputError(
                "priors='empirical' needs class statistics, and this head reads none; give it a Moments()"
            )
        object.__setattr__(self, "classes", classes)
        priors = self.given_priors.of(classes, counts, self.index.classes.codes)
        object.__setattr__(self, "priors", priors)

    @property
    def metric(self) -> Metric:
        """Of the neighbors' distances."""
        return self.index.metric

    def statistics(self, moments: Moments) -> ClassStatistics:
        """Return statistics that the head has asked for."""
        if moments not in self.held:
            raise InvalidInputError(
                f"the head reads {moments}, which is not among its moments; list it there, so that it is "
                "followed through every change"
            )
        return self.held[moments]

    def sample(self, most: int) -> StoredSample:
        """Return the vectors with the smallest ids, which are hashes of the images' contents."""
        if most not in self._samples:
            store, codes = self.index.store, self._codes
            names = heapq.nsmallest(most, self._ids())
            records = store.get(names)
            known = [row for row, label in enumerate(records.labels.tolist()) if label in codes]
            found = np.array([codes[records.labels[row]] for row in known], dtype=np.int64)
            self._samples[most] = StoredSample(records.ids[known], records.vectors[known], found)
        return self._samples[most]

    def others(self, sample: StoredSample, k: int) -> Neighbors:
        """Return the nearest stored vectors of each one of a sample, itself left out."""
        width = min(k + 1, self.index.store.count())
        if not len(sample.ids) or width < 1:
            return no_neighbors(len(sample.ids))
        near = self.index.look_up(sample.vectors, width)
        others = near.ids != sample.ids[:, None]
        # Where it is not found itself, among many equal ones, the last is left out.
        order = np.argsort(~others, axis=1, kind="stable")[:, : width - 1]
        columns = (near.ids, near.distances, near.labels)
        return Neighbors(*(np.take_along_axis(column, order, axis=1) for column in columns))

    @cached_property
    def _codes(self) -> dict[Label, int]:
        return {label: code for code, label in enumerate(self.classes)}

    def _ids(self) -> Iterator[str]:
        store = self.index.store
        if not isinstance(store, ScannableStore):
            raise UnsupportedOperationError(
                f"{type(store).__name__} cannot list what it holds (it has no scan method), so no sample "
                "of it can be drawn to learn weights or a penalty from; use head='discriminant'"
            )
        for listing in store.scan():
            yield from listing.ids.tolist()


def _stored_classes(index: LabelledIndex) -> list[Label]:
    """Return the classes that have a vector; those that are listed, where the store cannot tell."""
    if not isinstance(index.store, ScannableStore):
        return sorted(index.classes.codes)
    return sorted({label for listing in index.store.scan() for label in listing.labels.tolist()})
