"""Stores as context managers, and as arguments of what scikit-learn clones."""

from __future__ import annotations

from types import TracebackType
from typing import TypeVar

from clipretrieval.errors import UnsupportedOperationError

__all__ = ["ClosedAtExit", "unclonable"]

Self = TypeVar("Self", bound="ClosedAtExit")


class ClosedAtExit:
    """Closes itself at the end of a `with` block."""

    def close(self) -> None:
        """Flush and free what the store holds; calling it again does nothing."""
        raise NotImplementedError

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def unclonable(store: object) -> UnsupportedOperationError:
    """Return the error for a store of which a clone cannot have an empty one: it lies in a certain place."""
    return UnsupportedOperationError(
        f"{store!r} cannot be cloned: every clone would write to the same place. Cross-validation and "
        "grid search need a store for each fit: pass it by name, such as store='faiss', without a path"
    )
