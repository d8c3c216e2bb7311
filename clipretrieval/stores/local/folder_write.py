"""Writing a store's folder: what is new of a generation, or a complete copy."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from clipretrieval._util.files import (
    TEMPORARY_SUFFIX,
    NotDurableError,
    reason,
    remedy,
    sync_rename,
    write_text,
)
from clipretrieval.errors import InvalidInputError, StoreCorruptedError, StoreError, StoreUnavailableError
from clipretrieval.stores.exact import IndexArray
from clipretrieval.stores.local import segments
from clipretrieval.stores.local.blob import Blob
from clipretrieval.stores.local.folder import STORE_FILE, TEMPORARY_FILE, find_manifest, names_in
from clipretrieval.stores.local.folder_manifest import (
    LAST_GENERATION,
    MANIFEST_NAME,
    FileEntry,
    FolderManifest,
)
from clipretrieval.stores.local.held import HeldRecords
from clipretrieval.stores.local.mapped_file import lies_in, not_yet_in_force, unused
from clipretrieval.stores.local.segment import Columns, Segment, open_segment, write_segment
from clipretrieval.stores.local.writer_lock import LOCK_NAME, WriterLock
from clipretrieval.types import FloatArray, Metric

__all__ = [
    *("clearing", "discard_unlisted", "require_whole", "save_copy", "telling_of_disks"),
    *("write_generation", "write_rows"),
]

# So many rows are copied at a time; and of what is kept beside them first so many, then about so much.
PIECE_ROWS, LEAST_COLUMNS, COLUMN_CHARACTERS = 1 << 13, 1 << 8, 1 << 22


@contextmanager
def telling_of_disks(folder: Path, again: str = "flush") -> Iterator[None]:
    """Say of the system's errors what has become of the store, and what to do `again`."""
    try:
        yield
    except NotDurableError as error:
        raise StoreUnavailableError(
            f"the store in {folder} was written but may not be on the disk: {error.strerror}, and bring back "
            f"what was flushed before. Mend the disk, then {again} again"
        ) from error
    except OSError as error:
        cure = remedy(error, "free some space, or make the folder writable").capitalize()
        raise StoreUnavailableError(
            f"the store in {folder} could not be written: {error}; what was flushed before is intact. "
            f"{cure}, then {again} again"
        ) from error


