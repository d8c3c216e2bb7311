"""Which file a URL names, without what only opens it."""

from __future__ import annotations

import hashlib
import re

from clipretrieval._util.secrets import is_secret
from clipretrieval.errors import InvalidInputError
from clipretrieval.images.urls import url_name

__all__ = ["url_identity"]

_USER = re.compile(r"(?<=://)[^/?#\s]*@")
_SETTING = re.compile(r"[?&#](?P<name>[^=&?#:]+)=(?:(?!::)[^&#])*")
_SIGNATURE = re.compile(r"x-(?:amz|goog)-.*|expires|signature|sig|token", re.IGNORECASE)
_SAS = ("se", "sp", "sr", "st", "sv")
"""What stands beside ``sig`` in a URL that Azure has signed, and elsewhere may be anything."""
_CACHES = ("simplecache", "filecache", "blockcache", "cached")
_DIGITS = 16


def url_identity(url: str) -> str:
    """Return a URL's name, and a hash of whatever else of it tells files apart.

    That is the query without signatures and secrets, which change while the file stays. The hash stands in
    for a query that may be secret all the same.

    Raises
    ------
    InvalidInputError
        If it is read through a cache, which may hold what the file was before.
    """
    name = url_name(url)
    for part in name.split("::"):
        if part.partition("://")[0].lower() in _CACHES:
            raise InvalidInputError(
                f"{name!r} is read through a cache, which may hold an older file than the one that a part is "
                f"named for; leave {part + '::'!r} out"
            )
    signed = any(found["name"].lower() == "sig" for found in _SETTING.finditer(url))

    def kept(found: re.Match[str]) -> str:
        setting = found["name"].lower()
        opens = _SIGNATURE.fullmatch(setting) or (signed and setting in _SAS)
        # A lone "key" is, as often as not, a file's.
        return "" if opens or (setting != "key" and is_secret(found["name"])) else found[0]

    whole = _SETTING.sub(kept, _USER.sub("", url))
    if whole == name:
        return name
    digest = hashlib.sha256(whole.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{name}?sha256={digest[:_DIGITS]}"
