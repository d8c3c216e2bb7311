"""The manifest in a namespace of its own: text in pieces that metadata can hold."""

from __future__ import annotations

import hashlib
from typing import Any

from clipretrieval.errors import StoreCorruptedError
from clipretrieval.stores.pinecone.namespace import Namespace
from clipretrieval.stores.pinecone.records import ID_FIELD

__all__ = ["MANIFEST_NAMESPACE", "fetch_manifest", "replace_manifest"]

MANIFEST_NAMESPACE = "__clipretrieval_manifest__"
"""How the names of the manifests' namespaces begin; that of the vectors' namespace follows."""

HEAD = "manifest"
# Metadata hold 40 KB; JSON text within JSON may double.
PIECE_LENGTH = 16_000


def replace_manifest(namespace: Namespace, text: str) -> None:
    """Replace the manifest.

    The first piece goes last and names the others by their digest, so a reader finds the old text or the new.
    The old one's pieces stay until the next is written: a reader may be on its way through them. Returns when
    the new one can be read, so that the next change of it starts from this one.
    """
    digest = hashlib.sha256(text.encode()).hexdigest()
    pieces = [text[start : start + PIECE_LENGTH] for start in range(0, max(1, len(text)), PIECE_LENGTH)]
    keys = [HEAD, *(f"{digest}:{place}" for place in range(1, len(pieces)))]
    records = [
        {
            "id": key,
            "values": namespace.unit,
            "metadata": {ID_FIELD: key, "text": piece, "digest": digest, "pieces": str(len(pieces))},
        }
        for key, piece in zip(keys, pieces, strict=True)
    ]
    if records[1:]:
        _send(namespace, records[1:])
        namespace.settle()
    before = _head(namespace)
    _send(namespace, records[:1])
    if before.get("digest") != digest:
        namespace.settle(shown=lambda: _head(namespace).get("digest") != before.get("digest"))
    kept = {digest, str(before["digest"])} if "digest" in before else {digest}
    stale = {
        key: key
        for page in namespace.pages()
        for key in page
        if key != HEAD and key.partition(":")[0] not in kept
    }
    for _, error in namespace.delete(stale):
        if error is not None:
            raise error


def fetch_manifest(namespace: Namespace) -> str | None:
    """Return the manifest; None if there is none.

    Raises
    ------
    StoreCorruptedError
        If a piece is missing or was changed.
    """
    fields = _head(namespace)
    while True:
        text = _assembled(namespace, fields)
        if not fields or text is not None:
            return text
        known, fields = fields, _head(namespace)
        if fields.get("digest") == known.get("digest"):
            raise StoreCorruptedError(
                "the manifest in the Pinecone index is incomplete or was changed; write it again, or fill a "
                "new namespace"
            )


def _head(namespace: Namespace) -> dict[str, Any]:
    """Return the fields of the first piece; none if there is none."""
    head = namespace.fetch([HEAD]).get(HEAD)
    return {} if head is None else dict(head.metadata or {"digest": None})


def _assembled(namespace: Namespace, fields: dict[str, Any]) -> str | None:
    """Return the text that a first piece belongs to; None if a piece is missing, as after a newer write."""
    try:
        digest, count = str(fields["digest"]), int(fields["pieces"])
        keys = [f"{digest}:{place}" for place in range(1, count)]
        found = namespace.fetch(keys) if keys else {}
        text = "".join([str(fields["text"]), *(str(found[key].metadata["text"]) for key in keys)])
    except (KeyError, TypeError, ValueError):
        return None
    return text if hashlib.sha256(text.encode()).hexdigest() == digest else None


def _send(namespace: Namespace, records: list[dict[str, Any]]) -> None:
    for _, error in namespace.upsert(([record["id"]], [record]) for record in records):
        if error is not None:
            raise error
