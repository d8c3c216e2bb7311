"""Run CLIP's image encoder as far as a stage needs, and no further."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipretrieval._util.lazy import attach

if TYPE_CHECKING:
    from clipretrieval.encoding.engine.engine import Engine, interpolate_positions

__all__ = ["Engine", "interpolate_positions"]

_lazy_getattr, _lazy_dir = attach(
    __name__,
    {
        "engine": ["Engine", "interpolate_positions"],
    },
)


def __getattr__(name: str) -> Any:
    return _lazy_getattr(name)


def __dir__() -> list[str]:
    return _lazy_dir()
