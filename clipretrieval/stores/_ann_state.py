"""What is known of a store's approximate index."""

from __future__ import annotations

from dataclasses import dataclass

from clipretrieval.stores._ann_index import Knobs

__all__ = ["AnnState", "IndexInfo"]


@dataclass(frozen=True)
class IndexInfo:
    """What serves the searches of a `FaissStore`.

    Attributes
    ----------
    factory : str
        ``"Flat"`` while searches are exact.
    trained_on : int
        Number of vectors that the index was trained on; 0 where there is nothing to train.
    nprobe : int or None
        Number of inverted lists that a search looks into.
    ef_search : int or None
        Number of vectors that a graph's search keeps in hand.
    over_fetch : int
        How many times k candidates are compared exactly.
    recall : float or None
        Recall@10 as measured on stored vectors; None for the exact index.
    tombstones : int
        Vectors that were removed but still lie in the index.
    """

    factory: str
    trained_on: int = 0
    nprobe: int | None = None
    ef_search: int | None = None
    over_fetch: int = 1
    recall: float | None = None
    tombstones: int = 0


@dataclass(frozen=True)
class AnnState:
    """What is known of a built index; written into the folder's manifest.

    Attributes
    ----------
    factory : str
    trained_on : int
    built_with : int
        Number of rows when it was built.
    written : int
        Vectors written or removed since it was built.
    measure_at : int
        With so many vectors written or removed its recall is to be measured again.
    nprobe, ef_search, over_fetch, recall
        See `IndexInfo`.
    target : float
        The recall asked for.
    """

    factory: str
    trained_on: int
    built_with: int
    written: int
    measure_at: int
    nprobe: int | None
    ef_search: int | None
    over_fetch: int
    recall: float
    target: float

    @property
    def knobs(self) -> Knobs:
        """What a search may spend."""
        return Knobs(self.nprobe, self.ef_search, self.over_fetch)
