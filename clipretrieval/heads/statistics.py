"""Counts, sums and second moments of labelled vectors, which follow every addition and removal exactly."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import blas

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
ROWS = 4096
"""Vectors that are multiplied together: enough for BLAS to work well, few enough to hold in float64."""
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
        Whether to keep a second moment for each class too.

    Attributes
    ----------
    dim : int
    per_class : bool
    """

    def __init__(self, dim: int, *, per_class: bool = False) -> None:
        self.dim, self.per_class = dim, per_class
        self._rows: dict[Label, int] = {}
        self._counts = np.zeros(0, dtype=np.int64)
        self._sums = np.zeros((0, dim))
        self._norms = np.zeros(0)  # of each class: the sum of the squared lengths
        self._moments: list[Floats] = [] if per_class else [_no_moment(dim)]  # the upper triangles
        self._error = 0.0

    @property
    def classes(self) -> list[Label]:
        """The classes that have a vector, as stored, sorted."""
        return sorted(label for label, row in self._rows.items() if self._counts[row])

    @property
    def count(self) -> int:
        """The number of vectors."""
        return int(self._counts.sum())

    @property
    def counts(self) -> Ints:
        """The number of vectors of each of `classes`, int64, shape (n_classes,)."""
        return self._counts[self._places()]

    @property
    def sums(self) -> Floats:
        """The sum of the vectors of each of `classes`, shape (n_classes, dim)."""
        return self._sums[self._places()]

    @property
    def means(self) -> Floats:
        """The mean of the vectors of each of `classes`, shape (n_classes, dim)."""
        found: Floats = self.sums / self.counts[:, None]
        return found

    @property
    def second_moment(self) -> Floats:
        """The sum of x xᵀ over all vectors x, shape (dim, dim)."""
        whole = np.zeros((self.dim, self.dim))
        for moment in self._moments:
            whole += moment
        return _mirrored(whole)

    def class_moment(self, label: Label) -> Floats:
        """Return the sum of x xᵀ over the vectors x of one class, shape (dim, dim); kept with `per_class`."""
        return _mirrored(self._moments[self._rows[label]])

    @property
    def within_scatter(self) -> Floats:
        """The sum of (x − m)(x − m)ᵀ over all vectors x, where m is the mean of their class."""
        sums, counts = self.sums, self.counts
        scaled = sums / np.sqrt(counts)[:, None]
        scatter: Floats = self.second_moment - scaled.T @ scaled
        return scatter

    @property
    def drift(self) -> float:
        """A bound of what rounding has moved the second moment by, relative to its trace; 0 where empty."""
        total = float(self._norms.sum())
        return 0.0 if self._error == 0 else np.inf if total <= 0 else self._error / total

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
        self._change(vectors, labels, 1.0)

    def remove(self, vectors: AnyArray, labels: Sequence[Label]) -> None:
        """Take vectors out that were taken in with the same labels.

        Raises
        ------
        DimensionMismatchError
        InvalidInputError
            If a class has fewer vectors than are to go; nothing is changed.
        """
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

    def move(self, vectors: AnyArray, before: Sequence[Label], after: Sequence[Label]) -> None:
        """Give vectors other labels."""
        self.remove(vectors, before)
        self.add(vectors, after)

    def copy(self) -> ClassStatistics:
        """Return a copy that changes by itself."""
        other = ClassStatistics(self.dim, per_class=self.per_class)
        other._rows, other._error = dict(self._rows), self._error
        other._counts, other._sums = self._counts.copy(), self._sums.copy()
        other._norms = self._norms.copy()
        other._moments = [moment.copy(order="F") for moment in self._moments]
        return other

    def __repr__(self) -> str:
        return short_repr(self, n=self.count, classes=len(self.classes), dim=self.dim)

    def _places(self) -> list[int]:
        return [self._rows[label] for label in self.classes]

    def _change(self, vectors: AnyArray, labels: Sequence[Label], sign: float) -> None:
        if vectors.ndim != 2 or vectors.shape != (len(labels), self.dim):
            raise DimensionMismatchError(
                f"there are {len(labels)} labels and vectors of shape {vectors.shape}; pass vectors of shape "
                f"({len(labels)}, {self.dim})"
            )
        if not len(labels):
            return
        self._make_room(labels)
        codes = np.fromiter((self._rows[label] for label in labels), dtype=np.intp, count=len(labels))
        for start in range(0, len(codes), ROWS):
            part = codes[start : start + ROWS]
            order = np.argsort(part, kind="stable")
            self._change_part(
                np.array(vectors[start : start + ROWS][order], dtype=np.float64, order="C"), part[order], sign
            )
        self._forget_empty()

    def _change_part(self, vectors: Floats, codes: npt.NDArray[np.intp], sign: float) -> None:
        """Change all by vectors that are sorted by class."""
        found, starts = np.unique(codes, return_index=True)
        norms = np.add.reduceat(np.einsum("ij,ij->i", vectors, vectors), starts)
        self._counts[found] += int(sign) * np.diff([*starts, len(codes)])
        self._sums[found] += sign * np.add.reduceat(vectors, starts, axis=0)
        self._norms[found] += sign * norms
        if self.per_class:
            for code, begin, end in zip(found, starts, [*starts[1:], len(codes)], strict=True):
                _add_product(self._moments[code], vectors[begin:end], sign)
        else:
            _add_product(self._moments[0], vectors, sign)
        # Each of the two roundings, of the product and of the sum, is relative to what was there.
        self._error += EPSILON * float(norms.sum() + np.abs(self._norms).sum())

    def _make_room(self, labels: Iterable[Label]) -> None:
        new = [label for label in dict.fromkeys(labels) if label not in self._rows]
        if not new:
            return
        for label in new:
            self._rows[label] = len(self._rows)
        size = len(self._rows)
        room = max(size, 2 * len(self._counts)) if size > len(self._counts) else len(self._counts)
        self._counts, self._norms = _grown(self._counts, room), _grown(self._norms, room)
        self._sums = _grown(self._sums, room)
        if self.per_class:
            self._moments += [_no_moment(self.dim) for _ in range(size - len(self._moments))]

    def _forget_empty(self) -> None:
        """Set to zero what rounding has left of classes that have no vector any more."""
        empty = [row for row in self._rows.values() if not self._counts[row]]
        self._sums[empty], self._norms[empty] = 0.0, 0.0
        if self.per_class:
            for row in empty:
                self._moments[row].fill(0.0)
        if len(empty) == len(self._rows):
            self._error = 0.0
            for moment in self._moments:
                moment.fill(0.0)

    def to_bytes(self) -> bytes:
        """Return all of it as bytes, which `from_bytes` takes."""
        labels, places = self.classes, self._places()
        head = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "dim": self.dim,
            "per_class": self.per_class,
            "classes": labels,
            "error": self._error,
        }
        upper = np.triu_indices(self.dim)
        kept = [self._moments[place] for place in places] if self.per_class else self._moments
        file = io.BytesIO()
        np.savez(
            file,
            head=np.frombuffer(json.dumps(head).encode(), dtype=np.uint8),
            counts=self._counts[places],
            sums=self._sums[places],
            norms=self._norms[places],
            moments=np.stack([moment[upper] for moment in kept]) if kept else np.zeros((0, len(upper[0]))),
        )
        return file.getvalue()

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
        except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise StoreCorruptedError(f"the class statistics that were kept are damaged: {error}") from error

    @classmethod
    def _read(cls, content: bytes) -> ClassStatistics:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            head = json.loads(arrays["head"].tobytes())
            if head["format"] != FORMAT or head["format_version"] != FORMAT_VERSION:
                raise ValueError(f"their format is {head['format']!r}, version {head['format_version']!r}")
            dim, labels = head["dim"], head["classes"]
            found = cls(int(dim), per_class=bool(head["per_class"]))
            size, cells = len(labels), dim * (dim + 1) // 2
            shapes = {
                "counts": (size,),
                "sums": (size, dim),
                "norms": (size,),
                "moments": (size if found.per_class else 1, cells),
            }
            for name, shape in shapes.items():
                expected = np.int64 if name == "counts" else np.float64
                if arrays[name].shape != shape or arrays[name].dtype != expected:
                    raise ValueError(f"{name} has the shape {arrays[name].shape} instead of {shape}")
            found._rows = {label: row for row, label in enumerate(labels)}
            found._counts, found._sums = arrays["counts"], arrays["sums"]
            found._norms, found._error = arrays["norms"], float(head["error"])
            upper = np.triu_indices(dim)
            found._moments = []
            for packed in arrays["moments"]:
                moment = _no_moment(dim)
                moment[upper] = packed
                found._moments.append(moment)
            if len(found._rows) != size or not (found._counts > 0).all() or not np.isfinite(found._error):
                raise ValueError("classes come twice, or are empty")
            return found


def _no_moment(dim: int) -> Floats:
    """Return zeros of shape (dim, dim), column by column, as BLAS adds to them."""
    return np.zeros((dim, dim), order="F")


def _add_product(moment: Floats, vectors: Floats, sign: float) -> None:
    """Add the upper triangle of sign × XᵀX in place."""
    blas.dsyrk(sign, vectors.T, beta=1.0, c=moment, overwrite_c=True)


def _mirrored(upper: Floats) -> Floats:
    """Return the symmetric matrix of an upper triangle."""
    whole: Floats = np.triu(upper)
    return whole + np.triu(upper, 1).T


def _grown(array: AnyArray, size: int) -> AnyArray:
    if len(array) == size:
        return array
    grown = np.zeros((size, *array.shape[1:]), dtype=array.dtype)
    grown[: len(array)] = array
    return grown
