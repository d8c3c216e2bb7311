"""Where a CLIP model comes from: open_clip's tags, checkpoint files, local folders, or a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipretrieval._util.lazy import attach

if TYPE_CHECKING:
    from clipretrieval.encoding.weights.sources import (
        ModelSource,
        load_strictly,
        load_visual,
        read_source,
        resolve,
    )

__all__ = ["ModelSource", "load_strictly", "load_visual", "read_source", "resolve"]

_lazy_getattr, _lazy_dir = attach(
    __name__,
    {
        "sources": ["ModelSource", "load_strictly", "load_visual", "read_source", "resolve"],
    },
)


def __getattr__(name: str) -> Any:
    return _lazy_getattr(name)


def __dir__() -> list[str]:
    return _lazy_dir()
