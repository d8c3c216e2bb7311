"""A source of labeled images that was opened with options, and what it was opened from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["OpenedSource"]


@dataclass(frozen=True, eq=False)
class OpenedSource:
    """Images that must have labels, and the place that they have been opened from.

    Attributes
    ----------
    place : str
        The path or URL, by which parts know their source.
    images : image-like
    column : str, optional
        Of a saved dataset: the column of the images that was asked for.
    """

    place: str = field(repr=False)  # URLs may hold secrets
    images: Any
    column: str | None = None
