"""What a vector store has to do: the protocol that every backend follows, and what backends share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from clipretrieval.errors import UnsupportedOperationError
from clipretrieval.types import AnyArray, FloatArray, Label, Listing, Metric, Neighbors, Records

__all__ = [
    *("BlobStore", "DetachableStore", "ExclusiveStore", "LocalFilesStore", "LocatedStore"),
    *("PortableStore", "RefreshableStore", "ScannableStore", "VectorStore"),
    *("LISTED", "label_counter", "listings", "unclonable", "view_manifest"),
]

LISTED = 4096
"""Records in a listing."""


@runtime_checkable
class VectorStore(Protocol):
    """Labelled vectors that can be searched: five verbs, a count and a manifest.

    Any object with these members serves; there is nothing to inherit. A store keeps three things
    beside each vector: its id (a non-empty str, unique), its label (int or str, the same type for all)
    and a metadata dict of JSON values.

    All arguments are checked before anything is changed: a call that raises
    `~clipretrieval.errors.InvalidInputError` has stored nothing.

    Attributes
    ----------
    metric : Metric
        ``"l2"`` (squared Euclidean), ``"cosine"`` (1 − cosine) or ``"ip"`` (−inner product).
    dim : int or None
        The vectors' dimension; None until the first upsert where it is not known beforehand.
    """

    @property
    def metric(self) -> Metric: ...

    @property
    def dim(self) -> int | None: ...

    def upsert(
        self,
        ids: Sequence[str],
        vectors: FloatArray,
        labels: Sequence[Label],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Add vectors, replacing wholly those whose id is already there.

        Parameters
        ----------
        ids : sequence of str, length n
            Unique within the call.
        vectors : ndarray of float32, shape (n, dim)
            Finite. Under the cosine metric, not zero.
        labels : sequence of int or of str, length n
        metadata : sequence of mappings, length n, optional

        Raises
        ------
        InvalidInputError
            On any malformed argument, before anything is stored.
        StoreError
            If the backend fails.
        """
        ...

    def search(self, vectors: FloatArray, k: int) -> Neighbors:
        """Return the `k` nearest stored vectors of each query.

        Parameters
        ----------
        vectors : ndarray of float32, shape (n_queries, dim)
        k : int
            At least 1. May exceed the count: the rest is padded.

        Returns
        -------
        Neighbors
            Arrays of shape (n_queries, k), rows ascending, equal distances ordered by id.
        """
        ...

    def get(self, ids: Sequence[str]) -> Records:
        """Return the records of `ids`, in that order; ids that are not stored are left out."""
        ...

    def delete(self, ids: Sequence[str]) -> int:
        """Remove the records of `ids` and return how many of them were there."""
        ...

    def count(self) -> int:
        """Return the number of stored vectors.

        A store may take an argument `label`, int or str or None, by which it counts the records of one label
        without going through the others, see `ScannableStore.scan`. Classifiers ask for that where a change
        may have taken the last image of a class, and scan where they cannot.
        """
        ...

    def read_manifest(self) -> dict[str, Any]:
        """Return a copy of what `write_manifest` last kept; an empty dict if nothing was."""
        ...

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Keep a small JSON object beside the vectors, replacing the one before."""
        ...

    def flush(self) -> None:
        """Return when everything written so far is durable and visible to searches."""
        ...

    def close(self) -> None:
        """Flush and free what the store holds; calling it again does nothing."""
        ...


@runtime_checkable
class LocatedStore(Protocol):
    """Optional: a store whose contents live somewhere that another process can open."""

    def location(self) -> dict[str, Any] | None:
        """Return the options that open the same contents elsewhere; None if only this process can.

        JSON values only, and never a secret.
        """
        ...


@runtime_checkable
class LocalFilesStore(Protocol):
    """Optional: a store in local files, whose class can tell beforehand whether they are there.

    `RetrievalClassifier.load` opens the store that a saved classifier names, which anybody may have sent, if
    this says that it is safe. A store whose class does not say is opened with ``allow_remote=True`` only.
    """

    @classmethod
    def exists_locally(cls, options: Mapping[str, Any]) -> bool:
        """Tell whether these options would only open a store that is there already, in local files.

        False where opening would contact a host, read a key from the environment, make a store, or change
        what it holds. Bookkeeping beside the contents is allowed: opening a Chroma folder leaves a lock file
        and one row in its database.

        Parameters
        ----------
        options : mapping of str to JSON values
            Of the constructor; as a file has them, so any may be missing, unknown or of a wrong type.
        """
        ...


@runtime_checkable
class PortableStore(Protocol):
    """Optional: a store that can write a copy of itself into a folder and be opened from it."""

    def save(self, path: str | Path) -> None:
        """Write a complete copy into the folder `path`, atomically."""
        ...

    @classmethod
    def load(cls, path: str | Path) -> VectorStore:
        """Open a copy that `save` wrote."""
        ...


@runtime_checkable
class ScannableStore(Protocol):
    """Optional: a store that can go through all that it holds."""

    def scan(self, label: Label | None = None) -> Iterator[Listing]:
        """Go through the ids and labels of all records, or of those with one label.

        Parameters
        ----------
        label : int or str, optional
            As stored. One of the other type than the store's is that of no record: ``1`` is not ``"1"``.

        Yields
        ------
        Listing
            Of one record or more, how many is the store's choice, and in no promised order. An empty store
            yields none.

        Raises
        ------
        InvalidInputError
            If `label` is neither int nor str.
        StoreError
            If the store is closed or the backend fails.

        Notes
        -----
        The store may be read and written while a scan is under way, by the loop over it too. A record that is
        there, with the label asked for, from the call of `scan` to its end is listed exactly once. One that
        comes, goes or changes its label meanwhile is listed once or not at all.
        """
        ...


@runtime_checkable
class BlobStore(Protocol):
    """Optional: a store that keeps a few blobs of bytes beside its records, say what was computed of them.

    A blob is no record: no count, search or scan shows it, and it stays when records come and go. It is part
    of the contents all the same: durable at the next `flush`, in one step with the records and the manifest
    where a flush is one step; in the copies that `save` writes; taken up by `refresh`.

    Blobs are made for some tens of megabytes. One that did not change should not be written again.
    """

    def read_blob(self, name: str) -> bytes | None:
        """Return a blob as this store last wrote it, flushed or not; None where there is none.

        Parameters
        ----------
        name : str

        Raises
        ------
        InvalidInputError
            If no blob can have this name.
        StoreCorruptedError
            If the blob is not as it was written. That should keep nobody from the records: what was computed
            of them can be computed again.
        StoreError
            If the store is closed or the backend fails.
        """
        ...

    def write_blob(self, name: str, content: bytes | None) -> None:
        """Keep a blob, replacing the one of this name; None removes it, which no bytes (``b""``) do not.

        Parameters
        ----------
        name : str
            1 to 64 of the characters a-z, 0-9 and '-', the first of them a letter.
        content : bytes or None
            At most 1 GiB.

        Raises
        ------
        InvalidInputError
            If the name or the content is malformed, before anything is changed.
        UnsupportedOperationError
            If the store is read-only.
        StoreError
            If the store is closed or the backend fails; the blob is then the old one or the new.
        """
        ...


@runtime_checkable
class RefreshableStore(Protocol):
    """Optional: a store that holds what it read when it was opened, and can look for newer contents."""

    def refresh(self) -> bool:
        """Take up what another process has written since, if it has, and tell whether there was anything.

        Searches in other threads see the old contents or the new, never a mixture. Where this store has
        changes of its own, or is the one that writes, nothing is done. A call that raises changes nothing.
        """
        ...


@runtime_checkable
class ExclusiveStore(Protocol):
    """Optional: a store that others may open too, and that can keep them from writing for a while.

    What a classifier decides by what the store holds, and writes because of it, then cannot be overtaken by
    another process. A store that others cannot open while it is open needs no such method.
    """

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep other writers out of a block, and begin it with what they have written before.

        At the end they may write again, unless the store holds them off for longer because it was written to.
        Threads of this process are no others: they may use the store meanwhile.

        Raises
        ------
        StoreLockedError
            If another writer holds the store; nothing is waited for.
        UnsupportedOperationError
            If it was opened to be read alone.
        """
        ...


