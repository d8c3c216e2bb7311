"""Vectors in a table of Arrow's: Parquet, Feather, Arrow files, and Hugging Face's datasets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clipretrieval.errors import DimensionMismatchError, InvalidInputError
from clipretrieval.types import FloatArray
from clipretrieval.vectors.arrow_content import ArrowContent, arrow, naming_file
from clipretrieval.vectors.column_names import ColumnNames
from clipretrieval.vectors.part_manifest import METADATA, SOURCE, PartManifest
from clipretrieval.vectors.vector_block import VectorBlock

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ArrowReader"]

_SOURCES = (SOURCE, "image_path")
_HUGGING_FACE = b"huggingface"
"""Under which key of a schema Hugging Face keeps what its columns mean."""


class ArrowReader:
    """Reads vectors, and what stands beside them, from columns of a table.

    Parameters
    ----------
    content : ArrowContent
    names : ColumnNames

    Raises
    ------
    InvalidInputError
        If a column is missing, or none is of vectors.
    """

    def __init__(self, content: ArrowContent, names: ColumnNames) -> None:
        schema, where = content.schema, content.name
        listed = list(schema.names)
        if len(set(listed)) < len(listed):
            raise InvalidInputError(f"{where} has two columns of one name: {', '.join(map(repr, listed))}")
        self._content = content
        possible = [each.name for each in schema if _is_of_vectors(_stored(schema, each.name))]
        likely = [name for name in possible if arrow().types.is_floating(_stored(schema, name).value_type)]
        types = ", ".join(str(each.type) for each in schema)
        self._vectors = names.find_vectors(listed, possible, likely, where, types)
        if self._vectors not in possible:
            kind = schema.field(self._vectors).type
            raise InvalidInputError(
                f"the column {self._vectors!r} of {where} is of the type {kind}; vectors are lists of "
                f"numbers. Its columns of such: {', '.join(map(repr, possible)) or 'none'}"
            )
        self._labels = names.find_labels(listed, where)
        self._ids = names.find_ids(listed, where)
        self._sources = next((name for name in _SOURCES if name in listed), None)
        self._metadata = METADATA if METADATA in listed else None
        self.manifest = PartManifest.read(schema.metadata, where)
        if self.manifest is None:
            self._metadata = None  # whose column of that name may hold anything
        self.dim = self._find_dim()
        if not self.dim:
            raise InvalidInputError(f"the vectors of {where} have no dimensions: its lists are empty")
        if self.manifest is not None and self.manifest.dim != self.dim:
            raise DimensionMismatchError(
                f"{where} says that its vectors have {self.manifest.dim} dimensions, and they have "
                f"{self.dim}; write it again"
            )

    @property
    def name(self) -> str:
        """The file's path, or what else errors call it."""
        return self._content.name

    @property
    def count(self) -> int | None:
        """Number of vectors, where it is known beforehand."""
        return self._content.count

    @property
    def class_to_idx(self) -> Mapping[str, int]:
        """The names of the classes, where Hugging Face's description of the labels has some."""
        found = (self._content.schema.metadata or {}).get(_HUGGING_FACE)
        try:
            feature = json.loads(found)["info"]["features"][self._labels] if found else {}
            names = feature["names"] if feature.get("_type") == "ClassLabel" else []
            return {str(name): number for number, name in enumerate(names)}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    @property
    def has_labels(self) -> bool:
        """Whether there is a column of labels."""
        return self._labels is not None

    @property
    def label_type(self) -> str | None:
        """Of the labels; None where there are none, or of another type."""
        if self._labels is None:
            return None
        types, kind = arrow().types, self._content.schema.field(self._labels).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        tests = {"bool": types.is_boolean, "int": types.is_integer, "float": types.is_floating}
        text = types.is_string(kind) or types.is_large_string(kind)
        return "str" if text else next((name for name, test in tests.items() if test(kind)), None)

    def blocks(self) -> Iterator[VectorBlock]:
        """Read the table from its beginning; see `VectorReader`."""
        optional = (self._ids, self._labels, self._sources, self._metadata)
        columns = list(dict.fromkeys([self._vectors, *(name for name in optional if name is not None)]))
        start = 0
        for batch in self._content.batches(columns):
            if not len(batch):
                continue
            with naming_file(self.name, "a table of vectors"):
                yield VectorBlock(
                    vectors=self._vectors_of(batch.column(self._vectors), start),
                    ids=self._values(batch, self._ids),
                    labels=self._labels_of(batch),
                    sources=self._texts(batch, self._sources),
                    metadata=self._dicts(batch, start),
                )
            start += len(batch)

    def _find_dim(self) -> int:
        kind = _stored(self._content.schema, self._vectors)
        if arrow().types.is_fixed_size_list(kind):
            return int(kind.list_size)
        first = next((batch for batch in self._content.batches([self._vectors]) if len(batch)), None)
        if first is None:
            raise InvalidInputError(f"{self.name} holds no vectors")
        return int(self._vectors_of(first.column(self._vectors).slice(0, 1), 0).shape[1])

    def _vectors_of(self, column: Any, start: int) -> FloatArray:
        """Return a column of lists as an array, shape (n, dim)."""
        column = getattr(column, "storage", column)  # of a tensor of one dimension
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            raise InvalidInputError(f"row {start + row} of {self.name} has no vector; leave it out")
        dim = getattr(self, "dim", None)
        if not arrow().types.is_fixed_size_list(column.type):
            lengths = column.value_lengths().to_numpy(zero_copy_only=False)
            dim = int(lengths[0]) if dim is None else dim
            if (lengths != dim).any():
                row = int(np.flatnonzero(lengths != dim)[0])
                raise DimensionMismatchError(
                    f"row {start + row} of {self.name} has {lengths[row]} dimensions, and the first row {dim}"
                )
        else:
            dim = int(column.type.list_size)
        values: npt.NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused as such
            return np.ascontiguousarray(values.astype(np.float32)).reshape(len(column), int(dim or 0))

    @staticmethod
    def _values(batch: pa.RecordBatch, name: str | None) -> list[Any] | None:
        return None if name is None else batch.column(name).to_pylist()

    def _labels_of(self, batch: pa.RecordBatch) -> list[Any] | None:
        """Return labels; Hugging Face has -1 for what has none."""
        values = self._values(batch, self._labels)
        if values is None or not self.class_to_idx:
            return values
        return [None if each == -1 else each for each in values]

    def _texts(self, batch: pa.RecordBatch, name: str | None) -> Sequence[str | None] | None:
        values = self._values(batch, name)
        return None if values is None else [each if isinstance(each, str) else None for each in values]

    def _dicts(self, batch: pa.RecordBatch, start: int) -> list[dict[str, Any]] | None:
        values = self._values(batch, self._metadata)
        if values is None:
            return None
        found = []
        for row, text in enumerate(values):
            try:
                each = {} if text is None else json.loads(text)
            except (ValueError, TypeError, RecursionError):
                each = None
            if not isinstance(each, dict):
                raise InvalidInputError(
                    f"row {start + row} of {self.name} has metadata that are no JSON object; write it again"
                )
            found.append(each)
        return found


def _stored(schema: pa.Schema, name: str) -> pa.DataType:
    """Return a column's type, or what a tensor of one dimension is stored as."""
    kind = schema.field(name).type
    return kind.storage_type if len(getattr(kind, "shape", None) or ()) == 1 else kind


def _is_of_vectors(kind: pa.DataType) -> bool:
    types = arrow().types
    listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(listed and (types.is_floating(kind.value_type) or types.is_integer(kind.value_type)))
