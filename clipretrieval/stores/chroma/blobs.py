"""Blobs beside a Chroma collection: text in the metadata of collections of their own.

::

    animals                                  the records
    animals.blob-statistics.head             which parts are in force, their size and SHA-256
    animals.blob-statistics.0f3a….0, ….1     the parts, in Base64

Chroma keeps the metadata of a record in an index of texts, in a log that is never cut, and in a table with an
index by value; those of a collection in one row, which takes a third of the room and of the time. A change of
them is one transaction.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import secrets
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from chromadb.errors import NotFoundError

from clipretrieval._util.checks import check_int, check_number
from clipretrieval._util.text import parse_json
from clipretrieval.errors import InvalidInputError, StoreCorruptedError
from clipretrieval.stores.checks import LARGEST_BLOB
from clipretrieval.stores.chroma.client import Connection
from clipretrieval.stores.chroma.errors import translated

__all__ = ["ChromaBlobs"]

# Of a collection's metadata.
HEAD_KEY = "clipretrieval:blob"
PART_KEY = "clipretrieval:blob-part"
OF_KEY = "clipretrieval:blob-of"

PART_BYTES = 12 << 20
"""Of a blob in one request: 16 MiB of text; the server refuses 40."""
MOST_PARTS = -(-LARGEST_BLOB // PART_BYTES)
LONGEST_NAME = 512
"""Characters that Chroma takes as the name of a collection."""
ABANDONED = 3600.0
"""Seconds after which another client of a server, which may have died, is not waited for any more."""


@dataclass(frozen=True)
class Held:
    """A blob in force.

    Attributes
    ----------
    token : str
        In the names of its parts.
    parts : int
    size : int
        In bytes.
    sha256 : str
    """

    token: str
    parts: int
    size: int
    sha256: str

    @classmethod
    def parse(cls, found: dict[str, Any]) -> Held:
        """Read what `asdict` gave; raise InvalidInputError or what follows from a wrong type."""
        size, sha256 = check_int(found["size"], "size", least=0, most=LARGEST_BLOB), found["sha256"]
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise InvalidInputError("it has no SHA-256")
        return cls(_token(found["token"]), _parts(found["parts"]), size, sha256)


@dataclass(frozen=True)
class BlobHead:
    """What is known of the blobs of one name.

    Attributes
    ----------
    collection : str
        The id of the collection that they belong to: one of the same name may come after it.
    held : Held or None
    leftovers : dict of str to (int, float)
        Parts that are being written, or were in force, by their tokens: how many, and when that began, in
        seconds since 1970; 0 for those that nobody writes.
    """

    collection: str
    held: Held | None = None
    leftovers: dict[str, tuple[int, float]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> BlobHead:
        """Read what `to_json` gave; raise ValueError or what follows from a wrong type."""
        found = parse_json(text.encode())
        held = None if found["held"] is None else Held.parse(found["held"])
        leftovers = {
            _token(token): (_parts(parts), check_number(since, "since", least=0))
            for token, (parts, since) in found["leftovers"].items()
        }
        return cls(str(found["collection"]), held, leftovers)

    def to_json(self) -> str:
        """Return it as JSON text."""
        return json.dumps(asdict(self))

    def turned(self, held: Held | None) -> BlobHead:
        """Return the head with another blob in force, and the one before among what is left over."""
        leftovers = {
            token: since for token, since in self.leftovers.items() if held is None or token != held.token
        }
        if self.held is not None:
            leftovers[self.held.token] = (self.held.parts, 0.0)
        return BlobHead(self.collection, held, leftovers)


class ChromaBlobs:
    """The blobs of a collection. Whatever interrupts a write, the blob is the old one or the new.

    Parameters
    ----------
    connection : Connection
    collection : str
        The id of the collection that they belong to.
    """

    def __init__(self, connection: Connection, collection: str) -> None:
        self._connection, self._collection = connection, collection
        self._client, self._where = connection.client, connection.where

    def read(self, name: str) -> bytes | None:
        """Return a blob; None if there is none.

        Raises
        ------
        StoreCorruptedError
            If it was changed, or a part of it is missing.
        """
        held = self._head(name).held
        while held is not None:
            with translated(self._where):
                content = self._assembled(name, held)
            if content is not None:
                return content
            known, held = held, self._head(name).held
            if held == known:  # and no other client has replaced it meanwhile
                raise self._damaged(name, "a part is missing, or its content does not match its checksum")
        return None

    def write(self, name: str, content: bytes | None) -> None:
        """Replace a blob, or remove it: write its parts, then turn the head, then delete the old parts.

        Raises
        ------
        InvalidInputError
            If the names of collection and blob together are too long for Chroma.
        """
        if content is None:
            head = self._known_head(name)
            if head.held is not None or head.leftovers:
                self._put_head(name, head.turned(None))
                self._clear(name)
            elif len(self._head_name(name)) <= LONGEST_NAME:
                self._delete(self._head_name(name))  # a damaged one: none is kept without parts
            return
        held = Held(
            token=secrets.token_hex(8),
            parts=-(-len(content) // PART_BYTES),
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        longest = len(self._part_name(name, held.token, MOST_PARTS))
        if longest > LONGEST_NAME:
            raise InvalidInputError(
                f"the blob {name!r} would need a collection whose name has {longest} characters; Chroma "
                f"takes {LONGEST_NAME}. Give the store's collection, or the blob, a shorter name"
            )
        head = self._known_head(name)
        self._put_head(
            name, replace(head, leftovers={**head.leftovers, held.token: (held.parts, time.time())})
        )
        for part in range(held.parts):
            piece = content[part * PART_BYTES : (part + 1) * PART_BYTES]
            text = base64.b64encode(piece).decode("ascii")
            self._make(self._part_name(name, held.token, part), {PART_KEY: text})
        # Read again: at a server, another client may have written the blob meanwhile.
        self._put_head(name, self._known_head(name).turned(held))
        self._clear(name)

    def _clear(self, name: str) -> None:
        """Delete the parts that nobody reads or writes any more."""
        head, now = self._known_head(name), time.time()
        due = {
            token: parts
            for token, (parts, since) in head.leftovers.items()
            if self._connection.exclusive or not since or not 0 <= now - since <= ABANDONED
        }
        for token, parts in due.items():
            for part in range(parts):
                self._delete(self._part_name(name, token, part))
        left = {token: since for token, since in head.leftovers.items() if token not in due}
        if head.held is None and not left:
            self._delete(self._head_name(name))
        elif due:
            self._put_head(name, replace(head, leftovers=left))

    def _head(self, name: str) -> BlobHead:
        """Return what is known of the blobs of a name."""
        empty = BlobHead(self._collection)
        if len(self._head_name(name)) > LONGEST_NAME:
            return empty
        text = self._metadata(self._head_name(name), HEAD_KEY)
        if text is None:
            return empty
        try:
            head = BlobHead.parse(text)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise self._damaged(name, f"a field is missing or malformed ({error})") from error
        if head.collection != self._collection:  # that one is gone
            return replace(head.turned(None), collection=self._collection)
        return head

    def _known_head(self, name: str) -> BlobHead:
        """Return what is known of the blobs of a name, for the next write: nothing, if that is damaged."""
        try:
            return self._head(name)
        except StoreCorruptedError:
            return BlobHead(self._collection)

    def _put_head(self, name: str, head: BlobHead) -> None:
        """Put what is known into force, in one transaction of Chroma's."""
        metadata = {HEAD_KEY: head.to_json(), OF_KEY: self._connection.collection}
        with translated(self._where):
            try:
                collection = self._client.get_collection(self._head_name(name), embedding_function=None)
            except NotFoundError:
                self._make(self._head_name(name), metadata)
            else:
                collection.modify(metadata=metadata)

    def _assembled(self, name: str, held: Held) -> bytes | None:
        """Return the content of a blob; None if a part is missing or not as it was written."""
        pieces = []
        for part in range(held.parts):
            text = self._metadata(self._part_name(name, held.token, part), PART_KEY)
            try:
                pieces.append(base64.b64decode(text or "", validate=True))
            except (binascii.Error, ValueError):
                return None
        content = b"".join(pieces)
        return content if hashlib.sha256(content).hexdigest() == held.sha256 else None

    def _metadata(self, collection: str, key: str) -> str | None:
        """Return a text from a collection's metadata; None if there is no such collection or text."""
        with translated(self._where):
            try:
                found = self._client.get_collection(collection, embedding_function=None).metadata
            except NotFoundError:
                return None
        text = (found or {}).get(key)
        return text if isinstance(text, str) else None

    def _make(self, name: str, metadata: dict[str, Any]) -> None:
        with translated(self._where):
            self._client.get_or_create_collection(
                name, configuration={"hnsw": {"space": "l2"}}, metadata=metadata, embedding_function=None
            )

    def _delete(self, name: str) -> None:
        with translated(self._where), suppress(NotFoundError):
            self._client.delete_collection(name)

    def _head_name(self, name: str) -> str:
        return f"{self._stem(name)}.head"

    def _part_name(self, name: str, token: str, part: int) -> str:
        return f"{self._stem(name)}.{token}.{part}"

    def _stem(self, name: str) -> str:
        return f"{self._connection.collection}.blob-{name}"

    def _damaged(self, name: str, why: str) -> StoreCorruptedError:
        return StoreCorruptedError(
            f"the blob {name!r} of {self._where} is damaged: {why}. Restore the database from a copy, or "
            "write the blob again"
        )


def _token(found: str) -> str:
    if not re.fullmatch("[0-9a-f]{16}", found):
        raise InvalidInputError("it names no parts")
    return found


def _parts(found: Any) -> int:
    return check_int(found, "parts", least=0, most=MOST_PARTS)
