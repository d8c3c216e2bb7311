"""Counts, sums and second moments of labelled vectors, which follow every addition and removal exactly."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import check_bool, shown
from clipretrieval._util.repr import short_repr
from clipretrieval.errors import DimensionMismatchError, InvalidInputError, StoreCorruptedError
from clipretrieval.heads.features import RandomFeatures
from clipretrieval.types import AnyArray, Label

__all__ = ["ClassStatistics", "Moments"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FORMAT = "clipretrieval.statistics"
FORMAT_VERSION = 1
MOST_DIMENSIONS = 2**20
ROWS = 4096
"""Vectors that are multiplied together: enough for BLAS to work well, few enough to hold in float64."""
BLOCK = 64
"""Of these, fewer than BLAS adds up before it adds the sum to what was there."""
EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Moments:
    """Which statistics a head reads.

    Attributes
    ----------
    per_class : bool
        Whether there is a second moment for each class, n_classes × dim² numbers, beside the pooled one.
    features : RandomFeatures or None
        What maps the vectors first; None: they are taken as they are stored.
    """

    per_class: bool = False
    features: RandomFeatures | None = None

    def __post_init__(self) -> None:
        check_bool(self.per_class, "per_class")
        if not isinstance(self.features, RandomFeatures | None):
            raise InvalidInputError(f"features must be RandomFeatures or None; got {shown(self.features)}")

    @property
    def name(self) -> str:
        """What the statistics are kept under: lower-case letters, digits and dashes."""
        mapped = "vectors" if self.features is None else self.features.name
        return f"moments-{mapped}{'-per-class' if self.per_class else ''}"

    def n_bytes(self, n_classes: int, dim: int) -> int:
        """Return how many bytes the second moments of vectors of dimension `dim` take."""
        size = dim if self.features is None else self.features.dim
        return (n_classes if self.per_class else 1) * size**2 * 8

    def empty(self, dim: int) -> ClassStatistics:
        """Return the statistics of no vectors of dimension `dim`."""
        return ClassStatistics(dim if self.features is None else self.features.dim, per_class=self.per_class)

    def of(self, vectors: AnyArray) -> AnyArray:
        """Return what is summed up of vectors, shape (n, dim)."""
        return vectors if self.features is None else self.features(vectors)


class ClassStatistics:
    """The count and the sum of each class's vectors, and the second moment of all.

    Everything that a Gaussian or a least-squares classifier has to know of the vectors, in float64. `add` and
    `remove` change it by one product; what is left afterwards is, but for rounding, what a fresh start with
    the same vectors would have. `drift` bounds that rounding.

    Parameters
    ----------
    dim : int
        Of the vectors.
    per_class : bool
        Whether to keep a second moment for each class, and that of all as their sum.

    Attributes
    ----------
    dim : int
    per_class : bool
    """

    def __init__(self, dim: int, *, per_class: bool = False) -> None:
        self.dim, self.per_class = dim, per_class
        self._rows: dict[Label, int] = {}  # of the classes that have a vector
        self._free: list[int] = []
        self._counts = np.zeros(0, dtype=np.int64)
        self._sums = np.zeros((0, dim))
        # The sums of the vectors' lengths and of their squares, and what rounding has moved the sum of the
        # vectors and the second moment by, at most, in the same units.
        self._sizes = np.zeros((0, 2))
        self._errors = np.zeros((0, 2))
        self._pooled_error = 0.0
        self._moments: list[Floats] = [] if per_class else [_no_moment(dim)]  # the upper triangles
        self._sorted: tuple[list[Label], npt.NDArray[np.intp]] | None = None

    @property
    def classes(self) -> list[Label]:
        """The classes that have a vector, as stored, sorted."""
        return list(self._listed()[0])

    @property
    def n_classes(self) -> int:
        """The number of classes that have a vector."""
        return len(self._rows)

    @property
    def count(self) -> int:
        """The number of vectors."""
        return int(self._counts.sum())

    @property
    def counts(self) -> Ints:
        """The number of vectors of each of `classes`, int64, shape (n_classes,)."""
        return self._counts[self._listed()[1]]

    @property
    def sums(self) -> Floats:
        """The sum of the vectors of each of `classes`, shape (n_classes, dim)."""
        return self._sums[self._listed()[1]]

    @property
    def means(self) -> Floats:
        """The mean of the vectors of each of `classes`, shape (n_classes, dim)."""
        found = self.sums
        found /= self.counts[:, None]
        return found

    @property
    def trace(self) -> float:
        """The trace of the second moment: the sum of the squared lengths of all vectors."""
        return float(self._sizes[self._listed()[1], 1].sum())

    @property
    def second_moment(self) -> Floats:
        """The sum of x xᵀ over all vectors x, shape (dim, dim)."""
        if not self.per_class:
            return _mirrored(self._moments[0])
        whole = _no_moment(self.dim)
        for row in self._listed()[1]:
            whole += self._moments[row]
        return _mirrored(whole)

    def class_moment(self, label: Label) -> Floats:
        """Return the sum of x xᵀ over the vectors x of one class, shape (dim, dim); kept with `per_class`."""
        if not self.per_class:
            raise ValueError("only the second moment of all vectors is kept; ask for Moments(per_class=True)")
        return _mirrored(self._moments[self._rows[label]])

    @property
    def within_scatter(self) -> Floats:
        """The sum of (x − m)(x − m)ᵀ over all vectors x, where m is the mean of their class."""
        scaled = self.sums
        scaled /= np.sqrt(self.counts)[:, None]
        scatter = self.second_moment
        scatter -= scaled.T @ scaled
        return scatter

    @property
    def drift(self) -> float:
        """A bound of what rounding has moved these by; 0 where they are exact.

        That is: of each class's sum, relative to the sum of the vectors' lengths; and of each second moment,
        by the Frobenius norm, relative to its trace.
        """
        places = self._listed()[1]
        sizes, errors = self._sizes[places], self._errors[places]
        if not self.per_class:
            sizes, errors = sizes[:, 0], errors[:, 0]
            sizes = np.append(sizes, self.trace)
            errors = np.append(errors, self._pooled_error)
        moved = errors > 0
        if (sizes[moved] <= 0).any():
            return math.inf
        return float(np.max(errors[moved] / sizes[moved], initial=0.0))

    def add(self, vectors: AnyArray, labels: Sequence[Label]) -> None:
        """Take vectors in.

        Parameters
        ----------
        vectors : ndarray of float32 or float64, shape (n, dim)
        labels : sequence of int or of str, length n
            As stored.

        Raises
        ------
        DimensionMismatchError
        """
        self._check_shape(vectors, labels)
        self._make_room(labels)
        self._change(vectors, labels, 1.0)

    def remove(self, vectors: AnyArray, labels: Sequence[Label]) -> None:
        """Take vectors out that were taken in with the same labels.

        Raises
        ------
        DimensionMismatchError
        InvalidInputError
            If a class has fewer vectors than are to go; nothing is changed.
        """
        self._check_shape(vectors, labels)
        going: dict[Label, int] = {}
        for label in labels:
            going[label] = going.get(label, 0) + 1
        for label, count in going.items():
            held = int(self._counts[self._rows[label]]) if label in self._rows else 0
            if count > held:
                raise InvalidInputError(
                    f"the class {label!r} has {held} vectors, so {count} cannot be taken out; take out what "
                    "was taken in"
                )
        self._change(vectors, labels, -1.0)
        self._forget_empty(going)

    def move(self, vectors: AnyArray, before: Sequence[Label], after: Sequence[Label]) -> None:
        """Give vectors other labels."""
        self.remove(vectors, before)
        self.add(vectors, after)

    def copy(self) -> ClassStatistics:
        """Return an independent copy."""
        other = ClassStatistics(0, per_class=self.per_class)
        other.dim, other._rows, other._free = self.dim, dict(self._rows), list(self._free)
        other._counts, other._sums = self._counts.copy(), self._sums.copy()
        other._sizes, other._errors = self._sizes.copy(), self._errors.copy()
        other._pooled_error = self._pooled_error
        other._moments = [moment.copy(order="F") for moment in self._moments]
        return other

    def __repr__(self) -> str:
        return short_repr(self, n=self.count, classes=len(self._rows), dim=self.dim)

    def _listed(self) -> tuple[list[Label], npt.NDArray[np.intp]]:
        """Return the classes, sorted, and their rows."""
        found = self._sorted
        if found is None:
            classes = sorted(self._rows)
            places = np.fromiter((self._rows[label] for label in classes), np.intp, len(classes))
            found = self._sorted = classes, places
        return found

    def _check_shape(self, vectors: AnyArray, labels: Sequence[Label]) -> None:
        if vectors.ndim != 2 or vectors.shape != (len(labels), self.dim):
            raise DimensionMismatchError(
                f"there are {len(labels)} labels and vectors of shape {vectors.shape}; pass vectors of shape "
                f"({len(labels)}, {self.dim})"
            )

    def _change(self, vectors: AnyArray, labels: Sequence[Label], sign: float) -> None:
        codes = np.fromiter((self._rows[label] for label in labels), dtype=np.intp, count=len(labels))
        for start in range(0, len(codes), ROWS):
            part = codes[start : start + ROWS]
            order = np.argsort(part, kind="stable")
            self._change_part(
                np.array(vectors[start : start + ROWS][order], dtype=np.float64, order="C"), part[order], sign
            )

    def _change_part(self, vectors: Floats, codes: npt.NDArray[np.intp], sign: float) -> None:
        """Change all by vectors that are sorted by class."""
        found, starts = np.unique(codes, return_index=True)
        numbers = np.diff([*starts, len(codes)])
        squares = np.einsum("ij,ij->i", vectors, vectors)
        coming = np.add.reduceat(np.column_stack([np.sqrt(squares), squares]), starts, axis=0)
        before = self._sizes[found]
        self._counts[found] += int(sign) * numbers
        self._sums[found] += sign * np.add.reduceat(vectors, starts, axis=0)
        self._sizes[found] += sign * coming
        if self.per_class:
            for code, begin, end in zip(found, starts, [*starts[1:], len(codes)], strict=True):
                _add_product(self._moments[code], vectors[begin:end], sign)
        else:
            held = np.abs(self._sizes[:, 1]).sum() + squares.sum()
            _add_product(self._moments[0], vectors, sign)
            self._pooled_error += _rounding(squares.sum(), held, len(codes))
        self._errors[found] += _rounding(coming, np.abs(before) + coming, numbers[:, None])

    def _make_room(self, labels: Sequence[Label]) -> None:
        new = [label for label in dict.fromkeys(labels) if label not in self._rows]
        if not new:
            return
        size = len(self._counts)
        more = len(new) - len(self._free)
        if more > 0:
            room = size + max(more, size)
            self._free += range(room - 1, size - 1, -1)  # the last is taken first
            self._counts, self._sums = _grown(self._counts, room), _grown(self._sums, room)
            self._sizes, self._errors = _grown(self._sizes, room), _grown(self._errors, room)
        for label in new:
            row = self._rows[label] = self._free.pop()
            if self.per_class:
                self._moments += [_NOTHING] * (row + 1 - len(self._moments))
                self._moments[row] = _no_moment(self.dim)
        self._sorted = None

    def _forget_empty(self, labels: Collection[Label]) -> None:
        """Drop what rounding has left of classes that have no vector any more."""
        for label in labels:
            row = self._rows[label]
            if self._counts[row]:
                continue
            del self._rows[label]
            self._free.append(row)
            self._sums[row], self._sizes[row], self._errors[row] = 0.0, 0.0, 0.0
            if self.per_class:
                self._moments[row] = _NOTHING
            self._sorted = None
        if not self._rows and not self.per_class:
            self._moments[0].fill(0.0)
            self._pooled_error = 0.0

    def to_bytes(self, before: bytes = b"") -> bytes:
        """Return all of it as bytes, which `from_bytes` takes: a line of JSON, and the numbers.

        They stand behind those `before`.
        """
        from scipy.linalg.lapack import dtrttp

        labels, places = self._listed()
        head = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "dim": self.dim,
            "per_class": self.per_class,
            "classes": labels,
        }
        moments = [self._moments[place] for place in places] if self.per_class else self._moments
        columns = (
            self._counts[places],
            self._sums[places],
            self._sizes[places],
            self._errors[places],
            np.array([self._pooled_error]),
            *(dtrttp(moment)[0] for moment in moments if self.dim),
        )
        return b"".join([before, json.dumps(head).encode(), b"\n", *map(_little, columns)])

    @classmethod
    def from_bytes(cls, content: bytes) -> ClassStatistics:
        """Read what `to_bytes` returned.

        Raises
        ------
        StoreCorruptedError
            If it is anything else.
        """
        try:
            return cls._read(content)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreCorruptedError(f"the class statistics that were kept are damaged: {error}") from error

    @classmethod
    def _read(cls, content: bytes) -> ClassStatistics:
        start = content.index(b"\n") + 1
        head = json.loads(content[:start])
        if head["format"] != FORMAT or head["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"their format is {head['format']!r:.50}, version {head['format_version']!r:.50}"
            )
        dim, per_class, labels = head["dim"], head["per_class"], head["classes"]
        if type(dim) is not int or not 0 <= dim <= MOST_DIMENSIONS or type(per_class) is not bool:
            raise ValueError(f"their dimension is {dim!r:.50}")
        _check_classes(labels)
        size, cells = len(labels), dim * (dim + 1) // 2
        moments = size if per_class else 1
        # Before anything is made: nothing that the line says takes more than there is.
        expected = start + 8 * (size * (1 + dim + 2 + 2) + 1 + moments * cells)
        if len(content) != expected:
            raise ValueError(f"they have {len(content)} bytes instead of {expected}")
        found = cls(0, per_class=per_class)
        found.dim, found._rows = dim, {label: row for row, label in enumerate(labels)}
        found._counts = np.frombuffer(content, "<i8", size, start).astype(np.int64)
        numbers = np.frombuffer(content, "<f8", -1, start + 8 * size)
        if not np.isfinite(numbers).all():
            raise ValueError("a number is not finite")
        found._sums, numbers = _taken(numbers, (size, dim))
        found._sizes, numbers = _taken(numbers, (size, 2))
        found._errors, numbers = _taken(numbers, (size, 2))
        error, numbers = _taken(numbers, (1,))
        found._pooled_error = float(error[0])
        packed, _ = _taken(numbers, (moments, cells))
        found._moments = [_unpacked(dim, each) for each in packed]
        if (found._counts < 1).any() or (found._errors < 0).any() or found._pooled_error < 0:
            raise ValueError("a class is empty, or an error is negative")
        return found


def _check_classes(labels: Any) -> None:
    """Refuse what no statistics list as their classes."""
    if not isinstance(labels, list) or {type(label) for label in labels} not in ({int}, {str}, set()):
        raise ValueError("their classes are no list of labels")
    if any(not -(2**63) <= label < 2**63 for label in labels if isinstance(label, int)):
        raise ValueError("a label does not fit 64 bits")
    if any(not left < right for left, right in itertools.pairwise(labels)):
        raise ValueError("their classes are not sorted")


def _rounding(coming: Any, held: Any, number: Any) -> Any:
    """Bound the error of adding the sum of so many products to what is held, both measured by their sizes.

    See N. J. Higham, "Accuracy and Stability of Numerical Algorithms" (2002), section 3.1: n additions have
    an error of n u times the sum of the magnitudes, where u is half of `EPSILON`.
    """
    return EPSILON * ((number + 1) * coming + np.ceil(number / BLOCK) * held)


def _no_moment(dim: int) -> Floats:
    """Return zeros of shape (dim, dim), column by column, as BLAS adds to them."""
    return np.zeros((dim, dim), order="F")


_NOTHING = _no_moment(0)


def _unpacked(dim: int, packed: Floats) -> Floats:
    """Return an upper triangle, below which there are zeros, from its columns one after the other."""
    from scipy.linalg.lapack import dtpttr

    return np.asfortranarray(np.triu(dtpttr(dim, packed)[0])) if dim else _no_moment(0)


def _add_product(moment: Floats, vectors: Floats, sign: float) -> None:
    """Add the upper triangle of sign × XᵀX in place."""
    from scipy.linalg.blas import dsyrk

    if vectors.size:
        dsyrk(sign, vectors.T, beta=1.0, c=moment, overwrite_c=True)


def _mirrored(upper: Floats) -> Floats:
    """Return the symmetric matrix of an upper triangle, below which there are zeros."""
    whole: Floats = upper + upper.T
    whole.flat[:: len(whole) + 1] = np.diag(upper)
    return whole


def _grown(array: AnyArray, size: int) -> AnyArray:
    grown = np.zeros((size, *array.shape[1:]), dtype=array.dtype)
    grown[: len(array)] = array
    return grown


def _little(array: AnyArray) -> memoryview:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data


def _taken(numbers: Floats, shape: tuple[int, int] | tuple[int]) -> tuple[Floats, Floats]:
    """Return a copy of the first numbers, in a shape, and the others."""
    size = math.prod(shape)
    return numbers[:size].astype(np.float64).reshape(shape), numbers[size:]
