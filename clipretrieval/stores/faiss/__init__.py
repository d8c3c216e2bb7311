"""A store on FAISS: exact or approximate search in memory, kept in a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipretrieval._util.lazy import attach

if TYPE_CHECKING:
    from clipretrieval.stores.faiss.state import IndexInfo
    from clipretrieval.stores.faiss.store import FaissStore

__all__ = ["FaissStore", "IndexInfo"]

_lazy_getattr, _lazy_dir = attach(
    __name__,
    {
        "store": ["FaissStore", "IndexInfo"],
    },
)


def __getattr__(name: str) -> Any:
    return _lazy_getattr(name)


def __dir__() -> list[str]:
    return _lazy_dir()
