"""Files of a store's folder that never change: how one is written, and how it is read."""

from __future__ import annotations

import hashlib
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.files import (
    IrregularFileError,
    NotDurableError,
    open_file,
    reason,
    refuse_empty_space,
    replacing,
)
from clipretrieval.errors import StoreUnavailableError
from clipretrieval.stores.local.folder_manifest import MANIFEST_NAME, FileEntry, damaged

if TYPE_CHECKING:
    from clipretrieval.errors import StoreCorruptedError

__all__ = ["MappedFile", "lies_in", "not_yet_in_force", "unused", "write_file"]

# So many bytes are verified at a time.
PIECE = 1 << 20


class MappedFile:
    """A regular file of a certain size, mapped into memory; it may be removed while it is held.

    Parameters
    ----------
    path : Path
    size : int

    Attributes
    ----------
    fault : str or None
        Why it cannot be read, if it is missing or no such file: told to whoever reads it.
    identity : tuple or None
        The same for the same file only.

    Raises
    ------
    OSError
        If it is there and cannot be opened.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        self.fault: str | None = None
        self.identity: Any = None
        self._map: Any = b""
        try:
            with open_file(path) as file:
                found = os.fstat(file.fileno())
                if found.st_size != size:
                    raise IrregularFileError(f"it has {found.st_size} bytes, not {size}")
                refuse_empty_space(file)
                if size:
                    # Without a descriptor of its own, where Python can.
                    own: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ, **own)
                self._descriptor = os.dup(file.fileno())
        except FileNotFoundError:
            self.fault = "it is missing"
        except IrregularFileError as error:
            self.fault = str(error)
        else:
            self.identity = (found.st_dev, found.st_ino, found.st_mtime_ns)

    def __del__(self) -> None:
        with suppress(AttributeError):  # it could not be opened
            os.close(self._descriptor)

    @property
    def damage(self) -> StoreCorruptedError | None:
        """The error for a file that cannot be read."""
        return None if self.fault is None else damaged(self.path, self.fault)

    @property
    def content(self) -> npt.NDArray[np.uint8]:
        """All bytes, shape (size,), of which only what was read once by `read` is certain to be there.

        Raises
        ------
        StoreCorruptedError
            If it cannot be read.
        """
        if (damage := self.damage) is not None:
            raise damage
        return np.frombuffer(self._map, dtype=np.uint8)

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Return a copy of some bytes; what the disk does not give is an error, where a map ends the process.

        Raises
        ------
        StoreCorruptedError
            If they are not there.
        StoreUnavailableError
            If the disk does not give them.
        """
        if stop > len(self.content):
            raise damaged(self.path, f"it has no {stop} bytes")
        target: npt.NDArray[np.uint8] = np.empty(stop - start, dtype=np.uint8)
        self.read_into(start, target.data)
        return target

    def read_into(self, start: int, target: memoryview) -> None:
        """Read bytes from a place on; errors are those of `read`."""
        content = self.content
        if not hasattr(os, "preadv"):
            target[:] = content.data[start : start + len(target)]
            return
        while len(target):
            try:
                count = os.preadv(self._descriptor, [target], start)
            except OSError as error:
                raise StoreUnavailableError(f"{self.path} cannot be read: {reason(error)}") from error
            if not count:
                raise damaged(self.path, "it was cut off while it was open")
            start, target = start + count, target[count:]

    def pieces(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Go through the content without keeping it in memory; errors are those of `read`."""
        for start in range(0, self.size, PIECE):
            yield self.read(start, min(start + PIECE, self.size))

    def verify(self, sha256: str) -> None:
        """Compare the whole content with its checksum.

        Raises
        ------
        StoreCorruptedError
            If it is not as it was written.
        """
        digest = hashlib.sha256(self.content[:0].data)  # an empty file may be missing too
        for piece in self.pieces():
            digest.update(piece.data)
        if digest.hexdigest() != sha256:
            raise damaged(self.path, "its content does not match its checksum")


@contextmanager
def not_yet_in_force() -> Iterator[None]:
    """Make of a file that may not be durable one that could not be written: no manifest names it yet."""
    try:
        yield
    except NotDurableError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0)) from error


def unused(folder: Path, start: str, suffix: str) -> Path:
    """Return the path of a file that is not there yet, whose name begins and ends so."""
    number = 0
    while (path := folder / f"{start}-{number}{suffix}").exists():
        number += 1
    return path


def lies_in(folder: Path, name: str, size: int) -> bool:
    """Tell whether a folder has a file of this name and size."""
    try:
        return (folder / name).stat().st_size == size
    except OSError:  # somebody has removed it
        return False


def write_file(path: Path, dump: Callable[[Callable[[bytes], object]], object]) -> FileEntry:
    """Write a file durably.

    Parameters
    ----------
    path : Path
    dump : callable
        Writes the content, piece by piece, through the function that it is given.

    Raises
    ------
    OSError
        If it cannot be written; nothing is left of it.
    """
    digest, size = hashlib.sha256(), 0
    mode_of = path.with_name(MANIFEST_NAME)  # a private store stays private
    with (
        not_yet_in_force(),
        replacing(path, follow=False, mode_of=mode_of) as temporary,
        open(temporary, "wb") as file,
    ):

        def write(piece: bytes) -> None:
            nonlocal size
            digest.update(piece)
            size += file.write(piece)

        dump(write)
    return FileEntry(path.name, size, digest.hexdigest())
