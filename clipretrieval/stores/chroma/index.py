"""The index that Chroma writes beside a folder's database, so that opening need not build it.

::

    chroma.sqlite3                       the log, which holds every vector, and all else
    1f0c…/                               the index, of what the log held when it was last written
    clipretrieval.1f0c….writing          there while Chroma may be writing the index

Chroma takes each request into its log, then into the index in memory, and writes the index over the one
before once `sync_threshold` records have come since. A process killed meanwhile leaves it torn, which Chroma
does not notice: it answers wrongly, or ends the process. A file therefore marks each request in which the
index may be written, with the times of its files as they were; where those have changed, the index is
discarded, and Chroma builds it from its log, which is kept whole for that. At rest the threshold is one that
is never reached, so that no other program writes the index. It is lowered while Chroma loads the index, and
so for this process alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from clipretrieval._util.files import read_file, sync_folder, write_text
from clipretrieval._util.warning import warn_caller
from clipretrieval.errors import StoreCorruptedError, StoreError, StoreUnavailableError
from clipretrieval.stores.chroma.errors import translated
from clipretrieval.stores.chroma.internals import DATABASE_NAME, OwnClient

__all__ = ["NEVER", "ChromaIndex"]

NEVER = 10**9
"""The `sync_threshold` at rest."""
RECORDS = 1000
"""The one while a store is open, Chroma's default. Each request reads so much of the log again."""
FEW = 100
"""A smaller index is built at each opening: Chroma does not write a vector that replaces the only one."""

IDS = "index_metadata.pickle"
HEADER, VECTORS, LENGTHS, LINKS = "header.bin", "data_level0.bin", "length.bin", "link_lists.bin"
# Version, offset, capacity, elements, bytes of an element.
HEADER_FIELDS = struct.Struct("=iQQQQ")
LONGEST_MARK = 4096

_SEGMENT = "SELECT id FROM segments WHERE collection = ? AND scope = 'VECTOR'"
_TAKEN_IN = "SELECT seq_id FROM max_seq_id WHERE segment_id = ?"
_BEYOND = "SELECT COUNT(*) FROM embeddings_queue WHERE seq_id > ? AND topic LIKE '%/' || ?"
_CUT = (
    "SELECT 1 FROM embeddings JOIN segments ON segments.id = embeddings.segment_id "
    "WHERE segments.collection = ? AND embeddings.seq_id NOT IN (SELECT seq_id FROM embeddings_queue) LIMIT 1"
)
_DELETE = "DELETE FROM max_seq_id WHERE segment_id = ?"
_PURGING = "SELECT config_json_str FROM embeddings_queue_config"
_NO_PURGING = (
    "INSERT OR REPLACE INTO embeddings_queue_config (id, config_json_str) VALUES (1, "
    '\'{"automatically_purge":false,"_type":"EmbeddingsQueueConfigurationInternal"}\')'
)


