"""A store on FAISS: exact or approximate search in memory, kept in a folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from clipretrieval._util.checks import check_bool, check_number, check_path, check_text
from clipretrieval._util.repr import safe_repr
from clipretrieval._util.warning import warn_caller
from clipretrieval.errors import (
    InvalidInputError,
    StoreError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.stores.base import unclonable
from clipretrieval.stores.exact import DoubleArray, IndexArray, Shortlist, unit_rows
from clipretrieval.stores.faiss.approximate import DEFAULT_RECALL, AnnRows
from clipretrieval.stores.faiss.covering import Covering
from clipretrieval.stores.faiss.factory import AUTO, FLAT, WITHIN, check_factory, is_auto, make_index
from clipretrieval.stores.faiss.files import check_index_state, kept_target, read_ann
from clipretrieval.stores.faiss.flat import FlatRows, faiss_alone, shortlist_of
from clipretrieval.stores.faiss.keeper import FolderKeeper, Tidying
from clipretrieval.stores.faiss.memory_budget import check_memory
from clipretrieval.stores.faiss.state import AnnState, IndexInfo
from clipretrieval.stores.local.folder import Kind, Snapshot, find_manifest
from clipretrieval.stores.local.folder_manifest import FolderManifest
from clipretrieval.stores.local.folder_write import require_whole, save_copy
from clipretrieval.stores.local.held import HeldRecords, JoinedRows
from clipretrieval.stores.local.rows import VectorRows
from clipretrieval.stores.local.store import LocalStore
from clipretrieval.stores.local.store_folder import StoreFolder
from clipretrieval.types import FloatArray, Metric

__all__ = ["FaissStore", "IndexInfo"]


Self = TypeVar("Self", bound="FaissStore")


class FaissStore(LocalStore):
    """Vectors in a FAISS index, searched exactly or approximately; in memory or in a folder.

    Whatever the index, the vectors themselves are kept too: `get` returns them, and a search computes with
    them the distances of what the index proposes. An approximate index can miss a neighbor, but every
    distance is the true one.

    With a path, what the folder holds is mapped, and read and verified when it is asked for. Writes belong to
    this store alone until `flush` or `close` write what has changed, in one step, so the folder always opens
    at the last flush. One store at a time may write to a folder, from its first write until it is closed (a
    classifier's `fit` or `partial_fit` holds it while the images are encoded, too); any number may read, and
    `refresh` takes up what the writer has flushed since.

    Threads may search while one writes. Without a path the store can be pickled and copied.

    Parameters
    ----------
    path : str or Path, optional
        The store's folder, made if it is not there. None keeps the store in memory.
    metric : {"l2", "cosine", "ip"} or Metric
        Must be that of the folder. Under ``"cosine"``, vectors are kept normalised beside their norms, and
        `get` returns them to within float32 rounding.
    read_only : bool
        Refuse every write; the folder must hold a store.
    index : str
        ``"Flat"`` searches exactly; any other FAISS factory string, say ``"IVF1024,SQ8"``, ``"HNSW32"`` or
        ``"SQfp16"``, approximately, once there are enough vectors to build it. ``"auto"`` is that of the
        folder; in a new store, exact up to 100,000 vectors and inverted lists beyond, which in a folder a
        flush builds. Opening a folder with another index than it has builds that one at the next write or
        flush.
    recall : float, optional
        The recall@10, in (0, 1], that an approximate index is to reach on the stored vectors. None is that of
        the folder; 0.99 in a new store. Where it cannot be reached a ClipRetrievalWarning says so.
    memory : int or str, optional
        How much memory the store may take, in bytes or as ``"4 GB"``: at least 600 MB, and only with a path
        and ``index="auto"``. The index then has the finest codes that fit, for as many vectors as there are;
        the vectors stay in the folder, where searches compare what it proposes. `index_info` says which it is
        and what recall it reaches; where none fits, a ClipRetrievalWarning says what it would take. Pages of
        files that the system keeps in memory while there is room are not counted. None is that of the folder.
    mmap : bool
        Changes nothing any more, and needs `read_only`: a folder's vectors and index are always mapped, and
        processes share the pages.
    create : bool
        Make the folder where there is no store. False is for one that must be there: a mistyped path is then
        an error, and nothing is made.

    Raises
    ------
    InvalidInputError
        If the path is a file or a folder of something else, or the index is none that FAISS can make.
    UnsupportedOperationError
        If the index cannot serve a store, or a folder that is opened only to read has another.
    FingerprintMismatchError
        If the folder holds another metric.
    StoreCorruptedError
        If the manifest or the list of removed records is damaged or, where it is opened to write, a file of
        records missing or of another size. Other damage is told by whatever reads it, and by `verify`; the
        rest can be read.
    StoreLockedError
        If the store is new, or to have another index, and another writer holds it.
    StoreUnavailableError
        If the folder cannot be read or made, or there is no store where one must be.

    Examples
    --------
    >>> import numpy as np
    >>> rows = np.random.default_rng(0).standard_normal((2000, 16), dtype=np.float32)
    >>> store = FaissStore(index="IVF16,Flat", recall=0.9)
    >>> store.upsert([str(place) for place in range(2000)], rows, list(range(2000)))
    >>> store.index_info.factory, store.index_info.recall >= 0.9
    ('IVF16,Flat', True)
    >>> store.search(rows[:2], k=1).labels.tolist()
    [[0], [1]]
    """

    place_options = ("path",)

    _kind = Kind("FaissStore", check_index_state)
    _kept_by: FolderKeeper | None = None
    # With so many records, pieces could not be written ahead, or the folder not be tidied.
    _unsealed: int | None = None
    _untidied: int | None = None

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        metric: Metric | str = Metric.L2,
        read_only: bool = False,
        index: str = AUTO,
        recall: float | None = None,
        memory: int | str | None = None,
        mmap: bool = False,
        create: bool = True,
    ) -> None:
        read_only = check_bool(read_only, "read_only")
        super().__init__(metric)
        create = check_bool(create, "create")
        if path is None and not create:
            raise InvalidInputError("create=False needs a path; a store in memory starts empty")
        if path is None and read_only:
            raise InvalidInputError("read_only needs a path; a store in memory starts empty")
        place = None if path is None else check_path(path, "path").absolute()
        self._asked_index = check_factory(check_text(index, "index"))
        within = WITHIN.fullmatch(self._asked_index)
        if memory is not None or within is not None:  # `location` says it by the index
            self._asked_index = self._index_within(memory, within, place, read_only)
        self._asked_recall = None if recall is None else check_number(recall, "recall", above=0, most=1)
        self._index, self._recall = self._asked_index, self._asked_recall or DEFAULT_RECALL
        self._mmap = check_bool(mmap, "mmap")
        if self._mmap and not read_only:
            raise InvalidInputError("mmap=True is for reading: give read_only=True too")
        self._folder: StoreFolder | None = None
        if place is None:
            return
        self._folder = StoreFolder(place, self._kind, self._metric, read_only=read_only)
        with self._computing():  # a folder's index may be measured or built anew
            held = self._held
            self._folder.open(self._named(held, 0), held, self._adopt, create=create and not read_only)
            if self._changed:  # already it is to be other than it was read
                self._begin_write()

    def _index_within(
        self, memory: Any, within: re.Match[str] | None, place: Path | None, read_only: bool
    ) -> str:
        if memory is None and within is not None:
            memory = int(within[1])
        elif self._asked_index != AUTO:
            raise InvalidInputError(f"memory= chooses the index; leave index={self._asked_index!r} out")
        size = check_memory(memory)
        if place is None:
            raise InvalidInputError("memory= needs a path; a store in memory holds all its vectors there")
        if read_only and within is None:
            raise InvalidInputError(
                "memory= is for who builds the index; leave it out where the store is read_only"
            )
        return f"{AUTO},{size}"

    @classmethod
    def load(cls, path: str | Path, *, read_only: bool = True, mmap: bool = False) -> FaissStore:
        """Open the store in a folder under the metric and with the index that it holds.

        Parameters
        ----------
        path : str or Path
        read_only : bool
            Refuse every write.
        mmap : bool
            Changes nothing any more.

        Raises
        ------
        StoreCorruptedError
            As for a new store; see there.
        StoreError
            If there is no store or another class of store wrote it.
        """
        folder = check_path(path, "path").absolute()
        manifest = find_manifest(folder)
        if manifest is None:
            raise StoreUnavailableError(f"there is no store in {folder}; check the path")
        return cls(folder, metric=manifest.metric, read_only=read_only, mmap=mmap)

    @classmethod
    def exists_locally(cls, options: Mapping[str, Any]) -> bool:
        """Tell whether a store with these options would only read a folder; see `LocalFilesStore`."""
        path = options.get("path")
        if not isinstance(path, str) or not set(options) <= {"path", "metric", "index", "recall"}:
            return False
        try:
            held = find_manifest(Path(path).absolute())
        except InvalidInputError:  # a folder of something else
            return False
        return held is not None and options.get("index", AUTO) in (AUTO, held.index)

    @property
    def index_info(self) -> IndexInfo:
        """What serves the searches, and the recall that was measured."""
        with self._guard.hold():
            held = self._held
            if held.index is not None:
                info: IndexInfo = held.index.info(held)
                return info
            return held.rows.info if isinstance(held.rows, AnnRows) else IndexInfo(FLAT)

    def location(self) -> dict[str, Any] | None:
        """Return the options that open the same folder elsewhere; None in memory."""
        if self._folder is None:
            return None
        options: dict[str, Any] = {"path": str(self._folder.path), "metric": str(self._metric)}
        if self._asked_index != AUTO:
            options["index"] = self._asked_index
        if self._asked_recall is not None:
            options["recall"] = self._asked_recall
        return options

    def flush(self) -> None:
        """Put everything written so far durably into the folder; without a path, nothing.

        What is written is what has changed. An approximate index is built, or extended, where it is time to;
        searches go on meanwhile.

        Raises
        ------
        StoreLockedError
            If the folder was meanwhile made anew or written by another, or this process was forked from the
            writer.
        StoreUnavailableError
            If it cannot be written, or not be synced to the disk; the message says which. What was flushed
            before is intact and the changes stay in memory: free some space and flush again.
        StoreCorruptedError
            If a file that is in force has gone: put it back, or `save` elsewhere.
        """
        folder = self._folder
        with nullcontext() if folder is None else folder.flushing:
            self._prepare()
            with self._guard.hold():
                self._require_open()
                self._write_out()

    def compact(self) -> None:
        """Write anew what removed records lie in, join small files, and flush; in memory, do nothing.

        A flush does so by itself where more than half of the records were removed since they were written.
        Searches go on meanwhile, and writes wait. The index is built anew where that is due.

        Raises
        ------
        UnsupportedOperationError
            If the store is read-only.
        StoreLockedError, StoreUnavailableError, StoreCorruptedError
            As `flush` does; what was flushed before is intact.
        """
        folder = self._folder
        if folder is None or folder.left_when_written:
            self._require_open()
            return
        with folder.flushing:
            with self._guard.write():
                self._begin_write()
            with self._guard.hold():
                self._require_open()
                self._write_out(whole=True)

    def verify(self) -> None:
        """Read all that is flushed and compare it with its checksums; a store in memory has none.

        Opening a folder reads only its manifest and its blobs. Whatever else is read is verified when it is
        first asked for, so damage may show late: this looks for it.

        Raises
        ------
        StoreCorruptedError
            If anything is not as it was written; it names the first such file. What does not lie in it can
            still be read.
        """
        with self._guard.hold():
            self._require_open()
            held, folder = self._held, self._folder
            if folder is not None:
                folder.verify(held, self._blobs, self._manifest.parts)
            held.segments.verify()
            if held.index is not None:
                held.index.verify()

    def refresh(self) -> bool:
        """Take up what another store has flushed into the folder since this one read it.

        The new generation is read beside searches of the old one, and takes its place at one moment. A store
        that writes to the folder, or is in memory, has nothing to take up.

        Returns
        -------
        bool
            Whether there was a newer generation.

        Raises
        ------
        StoreCorruptedError
            If a file in the folder is missing or damaged. Here as below, what was read before stays.
        FingerprintMismatchError
            If the folder was meanwhile made anew with another metric.
        StoreUnavailableError
            If the folder cannot be read any more, or is gone.
        """
        folder = self._folder
        if folder is None:
            self._require_open()
            return False
        with folder.flushing:
            self._require_open()
            before = folder.loaded
            if self._is_ahead(folder) or find_manifest(folder.path) == before:
                return False
            newest = type(self)(
                folder.path, metric=self._metric, read_only=True, recall=self._asked_recall, mmap=self._mmap
            )
            newest._held.segments.require_whole()
            with self._guard.lock.write():
                self._require_open()
                if self._is_ahead(folder):  # this store's first write has read the folder meanwhile
                    return folder.loaded != before
                self._dim, self._held, self._kept_by = newest._dim, newest._held, None
                self._manifest, self._blobs = newest._manifest, newest._blobs
                read = cast("StoreFolder", newest._folder)
                folder.loaded, folder.spoiled = read.loaded, read.spoiled
                self._index, self._recall = newest._index, newest._recall
                if self._asked_index != newest._index:
                    self._asked_index = AUTO  # the writer chose another: that is the folder's now
                return True

    def _is_ahead(self, folder: StoreFolder) -> bool:
        """Tell whether this store, not the folder, has the newest contents."""
        return folder.writer is not None or self._changed

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other writers out of the folder for a block that begins with what they have flushed.

        What is written in the block keeps them out until the store is closed, as any write does.

        Raises
        ------
        StoreLockedError
            If another writer holds the folder.
        UnsupportedOperationError
            If the store is read-only.
        StoreUnavailableError
            If the folder cannot be written to.
        """
        folder = self._folder
        if folder is None or folder.left_when_written:  # its contents are this store's alone
            self._require_open()
            yield
            return
        held = folder.writer
        with self._guard.write():
            self._begin_write()
            before = folder.loaded
        try:
            yield
        finally:
            with self._guard.lock.write():
                written = self._changed or folder.loaded is not before
                if folder.writer is not held and not written:
                    folder.release()

    def leave_when_written(self) -> None:
        """Go on in memory from the first write on, and leave the folder as it is."""
        if self._folder is not None:
            self._folder.left_when_written = True

    def save(self, path: str | Path) -> None:
        """Write a complete copy into the folder `path`, atomically; into its own folder, `flush`.

        Parameters
        ----------
        path : str or Path
            A new or empty folder, or one whose store the copy replaces.

        Raises
        ------
        InvalidInputError
            If the folder holds something else, or is the current folder and empty.
        StoreError
            If the copy cannot be written, in which case what was there before is intact, or not be synced to
            the disk; the message says which.
        """
        target = check_path(path, "path").absolute()
        if self._folder is not None and target.resolve() == self._folder.path.resolve():
            self.flush()
            return
        self._prepare()
        with self._guard.hold():
            self._require_open()
            require_whole(target, self._held)
            save_copy(target, self._fill)

    def __getstate__(self) -> dict[str, Any]:
        if self._folder is not None:
            raise UnsupportedOperationError(
                f"the store in {self._folder.path} cannot be pickled or copied: open its folder again "
                f"instead, with {type(self).__name__}(**store.location(), read_only=True)"
            )
        return super().__getstate__()

    def __sklearn_clone__(self) -> FaissStore:
        if self._folder is not None:
            raise unclonable(self)
        # Empty, as a clone is not fitted.
        index = AUTO if is_auto(self._asked_index) else self._asked_index  # `memory=` is for folders
        return type(self)(metric=self._metric, index=index, recall=self._asked_recall)

    @safe_repr
    def __repr__(self) -> str:
        told = super().__repr__()[:-1]
        if self._folder is not None:
            told += f", path={str(self._folder.path)!r}"
            told += ", read_only=True" if self._folder.read_only else ""
        held = self._held
        known = held.index if held.index is not None else held.rows
        state = known.state if isinstance(known, AnnRows | Covering) else None
        if state is not None:
            told += f", index={state.factory!r}, recall={state.recall:.3f}"
        elif self._index not in (AUTO, FLAT):
            told += f", index={self._index!r}"
        return f"{told})"

    @staticmethod
    def _computing() -> AbstractContextManager[None]:
        return faiss_alone()

    def _begin_write(self) -> None:
        super()._begin_write()
        folder = self._folder
        if folder is None:
            return
        if folder.left_when_written:
            self._take_into_memory()
            self._folder = self._kept_by = None
            return
        if folder.read_only:
            raise UnsupportedOperationError(f"{self!r} is read-only; open it with read_only=False to write")
        folder.hold(self._adopt)

    def _wrote(self) -> None:
        rows, folder, held = self._held.rows, self._folder, self._held
        # In a folder lists are for a flush to build: of all that came, not of the first that are enough.
        if isinstance(rows, AnnRows) and (folder is None or not is_auto(self._index)):
            rows.settle()
        if folder is None or not self._keeper(folder).is_full(held) or self._is_near(self._unsealed):
            return
        try:
            with folder.writing(self._names):
                self._held = self._keeper(folder).sealed(held)
        except StoreError:  # a flush tells what hinders it
            self._unsealed = len(held)

    def _is_near(self, count: int | None) -> bool:
        """Tell whether what failed with so many records is not tried again: there are about as many."""
        return count is not None and 4 * abs(len(self._held) - count) <= count

    def _names(self) -> set[str]:
        """Return the names of the folder's files that are held."""
        return self._named(self._held, 0).names

    def _prepare(self) -> None:
        """Build the index of a store in memory, before it is written; called without the lock."""
        if self._folder is None and self._is_unfinished():
            with self._guard.write():
                self._require_open()
                rows = self._held.rows
                if isinstance(rows, AnnRows) and rows.unfinished:
                    rows.settle()

    def _is_unfinished(self) -> bool:
        return isinstance(self._held.rows, AnnRows) and self._held.rows.unfinished

    def _write_out(self, *, whole: bool = False) -> None:
        """Put what has changed into the folder; `whole` writes anew what removed records lie in."""
        folder = self._folder
        if folder is None or (folder.writer is None and not self._changed):
            return
        keeper = self._keeper(folder)
        # A folder of format 1 has its records in no segment yet.
        if self._changed or self._is_unfinished() or (whole and len(self._held.table)):
            require_whole(folder.path, self._held)
            with folder.writing(self._names):
                # Held before it is in force: whatever interrupts this, no file goes that it lies in.
                self._held = keeper.filed(self._held)
                self._put(folder)
                self._changed = False
        if whole or not self._is_near(self._untidied):
            self._tidy(folder, keeper, whole)

    def _tidy(self, folder: StoreFolder, keeper: FolderKeeper, whole: bool) -> None:
        """Put what was flushed into fewer files, and its index in order.

        Only who asked for it is told of errors; the others are warned: their records are safe.
        """
        held, self._untidied = self._held, None
        try:
            plan = keeper.plan(held, whole=whole)
            if plan is not None or whole:  # with nothing to do, what an interrupt has left goes
                with folder.writing(self._names, "compact" if whole else "flush"):
                    if plan is not None:
                        self._rearrange(folder, keeper, plan)
        except (StoreError, RuntimeError, MemoryError) as error:
            if whole:
                raise
            self._untidied = len(held)
            warn_caller(
                f"all is flushed, but {folder.path} could not be cleared of removed records or small files, "
                f"or its index not be kept up: {error}. compact() tries again, and so does a flush when "
                "there are a quarter more records, or fewer"
            )
            return
        keeper.past.complain()

    def _rearrange(self, folder: StoreFolder, keeper: FolderKeeper, plan: Tidying) -> None:
        held = self._held
        try:
            self._held = keeper.tidied(held, plan)
            self._put(folder)
        except BaseException:
            # Its files are there. Those of the other go, unless they may be in force.
            self._held = held
            raise

    def _put(self, folder: StoreFolder) -> None:
        """Put what is held, all of it in files, in force."""
        named = self._named(self._held, folder.next_generation)
        folder.put(named, self._held, self._blobs, self._manifest.parts)

    def _keeper(self, folder: StoreFolder) -> FolderKeeper:
        if self._kept_by is None:
            self._kept_by = FolderKeeper(folder, self._metric, self._index, self._recall)
        return self._kept_by

    def _finish(self) -> None:
        folder = self._folder
        if folder is None:
            return
        if folder.writer is None or not folder.writer.inherited:  # what a fork holds is its parent's to write
            self._write_out()
        folder.release()

    def _clear(self) -> None:
        super()._clear()
        self._kept_by = self._unsealed = self._untidied = None

    def _named(self, held: HeldRecords, generation: int) -> FolderManifest:
        new = replace(super()._named(held, generation), index=self._index)
        covering: Covering | None = held.index
        if self._index == FLAT:
            return new
        if covering is None or not covering.entries:
            return replace(new, state={"target": self._recall, "built": None})
        state = {"target": self._recall, "built": asdict(covering.known())}
        files = {**new.files, **covering.entries}
        return replace(new, files=files, state=state, covered=covering.covered)

    def _adopt(self, snapshot: Snapshot) -> None:
        manifest = snapshot.manifest
        self._index = manifest.index
        self._recall = self._asked_recall or kept_target(manifest.state)
        self._kept_by = None
        super()._adopt(snapshot)
        if self._asked_index in (AUTO, manifest.index):
            self._adopt_index(snapshot)
        elif is_auto(self._asked_index) and is_auto(manifest.index):
            self._index, self._changed = self._asked_index, True
            self._adopt_index(snapshot)  # which serves as long as it fits
        else:
            self._reindex(manifest.index)
        if self._held.rows is None and self._dim is not None and not self._held.segments.total:
            self._held = HeldRecords(self._held.segments, self._held.table, self._new_rows(self._dim))

    def _adopt_index(self, snapshot: Snapshot) -> None:
        manifest, rows = snapshot.manifest, self._held.rows
        built = (manifest.state or {}).get("built")
        if built is None or manifest.dim is None:
            return
        state = AnnState.from_values(built)
        files = {role: file for role, file in snapshot.files.items() if role.startswith("ann")}
        if not isinstance(rows, AnnRows):
            entries = {role: manifest.files[role] for role in files}
            covering = Covering(state, manifest.covered, self._metric, manifest.dim, None, files, entries)
            self._held = HeldRecords(self._held.segments, self._held.table, rows, covering)
            if state.target != self._recall and self._folder is not None:
                self._held = self._keeper(self._folder).measured(self._held)
                self._keeper(self._folder).past.complain()
            return
        index = read_ann(files, state, manifest.dim, self._metric, manifest.count, mmap=False)
        if index is None:
            return
        if state.limits is None and not index.leave_out(rows.view(), state.built_with) and state.written:
            warn_caller(
                f"{files['ann'].path} holds vectors that came after the index {state.factory!r} was trained, "
                "and its codes do not tell whether it represents them. Searches are exact until the store is "
                "next written to and flushed"
            )
            return
        rows.index, rows.state = index, state
        rows.measure()
        rows.past.complain()

    def _reindex(self, held: str) -> None:
        """Take the rows of a folder with another index."""
        folder = self._folder
        if folder is not None and folder.read_only:
            raise UnsupportedOperationError(
                f"the store in {folder.path} has the index {held!r}; found index={self._asked_index!r}. "
                "Leave index= out, or open it with read_only=False to build another"
            )
        self._index, self._changed = self._asked_index, True
        if self._dim is not None and self._index != FLAT and not is_auto(self._index):
            make_index(self._index, self._dim, self._metric)  # refused before anything is written
        if self._held.rows is not None:
            flat = self._held.rows.flat if isinstance(self._held.rows, AnnRows) else self._held.rows
            self._held = HeldRecords(self._held.segments, self._held.table, self._approximated(flat))

    def _take_into_memory(self) -> None:
        held = self._held
        super()._take_into_memory()
        covering, rows = held.index, self._held.rows
        if covering is None or not isinstance(rows, AnnRows):
            return
        index = covering.writable(held.segments.removed)
        if index is not None:
            index.leave_to_others(len(self._held.table))
            rows.index, rows.state = index, covering.state

    def _kept_index(self) -> Covering | None:
        held, rows = self._held, self._held.rows
        if isinstance(rows, AnnRows) and rows.index is not None and rows.state is not None:
            return Covering(rows.state, len(held.table), self._metric, rows.dim, rows.index)
        covering: Covering | None = held.index
        return None if covering is None else covering.without(held.segments.removed)

    def _aids(
        self, held: HeldRecords, view: FloatArray | JoinedRows, queries: FloatArray, k: int
    ) -> tuple[Shortlist | None, IndexArray | None]:
        if not len(held.segments):
            return super()._aids(held, view, queries, k)
        candidates = None if held.index is None else held.index.candidates(held, queries, k)
        return shortlist_of(view, self._metric, held.longest), candidates

    def _new_rows(self, dim: int) -> VectorRows:
        return FlatRows(dim, self._metric) if self._held.segments.total else self._rows_alone(dim)

    def _rows_alone(self, dim: int) -> VectorRows:
        return self._approximated(FlatRows(dim, self._metric))

    def _approximated(self, flat: VectorRows) -> VectorRows:
        """Return rows with the approximate index in force, if that is one."""
        if self._index == FLAT or not isinstance(flat, FlatRows):
            return flat
        return AnnRows(flat, self._metric, self._index, self._recall)

    def _stored(self, vectors: FloatArray, norms: DoubleArray) -> FloatArray:
        return unit_rows(vectors, norms) if self._metric is Metric.COSINE else vectors

    def _original(self, rows: FloatArray, norms: DoubleArray) -> FloatArray:
        if self._metric is not Metric.COSINE:
            return rows
        return (rows * norms[:, None]).astype(np.float32)
