"""Reading the bytes of a FAISS file, value by value, and never beyond them."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval.stores.exact import row_norms

__all__ = ["IndexReader", "MalformedIndexError", "UnknownFormatError"]

AnyArray = npt.NDArray[Any]


class MalformedIndexError(ValueError):
    """The file is not what FAISS would have written."""


class UnknownFormatError(ValueError):
    """The file may be whole, but is of a form that is not known here."""


class IndexReader:
    """Goes through the bytes of a file.

    Parameters
    ----------
    content : ndarray of uint8, shape (n,)
    largest : float
        How long vectors may be; with infinity, they are not looked at.
    rows : int
        How many rows the ids of inverted lists may name.
    """

    def __init__(self, content: AnyArray, largest: float, rows: int) -> None:
        self._content, self._largest, self.rows = content, largest, rows
        self._place = 0

    def array(self, name: str, dtype: str, count: int) -> AnyArray:
        """Return the next `count` values."""
        size = count * np.dtype(dtype).itemsize
        if count < 0 or size > len(self._content) - self._place:
            raise MalformedIndexError(f"{count} values of {name} are beyond its end")
        found = self._content[self._place : self._place + size]
        self._place += size
        return found.view(dtype) if count else np.empty(0, dtype=dtype)

    def value(self, name: str, form: str) -> Any:
        """Return the next value, in the notation of `struct`."""
        return struct.unpack(f"<{form}", self.array(name, "u1", struct.calcsize(f"<{form}")).tobytes())[0]

    def code(self) -> bytes:
        """Return the four letters that say what follows."""
        return bytes(self.value("its kind", "4s"))

    def expect(self, name: str, form: str, wanted: Any) -> None:
        """Read a value that can be but one."""
        found = self.value(name, "B" if form == "?" else form)  # another byte than 0 and 1 is no bool in C++
        if found != wanted:
            raise MalformedIndexError(f"{name} is {found}, not {wanted}")

    def kind(self, *wanted: bytes) -> None:
        """Read the four letters of one of the kinds that can be there."""
        found = self.code()
        if found not in wanted:
            raise UnknownFormatError(f"it holds {found!r}, not {' or '.join(map(repr, wanted))}")

    def vector(self, name: str, dtype: str, count: int | None = None) -> AnyArray:
        """Return values that are preceded by their number."""
        found = self.value(f"the number of {name}", "Q")
        if count is not None and found != count:
            raise MalformedIndexError(f"it holds {found} values of {name}, not {count}")
        return self.array(name, dtype, found)

    def floats(self, name: str, count: int, width: int = 1) -> AnyArray:
        """Return `count` floats that are preceded by their number, each `width` of them a vector."""
        found = self.vector(name, "<f4", count)
        self.check_lengths(name, found, width)
        return found

    def check_lengths(self, name: str, values: AnyArray, width: int) -> None:
        """Refuse vectors of `width` values of which one is not finite, or too long."""
        if not values.size or self._largest == math.inf:
            return
        with np.errstate(invalid="ignore"):
            norms = row_norms(values.reshape(-1, width))
        if not np.all(norms <= self._largest):
            raise MalformedIndexError(f"{name} are not finite, or too large")

    def end(self) -> None:
        """Make sure that nothing is left."""
        if self._place != len(self._content):
            raise MalformedIndexError(f"{len(self._content) - self._place} bytes are left at its end")
