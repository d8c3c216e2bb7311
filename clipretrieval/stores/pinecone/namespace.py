"""One namespace of an index: its requests, and whether its own writes can be seen yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from pinecone import NotFoundError

from clipretrieval.errors import StoreError, StoreUnavailableError
from clipretrieval.stores.pinecone.marks import Marks
from clipretrieval.stores.pinecone.records import ID_FIELD, MAX_COUNT, by_url, per_answer
from clipretrieval.stores.pinecone.requests import Calls, Failure

__all__ = ["DEFAULT_NAMESPACE", "Space"]

DEFAULT_NAMESPACE = "__default__"
"""How the service calls the namespace without a name."""

# Records in a page, where the answer's size allows as many.
PAGE = 100
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
        self._most = per_answer(dim)
        self._marks = Marks()

    def reconnect(self, index: Any, calls: Calls) -> None:
        """Send requests from now on through another client; what was written stays noted."""
        self._index, self._calls = index, calls

    def __repr__(self) -> str:
        return f"Space({self._name!r})"

    @property
    def doubtful(self) -> bool:
        """Whether there are records of which it is not known whether they are, or will be, stored."""
        return self._marks.doubtful

    def upsert(
        self, parts: Iterable[tuple[list[str], list[dict[str, Any]]]]
    ) -> Iterator[tuple[list[str], StoreError | None]]:
        """Send records; yield the ids of each part with the error that it ended with, if any."""
        sent: list[tuple[list[str], list[str]]] = []

        def calls() -> Iterator[Any]:
            for names, records in parts:
                sent.append((names, [record["id"] for record in records]))
                yield partial(self._send, records)

        done = 0
        try:
            for outcome in self._calls.each("when vectors were sent to it", calls()):
                names, keys = sent[done]
                done += 1
                if not isinstance(outcome, Failure):
                    self._marks.written(keys, getattr(outcome.response_info, "lsn_committed", None))
                    yield names, None
                    continue
                if not outcome.certain:
                    self._marks.doubted(keys, upsert=True)
                yield names, outcome.error
        finally:  # left early, by an interrupt: of what is on its way nothing is known
            for _, keys in sent[done:]:
                self._marks.doubted(keys, upsert=True)

    def searched(self, calls: Iterable[Callable[[], Any]]) -> Iterator[Any]:
        """Send requests that `query` is to make; yield, in order, the answer to each or its `Failure`."""
        return self._calls.each("when it was searched", calls)

    def query(self, vector: list[float], top_k: int, metadata: bool) -> Any:
        """Make one attempt to find the nearest records of a vector, with or without their metadata."""
        return self._index.query(
            vector=vector,
            top_k=top_k,
            namespace=self._name,
            include_metadata=metadata,
            include_values=False,
        )

    def fetch(self, keys: list[str], deadline: float | None = None) -> dict[str, Any]:
        """Return the records that are there, by key."""
        return {key: record for part in self._fetched(keys, deadline) for key, record in part.items()}

    def metadata(self, keys: list[str]) -> dict[str, Any]:
        """Return the metadata of the records that are there, by key; their vectors are read and let go."""
        return {key: record.metadata for part in self._fetched(keys) for key, record in part.items()}

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

    def delete(self, keys: dict[str, str]) -> Iterator[tuple[list[str], StoreError | None]]:
        """Remove records, given their keys and true ids; yield each part's ids with its error, if any."""
        listed = list(keys)
        parts = [listed[start : start + MAX_COUNT] for start in range(0, len(listed), MAX_COUNT)]
        done = 0
        try:
            for outcome in self._calls.each(
                "when records were deleted", (partial(self._delete, part) for part in parts)
            ):
                part = parts[done]
                done += 1
                names = [keys[key] for key in part]
                if not isinstance(outcome, Failure):
                    self._marks.removed(dict(zip(part, names, strict=True)))
                    yield names, None
                    continue
                if not outcome.certain:
                    self._marks.doubted(part, upsert=False)
                yield names, outcome.error
        finally:  # as in `upsert`
            for part in parts[done:]:
                self._marks.doubted(part, upsert=False)

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
        deadline, pause = self._calls.deadline() if deadline is None else deadline, FIRST_POLL
        while not (self._settled(deadline) and shown()):
            if time.monotonic() + pause > deadline:
                raise StoreUnavailableError(
                    f"Pinecone has not shown what was written within {self._calls.timeout:g} s; it "
                    "is accepted, and flush() waits for it again"
                )
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST_POLL)

    def _paged(self, page: Callable[[str | None], Any]) -> Iterator[Any]:
        """Yield a listing's pages, each asked for with the token in the one before."""
        token = None
        while True:
            answer = self._calls.one("when records were listed", partial(page, token))
            yield answer
            token = answer.pagination.next if answer.pagination is not None else None
            if token is None:
                return

    def _fetched(self, keys: list[str], deadline: float | None = None) -> Iterator[dict[str, Any]]:
        yield from self._parts(list(by_url(keys, self._most)), deadline)

    def _parts(self, parts: list[list[str]], deadline: float | None) -> Iterator[dict[str, Any]]:
        """Read some ids at a time, and fewer where the service refuses: an answer's size is not known before.

        Of a part that is refused its first half is tried before any other, so that a refusal for another
        reason is raised after few requests.
        """
        calls = (partial(self._fetch, part) for part in parts)
        outcomes = self._calls.each("when records were read from it", calls, deadline)
        for part, outcome in zip(parts, outcomes, strict=True):
            middle = len(part) // 2
            if not isinstance(outcome, Failure):
                yield outcome.vectors
            elif outcome.refused and middle:
                yield from self._parts([part[:middle]], deadline)
                yield from self._parts([part[middle:]], deadline)
            else:
                raise outcome.error

    def _settled(self, deadline: float) -> bool:
        """Look once, and forget what could be seen."""
        left = self._marks.unseen()
        if left.committed is not None:
            if not self._ask(None, deadline).response_info.is_reconciled(left.committed):
                return False
            self._marks.seen(committed=left.committed)
        if left.added:
            found = self.fetch(list(left.added), deadline)
            self._marks.seen(added={key: left.added[key] for key in found})
            if len(found) < len(left.added):
                return False
        if left.gone:
            if self.fetch(list(left.gone), deadline):
                return False
            names = [name for name, _ in left.gone.values()]
            for start in range(0, len(names), MAX_COUNT):
                if self._ask(names[start : start + MAX_COUNT], deadline).matches:
                    return False
            self._marks.seen(gone=left.gone)
        return True

    def _ask(self, names: list[str] | None, deadline: float) -> Any:
        """Query for one record, of those ids if any are given."""
        condition = None if names is None else {ID_FIELD: {"$in": names}}
        return self._calls.one(
            "when it was asked for what it shows", partial(self._peek, condition), deadline
        )

    def _send(self, records: list[dict[str, Any]]) -> Any:
        return self._index.upsert(vectors=records, namespace=self._name)

    def _fetch(self, keys: list[str]) -> Any:
        return self._index.fetch(ids=keys, namespace=self._name)

    def _list(self, limit: int | None, token: str | None) -> Any:
        return self._index.list_paginated(limit=limit, pagination_token=token, namespace=self._name)

    def _match(self, condition: dict[str, Any], token: str | None) -> Any:
        return self._index.fetch_by_metadata(
            filter=condition,
            namespace=self._name,
            limit=min(PAGE, self._most),
            pagination_token=token,
        )

    def _stats(self) -> Any:
        return self._index.describe_index_stats()

    def _peek(self, condition: dict[str, Any] | None) -> Any:
        return self._index.query(vector=self._probe, top_k=1, namespace=self._name, filter=condition)

    def _delete(self, keys: list[str]) -> None:
        try:
            self._index.delete(ids=keys, namespace=self._name)
        except NotFoundError:
            return  # a namespace that is not there holds none of them
