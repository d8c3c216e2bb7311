"""One namespace of an index: its requests, and whether its own writes can be seen yet."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from pinecone import NotFoundError

from clipretrieval._util.forks import ForkLock
from clipretrieval.errors import StoreError, StoreUnavailableError
from clipretrieval.stores.pinecone.records import ID_FIELD, MAX_COUNT, fetch_parts, per_answer
from clipretrieval.stores.pinecone.requests import Failure, Requests

__all__ = ["DEFAULT_NAMESPACE", "Namespace"]

DEFAULT_NAMESPACE = "__default__"
"""How the service calls the namespace without a name."""

# Records in a page, where the answer's size allows as many.
PAGE = 100
FIRST_POLL = 0.02
LONGEST_POLL = 1.0


class Namespace:
    """Requests to one namespace through the SDK's client of its index.

    Pinecone shows a write some time after it has accepted it. An upsert is given a number in the namespace's
    log, and a query tells up to which number it has seen; the SDK tells none of a delete, nor where a server
    gives none: then the records are looked for.

    Parameters
    ----------
    index : pinecone.Index
    name : str
    dim : int
    requests : Requests

    Attributes
    ----------
    unit : list of float
        A vector for queries and records of which only the metadata matter.
    """

    def __init__(self, index: Any, name: str, dim: int, requests: Requests) -> None:
        self._index, self._name, self._requests = index, name, requests
        self.unit = [1.0, *[0.0] * (dim - 1)]
        self._most = per_answer(dim)
        self._writes = _Writes()

    def reconnect(self, index: Any, requests: Requests) -> None:
        """Send requests from now on through another client; what was written stays noted."""
        self._index, self._requests = index, requests

    def __repr__(self) -> str:
        return f"Namespace({self._name!r})"

    @property
    def doubtful(self) -> bool:
        """Whether there are records of which it is not known whether they are, or will be, stored."""
        return self._writes.doubtful

    def upsert(
        self, parts: Iterable[tuple[list[str], list[dict[str, Any]]]]
    ) -> Iterator[tuple[list[str], StoreError | None]]:
        """Send records; yield the ids of each part with the error that it ended with, if any."""

        def note(names: list[str], keys: list[str], answer: Any) -> None:
            self._writes.written(keys, getattr(answer.response_info, "lsn_committed", None))

        calls = (
            (
                names,
                [record["id"] for record in records],
                partial(self._index.upsert, vectors=records, namespace=self._name),
            )
            for names, records in parts
        )
        return self._write("when vectors were sent to it", calls, note, upsert=True)

    def delete(self, names: dict[str, str]) -> Iterator[tuple[list[str], StoreError | None]]:
        """Remove records, given their true ids by key; yield each part's ids with its error, if any."""

        def note(names: list[str], keys: list[str], answer: Any) -> None:
            self._writes.removed(dict(zip(keys, names, strict=True)))

        every = list(names)
        parts = (every[start : start + MAX_COUNT] for start in range(0, len(every), MAX_COUNT))
        calls = (([names[key] for key in keys], keys, partial(self._delete, keys)) for keys in parts)
        return self._write("when records were deleted", calls, note, upsert=False)

    def query(self, asked: Iterable[tuple[list[float], int, bool]]) -> Iterator[Any]:
        """Look for the nearest records of vectors.

        Parameters
        ----------
        asked : iterable of (vector, count, metadata)
            How many records are wanted, and whether with their metadata.

        Yields
        ------
        pinecone.QueryResponse or Failure
            In order.
        """
        calls = (
            partial(
                self._index.query,
                vector=vector,
                top_k=count,
                namespace=self._name,
                include_metadata=metadata,
                include_values=False,
            )
            for vector, count, metadata in asked
        )
        return self._requests.outcomes("when it was searched", calls)

    def fetch(self, keys: list[str], deadline: float | None = None) -> dict[str, Any]:
        """Return the records that are there, by key."""
        found = self._fetched(fetch_parts(keys, self._most), deadline)
        return {key: record for part in found for key, record in part.items()}

    def metadata(self, keys: list[str]) -> dict[str, Any]:
        """Return the metadata of the records that are there, by key; their vectors are read and let go."""
        found = self._fetched(fetch_parts(keys, self._most), None)
        return {key: record.metadata for part in found for key, record in part.items()}

    def first(self) -> str | None:
        """Return the key of some record; None if there is none."""
        answer = self._requests.send("when records were listed", partial(self._list, 1, None))
        return str(answer.vectors[0].id) if answer.vectors else None

    def pages(self, prefix: str = "") -> Iterator[list[str]]:
        """Yield all keys, or those that begin so, a hundred or fewer at a time.

        The service lists them in the order of their bytes, and goes on behind the last: what comes and goes
        meanwhile moves no other key.
        """
        for answer in self._paged(partial(self._list, None, prefix=prefix or None)):
            yield [each.id for each in answer.vectors]

    def everything(self) -> Iterator[dict[str, Any]]:
        """Yield all records, by key, a thousand or so at a time."""
        waiting: list[str] = []
        for page in self.pages():
            waiting += page
            if len(waiting) >= MAX_COUNT:
                yield self.fetch(waiting)
                waiting = []
        if waiting:
            yield self.fetch(waiting)

    def matching(self, condition: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the records whose metadata meet a condition, by key, page by page."""
        for answer in self._paged(partial(self._match, condition)):
            yield answer.vectors

    def count(self) -> int:
        """Return how many records the service reports."""
        stats = self._requests.send("when it was asked for its statistics", self._index.describe_index_stats)
        names = (self._name,) if self._name else ("", DEFAULT_NAMESPACE)
        return sum(stats.namespaces[name].vector_count for name in names if name in stats.namespaces)

    def close(self) -> None:
        """Close the index's connections, which its other namespaces share."""
        self._index.close()

    def settle(self, deadline: float | None = None, shown: Callable[[], bool] = lambda: True) -> None:
        """Return when all that was written through this object can be seen.

        Parameters
        ----------
        deadline : float, optional
            On the clock of `time.monotonic`; in the timeout's time if left out.
        shown : callable
            Tells whether the service shows what only the caller can recognize: a record in another's place.

        Raises
        ------
        StoreUnavailableError
            If that takes longer than the timeout.
        """
        deadline, pause = self._requests.deadline() if deadline is None else deadline, FIRST_POLL
        while not (self._settled(deadline) and shown()):
            if time.monotonic() + pause > deadline:
                raise StoreUnavailableError(
                    f"Pinecone has not shown what was written within {self._requests.timeout:g} s; it "
                    "is accepted, and flush() waits for it again"
                )
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST_POLL)

    def _write(
        self,
        doing: str,
        parts: Iterable[tuple[list[str], list[str], Callable[[], Any]]],
        note: Callable[[list[str], list[str], Any], None],
        *,
        upsert: bool,
    ) -> Iterator[tuple[list[str], StoreError | None]]:
        """Send writes, given their ids, keys and calls, and note what has become of each."""
        sent: deque[tuple[list[str], list[str]]] = deque()

        def calls() -> Iterator[Callable[[], Any]]:
            for names, keys, call in parts:
                sent.append((names, keys))
                yield call

        try:
            for outcome in self._requests.outcomes(doing, calls()):
                names, keys = sent.popleft()
                if not isinstance(outcome, Failure):
                    note(names, keys, outcome)
                    yield names, None
                    continue
                if not outcome.certain:
                    self._writes.doubted(keys, upsert)
                yield names, outcome.error
        finally:  # left early, by an interrupt: of what is on its way nothing is known
            for _, keys in sent:
                self._writes.doubted(keys, upsert)

    def _paged(self, page: Callable[[str | None], Any]) -> Iterator[Any]:
        """Yield a listing's pages, each asked for with the token in the one before."""
        token = None
        while True:
            answer = self._requests.send("when records were listed", partial(page, token))
            yield answer
            token = answer.pagination.next if answer.pagination is not None else None
            if token is None:
                return

    def _fetched(self, parts: list[list[str]], deadline: float | None) -> Iterator[dict[str, Any]]:
        """Read some ids at a time, and fewer where the service refuses: an answer's size is not known before.

        Of a part that is refused its first half is tried before any other, so that a refusal for another
        reason is raised after few requests.
        """
        calls = (partial(self._index.fetch, ids=part, namespace=self._name) for part in parts)
        outcomes = self._requests.outcomes("when records were read from it", calls, deadline)
        for part, outcome in zip(parts, outcomes, strict=True):
            middle = len(part) // 2
            if not isinstance(outcome, Failure):
                yield outcome.vectors
            elif outcome.refused and middle:
                yield from self._fetched([part[:middle]], deadline)
                yield from self._fetched([part[middle:]], deadline)
            else:
                raise outcome.error

    def _settled(self, deadline: float) -> bool:
        """Look once, and forget what could be seen."""
        left = self._writes.unseen()
        if left.committed is not None:
            if not self._probed(None, deadline).response_info.is_reconciled(left.committed):
                return False
            self._writes.seen(committed=left.committed)
        if left.added:
            found = self.fetch(list(left.added), deadline)
            self._writes.seen(added={key: left.added[key] for key in found})
            if len(found) < len(left.added):
                return False
        if left.gone:
            if self.fetch(list(left.gone), deadline):
                return False
            names = [name for name, _ in left.gone.values()]
            for start in range(0, len(names), MAX_COUNT):
                if self._probed(names[start : start + MAX_COUNT], deadline).matches:
                    return False
            self._writes.seen(gone=left.gone)
        return True

    def _probed(self, names: list[str] | None, deadline: float) -> Any:
        """Query for one record, of those ids if any are given."""
        condition = None if names is None else {ID_FIELD: {"$in": names}}
        call = partial(self._index.query, vector=self.unit, top_k=1, namespace=self._name, filter=condition)
        return self._requests.send("when it was asked for what it shows", call, deadline)

    # A listing may go on in a forked process: the client is looked up for each page.
    def _list(self, limit: int | None, token: str | None, prefix: str | None = None) -> Any:
        return self._index.list_paginated(
            prefix=prefix, limit=limit, pagination_token=token, namespace=self._name
        )

    def _match(self, condition: dict[str, Any], token: str | None) -> Any:
        return self._index.fetch_by_metadata(
            filter=condition,
            namespace=self._name,
            limit=min(PAGE, self._most),
            pagination_token=token,
        )

    def _delete(self, keys: list[str]) -> None:
        try:
            self._index.delete(ids=keys, namespace=self._name)
        except NotFoundError:
            return  # a namespace that is not there holds none of them


