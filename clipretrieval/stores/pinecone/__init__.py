"""A store on Pinecone: a managed service that keeps the vectors elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipretrieval._util.lazy import attach

if TYPE_CHECKING:
    from clipretrieval.stores.pinecone.store import PineconeStore
    from clipretrieval.stores.pinecone.writes import IncompleteDeleteError, IncompleteUpsertError

__all__ = ["IncompleteDeleteError", "IncompleteUpsertError", "PineconeStore"]

_lazy_getattr, _lazy_dir = attach(
    __name__,
    {
        "store": ["IncompleteDeleteError", "IncompleteUpsertError", "PineconeStore"],
    },
)


def __getattr__(name: str) -> Any:
    return _lazy_getattr(name)


def __dir__() -> list[str]:
    return _lazy_dir()
