"""Files that are either wholly there or not there at all, whatever interrupts the writing."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["file_sha256", "replacing", "sync_folder", "write_bytes", "write_text"]

TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to, and put that file durably in the place of `path`.

    The temporary file lies in the folder of `path` under the name ``.NAME.RANDOM.tmp``. When the block
    ends normally it is fsynced, renamed over `path`, and the folder is fsynced. When the block raises, it is
    removed and `path` is as it was.

    Parameters
    ----------
    path : str or Path
        Its folder must exist.

    Yields
    ------
    Path
        An empty file, to be written and closed within the block.

    Raises
    ------
    OSError
        If the file cannot be written, synced or renamed.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    try:
        # Not mkstemp, whose files only their owner can read.
        temporary.touch(exist_ok=False)
        yield temporary
        _sync_file(temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Replace the file `path` by one that holds `content`, atomically and durably."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, content: str) -> None:
    """Replace the file `path` by one that holds `content` in UTF-8, atomically and durably."""
    write_bytes(path, content.encode("utf-8"))


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync_folder(folder: str | Path) -> None:
    """Make the renames within `folder` durable; Windows offers no way and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_file(path: Path) -> None:
    # Windows only syncs a descriptor that is open for writing.
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
