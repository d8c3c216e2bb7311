"""The result of applying decisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clipretrieval._util.repr import short_repr
from clipretrieval._util.text import readable
from clipretrieval.auditing.image_decision import ImageDecision

__all__ = ["AppliedDecisions"]


@dataclass(frozen=True, eq=False)
class AppliedDecisions:
    """What was done, or would be.

    Attributes
    ----------
    relabeled, forgotten : tuple of ImageDecision
        Applied to the classifier.
    moved : tuple of (str, str)
        Files: from where to where.
    unchanged : tuple of ImageDecision
        Which had been applied before.
    skipped : tuple of (ImageDecision, str)
        Which were not applied, or not completely, and why.
    kept : int
        How many images are kept as they are.
    dry_run : bool
        Whether nothing was changed.
    """

    relabeled: tuple[ImageDecision, ...] = ()
    forgotten: tuple[ImageDecision, ...] = ()
    moved: tuple[tuple[str, str], ...] = ()
    unchanged: tuple[ImageDecision, ...] = ()
    skipped: tuple[tuple[ImageDecision, str], ...] = ()
    kept: int = 0
    dry_run: bool = False

    def lines(self) -> list[str]:
        """Return a line for each image and file that was, or would be, changed."""
        would = "would " if self.dry_run else ""
        relabel, forget, move = (
            ("relabel", "forget", "move") if self.dry_run else ("relabeled", "forgot", "moved")
        )
        return [
            *(
                f"{would}{relabel} {readable(each)}: {readable(each.before)} → {readable(each.label)}"
                for each in self.relabeled
            ),
            *(f"{would}{forget} {readable(each)} ({readable(each.before)})" for each in self.forgotten),
            *(f"{would}{move} {readable(source)} → {readable(target)}" for source, target in self.moved),
        ]

    def __str__(self) -> str:
        counts = [
            (len(self.relabeled), "relabeled"),
            (len(self.forgotten), "forgotten"),
            (self.kept, "kept"),
            (len(self.unchanged), "as decided already"),
            (len(self.skipped), "skipped"),
        ]
        told = [f"{count:,} {what}" for count, what in counts if count]
        if self.moved:
            told.append(f"{len(self.moved):,} {'file' if len(self.moved) == 1 else 'files'} moved")
        return f"{'would be: ' if self.dry_run else ''}{', '.join(told) or 'nothing to do'}"

    def __repr__(self) -> str:
        facts: dict[str, Any] = {
            name: len(value) for name, value in vars(self).items() if isinstance(value, tuple)
        }
        return short_repr(self, **facts, kept=self.kept, dry_run=self.dry_run)
