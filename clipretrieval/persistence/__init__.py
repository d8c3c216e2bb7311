"""A fitted classifier as a folder: a small JSON file beside its store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipretrieval._util.lazy import attach

if TYPE_CHECKING:
    from clipretrieval.persistence.persistence import FILE, INDEXING, check_folder, load, save

__all__ = ["FILE", "INDEXING", "check_folder", "load", "save"]

_lazy_getattr, _lazy_dir = attach(
    __name__,
    {
        "persistence": ["FILE", "INDEXING", "check_folder", "load", "save"],
    },
)


def __getattr__(name: str) -> Any:
    return _lazy_getattr(name)


def __dir__() -> list[str]:
    return _lazy_dir()
