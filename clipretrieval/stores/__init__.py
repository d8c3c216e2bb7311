"""Vector stores: the protocol, the built-in ones, and the names they go by.

Every name loads when it is first used, so importing this package loads no store's SDK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipretrieval._util.lazy import attach

if TYPE_CHECKING:
    from clipretrieval.stores.base import (
        BlobStore,
        ExclusiveStore,
        LocalFilesStore,
        LocatedStore,
        PortableStore,
        RefreshableStore,
        ScannableStore,
        VectorStore,
    )
    from clipretrieval.stores.chroma.store import ChromaStore
    from clipretrieval.stores.faiss.state import IndexInfo
    from clipretrieval.stores.faiss.store import FaissStore
    from clipretrieval.stores.lance.store import LanceStore
    from clipretrieval.stores.memory import MemoryStore
    from clipretrieval.stores.pgvector.store import PgVectorStore
    from clipretrieval.stores.pinecone.store import (
        IncompleteDeleteError,
        IncompleteUpsertError,
        PineconeStore,
    )
    from clipretrieval.stores.registry import available_stores, create_store, register_store
    from clipretrieval.types import Listing, Neighbors, Records

__all__ = [
    "BlobStore",
    "ChromaStore",
    "ExclusiveStore",
    "FaissStore",
    "IncompleteDeleteError",
    "IncompleteUpsertError",
    "IndexInfo",
    "LanceStore",
    "Listing",
    "LocalFilesStore",
    "LocatedStore",
    "MemoryStore",
    "Neighbors",
    "PgVectorStore",
    "PineconeStore",
    "PortableStore",
    "Records",
    "RefreshableStore",
    "ScannableStore",
    "VectorStore",
    "available_stores",
    "create_store",
    "register_store",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "base": [
            *("BlobStore", "ExclusiveStore", "LocalFilesStore", "LocatedStore", "PortableStore"),
            *("RefreshableStore", "ScannableStore", "VectorStore"),
        ],
        "chroma": ["ChromaStore"],
        "faiss": ["FaissStore", "IndexInfo"],
        "lance": ["LanceStore"],
        "memory": ["MemoryStore"],
        "pgvector": ["PgVectorStore"],
        "pinecone": ["IncompleteDeleteError", "IncompleteUpsertError", "PineconeStore"],
        "registry": ["available_stores", "create_store", "register_store"],
        ".types": ["Listing", "Neighbors", "Records"],
    },
)
