"""What is said of a change of a store's records: in the manifest, and to who follows it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from secrets import token_hex
from typing import Any, Final, Protocol

from clipretrieval._util.rounding import without_range_warnings
from clipretrieval.stores.base import VectorStore, view_manifest
from clipretrieval.types import FloatArray, Label, Records

__all__ = [
    *("CHANGING", "STATISTICS", "STATISTICS_BLOBS", "TOKEN", "ChangeFollower", "final_state", "following"),
    *("is_changing", "new_state", "removing", "state_token", "storing"),
]

STATISTICS = "statistics"
"""What a manifest says of the records' state: `CHANGING`, or what `new_state` returns.

Every change by this library, whoever makes it, begins with the one and ends with a new one of the other: what
was computed of the records, here or elsewhere, is then known to be out of date. A manifest that says nothing
is that of a store which something else has filled, or an earlier version.
"""
STATISTICS_BLOBS = "statistics_blobs"
"""The names of the blobs that hold statistics, or may: what describes the records no more is removed."""
CHANGING: Final[Mapping[str, Any]] = {"changing": True}
"""The records are being changed, or that was cut short: nothing that was computed of them can be trusted."""
TOKEN = 32
"""Characters of a token."""


def new_state() -> dict[str, Any]:
    """Return what a manifest says of records that are in a state of their own from now on.

    Returns
    -------
    dict
        A ``"token"``. A follower may add a ``"count"``: it has kept statistics of as many records.
    """
    return {"token": token_hex(TOKEN // 2)}


def state_token(manifest: Mapping[str, Any]) -> str | None:
    """Return which state a manifest says the records are in; None where it says none."""
    found = manifest.get(STATISTICS)
    token = found.get("token") if isinstance(found, Mapping) else None
    return token if isinstance(token, str) and len(token) == TOKEN and token.isascii() else None


def is_changing(manifest: Mapping[str, Any]) -> bool:
    """Tell whether the records are being changed, or may be: what a manifest says cannot be read."""
    return STATISTICS in manifest and state_token(manifest) is None


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

    def keep(self, store: VectorStore) -> Mapping[str, Any] | None:
        """Write into the store what it takes to go on from here; the manifest and the flush come after.

        Returns
        -------
        mapping or None
            What the manifest has to say of the records' state, see `new_state`: what it said before, where
            nothing has changed. None where it is not known what the store holds.
        """
        ...

    def end(self) -> None:
        """Stop following, whether or not what came was kept."""
        ...


def final_state(
    store: VectorStore, follower: ChangeFollower | None, changed: bool
) -> Mapping[str, Any] | None:
    """Have a follower keep what it has, and return what the manifest has to say of the records' state.

    Parameters
    ----------
    store : VectorStore
    follower : ChangeFollower or None
    changed : bool
        Whether the call has changed any record.

    Returns
    -------
    mapping or None
        None where the manifest says what is right.
    """
    state = None if follower is None else follower.keep(store)
    if state is None and (changed or state_token(view_manifest(store)) is None):
        state = new_state()
    return state


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
