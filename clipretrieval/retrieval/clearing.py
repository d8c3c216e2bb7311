"""Make room in a store for what takes the place of all that it holds."""

from __future__ import annotations

from collections.abc import Mapping
from secrets import token_hex
from typing import Any, cast

from clipretrieval.errors import DimensionMismatchError, UnsupportedOperationError
from clipretrieval.retrieval.changes import CHANGING, STATISTICS
from clipretrieval.retrieval.manifest import CLEARING
from clipretrieval.retrieval.transform_plan import blob_name, read_entry
from clipretrieval.stores.base import BlobStore, ScannableStore, VectorStore, view_manifest

__all__ = ["check_clearable", "clear", "drop_transform"]


def check_clearable(store: VectorStore, dim: int) -> None:
    """Refuse to overwrite what cannot be cleared.

    Raises
    ------
    UnsupportedOperationError
        If the store does not list what it holds.
    DimensionMismatchError
        If it is made for vectors of another dimension.
    """
    if not isinstance(store, ScannableStore):
        raise UnsupportedOperationError(
            f"{type(store).__name__} cannot list what it holds (it has no scan method), so overwrite=True "
            "cannot clear it; pass an empty store"
        )
    if store.dim not in (None, dim):
        raise DimensionMismatchError(
            f"the store is made for vectors of dimension {store.dim}, and the new ones have {dim}; pass a "
            "new store, or another place for it"
        )


def clear(store: VectorStore) -> dict[str, Any]:
    """Remove everything from a store that can be scanned, and return the manifest that it has then.

    It marks the clearing, so that one that is cut short is known as such, and whose it is.
    """
    marked = {**view_manifest(store), CLEARING: token_hex(8), STATISTICS: dict(CHANGING)}
    if isinstance(store, ScannableStore):
        store.write_manifest(marked)
        store.flush()
        for ids in [listing.ids.tolist() for listing in store.scan()]:
            store.delete(ids)
    return marked


def drop_transform(store: VectorStore, replaced: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Remove the maps of vectors that are gone."""
    before, now = read_entry(replaced) or {}, read_entry(own) or {}
    for digest in {before.get("digest"), before.get("before")} - {None, now.get("digest")}:
        cast("BlobStore", store).write_blob(blob_name(str(digest)), None)
