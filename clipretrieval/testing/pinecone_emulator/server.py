"""HTTP on loopback for the emulated planes, and which requests fail there, and how."""

from __future__ import annotations

import contextlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

import numpy as np

from clipretrieval.errors import InvalidInputError
from clipretrieval.testing.pinecone_emulator.answers import (
    Answer,
    Refused,
    over_quota,
    refusal,
    text_answer,
)

__all__ = ["FaultPlan", "Faults", "PlaneServer", "ReceivedRequest"]

FAULTS = ("429", "503", "slow", "cut", "echo", "quota")
VERSION_HEADER, VERSION = "X-Pinecone-Api-Version", "2026-07"
EARLIER_VERSIONS = (
    "2024-04",
    "2024-07",
    "2024-10",
    "2025-01",
    "2025-04",
    "2025-10",
    "2026-01.alpha",
    "2026-04",
)


@dataclass(frozen=True)
class ReceivedRequest:
    """A request that the emulator received; never with the key.

    Attributes
    ----------
    index : str or None
        The index it went to; None for the control plane.
    method : str
    path : str
        Without the query.
    parameters : mapping of str to list of str
        The query.
    body : bytes
    status : int or None
        What was answered; None where the connection was cut.
    fault : str or None
        The fault that befell it.
    """

    index: str | None
    method: str
    path: str
    parameters: Mapping[str, list[str]]
    body: bytes
    status: int | None
    fault: str | None

    def json(self) -> Any:
        """Return the body as JSON values."""
        return json.loads(self.body)


@dataclass(frozen=True)
class FaultPlan:
    """What shall go wrong; `PineconeEmulator.fail` documents the fields."""

    rate: float = 0.0
    kinds: Sequence[str] = ()
    seed: int = 0
    script: Sequence[str | None] = ()
    paths: Sequence[str] = ()
    retry_after: float = 0.0
    delay: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise InvalidInputError(f"rate must be from 0 to 1; found {self.rate!r}")
        wrong = [kind for kind in (*self.kinds, *self.script) if kind is not None and kind not in FAULTS]
        if wrong:
            known = ", ".join(repr(kind) for kind in FAULTS)
            raise InvalidInputError(f"unknown kinds of fault {wrong}; choose among {known}")
        if self.rate and not self.kinds:
            raise InvalidInputError("a rate needs at least one kind of fault")


class Faults:
    """Draws a fault for each request; the draws depend on the seed and on the order of the requests alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.follow(FaultPlan())

    def follow(self, plan: FaultPlan) -> None:
        """Forget the plan before and follow this one."""
        with self._lock:
            self.plan = plan
            self._script = list(plan.script)
            self._random = np.random.default_rng(plan.seed)

    def draw(self, path: str) -> tuple[str | None, FaultPlan]:
        """Return the kind of fault that befalls a request, None for none, and the plan that says so."""
        with self._lock:
            plan = self.plan
            if plan.paths and not path.startswith(tuple(plan.paths)):
                return None, plan
            if self._script:
                return self._script.pop(0), plan
            if plan.rate and self._random.random() < plan.rate:
                return plan.kinds[int(self._random.integers(len(plan.kinds)))], plan
            return None, plan


class Plane(Protocol):
    """What a server asks for its answers."""

    plane: str

    def answer(self, method: str, path: str, parameters: Mapping[str, list[str]], body: bytes) -> Answer: ...


class PlaneServer(ThreadingHTTPServer):
    """Serves one plane on a free port, from a thread, until it is stopped.

    Parameters
    ----------
    address : str
        A loopback address.
    plane : Plane
    index : str or None
        The index that the plane belongs to.
    api_key : str
    faults : Faults
    record : callable
        Called with every `ReceivedRequest`.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        address: str,
        plane: Plane,
        index: str | None,
        api_key: str,
        faults: Faults,
        record: Callable[[ReceivedRequest], None],
    ) -> None:
        super().__init__((address, 0), _Handler)
        self.plane, self.index, self.faults, self.record = plane, index, faults, record
        self._api_key = api_key
        self._connections: set[socket.socket] = set()
        self._guard = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The server's address, with scheme and port."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def authorized(self, key: str | None) -> bool:
        """Tell whether a request carries the right key."""
        return key is not None and hmac.compare_digest(key.encode(), self._api_key.encode())

    def stop(self) -> None:
        """Refuse new connections and break those that are open."""
        self.shutdown()
        self.server_close()
        self._thread.join()
        with self._guard:
            for connection in self._connections:
                _break(connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients break connections, and `stop` breaks theirs."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: PlaneServer

    def do_GET(self) -> None:
        length = self.headers.get("Content-Length", "0")
        body = self.rfile.read(int(length)) if length.isdecimal() else b""
        split = urlsplit(self.path)
        parameters = parse_qs(split.query, keep_blank_values=True)
        server, fault = self.server, None
        key = self.headers.get("Api-Key")
        if server.authorized(key):
            fault, plan = server.faults.draw(split.path)
            if fault == "slow":
                time.sleep(plan.delay)
            waiting = {"Retry-After": f"{plan.retry_after:g}"}
            if fault == "429":
                answer = text_answer(429, "Too many requests", waiting)
            elif fault == "503":
                answer = refusal(server.plane.plane, 503, "The service is unavailable", waiting)
            elif fault == "quota":
                answer = over_quota(server.plane.plane)
            elif fault == "echo":
                answer = refusal(server.plane.plane, 400, f"cannot read the request with Api-Key: {key}")
            else:
                answer = self._answer(split.path, parameters, body)
        else:
            answer = text_answer(401, "Unauthorized")
        status = None if fault == "cut" else answer.status
        server.record(
            ReceivedRequest(server.index, self.command, split.path, parameters, body, status, fault)
        )
        if fault == "cut":
            self.close_connection = True
            _break(self.connection)
        else:
            self._send(answer)

    do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815 - the names that the base class looks for

    def _answer(self, path: str, parameters: Mapping[str, list[str]], body: bytes) -> Answer:
        try:
            _check_headers(self.headers, self.command)
            return self.server.plane.answer(self.command, path, parameters, body)
        except Refused as refused:
            return refusal(self.server.plane.plane, refused.status, refused.message)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base class
        """Write no access log."""


def _check_headers(headers: Message, method: str) -> None:
    """Refuse a request without the version that is emulated, or with a body that is not said to be JSON."""
    version = headers.get(VERSION_HEADER)
    if version in EARLIER_VERSIONS:
        raise Refused(501, f"version {version} of the API is not emulated, {VERSION} is")
    if version != VERSION:
        raise Refused(400, f"the header {VERSION_HEADER} must name a version of the API, such as {VERSION}")
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if method == "POST" and kind != "application/json":
        raise Refused(415, "the body must be sent with Content-Type: application/json")


def _break(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the client was faster
        connection.shutdown(socket.SHUT_RDWR)
