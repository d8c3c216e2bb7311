"""One namespace of an index: its requests, and whether its own writes can be seen yet."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from pinecone import NotFoundError

from clipretrieval.errors import StoreError, StoreUnavailableError
from clipretrieval.stores._pinecone_calls import Calls
from clipretrieval.stores._pinecone_records import ID_FIELD, MAX_COUNT, by_url

__all__ = ["DEFAULT_NAMESPACE", "Space"]

DEFAULT_NAMESPACE = "__default__"
"""How the service calls the namespace without a name."""

FIRST_POLL = 0.02
LONGEST_POLL = 1.0


class Space:
    """Requests to one namespace through the SDK's client of its index.

    Pinecone shows a write some time after it has accepted it. An upsert is given a number in the namespace's
    log, and a query tells up to which number it has seen; the SDK tells none of a delete, nor where a server
    gives none: then the records are looked for.

    Parameters
    ----------
    index : pinecone.Index
    name : str
    dim : int
    calls : Calls
    """

    def __init__(self, index: Any, name: str, dim: int, calls: Calls) -> None:
        self._index, self._name, self._calls = index, name, calls
        self._probe = [1.0, *[0.0] * (dim - 1)]
        self._lock = threading.Lock()
        self._committed: int | None = None
        # What has to be looked for: the writes' marks by key, and by true id where they are deleted.
        self._added: dict[str, int] = {}
        self._gone: dict[tuple[str, str], int] = {}
        self._marks = 0

    def __repr__(self) -> str:
        return f"Space({self._name!r})"

    def upsert(
        self, parts: Iterable[tuple[list[str], list[dict[str, Any]]]]
    ) -> Iterator[tuple[list[str], StoreError | None]]:
        """Send records; yield the ids of each part with the error that it ended with, if any."""
        sent: list[tuple[list[str], list[str]]] = []

        def calls() -> Iterator[Any]:
            for names, records in parts:
                sent.append((names, [record["id"] for record in records]))
                yield partial(self._send, records)

        for place, outcome in enumerate(self._calls.each("when vectors were sent to it", calls())):
            names, keys = sent[place]
            if isinstance(outcome, StoreError):
                # It may have been applied nevertheless.
                yield names, outcome
                continue
            self._written(keys, names, getattr(outcome.response_info, "lsn_committed", None))
            yield names, None

    def query(
        self,
        vectors: Iterable[list[float]],
        top_k: int,
        widest: int,
        distance: Callable[[Any, list[float]], float],
    ) -> Iterator[list[tuple[float, Any]]]:
        """Find the `top_k` nearest of each vector, and all that are as far as the last of them.

        Parameters
        ----------
        vectors : iterable of list of float
        top_k : int
        widest : int
            At least `top_k`: how many may be looked at to tell where equal distances end.
        distance : callable
            Maps a match and its query to a distance.

        Yields
        ------
        list of (float, match)
            Ascending by distance.
        """

        def ask(vector: list[float], timeout: float) -> list[tuple[float, Any]]:
            near: list[tuple[float, Any]] = []
            for reach in sorted({min(top_k + 1, widest), widest}):
                found = self._index.query(
                    vector=vector,
                    top_k=reach,
                    namespace=self._name,
                    include_metadata=True,
                    include_values=False,
                    timeout=timeout,
                )
                near = sorted(
                    ((distance(each, vector), each) for each in found.matches), key=lambda pair: pair[0]
                )
                if len(near) < reach or near[top_k - 1][0] < near[-1][0]:
                    break
            return near

        return self._calls.all("when it was searched", (partial(ask, vector) for vector in vectors))

    def fetch(self, keys: list[str]) -> dict[str, Any]:
        """Return the records that are there, by key."""
        calls = (partial(self._fetch, part) for part in by_url(keys))
        found: dict[str, Any] = {}
        for answer in self._calls.all("when records were read from it", calls):
            found.update(answer.vectors)
        return found

    def first(self) -> str | None:
        """Return the key of some record; None if there is none."""
        answer = self._calls.one("when records were listed", partial(self._list, 1, None))
        return str(answer.vectors[0].id) if answer.vectors else None

    def keys(self) -> list[str]:
        """Return all keys, for namespaces that are small."""
        return [key for page in self.pages() for key in page]

    def pages(self) -> Iterator[list[str]]:
        """Yield all keys, a hundred or fewer at a time.

        The service lists them in the order of their bytes, and goes on behind the last: what comes and goes
        meanwhile moves no other key.
        """
        for answer in self._paged(partial(self._list, None)):
            yield [each.id for each in answer.vectors]

    def matching(self, condition: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the records whose metadata meet a condition, by key, page by page."""
        for answer in self._paged(partial(self._match, condition)):
            yield answer.vectors

    def count(self) -> int:
        """Return how many records the service reports."""
        stats = self._calls.one("when it was asked for its statistics", self._stats)
        names = (self._name,) if self._name else ("", DEFAULT_NAMESPACE)
        return sum(stats.namespaces[name].vector_count for name in names if name in stats.namespaces)

    def close(self) -> None:
        """Close the index's connections, which its other namespaces share."""
        self._index.close()

    def delete(self, keys: dict[str, str]) -> None:
        """Remove records, given their keys and true ids."""
        listed = list(keys)
        parts = [listed[start : start + MAX_COUNT] for start in range(0, len(listed), MAX_COUNT)]
        answers = self._calls.all(
            "when records were deleted", (partial(self._delete, part) for part in parts)
        )
        for part, _ in zip(parts, answers, strict=True):
            with self._lock:
                self._marks += 1
                for key in part:
                    self._added.pop(key, None)
                    self._gone[key, keys[key]] = self._marks

    def settle(self) -> None:
        """Return when all that was written through this object can be seen.

        Raises
        ------
        StoreUnavailableError
            If that takes longer than the timeout.
        """
        deadline, pause = time.monotonic() + self._calls.timeout, FIRST_POLL
        while not self._settled():
            if time.monotonic() + pause > deadline:
                raise StoreUnavailableError(
                    f"Pinecone has not shown what was written within {self._calls.timeout:g} s; it "
                    "is accepted, and flush() waits for it again"
                )
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST_POLL)

    def _paged(self, page: Callable[[str | None, float], Any]) -> Iterator[Any]:
        """Yield a listing's pages, each asked for with the token in the one before."""
        token = None
        while True:
            answer = self._calls.one("when records were listed", partial(page, token))
            yield answer
            token = answer.pagination.next if answer.pagination is not None else None
            if token is None:
                return

    def _written(self, keys: list[str], names: list[str], number: int | None) -> None:
        with self._lock:
            self._marks += 1
            for key, name in zip(keys, names, strict=True):
                self._gone.pop((key, name), None)
                if number is None:
                    self._added[key] = self._marks
                else:
                    self._added.pop(key, None)
            if number is not None:
                self._committed = max(number, self._committed or 0)

    def _settled(self) -> bool:
        """Look once, and forget what could be seen."""
        with self._lock:
            committed, added, gone = self._committed, dict(self._added), dict(self._gone)
        if committed is not None:
            answer = self._ask(None)
            if not answer.response_info.is_reconciled(committed):
                return False
            with self._lock:
                if self._committed == committed:
                    self._committed = None
        if added:
            found = self.fetch(list(added))
            self._forget(self._added, {key: added[key] for key in found})
            if len(found) < len(added):
                return False
        if gone:
            if self.fetch([key for key, _ in gone]):
                return False
            names = [name for _, name in gone]
            for start in range(0, len(names), MAX_COUNT):
                if self._ask(names[start : start + MAX_COUNT]).matches:
                    return False
            self._forget(self._gone, gone)
        return True

    def _forget(self, marks: dict[Any, int], seen: dict[Any, int]) -> None:
        """Drop what was seen, unless it was written again meanwhile."""
        with self._lock:
            for key, mark in seen.items():
                if marks.get(key) == mark:
                    del marks[key]

    def _ask(self, names: list[str] | None) -> Any:
        """Query for one record, of those ids if any are given."""
        condition = None if names is None else {ID_FIELD: {"$in": names}}
        return self._calls.one("when it was asked for what it shows", partial(self._peek, condition))

    def _send(self, records: list[dict[str, Any]], timeout: float) -> Any:
        return self._index.upsert(vectors=records, namespace=self._name, timeout=timeout)

    def _fetch(self, keys: list[str], timeout: float) -> Any:
        return self._index.fetch(ids=keys, namespace=self._name, timeout=timeout)

    def _list(self, limit: int | None, token: str | None, timeout: float) -> Any:
        return self._index.list_paginated(
            limit=limit, pagination_token=token, namespace=self._name, timeout=timeout
        )

    def _match(self, condition: dict[str, Any], token: str | None, timeout: float) -> Any:
        return self._index.fetch_by_metadata(
            filter=condition, namespace=self._name, pagination_token=token, timeout=timeout
        )

    def _stats(self, timeout: float) -> Any:
        return self._index.describe_index_stats(timeout=timeout)

    def _peek(self, condition: dict[str, Any] | None, timeout: float) -> Any:
        return self._index.query(
            vector=self._probe, top_k=1, namespace=self._name, filter=condition, timeout=timeout
        )

    def _delete(self, keys: list[str], timeout: float) -> None:
        try:
            self._index.delete(ids=keys, namespace=self._name, timeout=timeout)
        except NotFoundError:
            return  # a namespace that is not there holds none of them
