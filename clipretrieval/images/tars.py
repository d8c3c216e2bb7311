"""Images in tar files of webdataset's form: the members of a sample share their name up to its first dot."""

from __future__ import annotations

import glob
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from clipretrieval._util.checks import check_path, shown
from clipretrieval._util.files import open_file, reason, too_many_open
from clipretrieval._util.foreign import is_missing
from clipretrieval._util.labels import composed, label_kind, stored_labels
from clipretrieval._util.repr import short_repr
from clipretrieval._util.warning import warn_caller
from clipretrieval.errors import InvalidInputError, StoreUnavailableError
from clipretrieval.images.formats import FOREIGN_ENDINGS, image_extensions
from clipretrieval.images.urls import find_urls, is_url, open_url, url_name

__all__ = ["ImageTars", "is_tars", "read_tars"]

_ENDINGS = (".tar", ".tar.gz", ".tgz")
_LABELS = ("cls", "json", "txt")
"""Endings of the members that may hold a label, the first that is there first."""
_MEMBER = re.compile(r"(?:\./)?((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_BRACES = re.compile(r"\{(?:([0-9]+)\.\.([0-9]+)|([^{}]*,[^{}]*))\}")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_LARGEST_IMAGE, _LARGEST_LABEL = 2**30, 2**20
"""Bytes of a member; compressed, a tar could hold anything."""
_LONG = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
"""Types of headers that continue in what lies behind them."""
_MOST_TARS = 10**6


class _Header(tarfile.TarInfo):
    """A member's header; one that is damaged is an error, and not the archive's end."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
        found = super().frombuf(buf, encoding, errors)
        if found.size > _LARGEST_LABEL and found.type in _LONG:  # which would be read whole
            raise tarfile.ReadError(f"a header of {found.size} bytes")
        return found

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Any:
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":
                raise
            raise tarfile.ReadError(str(error)) from error


@dataclass(frozen=True, eq=False, repr=False)
class ImageTars:
    """Tar files of images, which are read from their beginning to their end.

    Attributes
    ----------
    paths : tuple of str
        Of the tars, or URLs.
    label : str or None
        Which member, or which key of the JSON, holds the labels; None for the usual ones.
    kind : {"bool", "int", "float", "str"} or None
        What type the labels must be of, None for no labels; ``""`` for that of the first.
    """

    paths: tuple[str, ...]
    label: str | None = None
    kind: str | None = ""

    def __repr__(self) -> str:
        return short_repr(self, paths=[*map(url_name, self.paths)], label=self.label)

    def samples(self, *, labelled: bool = True) -> Iterator[tuple[bytes, Any, str]]:
        """Yield each image's bytes, its label and its name: the tar's, and the member's in it.

        Raises
        ------
        InvalidInputError
            If a tar cannot be read or is damaged, holds no image, or a sample several or one that came
            before, or a label is missing where others have one, cannot be read or is of another type.
        StoreUnavailableError
            If its URL cannot be reached.
        """
        kind = self.kind
        for path in self.paths:
            bare: list[str] = []
            count, endings = 0, _image_endings()
            for key, members in _samples(path, (*_LABELS, *([self.label] if self.label else []))):
                where = f"{url_name(path)}/{key}"
                ending = _image_ending(members, endings, where)
                if ending is None:
                    bare.append(where)
                    continue
                count += 1
                label = _find_label(members, self.label, where) if labelled else None
                if labelled:
                    kind = _checked_kind(label, kind, f"{where}.{ending}")
                yield members[ending], label, f"{where}.{ending}"
            if bare and count:
                warn_caller(
                    f"{len(bare)} sample(s) of {url_name(path)!r} hold no image and were left out; the first "
                    f"is {bare[0]!r}"
                )
            if not count:
                raise InvalidInputError(
                    f"{url_name(path)!r} holds no images; looked for members that end in .jpg, .png or "
                    "another of the formats that Pillow reads"
                )


def is_tars(value: object) -> bool:
    """Whether a value is a tar's path, URL or pattern by its ending, a list of such, or was read already."""
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_is_tar, value))
    return isinstance(value, ImageTars) or _is_tar(value)


