"""Requests to Pinecone: side by side, retried until a deadline, with errors that never carry the key."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
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
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

from clipretrieval.errors import StoreError, StoreUnavailableError

__all__ = ["Calls"]

T = TypeVar("T")
Call: TypeAlias = Callable[[float], T]
"""Sends one request, given the seconds that one attempt may take."""

TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
# The SDK lets a few errors of the HTTP library through as they are.
SDK_ERRORS = (PineconeError, httpx.HTTPError, httpx.InvalidURL)
LONGEST_ATTEMPT = 30.0
# Beyond its deadline a request is given this long to say itself why it failed.
GRACE = 0.25
LONGEST_QUOTE = 300

_backoff = wait_random_exponential(multiplier=0.1, max=5.0)


class Calls:
    """Sends requests from threads, a few at a time.

    The SDK retries a request a few times by itself, and no longer where its budget for the host is spent.
    Here it is retried until it succeeds, fails for good, or its deadline is near.

    Parameters
    ----------
    key : str
        The API key, which is struck out of every message.
    timeout : float
        Seconds within which each request has to succeed, retries included.
    workers : int
        How many requests of one call run side by side.
    """

    def __init__(self, key: str, timeout: float, workers: int) -> None:
        self._key, self.timeout, self._workers = key, timeout, workers

    def __repr__(self) -> str:
        return f"Calls(timeout={self.timeout})"

    def one(self, doing: str, call: Call[T]) -> T:
        """Send one request.

        Raises
        ------
        StoreError
            If it fails; `doing` says in the message what was attempted.
        """
        return next(self.all(doing, [call]))

    def all(self, doing: str, calls: Iterable[Call[T]]) -> Iterator[T]:
        """Send requests and yield their results in order; the first that fails ends it."""
        for outcome in self.each(doing, calls):
            if isinstance(outcome, StoreError):
                raise outcome
            yield outcome

    def each(self, doing: str, calls: Iterable[Call[T]]) -> Iterator[T | StoreError]:
        """Send requests and yield, in order, the result of each or the error that it ended with.

        Once the service has not answered one of them in time, or refused the key, those that are not sent yet
        stay so and end with the same error.
        """
        source, running = iter(calls), deque[tuple[Future[T | StoreError], float]]()
        over: StoreUnavailableError | None = None
        while True:
            while over is None and len(running) < self._workers:
                call = next(source, None)
                if call is None:
                    break
                deadline = time.monotonic() + self.timeout
                running.append((self._start(doing, call, deadline), deadline))
            if not running:
                break
            outcome = self._outcome(doing, *running.popleft())
            if isinstance(outcome, StoreUnavailableError):
                over = outcome
            yield outcome
        if over is not None:
            for _ in source:
                yield StoreUnavailableError(f"not sent any more, after this: {over}")

    def scrubbed(self, text: str) -> str:
        """Strike the key out of a text, and shorten it."""
        clean = text.replace(self._key, "***")
        return clean if len(clean) <= LONGEST_QUOTE else f"{clean[:LONGEST_QUOTE]}…"

    def _outcome(self, doing: str, future: Future[T | StoreError], deadline: float) -> T | StoreError:
        try:
            return future.result(max(0.0, deadline - time.monotonic()) + GRACE)
        except FutureTimeoutError:  # raised by the future: the thread returns its errors
            return StoreUnavailableError(f"Pinecone did not answer within {self.timeout:g} s {doing}")

    def _start(self, doing: str, call: Call[T], deadline: float) -> Future[T | StoreError]:
        """Send one request from a thread of its own.

        A thread that was waited for in vain may sleep in the SDK for minutes, where the service asks for it:
        it takes no other request's place, and does not hold up the end of the program.
        """
        future: Future[T | StoreError] = Future()

        def work() -> None:
            try:
                future.set_result(self._attempts(doing, call, deadline))
            except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                future.set_exception(error)

        threading.Thread(target=work, name="clipretrieval-pinecone", daemon=True).start()
        return future

    def _attempts(self, doing: str, call: Call[T], deadline: float) -> T | StoreError:
        """Send one request until it succeeds; return its error rather than raise it.

        An error of the SDK holds the request's headers, and with them the key: none may become the cause or
        the context of ours, which is therefore raised outside of any `except`.
        """
        retrying = Retrying(
            stop=stop_before_delay(max(0.0, deadline - time.monotonic())),
            wait=_pause,
            retry=retry_if_exception(_is_transient),
            reraise=True,
        )
        try:
            return retrying(lambda: call(min(LONGEST_ATTEMPT, max(0.01, deadline - time.monotonic()))))
        except SDK_ERRORS as error:
            failure = self._translated(doing, error)
        return failure

    def _translated(self, doing: str, error: Exception) -> StoreError:
        told = self.scrubbed(f"{type(error).__name__}: {error}")
        if isinstance(error, (UnauthorizedError, ForbiddenError)):
            return StoreUnavailableError(
                f"Pinecone refused the API key {doing} ({told}); check api_key or PINECONE_API_KEY, and what "
                "the key's project and plan allow"
            )
        if _is_transient(error):
            return StoreUnavailableError(
                f"Pinecone did not answer within {self.timeout:g} s {doing} (last: {told}); check the "
                "network and https://status.pinecone.io, or allow a longer timeout"
            )
        return StoreError(f"Pinecone refused the request {doing} ({told})")


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
