"""Writing a store's folder: what is new of a generation, or a complete copy."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import stat
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from clipretrieval._util.files import (
    TEMPORARY_SUFFIX,
    NotDurableError,
    reason,
    remedy,
    replacing,
    sync_rename,
    write_text,
)
from clipretrieval.errors import InvalidInputError, StoreCorruptedError, StoreError, StoreUnavailableError
from clipretrieval.stores.exact import IndexArray
from clipretrieval.stores.local.blob import Blob
from clipretrieval.stores.local.folder import STORE_FILE, TEMPORARY_FILE, BitArray, find_manifest, names_in
from clipretrieval.stores.local.folder_manifest import MANIFEST_NAME, MOST_LISTED, FileEntry, FolderManifest
from clipretrieval.stores.local.held import Held
from clipretrieval.stores.local.segment import Segment, open_segment, write_segment
from clipretrieval.stores.local.writer_lock import LOCK_NAME, WriterLock
from clipretrieval.types import FloatArray, Metric

__all__ = [
    *("FileDump", "Generation", "discard_unlisted", "require_whole", "save_copy", "telling_of_disks"),
    *("write_generation", "write_rows"),
]

# Pieces, of up to 4 MB, that are written but not yet in the checksum.
MOST_PENDING = 16
# The most bytes of vectors, and rows, of a segment, and the rows that are copied at a time.
LARGEST_SEGMENT, MOST_ROWS, PIECE_ROWS = 1 << 28, 1 << 18, 1 << 13


@dataclass(frozen=True)
class FileDump:
    """A file of an index that is to be written.

    Attributes
    ----------
    suffix : str
    dump : callable or bytes
        Writes the content, piece by piece, through the function that it is given; or the content.
    """

    suffix: str
    dump: Callable[[Callable[[bytes], object]], None] | bytes


@dataclass(frozen=True, eq=False)
class Generation:
    """What is to be in force next.

    Attributes
    ----------
    kind : str
    metric : Metric
    dim : int or None
    held : Held
        All of it in segments that lie in the folder.
    user : str
        The user's manifest as JSON text.
    blobs : mapping of str to Blob
    index : str
        The kind of index that was asked for.
    files : mapping of str to FileDump or FileEntry
        Those of the index: to be written, or there already.
    state : dict, optional
        What is known of the index; JSON values.
    covered : int
        So many rows the index is over.
    """

    kind: str
    metric: Metric
    dim: int | None
    held: Held
    user: str
    blobs: Mapping[str, Blob]
    index: str = "Flat"
    files: Mapping[str, FileDump | FileEntry] = field(default_factory=dict)
    state: dict[str, Any] | None = None
    covered: int = 0


@contextmanager
def telling_of_disks(folder: Path) -> Iterator[None]:
    """Say of the system's errors what has become of the store."""
    try:
        yield
    except NotDurableError as error:
        raise StoreUnavailableError(
            f"the store in {folder} was written but may not be on the disk: {error.strerror}, and bring back "
            "what was flushed before. Mend the disk, then flush again"
        ) from error
    except OSError as error:
        raise StoreUnavailableError(
            f"the store in {folder} could not be written: {error}; what was flushed before is intact. "
            f"{remedy(error, 'free some space or mend the folder').capitalize()}, then flush again"
        ) from error


@contextmanager
def not_yet_in_force() -> Iterator[None]:
    """Make of a file that may not be durable one that could not be written: no manifest names it yet."""
    try:
        yield
    except NotDurableError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0)) from error


