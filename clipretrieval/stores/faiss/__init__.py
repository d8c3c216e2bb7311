"""A store on FAISS: exact or approximate search in memory, kept in a folder."""

from __future__ import annotations

from clipretrieval.errors import MissingDependencyError

try:
    from clipretrieval.stores.faiss.store import FaissStore, IndexInfo
except ModuleNotFoundError as error:
    if error.name != "faiss":
        raise
    raise MissingDependencyError(
        "FaissStore needs FAISS, which is not installed; run: pip install faiss-cpu",
        name="faiss",
    ) from error

__all__ = ["FaissStore", "IndexInfo"]
