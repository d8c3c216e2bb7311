"""What fitting and forgetting report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clipretrieval._util.repr import short_repr
from clipretrieval._util.text import counted
from clipretrieval._util.timing import MEASURABLE, Timing
from clipretrieval.images.stream import SkippedImage
from clipretrieval.types import AnyArray

__all__ = ["FitReport", "ForgetReport", "LabelConflict"]

_PARTS = ("decode", "encode", "store", "flush")


@dataclass(frozen=True)
class LabelConflict:
    """One image that was given under several labels in one call: the last one counts.

    Attributes
    ----------
    ids : tuple of str
        The image's id, once for each label.
    labels : tuple
        The labels, of the type that was fitted, in the order in which each was last given; the last ten.
    sources : tuple of (str or None)
        The file's path under each label, where it came from one.
    """

    ids: tuple[str, ...]
    labels: tuple[Any, ...]
    sources: tuple[str | None, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {"ids": list(self.ids), "labels": list(self.labels), "sources": list(self.sources)}

    def __str__(self) -> str:
        given = zip(self.ids, self.labels, self.sources, strict=True)
        return " and ".join(f"{source or name} as {label!r}" for name, label, source in given)


@dataclass(frozen=True, eq=False)
class FitReport:
    """What one call of ``fit`` or ``partial_fit`` did.

    An image is stored once, however often it comes. All are counted as if each came in a call of its own,
    so that `new`, `already_there`, `relabelled` and the skipped ones add up to `images`.

    Attributes
    ----------
    new : int
        Images that were added to the store.
    already_there : int
        Images that the store already held with the same label, repeats within the call among them; left as
        they were.
    relabelled : int
        Images that it held with another label, also one that was given earlier in the call, and holds with
        the new one now.
    skipped : tuple of SkippedImage
        Images that could not be decoded, or whose vector is of no use, under ``on_error="skip"``.
    timing : Timing
        Seconds and images of ``"decode"``, ``"encode"``, ``"store"`` and ``"flush"``. Storing runs beside
        the rest, so that the parts may add up to more than `seconds`.
    seconds : float
        What the clock showed.
    n_conflicts : int
        Images that were given under several labels in this call.
    conflicts : tuple of LabelConflict
        The first 20 of them.
    """

    new: int
    already_there: int
    relabelled: int
    skipped: tuple[SkippedImage, ...]
    timing: Timing
    seconds: float
    n_conflicts: int = 0
    conflicts: tuple[LabelConflict, ...] = ()

    @property
    def images(self) -> int:
        """All images that were read, skipped ones included."""
        return self.new + self.already_there + self.relabelled + len(self.skipped)

    @property
    def rate(self) -> float:
        """Images a second, skipped ones included; 0.0 where no time passed."""
        return self.images / self.seconds if self.seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "images": self.images,
            "new": self.new,
            "already_there": self.already_there,
            "relabelled": self.relabelled,
            "skipped": [vars(item) for item in self.skipped],
            "n_conflicts": self.n_conflicts,
            "conflicts": [item.to_dict() for item in self.conflicts],
            "seconds": self.seconds,
            "rate": self.rate,
            "parts": {part: self.timing.seconds.get(part, 0.0) for part in _PARTS},
        }

    def __repr__(self) -> str:
        counts = {name: getattr(self, name) for name in ("new", "already_there", "relabelled")}
        return short_repr(self, **counts, skipped=len(self.skipped), seconds=self.seconds)

    def __str__(self) -> str:
        counts = [(self.new, "new"), (self.already_there, "already there"), (self.relabelled, "relabelled")]
        told = [f"{count} {what}" for count, what in [*counts, (len(self.skipped), "skipped")] if count]
        rate = f" ({self.rate:.0f} a second)" if self.seconds >= MEASURABLE else ""
        images = counted(self.images, "image")
        lines = [
            f"{images} in {self.seconds:.2f} s{rate}: {', '.join(told) or 'nothing new'}",
            ", ".join(f"{part} {self.timing.seconds.get(part, 0.0):.1f} s" for part in _PARTS),
            *(f"skipped: {item.reason}" for item in self.skipped),
        ]
        if self.n_conflicts:
            lines.append(f"{counted(self.n_conflicts, 'image')} given under several labels; the last counts:")
            lines += [f"  {conflict}" for conflict in self.conflicts]
            if self.n_conflicts > len(self.conflicts):
                lines.append(f"  … and {self.n_conflicts - len(self.conflicts)} more")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class ForgetReport:
    """What ``forget`` removed, after it has made certain of it.

    Each id was asked for again and not found, and each forgotten vector was searched for again: no
    forgotten id was among its neighbors.

    Attributes
    ----------
    ids : tuple of str
        What is gone.
    classes : ndarray
        Classes that have no image left, of the type that was fitted.
    searched : int
        Searches made for forgotten vectors.
    remaining : int
        Images that the store still holds.
    """

    ids: tuple[str, ...]
    classes: AnyArray
    searched: int
    remaining: int

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        facts = {"searched": self.searched, "remaining": self.remaining}
        return short_repr(self, ids=len(self.ids), classes=self.classes.tolist(), **facts)

    def __str__(self) -> str:
        text = f"{counted(len(self.ids), 'image')} forgotten, {self.remaining:,} left"
        if len(self.classes):
            text += f"; no image is left of {', '.join(map(repr, self.classes.tolist()))}"
        return f"{text}; none of them was found again by its id, nor in {counted(self.searched, 'search')}"