def write_rows(
    folder: Path, generation: int, held: Held, rows: IndexArray, dim: int, metric: Metric
) -> list[Segment]:
    """Write some rows into new segments of a generation, and return these, mapped.

    Raises
    ------
    OSError
        If they cannot be written.
    """
    parts: list[Segment] = []
    most = max(1, min(MOST_ROWS, LARGEST_SEGMENT // (4 * dim)))
    number = 0
    with not_yet_in_force():
        for start in range(0, len(rows), most):
            some = rows[start : start + most]
            while (path := folder / f"segment-{generation}-{number}.bin").exists():
                number += 1
            entry = write_segment(path, _pieces(held, some), dim, held.columns(some))
            part = open_segment(folder, entry, dim, metric)
            part.trust()
            parts.append(part)
    return parts


def _pieces(held: Held, rows: IndexArray) -> Iterator[FloatArray]:
    for start in range(0, len(rows), PIECE_ROWS):
        yield held.vectors(rows[start : start + PIECE_ROWS])


def write_generation(
    folder: Path,
    generation: int,
    new: Generation,
    previous: FolderManifest | None,
    removed: BitArray | None,
    spoiled: Collection[str] = (),
) -> FolderManifest:
    """Write what is new beside the segments, and put it in force; the caller holds the writer's lock.

    Blobs that are the same in `previous`, the generation in force, stay where they are, unless their file is
    among those `spoiled`, which are not as they were written.

    Parameters
    ----------
    removed : ndarray of bool, optional
        What the file of removed rows holds, if there is one.
    """
    kept = {} if previous is None else previous.blobs
    with not_yet_in_force():
        blobs = {
            name: _write_blob(folder, name, generation, blob, kept.get(name), spoiled)
            for name, blob in new.blobs.items()
        }
        files = {
            role: _write_file(folder / f"ann-{generation}{file.suffix}", file)
            if isinstance(file, FileDump)
            else file
            for role, file in new.files.items()
        }
        segments = new.held.segments
        gone = np.flatnonzero(segments.removed) if len(segments) < segments.total else np.empty(0, dtype=int)
        listed: tuple[int, ...] = ()
        if len(gone) <= MOST_LISTED:
            listed = tuple(gone.tolist())
        elif removed is not None and previous is not None and _is_same(removed, segments.removed):
            files["removed"] = previous.files["removed"]
        else:
            bits = np.packbits(segments.removed, bitorder="little").tobytes()
            files["removed"] = _write_file(folder / f"removed-{generation}.bin", FileDump(".bin", bits))
    manifest = FolderManifest(
        kind=new.kind,
        generation=generation,
        metric=new.metric,
        dim=new.dim,
        index=new.index,
        count=len(new.held),
        files=files,
        user=new.user,
        state=new.state,
        blobs=blobs,
        segments=tuple(part.entry for part in segments.parts),
        removed=listed,
        covered=new.covered,
    )
    write_text(folder / MANIFEST_NAME, manifest.to_json(), follow=False)
    return manifest


def _is_same(kept: BitArray, removed: BitArray) -> bool:
    return bool(np.array_equal(kept, removed[: len(kept)])) and not removed[len(kept) :].any()


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
        try:
            with telling_of_disks(folder):
                # Nobody has verified the blobs that lie there, so none is taken over.
                fill(folder, None if held is None else replace(held, blobs={}))
        finally:
            with suppress(OSError, StoreError):
                discard_unlisted(folder)
    finally:
        lock.release()


def require_whole(folder: Path, held: Held) -> None:
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


def _write_file(path: Path, content: FileDump) -> FileEntry:
    """Write a file while a thread computes its checksum, for which hashlib frees the interpreter."""
    digest, size = hashlib.sha256(), 0
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1) as pool:
        mode_of = path.with_name(MANIFEST_NAME)  # a private store stays private
        with replacing(path, follow=False, mode_of=mode_of) as temporary, open(temporary, "wb") as file:

            def write(piece: bytes) -> None:
                nonlocal size
                pending.append(pool.submit(digest.update, piece))
                size += file.write(piece)
                if len(pending) > MOST_PENDING:
                    pending.popleft().result()

            if isinstance(content.dump, bytes):
                write(content.dump)
            else:
                content.dump(write)
            file.flush()
        for each in pending:
            each.result()
    return FileEntry(path.name, size, digest.hexdigest())


def _write_blob(
    folder: Path,
    name: str,
    generation: int,
    blob: Blob,
    held: FileEntry | None,
    spoiled: Collection[str],
) -> FileEntry:
    """Write a blob, unless the generation in force holds it already."""
    if held is not None and blob.lies_in(folder, held) and (blob.damage or held.name not in spoiled):
        return held
    return blob.write_file(folder / f"blob-{name}-{generation}.bin")
