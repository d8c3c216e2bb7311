"""Go through the records of a namespace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from clipretrieval.stores.pinecone.answers import as_listing
from clipretrieval.stores.pinecone.namespace import Space
from clipretrieval.stores.pinecone.records import MAX_COUNT, label_condition
from clipretrieval.types import Label, Listing

__all__ = ["listed"]


def listed(space: Space, label: Label | None, check: Callable[[], None]) -> Iterator[Listing]:
    """Yield ids and labels of all records, or of those with one label.

    The true ids and the labels are in the records' metadata, and the service returns these only together with
    the vectors, where it does not search. `check` is called before requests, and may raise to end the scan.
    """
    check()
    space.settle()
    seen: set[str] = set()
    for found in _everything(space) if label is None else space.matching(label_condition(label)):
        # By metadata, the order of the pages is not documented, nor what a write between two of them does.
        fresh = {key: record for key, record in found.items() if key not in seen}
        seen.update(fresh)
        if fresh:
            yield as_listing(fresh)
        check()


def _everything(space: Space) -> Iterator[dict[str, Any]]:
    waiting: list[str] = []
    for page in space.pages():
        waiting += page
        if len(waiting) >= MAX_COUNT:
            yield space.fetch(waiting)
            waiting = []
    if waiting:
        yield space.fetch(waiting)
