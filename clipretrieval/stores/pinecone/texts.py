"""The manifest and blobs, in namespaces of their own: texts in pieces that metadata can hold."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator
from typing import Any

import orjson

from clipretrieval.errors import StoreCorruptedError
from clipretrieval.stores.pinecone.namespace import Namespace
from clipretrieval.stores.pinecone.records import ID_FIELD, MAX_BYTES, MAX_COUNT

__all__ = ["BLOB_NAMESPACE", "MANIFEST_NAMESPACE", "KeptBlob", "KeptText", "kept_manifest"]

MANIFEST_NAMESPACE = "__clipretrieval_manifest__"
"""How the names of the manifests' namespaces begin; that of the vectors' namespace follows."""
BLOB_NAMESPACE = "__clipretrieval_blobs__"
"""How the names of the blobs' namespaces begin."""

HEAD = "manifest"
# Metadata hold 40 KB; JSON text within JSON may double, Base64 does not.
PIECE_LENGTH, BASE64_LENGTH = 16_000, 36_000


class KeptText:
    """A text in a namespace.

    Its first piece goes last and names the others by their digest, so a reader finds the old text or the new.
    The old one's pieces stay until the next is written: a reader may be on its way through them.

    Parameters
    ----------
    namespace : Namespace
    what : str
        The text in words, for messages.
    head : str
        The key of the first piece.
    prefix : str
        How the keys of the others begin; of nothing else in the namespace, but for the head.
    length : int
        Characters in a piece.
    """

    def __init__(self, namespace: Namespace, what: str, head: str, prefix: str, length: int) -> None:
        self._namespace, self._what, self._length = namespace, what, length
        self._head_key, self._prefix = head, prefix

    def replace(self, text: str) -> None:
        """Replace the text.

        Returns when the new one can be read, so that the next change of it starts from this one.
        """
        digest = hashlib.sha256(text.encode()).hexdigest()
        starts = range(0, max(1, len(text)), self._length)
        if len(starts) > 1:
            self._send(self._record(digest, place, len(starts), text) for place in range(1, len(starts)))
            self._namespace.settle()
        before = self._head()
        self._send(iter([self._record(digest, 0, len(starts), text)]))
        if before.get("digest") != digest:
            self._namespace.settle(shown=lambda: self._head().get("digest") != before.get("digest"))
        self._discard_but({digest, str(before["digest"])} if "digest" in before else {digest})

    def fetch(self) -> str | None:
        """Return the text; None if there is none.

        Raises
        ------
        StoreCorruptedError
            If a piece is missing or was changed.
        """
        fields = self._head()
        while True:
            text = self._assembled(fields)
            if not fields or text is not None:
                return text
            known, fields = fields, self._head()
            if fields.get("digest") == known.get("digest"):
                raise self.damaged()

    def remove(self) -> None:
        """Remove the text, its first piece first; returns when that is seen."""
        self._delete([self._head_key])
        self._namespace.settle()
        self._discard_but(set())

    def damaged(self) -> StoreCorruptedError:
        """Return the error for a text that is not as it was written."""
        return StoreCorruptedError(
            f"{self._what} in the Pinecone index is incomplete or was changed; write it again, or fill a new "
            "namespace"
        )

    def _record(self, digest: str, place: int, count: int, text: str) -> dict[str, Any]:
        key = self._key(digest, place) if place else self._head_key
        piece = text[place * self._length : (place + 1) * self._length]
        return {
            "id": key,
            "values": self._namespace.unit,
            "metadata": {ID_FIELD: key, "text": piece, "digest": digest, "pieces": str(count)},
        }

    def _key(self, digest: str, place: int) -> str:
        return f"{self._prefix}{digest}:{place}"

    def _head(self) -> dict[str, Any]:
        """Return the fields of the first piece; none if there is none."""
        head = self._namespace.fetch([self._head_key]).get(self._head_key)
        return {} if head is None else dict(head.metadata or {"digest": None})

    def _assembled(self, fields: dict[str, Any]) -> str | None:
        """Return the text that a first piece belongs to; None if one is missing, as after a newer write."""
        try:
            digest, count = str(fields["digest"]), int(fields["pieces"])
            keys = [self._key(digest, place) for place in range(1, count)]
            found = self._namespace.metadata(keys) if keys else {}
            text = "".join([str(fields["text"]), *(str(found[key]["text"]) for key in keys)])
        except (KeyError, TypeError, ValueError):
            return None
        return text if hashlib.sha256(text.encode()).hexdigest() == digest else None

    def _discard_but(self, kept: set[str]) -> None:
        """Delete the pieces of other digests."""
        self._delete(
            [
                key
                for page in self._namespace.pages(self._prefix)
                for key in page
                if key != self._head_key and key.removeprefix(self._prefix).partition(":")[0] not in kept
            ]
        )

    def _send(self, records: Iterator[dict[str, Any]]) -> None:
        for _, error in self._namespace.upsert(_parts(records)):
            if error is not None:
                raise error

    def _delete(self, keys: list[str]) -> None:
        for _, error in self._namespace.delete({key: key for key in keys}):
            if error is not None:
                raise error


class KeptBlob:
    """A blob in a namespace.

    Parameters
    ----------
    namespace : Namespace
        Of blobs alone.
    name : str
        A blob's, as `check_blob_name` returns it: without a colon.
    """

    def __init__(self, namespace: Namespace, name: str) -> None:
        self._text = KeptText(namespace, f"the blob {name!r}", name, f"{name}:", BASE64_LENGTH)

    def replace(self, content: bytes | None) -> None:
        """Replace the blob, or remove it."""
        if content is None:
            self._text.remove()
        else:
            self._text.replace(base64.b64encode(content).decode("ascii"))

    def fetch(self) -> bytes | None:
        """Return the blob; None if there is none.

        Raises
        ------
        StoreCorruptedError
            If a piece is missing or was changed.
        """
        text = self._text.fetch()
        try:
            return None if text is None else base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise self._text.damaged() from None


def kept_manifest(namespace: Namespace) -> KeptText:
    """Return the manifest in a namespace of its own."""
    return KeptText(namespace, "the manifest", HEAD, "", PIECE_LENGTH)


def _parts(records: Iterator[dict[str, Any]]) -> Iterator[tuple[list[str], list[dict[str, Any]]]]:
    """Cut records into requests, each within the service's limits of count and bytes."""
    waiting: list[dict[str, Any]] = []
    used = 0
    for record in records:
        size = len(orjson.dumps(record)) + 1
        if waiting and (used + size > MAX_BYTES or len(waiting) == MAX_COUNT):
            yield [each["id"] for each in waiting], waiting
            waiting, used = [], 0
        waiting.append(record)
        used += size
    if waiting:
        yield [each["id"] for each in waiting], waiting
