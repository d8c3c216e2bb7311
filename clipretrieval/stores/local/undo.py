"""Vectors and records change together: what an interruption left half done is undone, or done to its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from clipretrieval.stores.local.rows import VectorRows
from clipretrieval.stores.local.table import Moves, RecordTable

__all__ = ["Recovery", "finish_removal", "undo_write"]

Recovery: TypeAlias = Callable[[], None]
"""Makes rows and table whole again. It may itself be interrupted, and is then called once more."""


def undo_write(
    rows: VectorRows, table: RecordTable, ids: list[str], places: npt.NDArray[np.int64]
) -> Recovery:
    """Return what takes back a write of `ids` into `places`; to be called before either has changed."""
    count = len(table)
    old = places[places < count]
    vectors, records = rows.view()[old], table.excerpt(old)

    def undo() -> None:
        rows.restore(vectors, old, count)
        table.restore(records, old, ids, count)

    return undo


def finish_removal(rows: VectorRows, table: RecordTable, moves: Moves) -> Recovery:
    """Return what carries a removal through: its moves may be made again, and take no copy of what goes."""

    def finish() -> None:
        rows.drop_index()
        rows.remove(moves)
        table.remove(moves)

    return finish
