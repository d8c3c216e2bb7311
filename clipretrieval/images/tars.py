"""Images in tar files of webdataset's form: the members of a sample share their name up to its first dot."""

from __future__ import annotations

import glob
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, TypeAlias

from clipretrieval._util.checks import check_path, shown
from clipretrieval._util.files import open_file, reason, too_many_open
from clipretrieval._util.foreign import is_missing
from clipretrieval._util.labels import composed, label_kind, stored_labels
from clipretrieval._util.repr import short_repr
from clipretrieval._util.warning import warn_caller
from clipretrieval.errors import ClipRetrievalError, InvalidInputError, StoreUnavailableError
from clipretrieval.images.formats import FOREIGN_ENDINGS, image_extensions
from clipretrieval.images.urls import find_urls, is_url, open_url, split_url, url_name

__all__ = ["ImageTars", "is_tars", "read_tars", "without_labels"]

_Sample: TypeAlias = dict[str, tuple[str, bytes | None]]
"""Members by their endings in lower case: as it is spelled, and the content of images and labels."""

_ENDINGS = (".tar", ".tar.gz", ".tgz")
_LABELS = ("cls", "json", "txt")
"""Endings of the members that may hold a label, the first that is there first."""
_MEMBER = re.compile(r"(?:\./)?((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_BRACES = re.compile(r"\{(?:([0-9]{1,18})\.\.([0-9]{1,18})|([^{}]*,[^{}]*))\}")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_LARGEST_IMAGE, _LARGEST_LABEL, _LARGEST_SAMPLE = 2**28, 2**20, 2**30
"""Bytes of a member, and of all that are read of a sample; compressed, a tar could hold anything."""
_MOST_READ = 64
"""Members of a sample that are read."""
_AT_ONCE = 2**18
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
        if found.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a sparse file; pack it without --sparse")
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
    labelled : bool
        Whether labels are wanted.
    member : str
        The ending of the member that has the labels; ``""`` for that of the first image.
    """

    paths: tuple[str, ...]
    label: str | None = None
    kind: str | None = ""
    labelled: bool = True
    member: str = ""

    def __repr__(self) -> str:
        return short_repr(self, paths=[*map(url_name, self.paths)], label=self.label)

    def samples(self) -> Iterator[tuple[bytes, Any, str]]:
        """Yield each image's bytes, its label and its name: the tar's, and the member's in it.

        Raises
        ------
        InvalidInputError
            If a tar cannot be read or is damaged, holds no image, or a sample several or one that came
            before, or a label is missing where others have one, cannot be read or is of another type.
        StoreUnavailableError
            If its URL cannot be reached.
        """
        for content, label, image, _ in self._labelled():
            yield content, label, image

    def as_begun(self) -> ImageTars:
        """Return tars whose labels are of the kind and in the member of the first image's.

        Some of them alone are then read as all of them are one after another.
        """
        _, label, _, member = next(self._labelled())
        return replace(self, kind=None if label is None else label_kind([label]), member=member)

    def _labelled(self) -> Iterator[tuple[bytes, Any, str, str]]:
        """Yield what `samples` does, and the ending of the member that held the label."""
        kind, images = self.kind, _image_endings()
        wanted = self.label and self.label.lower()
        # Labels of one kind of member alone: captions beside classes would make one class each.
        endings = tuple(dict.fromkeys((wanted, "json"))) if wanted else _LABELS
        if self.member:
            endings = (self.member,)
        for path in self.paths:
            bare: list[str] = []
            count = 0
            for key, members in _samples(path, endings if self.labelled else (), images):
                where = f"{url_name(path)}/{key}"
                ending = _image_ending(members, images, where)
                if ending is None:
                    bare.append(where)
                    continue
                count += 1
                spelled, content = members[ending]
                image, label, found = f"{where}.{spelled}", None, ""
                if self.labelled:
                    label, found = _find_label(members, endings, self.label, where)
                    if label is None and (wanted or kind):
                        names = "member " + " or ".join(f".{each}" for each in endings)
                        raise InvalidInputError(
                            f"the label of {image!r}: it has no label in its {names}, where "
                            f"{'label= says' if wanted else 'images before it have theirs'}; pack one with "
                            "each, or pass labels"
                        )
                    kind = _checked_kind(label, kind, image)
                    endings = endings if label is None else (found,)
                yield content or b"", label, image, found
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


def without_labels(images: Any) -> Any:
    """Return tars of which no labels are read, and any other source as it is."""
    return replace(read_tars(images), labelled=False) if is_tars(images) else images


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
    before, path, behind = split_url(text) if is_url(text) else ("", text, "")
    _bound(path)
    for each in _expanded(path):
        path = f"{before}{each}{behind}"
        found = [path]
        if is_url(path):
            found = find_urls(path) if glob.has_magic(url_name(path)) else found
        elif glob.has_magic(path) and not os.path.lexists(path):
            found = sorted(glob.glob(path, recursive=True))  # noqa: PTH207
        if not found or not (is_url(path) or os.path.lexists(found[0])):
            raise InvalidInputError(
                f"there is no tar file {url_name(found[0] if found else path)!r}; check its name and folder"
            )
        yield from found


def _bound(pattern: str) -> None:
    """Refuse braces that do not count up, or stand for too many files together."""
    count = 1
    for braces in _BRACES.finditer(pattern):
        first, last, listed = braces.groups()
        options = int(last) - int(first) + 1 if listed is None else listed.count(",") + 1
        count *= max(options, 0)
        if not 0 < count <= _MOST_TARS:
            raise InvalidInputError(
                f"{braces[0]!r} must count up, and all braces to {_MOST_TARS:,} files at most"
            )


def _expanded(text: str) -> Iterator[str]:
    """Yield what a pattern of braces stands for, as a shell would."""
    braces = _BRACES.search(text)
    if braces is None:
        yield text
        return
    first, last, listed = braces.groups()
    options: Iterable[Any] = listed.split(",") if listed is not None else range(int(first), int(last) + 1)
    width = max(len(first), len(last)) if listed is None and "0" in (first[0], last[0]) else 0
    for option in options:
        for rest in _expanded(text[braces.end() :]):
            yield (
                f"{text[: braces.start()]}{option:0{width}}{rest}"
                if width
                else (f"{text[: braces.start()]}{option}{rest}")
            )


def _samples(path: str, labels: tuple[str, ...], images: tuple[str, ...]) -> Iterator[tuple[str, _Sample]]:
    """Yield the name of each sample, and its members by their endings in lower case."""
    name, seen = url_name(path), set[str]()
    key, members = "", _Sample()
    for member, content in _members(path, name, labels, images):
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
        members[ending] = found[2], content
        if content is not None:
            plain = [each for each in members if "." not in each]
            _image_ending(dict.fromkeys(plain), images, f"{name}/{key}")
            read = [len(each) for _, each in members.values() if each is not None]
            if len(read) > _MOST_READ or sum(read) > _LARGEST_SAMPLE:
                raise _several(list(members), f"{name}/{key}")
    if members:
        yield key, members


def _members(
    path: str, name: str, labels: tuple[str, ...], images: tuple[str, ...]
) -> Iterator[tuple[str, bytes | None]]:
    """Yield the name of each file in a tar, and of images and labels the content."""
    try:
        opened: AbstractContextManager[BinaryIO] = open_url(path) if is_url(path) else open_file(path)
        with opened as file:
            yield from _read(file, name, labels, images)
    except OSError as error:
        kind = StoreUnavailableError if too_many_open(error) else InvalidInputError
        raise kind(f"{name!r} cannot be read: {error.strerror or reason(error)}") from error


def _read(
    file: BinaryIO, name: str, labels: tuple[str, ...], images: tuple[str, ...]
) -> Iterator[tuple[str, bytes | None]]:
    last = "its beginning"
    try:
        with tarfile.open(fileobj=file, mode="r|*", bufsize=_AT_ONCE, tarinfo=_Header) as opened:
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
            while rest := tar.fileobj.read(_AT_ONCE):
                if rest.strip(b"\0"):
                    raise tarfile.ReadError("more follows its end; was it joined with another by cat?")
    except ClipRetrievalError:
        raise
    # What is made to harm makes tarfile raise these.
    except (tarfile.TarError, ValueError, EOFError, LookupError, ArithmeticError, RecursionError) as error:
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
        raise _several(plain, where)
    return plain[0] if plain else None


def _several(endings: list[str], where: str) -> InvalidInputError:
    shown = ", ".join([*endings[:3], *(["…"] if len(endings) > 3 else ())])
    return InvalidInputError(
        f"the sample {where!r} holds several images ({shown}), or more than is read of one: a sample's name "
        "ends at the first dot of the file's; pack each image under a name of its own"
    )


def _find_label(
    members: _Sample, endings: tuple[str, ...], wanted: str | None, where: str
) -> tuple[Any, str]:
    """Return the label that a sample holds, None where there is none, and the member's ending."""
    for ending in endings:
        spelled, content = members.get(ending, ("", None))
        if content is None:
            continue
        try:
            text = content.decode("utf-8-sig").strip()
            if ending == "json":
                whole = json.loads(text)
                key = wanted if wanted and wanted.lower() != "json" else "label"
                label = whole.get(key) if isinstance(whole, dict) else None
                label = composed(label) if isinstance(label, str) else label
            else:
                number = ending != "txt" and _INTEGER.fullmatch(text) is not None
                label = int(text) if number else composed(text) or None
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"the label '{where}.{spelled}' cannot be read: {error}") from error
        if not is_missing(label):
            return label, ending
    return None, ""


def _checked_kind(label: Any, kind: str | None, image: str) -> str | None:
    """Return the type of labels, None for no label; refuse one that is not as those before it."""
    if label is None:
        return None
    try:
        if kind is None:
            raise InvalidInputError(
                "it has a label, and images before it have none: pack one with each, or pass labels"
            )
        found = label_kind([label], kind or None, "those of the images before it")
        stored_labels([label], found)
    except InvalidInputError as error:
        raise InvalidInputError(f"the label of {image!r}: {error}") from error
    return found
