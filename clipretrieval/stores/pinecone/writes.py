"""Write many records, and tell of each whether that is done."""

from __future__ import annotations

from collections.abc import Iterable

from clipretrieval.errors import StoreError, StoreUnavailableError
from clipretrieval.stores.checks import Batch
from clipretrieval.stores.pinecone.namespace import Space
from clipretrieval.stores.pinecone.records import chunks

__all__ = ["IncompleteDeleteError", "IncompleteUpsertError", "remove", "send"]


class IncompleteUpsertError(StoreUnavailableError):
    """Some of an upsert's vectors could not be stored; the others are.

    Attributes
    ----------
    ids : list of str
        Those whose storing is not confirmed. An upsert of them again does no harm.
    """

    def __init__(self, message: str, ids: list[str]) -> None:
        super().__init__(message)
        self.ids = ids


class IncompleteDeleteError(StoreUnavailableError):
    """Some records could not be deleted; the others are.

    Attributes
    ----------
    ids : list of str
        Those whose removal is not confirmed. Deleting them again does no harm.
    """

    def __init__(self, message: str, ids: list[str]) -> None:
        super().__init__(message)
        self.ids = ids


def send(space: Space, batch: Batch) -> None:
    """Store a batch.

    Raises
    ------
    IncompleteUpsertError
        If a part of it is not known to be stored; the other parts are.
    """
    failed, reason = _failures(space.upsert(chunks(batch)))
    if reason is not None:
        raise IncompleteUpsertError(
            f"{len(failed)} of {len(batch.ids)} vectors are not known to be stored ({_some(failed)}): "
            f"{reason}. Upsert them again: the error's `ids` lists them",
            failed,
        )


def remove(space: Space, keys: dict[str, str]) -> None:
    """Remove records, given their keys and true ids.

    Raises
    ------
    IncompleteDeleteError
        If some are not known to be removed; the others are.
    """
    failed, reason = _failures(space.delete(keys))
    if reason is not None:
        raise IncompleteDeleteError(
            f"{len(failed)} of {len(keys)} records are not known to be deleted ({_some(failed)}): {reason}. "
            "Delete them again: the error's `ids` lists them",
            failed,
        )


def _failures(parts: Iterable[tuple[list[str], StoreError | None]]) -> tuple[list[str], StoreError | None]:
    """Return the ids of the parts that failed, and why the first did."""
    failed: list[str] = []
    reason: StoreError | None = None
    for names, error in parts:
        if error is not None:
            failed += names
            reason = reason or error
    return failed, reason


def _some(names: list[str]) -> str:
    return ", ".join(repr(name[:60]) for name in names[:5]) + (", …" if len(names) > 5 else "")
