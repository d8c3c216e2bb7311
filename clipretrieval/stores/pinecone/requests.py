"""Requests to Pinecone: side by side, retried until a deadline, with errors that never carry the key."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import httpx
from pinecone import (
    ApiError,
    ForbiddenError,
    PineconeConnectionError,
    PineconeError,
    PineconeTimeoutError,
    UnauthorizedError,
)
from pinecone.errors import ResponseParsingError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_before_delay,
    stop_when_event_set,
    wait_random_exponential,
)

from clipretrieval._util.secrets import masked_text
from clipretrieval.errors import StoreError, StoreUnavailableError
from clipretrieval.stores.pinecone.api_key import ApiKey

__all__ = ["Failure", "Requests", "without_retries"]

T = TypeVar("T")
Call: TypeAlias = Callable[[], T]
"""Sends one request, once."""

REQUEST_TIMEOUT = 408
PAYMENT_REQUIRED = 402
SERVER_ERRORS = 500
TRANSIENT = frozenset({REQUEST_TIMEOUT, 429, 500, 502, 503, 504})
LIMIT = re.compile(r"quota|limit|upgrade|exceed|\bplan\b", re.IGNORECASE)
# The SDK lets a few errors of the HTTP library through as they are.
SDK_ERRORS = (PineconeError, httpx.HTTPError, httpx.InvalidURL)
# Seconds that one attempt may take.
LONGEST_ATTEMPT = 30.0
# Beyond its deadline a request is given this long to say itself why it failed.
GRACE = 0.25
LONGEST_QUOTE = 300

_backoff = wait_random_exponential(multiplier=0.1, max=5.0)
_current: ContextVar[_Ticket] = ContextVar("_current")


@dataclass(frozen=True)
class Failure:
    """How a request ended that did not succeed.

    Attributes
    ----------
    error : StoreError
    certain : bool
        Whether nothing was done. Else the service may have done what it was asked, or may do it yet.
    """

    error: StoreError
    certain: bool

    @property
    def refused(self) -> bool:
        """Whether the service answered that it will not do this."""
        return self.certain and not isinstance(self.error, StoreUnavailableError)


class Requests:
    """Sends requests from threads, a few at a time.

    A request is retried until it succeeds, fails for good, or its deadline is near; and nothing of it is sent
    once its caller has been told that it failed.

    Parameters
    ----------
    key : ApiKey
        It is struck out of every message.
    timeout : float
        Seconds within which each request has to succeed, retries included.
    workers : int
        How many requests of one call run side by side.
    """

    def __init__(self, key: ApiKey, timeout: float, workers: int) -> None:
        self._key, self.timeout, self._workers = key, timeout, workers
        self._lock = threading.Lock()
        self._tickets: set[_Ticket] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"Requests(timeout={self.timeout})"

    def close(self) -> None:
        """Send nothing any more, not even what waits to be sent again."""
        with self._lock:
            self._closed = True
            for ticket in self._tickets:
                ticket.give_up()

    def renewed(self) -> Requests:
        """Return what sends requests by the same rules, and has sent none."""
        return Requests(self._key, self.timeout, self._workers)

    def deadline(self) -> float:
        """Return when what begins now has to be done, on the clock of `time.monotonic`."""
        return time.monotonic() + self.timeout

    def send(self, doing: str, call: Call[T], deadline: float | None = None) -> T:
        """Send one request and return its result.

        Raises
        ------
        StoreError
            If it fails; `doing` says in the message what was attempted.
        """
        outcome = next(self.outcomes(doing, [call], deadline))
        if isinstance(outcome, Failure):
            raise outcome.error
        return outcome

    def outcomes(
        self, doing: str, calls: Iterable[Call[T]], deadline: float | None = None
    ) -> Iterator[T | Failure]:
        """Send requests and yield, in order, the result of each or how it failed.

        Once the service has not answered one of them in time, or refused the key, those that are not sent yet
        stay so and end with the same error.

        Parameters
        ----------
        doing : str
        calls : iterable of callables
        deadline : float, optional
            Of all of them together, on the clock of `time.monotonic`, if it is before that of one alone.
        """
        source, running = iter(calls), deque[tuple[Future[T | Failure], _Ticket]]()
        over: StoreUnavailableError | None = None
        try:
            while True:
                while over is None and len(running) < self._workers:
                    call = next(source, None)
                    if call is None:
                        break
                    running.append(self._start(doing, call, deadline))
                if not running:
                    break
                outcome = self._outcome(doing, *running.popleft())
                if isinstance(outcome, Failure) and isinstance(outcome.error, StoreUnavailableError):
                    over = outcome.error
                yield outcome
        finally:  # nobody asks for the rest where this is left early
            for _, ticket in running:
                ticket.give_up()
        if over is not None:
            for _ in source:
                yield Failure(StoreUnavailableError(f"not sent any more, after this: {over}"), certain=True)

    def scrubbed(self, text: str) -> str:
        """Strike the key and other secrets out of a text, and shorten it."""
        clean = masked_text(self._key.struck_out(text))
        return clean if len(clean) <= LONGEST_QUOTE else f"{clean[:LONGEST_QUOTE]}…"

    def _outcome(self, doing: str, future: Future[T | Failure], ticket: _Ticket) -> T | Failure:
        try:
            return future.result(ticket.left() + GRACE)
        except FutureTimeoutError:  # raised by the future: the thread returns its errors
            late = StoreUnavailableError(f"Pinecone did not answer within {self.timeout:g} s {doing}")
            return Failure(late, certain=not ticket.give_up())

    def _start(
        self, doing: str, call: Call[T], deadline: float | None
    ) -> tuple[Future[T | Failure], _Ticket]:
        """Send one request from a thread of its own.

        An answer that comes a byte at a time holds its thread up beyond the deadline: it takes no other
        request's place, and does not hold up the end of the program.
        """
        own = self.deadline()
        future: Future[T | Failure] = Future()
        ticket = _Ticket(own if deadline is None else min(own, deadline))
        with self._lock:
            if self._closed:
                ticket.give_up()
            self._tickets.add(ticket)

        def work() -> None:
            try:
                future.set_result(self._attempts(doing, call, ticket))
            except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                future.set_exception(error)
            finally:
                with self._lock:
                    self._tickets.discard(ticket)

        threading.Thread(target=work, name="clipretrieval-pinecone", daemon=True).start()
        return future, ticket

    def _attempts(self, doing: str, call: Call[T], ticket: _Ticket) -> T | Failure:
        """Send one request until it succeeds; return its error rather than raise it.

        An error of the SDK holds the request's headers, and with them the key: none may become the cause or
        the context of ours, which is therefore raised outside of any `except`.
        """
        retrying = Retrying(
            sleep=sleep_using_event(ticket.over),
            stop=stop_when_event_set(ticket.over) | stop_before_delay(ticket.left()),
            wait=_pause,
            retry=retry_if_exception(_is_transient),
            reraise=True,
        )
        try:
            answer: T = retrying(ticket.attempt, call)
            return answer
        except SDK_ERRORS as error:
            failure = self._translated(doing, error)
        return Failure(failure, certain=not ticket.doubtful)

    def _translated(self, doing: str, error: Exception) -> StoreError:
        told = self.scrubbed(f"{type(error).__name__}: {error}")
        if self._closed:
            return StoreUnavailableError(f"the PineconeStore was closed {doing}; open it anew")
        if _is_limit(error):
            return StoreUnavailableError(
                f"a quota of the Pinecone project or its plan was exceeded {doing} ({told}); free some of "
                "it, or raise it. The API key was accepted"
            )
        if isinstance(error, ForbiddenError) and isinstance(error.body, dict):
            # The layer that checks keys answers in plain text; JSON comes from behind it.
            return StoreUnavailableError(
                f"Pinecone answered that this is forbidden {doing} ({told}); check what the key's role, the "
                "project and the index allow"
            )
        if isinstance(error, (UnauthorizedError, ForbiddenError)):
            return StoreUnavailableError(
                f"Pinecone refused the API key {doing} ({told}); check api_key or PINECONE_API_KEY, and what "
                "the key may be used for"
            )
        if _is_transient(error):
            return StoreUnavailableError(
                f"Pinecone did not answer within {self.timeout:g} s {doing} (last: {told}); check the "
                "network and https://status.pinecone.io, or allow a longer timeout"
            )
        if isinstance(error, ResponseParsingError):
            return StoreUnavailableError(
                f"what answered {doing} is not Pinecone ({told}); check host=, and whether a proxy or a "
                "login page stands in between"
            )
        return StoreError(f"Pinecone refused the request {doing} ({told})")


class _Ticket:
    """What one request may still do: it is sent before its deadline, and not after it is given up.

    Attributes
    ----------
    over : threading.Event
        Set when it is given up.
    doubtful : bool
        Whether an attempt was out and the service did not say what became of it.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.over = threading.Event()
        self.doubtful = False
        self._out = False
        self._lock = threading.Lock()

    def left(self) -> float:
        """Return the seconds until the deadline, at least 0."""
        return max(0.0, self.deadline - time.monotonic())

    def give_up(self) -> bool:
        """Send nothing any more, and tell whether something may have been applied already."""
        with self._lock:
            self.over.set()
            return self._out or self.doubtful

    def attempt(self, call: Call[T]) -> T:
        """Make one attempt in this thread; its errors are the SDK's."""
        self._out = False
        token = _current.set(self)
        try:
            return call()
        except BaseException as error:
            refused = isinstance(error, ApiError) and REQUEST_TIMEOUT != error.status_code < SERVER_ERRORS
            if self._out and not refused:
                self.doubtful = True
            raise
        finally:
            _current.reset(token)

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Follow what the HTTP library does, and stop a request that would go out too late."""
        if event.endswith("send_request_headers.started"):
            with self._lock:
                if self.over.is_set() or time.monotonic() >= self.deadline:
                    raise httpx.ConnectTimeout("its time was over before it could be sent")
                self._out = True


class _Once(httpx.BaseTransport):
    """Sends a request once, within the time that its ticket leaves."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        ticket = _current.get(None)
        if ticket is not None:
            limit = httpx.Timeout(min(LONGEST_ATTEMPT, max(0.01, ticket.left())))
            request.extensions = {
                **request.extensions,
                "timeout": limit.as_dict(),
                "trace": ticket.trace,
            }
        return self._inner.handle_request(request)

    def close(self) -> None:
        self._inner.close()


