"""Files moved within a folder of images as decided: never deleted, never overwritten.

Nothing is noted down: where a file is, and whether it is the one that was meant, is seen from the files
themselves. So what was cut short is finished by doing it again, and doing it twice changes nothing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from clipretrieval._util.checks import check_path
from clipretrieval._util.files import sync_folder
from clipretrieval._util.labels import composed
from clipretrieval.auditing.image_decision import ImageDecision
from clipretrieval.errors import ImageDecodeError, InvalidInputError
from clipretrieval.images.decoding import RawImage, content_id, decode
from clipretrieval.images.folders import REMOVED, is_class_name, is_folder

__all__ = ["FolderMoves", "Move"]

_NO_LINKS = {
    getattr(errno, name, errno.EPERM)
    for name in ("EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EMLINK", "EINVAL", "EACCES")
}
"""What file systems say that cannot give a file a second name."""


@dataclass(frozen=True)
class Move:
    """Where the file of a decision is, and where it should be.

    Attributes
    ----------
    source : Path or None
        None if it is not there, or was moved before.
    target : Path or None
        Where it should be, or is; None if there is nothing to do.
    reason : str
        Why nothing can be done.
    """

    source: Path | None = None
    target: Path | None = None
    reason: str = ""


class FolderMoves:
    """The class folders from which, and to which, files are moved.

    Parameters
    ----------
    folder : str or Path

    Raises
    ------
    InvalidInputError
        If there is no such folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.root = check_path(folder, "folder")
        if not is_folder(self.root):
            raise InvalidInputError(
                f"there is no folder {str(self.root)!r}; pass the one whose images were audited"
            )
        self._absolute = Path(os.path.abspath(self.root))  # noqa: PTH100  links stay as they are named

    def plan(self, decision: ImageDecision) -> Move:
        """Find the file of a decision, and where it should be.

        Raises
        ------
        StoreUnavailableError
            If too many files are open.
        """
        if decision.source is None:
            return Move(reason="the audit knew of no file")
        places = list(self._places(decision.source))
        if not places:
            return Move(reason=f"its file does not lie in the folder {str(self.root)!r}")
        changed = ""
        for place in places:
            path = self.root / place
            if not os.path.lexists(path):
                continue
            found = _other(path, decision.content)
            if not found:
                return self._wanted(decision, place)
            changed = changed or f"the file {str(path)!r} {found}"
        for place in places:
            wanted = self._wanted(decision, place)
            if wanted.target is not None:
                for name in _names(wanted.target):
                    if not os.path.lexists(name):
                        break
                    if not _other(name, decision.content):
                        return Move(None, name)
        return Move(reason=changed or f"there is no file {str(self.root / places[0])!r} any more")

    def carry_out(self, move: Move) -> Path:
        """Move a file, and return where it is.

        Raises
        ------
        OSError
            If it cannot be moved.
        """
        if move.source is None or move.target is None:
            raise ValueError("there is nothing to move")
        _make_folder(move.target.parent)
        for name in _names(move.target):
            if _give_name(move.source, name):
                break
        sync_folder(name.parent)
        if os.path.lexists(move.source):
            move.source.unlink()
        sync_folder(move.source.parent)
        return name

    def free_name(self, move: Move, taken: set[Path]) -> Path:
        """Return where a file would be put, were those in `taken` there already."""
        if move.target is None:
            raise ValueError("there is nothing to move")
        return next(name for name in _names(move.target) if name not in taken and not os.path.lexists(name))

    def _places(self, source: str) -> Iterator[Path]:
        """Yield where below the folder a file may be: where it was, or that place in a moved folder."""
        given = Path(source)
        path = Path(os.path.abspath(source))  # noqa: PTH100
        if path.is_relative_to(self._absolute) and path != self._absolute:
            yield path.relative_to(self._absolute)
            return
        parts = [part for part in given.parts if part != given.anchor]
        if os.pardir not in parts:
            # At least a class folder and a name: of names alone, a folder may have many.
            yield from (Path(*parts[start:]) for start in range(max(0, len(parts) - 1)))

    def _wanted(self, decision: ImageDecision, place: Path) -> Move:
        """Return where a file should be that is, or was, at a place below the folder."""
        source, parts = self.root / place, place.parts
        if parts[0].casefold() == REMOVED:
            return Move(reason="it lies among the removed ones")
        if decision.action == "forget":
            return _unless_there(source, self.root / REMOVED / place)
        folder = self._class_folder(decision.label)
        if folder is None:
            return Move(reason=f"the class {str(decision.label)!r} cannot be the name of a folder")
        if len(parts) > 1 and composed(parts[0]) == composed(folder):
            return Move()  # somebody has moved it
        if len(parts) == 1 or composed(parts[0]) != composed(str(decision.before)):
            return Move(
                reason=f"its file {str(source)!r} does not lie in a folder of its class {decision.before!r}"
            )
        return _unless_there(source, self.root.joinpath(folder, *parts[1:]))

    def _class_folder(self, label: Any) -> str | None:
        """Return the name of a class's folder as it is spelled there; None where it can have none."""
        name = str(label)
        if not is_class_name(name) or len(os.fsencode(name)) > 255:
            return None
        return self._spelled.get(composed(name), name)

    @cached_property
    def _spelled(self) -> dict[str, str]:
        return {composed(each.name): each.name for each in self.root.iterdir() if each.is_dir()}


def _unless_there(source: Path, target: Path) -> Move:
    """Move a file, unless both folders are one, by a link or as case is ignored: no name would be left."""
    try:
        same = source.parent.samefile(target.parent)
    except OSError:
        same = False
    return Move() if same else Move(source, target)


def _other(path: Path, image_id: str | None) -> str:
    """Say why a file is not the one that is meant; nothing where it is."""
    if path.is_dir():
        return "is a folder now"
    try:
        if image_id is None:
            decode(RawImage(0, str(path)))
            return "can be read now"
        return "" if content_id(RawImage(0, str(path))) == image_id else "holds another image now"
    except ImageDecodeError:
        return "" if image_id is None else "cannot be read any more"


def _names(target: Path) -> Iterator[Path]:
    """Yield a path, and others like it for the case that it is taken."""
    yield target
    number = 2
    while True:
        yield target.with_name(f"{target.stem}-{number}{target.suffix}")
        number += 1


def _make_folder(folder: Path) -> None:
    """Make a folder, and those above it, durably."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def _give_name(source: Path, name: Path) -> bool:
    """Give a file a second name, and tell whether it has it; False where something else has that name.

    A file with both names is one that somebody was about to move when the process was killed.
    """
    is_link = source.is_symlink()
    if os.path.lexists(name):
        if is_link:
            return name.is_symlink() and os.path.realpath(name) == os.path.realpath(source)
        return os.path.samestat(source.lstat(), name.lstat())
    try:
        if is_link:  # where it leads to is told from where it lies
            leads = source.parent.resolve() / source.readlink()
            absolute = source.readlink().is_absolute()
            name.symlink_to(leads if absolute else os.path.relpath(leads, name.parent.resolve()))
        else:
            os.link(source, name)
    except FileExistsError:
        return False
    except OSError as error:
        if is_link or error.errno not in _NO_LINKS:
            raise
        # Another process would have to make a file of this name at this very moment to lose it.
        source.rename(name)
    return True
