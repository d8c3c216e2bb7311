"""What ``clipretrieval index`` was asked for, kept in the classifier's folder until it is done."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from clipretrieval._util.files import IrregularFileError, read_file
from clipretrieval._util.progress import Progress
from clipretrieval._util.secrets import masked_text
from clipretrieval.cli.arguments import (
    MACHINE,
    CascadeOptions,
    EncoderOptions,
    HeadOptions,
    SpaceOptions,
    StoreOptions,
    TextOptions,
    as_option,
    comma_separated,
)
from clipretrieval.errors import ClipRetrievalError, InvalidInputError, StoreCorruptedError
from clipretrieval.stores.registry import options_within, store_class

__all__ = ["VECTORS", "Settings", "indexing", "keeps"]

VECTORS = "vectors"
"""Where the vectors lie inside the classifier's folder, if no other place is given."""
_FORMAT, _FORMAT_VERSION = "clipretrieval.indexing", 1
_LARGEST = 2**20
_LISTS = ("store_option", "template")
_PATHS = ("class_names", "onnx")


@dataclass(frozen=True)
class Settings:
    """What decides the classifier that comes out, and how it is computed."""

    encoder: EncoderOptions
    space: SpaceOptions
    head: HeadOptions
    texts: TextOptions
    store: StoreOptions
    cascade: CascadeOptions

    @property
    def lasting(self) -> dict[str, Any]:
        """What decides the classifier, as JSON values."""
        found = {name: value for group in self._groups.values() for name, value in asdict(group).items()}
        for name in _LISTS:
            found[name] = list(found[name] or [])
        for name in _PATHS:
            found[name] = None if found[name] is None else str(found[name].absolute())
        if self.cascade.cascade is not None:
            found["cascade"] = ",".join(comma_separated(self.cascade.cascade))
        return {name: value for name, value in found.items() if name not in MACHINE}

    def with_lasting(self, values: dict[str, Any]) -> Settings:
        """Return these settings with other values for what decides the classifier."""
        values = {**values, **{name: values[name] and Path(values[name]) for name in _PATHS}}
        return Settings(
            **{
                name: replace(
                    group,
                    **{each.name: values[each.name] for each in fields(group) if each.name in values},
                )
                for name, group in self._groups.items()
            }
        )

    @property
    def _groups(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}


_DEFAULT = Settings(
    EncoderOptions(), SpaceOptions(), HeadOptions(), TextOptions(), StoreOptions(), CascadeOptions()
)


@contextmanager
def indexing(
    folder: Path,
    asked: Settings,
    images: str,
    root: Path | None,
    *,
    resume: bool,
    is_given: Callable[[str], bool],
    progress: Progress,
) -> Iterator[tuple[Settings, Progress]]:
    """Keep in the folder what is being indexed, until the block has done it.

    A block that fails or is interrupted leaves the note, unless nothing is there to go on with: no image is
    done, or the store keeps nothing.

    Parameters
    ----------
    folder : Path
        The classifier's.
    asked : Settings
    images : str
    root : Path, optional
        What is indexed, by path or URL, and where the relative paths of a table start.
    resume : bool
    is_given : callable
        Tells whether a setting was on the command line.
    progress : callable

    Yields
    ------
    settings : Settings
        What was asked for, or what the command that was interrupted was asked for.
    progress : callable
        To be told of what is done.

    Raises
    ------
    InvalidInputError
        If the folder holds anything that indexing would replace or go beside, or settings or images are given
        that are not those of the interrupted command.
    """
    from clipretrieval.persistence.saving import INDEXING

    note = folder / INDEXING
    was_noted, was_there, lasting, most = note.exists(), folder.exists(), keeps(asked.store.store), 0

    def watched(done: int, total: int | None) -> None:
        nonlocal most
        most = max(most, done)
        progress(done, total)

    try:
        noted = _read_note(note)
        if noted is None:
            _check_new(folder, resume and not _is_elsewhere(asked.store, folder))
            _write_note(note, asked, images, root)
            settings = asked
        elif resume:
            _check_same_images(noted, images, root)
            settings = asked.with_lasting(_same(asked.lasting, noted["settings"], is_given))
        else:
            raise InvalidInputError(
                f"{str(folder)!r} holds what an interrupted index has left; pass --resume to go on with it, "
                "or another folder"
            )
        yield settings, watched
    except (ClipRetrievalError, KeyboardInterrupt):
        if not was_noted and (most == 0 or not lasting):
            with suppress(OSError):  # there is none
                note.unlink()
            if not was_there:
                with suppress(OSError):  # there is none, or it is not empty
                    folder.rmdir()
        raise
    note.unlink(missing_ok=True)


