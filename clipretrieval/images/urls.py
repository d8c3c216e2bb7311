"""Files behind URLs, listed and read by fsspec; nothing that a URL keeps secret is told of."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, BinaryIO, TypeGuard, cast

from clipretrieval._util.dependencies import require
from clipretrieval._util.secrets import masked_text
from clipretrieval.errors import ClipRetrievalError, MissingDependencyError, StoreUnavailableError

__all__ = [
    "find_urls",
    "is_link",
    "is_url",
    "list_url",
    "open_url",
    "read_url",
    "split_url",
    "url_name",
    "url_state",
]

_URL = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*::)*[A-Za-z][A-Za-z0-9+.-]+://")
_QUERY = re.compile(r"(https?://[^?#\s'\"]*)[?#][^\s'\"]*", re.IGNORECASE)
_WEB = ("http://", "https://")
_LINKS = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.-]+:)")
_LINK = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+://?)(.*)", re.DOTALL)
"""Scheme and rest."""
_HOST = re.compile(r"(?:\[[^]]*\]|[^:?#]*)(?::[0-9]*)?(?:[?#].*)?", re.DOTALL)
_LOCAL = re.compile(r"(?:file|local|memory|zip|tar|libarchive):", re.IGNORECASE)
_CONTAINER = re.compile(r"(?:abfs|wasb)s?://[^:/?#@]*@", re.IGNORECASE)
"""Of Azure's, where others have the user."""
_STATE = frozenset(
    {
        *("size", "mtime", "created", "modified", "lastmodified", "updated", "modify", "modificationtime"),
        *("etag", "crc", "crc32c", "datetime", "md5hash", "contentmd5", "digest", "sha", "oid", "blobid"),
    }
)
"""What file systems call that by which a change is seen, in lower case and without what joins words."""
_SECONDS: dict[str, Any] = {"total": None, "sock_connect": 30.0, "sock_read": 60.0}
"""Of waiting for a server: in all (a tar is read while its images are encoded), to connect, for data."""
_OF_THE_FILE = {403: PermissionError, 404: FileNotFoundError, 410: FileNotFoundError}
_REASONS: dict[type[OSError], tuple[int, str]] = {
    FileNotFoundError: (errno.ENOENT, "there is nothing at this URL"),
    IsADirectoryError: (errno.EISDIR, "it is a folder"),
    PermissionError: (errno.EACCES, "it may not be read; check the credentials"),
}


def is_url(value: object) -> TypeGuard[str]:
    """Whether a value is a text that begins as a URL of fsspec's does, such as ``zip://a.png::s3://…``."""
    return isinstance(value, str) and _URL.match(value) is not None


def is_link(path: str | os.PathLike[str]) -> bool:
    """Whether a path would be a URL as a str; `pathlib` leaves it one slash."""
    text = os.fsdecode(path)
    return _LINK.match(text) is not None and not os.path.lexists(text)


def url_name(url: str | os.PathLike[str]) -> str:
    """Return how a URL is called, without user, password and query, which may be secret; a path as it is.

    A question mark in the name of an object, as in ``s3://``, begins a query if a ``=`` or ``&`` follows.
    """
    text = os.fsdecode(url)
    if not is_url(text) and not is_link(text):
        return text
    return "::".join(map(_link_name, _LINKS.split(text)))


def split_url(url: str) -> tuple[str, str, str]:
    """Cut a URL before its path, and behind it."""
    links = _LINKS.split(url)
    place = next(place for place, link in enumerate(links) if "://" in link)
    before, path, behind = _cut(links[place])
    return "::".join([*links[:place], before]), path, "::".join([behind, *links[place + 1 :]])


def _link_name(link: str) -> str:
    before, path, _ = _cut(link)
    scheme = _LINK.match(before)
    return before + path if scheme is None or _CONTAINER.match(link) else scheme[1] + path


def _cut(link: str) -> tuple[str, str, str]:
    """Return scheme and user, host and path, and the query of a link of a URL."""
    parts = _LINK.match(link)
    if parts is None:
        return "", link, ""
    scheme, rest = parts.groups()
    if _LOCAL.match(scheme):
        return scheme, rest, ""
    host = rest.partition("/")[0]
    # A password may hold anything, a slash as well; a port holds digits alone.
    place = host.rfind("@") if "@" in host or _HOST.fullmatch(host) else rest.rfind("@")
    user, rest = rest[: place + 1], rest[place + 1 :]
    query = re.search(r"[?#]" if "http" in scheme.lower() else r"\?[^/?=&]*[=&]", rest)
    end = len(rest) if query is None else query.start()
    return scheme + user, rest[:end], rest[end:]


def read_url(url: str) -> bytes:
    """Return the content of a file; the errors are those of `open_url`."""
    with _reached(url, file=True) as (system, path):
        content: bytes = system.cat_file(path)
        return content


