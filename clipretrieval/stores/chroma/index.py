"""The index that Chroma writes beside a folder's database, so that opening need not build it.

::

    chroma.sqlite3                       the log, which holds every vector, and all else
    1f0c…/                               the index, of what the log held when it was last written
    clipretrieval.1f0c….writing          its list of ids, while Chroma may be writing the index

Chroma takes each request into its log, then into the index in memory, and writes the index over the one
before once `sync_threshold` records have come since. A process killed meanwhile leaves it torn, which Chroma
does not notice: it answers wrongly, or ends the process. So the list of ids, without which Chroma builds the
index from its log, lies elsewhere during each request in which the index may be written. It goes back where
none was: all files of an index have the list's time. The log is kept whole, and at rest the threshold is one
that is never reached, so that no other program writes the index; it is lowered while Chroma loads the index,
and so for this process alone.
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

from clipretrieval._util.files import sync_folder
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
"""A smaller index is built at each opening, as Chroma fails to write a vector that replaces the only one."""

IDS = "index_metadata.pickle"
FILES = HEADER, VECTORS, LENGTHS, LINKS = "header.bin", "data_level0.bin", "length.bin", "link_lists.bin"
# Of hnswlib, with how many elements there are, and the bytes of each, as the fourth and fifth.
HEADER_FIELDS = struct.Struct("=iQQQQQQiIQQQdQ")
SETTLED = 0
"""The time of a list of ids that Chroma is not to have again."""
SECONDS_BACK = 10

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
        self._ids = self._files / IDS
        self._mark = folder / f"clipretrieval.{self._segment}.writing"
        # How many more records Chroma takes in before it writes the index.
        self._due = RECORDS
        self._loaded = self._failed = self._few = False
        self._load(taken_in, beyond)

    @contextmanager
    def changing(self, records: int, *, loading: bool = False) -> Iterator[None]:
        """Surround a request that changes so many records, in which Chroma may write the index.

        Raises
        ------
        StoreUnavailableError
            If the folder cannot be written to.
        """
        before = _time(self._ids)
        if (records >= self._due or self._failed) and _time(self._mark) is None:
            with self._reported():
                self._set_aside(loading)
        self._due -= records
        try:
            with self._lowered():
                yield
            with self._reported():
                if _time(self._ids) not in (None, before):
                    self._written()
                elif not (self._failed or self._few):
                    self._put_back()
        except Exception:
            # Chroma's index in memory may now lack what its log has, and it may write that yet.
            self._failed = True
            raise

    def _load(self, taken_in: int, beyond: int) -> None:
        """Have Chroma load the index and take in what the log has beyond it; discard it if it is damaged."""
        with self._reported():
            discarded = not self._is_whole(taken_in)
            if discarded:
                self._discard()
            else:
                self._put_back()
        if self._collection.get_model().dimension is None:
            return
        try:
            self._read(RECORDS if discarded else beyond)
        except StoreError as error:
            # "Error creating hnsw segment reader", or writer
            if discarded or isinstance(error, StoreUnavailableError) or "hnsw segment" not in str(error):
                raise
            with self._reported():
                self._discard()
            self._read(RECORDS)

    def _read(self, records: int) -> None:
        with self.changing(records, loading=True), translated(self._where):
            self._collection.count()

    def _set_aside(self, loading: bool) -> None:
        """Take the list of ids from Chroma, or a copy of it where Chroma has yet to read it."""
        if not self._ids.exists():
            self._mark.touch()
        elif loading:
            shutil.copy2(self._ids, self._mark)
        else:
            os.replace(self._ids, self._mark)
            sync_folder(self._files)
        sync_folder(self._folder)

    def _put_back(self) -> None:
        """Give Chroma its list of ids, where it has written none since."""
        if _time(self._mark) is None:
            return
        if self._ids.exists() or not self._mark.stat().st_size:
            self._mark.unlink()
        else:
            os.replace(self._mark, self._ids)

    def _written(self) -> None:
        """Put what Chroma has written on the device, and see whether it may be loaded one day."""
        self._due = RECORDS
        # Earlier than any write to come, however coarse the clock.
        time = self._ids.stat().st_mtime_ns - SECONDS_BACK * 10**9
        for path in self._files.iterdir():
            os.utime(path, ns=(time, time))
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        sync_folder(self._files)
        with translated(self._where):
            self._few = self._collection.count() < FEW
        if self._few:
            self._settle()
        elif self._has_its_size() and not self._failed:
            self._mark.unlink(missing_ok=True)
        else:
            self._failed = True

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
        marked, listed = _time(self._mark), _time(self._ids)
        if marked is None or not self._mark.lstat().st_size:  # no list was set aside
            return not taken_in if listed is None else marked is None and self._has_its_size()
        return {_time(self._files / name) for name in FILES} | {listed or marked} == {marked}

    def _has_its_size(self) -> bool:
        """Tell whether the files are as long as the first of them says, at least."""
        try:
            with (self._files / HEADER).open("rb") as file:
                _, _, _, elements, size, *_ = HEADER_FIELDS.unpack(file.read(HEADER_FIELDS.size))
            with self._ids.open("rb") as file:
                file.seek(max(0, self._ids.stat().st_size - 1))
                ends = file.read() == b"."
            least = {VECTORS: elements * size, LENGTHS: 4 * elements, LINKS: 4 * elements}
            return ends and all((self._files / name).stat().st_size >= least[name] for name in least)
        except (FileNotFoundError, struct.error):
            return False

    def _discard(self) -> None:
        """Delete the index, whose content Chroma then takes from its log; say so unless it was settled."""
        settled = _time(self._mark) == SETTLED
        with self._database() as database:
            if database.execute(_CUT, (self._id,)).fetchone() is not None:
                if settled:  # by a store, not by a kill
                    self._put_back()
                    return
                raise StoreCorruptedError(
                    f"the index of {self._where} is damaged, and the log that it would be built from was "
                    "cut, as `chroma vacuum` does. Restore the folder from a copy, or fill a new one"
                )
            self._settle()
            database.execute(_DELETE, (self._segment,))
        if self._files.exists():
            shutil.rmtree(self._files)
        self._mark.unlink()
        self._failed = False
        if not settled:
            warn_caller(
                f"the index of {self._where} is damaged, as by a process that was killed while it wrote it. "
                "Nothing is lost: it is built anew from Chroma's log, which may take a while"
            )

    def _settle(self) -> None:
        """Keep the list of ids from Chroma for good, so that it builds the index from its log."""
        if self._ids.exists():
            os.replace(self._ids, self._mark)
        else:
            self._mark.touch()
        os.utime(self._mark, ns=(SETTLED, SETTLED))
        sync_folder(self._folder)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Turn the system's errors into one that says what to do."""
        try:
            yield
        except OSError as error:
            raise StoreUnavailableError(
                f"{self._where} cannot be written: {error}. Check its permissions and the free space"
            ) from error

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """Open Chroma's database and commit at the end; no request of this process may be under way."""
        address = f"{(self._folder / DATABASE_NAME).absolute().as_uri()}?mode=rw"
        with translated(self._where), closing(sqlite3.connect(address, uri=True)) as database, database:
            database.execute("PRAGMA trusted_schema = OFF")
            yield database


def _time(path: Path) -> int | None:
    """Return when a file was last written, in nanoseconds since 1970; None if there is none."""
    try:
        return path.lstat().st_mtime_ns
    except FileNotFoundError:
        return None