def keeps(store: str) -> bool:
    """Tell whether a store is filled at a place that outlasts the process: one that can say where it lies."""
    return hasattr(store_class(store), "location")


def _is_elsewhere(store: StoreOptions, folder: Path) -> bool:
    """Tell whether a store outlasts the process, and lies at a place of its own rather than in the folder."""
    options = store.options()
    return keeps(store.store) and options_within(folder, store.store, options) == options


def _check_new(folder: Path, resume: bool) -> None:
    """Refuse a folder that holds a classifier or other things, and one to go on with where nothing is."""
    from clipretrieval.persistence.saving import FILE, check_folder

    if (folder / FILE).exists():
        raise InvalidInputError(
            f"{str(folder)!r} holds a classifier already; pass --add to add images to it, or another folder"
        )
    if resume:
        raise InvalidInputError(
            f"{str(folder)!r} holds nothing to go on with; leave --resume out to begin there"
        )
    check_folder(folder, Path(VECTORS))


def _write_note(note: Path, asked: Settings, images: str, root: Path | None) -> None:
    """Write down what the command was asked for, but for secrets."""
    from clipretrieval._util.files import write_text

    note.parent.mkdir(parents=True, exist_ok=True)
    public = asked.lasting
    public["store_option"] = [pair for pair in public["store_option"] if not _is_secret(pair)]
    content = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "settings": public,
        "images": _place(images),
        "images_root": None if root is None else _place(str(root)),
    }
    write_text(note, json.dumps(content, indent=2) + "\n")


def _is_secret(pair: str) -> bool:
    return masked_text(pair) != pair


def _check_same_images(noted: dict[str, Any], images: str, root: Path | None) -> None:
    """Refuse to go on with other images; a note of an earlier version does not say which they were."""
    from clipretrieval.images.urls import url_name

    for what, before, now in (
        ("images", noted.get("images"), images),
        ("--images-root", noted.get("images_root"), None if root is None else str(root)),
    ):
        if "images" in noted and not _is_same_place(before, now):
            raise InvalidInputError(
                f"the interrupted index had the {what} {before!r} and now it is {now and url_name(now)!r}; "
                "pass the same again to go on, or another folder to keep the classifier in"
            )


def _place(given: str) -> str:
    """Return where images lie, without what is secret of a URL."""
    from clipretrieval.images.urls import is_url, url_name

    return url_name(given) if is_url(given) else str(Path(given).absolute())


def _is_same_place(before: str | None, now: str | None) -> bool:
    if before is None or now is None:
        return before is None and now is None
    if before == _place(now):
        return True
    try:
        return Path(now).samefile(before)  # by way of a link
    except OSError:
        return False


def _same(asked: dict[str, Any], noted: dict[str, Any], is_given: Callable[[str], bool]) -> dict[str, Any]:
    """Return the settings noted, with secrets as asked for now; refuse others than those."""
    secrets = [pair for pair in asked["store_option"] if _is_secret(pair)]
    public = {**asked, "store_option": [pair for pair in asked["store_option"] if pair not in secrets]}
    for name, value in public.items():
        if is_given(name) and value != noted[name]:
            if name == "store_option" and not value:
                continue  # nothing but secrets, which are not noted
            before, now = as_option(name, noted[name]), as_option(name, value)
            raise InvalidInputError(
                f"the interrupted index had {before} and now it is {now}; leave the option out to go on with "
                "what was asked for, or pass another folder"
            )
    return {**noted, "store_option": [*noted["store_option"], *secrets]}


def _read_note(file: Path) -> dict[str, Any] | None:
    """Return what is noted, with this version's default for what an earlier one had no option for."""
    default = _DEFAULT.lasting
    try:
        content = json.loads(read_file(file, _LARGEST))
        if (content["format"], content["format_version"]) == (_FORMAT, _FORMAT_VERSION):
            settings = {name: content["settings"].get(name, value) for name, value in default.items()}
            _check_types(settings)
            return {**content, "settings": settings}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, IrregularFileError) as error:
        raise StoreCorruptedError(f"{file} is damaged ({error!r}); index into another folder") from error
    raise StoreCorruptedError(f"{file} was not written by this version of clipretrieval; index anew")


def _check_types(settings: dict[str, Any]) -> None:
    """Refuse values that no option can have."""
    for group in map(type, _DEFAULT._groups.values()):
        for name, kind in get_type_hints(group).items():
            if name not in settings:
                continue
            value = settings[name]
            if name in _LISTS:
                right = isinstance(value, list) and all(isinstance(item, str) for item in value)
            elif name in _PATHS:
                right = value is None or isinstance(value, str)
            else:
                right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
            if not right:
                raise TypeError(f"{name} is {value!r}")
