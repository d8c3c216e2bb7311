"""Stores beside saved classifiers: what is written down of them, and how they are opened again."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipretrieval._util.secrets import MaskedDict, masked, without_secrets
from clipretrieval._util.warning import warn_caller
from clipretrieval.errors import InvalidInputError, StoreCorruptedError, StoreUnavailableError
from clipretrieval.persistence.consent import asks_for, is_network_path
from clipretrieval.stores.base import (
    DetachableStore,
    LocalFilesStore,
    LocatedStore,
    PortableStore,
    VectorStore,
)
from clipretrieval.stores.registry import existing_store, is_built_in, registered_name, store_class

__all__ = ["PART", "keep_store", "open_store", "place_inside", "warn_of_unsaved"]

PART = r"store-[0-9a-f]{8}"
"""Names of the copies of stores inside saved classifiers."""


def _is_lasting(location: Mapping[str, Any]) -> bool:
    """Tell a store's own place from a copy in a saved classifier, which goes with it, and from a lost one."""
    path = location.get("path")
    return path is None or (re.fullmatch(PART, Path(path).name) is None and Path(path).exists())


def keep_store(store: VectorStore, folder: Path) -> dict[str, Any] | None:
    """Make sure that a store can be opened again, and return how: its place, or its copy in `folder`.

    A place inside `folder` is relative to it, so that the folder can be moved or copied as a whole. None for
    a store that the library cannot open by itself.
    """
    store.flush()
    name = registered_name(store)
    location = store.location() if isinstance(store, LocatedStore) else None
    if name is not None and location is not None and _is_lasting(location):
        inside = place_inside(store, folder)
        public: dict[str, Any] = without_secrets(location)
        return {"name": name, "options": public if inside is None else {**public, "path": str(inside)}}
    if isinstance(store, PortableStore) and name is not None:
        place = f"store-{secrets.token_hex(4)}"
        store.save(folder / place)
        return {"name": name, "folder": place}
    return None


def warn_of_unsaved(store: VectorStore) -> None:
    """Say that a store of which `keep_store` returned None is missing from what was saved, and what to do."""
    located = isinstance(store, LocatedStore) and store.location() is not None
    in_memory = isinstance(store, LocatedStore) and not located and not isinstance(store, PortableStore)
    lost = (
        " It has no location: what it holds in memory is lost when the process ends. To keep it, fit a "
        "classifier with a store at a path."
    )
    warn_caller(
        f"the {type(store).__name__} is not part of what was saved; pass it again: "
        f"RetrievalClassifier.load(path, store=your_store).{lost if in_memory else ''}"
    )


def place_inside(store: VectorStore, folder: Path) -> Path | None:
    """Return where in a folder a store lies, relative to it; None where it lies elsewhere."""
    location = store.location() if isinstance(store, LocatedStore) else None
    path = location.get("path") if location is not None else None
    if path is None:
        return None
    place, root = Path(path).resolve(), folder.resolve()
    return place.relative_to(root) if place != root and place.is_relative_to(root) else None


def open_store(content: Mapping[str, Any] | None, folder: Path, *, allow_remote: bool) -> VectorStore:
    """Open what `keep_store` described.

    Parameters
    ----------
    content : mapping or None
        May have been written by anybody.
    folder : Path
        The saved classifier's.
    allow_remote : bool
        Whether the caller trusts the description. Without, only a copy within `folder` of a store of this
        library, and what is there in local files already, is opened.

    Raises
    ------
    InvalidInputError
        If it has to be handed to `load`, or the caller's consent is needed.
    StoreCorruptedError, StoreUnavailableError
        If it is not where it should be, or damaged.
    """
    if content is None:
        raise InvalidInputError(
            "the classifier was saved with a store that cannot be opened by itself; pass it again: "
            "RetrievalClassifier.load(path, store=your_store)"
        )
    name = content["name"]
    if "folder" in content:
        return _open_copy(name, str(content["folder"]), folder, allow_remote)
    options = MaskedDict(content["options"])
    if "path" in options:
        path = options["path"]
        if not isinstance(path, str) or "\0" in path:
            raise StoreCorruptedError(f"{folder} names no usable path of its store; restore it from a copy")
        if not allow_remote and is_network_path(path):
            raise asks_for(folder, f"the store at {path!r}", "it is at another machine")
        options["path"] = str(folder / path)  # an absolute one stays what it is
        if not _holds_something(Path(options["path"])):
            raise StoreUnavailableError(
                f"the classifier's store, {options['path']}, is not there any more; put it back, or pass the "
                "store: RetrievalClassifier.load(path, store=your_store)"
            )
    if not allow_remote and not _exists_locally(name, options):
        raise asks_for(
            folder,
            f"the {name!r} store with {masked(options)}",
            "opening that may contact a host, or make or change something outside of the folder",
        )
    try:
        return existing_store(name, **options)
    except InvalidInputError as error:
        raise InvalidInputError(f"the store that {folder} names cannot be opened: {error}") from error


def _open_copy(name: str, place: str, folder: Path, allow_remote: bool) -> VectorStore:
    copy = folder / place
    if re.fullmatch(PART, place) is None or not copy.is_dir():
        raise StoreCorruptedError(f"{folder} lacks its store, {place}; restore it from a copy")
    if not allow_remote and not copy.resolve().is_relative_to(folder.resolve()):
        raise asks_for(
            folder, f"the store {place}, a link to {copy.resolve()}", "that is outside of the folder"
        )
    if not allow_remote and not is_built_in(name):
        raise asks_for(
            folder, f"the {name!r} store in {place}", "what another package does to open a copy is not known"
        )
    kept: Any = store_class(name)
    if not isinstance(kept, PortableStore):
        raise StoreCorruptedError(f"{folder} says that {place} is of {name!r}, which keeps no copies")
    opened: VectorStore = kept.load(copy)
    if isinstance(opened, DetachableStore):
        opened.leave_when_written()  # the saved classifier changes when it is saved, and not before
    return opened


def _holds_something(path: Path) -> bool:
    try:
        return path.is_file() or any(path.iterdir())
    except OSError:
        return False


def _exists_locally(name: str, options: Mapping[str, Any]) -> bool:
    found: Any = store_class(name)
    return isinstance(found, LocalFilesStore) and found.exists_locally(dict(options)) is True
