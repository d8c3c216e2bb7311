"""Folders of images, whose sub-folders name the classes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clipretrieval._util.checks import check_path
from clipretrieval._util.labels import composed
from clipretrieval._util.repr import short_repr
from clipretrieval._util.warning import warn_caller
from clipretrieval.errors import InvalidInputError
from clipretrieval.images.formats import FOREIGN_ENDINGS, image_extensions
from clipretrieval.images.urls import is_link, url_name

REMOVED = "_removed"
"""The folder, beside the class folders, of files that decisions on an audit have taken out of them."""
TOOL_FOLDERS = frozenset(
    {
        REMOVED,
        *("@eadir", "@recycle", "#recycle", "#snapshot"),  # network disks: thumbnails, waste, backups
        *("$recycle.bin", "system volume information", "__macosx", "lost+found"),  # operating systems
    }
)
"""Folders that are put beside a user's own, in lower case; hidden ones have names with a dot in front."""

__all__ = [
    *("REMOVED", "ImageFolder", "is_class_name", "is_folder", "list_images", "read_folder", "scan_folder"),
]


@dataclass(frozen=True)
class ImageFolder:
    """The images that a folder held when it was scanned.

    Attributes
    ----------
    root : pathlib.Path
    paths : tuple of pathlib.Path, length n
        Ordered by class, then by the path below the class folder.
    labels : tuple of str, length n, or None
        Each image's class; None if the folder has no class folders.
    classes : tuple of str
        The names of the class folders that hold images, with composed letters (NFC), sorted; empty if
        there are none.
    """

    root: Path
    paths: tuple[Path, ...]
    labels: tuple[str, ...] | None
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return short_repr(self, root=str(self.root), images=len(self.paths), classes=len(self.classes))


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a path leads to a folder; False for whatever cannot be a path."""
    return os.path.isdir(path)  # noqa: PTH112 (Path.is_dir raises on names that are too long)


def is_class_name(name: str) -> bool:
    """Tell whether a folder of this name, beside others, is a class to `scan_folder`."""
    return (
        Path(name).name == name != ""
        and "\0" not in name
        and not name.startswith(".")
        and name.casefold() not in TOOL_FOLDERS
    )


def scan_folder(path: str | os.PathLike[str]) -> ImageFolder:
    """List the images of a folder; each sub-folder that holds some is a class.

    Images are told by their extensions, in any case, and looked for at any depth below a class
    folder. Hidden files and folders are skipped, and so are those that systems put there (``@eaDir``,
    ``@Recycle``, ``#recycle``, ``#snapshot``, ``$RECYCLE.BIN``, ``System Volume Information``,
    ``__MACOSX``, ``lost+found``), and ``_removed``, into which `apply_decisions` moves files; links
    are followed, and no folder is entered twice for one class. Names of folders that differ in their
    Unicode form alone are one class. A folder whose sub-folders hold no images gives its own, without
    labels.

    Returns
    -------
    ImageFolder

    Warns
    -----
    ClipRetrievalWarning
        If a class folder holds no image, if images lie beside the class folders, or if some are of a
        kind that Pillow cannot read here, such as HEIC: those are left out.

    Raises
    ------
    InvalidInputError
        If the folder, or one below it, cannot be listed, or if there is no image at all.
    """
    folder, remarks = read_folder(path)
    for remark in remarks:
        warn_caller(remark)
    return folder


def read_folder(path: str | os.PathLike[str]) -> tuple[ImageFolder, list[str]]:
    """Do what `scan_folder` does, and return its warnings instead of giving them."""
    root = check_path(path, "path")
    extensions = image_extensions()
    if not is_folder(root):
        raise InvalidInputError(
            f"there is no folder {url_name(root)!r}; pass one that holds images, or sub-folders of "
            "them for each class"
            + ("; a URL must be a str, and is read by what takes images" if is_link(root) else "")
        )
    unreadable = tuple(ending for ending in FOREIGN_ENDINGS if ending not in extensions)
    listed = (*extensions, *unreadable)
    folders, files = _list(root, listed)
    by_folder = {folder: sorted(_below(folder, root, listed), key=_parts) for folder in folders}
    left_out = sum(_drop(found, unreadable) for found in (files, *by_folder.values()))
    # Two folders whose names differ in their Unicode form alone are one class.
    named = sorted((composed(folder.name), folder) for folder, found in by_folder.items() if found)
    if named:
        paths = tuple(image for _, folder in named for image in by_folder[folder])
        labels = tuple(name for name, folder in named for _ in by_folder[folder])
        remarks = _remarks(root, by_folder, files) + _unread(root, left_out)
        return ImageFolder(root, paths, labels, tuple(dict.fromkeys(labels))), remarks
    if not files:
        raise InvalidInputError(
            f"the folder {str(root)!r} holds no images; looked for files ending in {' '.join(extensions)}"
            + "".join(f". {remark}" for remark in _unread(root, left_out))
            + (f". Of its tar files, pass {str(root / '*.tar')!r}" if any(root.glob("*.tar")) else "")
        )
    return ImageFolder(root, tuple(sorted(files, key=_parts)), None, ()), _unread(root, left_out)


def list_images(path: str | os.PathLike[str]) -> list[Path]:
    """Return the images of a folder, at any depth, in the order of their paths."""
    root = Path(os.fsdecode(path))
    return sorted(_below(root, None, image_extensions()), key=_parts)


def _remarks(root: Path, by_folder: dict[Path, list[Path]], beside: list[Path]) -> list[str]:
    remarks = []
    empty = sorted(folder.name for folder, found in by_folder.items() if not found)
    if empty:
        named = ", ".join(map(repr, empty))
        remarks.append(f"no image was found in these class folders of {str(root)!r}: {named}")
    if beside:
        remarks.append(
            f"{len(beside)} image(s) beside the class folders of {str(root)!r} have no class and were "
            "left out: move them into a class folder"
        )
    nested = {
        folder.name
        for folder, found in by_folder.items()
        if found and all(file.parent != folder for file in found)
    }
    if {"train", "test"} <= nested:
        remarks.append(
            f"{str(root)!r} holds 'train' and 'test', which were taken for classes; if they hold the "
            "classes, pass one of them"
        )
    return remarks


def _drop(files: list[Path], endings: tuple[str, ...]) -> int:
    """Remove the files with these endings from a list, and return how many there were."""
    kept = [file for file in files if not file.name.lower().endswith(endings)] if endings else files
    dropped = len(files) - len(kept)
    files[:] = kept
    return dropped


def _unread(root: Path, left_out: int) -> list[str]:
    if not left_out:
        return []
    return [
        f"{left_out} image(s) in {str(root)!r} are of a kind that cannot be read here, such as HEIC, and "
        "were left out: convert them to JPEG or PNG, or register a plugin of Pillow's, say pillow-heif"
    ]


def _below(folder: Path, root: Path | None, extensions: tuple[str, ...]) -> Iterator[Path]:
    """Yield the images at any depth, entering no folder twice, nor `root`: links may run in circles."""
    seen = set() if root is None else {_inode(root)}
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        identity = _inode(current)
        if identity not in seen:
            seen.add(identity)
            folders, files = _list(current, extensions)
            yield from files
            waiting.extend(sorted(folders, reverse=True))


def _list(folder: Path, extensions: tuple[str, ...]) -> tuple[list[Path], list[Path]]:
    """Return the folders and the images directly in a folder, without hidden ones and `TOOL_FOLDERS`.

    Broken links count as images if they are named so: decoding them says what is wrong.
    """
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    if entry.name.casefold() not in TOOL_FOLDERS:
                        folders.append(folder / entry.name)
                elif entry.name.lower().endswith(extensions):
                    files.append(folder / entry.name)
    except OSError as error:
        raise InvalidInputError(f"cannot list the folder {str(folder)!r}: {error.strerror}") from error
    return folders, files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _inode(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as error:
        raise InvalidInputError(f"cannot read the folder {str(folder)!r}: {error.strerror}") from error
    return status.st_dev, status.st_ino


def _parts(path: Path) -> tuple[str, ...]:
    return path.parts
