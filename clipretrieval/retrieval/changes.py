"""Who is told of each record that comes into a store, or goes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from clipretrieval._util.rounding import without_range_warnings
from clipretrieval.stores.base import VectorStore
from clipretrieval.types import FloatArray, Label, Records

__all__ = ["STATISTICS", "STATISTICS_BLOBS", "ChangeFollower", "following", "removing", "storing"]

STATISTICS = "statistics"
"""What a manifest says of class statistics that describe the store's contents; gone while these change."""
STATISTICS_BLOBS = "statistics_blobs"
"""The names of the blobs that hold statistics, or may: what describes the records no more is removed."""


class ChangeFollower(Protocol):
    """Something that is kept in step with the records of a store while a classifier changes them.

    All calls come from inside of `sole_writer`, in this order: `begin`, changes, `keep`, `end`. A change that
    has failed half-way is followed by `lose`.
    """

    def expect(self, classes: Collection[Any], dim: int, *, anew: bool = False) -> None:
        """Refuse records of so many classes and dimensions that they cannot be followed.

        Called before they are stored, and before their classes are listed; also before a fit, with what is
        known of it.

        Parameters
        ----------
        classes : collection
            Theirs, in any form.
        dim : int
        anew : bool
            Whether what is held goes before they come.

        Raises
        ------
        InvalidInputError
        """
        ...

    def begin(self, store: VectorStore) -> None:
        """Be ready for changes; called before the first."""
        ...

    def clear(self) -> None:
        """Start anew: all records are gone."""
        ...

    def add(self, ids: Sequence[str], vectors: FloatArray, labels: Sequence[Label]) -> None:
        """Take up records that have come."""
        ...

    def remove(self, vectors: FloatArray, labels: Sequence[Label]) -> None:
        """Take out records that have gone; the vectors are what the store held."""
        ...

    def lose(self) -> None:
        """Know nothing any more of what the store holds."""
        ...

    def keep(self, store: VectorStore) -> None:
        """Write into the store what it takes to go on from here; the flush comes after."""
        ...

    def end(self) -> None:
        """Stop following, whether or not what came was kept."""
        ...


@contextmanager
def following(store: VectorStore, follower: ChangeFollower | None) -> Iterator[None]:
    """Have somebody follow the changes that the block makes, inside of `sole_writer`."""
    if follower is None:
        yield
        return
    follower.begin(store)
    try:
        yield
    finally:
        follower.end()


@contextmanager
def storing(
    store: VectorStore,
    follower: ChangeFollower | None,
    ids: Sequence[str],
    vectors: FloatArray,
    labels: Sequence[Label],
    replaced: Collection[str],
) -> Iterator[None]:
    """Tell a follower of records that the block stores, some of which take the place of others.

    Parameters
    ----------
    store : VectorStore
    follower : ChangeFollower or None
    ids, vectors, labels
        Of the records that are stored.
    replaced : collection of str
        The ids of those that the store holds already.
    """
    before = store.get(sorted(replaced)) if follower is not None and replaced else None
    try:
        with without_range_warnings():
            yield
    except BaseException:
        if follower is not None:
            follower.lose()
        raise
    if follower is None:
        return
    if before is not None:
        if len(before) < len(replaced):  # not visible yet, or another process has removed them
            follower.lose()
            return
        follower.remove(before.vectors, before.labels.tolist())
    follower.add(ids, vectors, labels)


@contextmanager
def removing(follower: ChangeFollower | None, records: Records) -> Iterator[None]:
    """Tell a follower of records that the block removes."""
    try:
        yield
    except BaseException:
        if follower is not None:
            follower.lose()
        raise
    if follower is not None:
        follower.remove(records.vectors, records.labels.tolist())
