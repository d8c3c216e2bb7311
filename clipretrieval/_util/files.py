"""Regular files, read without waiting for anything, and replaced so that the old or the new one is whole."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from clipretrieval._util.checks import check_path
from clipretrieval.errors import InvalidInputError

__all__ = [
    *("REMEDY", "TEMPORARY_SUFFIX", "IrregularFileError", "NotDurableError", "file_sha256", "open_file"),
    *(
        "read_file",
        "reason",
        "refuse_empty_space",
        "remedy",
        "replacing",
        "sync_folder",
        "sync_rename",
        "too_many_open",
        "write_report",
        "write_text",
    ),
]

TEMPORARY_SUFFIX = ".tmp"
LONGEST_STEM = 200
"""Bytes of a file's name that its temporary file's has too, which may have 255 in all."""
LARGEST_EMPTY, LEAST_HELD = 2**30, 1000
"""Bytes of a file that are read even if nearly all of them are holes; above, one in a thousand is no hole."""
REMEDY = "close stores and files that this process no longer needs, or allow it more open files (ulimit -n)"
"""What to do where too many files are open."""


class IrregularFileError(OSError):
    """What should be a file is a pipe, a device, a socket or a folder, or larger than it can be."""


class NotDurableError(OSError):
    """What was written is in place, but its folder could not be synced: a power cut may undo it."""


def open_file(path: str | os.PathLike[str], most: int | None = None) -> BinaryIO:
    """Open a regular file of at most `most` bytes for reading; never wait for anything.

    Links are followed, as whole folders of links are what model hubs and data versioning keep.

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
    """Return the content of a regular file of at most `most` bytes; see `open_file`."""
    with open_file(path, most) as file:
        if most is None:
            return file.read()
        # As long as it is now: to read `most` bytes would first take the memory for so many.
        content = file.read(os.fstat(file.fileno()).st_size + 1)
        while len(content) <= most and (more := file.read(1 << 16)):  # it grows
            content += more
    if len(content) > most:
        raise IrregularFileError(f"it has more than {most} bytes")
    return content


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a regular file's content as 64 hexadecimal digits; see `open_file`.

    Refused too is a file that is large and next to empty: a terabyte of nothing fits into any archive, and
    takes an hour to read.
    """
    digest = hashlib.sha256()
    with open_file(path) as file:
        refuse_empty_space(file)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def replacing(path: str | Path, *, follow: bool = True, mode_of: str | Path | None = None) -> Iterator[Path]:
    """Give a temporary path to write to, and put that file durably in the place of `path`.

    The temporary file lies in the folder of `path` under the name ``.NAME.RANDOM.tmp``. When the block
    ends normally it is fsynced, renamed over `path`, and the folder is fsynced. When the block raises, it is
    removed and `path` is as it was. A file that is replaced keeps its permissions.

    Parameters
    ----------
    path : str or Path
        Its folder must exist.
    follow : bool
        Where `path` is a link, replace what it points to; otherwise the link itself.
    mode_of : str or Path, optional
        A file whose permissions a new one gets, where it exists.

    Yields
    ------
    Path
        An empty file, to be written and closed within the block.

    Raises
    ------
    NotDurableError
        If the file is in place, but the folder cannot be synced.
    OSError
        If the file cannot be written, synced or renamed, or `path` is there and no regular file.
    """
    target = Path(path)
    if follow and target.is_symlink():
        target = Path(os.path.realpath(target))
    mode = _permissions(target, follow)
    if mode is None and mode_of is not None:
        mode = _permissions(Path(mode_of), follow)
    stem = os.fsdecode(os.fsencode(target.name)[:LONGEST_STEM])
    temporary = target.with_name(f".{stem}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    try:
        # Not mkstemp, whose files only their owner can read.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        os.close(os.open(temporary, flags, 0o666 if mode is None else mode | 0o600))
        yield temporary
        _sync_file(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_rename(target)


def write_text(path: str | Path, content: str, *, follow: bool = True) -> None:
    """Replace the file `path` by one that holds `content` in UTF-8, durably; see `replacing`."""
    encoded = content.encode("utf-8")
    with replacing(path, follow=follow) as temporary:
        temporary.write_bytes(encoded)


def write_report(path: str | Path | None, text: str, what: str = "report") -> str:
    """Return a text, once it is written to `path` where that is given, atomically and with a last line break.

    Raises
    ------
    InvalidInputError
        If it cannot be written, or not be synced to the disk; the message says which.
    """
    if path is not None:
        path = check_path(path, "path")
        try:
            write_text(path, text + "\n")
        except NotDurableError as error:
            raise InvalidInputError(f"the {what} may not be on the disk: {error.strerror}") from error
        except OSError as error:
            raise InvalidInputError(
                f"the {what} cannot be written to {str(path)!r}: {error.strerror or error}"
            ) from error
    return text


def sync_rename(path: Path) -> None:
    """Make durable that a file or folder has just been renamed to `path`.

    Raises
    ------
    NotDurableError
        If its folder cannot be synced.
    """
    try:
        sync_folder(path.parent)
    except OSError as error:
        raise NotDurableError(
            error.errno, f"{error.strerror}; the new {path} is in place, but a power cut may undo it"
        ) from error


def sync_folder(folder: str | Path) -> None:
    """Make the renames within `folder` durable; Windows offers no way and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def too_many_open(error: BaseException) -> bool:
    """Tell whether a file could not be opened because too many are open, in this process or in all."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def reason(error: OSError) -> str:
    """Return what an error of the system says, and what to do about it where it is the limit."""
    text = str(error)
    return f"{text}; {REMEDY}" if too_many_open(error) and REMEDY not in text else text


def remedy(error: BaseException, otherwise: str) -> str:
    """Return what to do about a file that could not be opened."""
    return REMEDY if too_many_open(error) else otherwise


def refuse_empty_space(file: BinaryIO) -> None:
    """Refuse a file that is large and next to empty; see `file_sha256`."""
    found = os.fstat(file.fileno())
    size, held = found.st_size, 512 * getattr(found, "st_blocks", found.st_size)
    # Some file systems tell of no blocks whatever they hold, and those that know no holes tell of none.
    if size > LARGEST_EMPTY and held * LEAST_HELD < size and hasattr(os, "SEEK_HOLE"):
        if file.seek(0, os.SEEK_HOLE) < size:
            raise IrregularFileError(f"it has {size} bytes, of which only {held} are on the disk")
        file.seek(0)


def _permissions(path: Path, follow: bool) -> int | None:
    """Return the permission bits of a file, None where there is none; refuse a device or a folder."""
    try:
        mode = path.stat().st_mode if follow else path.lstat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if stat.S_ISREG(mode):
        return stat.S_IMODE(mode) & 0o777
    if follow:
        raise OSError(errno.EINVAL, "it is not a regular file, and is not replaced", str(path))
    return None


def _sync_file(path: Path, mode: int | None) -> None:
    # Windows only syncs a descriptor that is open for writing.
    descriptor = os.open(path, os.O_RDWR)
    try:
        if mode is not None and os.name != "nt":
            os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
