"""What a head has to do: the protocol of all that turns a store's contents into class scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from clipretrieval.heads.statistics import ClassStatistics, Moments
from clipretrieval.types import AnyArray, FloatArray, Label, Metric, Neighbors

__all__ = ["Contents", "Head", "LearnedHead", "OpenHead", "PartedHead", "Queries", "StoredSample"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class StoredSample:
    """Some stored vectors, chosen by their ids alone, so that equal contents give equal samples.

    Attributes
    ----------
    ids : ndarray of object (str), shape (n,)
    vectors : ndarray of float32, shape (n, dim)
    codes : ndarray of int64, shape (n,)
        Their classes, as places in `Contents.classes`.
    neighbors : Neighbors or None
        The nearest other stored vectors, where they were looked up.
    """

    ids: AnyArray
    vectors: FloatArray
    codes: Ints
    neighbors: Neighbors | None = None


@dataclass(frozen=True, eq=False)
class Queries:
    """Vectors that are to be classified.

    Attributes
    ----------
    vectors : ndarray of float32, shape (n, dim)
        As they are searched.
    neighbors : Neighbors
        Each of shape (n, k), k as the head asks for; of shape (n, 0) where it asks for none.
    """

    vectors: FloatArray
    neighbors: Neighbors

    def __len__(self) -> int:
        return len(self.vectors)


class Contents(Protocol):
    """What a head may read of a store while it learns."""

    @property
    def classes(self) -> Sequence[Label]:
        """The classes that have a vector, as stored, sorted."""
        ...

    @property
    def priors(self) -> Floats:
        """How probable each class is before anything is seen of an image, shape (n_classes,); sums to 1."""
        ...

    @property
    def metric(self) -> Metric:
        """Of the neighbors' distances."""
        ...

    def statistics(self, moments: Moments) -> ClassStatistics:
        """Return statistics that the head has listed in its `moments`; they are only read."""
        ...

    def sample(self, most: int) -> StoredSample:
        """Return at most so many stored vectors."""
        ...

    def others(self, sample: StoredSample, k: int) -> Neighbors:
        """Return the `k` nearest stored vectors of each one of a sample, itself left out."""
        ...


class LearnedHead(Protocol):
    """What a head has learned of a store's contents at one moment. It never changes."""

    def log_scores(self, queries: Queries) -> AnyArray:
        """Return how well each class explains each query.

        Parameters
        ----------
        queries : Queries

        Returns
        -------
        ndarray of float64, shape (n, n_classes)
            Columns in the order of `Contents.classes`. Logarithms of what is proportional to probabilities:
            whatever is added to a row changes nothing. −inf for a class that is impossible.
        """
        ...


@runtime_checkable
class Head(Protocol):
    """A rule that learns from a store's contents what turns queries into class scores.

    Any object with these members serves as ``RetrievalClassifier(head=…)``; there is nothing to inherit. It
    learns in closed form, anew after every change of the store, and from the contents alone: the same vectors
    and labels give the same answers, in whatever order they came. `clipretrieval.testing.HeadContract` checks
    that.

    Attributes
    ----------
    k : int
        Neighbors that it reads of each query; 0 where it reads none, and then no search is made.
    moments : sequence of Moments
        The class statistics that it reads; they are followed through every change of the store.

    Notes
    -----
    A head with an attribute ``wants_whitening`` that is true has stores whitened that are filled from nothing
    under ``transform="auto"``; see `Whitening`.
    """

    @property
    def k(self) -> int: ...

    @property
    def moments(self) -> Sequence[Moments]: ...

    def learn(self, contents: Contents) -> LearnedHead:
        """Learn from what a store holds."""
        ...


@runtime_checkable
class PartedHead(Protocol):
    """Optional, of a `LearnedHead`: one that is put together of parts, which explanations show."""

    def part_scores(self, queries: Queries) -> Mapping[str, Any]:
        """Return the log scores of each part by its name, each of shape (n, n_classes)."""
        ...


@runtime_checkable
class OpenHead(Protocol):
    """Optional, of a `LearnedHead`: one that answers classes of which nothing is stored, too."""

    @property
    def answered_classes(self) -> Sequence[Label]:
        """The classes of its scores' columns, as stored, instead of `Contents.classes`."""
        ...
