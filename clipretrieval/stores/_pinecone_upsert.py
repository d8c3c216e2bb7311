"""Send a batch of vectors, and tell of each whether it is stored."""

from __future__ import annotations

from clipretrieval.errors import StoreError, StoreUnavailableError
from clipretrieval.stores._pinecone_records import chunks
from clipretrieval.stores._pinecone_space import Space
from clipretrieval.stores._validate import Batch

__all__ = ["IncompleteUpsertError", "send"]


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


def send(space: Space, batch: Batch) -> None:
    """Store a batch.

    Raises
    ------
    IncompleteUpsertError
        If a part of it is not known to be stored; the other parts are.
    """
    failed: list[str] = []
    reason: StoreError | None = None
    for names, error in space.upsert(chunks(batch)):
        if error is not None:
            failed += names
            reason = reason or error
    if reason is not None:
        some = ", ".join(repr(name[:60]) for name in failed[:5]) + (", …" if len(failed) > 5 else "")
        raise IncompleteUpsertError(
            f"{len(failed)} of {len(batch.ids)} vectors are not known to be stored ({some}): {reason}. "
            "Upsert them again: the error's `ids` lists them",
            failed,
        )