@contextmanager
def open_url(url: str) -> Iterator[BinaryIO]:
    """Open a file for reading from its beginning to its end; of `BinaryIO`, it has ``read`` alone.

    Raises
    ------
    FileNotFoundError, PermissionError, IsADirectoryError
        If there is none, or none that may be read.
    StoreUnavailableError
        If it cannot be reached, or not be read further.
    MissingDependencyError
        If fsspec, or the package that it needs for the protocol, is not installed.
    """
    with _reached(url, file=True) as (system, path):
        # One request: a server may not know ranges, or change the file in between. The size spares a HEAD.
        whole = {"block_size": 0, "size": 1} if url.lower().startswith(_WEB) else {}
        file = system.open(path, "rb", **whole)
    with closing(file):
        yield cast(BinaryIO, _Stream(file, url))


class _Stream:
    """An open file, whose errors are told apart from those of who reads it."""

    def __init__(self, file: Any, url: str) -> None:
        self._file, self._url = file, url

    def read(self, size: int = -1) -> bytes:
        with _told(self._url, "be read further", file=True):
            content: bytes = self._file.read(size)
            return content


def list_url(url: str) -> dict[str, str]:
    """Return the files below a folder, by their paths in it, each with what tells that it has changed."""
    found: dict[str, str] = {}
    with _reached(url) as (system, path):
        system.invalidate_cache()
        root = path.rstrip("/")
        waiting: list[str] = [path]
        seen: set[str | tuple[str, str]] = {root, ""}
        while waiting:  # `find` would leave out folders that cannot be listed
            for info in system.ls(waiting.pop(), detail=True):
                name = info["name"].rstrip("/")
                if name in seen or not name.startswith(root and f"{root}/"):
                    continue
                seen.add(name)
                below = name[len(root) :].lstrip("/")
                if info["type"] == "directory" or (info.get("islink") and system.isdir(name)):
                    if "islink" in info:  # on this machine, where links may run in circles
                        inode = below.partition("/")[0], os.path.realpath(name)
                        if inode in seen or os.path.realpath(root) == inode[1]:
                            continue
                        seen.add(inode)
                    waiting.append(name)
                else:
                    found[below] = _state(info)
    return found


def find_urls(pattern: str) -> list[str]:
    """Return the URLs that match a pattern, sorted."""
    with _reached(pattern) as (system, path):
        system.invalidate_cache()
        found = sorted(system.glob(path))
    links = _LINKS.split(pattern)
    place = next(place for place, link in enumerate(links) if "://" in link)
    link = links[place]  # begins with a user and a host, where a path is one of a server
    start = link.removesuffix(path) if link.endswith(path) else link[: link.index("://") + 3]
    named = [each if is_url(each) else start + each for each in found]
    return ["::".join([*links[:place], each, *links[place + 1 :]]) for each in named]


def url_state(url: str) -> str:
    """Return what tells of a file that it has changed."""
    with _reached(url) as (system, path):
        return _state(system.info(path))


def _state(info: dict[str, Any]) -> str:
    return " ".join(
        f"{name}={value}"
        for name, value in sorted(info.items())
        if value is not None and re.sub("[^a-z0-9]", "", name.lower()) in _STATE
    )


@contextmanager
def _reached(url: str, *, file: bool = False) -> Iterator[tuple[Any, str]]:
    """Give the file system that a URL lies in, and its path there; see `open_url` for the errors."""
    fsspec = require("fsspec", f"reading {url_name(url)!r}", 'run: pip install "clipretrieval[fsspec]"')
    with _told(url, "be reached", file=file):
        yield fsspec.core.url_to_fs(url, **_web_options(url, fsspec.config.conf))


def _web_options(url: str, configured: Mapping[str, Any]) -> dict[str, Any]:
    """Return aiohttp's timeouts for a URL, unless fsspec's configuration has options for its client."""
    protocols = {link.partition("://")[0] for link in url.split("::")} & {"http", "https"}
    if not protocols or any("client_kwargs" in configured.get(each, {}) for each in ("http", "https")):
        return {}
    try:
        from aiohttp import ClientTimeout
    except ImportError:  # which fsspec tells
        return {}
    return {each: {"client_kwargs": {"timeout": ClientTimeout(**_SECONDS)}} for each in protocols}


@contextmanager
def _told(url: str, what: str, *, file: bool) -> Iterator[None]:
    """Raise the errors of `open_url`; but of what is no file, one that is refused is unavailable."""
    try:
        yield
    except ClipRetrievalError:
        raise
    except ImportError as error:
        raise MissingDependencyError(
            f"reading {url_name(url)!r} needs a package that is not installed: {_first_line(error, url)}"
        ) from None
    except Exception as error:  # noqa: BLE001  each protocol's package has its own; the cause may tell secrets
        status: Any = getattr(error, "status", None)
        kind = _OF_THE_FILE.get(status, type(error)) if isinstance(status, int) else type(error)
        for known, told in _REASONS.items():
            if issubclass(kind, known) and (file or known is FileNotFoundError):
                raise known(*told) from None
        raise StoreUnavailableError(
            f"{url_name(url)!r} cannot {what}: {_first_line(error, url)}; check the URL, the network and the "
            "credentials"
        ) from None


def _first_line(error: Exception, url: str) -> str:
    text = next(iter(str(error).replace(url, url_name(url)).splitlines()), "") or type(error).__name__
    return _QUERY.sub(r"\1?***", masked_text(text))[:300]
