"""One HTTP request, with the certainty of whether it went out: the SDK's own retries are taken away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

import httpx
from pinecone import ApiError

__all__ = ["LONGEST_ATTEMPT", "Ticket", "unretried"]

T = TypeVar("T")

LONGEST_ATTEMPT = 30.0
REQUEST_TIMEOUT = 408
SERVER_ERRORS = 500

_current: ContextVar[Ticket] = ContextVar("_current")


class Ticket:
    """What one request may still do: it is sent before its deadline, and not after it is given up.

    Parameters
    ----------
    deadline : float
        On the clock of `time.monotonic`.

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

    def attempt(self, call: Callable[[], T]) -> T:
        """Make one attempt in this thread; its errors are the SDK's."""
        self._out = False
        token = _current.set(self)
        try:
            return call()
        except BaseException as error:
            if self._out and not _is_refusal(error):
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


def unretried(client: Any) -> Any:
    """Return a client of the SDK that sends each request once, in the time that the `Ticket` leaves.

    ``retry_config`` does not reach the data plane, and a request that the SDK repeats by itself may be sent
    long after its caller was told that it failed.
    """
    http = client._http._client
    http._transport = _Once(getattr(http._transport, "_transport", http._transport))
    return client


def _is_refusal(error: BaseException) -> bool:
    """Tell whether the service said that it did not do what it was asked."""
    return isinstance(error, ApiError) and REQUEST_TIMEOUT != error.status_code < SERVER_ERRORS
