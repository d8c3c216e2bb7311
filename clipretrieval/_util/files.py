"""Files that are either wholly there or not there at all, whatever interrupts the writing."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipretrieval._util.checks import check_path
from clipretrieval._util.reading import file_sha256
from clipretrieval.errors import InvalidInputError

__all__ = [
    "NotDurableError",
    "file_sha256",
    "replacing",
    "sync_folder",
    "write_bytes",
    "write_report",
    "write_text",
]

TEMPORARY_SUFFIX = ".tmp"
# So much of a file's name is in that of its temporary file, which may have 255 bytes in all.
LONGEST_STEM = 200


class NotDurableError(OSError):
    """What was written is in place, but its folder could not be synced: a power cut may undo it."""


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
    try:
        sync_folder(target.parent)
    except OSError as error:
        raise NotDurableError(
            error.errno, f"{error.strerror}; the new {target} is in place, but a power cut may undo it"
        ) from error


def write_bytes(path: str | Path, content: bytes, *, follow: bool = True) -> None:
    """Replace the file `path` by one that holds `content`, atomically and durably; see `replacing`."""
    with replacing(path, follow=follow) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, content: str, *, follow: bool = True) -> None:
    """Replace the file `path` by one that holds `content` in UTF-8, atomically and durably."""
    write_bytes(path, content.encode("utf-8"), follow=follow)


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


def sync_folder(folder: str | Path) -> None:
    """Make the renames within `folder` durable; Windows offers no way and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
