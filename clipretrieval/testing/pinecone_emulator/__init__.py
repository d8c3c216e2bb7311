"""An emulator of the Pinecone service, for tests without an account or a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipretrieval._util.lazy import attach

if TYPE_CHECKING:
    from clipretrieval.testing.pinecone_emulator.emulator import PineconeEmulator

__all__ = ["PineconeEmulator"]

__getattr__, __dir__ = attach(__name__, {"emulator": __all__})
