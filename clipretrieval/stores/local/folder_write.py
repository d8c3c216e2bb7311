"""Writing a store's folder: a generation, or a complete copy."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import stat
from collections import deque
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from clipretrieval._util.files import (
    TEMPORARY_SUFFIX,
    NotDurableError,
    file_sha256,
    reason,
    remedy,
    replacing,
    sync_rename,
    write_text,
)
from clipretrieval.errors import InvalidInputError, StoreCorruptedError, StoreError, StoreUnavailableError
from clipretrieval.stores.local.blob import Blob
from clipretrieval.stores.local.folder import (
    GENERATION_FILE,
    TEMPORARY_FILE,
    GenerationFile,
    Layout,
    Snapshot,
    find_manifest,
    names_in,
)
from clipretrieval.stores.local.folder_manifest import MANIFEST_NAME, FileEntry, FolderManifest
from clipretrieval.stores.local.table import RecordTable, write_records
from clipretrieval.stores.local.writer_lock import LOCK_NAME, WriterLock

__all__ = ["discard_unlisted", "save_copy", "write_generation"]

# Pieces, of up to 4 MB, that are written but not yet in the checksum.
MOST_PENDING = 16


def write_generation(
    folder: Path,
    layout: Layout,
    snapshot: Snapshot,
    previous: FolderManifest | None,
    spoiled: Collection[str] = (),
) -> FolderManifest:
    """Write a snapshot as the next generation and put it in force; the caller holds the writer's lock.

    Blobs that are the same in `previous`, the generation in force, stay where they are, unless their file is
    among those `spoiled`, which are not as they were written.

    Raises
    ------
    StoreCorruptedError
        If the snapshot is not whole, so that the folder could not be opened.
    StoreUnavailableError
        If it cannot be written. The generation before stays in force, unless the message says otherwise.
    """
    try:
        return _write_generation(folder, layout, snapshot, previous, spoiled)
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


def _write_generation(
    folder: Path,
    layout: Layout,
    snapshot: Snapshot,
    previous: FolderManifest | None,
    spoiled: Collection[str] = (),
) -> FolderManifest:
    """Do as `write_generation`, which tells what the errors of the system mean."""
    _require_whole(folder, snapshot)
    try:
        manifest = _write_files(folder, layout, snapshot, previous, spoiled)
        write_text(folder / MANIFEST_NAME, manifest.to_json(), follow=False)
    except NotDurableError:
        raise  # either generation may be the one that a power cut leaves: keep the files of both
    except BaseException:
        with suppress(OSError, StoreError):
            discard_unlisted(folder)
        raise
    with suppress(OSError):  # what is left over goes with the next generation
        discard_unlisted(folder)
    return manifest


def _write_files(
    folder: Path,
    layout: Layout,
    snapshot: Snapshot,
    previous: FolderManifest | None,
    spoiled: Collection[str],
) -> FolderManifest:
    """Write the files of the next generation, and return the manifest that will put it in force."""
    generation = _next_generation(folder, previous)
    kept = {} if previous is None else previous.blobs
    manifest = FolderManifest(
        kind=layout.kind,
        generation=generation,
        metric=snapshot.metric,
        dim=snapshot.dim,
        index=snapshot.index,
        count=len(snapshot.table),
        files={},
        user=snapshot.manifest,
        state=snapshot.state,
    )
    try:
        blobs = {
            name: _write_blob(folder, name, generation, blob, kept.get(name), spoiled)
            for name, blob in snapshot.blobs.items()
        }
        manifest = replace(manifest, blobs=blobs)
        if snapshot.rows is None or not len(snapshot.table):
            return manifest
        vectors = GenerationFile(layout.prefix, layout.suffix, snapshot.rows.dump)
        with ThreadPoolExecutor(1) as pool:  # the disk need not wait for SQLite, nor SQLite for the disk
            records = pool.submit(_write_records, folder / f"records-{generation}.sqlite", snapshot.table)
            files = {
                role: _write_file(folder / f"{file.prefix}-{generation}{file.suffix}", file)
                for role, file in {"vectors": vectors, **snapshot.files}.items()
            }
            files["records"] = records.result()
    except NotDurableError as error:  # nothing is in force before the manifest is
        raise OSError(error.errno, os.strerror(error.errno or 0)) from error
    return replace(manifest, files=files)


def discard_unlisted(folder: Path) -> None:
    """Remove files of generations not in force; the caller holds the writer's lock."""
    manifest = find_manifest(folder)
    if manifest is None:
        return
    listed = {entry.name for entry in (*manifest.files.values(), *manifest.blobs.values())}
    for name in names_in(folder):
        if name not in listed and (GENERATION_FILE.fullmatch(name) or TEMPORARY_FILE.fullmatch(name)):
            (folder / name).unlink(missing_ok=True)


def save_copy(folder: Path, layout: Layout, snapshot: Snapshot) -> None:
    """Write a snapshot into a new folder, an empty one, or one whose store it replaces.

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
            _save_new(folder, layout, snapshot)
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
        # Nobody has verified the blobs that lie there, so none is taken over.
        write_generation(folder, layout, snapshot, None if held is None else replace(held, blobs={}))
    finally:
        lock.release()


def _require_whole(folder: Path, snapshot: Snapshot) -> None:
    """Refuse what `read_generation` would refuse, before the generation in force is replaced by it."""
    count, rows = len(snapshot.table), snapshot.rows
    whole = not count if rows is None else rows.is_whole(count)
    if not whole or len(snapshot.table.metadata_texts) != count:
        raise StoreCorruptedError(
            f"the vectors, the index and the {count} records in memory do not go together, so nothing was "
            f"written into {folder}; what was flushed before is intact. Open the store anew"
        )


def _save_new(folder: Path, layout: Layout, snapshot: Snapshot) -> None:
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
        try:
            _write_generation(temporary, layout, snapshot, None)
        except NotDurableError as error:  # it has not its name yet
            raise OSError(error.errno, os.strerror(error.errno or 0)) from error
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


def _write_file(path: Path, content: GenerationFile) -> FileEntry:
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

            content.dump(write)
            file.flush()
        for each in pending:
            each.result()
    return FileEntry(path.name, size, digest.hexdigest())


def _write_records(path: Path, table: RecordTable) -> FileEntry:
    with replacing(path, follow=False, mode_of=path.with_name(MANIFEST_NAME)) as temporary:
        write_records(temporary, table)
        return FileEntry(path.name, temporary.stat().st_size, file_sha256(temporary))


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


def _next_generation(folder: Path, previous: FolderManifest | None) -> int:
    """Return a number above every one in use, those of a half-finished generation included."""
    numbers = [int(found[1]) for found in map(GENERATION_FILE.fullmatch, names_in(folder)) if found]
    return 1 + max([*numbers, previous.generation if previous else -1])
