"""Vectors that exist already: brought in, written out, merged, and encoded in parts.

A classifier takes vectors from files (`RetrievalClassifier.fit_vectors`, `RetrievalClassifier.from_vectors`)
and writes its own (`RetrievalClassifier.export`). Here is what works without one: stores that were filled
apart become one (`merge_stores`), and images become files of vectors, in several processes or on several
machines (`encode`).
"""

from __future__ import annotations

from clipretrieval._util.lazy import attach

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clipretrieval.vectors.merge_report import MergeReport
    from clipretrieval.vectors.merging import merge_stores

__all__ = ["MergeReport", "merge_stores"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "merge_report": ["MergeReport"],
        "merging": ["merge_stores"],
    },
)
