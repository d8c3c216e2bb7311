"""For tests of what extends or uses the library: a suite that every store passes, a Pinecone emulator.

Every name loads when it is first used: importing this package needs neither pytest nor Hypothesis nor an SDK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipretrieval._util.lazy import attach

if TYPE_CHECKING:
    from clipretrieval.testing.kills import Kill, kill_first_upserts, kill_writers
    from clipretrieval.testing.pinecone_emulator.emulator import PineconeEmulator
    from clipretrieval.testing.stores import VectorStoreTests

__all__ = ["Kill", "PineconeEmulator", "VectorStoreTests", "kill_first_upserts", "kill_writers"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "kills": ["Kill", "kill_first_upserts", "kill_writers"],
        "pinecone_emulator": ["PineconeEmulator"],
        "stores": ["VectorStoreTests"],
    },
)
