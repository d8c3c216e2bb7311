"""A store on Chroma: in memory, in a folder, at a server, or through a client of the user's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipretrieval._util.lazy import attach

if TYPE_CHECKING:
    from clipretrieval.stores.chroma.store import ChromaStore

__all__ = ["ChromaStore"]

_lazy_getattr, _lazy_dir = attach(
    __name__,
    {
        "store": ["ChromaStore"],
    },
)


def __getattr__(name: str) -> Any:
    return _lazy_getattr(name)


def __dir__() -> list[str]:
    return _lazy_dir()
