"""What became of one shard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clipretrieval.images.stream import SkippedImage

__all__ = ["PartReport"]


@dataclass(frozen=True)
class PartReport:
    """What became of one shard of a source.

    Attributes
    ----------
    number : int
        Which shard it is, counted from 1.
    path : Path
        The part that holds its vectors.
    images : int
        Vectors in it.
    skipped : tuple of SkippedImage
        Places are counted within the shard.
    was_there : bool
        Whether an earlier run has made it.
    """

    number: int
    path: Path
    images: int
    skipped: tuple[SkippedImage, ...] = ()
    was_there: bool = False
