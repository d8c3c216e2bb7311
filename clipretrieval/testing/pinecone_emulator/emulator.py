"""An emulator of the Pinecone service, for tests without an account or a network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar

from clipretrieval._util.repr import safe_repr
from clipretrieval.errors import InvalidInputError
from clipretrieval.testing.pinecone_emulator.control import ControlPlane
from clipretrieval.testing.pinecone_emulator.data import DataPlane
from clipretrieval.testing.pinecone_emulator.server import (
    FaultPlan,
    Faults,
    PlaneServer,
    ReceivedRequest,
)

__all__ = ["PineconeEmulator"]

Self = TypeVar("Self", bound="PineconeEmulator")


class PineconeEmulator:
    """A server on loopback that Pinecone's own SDK talks to as if it were the service.

    It answers the requests of the REST API 2026-07 that manage serverless indexes (create, describe, list,
    delete) and those that read and write dense vectors (upsert, query, fetch by id or metadata, delete, list,
    statistics), in the published shapes. It refuses what the service refuses: a missing or wrong key or API
    version, requests over their limits, wrong dimensions, ids, values, metadata, filters, tags and unknown
    fields. Searches are exact. Nothing is kept after `stop`. Every other operation, and every other version
    of the API, is answered with status 501.

    It is a context manager.

    Parameters
    ----------
    api_key : str
        The key that requests must carry.
    address : str
        A loopback address. The SDK keeps its retry budget for each address, throughout the process: give a
        test that breaks many requests an address of its own, 127.0.0.2 say (on Linux all of 127.0.0.0/8 are
        there).
    visibility_delay : float
        Seconds until a write can be seen by reads; with ``math.inf``, not before `catch_up` is called.
    creation_delay : float
        Seconds until a new index is ready, likewise.
    log_numbers : bool
        Whether answers carry the log sequence numbers that tell whether a read has seen a write.

    Examples
    --------
    >>> with PineconeEmulator(api_key="any key") as emulator:
    ...     emulator.host.startswith("http://127.0.0.1:")
    True
    """

    def __init__(
        self,
        api_key: str = "emulator",
        *,
        address: str = "127.0.0.1",
        visibility_delay: float = 0.0,
        creation_delay: float = 0.0,
        log_numbers: bool = True,
    ) -> None:
        if not api_key or not api_key.isascii():
            raise InvalidInputError("api_key must be a non-empty str of ASCII letters")
        self._api_key, self._address = api_key, address
        self._faults = Faults()
        self._requests: list[ReceivedRequest] = []
        self._lock = threading.Lock()
        self._control = ControlPlane(self._serve, visibility_delay, creation_delay, log_numbers)
        self._server = PlaneServer(address, self._control, None, api_key, self._faults, self._record)
        self._stopped = False

    @property
    def host(self) -> str:
        """The control plane's address: what ``Pinecone(host=…)`` and ``PineconeStore(host=…)`` take."""
        return self._server.url

    @property
    def requests(self) -> list[ReceivedRequest]:
        """All requests received so far, in the order in which they were answered."""
        with self._lock:
            return list(self._requests)

    def contents(self, index: str, namespace: str = "") -> dict[str, tuple[list[float], dict[str, Any]]]:
        """Return all that was written to a namespace, whether reads can see it yet or not.

        Returns
        -------
        dict of str to (list of float, dict)
            Values and metadata by id; empty if there is no such index or namespace.
        """
        plane = self._control.index(index)
        held = {} if plane is None else plane.contents(namespace)
        return {name: (record.values.tolist(), dict(record.metadata)) for name, record in held.items()}

    def catch_up(self) -> None:
        """Let every write so far be seen, and every index be ready, at once, whatever the delays."""
        self._control.catch_up()

    def fail(
        self,
        rate: float = 0.0,
        kinds: Sequence[str] = ("429", "503", "cut"),
        *,
        seed: int = 0,
        script: Sequence[str | None] = (),
        paths: Sequence[str] = (),
        retry_after: float = 0.0,
        delay: float = 1.0,
    ) -> None:
        """Let requests fail from now on; a plan made before is forgotten.

        Parameters
        ----------
        rate : float
            The share of requests that fail, in [0, 1].
        kinds : sequence of str
            Drawn from with equal chances. ``"429"`` and ``"503"`` are answered in place of the request, with
            a Retry-After; ``"slow"`` answers late; ``"cut"`` does what is asked and then breaks the
            connection without an answer; ``"echo"`` is a 400 whose message repeats the key, as that of a
            careless proxy may; ``"quota"`` is the 403 of an exhausted quota.
        seed : int
            Of the draws.
        script : sequence of str or None
            What befalls the next requests, one after the other; None lets one pass. `rate` holds afterwards.
        paths : sequence of str
            The beginnings of the paths that fail, such as ``"/vectors/upsert"``; empty for all.
        retry_after : float
            Seconds in the header Retry-After.
        delay : float
            Seconds that a slow answer takes.

        Raises
        ------
        InvalidInputError
            If the rate is not in [0, 1] or a kind is unknown.
        """
        self._faults.follow(FaultPlan(rate, kinds, seed, script, paths, retry_after, delay))

    def heal(self) -> None:
        """Let every request pass again."""
        self._faults.follow(FaultPlan())

    def stop(self) -> None:
        """Refuse connections from now on, and break those that are open; calling it again does nothing."""
        if not self._stopped:
            self._stopped = True
            self._control.stop()
            self._server.stop()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @safe_repr
    def __repr__(self) -> str:
        return f"PineconeEmulator(host={self.host!r}{', stopped' if self._stopped else ''})"

    def _serve(self, plane: DataPlane, name: str) -> tuple[str, Callable[[], None]]:
        server = PlaneServer(self._address, plane, name, self._api_key, self._faults, self._record)
        return server.url, server.stop

    def _record(self, request: ReceivedRequest) -> None:
        with self._lock:
            self._requests.append(request)