@runtime_checkable
class DetachableStore(Protocol):
    """Optional: a store opened from a folder that it can leave as it is, and go on without."""

    def leave_when_written(self) -> None:
        """Go on in memory from the first write on, and leave the folder as it is."""
        ...


def label_counter(store: VectorStore) -> Callable[[Label], int] | None:
    """Return what counts a store's records of a label; None where its `count` takes no label."""
    count: Callable[..., int] = store.count
    try:
        known = "label" in inspect.signature(count).parameters
    except (TypeError, ValueError):  # a class written in C may not tell
        known = False
    return (lambda label: count(label=label)) if known else None


def view_manifest(store: VectorStore) -> Mapping[str, Any]:
    """Return a store's manifest, only to be read: what lies in this process is not parsed anew.

    A class may have `_view_manifest` beside its `read_manifest`. It is asked only where that is the method
    which the store answers with: a subclass may have another, and a wrapper may pass this one on.
    """
    read = store.read_manifest
    owner = getattr(read, "__self__", None)
    for cls in type(owner).__mro__:
        view = vars(cls).get("_view_manifest")
        if view is not None and getattr(read, "__func__", None) is vars(cls).get("read_manifest"):
            viewed: Mapping[str, Any] = view(owner)
            return viewed
    return read()


def listings(ids: AnyArray, labels: AnyArray, label: Label | None) -> Iterator[Listing]:
    """Cut ids and labels into listings, of those with `label` unless it is None.

    Parameters
    ----------
    ids : ndarray of object (str), shape (n,)
    labels : ndarray of int64 or of object (str), shape (n,)
    label : int or str, optional
        One of the other type is that of none.
    """
    if label is not None:
        same_type = isinstance(label, str) == (labels.dtype == object)
        chosen = np.flatnonzero(labels == label) if same_type else np.empty(0, dtype=np.int64)
        ids, labels = ids[chosen], labels[chosen]
    for start in range(0, len(ids), LISTED):
        yield Listing(ids[start : start + LISTED], labels[start : start + LISTED])


def unclonable(store: object) -> UnsupportedOperationError:
    """Return the error for a store of which a clone cannot have an empty one: it lies in a certain place."""
    return UnsupportedOperationError(
        f"{store!r} cannot be cloned: every clone would write to the same place. Cross-validation and "
        "grid search need a store for each fit: pass it by name, such as store='faiss', without a path"
    )
