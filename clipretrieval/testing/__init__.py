"""For tests of what extends or uses the library: suites for stores and for heads, a Pinecone emulator.

Every name loads when it is first used: importing this package needs neither pytest nor Hypothesis nor an SDK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipretrieval._util.lazy import attach

if TYPE_CHECKING:
    from clipretrieval.testing.contracts.head import HeadContract
    from clipretrieval.testing.kills import Kill, kill_first_upserts, kill_writers
    from clipretrieval.testing.pinecone_emulator.emulator import PineconeEmulator
    from clipretrieval.testing.stores import VectorStoreTests

__all__ = [
    "HeadContract",
    "Kill",
    "PineconeEmulator",
    "VectorStoreTests",
    "kill_first_upserts",
    "kill_writers",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "contracts.head": ["HeadContract"],
        "kills": ["Kill", "kill_first_upserts", "kill_writers"],
        "pinecone_emulator": ["PineconeEmulator"],
        "stores": ["VectorStoreTests"],
    },
)
