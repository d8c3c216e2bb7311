"""A store on Pinecone: a managed service that keeps the vectors elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipretrieval._util.lazy import attach

if TYPE_CHECKING:
    from clipretrieval.stores.pinecone.store import (
        IncompleteDeleteError,
        IncompleteUpsertError,
        PineconeStore,
    )

__all__ = ["IncompleteDeleteError", "IncompleteUpsertError", "PineconeStore"]

__getattr__, __dir__ = attach(__name__, {"store": __all__})
