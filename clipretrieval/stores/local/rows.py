"""Rows of float32 vectors in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from clipretrieval._util.checks import shown
from clipretrieval.stores.exact import IndexArray, Shortlist
from clipretrieval.stores.local.folder_manifest import damaged
from clipretrieval.stores.local.mapped_file import MappedFile
from clipretrieval.stores.local.table import Moves, grown, shrunk
from clipretrieval.types import AnyArray, FloatArray

__all__ = ["ArrayRows", "VectorRows", "dump_array", "read_array"]


NPY_START = np.lib.format.magic(1, 0)
"""The bytes before the length of an array's header."""


class VectorRows(Protocol):
    """Where a local store keeps its vectors: rows 0 to n - 1 without holes."""

    @property
    def dim(self) -> int: ...

    def view(self) -> FloatArray:
        """Return all rows without copying, shape (n, dim); it holds until the next change."""
        ...

    def write(self, vectors: FloatArray, places: IndexArray) -> None:
        """Write each vector into the row of its place; places from n on are new and come in order."""
        ...

    def remove(self, moves: Moves) -> None:
        """Move rows as planned and drop those after the last that is kept; doing it again changes nothing."""
        ...

    def restore(self, vectors: FloatArray, places: IndexArray, count: int) -> None:
        """Undo a write that may be half done: put `vectors` back into `places`, and keep `count` rows."""
        ...

    def drop_index(self) -> None:
        """Let go of what is derived from the rows and may be out of step with them."""
        ...

    def is_whole(self, count: int) -> bool:
        """Tell whether there are `count` rows, and what is derived from them agrees."""
        ...

    def shortlist(self, longest: float) -> Shortlist | None:
        """Return a fast source of candidates, if there is one, given the greatest norm of a stored vector."""
        ...

    def candidates(self, queries: FloatArray, k: int) -> IndexArray | None:
        """Return rows that are probably among the `k` nearest of each query, -1 where there is none.

        None where searches are exact.
        """
        ...


class ArrayRows:
    """Rows in a NumPy array that doubles when it is full."""

    def __init__(self, dim: int) -> None:
        self._count = 0
        self._array: FloatArray = np.empty((0, dim), dtype=np.float32)

    @property
    def dim(self) -> int:
        return int(self._array.shape[1])

    def view(self) -> FloatArray:
        return self._array[: self._count]

    def write(self, vectors: FloatArray, places: IndexArray) -> None:
        count = max(self._count, int(places.max()) + 1)
        self._array = grown(self._array, self._count, count - self._count)
        if int(places.min()) == self._count:  # all new, hence in order
            self._array[self._count : count] = vectors
        else:
            self._array[places] = vectors
        self._count = count

    def remove(self, moves: Moves) -> None:
        if self._count > moves.kept:
            self._array[moves.targets] = self._array[moves.sources]
            self._count = moves.kept
        self._array = shrunk(self._array, self._count)

    def restore(self, vectors: FloatArray, places: IndexArray, count: int) -> None:
        self._array[places] = vectors
        self._count = count

    def drop_index(self) -> None:
        """Do nothing: there is none."""

    def is_whole(self, count: int) -> bool:
        return self._count == count

    def shortlist(self, longest: float) -> Shortlist | None:
        return None

    def candidates(self, queries: FloatArray, k: int) -> None:
        """Return None: searches are exact."""


def dump_array(array: AnyArray, write: Callable[[bytes], object]) -> None:
    """Write an array in NumPy's format, piece by piece."""
    np.lib.format.write_array(_Sink(write), array, version=(1, 0), allow_pickle=False)


def read_array(file: MappedFile, dtype: str, shape: tuple[int, ...]) -> Any:
    """Read an array that `dump_array` wrote.

    Raises
    ------
    StoreCorruptedError
        If it has another type or shape, or is none.
    """
    wanted = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    start = len(NPY_START) + 2
    length = int.from_bytes(file.content[len(NPY_START) : start].tobytes(), "little")
    header = file.content[start : start + length].tobytes().decode("latin-1")
    # NumPy's own parser takes headers that it never writes, and raises much of those that it does not.
    if file.content[: len(NPY_START)].tobytes() != NPY_START or header.rstrip(" \n") != wanted:
        raise damaged(file.path, f"its header is {shown(header.rstrip())}, not {wanted}")
    values = file.content[start + length :]
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if len(values) != size:
        raise damaged(file.path, f"it holds {len(values)} bytes of values, not {size}")
    return np.frombuffer(values.tobytes(), dtype=dtype).reshape(shape).copy()


class _Sink:
    """The one method of a file that NumPy writes an array with."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self.write = write
