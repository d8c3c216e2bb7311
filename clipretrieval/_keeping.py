"""Stores beside saved classifiers: what is written down of them, and how they are opened again."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipretrieval.errors import InvalidInputError, StoreCorruptedError, StoreUnavailableError
from clipretrieval.stores import LocatedStore, PortableStore, available_stores
from clipretrieval.stores._folder_store import FolderStore
from clipretrieval.stores.base import VectorStore
from clipretrieval.stores.registry import existing_store, store_class

__all__ = ["PART", "keep_store", "open_store", "place_inside"]

PART = r"store-[0-9a-f]{8}"
"""Names of the copies of stores inside saved classifiers."""


def _is_lasting(location: Mapping[str, Any]) -> bool:
    """Tell a store's own place from a copy in a saved classifier, which goes with it, and from a lost one."""
    path = location.get("path")
    return path is None or (re.fullmatch(PART, Path(path).name) is None and Path(path).is_dir())


def _registered_name(store: VectorStore) -> str | None:
    for name in available_stores():
        try:
            if type(store) is store_class(name):
                return name
        except Exception:  # noqa: BLE001, S112  another store's missing or broken package is not ours to report
            continue
    return None


def keep_store(store: VectorStore, folder: Path) -> dict[str, Any] | None:
    """Make sure that a store can be opened again, and return how: its place, or its copy in `folder`.

    A place inside `folder` is relative to it, so that the folder can be moved or copied as a whole. None for
    a store that the library cannot open by itself.
    """
    store.flush()
    name = _registered_name(store)
    location = store.location() if isinstance(store, LocatedStore) else None
    if name is not None and location is not None and _is_lasting(location):
        inside = place_inside(store, folder)
        return {"name": name, "options": location if inside is None else {**location, "path": str(inside)}}
    if isinstance(store, PortableStore) and name is not None:
        place = f"store-{secrets.token_hex(4)}"
        store.save(folder / place)
        return {"name": name, "folder": place}
    return None


def place_inside(store: VectorStore, folder: Path) -> Path | None:
    """Return where in a folder a store lies, relative to it; None where it lies elsewhere."""
    location = store.location() if isinstance(store, LocatedStore) else None
    path = location.get("path") if location is not None else None
    if path is None:
        return None
    place, root = Path(path).resolve(), folder.resolve()
    return place.relative_to(root) if place != root and place.is_relative_to(root) else None


def open_store(content: Mapping[str, Any] | None, folder: Path) -> VectorStore:
    """Open what `keep_store` described.

    Raises
    ------
    InvalidInputError
        If it has to be handed to `load`.
    StoreCorruptedError, StoreUnavailableError
        If it is not where it should be, or damaged.
    """
    if content is None:
        raise InvalidInputError(
            "the classifier was saved with a store that cannot be opened by itself; pass it again: "
            "RetrievalClassifier.load(path, store=your_store)"
        )
    if "folder" in content:
        place = folder / str(content["folder"])
        if re.fullmatch(PART, place.name) is None or place.parent != folder or not place.is_dir():
            raise StoreCorruptedError(
                f"{folder} lacks its store, {content['folder']}; restore it from a copy"
            )
        kept: Any = store_class(content["name"])
        opened: VectorStore = kept.load(place)
        if isinstance(opened, FolderStore):
            opened.leave_when_written()  # the saved classifier changes when it is saved, and not before
        return opened
    options = dict(content["options"])
    path = options.get("path")
    if path is not None:
        path = options["path"] = str(folder / path)  # an absolute one stays what it is
    if path is not None and not (Path(path).is_dir() and any(Path(path).iterdir())):
        raise StoreUnavailableError(
            f"the classifier's store, {path}, is not there any more; put it back, or pass the store: "
            "RetrievalClassifier.load(path, store=your_store)"
        )
    return existing_store(content["name"], **options)
