"""What encoding in parts did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipretrieval._util.repr import short_repr
from clipretrieval._util.timing import MEASURABLE
from clipretrieval.images.stream import SkippedImage
from clipretrieval.vectors.part_report import PartReport

__all__ = ["EncodeReport"]


@dataclass(frozen=True, eq=False)
class EncodeReport:
    """What one call of `encode` did.

    Attributes
    ----------
    parts : tuple of PartReport
        Of each shard that was asked for, in their order.
    seconds : float
    """

    parts: tuple[PartReport, ...]
    seconds: float

    @property
    def paths(self) -> list[Path]:
        """The files, in the order of the source."""
        return [part.path for part in self.parts]

    @property
    def images(self) -> int:
        """Vectors in all of them."""
        return sum(part.images for part in self.parts)

    @property
    def new(self) -> int:
        """Vectors that this call has computed."""
        return sum(part.images for part in self.parts if not part.was_there)

    @property
    def skipped(self) -> list[SkippedImage]:
        """Images that were skipped, by this call or an earlier one."""
        return [image for part in self.parts for image in part.skipped]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "parts": [
                {**vars(part), "path": str(part.path), "skipped": [vars(each) for each in part.skipped]}
                for part in self.parts
            ],
            "images": self.images,
            "new": self.new,
            "seconds": self.seconds,
        }

    def __repr__(self) -> str:
        return short_repr(
            self, parts=len(self.parts), images=self.images, new=self.new, skipped=len(self.skipped)
        )

    def __str__(self) -> str:
        there = sum(part.was_there for part in self.parts)
        rate = f" ({self.new / self.seconds:.0f} a second)" if self.seconds >= MEASURABLE and self.new else ""
        lines = [
            f"{self.new} images encoded in {self.seconds:.2f} s{rate}, {self.images} in "
            f"{len(self.parts)} {'part' if len(self.parts) == 1 else 'parts'}"
            + (f", {there} of which {'was' if there == 1 else 'were'} there" if there else ""),
            *(f"skipped: {image.reason}" for image in self.skipped),
        ]
        return "\n".join(lines)
