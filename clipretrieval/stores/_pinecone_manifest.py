"""The manifest in a namespace of its own: text in pieces that metadata can hold."""

from __future__ import annotations

import hashlib
from typing import Any

from clipretrieval.errors import StoreCorruptedError
from clipretrieval.stores._pinecone_records import ID_FIELD
from clipretrieval.stores._pinecone_space import Space

__all__ = ["MANIFEST_SPACE", "read_text", "write_text"]

MANIFEST_SPACE = "__clipretrieval_manifest__"
"""How the names of the manifests' namespaces begin; that of the vectors' namespace follows."""

HEAD = "manifest"
# Metadata hold 40 KB; JSON text within JSON may double.
PIECE_LENGTH = 16_000


def write_text(space: Space, text: str, dim: int) -> None:
    """Replace the manifest.

    The first piece goes last and names the others by their digest, so a reader finds the old text or the new.
    """
    digest = hashlib.sha256(text.encode()).hexdigest()
    pieces = [text[start : start + PIECE_LENGTH] for start in range(0, max(1, len(text)), PIECE_LENGTH)]
    vector = [1.0, *[0.0] * (dim - 1)]
    keys = [HEAD, *(f"{digest}:{place}" for place in range(1, len(pieces)))]
    records = [
        {
            "id": key,
            "values": vector,
            "metadata": {ID_FIELD: key, "text": piece, "digest": digest, "pieces": str(len(pieces))},
        }
        for key, piece in zip(keys, pieces, strict=True)
    ]
    if records[1:]:
        _send(space, records[1:])
        space.settle()
    _send(space, records[:1])
    stale = set(space.keys()) - set(keys)
    if stale:
        space.delete({key: key for key in stale})


def read_text(space: Space) -> str | None:
    """Return the manifest; None if there is none.

    Raises
    ------
    StoreCorruptedError
        If a piece is missing or was changed.
    """
    head = space.fetch([HEAD]).get(HEAD)
    if head is None:
        return None
    fields: dict[str, Any] = head.metadata or {}
    try:
        digest, count = str(fields["digest"]), int(fields["pieces"])
        keys = [f"{digest}:{place}" for place in range(1, count)]
        found = space.fetch(keys) if keys else {}
        text = "".join([str(fields["text"]), *(str(found[key].metadata["text"]) for key in keys)])
    except (KeyError, TypeError, ValueError):
        text, digest = "", "missing"
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise StoreCorruptedError(
            "the manifest in the Pinecone index is incomplete or was changed; write it again, or fill a new "
            "namespace"
        )
    return text


def _send(space: Space, records: list[dict[str, Any]]) -> None:
    for _, error in space.upsert(([record["id"]], [record]) for record in records):
        if error is not None:
            raise error
