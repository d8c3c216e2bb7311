"""One Parquet file of vectors, written so that it is there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from clipretrieval._util.files import NotDurableError, remedy, replacing
from clipretrieval.errors import StoreUnavailableError
from clipretrieval.images.stream import SkippedImage
from clipretrieval.types import FloatArray
from clipretrieval.vectors.arrow_content import arrow
from clipretrieval.vectors.part_manifest import ID, KEY, LABEL, METADATA, SOURCE, VECTOR, PartManifest

__all__ = ["PartWriter", "read_skipped", "write_part"]

_ROWS = 8192
"""Of a row group."""
_SKIPPED = b"clipretrieval.skipped"
"""Under which key the file's metadata has the images that were skipped."""


class PartWriter:
    """Writes vectors, and what stands beside them, into a Parquet file, some at a time.

    Parameters
    ----------
    path : Path
    manifest : PartManifest
    kind : {"bool", "int", "float", "str"} or None
        The labels' type; None where there are none.
    """

    def __init__(self, path: Path, manifest: PartManifest, kind: str | None) -> None:
        pa, parquet = arrow(), arrow("pyarrow.parquet")
        types = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "str": pa.string()}
        columns = [
            (ID, pa.string()),
            (LABEL, pa.null() if kind is None else types[kind]),
            (SOURCE, pa.string()),
            (METADATA, pa.string()),
            (VECTOR, pa.list_(pa.field("element", pa.float32(), nullable=False), manifest.dim)),
        ]
        self._schema = pa.schema(columns, metadata={KEY: manifest.to_bytes()})
        self._pa, self._waiting, self._rows = pa, list[Any](), 0
        # Dictionaries and statistics of floats cost time and find nothing.
        self._writer = parquet.ParquetWriter(
            path, self._schema, use_dictionary=[LABEL], write_statistics=[ID, LABEL]
        )
        self._path = path

    def write(
        self,
        ids: Sequence[str],
        vectors: FloatArray,
        labels: Sequence[Any],
        metadata: Sequence[Mapping[str, Any]],
    ) -> None:
        """Write some records.

        Parameters
        ----------
        ids : sequence of str, length n
        vectors : ndarray of float32, shape (n, dim)
        labels : sequence, length n
            Of the type that was fitted.
        metadata : sequence of mappings of JSON values, length n
            With the images' paths, as ``"source"``.
        """
        pa, schema = self._pa, self._schema
        flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1), type=pa.float32())
        sources = [_path(each.get(SOURCE)) for each in metadata]
        rest = [
            {key: value for key, value in each.items() if key != SOURCE or source is None}
            for each, source in zip(metadata, sources, strict=True)
        ]
        arrays = [
            pa.array(list(ids), type=pa.string()),
            pa.array(list(labels), type=schema.field(LABEL).type),
            pa.array(sources, type=pa.string()),
            pa.array([json.dumps(each) if each else None for each in rest], type=pa.string()),
            pa.FixedSizeListArray.from_arrays(flat, type=schema.field(VECTOR).type),
        ]
        self._waiting.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
        self._rows += len(ids)
        if self._rows >= _ROWS:
            self._write_group()

    def note_skipped(self, skipped: Sequence[SkippedImage]) -> None:
        """Say in the file which images were skipped."""
        if skipped:
            content = json.dumps([[each.index, each.source, each.reason] for each in skipped])
            self._writer.add_key_value_metadata({_SKIPPED: content.encode()})

    def close(self) -> None:
        """Write what is left, and the file's end."""
        if self._rows:
            self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        rows = self._pa.Table.from_batches(self._waiting, schema=self._schema)
        try:
            self._writer.write_table(rows)
        except OSError as error:
            raise _unwritten(self._path, error) from error
        self._waiting, self._rows = [], 0


def _path(value: Any) -> str | None:
    """Return an image's path, None where a store's owner keeps something else under that name.

    Bytes that are not valid Unicode are written as escapes: Arrow takes nothing else.
    """
    return value.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, str) else None


def read_skipped(metadata: Mapping[bytes, bytes] | None) -> tuple[SkippedImage, ...]:
    """Return what `PartWriter.note_skipped` has said; nothing where that cannot be read."""
    try:
        listed = json.loads((metadata or {}).get(_SKIPPED, b"[]"))
        return tuple(
            SkippedImage(int(index), None if source is None else str(source), str(reason))
            for index, source, reason in listed
        )
    except (ValueError, TypeError, RecursionError):
        return ()


@contextmanager
def write_part(path: Path, manifest: PartManifest, kind: str | None) -> Iterator[PartWriter]:
    """Write a file that takes its name, and the place of another, when the block has ended well.

    Raises
    ------
    StoreUnavailableError
        If it cannot be written, or the disk is full.
    MissingDependencyError
        If pyarrow is not installed.
    """
    arrow()
    failure: BaseException | None = None  # of the block, which has its own reasons
    try:
        with replacing(path) as temporary:
            writer = PartWriter(temporary, manifest, kind)
            try:
                yield writer
            except BaseException as error:
                failure = error
                raise
            writer.close()
    except NotDurableError as error:
        raise StoreUnavailableError(
            f"{str(path)!r} was written but may not be on the disk: {error.strerror}. Mend the disk and "
            "write it again"
        ) from error
    except OSError as error:
        if error is failure:
            raise
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: OSError) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"{str(path)!r} cannot be written: {error.strerror or error}; "
        + remedy(error, "check that its folder exists and may be written to, and the free space")
    )