def without_retries(client: Any) -> Any:
    """Return a client of the SDK that sends each request once, in the time that its deadline leaves.

    A request that the SDK repeats by itself may be sent long after its caller was told that it failed. What
    the SDK offers does not reach far enough: an `Index` is made without the ``retry_config`` of its client,
    an argument ``timeout`` is for each attempt anew, and nothing tells whether a request went out. Hence its
    private parts are used, in these lines and nowhere else.
    """
    # The SDK's HTTP layer, and the httpx.Client in it: both are private in `Pinecone` and in `Index`.
    http = client._http._client
    # httpx takes a transport when a client is made; the SDK's requests go to this attribute, past the client.
    retrying = http._transport
    # The SDK's transport that retries holds the one that sends, with its TLS, proxy and pool: this is kept.
    http._transport = _Once(getattr(retrying, "_transport", retrying))
    return client


def _is_limit(error: BaseException) -> bool:
    """Tell whether the service refuses for a quota, a plan or a bill, which it does under 402 and 403."""
    if not isinstance(error, ApiError):
        return False
    over = isinstance(error, ForbiddenError) and LIMIT.search(error.message) is not None
    return over or error.status_code == PAYMENT_REQUIRED


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, ApiError):
        return error.status_code in TRANSIENT
    return isinstance(error, (PineconeConnectionError, PineconeTimeoutError, httpx.TransportError))


def _pause(state: RetryCallState) -> float:
    """Return the seconds until the next attempt: random, growing, and no fewer than the service asks for."""
    pause = _backoff(state)
    error = None if state.outcome is None else state.outcome.exception()
    headers: Any = getattr(error, "headers", None) or {}
    try:
        return max(pause, float(headers.get("retry-after", 0)))
    except ValueError:  # a date: the backoff has to do
        return pause
