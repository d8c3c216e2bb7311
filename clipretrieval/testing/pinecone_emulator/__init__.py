"""An emulator of the Pinecone service, for tests without an account or a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipretrieval._util.lazy import attach

if TYPE_CHECKING:
    from clipretrieval.testing.pinecone_emulator.emulator import PineconeEmulator

__all__ = ["PineconeEmulator"]

_lazy_getattr, _lazy_dir = attach(
    __name__,
    {
        "emulator": ["PineconeEmulator"],
    },
)


def __getattr__(name: str) -> Any:
    return _lazy_getattr(name)


def __dir__() -> list[str]:
    return _lazy_dir()
