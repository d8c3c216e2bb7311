"""What is known of an approximate index."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any

from clipretrieval._util.checks import check_int, check_number, shown
from clipretrieval.errors import InvalidInputError
from clipretrieval.stores.faiss.factory import check_form
from clipretrieval.stores.faiss.index import Knobs, Limits

__all__ = ["AnnState", "IndexInfo"]

# Far beyond what `tune` chooses: a search asks for so many times k candidates.
MOST_EFFORT = 1 << 16


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
    outliers : int
        Vectors that the index, trained before they came, does not represent; each search compares them all.
    measured_on : int or None
        Number of vectors that were stored when the recall was measured; None where it is not known.
    """

    factory: str
    trained_on: int = 0
    nprobe: int | None = None
    ef_search: int | None = None
    over_fetch: int = 1
    recall: float | None = None
    tombstones: int = 0
    outliers: int = 0
    measured_on: int | None = None


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
    measured_on : int or None
        See `IndexInfo`.
    outliers : int
        Number of rows that are not in the index.
    code_limit, list_limit : float or None
        What may be lost of a vector that is added; see `Limits`. None where no version has looked for
        outliers yet.
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
    measured_on: int | None = None
    outliers: int = 0
    code_limit: float | None = None
    list_limit: float | None = None

    @classmethod
    def from_values(cls, found: Any) -> AnnState:
        """Return the state that a manifest holds.

        Raises
        ------
        InvalidInputError
            If it holds anything else, or what no index can have.
        """
        names = {each.name for each in fields(cls)}
        later = {each.name: each.default for each in fields(cls) if each.default is not MISSING}
        if not isinstance(found, dict) or found.keys() not in (names, names - later.keys()):
            raise InvalidInputError(
                f"what is known of an index must have {sorted(names)}; got {shown(found)}"
            )
        found = {**later, **found}
        if check_form(found["factory"]) != found["factory"]:
            raise InvalidInputError(f"{shown(found['factory'])} is no factory string that a store keeps")

        def count(name: str) -> int:
            return check_int(found[name], name, least=0)

        def effort(name: str) -> int | None:
            return None if found[name] is None else check_int(found[name], name, most=MOST_EFFORT)

        def limit(name: str) -> float | None:
            return None if found[name] is None else check_number(found[name], name, least=0)

        return cls(
            factory=found["factory"],
            trained_on=count("trained_on"),
            built_with=count("built_with"),
            written=count("written"),
            measure_at=count("measure_at"),
            nprobe=effort("nprobe"),
            ef_search=effort("ef_search"),
            over_fetch=check_int(found["over_fetch"], "over_fetch", most=MOST_EFFORT),
            recall=check_number(found["recall"], "recall", least=0, most=1),
            target=check_number(found["target"], "target", above=0, most=1),
            measured_on=None if found["measured_on"] is None else count("measured_on"),
            outliers=count("outliers"),
            code_limit=limit("code_limit"),
            list_limit=limit("list_limit"),
        )

    def info(self, tombstones: int, outliers: int) -> IndexInfo:
        """Return what is told of an index that has this state."""
        names = ("factory", "trained_on", "nprobe", "ef_search", "over_fetch", "recall", "measured_on")
        known = {name: getattr(self, name) for name in names}
        return IndexInfo(**known, tombstones=tombstones, outliers=outliers)

    @property
    def limits(self) -> Limits | None:
        """What may be lost of a vector that is added."""
        if self.code_limit is None or self.list_limit is None:
            return None
        return Limits(self.code_limit, self.list_limit)

    @property
    def knobs(self) -> Knobs:
        """What a search may spend."""
        return Knobs(self.nprobe, self.ef_search, self.over_fetch)
