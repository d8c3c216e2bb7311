"""Tars whose labels are a classifier's classes by their names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipretrieval.cli.kept import labels_by_name
from clipretrieval.images.tars import ImageTars

if TYPE_CHECKING:
    from clipretrieval.cli.kept import Kept

__all__ = ["NamedTars"]


@dataclass(frozen=True, eq=False, repr=False)
class NamedTars(ImageTars):
    """Tars that give labels in the type that a classifier was fitted with: "3" for 3, and the reverse."""

    made: Any = None

    @classmethod
    def of(cls, tars: ImageTars, made: Kept) -> NamedTars:
        """Return tars with the labels of a classifier."""
        return cls(**vars(tars), made=made)

    def samples(self) -> Iterator[tuple[bytes, Any, str]]:
        """Yield what `ImageTars.samples` does, with the classifier's labels."""
        named: dict[Any, Any] = {None: None}
        are_texts = isinstance(self.made.classes_.tolist()[0], str)
        for image, label, where in super().samples():
            if label not in named:
                named[label] = labels_by_name(self.made, [str(label) if are_texts else label])[0]
            yield image, named[label], where
