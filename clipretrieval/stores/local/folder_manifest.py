"""The manifest of a store's folder: what is in force, and how to tell that it is undamaged."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipretrieval._util.checks import check_int, check_number, shown
from clipretrieval._util.text import parse_json
from clipretrieval.errors import InvalidInputError, StoreCorruptedError, StoreError
from clipretrieval.stores.checks import BLOB_NAME, LARGEST_BLOB
from clipretrieval.types import Metric

__all__ = [
    *("LARGEST_BLOBS", "LARGEST_FILE", "LARGEST_MANIFEST", "LAST_GENERATION", "MANIFEST_NAME"),
    *("FileEntry", "FolderManifest", "SegmentEntry", "damaged", "fault_of"),
]

MANIFEST_NAME = "MANIFEST.json"
LARGEST_MANIFEST = 1 << 25
"""The most characters of JSON that a user's manifest may have: some millions of labels."""
LARGEST_FILE = 2 * LARGEST_MANIFEST
"""The most bytes that MANIFEST.json may have."""
LARGEST_BLOBS = LARGEST_BLOB
"""The most bytes that all blobs of a store may have together: they are held in memory."""
INDENTED = 1 << 14
"""A user's manifest of more characters is written without indentation, which deep values multiply."""
ADVICE = ". Restore the folder"
FORMAT = "clipretrieval-store"
FORMAT_VERSION, PARTED_VERSION = 2, 3
"""Of manifests; the second of those with parts, of which versions before it know nothing."""
GENERATION = "([0-9]{1,18})"
LAST_GENERATION = 10**18 - 1
"""The greatest number of a generation: names of files have no more digits."""
# Compiled here: whoever opens a store waits for what is compiled when it is first matched.
FILE_NAMES = {
    1: {
        "vectors": re.compile(rf"(?:index-{GENERATION}\.faiss|vectors-{GENERATION}\.npy)"),
        "records": re.compile(rf"records-{GENERATION}\.sqlite"),
        "ann": re.compile(rf"ann-{GENERATION}\.faiss"),
        "ann_labels": re.compile(rf"ann-{GENERATION}\.npy"),
    },
    2: {
        "ann": re.compile(rf"ann-{GENERATION}-[0-9]{{1,9}}\.faiss"),
        "ann_labels": re.compile(rf"ann-{GENERATION}-[0-9]{{1,9}}\.npy"),
        "removed": re.compile(rf"removed-{GENERATION}-[0-9]{{1,9}}\.bin"),
    },
}
FILE_NAMES[PARTED_VERSION] = FILE_NAMES[FORMAT_VERSION]
"""What a file is called, by the version of the format and its role; in 1 all are of one generation."""
PART_FILE = re.compile(rf"part-{GENERATION}-[0-9]{{1,9}}\.json")
BLOB_FILE = re.compile(rf"blob-({BLOB_NAME})-{GENERATION}\.bin")
SEGMENT_FILE = re.compile(rf"segment-{GENERATION}-[0-9]{{1,9}}\.bin")
SHA256 = re.compile("[0-9a-f]{64}")
MOST_ROWS, MOST_ROWS_IN_ALL = 1 << 24, 1 << 31
"""The most rows of a segment, and of all."""
LONGEST = 1.000001 * float(np.finfo(np.float32).max)
"""What no value of a vector exceeds, with some room for rounding."""
LONGEST_TEXTS = 1 << 40


