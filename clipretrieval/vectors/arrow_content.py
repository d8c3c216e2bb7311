"""Tables of Arrow's, in files or in memory, read a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipretrieval._util.dependencies import require
from clipretrieval._util.files import open_file
from clipretrieval._util.foreign import is_instance
from clipretrieval.errors import InvalidInputError
from clipretrieval.vectors.vector_block import ROWS

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ArrowContent", "arrow", "is_arrow_table", "naming_file", "open_arrow_file", "open_arrow_table"]

_PARQUET, _FILE, _OLD_FEATHER = b"PAR1", b"ARROW1", b"FEA1"
_BUFFER = 2**20
"""Bytes of a column that are read together; without, all that a row group has of it would be."""


@dataclass(frozen=True, eq=False)
class ArrowContent:
    """A table that is read a batch at a time.

    Attributes
    ----------
    name : str
        What errors call it.
    schema : pyarrow.Schema
    count : int or None
        Number of rows, where it is known.
    batches : callable
        Given the names of columns, reads these from the beginning: an iterator of ``pyarrow.RecordBatch``.
    """

    name: str
    schema: pa.Schema
    count: int | None
    batches: Callable[[Sequence[str]], Iterator[pa.RecordBatch]]


def arrow(module: str = "pyarrow") -> Any:
    """Import pyarrow, or a part of it.

    Raises
    ------
    MissingDependencyError
        With the extra's name.
    """
    return require(
        module, "reading and writing files of vectors", 'run: pip install "clipretrieval[parquet]"'
    )


@contextmanager
def naming_file(name: str, what: str) -> Iterator[None]:
    """Have an error of pyarrow's, or of the system's, say which file cannot be read as what.

    Raises
    ------
    InvalidInputError
    """
    pa = arrow()
    try:
        yield
    except InvalidInputError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInputError(
            f"{name} cannot be read as {what}: {reason:.300}. Write it again, or leave it out"
        ) from error


def is_arrow_table(value: object) -> bool:
    """Tell whether something is a table of Arrow's, or a dataset of Hugging Face's, in memory."""
    kinds = (("pyarrow", "Table"), ("pyarrow", "RecordBatch"), ("datasets", "Dataset"))
    return any(is_instance(value, *kind) for kind in kinds)


def open_arrow_table(table: Any) -> ArrowContent:
    """Open what `is_arrow_table` recognizes."""
    name = f"the {type(table).__name__}"
    if is_instance(table, "datasets", "Dataset"):
        rows = table.with_format("arrow")

        def dataset_batches(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
            for part in rows.select_columns(list(columns)).iter(batch_size=ROWS):
                yield from part.to_batches()

        return ArrowContent(name, table.features.arrow_schema, len(table), dataset_batches)

    def batches(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        chosen = table.select(list(columns))
        for start in range(0, len(chosen), ROWS):
            part = chosen.slice(start, ROWS)
            yield from part.to_batches() if hasattr(part, "to_batches") else [part]

    return ArrowContent(name, table.schema, table.num_rows, batches)


def open_arrow_file(path: Path) -> ArrowContent:
    """Open a Parquet, Feather or Arrow file, which is told by its first bytes.

    Raises
    ------
    InvalidInputError
        If it is none of these, or damaged.
    MissingDependencyError
        If pyarrow is not installed.
    """
    name = repr(str(path))
    try:
        with open_file(path) as file:
            head = file.read(8)
    except OSError as error:
        raise InvalidInputError(f"{name} cannot be read: {error.strerror or error}") from error
    if head.startswith(_PARQUET):
        return _open_parquet(path, name)
    if head.startswith(_OLD_FEATHER):
        raise InvalidInputError(f"{name} is of Feather's first version; write it anew, as Parquet")
    return _open_ipc(path, name, is_file=head.startswith(_FILE))


def _open_parquet(path: Path, name: str) -> ArrowContent:
    parquet = arrow("pyarrow.parquet")

    def batches(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with naming_file(name, "Parquet"), open_file(path) as file:
            opened = parquet.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
            yield from opened.iter_batches(batch_size=ROWS, columns=list(columns))

    with naming_file(name, "Parquet"), open_file(path) as file:
        opened = parquet.ParquetFile(file)
        schema, added = opened.schema_arrow, opened.metadata.metadata or {}
        schema = schema.with_metadata({**added, **(schema.metadata or {})})
        return ArrowContent(name, schema, opened.metadata.num_rows, batches)


def _open_ipc(path: Path, name: str, *, is_file: bool) -> ArrowContent:
    """Open an Arrow file, which Feather's second version is, or a stream, which Hugging Face writes."""
    ipc = arrow("pyarrow.ipc")
    what = "an Arrow file" if is_file else "Parquet, Feather, Arrow or a NumPy file"

    def batches(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with naming_file(name, what), open_file(path) as file:
            opened = ipc.open_file(file) if is_file else ipc.open_stream(file)
            whole = map(opened.get_batch, range(opened.num_record_batches)) if is_file else iter(opened)
            for batch in whole:
                chosen = batch.select(list(columns))
                for start in range(0, len(chosen), ROWS):
                    yield chosen.slice(start, ROWS)

    with naming_file(name, what), open_file(path) as file:
        opened = ipc.open_file(file) if is_file else ipc.open_stream(file)
        return ArrowContent(name, opened.schema, None, batches)