@dataclass(frozen=True)
class _Unseen:
    """What has to be looked for.

    Attributes
    ----------
    committed : int or None
        The number of the last upsert in the namespace's log.
    added : dict of str to int
        Keys that have to be there, each with the number of its write.
    gone : dict of str to (str, int)
        Keys that must not be there, each with the true id and the number.
    """

    committed: int | None
    added: dict[str, int]
    gone: dict[str, tuple[str, int]]


class _Writes:
    """What was written and is not seen yet, or is not known to be written; threads may share it."""

    def __init__(self) -> None:
        self._lock = ForkLock()
        self._committed: int | None = None
        self._added: dict[str, int] = {}
        self._gone: dict[str, tuple[str, int]] = {}
        self._doubted: set[str] = set()
        self._last = 0

    @property
    def doubtful(self) -> bool:
        with self._lock.current:
            return bool(self._doubted)

    def written(self, keys: list[str], number: int | None) -> None:
        """Note an upsert that the service accepted, with its number in the log if it gave one."""
        with self._lock.current:
            self._forget(keys)
            self._doubted.difference_update(keys)
            if number is None:
                self._last += 1
                self._added.update(dict.fromkeys(keys, self._last))
            else:
                self._committed = max(number, self._committed or 0)

    def removed(self, names: dict[str, str]) -> None:
        """Note a delete that the service accepted, of keys with their true ids."""
        with self._lock.current:
            self._forget(names)
            self._doubted.difference_update(names)
            self._last += 1
            self._gone.update({key: (name, self._last) for key, name in names.items()})

    def doubted(self, keys: list[str], upsert: bool) -> None:
        """Note a write that may have been done or not, or may be done yet: nothing of it is looked for."""
        with self._lock.current:
            self._forget(keys)
            if upsert:
                self._doubted.update(keys)

    def unseen(self) -> _Unseen:
        """Return what has to be looked for now."""
        with self._lock.current:
            return _Unseen(self._committed, dict(self._added), dict(self._gone))

    def seen(
        self,
        committed: int | None = None,
        added: dict[str, int] | None = None,
        gone: dict[str, tuple[str, int]] | None = None,
    ) -> None:
        """Drop what was seen, unless it was written again meanwhile."""
        with self._lock.current:
            if committed is not None and self._committed == committed:
                self._committed = None
            for key, number in (added or {}).items():
                if self._added.get(key) == number:
                    del self._added[key]
            for key, state in (gone or {}).items():
                if self._gone.get(key) == state:
                    del self._gone[key]

    def _forget(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._added.pop(key, None)
            self._gone.pop(key, None)