@dataclass(frozen=True)
class FileEntry:
    """A file that is in force: its name, its size in bytes and its SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


class SegmentEntry(NamedTuple):
    """A segment that is in force; see `segment`.

    Attributes
    ----------
    name : str
    rows : int
    longest : float
        The greatest norm of a vector.
    names : int or None
        Bytes of its different labels; None where labels are int.
    ids, texts : int
        Bytes of its ids and of its metadata, 0 where no record has any.
    sha256 : str
        Of its footer.
    """

    name: str
    rows: int
    longest: float
    names: int | None
    ids: int
    texts: int
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
        By their roles: the index's, and the bits of rows that were removed. In version 1 the vectors' and
        the records' as well.
    user : str
        The user's manifest as JSON text, with null in the place of what lies in `parts`.
    state : dict, optional
        What is known of the index; JSON values.
    blobs : dict of str to FileEntry
        By their names; each lies in a file of this generation or of an earlier one.
    segments : tuple of SegmentEntry
        In the order of their rows, which are numbered through.
    covered : int
        So many rows, from the first on, were there when the index was written.
    parts : dict of str to FileEntry
        Long values of the user's manifest, by their keys; each lies in a file of this generation or of an
        earlier one.
    version : int
        Of the format: 1 was written by versions that put a whole new generation in the place of the last.
        What has parts is written as `PARTED_VERSION`, and is like all others otherwise.
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
    segments: tuple[SegmentEntry, ...] = ()
    covered: int = 0
    parts: dict[str, FileEntry] = field(default_factory=dict)
    version: int = FORMAT_VERSION

    @property
    def names(self) -> set[str]:
        """The names of all files that are in force beside the manifest."""
        files = (*self.files.values(), *self.blobs.values(), *self.parts.values())
        return {entry.name for entry in files} | {entry.name for entry in self.segments}

    @property
    def rows(self) -> int:
        """The number of rows in all segments, removed ones included."""
        return sum(entry.rows for entry in self.segments)

    def to_json(self) -> str:
        """Return the file's content."""
        content: dict[str, Any] = {
            "format": FORMAT,
            "format_version": PARTED_VERSION if self.parts else FORMAT_VERSION,
            "kind": self.kind,
            "generation": self.generation,
            "metric": str(self.metric),
            "dim": self.dim,
            "index": self.index,
            "count": self.count,
            "segments": [entry._asdict() for entry in self.segments],
            "files": {role: asdict(entry) for role, entry in self.files.items()},
            "covered": self.covered,
            "manifest": json.loads(self.user),
        }
        if self.state is not None:
            content["index_state"] = self.state
        if self.blobs:
            content["blobs"] = {name: asdict(entry) for name, entry in self.blobs.items()}
        if self.parts:
            content["parts"] = {key: asdict(entry) for key, entry in self.parts.items()}
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
        version = found.get("format_version")
        if type(version) is not int or version < 1:
            raise damaged(path, f"it is of no format version that there is ({shown(version)})")
        if version not in FILE_NAMES:
            raise StoreCorruptedError(
                f"{path} is of format version {shown(version)}; this version of clipretrieval reads versions "
                f"up to {PARTED_VERSION}. Install a version of clipretrieval that reads format version "
                f"{shown(version)}"
            )
        try:
            if found.pop("sha256", None) != _checksum(found):
                raise damaged(path, "its content does not match its checksum")
            return cls._from_values(found)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise damaged(path, f"a field is missing or malformed ({error})") from error

    @classmethod
    def _from_values(cls, found: dict[str, Any]) -> FolderManifest:
        """Check all that does not depend on the class of store; its own part is the class's to check."""
        kind, index, user, state = found["kind"], found["index"], found["manifest"], found.get("index_state")
        if not isinstance(kind, str) or not isinstance(index, str) or not isinstance(user, dict):
            raise InvalidInputError("kind, index and manifest must be two strings and an object")
        if not (state is None or isinstance(state, dict)):
            raise InvalidInputError(f"index_state must be an object; got {shown(state)}")
        generation = check_int(found["generation"], "generation", least=0, most=LAST_GENERATION)
        count = check_int(found["count"], "count", least=0)
        dim = found["dim"] if found["dim"] is None and not count else check_int(found["dim"], "dim")
        version = found["format_version"]
        files = {role: _entry(role, version, generation, each) for role, each in found["files"].items()}
        blobs = {name: _blob_entry(name, generation, entry) for name, entry in found.get("blobs", {}).items()}
        check_int(sum(entry.size for entry in blobs.values()), "all blobs' size", least=0, most=LARGEST_BLOBS)
        text = json.dumps(user, separators=(",", ":"))
        metric = Metric(found["metric"])
        manifest = cls(kind, generation, metric, dim, index, count, files, text, state, blobs)
        if version == 1:
            if bool(count) != bool(files) or (files and not files.keys() >= {"vectors", "records"}):
                raise InvalidInputError(f"{count} records do not go with the files {shown(sorted(files))}")
            return replace(manifest, version=1)
        segments = tuple(_segment_entry(generation, each) for each in found["segments"])
        rows = check_int(sum(entry.rows for entry in segments), "all rows", least=0, most=MOST_ROWS_IN_ALL)
        covered = check_int(found["covered"], "covered", least=0, most=rows)
        if len({entry.name for entry in segments}) < len(segments):
            raise InvalidInputError("it names a segment more than once")
        parts = {
            key: _part_entry(key, generation, each, user) for key, each in found.get("parts", {}).items()
        }
        if bool(parts) != (version == PARTED_VERSION):
            raise InvalidInputError(f"parts of the manifest do not go with format version {version}")
        if count > rows or ("removed" not in files and count < rows):
            raise InvalidInputError(f"{count} records do not go with {rows} rows")
        if segments and not all(entry.longest <= LONGEST * math.sqrt(dim or 0) for entry in segments):
            raise InvalidInputError("a vector is longer than any of float32")
        return replace(manifest, segments=segments, covered=covered, parts=parts)


