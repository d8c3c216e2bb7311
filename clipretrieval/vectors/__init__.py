"""Vectors that exist already: brought in, written out, merged, and encoded in parts.

A classifier takes vectors from files (`RetrievalClassifier.fit_vectors`, `RetrievalClassifier.from_vectors`)
and writes its own (`RetrievalClassifier.export`). Here is what works without one: stores that were filled
apart become one (`merge_stores`), and images become files of vectors, in several processes or on several
machines (`encode`).
"""

from __future__ import annotations

from clipretrieval._util.lazy import attach

TYPE_CHECKING = False  # as type checkers know it
if TYPE_CHECKING:
    from clipretrieval.vectors.encode_report import EncodeReport
    from clipretrieval.vectors.encoding_parts import Runner, encode
    from clipretrieval.vectors.merge_report import MergeReport
    from clipretrieval.vectors.merging import merge_stores
    from clipretrieval.vectors.part_report import PartReport
    from clipretrieval.vectors.shard_job import ShardJob

__all__ = ["EncodeReport", "MergeReport", "PartReport", "Runner", "ShardJob", "encode", "merge_stores"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "encode_report": ["EncodeReport"],
        "encoding_parts": ["Runner", "encode"],
        "merge_report": ["MergeReport"],
        "merging": ["merge_stores"],
        "part_report": ["PartReport"],
        "shard_job": ["ShardJob"],
    },
)
