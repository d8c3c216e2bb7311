"""Small records and names shared by every part of the library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import check_choice, check_sequence, shown
from clipretrieval._util.foreign import data_frame, first_missing, plain_value
from clipretrieval._util.repr import short_repr
from clipretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Label", "Listing", "Metric", "Neighbors", "Records", "as_label_array"]

Label: TypeAlias = int | str
FloatArray: TypeAlias = npt.NDArray[np.float32]
AnyArray: TypeAlias = npt.NDArray[Any]


class Metric(str, Enum):
    """How the nearness of two vectors is measured; **lower is nearer** for all of them.

    Members compare equal to their names: ``Metric.L2 == "l2"``.
    """

    L2 = "l2"
    """Squared Euclidean distance, Σ (xᵢ − yᵢ)², in [0, ∞)."""
    COSINE = "cosine"
    """One minus the cosine of the angle, in [0, 2]."""
    IP = "ip"
    """Minus the inner product, in (−∞, ∞)."""

    def __str__(self) -> str:
        return self.value

    @classmethod
    def parse(cls, name: Metric | str) -> Metric:
        """Return the metric called `name`.

        Raises
        ------
        InvalidInputError
            If there is no metric of that name; the message lists them.
        """
        return cls(check_choice(name, "metric", [member.value for member in cls]))


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The nearest stored vectors of each query, nearest first.

    Attributes
    ----------
    ids : ndarray of object (str), shape (n_queries, k)
        Equal distances are in the order of their ids. Where the store holds fewer than k vectors, a
        row is padded with the id ``""``.
    distances : ndarray of float32, shape (n_queries, k)
        Ascending along each row; lower is nearer under every metric; ``+inf`` where padded.
    labels : ndarray of int64 or of object (str), shape (n_queries, k)
        ``-1`` or ``""`` where padded: look at `valid`, not at the label, to tell padding.
    """

    ids: AnyArray
    distances: FloatArray
    labels: AnyArray

    def __repr__(self) -> str:
        queries, k = self.ids.shape
        return short_repr(self, queries=queries, k=k)

    @property
    def valid(self) -> npt.NDArray[np.bool_]:
        """Mask of shape (n_queries, k): False where a row is padded."""
        return np.isfinite(self.distances)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nearest(self) -> FloatArray:
        """Distance of the nearest of each query, shape (n_queries,); ``+inf`` where none was looked up."""
        if not self.distances.shape[1]:
            return np.full(len(self), np.inf, dtype=np.float32)
        return self.distances[:, 0]

    def first(self, k: int) -> Neighbors:
        """Return the `k` nearest of each query; all where there are no more."""
        if k >= self.ids.shape[1]:
            return self
        return Neighbors(self.ids[:, :k], self.distances[:, :k], self.labels[:, :k])

    def part(self, start: int, end: int) -> Neighbors:
        """Return those of some queries, from `start` up to `end`."""
        if (start, end) == (0, len(self)):
            return self
        return Neighbors(self.ids[start:end], self.distances[start:end], self.labels[start:end])

    def to_frame(self) -> DataFrame:
        """Return a ``pandas.DataFrame`` with a row for each neighbor; padding is left out.

        Returns
        -------
        pandas.DataFrame
            Columns ``query`` (the query's place, counted from 0), ``rank`` (1 for the nearest), ``id``,
            ``label`` and ``distance``.

        Raises
        ------
        MissingDependencyError
            If pandas is not installed.
        """
        queries, places = np.nonzero(self.valid)
        return data_frame(
            {
                "query": queries,
                "rank": places + 1,
                "id": self.ids[self.valid],
                "label": self.labels[self.valid],
                "distance": self.distances[self.valid],
            }
        )


def no_neighbors(n: int) -> Neighbors:
    """Return the neighbors of `n` queries that were not looked up, each of shape (n, 0)."""
    empty = np.empty((n, 0), dtype=object)
    return Neighbors(empty, empty.astype(np.float32), empty)


@dataclass(frozen=True, eq=False)
class Records:
    """Stored vectors with all that is kept beside them.

    Attributes
    ----------
    ids : ndarray of object (str), shape (n,)
    vectors : ndarray of float32, shape (n, dim)
    labels : ndarray of int64 or of object (str), shape (n,)
    metadata : list of dict, length n
        Empty dicts where none was given.
    """

    ids: AnyArray
    vectors: FloatArray
    labels: AnyArray
    metadata: list[dict[str, Any]]

    def __repr__(self) -> str:
        return short_repr(self, n=len(self.ids), dim=self.vectors.shape[-1])

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Listing:
    """Ids and labels of some stored records, without their vectors.

    Attributes
    ----------
    ids : ndarray of object (str), shape (n,)
    labels : ndarray of int64 or of object (str), shape (n,)
    """

    ids: AnyArray
    labels: AnyArray

    def __repr__(self) -> str:
        return short_repr(self, n=len(self.ids))

    def __len__(self) -> int:
        return len(self.ids)


def as_label_array(labels: Sequence[Label]) -> AnyArray:
    """Pack labels into an array that keeps their type.

    Parameters
    ----------
    labels : sequence of int or of str
        ``bool`` is not an int here.

    Returns
    -------
    ndarray, shape (n,)
        int64 when the labels are integers, object (str) when they are strings or when there are none.

    Raises
    ------
    InvalidInputError
        If a label is neither int nor str, does not fit 64 bits, is not valid Unicode, or the types are mixed.
    """
    plain = check_sequence(labels, "labels", "int or of str")
    kinds = set(map(type, plain))
    if not kinds <= {str, int}:
        plain = [plain_value(item) for item in plain]
        kinds = set(map(type, plain))
        if (row := first_missing(plain)) is not None:
            raise InvalidInputError(
                f"labels must be int or str; labels[{row}] is missing ({shown(plain[row])})"
            )
    if kinds <= {str}:
        _check_encodable(plain)
        packed = np.empty(len(plain), dtype=object)
        packed[:] = plain
        return packed
    if kinds == {int}:
        try:
            return np.asarray(plain, dtype=np.int64)
        except OverflowError as error:
            raise InvalidInputError("integer labels must fit 64 signed bits") from error
    found = ", ".join(sorted(kind.__name__ for kind in kinds))
    advice = "; decode them, as with label.decode()" if bytes in kinds else ""
    raise InvalidInputError(f"labels must be all int or all str; found {found}{advice}")


def _check_encodable(labels: list[Any]) -> None:
    try:
        "".join(labels).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInputError("a label is not valid Unicode: it holds half a surrogate pair") from error