def damaged(path: Path, why: str) -> StoreCorruptedError:
    """Return the error for a file that is not as it was written."""
    rest = "open it with read_only=True and put what is left into a new store"
    otherwise = rest if path.name.startswith("segment-") else "delete it and fill it anew"
    return StoreCorruptedError(f"{path} is damaged: {why}{ADVICE} {path.parent} from a copy, or {otherwise}")


def fault_of(error: StoreError) -> str:
    """Return what an error for a file says, without the advice."""
    return str(error).partition(ADVICE)[0]


def _entry(role: str, version: int, generation: int, entry: dict[str, Any]) -> FileEntry:
    known = FILE_NAMES[version]
    if role not in known:
        raise InvalidInputError(f"{shown(role)} is no role of a file")
    found = _named(known[role], entry["name"], "a file", generation)
    if version == 1 and _generation_of(found) < generation:
        raise InvalidInputError(f"{shown(entry['name'])} is of another generation than {generation}")
    return _checked_entry(entry)


def _segment_entry(generation: int, entry: dict[str, Any]) -> SegmentEntry:
    _named(SEGMENT_FILE, entry["name"], "a segment", generation)
    names = entry["names"]
    return SegmentEntry(
        entry["name"],
        check_int(entry["rows"], "rows", most=MOST_ROWS),
        check_number(entry["longest"], "longest", least=0),
        None if names is None else check_int(names, "names", most=LONGEST_TEXTS),
        check_int(entry["ids"], "ids", most=LONGEST_TEXTS),
        check_int(entry["texts"], "texts", least=0, most=LONGEST_TEXTS),
        _checked_sum(entry["sha256"]),
    )


def _blob_entry(blob: str, generation: int, entry: dict[str, Any]) -> FileEntry:
    """Check that a file can only be that of this blob, in this folder."""
    found = _named(BLOB_FILE, entry["name"], f"a file of the blob {shown(blob)}", generation)
    if found[1] != blob:
        raise InvalidInputError(f"{shown(entry['name'])} is no name of a file of the blob {shown(blob)}")
    return _checked_entry(entry)


def _part_entry(key: str, generation: int, entry: dict[str, Any], user: dict[str, Any]) -> FileEntry:
    _named(PART_FILE, entry["name"], "a part of the manifest", generation)
    if key not in user or user[key] is not None:
        raise InvalidInputError(f"the manifest has no place for its part {shown(key)}")
    checked = _checked_entry(entry)
    check_int(checked.size, "a part's size", most=LARGEST_MANIFEST)
    return checked


def _named(pattern: re.Pattern[str], name: str, what: str, generation: int) -> re.Match[str]:
    """Check that a file's name is that of a generation in force, or of an earlier one."""
    found = pattern.fullmatch(name)
    if found is None or _generation_of(found) > generation:
        raise InvalidInputError(f"{shown(name)} is no name of {what} up to generation {generation}")
    return found


def _generation_of(found: re.Match[str]) -> int:
    """Return which generation wrote a file: the number that its name's pattern matched last."""
    return int(found[found.lastindex or 0])


def _checked_entry(entry: dict[str, Any]) -> FileEntry:
    size = check_int(entry["size"], "size", least=0)
    return FileEntry(entry["name"], size, _checked_sum(entry["sha256"]))


def _checked_sum(sha256: Any) -> str:
    if not SHA256.fullmatch(sha256):
        raise InvalidInputError(f"{shown(sha256)} is no SHA-256")
    return str(sha256)


def _checksum(content: dict[str, Any]) -> str:
    """Return the SHA-256 of the content in canonical JSON; white space does not enter it."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()
