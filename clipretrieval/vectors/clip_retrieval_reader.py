"""Vectors in the folders that clip-retrieval writes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

from clipretrieval.errors import InvalidInputError
from clipretrieval.vectors.arrow_content import ArrowContent, open_arrow_file
from clipretrieval.vectors.column_names import ColumnNames
from clipretrieval.vectors.numpy_reader import NumpyReader
from clipretrieval.vectors.vector_block import VectorBlock
from clipretrieval.vectors.vector_reader import VectorReader

__all__ = ["ClipRetrievalReader", "clip_retrieval_readers", "is_clip_retrieval_folder"]

_VECTORS, _METADATA = "img_emb", "metadata"
_PATHS = "image_path"


class ClipRetrievalReader(VectorReader):
    """Reads one pair of files: ``img_emb/img_emb_N.npy`` and ``metadata/metadata_N.parquet``.

    Where the metadata have no labels and none are asked for, the name of the folder of each image path is its
    label.

    Parameters
    ----------
    vectors, metadata : Path
    names : ColumnNames
        Of the metadata.

    Raises
    ------
    InvalidInputError
        If a file is missing or damaged, they differ in length, or there is nothing to take for labels.
    """

    def __init__(self, vectors: Path, metadata: Path, names: ColumnNames) -> None:
        self._array = NumpyReader(vectors, ColumnNames())
        self._content: ArrowContent = open_arrow_file(metadata)
        listed, where = list(self._content.schema.names), self._content.name
        self._labels, self._ids = names.find_labels(listed, where), names.find_ids(listed, where)
        self._paths = _PATHS if _PATHS in listed else None
        if self._content.count != self._array.count:
            raise InvalidInputError(
                f"{self._array.name} has {self._array.count} vectors and {where} {self._content.count} rows; "
                "run clip-retrieval again for this part"
            )

    @property
    def name(self) -> str:
        """The path of the vectors."""
        return self._array.name

    @property
    def dim(self) -> int:
        """The vectors' dimension."""
        return self._array.dim

    @property
    def count(self) -> int | None:
        """Number of vectors."""
        return self._array.count

    def blocks(self) -> Iterator[VectorBlock]:
        """Read the files from their beginning; see `VectorReader`."""
        columns = {name: None for name in (self._labels, self._ids, self._paths) if name is not None}
        rows = self._rows(list(columns))
        for block in self._array.blocks():
            beside = list(islice(rows, len(block)))
            paths = None
            if self._paths:
                found = [row[self._paths] for row in beside]
                paths = [each if isinstance(each, str) else None for each in found]
            labels = [row[self._labels] for row in beside] if self._labels else None
            if labels is None and paths is not None:
                labels = [PurePath(path).parent.name or None if path else None for path in paths]
            yield VectorBlock(
                vectors=block.vectors,
                ids=[row[self._ids] for row in beside] if self._ids else None,
                labels=labels,
                sources=paths,
            )

    def _rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        for batch in self._content.batches(columns):
            yield from batch.to_pylist()


def is_clip_retrieval_folder(folder: Path) -> bool:
    """Tell whether a folder is one that clip-retrieval has written."""
    return (folder / _VECTORS).is_dir()


def clip_retrieval_readers(folder: Path, names: ColumnNames) -> list[ClipRetrievalReader]:
    """Open all parts of a folder, in the order of their numbers.

    Raises
    ------
    InvalidInputError
        If there are none, or as from `ClipRetrievalReader`.
    """
    found = {
        int(match[1]): (path, match[1])
        for path in (folder / _VECTORS).iterdir()
        if (match := re.fullmatch(rf"{_VECTORS}_(\d+)\.npy", path.name)) is not None
    }
    if not found:
        raise InvalidInputError(f"{str(folder / _VECTORS)!r} holds no {_VECTORS}_N.npy")
    readers = []
    for _, (path, number) in sorted(found.items()):
        beside = folder / _METADATA / f"{_METADATA}_{number}.parquet"
        if not beside.exists():
            raise InvalidInputError(
                f"{str(path)!r} has no {str(beside)!r} beside it, which names its images; run clip-retrieval "
                "again for this part"
            )
        readers.append(ClipRetrievalReader(path, beside, names))
    return readers
