"""Files opened for reading: regular ones only, and no more of them than there can be."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from clipretrieval._util.files import REMEDY, too_many_open

__all__ = ["IrregularFileError", "file_sha256", "open_file", "parse_json", "read_file"]


LARGEST_EMPTY, LEAST_HELD = 2**30, 1000
"""Bytes of a file that are read even if nearly all of them are holes; above, one in a thousand is no hole."""


class IrregularFileError(OSError):
    """What should be a file is a pipe, a device, a socket or a folder, or larger than it can be."""


def open_file(path: str | os.PathLike[str], most: int | None = None) -> BinaryIO:
    """Open a regular file for reading; never wait for anything.

    Links are followed, as whole folders of links are what model hubs and data versioning keep.

    Parameters
    ----------
    path : str or path-like
    most : int, optional
        The most bytes that the file may have.

    Raises
    ------
    IrregularFileError
        If it is no regular file, or larger. Reading a pipe would wait, and ``/dev/zero`` never ends.
    OSError
        If it cannot be opened.
    """
    # Opening a pipe without O_NONBLOCK waits for its writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        if too_many_open(error):
            raise OSError(error.errno, f"{error.strerror}; {REMEDY}", os.fspath(path)) from error
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise IrregularFileError("it is not a regular file")
        if most is not None and found.st_size > most:
            raise IrregularFileError(f"it has {found.st_size} bytes, where {most} are the most there can be")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_file(path: str | os.PathLike[str], most: int | None = None) -> bytes:
    """Return the content of a regular file, of at most `most` bytes.

    Raises
    ------
    IrregularFileError
        If it is no regular file, or larger.
    OSError
        If it cannot be read.
    """
    with open_file(path, most) as file:
        content = file.read(-1 if most is None else most + 1)
    if most is not None and len(content) > most:
        raise IrregularFileError(f"it has more than {most} bytes")
    return content


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a regular file's content as 64 hexadecimal digits.

    Raises
    ------
    IrregularFileError
        If it is no regular file, or large and next to empty: a terabyte of nothing fits into any archive, and
        takes an hour to read.
    OSError
        If it cannot be read.
    """
    digest = hashlib.sha256()
    with open_file(path) as file:
        _refuse_empty_space(file)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def parse_json(text: str | bytes) -> Any:
    """Return what JSON text holds, which is finite.

    Raises
    ------
    ValueError
        If it is no JSON, nested too deeply, has a field twice, or holds a number that is not finite or too
        long.
    """
    try:
        return _DECODER.decode(text if isinstance(text, str) else text.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse_empty_space(file: BinaryIO) -> None:
    found = os.fstat(file.fileno())
    size, held = found.st_size, 512 * getattr(found, "st_blocks", found.st_size)
    # Some file systems tell of no blocks whatever they hold, and those that know no holes tell of none.
    if size > LARGEST_EMPTY and held * LEAST_HELD < size and hasattr(os, "SEEK_HOLE"):
        if file.seek(0, os.SEEK_HOLE) < size:
            raise IrregularFileError(f"it has {size} bytes, of which only {held} are on the disk")
        file.seek(0)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not a finite number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field is there twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse, parse_float=_finite)
