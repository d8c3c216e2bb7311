"""Vectors in NumPy's files."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from clipretrieval._util.files import open_file
from clipretrieval.errors import InvalidInputError
from clipretrieval.types import FloatArray
from clipretrieval.vectors.column_names import ColumnNames
from clipretrieval.vectors.vector_block import ROWS, VectorBlock
from clipretrieval.vectors.vector_reader import VectorReader

__all__ = ["NumpyReader", "read_numpy_column"]

_ENDING = ".npy"


class NumpyReader(VectorReader):
    """Reads an array of vectors, and arrays of ids and labels where the file is an ``.npz``.

    Parameters
    ----------
    path : Path
        An ``.npy`` file of one array of shape (n, dim), or an ``.npz``.
    names : ColumnNames
        Of the arrays of an ``.npz``.

    Raises
    ------
    InvalidInputError
        If it is damaged, or has no such array.
    """

    def __init__(self, path: Path, names: ColumnNames) -> None:
        self._path, self._name = path, repr(str(path))
        self._labels = self._ids = self._member = None
        self._begins = 0  # the array, behind its header
        if path.suffix.lower() != _ENDING:
            headers = self._headers()
            listed = list(headers)
            possible = [each for each, (shape, kind) in headers.items() if len(shape) == 2 and kind in "fiu"]
            likely = [each for each in possible if headers[each][1] == "f"]
            self._member = names.find_vectors(listed, possible, likely, self.name)
            labels, ids = names.find_labels(listed, self.name), names.find_ids(listed, self.name)
            self._labels, self._ids = labels, ids
        with self._opened() as (file, shape, dtype, _):
            if len(shape) != 2 or dtype.kind not in "fiu":
                raise InvalidInputError(
                    f"{self._where()} holds {dtype} of the shape {shape}; vectors are real numbers of the "
                    "shape (n, dim)"
                )
            if file.seek(0, 2) < self._begins + math.prod(shape) * dtype.itemsize:
                raise InvalidInputError(f"{self._where()} ends before its last row; write it again")
            self._shape = shape
        for each in (self._labels, self._ids):
            if each is not None and headers[each][0] != shape[:1]:
                raise InvalidInputError(
                    f"{self.name} has {shape[0]} vectors and {each!r} of the shape {headers[each][0]}; one "
                    "is needed for each"
                )

    @property
    def has_labels(self) -> bool:
        """Whether there is a column of labels."""
        return self._labels is not None

    @property
    def name(self) -> str:
        """The file's path."""
        return self._name

    @property
    def dim(self) -> int:
        """The vectors' dimension."""
        return int(self._shape[1])

    @property
    def count(self) -> int | None:
        """Number of vectors."""
        return int(self._shape[0])

    def blocks(self) -> Iterator[VectorBlock]:
        """Read the file from its beginning; see `VectorReader`."""
        labels, ids = self._column(self._labels), self._column(self._ids)
        start = 0
        for rows in self._rows():
            end = start + len(rows)
            yield VectorBlock(
                vectors=rows,
                ids=None if ids is None else ids[start:end],
                labels=None if labels is None else labels[start:end],
            )
            start = end

    def _rows(self) -> Iterator[FloatArray]:
        with self._opened() as (file, shape, dtype, fortran), np.errstate(over="ignore"):
            count, dim = shape
            if fortran:
                whole = np.frombuffer(_read(file, count * dim * dtype.itemsize, self._where()), dtype)
                whole = whole.reshape(shape, order="F")
                for start in range(0, count, ROWS):
                    yield np.ascontiguousarray(whole[start : start + ROWS], dtype=np.float32)
                return
            for start in range(0, count, ROWS):
                n = min(ROWS, count - start)
                content = _read(file, n * dim * dtype.itemsize, self._where())
                yield np.frombuffer(content, dtype).reshape(n, dim).astype(np.float32)

    def _column(self, name: str | None) -> list[Any] | None:
        if name is None:
            return None
        with _translated(self.name), np.load(self._path, allow_pickle=False) as arrays:
            found: list[Any] = arrays[name].tolist()
            return found

    def _headers(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return the shapes and the kinds of an archive's arrays."""
        found: dict[str, tuple[tuple[int, ...], str]] = {}
        with _translated(self.name), open_file(self._path) as whole, zipfile.ZipFile(whole) as archive:
            for member in archive.namelist():
                if member.endswith(_ENDING):
                    with archive.open(member) as file:
                        shape, _, dtype = _header(file)
                        found[member.removesuffix(_ENDING)] = shape, dtype.kind
        return found

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, tuple[int, ...], np.dtype[Any], bool]]:
        """Open the array of vectors behind its header."""
        with _translated(self.name), open_file(self._path) as whole:
            if self._member is None:
                shape, fortran, dtype = _header(whole)
                self._begins = whole.tell()
                yield whole, shape, dtype, fortran
                return
            with zipfile.ZipFile(whole) as archive, archive.open(self._member + _ENDING) as file:
                shape, fortran, dtype = _header(file)
                self._begins = file.tell()
                yield file, shape, dtype, fortran

    def _where(self) -> str:
        return self.name if self._member is None else f"{self._member!r} of {self.name}"


def read_numpy_column(path: Path) -> list[Any]:
    """Read an array of labels, or of ids, of one dimension.

    Raises
    ------
    InvalidInputError
        If it is none.
    """
    name = repr(str(path))
    with _translated(name), open_file(path) as file:
        shape, _, dtype = _header(file)
        if len(shape) != 1:
            raise InvalidInputError(f"{name} holds an array of the shape {shape}; expected one of (n,)")
        content = _read(file, shape[0] * dtype.itemsize, name)
        found: list[Any] = np.frombuffer(content, dtype).tolist()
        return found


@contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except InvalidInputError:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InvalidInputError(
            f"{name} cannot be read as a NumPy file: {reason:.300}. Write it again, or leave it out"
        ) from error


def _header(file: BinaryIO | Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read an array's header: shape, whether columns come first, dtype. Objects are never unpickled."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not read; save str or numbers")
    return tuple(shape), bool(fortran), dtype


def _read(file: BinaryIO | Any, size: int, where: str) -> bytes:
    content: bytes = file.read(size)
    if len(content) < size:
        raise InvalidInputError(f"{where} ends before its last row; write it again")
    return content