def read_tars(tars: Any, *, label: str | None = None) -> ImageTars:
    """List tar files of images and labels, in the form that webdataset writes.

    Members belong to one sample if they lie behind each other and have the same name, folders included, up
    to the first dot of the file's name. A sample holds one image and perhaps a label: a ``.cls`` with the
    class's number or name, else a ``.json`` with the key ``"label"``, else a ``.txt``. Other members are
    passed over. A tar is read as a stream, one sample at a time.

    Parameters
    ----------
    tars : path, URL or pattern, or list of these
        Patterns are ``{0000..0012}``, ``{train,val}``, ``*``, ``?`` and ``[…]``.
    label : str, optional
        Which member holds the labels, by its ending, such as ``"txt"``; or which key of the JSON.

    Returns
    -------
    ImageTars
        For whatever takes images.

    Raises
    ------
    InvalidInputError
        If there is no such file.
    """
    if not is_tars(tars):
        raise InvalidInputError(
            f"tars must be the path, URL or pattern of files that end in {', '.join(_ENDINGS)}, or a list of "
            f"these; got {shown(tars)}"
        )
    if label is not None and (not isinstance(label, str) or not label):
        raise InvalidInputError(f"label must be a member's ending or a key; got {shown(label)}")
    wanted = None if label is None else label.removeprefix(".")
    if isinstance(tars, ImageTars):
        return tars if wanted is None else replace(tars, label=wanted)
    given = tars if isinstance(tars, list | tuple) else [tars]
    return ImageTars(tuple(path for each in given for path in _found(each)), wanted)


def _is_tar(value: object) -> bool:
    if not isinstance(value, str | os.PathLike):
        return False
    return url_name(value).lower().endswith(_ENDINGS) and not os.path.isdir(value)  # noqa: PTH112 (never raises)


def _found(given: str | os.PathLike[str]) -> Iterator[str]:
    """Yield the tars that a path or pattern stands for."""
    text = given if is_url(given) else str(check_path(given, "tars"))
    if os.path.lexists(text):
        yield text
        return
    for path in _expanded(text):
        found = [path]
        if glob.has_magic(url_name(path)):
            found = find_urls(path) if is_url(path) else sorted(glob.glob(path, recursive=True))  # noqa: PTH207
        if not found or not (is_url(path) or os.path.lexists(found[0])):
            raise InvalidInputError(
                f"there is no tar file {url_name(found[0] if found else path)!r}; check its name and folder"
            )
        yield from found


def _expanded(text: str) -> list[str]:
    """Return what a pattern of braces stands for, as a shell would."""
    braces = _BRACES.search(text)
    if braces is None:
        return [text]
    first, last, listed = braces.groups()
    if listed is not None:
        options = listed.split(",")
    else:
        if not 0 <= int(last) - int(first) < _MOST_TARS:
            raise InvalidInputError(f"{braces[0]!r} must count up, and to {_MOST_TARS:,} files at most")
        width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
        options = [f"{number:0{width}}" for number in range(int(first), int(last) + 1)]
    behind = _expanded(text[braces.end() :])
    return [f"{text[: braces.start()]}{option}{rest}" for option in options for rest in behind]


