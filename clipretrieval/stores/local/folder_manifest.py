"""The manifest of a store's folder: what is in force, and how to tell that it is undamaged."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clipretrieval._util.checks import check_int, shown
from clipretrieval._util.text import parse_json
from clipretrieval.errors import InvalidInputError, StoreCorruptedError
from clipretrieval.stores.checks import BLOB_NAME, LARGEST_BLOB
from clipretrieval.types import Metric

__all__ = [
    *("LARGEST_BLOBS", "LARGEST_FILE", "LARGEST_MANIFEST", "MANIFEST_NAME"),
    *("FileEntry", "FolderManifest", "damaged"),
]

MANIFEST_NAME = "MANIFEST.json"
LARGEST_MANIFEST = 1 << 25
"""The most characters of JSON that a user's manifest may have: some millions of labels."""
LARGEST_FILE = 2 * LARGEST_MANIFEST
"""The most bytes that MANIFEST.json may have."""
LARGEST_BLOBS = LARGEST_BLOB
"""The most bytes that all blobs of a store may have together: they are held in memory."""
INDENTED = 1 << 20
"""A user's manifest of more characters is written without indentation."""
FORMAT = "clipretrieval-store"
FORMAT_VERSION = 1
FILE_NAMES = {
    "vectors": r"(?:index-{0}\.faiss|vectors-{0}\.npy)",
    "records": r"records-{0}\.sqlite",
    "ann": r"ann-{0}\.faiss",
    "ann_labels": r"ann-{0}\.npy",
}
"""What a file of generation {0} is called, by its role."""
BLOB_FILE = r"blob-{0}-([0-9]{{1,18}})\.bin"
"""What the file of the blob {0} is called; its number is the generation that wrote it."""


@dataclass(frozen=True)
class FileEntry:
    """A file of the generation in force: its name, its size in bytes and its SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class FolderManifest:
    """What MANIFEST.json says.

    Attributes
    ----------
    kind : str
        The class of store that wrote the folder.
    generation : int
        Counts what was flushed, from 0.
    metric : Metric
    dim : int or None
    index : str
        The kind of index that was asked for.
    count : int
        Number of records.
    files : dict of str to FileEntry
        ``"vectors"``, ``"records"`` and what else `Snapshot.files` names; empty where there are no records.
    user : str
        The user's manifest as JSON text.
    state : dict, optional
        What is known of the index in the further files; JSON values.
    blobs : dict of str to FileEntry
        By their names; each lies in a file of this generation or of an earlier one.
    """

    kind: str
    generation: int
    metric: Metric
    dim: int | None
    index: str
    count: int
    files: dict[str, FileEntry]
    user: str
    state: dict[str, Any] | None = None
    blobs: dict[str, FileEntry] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the file's content."""
        content: dict[str, Any] = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "generation": self.generation,
            "metric": str(self.metric),
            "dim": self.dim,
            "index": self.index,
            "count": self.count,
            "files": {role: asdict(entry) for role, entry in self.files.items()},
            "manifest": json.loads(self.user),
        }
        if self.state is not None:
            content["index_state"] = self.state
        if self.blobs:
            content["blobs"] = {name: asdict(entry) for name, entry in self.blobs.items()}
        indent = 2 if len(self.user) <= INDENTED else None
        return json.dumps({**content, "sha256": _checksum(content)}, indent=indent) + "\n"

    @classmethod
    def parse(cls, content: bytes, folder: Path) -> FolderManifest:
        """Read the file's content.

        Raises
        ------
        StoreCorruptedError
            If it is damaged, or of a format version that this version of the library does not know.
        """
        path = folder / MANIFEST_NAME
        try:
            found = parse_json(content)
        except ValueError as error:
            raise damaged(path, f"it is not JSON ({error})") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise damaged(path, f"it does not name the format {FORMAT!r}")
        version = shown(found.get("format_version"))
        if version != str(FORMAT_VERSION):
            raise StoreCorruptedError(
                f"{path} is of format version {version}; this version of clipretrieval reads version "
                f"{FORMAT_VERSION}. Install a version of clipretrieval that reads format version {version}"
            )
        try:
            if found.pop("sha256", None) != _checksum(found):
                raise damaged(path, "its content does not match its checksum")
            return cls._from_values(found)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise damaged(path, f"a field is missing or malformed ({error})") from error

    @classmethod
    def _from_values(cls, found: dict[str, Any]) -> FolderManifest:
        """Check all that does not depend on the class of store; its own part is the layout's to check."""
        kind, index, user, state = found["kind"], found["index"], found["manifest"], found.get("index_state")
        if not isinstance(kind, str) or not isinstance(index, str) or not isinstance(user, dict):
            raise InvalidInputError("kind, index and manifest must be two strings and an object")
        if not (state is None or isinstance(state, dict)):
            raise InvalidInputError(f"index_state must be an object; got {shown(state)}")
        generation = check_int(found["generation"], "generation", least=0)
        count = check_int(found["count"], "count", least=0)
        dim = found["dim"] if found["dim"] is None and not count else check_int(found["dim"], "dim")
        files = {role: _entry(role, generation, entry) for role, entry in found["files"].items()}
        if bool(count) != bool(files) or (files and not files.keys() >= {"vectors", "records"}):
            raise InvalidInputError(f"{count} records do not go with the files {shown(sorted(files))}")
        blobs = {name: _blob_entry(name, generation, entry) for name, entry in found.get("blobs", {}).items()}
        check_int(sum(entry.size for entry in blobs.values()), "all blobs' size", least=0, most=LARGEST_BLOBS)
        text = json.dumps(user, separators=(",", ":"))
        return cls(kind, generation, Metric(found["metric"]), dim, index, count, files, text, state, blobs)


def damaged(path: Path, why: str) -> StoreCorruptedError:
    """Return the error for a file that is not as it was written."""
    return StoreCorruptedError(
        f"{path} is damaged: {why}. Restore the folder {path.parent} from a copy, or delete it and fill it "
        "anew"
    )


def _entry(role: str, generation: int, entry: dict[str, Any]) -> FileEntry:
    name = entry["name"]
    if role not in FILE_NAMES or not re.fullmatch(FILE_NAMES[role].format(generation), name):
        raise InvalidInputError(f"{shown(name)} is no name of a file of generation {generation}")
    return _checked_entry(entry)


def _blob_entry(blob: str, generation: int, entry: dict[str, Any]) -> FileEntry:
    """Check that a file can only be that of this blob, in this folder."""
    name = entry["name"]
    found = re.fullmatch(BLOB_FILE.format(blob), name) if re.fullmatch(BLOB_NAME, blob) else None
    if found is None or int(found[1]) > generation:
        raise InvalidInputError(
            f"{shown(name)} is no name of a file of the blob {shown(blob)} up to generation {generation}"
        )
    return _checked_entry(entry)


def _checked_entry(entry: dict[str, Any]) -> FileEntry:
    name, size, sha256 = entry["name"], check_int(entry["size"], "size", least=0), entry["sha256"]
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise InvalidInputError(f"{shown(sha256)} is no SHA-256")
    return FileEntry(name, size, sha256)


def _checksum(content: dict[str, Any]) -> str:
    """Return the SHA-256 of the content in canonical JSON; white space does not enter it."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()
