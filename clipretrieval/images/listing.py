"""Sources that are named by a path or URL, listed once for all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from clipretrieval._util.labels import composed
from clipretrieval._util.warning import warn_caller
from clipretrieval.errors import InvalidInputError
from clipretrieval.images.folders import TOOL_FOLDERS, is_folder, read_folder
from clipretrieval.images.formats import FOREIGN_ENDINGS, image_extensions
from clipretrieval.images.tables import ImageTable, is_saved_dataset, is_table, read_table
from clipretrieval.images.tars import is_tars, read_tars
from clipretrieval.images.urls import is_url, list_url, url_name

__all__ = ["listed", "means_folder"]


def listed(images: Any, *, quiet: bool = False) -> Any:
    """Scan a folder, list tars, or read a table; return anything else as it is.

    Parameters
    ----------
    images : image-like
    quiet : bool
        Whether to give no warnings of what a folder holds.

    Returns
    -------
    ImageFolder, ImageTable, ImageTars, or what was given

    Raises
    ------
    InvalidInputError
        If there is nothing there, it holds no images, or it cannot be read.
    StoreUnavailableError
        If a URL cannot be reached.
    """
    if is_tars(images):
        return read_tars(images)
    if is_table(images):
        return read_table(images)
    if not isinstance(images, str | os.PathLike) or not means_folder(images):
        return images
    found: Any
    found, remarks = _read_url(images) if is_url(images) else read_folder(images)
    for remark in () if quiet else remarks:
        warn_caller(remark)
    return found


def means_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a path is, or was to be, a folder of images: a missing one counts unless named like a file."""
    if is_tars(path) or is_saved_dataset(path):
        return False
    if is_folder(path):
        return True
    named = Path(url_name(path)).suffix.lower() in (*image_extensions(), *FOREIGN_ENDINGS)
    return not named and not os.path.lexists(path)


def _read_url(url: str) -> tuple[ImageTable, list[str]]:
    """Do for a URL what `read_folder` does for a folder."""
    name, extensions = url_name(url), image_extensions()
    try:
        files = list_url(url)
    except FileNotFoundError:
        raise InvalidInputError(f"there is nothing at {name!r}; check the URL") from None
    is_web = name.lower().startswith(("http://", "https://"))
    by_class: dict[str, list[str]] = {}
    for path in sorted(files, key=lambda path: path.split("/")):
        *folders, file = path.split("/")
        if file.lower().endswith(extensions) and not any(
            part.startswith(".") or part.casefold() in TOOL_FOLDERS for part in (*folders, file)
        ):
            label = folders[0] if folders else ""
            by_class.setdefault(composed(unquote(label) if is_web else label), []).append(path)
    beside = by_class.pop("", [])
    if not by_class and not beside:
        raise InvalidInputError(
            f"{name!r} holds no images; looked for files ending in {' '.join(extensions)}. The URL of one "
            "image that has no such ending goes into a list"
        )
    remarks = [f"{len(beside)} image(s) beside the class folders of {name!r} have no class and were left out"]
    labels = [label for label in sorted(by_class) for _ in by_class[label]]
    paths = [path for label in sorted(by_class) for path in by_class[label]] or beside
    return (
        ImageTable(
            tuple(_join(url, path) for path in paths),
            tuple(labels) or None,
            (),
            "" if labels else f"no folder in {name!r} holds images; put each class's into one of its name",
            tuple(files[path] for path in paths),
        ),
        remarks if beside and labels else [],
    )


def _join(url: str, path: str) -> str:
    """Return the URL of a file in a folder, whose path may be followed by the URL that it lies in."""
    parts = url.split("::")
    place = next(place for place, part in enumerate(parts) if "://" in part)
    head = parts[place] if parts[place].endswith("://") else parts[place].rstrip("/") + "/"
    return "::".join([*parts[:place], head + path, *parts[place + 1 :]])
