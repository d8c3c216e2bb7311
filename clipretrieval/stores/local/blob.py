"""A blob of a store in this process: bytes, in memory and in a file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from clipretrieval._util.files import IrregularFileError, read_file, replacing
from clipretrieval.errors import StoreCorruptedError
from clipretrieval.stores.local.folder_manifest import MANIFEST_NAME, FileEntry
from clipretrieval.stores.local.mapped_file import lies_in

__all__ = ["Blob", "read_blob_file"]


@dataclass(frozen=True)
class Blob:
    """Bytes that a store keeps beside its records.

    Attributes
    ----------
    content : bytes
        What is left of it, where it is damaged.
    damage : str, optional
        Why it cannot be read. It stays in the folder as it is, and goes into copies as it is, until somebody
        writes it again: a store cannot tell what can be computed anew.
    written : FileEntry, optional
        The file that a damaged blob should be.
    """

    content: bytes
    damage: str | None = None
    written: FileEntry | None = None

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the content as 64 hexadecimal digits, computed once: a blob is written more often."""
        return hashlib.sha256(self.content).hexdigest() if self.written is None else self.written.sha256

    @property
    def size(self) -> int:
        """How many bytes it has, or had when it was written."""
        return len(self.content) if self.written is None else self.written.size

    def read(self) -> bytes:
        """Return the content.

        Raises
        ------
        StoreCorruptedError
            If it is not as it was written.
        """
        if self.damage is not None:
            raise StoreCorruptedError(self.damage)
        return self.content

    def lies_in(self, folder: Path, entry: FileEntry | None) -> bool:
        """Tell whether a file of a folder, verified when it was read or written, holds this content."""
        if entry is None or (entry.size, entry.sha256) != (self.size, self.sha256):
            return False
        return self.damage is not None or lies_in(folder, entry.name, entry.size)

    def write_file(self, path: Path) -> FileEntry:
        """Write the content durably into a file."""
        with replacing(path, follow=False, mode_of=path.with_name(MANIFEST_NAME)) as temporary:
            temporary.write_bytes(self.content)
        return FileEntry(path.name, self.size, self.sha256)


def read_blob_file(folder: Path, what: str, entry: FileEntry) -> Blob:
    """Read a blob from its file; one that is missing, or not as it was written, is marked as damaged.

    Parameters
    ----------
    folder : Path
    what : str
        What has to be written again if it is damaged, and cannot be restored.
    entry : FileEntry

    Raises
    ------
    OSError
        If it cannot be read.
    """
    path, content = folder / entry.name, b""
    try:
        content = read_file(path, entry.size)
    except FileNotFoundError:
        why = "it is missing"
    except IrregularFileError as error:
        why = str(error)
    else:
        blob = Blob(content)
        if len(content) != entry.size:
            why = f"it has {len(content)} bytes, not {entry.size}"
        elif blob.sha256 != entry.sha256:
            why = "its content does not match its checksum"
        else:
            return blob
    damage = f"{path} is damaged: {why}. Restore the folder {folder} from a copy, or write {what} again"
    return Blob(content, damage, entry)
