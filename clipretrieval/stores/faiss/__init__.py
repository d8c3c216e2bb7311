"""A store on FAISS: exact or approximate search in memory, kept in a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipretrieval._util.lazy import attach

if TYPE_CHECKING:
    from clipretrieval.stores.faiss.store import FaissStore, IndexInfo

__all__ = ["FaissStore", "IndexInfo"]

__getattr__, __dir__ = attach(__name__, {"store": __all__})
