"""The manifest of a store's folder: what is in force, and how to tell that it is undamaged."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipretrieval.errors import StoreCorruptedError
from clipretrieval.types import Metric

__all__ = ["MANIFEST_NAME", "FileEntry", "FolderManifest", "damaged"]

MANIFEST_NAME = "MANIFEST.json"
FORMAT = "clipretrieval-store"
FORMAT_VERSION = 1


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
        ``"vectors"``, ``"records"`` and what else `Snapshot.parts` names; empty where there are no records.
    user : str
        The user's manifest as JSON text.
    state : dict, optional
        What is known of the index in the further files; JSON values.
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
        return json.dumps({**content, "sha256": _checksum(content)}, indent=2) + "\n"

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
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise damaged(path, "it is not JSON") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise damaged(path, f"it does not name the format {FORMAT!r}")
        version = found.get("format_version")
        if version != FORMAT_VERSION:
            raise StoreCorruptedError(
                f"{path} is of format version {version!r}; this version of clipretrieval reads version "
                f"{FORMAT_VERSION}. Install a version of clipretrieval that reads format version {version!r}"
            )
        if found.pop("sha256", None) != _checksum(found):
            raise damaged(path, "its content does not match its checksum")
        try:
            return cls(
                kind=found["kind"],
                generation=found["generation"],
                metric=Metric(found["metric"]),
                dim=found["dim"],
                index=found["index"],
                count=found["count"],
                files={role: FileEntry(**entry) for role, entry in found["files"].items()},
                user=json.dumps(found["manifest"], separators=(",", ":")),
                state=found.get("index_state"),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged(path, f"a field is missing or malformed ({error})") from error


def damaged(path: Path, why: str) -> StoreCorruptedError:
    """Return the error for a file that is not as it was written."""
    return StoreCorruptedError(
        f"{path} is damaged: {why}. Restore the folder {path.parent} from a copy, or delete it and fill it "
        "anew"
    )


def _checksum(content: dict[str, Any]) -> str:
    """Return the SHA-256 of the content in canonical JSON; white space does not enter it."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()