class ChromaIndex:
    """The index of one collection in a folder that no other store or program uses.

    Parameters
    ----------
    client : OwnClient
    folder : Path
    collection : chromadb Collection
        From which nothing has been read, and to which nothing has been written, through the client.
    where : str
        The collection in words, for messages.

    Raises
    ------
    StoreCorruptedError
        If the index is damaged and the log was cut, from which it would be built.
    """

    def __init__(self, client: OwnClient, folder: Path, collection: Any, where: str) -> None:
        self._client, self._folder, self._collection, self._where = client, folder, collection, where
        self._id = str(collection.id)
        with self._database() as database:
            self._segment = str(database.execute(_SEGMENT, (self._id,)).fetchone()[0])
            # It names a folder, which may be deleted.
            if not re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", self._segment):
                raise StoreCorruptedError(
                    f"{where} is damaged: it names its index {self._segment!r}. Restore it from a copy, or "
                    "fill a new one"
                )
            taken_in = (database.execute(_TAKEN_IN, (self._segment,)).fetchone() or (0,))[0]
            (beyond,) = database.execute(_BEYOND, (taken_in, self._id)).fetchone()
            purging = database.execute(_PURGING).fetchone()
            if purging is None or json.loads(purging[0])["automatically_purge"] is not False:
                database.execute(_NO_PURGING)
        self._files = folder / self._segment
        self._mark = folder / f"clipretrieval.{self._segment}.writing"
        # How many more records Chroma takes in before it writes the index.
        self._due = RECORDS
        self._loaded = self._failed = self._few = False
        self._load(taken_in, beyond)

    @contextmanager
    def changing(self, records: int) -> Iterator[None]:
        """Surround a request that changes so many records, in which Chroma may write the index.

        Raises
        ------
        StoreUnavailableError
            If the folder cannot be written to.
        """
        if records >= self._due and not self._mark.exists():
            self._set_mark(self._times())
        self._due -= records
        before = self._times()
        try:
            with self._lowered():
                yield
        except Exception:
            # Chroma's index in memory may now lack what its log has, and it may write that yet.
            self._failed = True
            raise
        if self._times() != before:
            self._written()
        if not (self._failed or self._few):
            self._mark.unlink(missing_ok=True)

    def _load(self, taken_in: int, beyond: int) -> None:
        """Have Chroma load the index and take in what the log has beyond it; discard it if it is damaged."""
        discarded = not self._is_whole(taken_in)
        if discarded:
            self._discard()
        if self._collection.get_model().dimension is None:
            return
        try:
            self._read(RECORDS if discarded else beyond)
        except StoreError as error:
            if discarded or isinstance(error, StoreUnavailableError):
                raise
            self._discard()
            self._read(RECORDS)

    def _read(self, records: int) -> None:
        with self.changing(records), translated(self._where):
            self._collection.count()

    def _written(self) -> None:
        """Put what Chroma has written on the device, and see whether it may be loaded one day."""
        self._due = RECORDS
        for path in self._files.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        sync_folder(self._files)
        with translated(self._where):
            self._few = self._collection.count() < FEW
        if self._few:
            self._set_mark(None)
        self._failed = self._failed or not self._has_its_size()

    @contextmanager
    def _lowered(self) -> Iterator[None]:
        """Lower the threshold where the block has Chroma load the index."""
        if self._loaded:
            yield
            return
        self._set_threshold(RECORDS)
        try:
            yield
        finally:
            self._set_threshold(NEVER)
        self._loaded = True

    def _set_threshold(self, records: int) -> None:
        with translated(self._where):
            self._client.set_sync_threshold(self._collection, records)

    def _is_whole(self, taken_in: int) -> bool:
        """Tell whether the index is as it was when Chroma had last written it, as far as can be seen."""
        times = self._times()
        if self._marked() != times:
            return False
        return self._has_its_size() if times else not taken_in

    def _marked(self) -> dict[str, list[int]] | None:
        """Return the times that the mark tells, those of now if there is none, or None if it is settled."""
        try:
            times: dict[str, list[int]] | None = json.loads(read_file(self._mark, LONGEST_MARK))
        except FileNotFoundError:
            return self._times()
        except ValueError:
            return {}
        except OSError as error:
            raise self._unavailable(error) from error
        return times

    def _has_its_size(self) -> bool:
        """Tell whether the files are as long as the first of them says, at least."""
        sizes = {name: size for name, (_, size) in self._times().items()}
        try:
            with (self._files / HEADER).open("rb") as file:
                *_, elements, size = HEADER_FIELDS.unpack(file.read(HEADER_FIELDS.size))
            with (self._files / IDS).open("rb") as file:
                file.seek(-1, os.SEEK_END)
                ends = file.read() == b"."
        except (OSError, struct.error):
            return False
        least = {VECTORS: elements * size, LENGTHS: 4 * elements, LINKS: 4 * elements}
        return ends and all(sizes.get(name, -1) >= bound for name, bound in least.items())

    def _times(self) -> dict[str, list[int]]:
        """Return when each file was last written, in nanoseconds, and its size; none before the first."""
        times: dict[str, list[int]] = {}
        for name in (IDS, HEADER, VECTORS, LENGTHS, LINKS):
            try:
                found = (self._files / name).stat()
            except FileNotFoundError:
                if name == IDS:  # the others are there from the start, without content
                    break
                continue
            times[name] = [found.st_mtime_ns, found.st_size]
        return times

    def _discard(self) -> None:
        """Delete the index, whose content Chroma then takes from its log; say so unless it was settled."""
        settled = self._marked() is None
        with self._database() as database:
            if database.execute(_CUT, (self._id,)).fetchone() is not None:
                if settled:  # by this or an earlier store, not by a kill
                    return
                raise StoreCorruptedError(
                    f"the index of {self._where} is damaged, and the log that it would be built from was "
                    "cut, as `chroma vacuum` does. Restore the folder from a copy, or fill a new one"
                )
            self._set_mark(None)
            database.execute(_DELETE, (self._segment,))
        try:
            if self._files.exists():
                shutil.rmtree(self._files)
            self._mark.unlink()
        except OSError as error:
            raise self._unavailable(error) from error
        self._failed = False
        if not settled:
            warn_caller(
                f"the index of {self._where} is damaged, as by a process that was killed while it wrote it. "
                "Nothing is lost: it is built anew from Chroma's log, which may take a while"
            )

    def _set_mark(self, times: dict[str, list[int]] | None) -> None:
        """Say on the device that the index must not be loaded if its files changed since, or at all."""
        try:
            write_text(self._mark, json.dumps(times), follow=False)
        except OSError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: OSError) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"{self._where} cannot be written: {error}. Check its permissions and the free space"
        )

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """Open Chroma's database and commit at the end; no request of this process may be under way."""
        address = f"{(self._folder / DATABASE_NAME).absolute().as_uri()}?mode=rw"
        with translated(self._where), closing(sqlite3.connect(address, uri=True)) as database, database:
            database.execute("PRAGMA trusted_schema = OFF")
            yield database