def _samples(path: str, labels: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each sample, and its members by their endings: images and labels with their bytes."""
    name, seen = url_name(path), set[str]()
    key, members = "", dict[str, Any]()
    for member, content in _members(path, name, labels):
        found = _MEMBER.fullmatch(member)
        if found is None:  # hidden, or without an ending
            continue
        if found[1] != key:
            if members:
                yield key, members
            key, members = found[1], {}
            if key in seen:
                raise InvalidInputError(
                    f"{name!r} holds the sample {key!r} twice, of which {member!r} belongs to the second; a "
                    "sample's name ends at the first dot, and its members lie behind each other: pack it anew"
                )
            seen.add(key)
        ending = found[2].lower()
        if ending in members:
            raise InvalidInputError(f"{name!r} holds the member {member!r} twice; pack it anew")
        members[ending] = content
    if members:
        yield key, members


def _members(path: str, name: str, labels: tuple[str, ...]) -> Iterator[tuple[str, bytes | None]]:
    """Yield the name of each file in a tar, and of images and labels the content."""
    try:
        opened: AbstractContextManager[BinaryIO] = open_url(path) if is_url(path) else open_file(path)
        with opened as file:
            yield from _read(file, name, labels)
    except OSError as error:
        kind = StoreUnavailableError if too_many_open(error) else InvalidInputError
        raise kind(f"{name!r} cannot be read: {error.strerror or reason(error)}") from error


def _read(file: BinaryIO, name: str, labels: tuple[str, ...]) -> Iterator[tuple[str, bytes | None]]:
    images, last = _image_endings(), "its beginning"
    try:
        with tarfile.open(fileobj=file, mode="r|*", tarinfo=_Header) as opened:
            tar: Any = opened
            while (found := tar.next()) is not None:
                tar.members.clear()  # or it would keep all headers
                last = repr(found.name)
                is_label = found.name.lower().rpartition("/")[2].partition(".")[2] in labels
                if found.isdir() or not (is_label or found.name.lower().endswith(images)):
                    yield found.name, None
                    continue
                if not found.isreg() or found.issparse():
                    raise InvalidInputError(
                        f"{last} in {name!r} is a link or no plain file; pack it with the files themselves, "
                        "as tar --dereference --hard-dereference does"
                    )
                most = _LARGEST_LABEL if is_label else _LARGEST_IMAGE
                if found.size > most:
                    raise InvalidInputError(f"{last} in {name!r} has {found.size} bytes, more than {most}")
                content = tar.extractfile(found)
                yield found.name, b"" if content is None else content.read()
    except InvalidInputError:
        raise
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise InvalidInputError(
            f"{name!r} is no tar file, or damaged behind {last} ({error}); get a whole copy of it"
        ) from error


def _image_endings() -> tuple[str, ...]:
    return (*image_extensions(), *FOREIGN_ENDINGS)


def _image_ending(members: Mapping[str, Any], endings: tuple[str, ...], where: str) -> str | None:
    """Return which member of a sample is its image; ``jpg`` goes before ``mask.png``."""
    found = [each for each in members if f".{each}".endswith(endings)]
    plain = [each for each in found if "." not in each] or found
    if len(plain) > 1:
        raise InvalidInputError(
            f"the sample {where!r} holds several images ({', '.join(plain)}): a sample's name ends at the "
            "first dot of the file's; pack each image under a name of its own"
        )
    return plain[0] if plain else None


def _find_label(members: Mapping[str, Any], wanted: str | None, where: str) -> Any:
    """Return the label that a sample holds; None where there is none."""
    for ending in _LABELS if wanted is None else (wanted, "json"):
        if members.get(ending) is None:
            continue
        try:
            text = members[ending].decode("utf-8-sig").strip()
            if ending == "json":
                content = json.loads(text)
                label = content.get(wanted or "label") if isinstance(content, dict) else None
            else:
                whole = ending != "txt" and _INTEGER.fullmatch(text) is not None
                label = int(text) if whole else composed(text) or None
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"the label '{where}.{ending}' cannot be read: {error}") from error
        if not is_missing(label):
            return label
    return None


def _checked_kind(label: Any, kind: str | None, image: str) -> str | None:
    """Return the type of labels, None for no label; refuse one that is not as those before it."""
    if label is None and not kind:
        return None
    try:
        if label is None or kind is None:
            raise InvalidInputError(
                f"it has {'no' if label is None else 'a'} label, and images before it have "
                f"{'some' if kind else 'none'}: pack one with each, or pass labels"
            )
        found = label_kind([label], kind or None, "those of the images before it")
        stored_labels([label], found)
    except InvalidInputError as error:
        raise InvalidInputError(f"the label of {image!r}: {error}") from error
    return found
