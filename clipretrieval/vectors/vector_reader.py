"""What reads one file of vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from clipretrieval.vectors.part_manifest import PartManifest
from clipretrieval.vectors.vector_block import VectorBlock

__all__ = ["VectorReader"]


class VectorReader(Protocol):
    """Reads the vectors of one file, a block at a time.

    Attributes
    ----------
    name : str
        The file's path, or what else errors call it.
    dim : int
    count : int or None
        Number of vectors, where it is known beforehand.
    manifest : PartManifest or None
        What it says of what made them.
    class_to_idx : mapping of str to int
        The names of its classes, where its labels are their numbers.
    has_labels : bool
    label_type : {"bool", "int", "float", "str"} or None
        Of its labels, where it is known beforehand.
    """

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    @property
    def count(self) -> int | None: ...

    @property
    def manifest(self) -> PartManifest | None:
        return None

    @property
    def class_to_idx(self) -> Mapping[str, int]:
        return {}

    @property
    def has_labels(self) -> bool:
        return True

    @property
    def label_type(self) -> str | None:
        return None

    def blocks(self) -> Iterator[VectorBlock]:
        """Read the file from its beginning.

        Raises
        ------
        InvalidInputError
            If it is damaged, or has anything else where vectors, ids or labels should be.
        """
        ...
