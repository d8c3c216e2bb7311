"""A blob of a store in this process: bytes, in memory and in a file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from clipretrieval._util.files import IrregularFileError, read_file, replacing
from clipretrieval.stores.local.folder_manifest import MANIFEST_NAME, FileEntry, damaged

__all__ = ["Blob", "read_blob_file"]


@dataclass(frozen=True)
class Blob:
    """Bytes that a store keeps beside its records.

    Attributes
    ----------
    content : bytes
    """

    content: bytes

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the content as 64 hexadecimal digits, computed once: a blob is written more often."""
        return hashlib.sha256(self.content).hexdigest()

    def lies_in(self, folder: Path, entry: FileEntry | None) -> bool:
        """Tell whether a file of a folder, verified when it was read or written, holds this content."""
        if entry is None or (entry.size, entry.sha256) != (len(self.content), self.sha256):
            return False
        try:
            return (folder / entry.name).stat().st_size == entry.size
        except OSError:  # somebody has removed it
            return False

    def write_file(self, path: Path) -> FileEntry:
        """Write the content durably into a file."""
        with replacing(path, follow=False, mode_of=path.with_name(MANIFEST_NAME)) as temporary:
            temporary.write_bytes(self.content)
        return FileEntry(path.name, len(self.content), self.sha256)


def read_blob_file(folder: Path, entry: FileEntry) -> Blob:
    """Read a blob from its file.

    Raises
    ------
    StoreCorruptedError
        If the file is missing or not as it was written.
    OSError
        If it cannot be read.
    """
    path = folder / entry.name
    try:
        blob = Blob(read_file(path, entry.size))
    except FileNotFoundError:
        raise damaged(path, "it is missing") from None
    except IrregularFileError as error:
        raise damaged(path, str(error)) from error
    if len(blob.content) != entry.size:
        raise damaged(path, f"it has {len(blob.content)} bytes, not {entry.size}")
    if blob.sha256 != entry.sha256:
        raise damaged(path, "its content does not match its checksum")
    return blob
