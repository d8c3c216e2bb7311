"""What merging stores did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clipretrieval._util.repr import short_repr
from clipretrieval._util.timing import MEASURABLE
from clipretrieval.retrieval.reports import LabelConflict

__all__ = ["MergeReport"]


@dataclass(frozen=True, eq=False)
class MergeReport:
    """What one call of `merge_stores` did.

    Attributes
    ----------
    read : tuple of int
        Records of each shard.
    new : int
        Records that were added to the target.
    already_there : int
        Records whose id the target already had, from another shard or from before, and that changed nothing.
    relabelled : int
        Records that took the place of one with another label or vector, under ``on_conflict="last"``.
    n_conflicts : int
        Ids that came under several labels, or with several vectors.
    conflicts : tuple of LabelConflict
        The first 20 of them; ``sources`` are the stores.
    count : int
        Records that the target holds now.
    seconds : float
    """

    read: tuple[int, ...]
    new: int
    already_there: int
    relabelled: int
    n_conflicts: int
    conflicts: tuple[LabelConflict, ...]
    count: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            **vars(self),
            "read": list(self.read),
            "conflicts": [each.to_dict() for each in self.conflicts],
        }

    def __repr__(self) -> str:
        names = ("new", "already_there", "relabelled", "n_conflicts", "count")
        return short_repr(self, shards=len(self.read), **{name: getattr(self, name) for name in names})

    def __str__(self) -> str:
        counts = [(self.new, "new"), (self.already_there, "already there"), (self.relabelled, "relabelled")]
        told = ", ".join(f"{count} {what}" for count, what in counts if count) or "nothing new"
        time = f" in {self.seconds:.2f} s" if self.seconds >= MEASURABLE else ""
        shards = "1 shard" if len(self.read) == 1 else f"{len(self.read)} shards"
        lines = [f"{sum(self.read)} records of {shards}{time}: {told}; {self.count} in all"]
        if self.n_conflicts:
            ids = "1 id" if self.n_conflicts == 1 else f"{self.n_conflicts} ids"
            lines.append(f"{ids} under several labels, or with several vectors:")
            lines += [f"  {told_conflict(each)}" for each in self.conflicts]
            if self.n_conflicts > len(self.conflicts):
                lines.append(f"  … and {self.n_conflicts - len(self.conflicts)} more")
        return "\n".join(lines)


def told_conflict(conflict: LabelConflict) -> str:
    """Return an id and its labels, each with the store that has it."""
    given = zip(conflict.labels, conflict.sources, strict=True)
    return f"{conflict.ids[0]}: " + ", ".join(f"{label!r} in {source}" for label, source in given)