def write_rows(
    folder: Path, generation: int, held: HeldRecords, rows: IndexArray, dim: int, metric: Metric
) -> list[Segment]:
    """Write some rows into new segments of a generation, and return these, mapped.

    Raises
    ------
    OSError
        If they cannot be written.
    """
    parts: list[Segment] = []
    start, most = 0, max(1, min(segments.MOST_ROWS, segments.MOST_BYTES // (4 * dim)))
    for columns in _columns_of_segments(held, rows, most):
        some = rows[start : start + len(columns.ids)]
        path = unused(folder, f"segment-{generation}", ".bin")
        entry = write_segment(path, _pieces(held, some), dim, columns)
        part = open_segment(folder, entry, dim, metric)
        part.trust()
        parts.append(part)
        start += len(some)
    return parts


def _columns_of_segments(held: HeldRecords, rows: IndexArray, most: int) -> Iterator[Columns]:
    """Go through what is kept beside rows, as much at a time as a segment of `most` rows may hold."""
    kept: list[Columns] = []
    count = size = 0
    for piece in _columns(held, rows):
        start, ends = 0, np.cumsum(_text_sizes(piece))
        while start < len(ends):
            before = int(ends[start - 1]) if start else 0
            stop = int(np.searchsorted(ends, before + segments.MOST_CHARACTERS - size, side="right"))
            stop = max(min(stop, start + most - count), start if count else start + 1)
            if stop > start:
                kept.append(piece.part(start, stop))
                count, size = count + stop - start, size + int(ends[stop - 1]) - before
            if stop < len(ends) or count == most:
                yield Columns.joined(kept)
                kept, count, size = [], 0, 0
            start = stop
    if kept:
        yield Columns.joined(kept)


def _columns(held: HeldRecords, rows: IndexArray) -> Iterator[Columns]:
    """Go through what is kept beside rows, in pieces of some megabytes."""
    start, count = 0, LEAST_COLUMNS
    while start < len(rows):
        piece = held.columns(rows[start : start + count])
        yield piece
        start += count
        more = sum(_text_sizes(piece)) < COLUMN_CHARACTERS
        count = min(2 * count, PIECE_ROWS) if more else max(1, count // 2)


def _text_sizes(columns: Columns) -> list[int]:
    return [len(name) + len(text) for name, text in zip(columns.ids, columns.texts, strict=True)]


def _pieces(held: HeldRecords, rows: IndexArray) -> Iterator[FloatArray]:
    for start in range(0, len(rows), PIECE_ROWS):
        yield held.vectors(rows[start : start + PIECE_ROWS])


def write_generation(
    folder: Path,
    new: FolderManifest,
    held: HeldRecords,
    blobs: Mapping[str, Blob],
    parts: Mapping[str, Blob],
    previous: FolderManifest | None,
    spoiled: Collection[str] = (),
) -> FolderManifest:
    """Write what is new of blobs and parts, and put a generation in force; the caller holds the lock.

    Parameters
    ----------
    folder : Path
    new : FolderManifest
        Without blobs and parts.
    held : HeldRecords
        What `new` names, all of it in files of the folder; see `HeldRecords.filed`.
    blobs, parts : mapping of str to Blob
    previous : FolderManifest or None
        The generation in force. Blobs and parts that are the same in it stay where they are.
    spoiled : collection of str
        Its files of these that are not as they were written: those do not stay.

    Raises
    ------
    StoreCorruptedError
        If the folder could not be opened again: a file that `new` names is not there, or its number too high.
    OSError
        If it cannot be written.
    """
    generation, kept = new.generation, ({}, {}) if previous is None else (previous.blobs, previous.parts)
    with not_yet_in_force():
        written = {
            name: _written(blob, folder / f"blob-{name}-{generation}.bin", kept[0].get(name), spoiled)
            for name, blob in blobs.items()
        }
        long = {
            key: _written(part, folder / f"part-{generation}-{place}.json", kept[1].get(key), spoiled)
            for place, (key, part) in enumerate(parts.items())
        }
    named = [(part.entry.name, part.size) for part in held.segments.parts]
    for name, size in [*named, *((entry.name, entry.size) for entry in new.files.values())]:
        if not lies_in(folder, name, size):
            raise StoreCorruptedError(
                f"{folder / name} is missing, or was cut off, and {folder} could not be opened again without "
                "it, so nothing was written. Put it back, or save(path) elsewhere: this store still holds all"
            )
    if generation > LAST_GENERATION:  # which nobody has reached by flushing
        raise StoreCorruptedError(
            f"the manifest in {folder} has the last number that there can be, so that none can come after; "
            "save(path) keeps all elsewhere"
        )
    manifest = replace(new, blobs=written, parts=long)
    write_text(folder / MANIFEST_NAME, manifest.to_json(), follow=False)
    return manifest


def discard_unlisted(folder: Path, kept: Collection[str] = ()) -> None:
    """Remove files that are not in force, nor `kept`; the caller holds the writer's lock."""
    manifest = find_manifest(folder)
    if manifest is None:
        return
    listed = {*manifest.names, *kept}
    for name in names_in(folder):
        if name not in listed and (STORE_FILE.fullmatch(name) or TEMPORARY_FILE.fullmatch(name)):
            with suppress(PermissionError):  # Windows removes nothing that a reader has mapped
                (folder / name).unlink(missing_ok=True)


@contextmanager
def clearing(folder: Path, kept: Callable[[], Collection[str]] = tuple) -> Iterator[None]:
    """Remove at the end of a block, however it ends, what is not in force, nor `kept` as things are then.

    Where either generation may be the one that a power cut leaves, the files of both stay.
    """
    try:
        yield
    except NotDurableError:
        raise
    except BaseException:
        with suppress(OSError, StoreError):
            discard_unlisted(folder, kept())
        raise
    with suppress(OSError, StoreError):  # what is left over goes with the next generation
        discard_unlisted(folder, kept())


def save_copy(folder: Path, fill: Callable[[Path, FolderManifest | None], object]) -> None:
    """Write a copy into a new folder, an empty one, or one whose store it replaces.

    Parameters
    ----------
    folder : Path
    fill : callable
        Takes (folder, manifest in force or None) and writes the copy as the next generation there.

    Raises
    ------
    InvalidInputError
        If the folder holds something else.
    StoreLockedError
        If a writer has the store there open.
    StoreUnavailableError
        If it cannot be written; what was there before is intact.
    """
    current = find_manifest(folder)
    try:
        if current is None and not (folder.is_dir() and os.listdir(folder)):
            _save_new(folder, fill)
            return
    except NotDurableError as error:
        raise StoreUnavailableError(
            f"the copy in {folder} was written but may not be on the disk: {error.strerror}. Mend the disk, "
            "then save again"
        ) from error
    except OSError as error:
        raise StoreUnavailableError(f"the copy in {folder} could not be written: {reason(error)}") from error
    lock = WriterLock(folder)
    lock.acquire()
    try:
        held = find_manifest(folder)
        with telling_of_disks(folder), clearing(folder):
            # Nobody has verified the blobs and parts that lie there, so none is taken over.
            fill(folder, None if held is None else replace(held, blobs={}, parts={}))
    finally:
        lock.release()


def require_whole(folder: Path, held: HeldRecords) -> None:
    """Refuse what could not be opened again, before the generation in force is replaced by it.

    Raises
    ------
    StoreCorruptedError
    """
    count, rows = len(held.table), held.rows
    whole = not count if rows is None else rows.is_whole(count)
    if not whole or len(held.table.metadata_texts) != count:
        raise StoreCorruptedError(
            f"the vectors, the index and the {count} records in memory do not go together, so nothing was "
            f"written into {folder}; what was flushed before is intact. Open the store anew"
        )


def _save_new(folder: Path, fill: Callable[[Path, FolderManifest | None], object]) -> None:
    """Write the copy beside `folder`, then give it its name."""
    folder = Path(os.path.realpath(folder))  # a link stays, and what it points to is replaced
    if _is_current(folder):  # putting another in its place would leave this process in a folder that is gone
        raise InvalidInputError(
            f"{folder} is the current folder, which the copy cannot replace; name a folder in it, say 'store'"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    temporary.mkdir()
    lock = WriterLock(temporary)  # tells others that this copy is not abandoned
    try:
        lock.acquire()
        with not_yet_in_force():
            fill(temporary, None)
        if folder.exists():
            temporary.chmod(stat.S_IMODE(folder.stat().st_mode))
        if os.name == "nt":  # where a folder with an open file cannot be renamed
            lock.release()
        if os.name == "nt" and folder.exists():  # Windows renames over no folder, not even an empty one
            folder.rmdir()
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        lock.release()
    sync_rename(folder)


def _is_current(folder: Path) -> bool:
    try:
        return folder.samefile(Path.cwd())
    except OSError:  # one of the two is not there
        return False


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes have left of copies into `folder`: those that nobody holds."""
    unfinished = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{16}}{re.escape(TEMPORARY_SUFFIX)}")
    for name in filter(unfinished.fullmatch, names_in(folder.parent)):
        # Without a lock file it may have been made just now, to be locked next.
        if not (folder.parent / name / LOCK_NAME).exists():
            continue
        lock = WriterLock(folder.parent / name)
        try:
            lock.acquire()
        except StoreError:
            continue
        shutil.rmtree(folder.parent / name, ignore_errors=True)
        lock.release()


def _written(blob: Blob, path: Path, held: FileEntry | None, spoiled: Collection[str]) -> FileEntry:
    """Write a blob, unless a file of the generation in force holds it already."""
    there = held is not None and blob.lies_in(path.parent, held)
    if held is not None and there and (blob.damage or held.name not in spoiled):
        return held
    return blob.write_file(path)
