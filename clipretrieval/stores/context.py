"""Stores as context managers."""

from __future__ import annotations

from types import TracebackType
from typing import TypeVar

__all__ = ["ClosedAtExit"]

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
