"""Files behind URLs, listed and read by fsspec; nothing that a URL keeps secret is told of."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeGuard

from clipretrieval._util.dependencies import require
from clipretrieval._util.secrets import masked_text, without_secrets
from clipretrieval.errors import ClipRetrievalError, MissingDependencyError, StoreUnavailableError

__all__ = ["find_urls", "is_url", "list_url", "open_url", "read_url", "url_name", "url_state"]

_URL = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*::)*[A-Za-z][A-Za-z0-9+.-]+://")
_QUERY = re.compile(r"(https?://[^?#\s'\"]*)[?#][^\s'\"]*", re.IGNORECASE)
_REST = re.compile(r"(https?://[^?#]*)[?#].*", re.IGNORECASE | re.DOTALL)
_STATE = (
    *("size", "mtime", "created", "LastModified", "last_modified", "updated"),
    *("ETag", "etag", "CRC", "date_time"),
)
"""What file systems call that by which a change is seen."""


def is_url(value: object) -> TypeGuard[str]:
    """Whether a value is a text that begins as a URL of fsspec's does, such as ``zip://a.png::s3://…``."""
    return isinstance(value, str) and _URL.match(value) is not None


def url_name(url: str | os.PathLike[str]) -> str:
    """Return how a URL is called, without user, password and query, which may be secret; a path as it is."""
    text = os.fsdecode(url)
    if not is_url(text):
        return text
    return "::".join(map(without_secrets, _REST.sub(r"\1", text).split("::")))


def read_url(url: str) -> bytes:
    """Return the content of a file; the errors are those of `open_url`."""
    with _reached(url) as (system, path):
        content: bytes = system.cat_file(path)
        return content


@contextmanager
def open_url(url: str) -> Iterator[BinaryIO]:
    """Open a file for reading from its beginning to its end.

    Raises
    ------
    FileNotFoundError
        If there is none.
    StoreUnavailableError
        If it cannot be reached.
    MissingDependencyError
        If fsspec, or the package that it needs for the protocol, is not installed.
    """
    with _reached(url) as (system, path), system.open(path, "rb") as file:
        yield file


def list_url(url: str) -> dict[str, str]:
    """Return the files below a folder, by their paths in it, each with what tells that it has changed."""
    found: dict[str, str] = {}
    with _reached(url) as (system, path):
        system.invalidate_cache()
        root = path.rstrip("/")
        waiting, seen = [path], {root}
        while waiting:  # `find` would leave out folders that cannot be listed
            for info in system.ls(waiting.pop(), detail=True):
                name = info["name"].rstrip("/")
                if name in seen or not name.startswith(root and f"{root}/"):
                    continue
                seen.add(name)
                if info["type"] == "directory":
                    waiting.append(name)
                else:
                    found[name[len(root) :].lstrip("/")] = _state(info)
    return found


def find_urls(pattern: str) -> list[str]:
    """Return the URLs that match a pattern, sorted."""
    with _reached(pattern) as (system, path):
        system.invalidate_cache()
        found = sorted(system.glob(path))
    parts = pattern.split("::")
    place = next(place for place, part in enumerate(parts) if "://" in part)
    protocol = parts[place].partition("://")[0]
    named = [each if is_url(each) else f"{protocol}://{each}" for each in found]
    return ["::".join([*parts[:place], each, *parts[place + 1 :]]) for each in named]


def url_state(url: str) -> str:
    """Return what tells of a file that it has changed."""
    with _reached(url) as (system, path):
        return _state(system.info(path))


def _state(info: dict[str, Any]) -> str:
    return " ".join(f"{name}={info[name]}" for name in _STATE if info.get(name) is not None)


@contextmanager
def _reached(url: str) -> Iterator[tuple[Any, str]]:
    """Give the file system that a URL lies in, and its path there; see `open_url` for the errors."""
    fsspec = require("fsspec.core", f"reading {url_name(url)!r}", 'run: pip install "clipretrieval[fsspec]"')
    try:
        yield fsspec.url_to_fs(url)
    except ClipRetrievalError:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "there is nothing at this URL") from None
    except ImportError as error:
        raise MissingDependencyError(
            f"reading {url_name(url)!r} needs a package that is not installed: {_first_line(error)}"
        ) from None
    except Exception as error:  # noqa: BLE001  each protocol's package has its own; the cause may tell secrets
        raise StoreUnavailableError(
            f"{url_name(url)!r} cannot be reached: {_first_line(error)}; check the URL, the network and the "
            "credentials"
        ) from None


def _first_line(error: Exception) -> str:
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    return _QUERY.sub(r"\1?***", masked_text(text))[:300]
