"""A store on FAISS: exact or approximate search in memory, kept in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import check_bool, check_number, check_path, check_text
from clipretrieval._util.repr import safe_repr
from clipretrieval.errors import (
    InvalidInputError,
    MissingDependencyError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.stores.context import unclonable
from clipretrieval.stores.exact import unit_rows
from clipretrieval.stores.faiss.folder_store import FolderStore
from clipretrieval.stores.local.folder import Layout, Snapshot, find_manifest
from clipretrieval.stores.local.folder_manifest import FolderManifest
from clipretrieval.stores.local.rows import VectorRows
from clipretrieval.types import FloatArray, Metric

try:
    from clipretrieval.stores.faiss.approximate import DEFAULT_RECALL, AnnRows
    from clipretrieval.stores.faiss.factory import AUTO, FLAT, check_factory
    from clipretrieval.stores.faiss.files import check_index_state, index_parts, kept_target, read_ann
    from clipretrieval.stores.faiss.flat import CAN_MAP, FlatRows, faiss_alone, read_rows
    from clipretrieval.stores.faiss.state import IndexInfo
except ModuleNotFoundError as error:
    if error.name != "faiss":
        raise
    raise MissingDependencyError(
        "FaissStore needs FAISS, which is not installed; run: pip install faiss-cpu",
        name="faiss",
    ) from error

__all__ = ["FaissStore", "IndexInfo"]

Self = TypeVar("Self", bound="FaissStore")


class FaissStore(FolderStore):
    """Vectors in a FAISS index, searched exactly or approximately; in memory or in a folder.

    Whatever the index, the vectors themselves are kept too: `get` returns them, and a search computes with
    them the distances of what the index proposes. An approximate index can miss a neighbour, but every
    distance is the true one.

    With a path, the folder is read when the store is opened; writes stay in memory until `flush` or `close`
    put a complete new generation in the place of the one before, so the folder always opens at the last
    flush. One store at a time may write to a folder, from its first write until it is closed (a classifier's
    `fit` or `partial_fit` holds it while the images are encoded, too); any number may read, and `refresh`
    takes up what the writer has flushed since.

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
        folder; in a new store, exact up to 100,000 vectors and inverted lists beyond. Opening a folder with
        another index than it has builds that one at the next write or flush.
    recall : float, optional
        The recall@10, in (0, 1], that an approximate index is to reach on the stored vectors. None is that of
        the folder; 0.99 in a new store. Where it cannot be reached a ClipRetrievalWarning says so.
    mmap : bool
        Map the folder's vectors and index into memory instead of reading them; needs `read_only`. Processes
        that map one folder share the pages.
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
        If a file in the folder is missing or damaged.
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

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        metric: Metric | str = Metric.L2,
        read_only: bool = False,
        index: str = AUTO,
        recall: float | None = None,
        mmap: bool = False,
        create: bool = True,
    ) -> None:
        read_only = check_bool(read_only, "read_only")
        super().__init__(path, metric, read_only, create)
        self._asked_index = check_factory(check_text(index, "index"))
        self._asked_recall = None if recall is None else check_number(recall, "recall", above=0, most=1)
        self._index, self._recall = self._asked_index, self._asked_recall or DEFAULT_RECALL
        self._mmap = check_bool(mmap, "mmap")
        if self._mmap and not read_only:
            raise InvalidInputError("mmap=True is for reading: give read_only=True too")
        if self._mmap and not CAN_MAP:
            raise UnsupportedOperationError("mmap=True needs a newer FAISS; run: pip install -U faiss-cpu")
        with self._computing():  # a folder's index may be measured or built anew
            self._open()

    @classmethod
    def load(cls, path: str | Path, *, read_only: bool = True, mmap: bool = False) -> FaissStore:
        """Open the store in a folder under the metric and with the index that it holds.

        Parameters
        ----------
        path : str or Path
        read_only : bool
            Refuse every write.
        mmap : bool
            Map the vectors and the index into memory instead of reading them.

        Raises
        ------
        StoreCorruptedError
            If a file is missing or damaged.
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
        with self._held():
            return self._rows.info if isinstance(self._rows, AnnRows) else IndexInfo(FLAT)

    def location(self) -> dict[str, Any] | None:
        """Return the options that open the same folder elsewhere; None in memory."""
        options = super().location()
        if options is not None and self._asked_index != AUTO:
            options["index"] = self._asked_index
        if options is not None and self._asked_recall is not None:
            options["recall"] = self._asked_recall
        return options

    def __sklearn_clone__(self) -> FaissStore:
        if self._path is not None:
            raise unclonable(self)
        # Empty, as a clone is not fitted.
        return type(self)(metric=self._metric, index=self._asked_index, recall=self._asked_recall)

    @safe_repr
    def __repr__(self) -> str:
        kind = "" if self._index in (AUTO, FLAT) else f", index={self._index!r}"
        if isinstance(self._rows, AnnRows) and self._rows.state is not None:
            state = self._rows.state
            kind = f", index={state.factory!r}, recall={state.recall:.3f}"
        return f"{super().__repr__()[:-1]}{kind})"

    def _layout(self) -> Layout:
        return Layout("FaissStore", "index", ".faiss", self._read, check_index_state)

    def _read(self, folder: Path, manifest: FolderManifest) -> VectorRows:
        flat = read_rows(folder, manifest, self._mmap)
        if manifest.index == FLAT:
            return flat
        return read_ann(folder, manifest, flat, self._asked_recall, self._mmap)

    def _computing(self) -> AbstractContextManager[None]:
        return faiss_alone()

    def _snapshot(self) -> Snapshot:
        snapshot = replace(super()._snapshot(), index=self._index)
        if self._index == FLAT:
            return snapshot
        if not isinstance(self._rows, AnnRows):
            return replace(snapshot, state={"target": self._recall, "built": None})
        parts, state = index_parts(self._rows)
        return replace(snapshot, parts=parts, state=state)

    def _adopt(self, snapshot: Snapshot) -> None:
        super()._adopt(snapshot)
        self._index = snapshot.index
        self._recall = self._asked_recall or kept_target(snapshot.state)
        if self._asked_index not in (AUTO, snapshot.index):
            self._reindex(snapshot.index)
        elif isinstance(self._rows, AnnRows):
            self._rows.measure()
        if self._rows is None and self._dim is not None:
            self._rows = self._new_rows(self._dim)

    def _opened_anew(self: Self, path: Path) -> Self:
        return type(self)(
            path, metric=self._metric, read_only=True, recall=self._asked_recall, mmap=self._mmap
        )

    def _take_over(self: Self, newest: Self) -> None:
        super()._take_over(newest)
        self._index, self._recall = newest._index, newest._recall
        if self._asked_index != newest._index:
            self._asked_index = AUTO  # the writer chose another: that is the folder's now

    def _reindex(self, held: str) -> None:
        """Take the rows of a folder with another index."""
        if self._read_only:
            raise UnsupportedOperationError(
                f"the store in {self._path} has the index {held!r}; found index={self._asked_index!r}. Leave "
                "index= out, or open it with read_only=False to build another"
            )
        self._index, self._changed = self._asked_index, True
        if self._rows is not None:
            flat = self._rows.flat if isinstance(self._rows, AnnRows) else self._rows
            self._rows = self._indexed(flat)

    def _wrote(self) -> None:
        if isinstance(self._rows, AnnRows):
            self._rows.maintain()

    def _prepare(self) -> None:
        """Build the index of a folder that had another."""
        if self._is_unfinished():
            with self._lock.write(), self._computing():
                self._recover()
                self._require_open()
                self._build()

    def _finish(self) -> None:
        if self._path is not None and self._is_unfinished():
            self._build()
        super()._finish()

    def _is_unfinished(self) -> bool:
        writable = self._path is None or self._writer is not None
        return writable and isinstance(self._rows, AnnRows) and self._rows.unfinished

    def _build(self) -> None:
        if isinstance(self._rows, AnnRows) and self._rows.unfinished:
            self._rows.maintain()
            self._changed |= self._rows.index is not None

    def _new_rows(self, dim: int) -> VectorRows:
        return self._indexed(FlatRows(dim, self._metric))

    def _indexed(self, flat: VectorRows) -> VectorRows:
        """Return rows with the approximate index in force, if that is one."""
        if self._index == FLAT or not isinstance(flat, FlatRows):
            return flat
        return AnnRows(flat, self._metric, self._index, self._recall)

    def _stored(self, vectors: FloatArray, norms: npt.NDArray[np.float64]) -> FloatArray:
        return unit_rows(vectors, norms) if self._metric is Metric.COSINE else vectors

    def _original(self, rows: FloatArray, norms: npt.NDArray[np.float64]) -> FloatArray:
        if self._metric is not Metric.COSINE:
            return rows
        return (rows * norms[:, None]).astype(np.float32)
