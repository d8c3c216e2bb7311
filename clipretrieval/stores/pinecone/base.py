"""What a PineconeStore is before it stores anything: where it is, and until when it is open."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from clipretrieval._util.checks import check_bool, check_choice, check_int, check_number, shown
from clipretrieval._util.forks import ForkLock, renew_after_fork
from clipretrieval._util.repr import safe_repr
from clipretrieval.errors import InvalidInputError, StoreError, UnsupportedOperationError
from clipretrieval.stores.base import unclonable
from clipretrieval.stores.context import ClosedAtExit
from clipretrieval.stores.pinecone.host import control_plane
from clipretrieval.stores.pinecone.index import MAX_DIMENSION
from clipretrieval.stores.pinecone.key import ApiKey
from clipretrieval.stores.pinecone.manifest import MANIFEST_SPACE
from clipretrieval.stores.pinecone.namespace import DEFAULT_NAMESPACE
from clipretrieval.stores.pinecone.requests import Calls
from clipretrieval.stores.pinecone.session import Address, Session
from clipretrieval.types import Metric

__all__ = ["PineconeBase"]

INDEX_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,43}[a-z0-9])?")
MAX_NAMESPACE_LENGTH = 400
CLOUDS = ("aws", "gcp", "azure")
REGION = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
LONGEST_TIMEOUT = 1_000_000


class PineconeBase(ClosedAtExit):
    """Opens and closes the session, and tells where it leads without telling the key."""

    def __init__(
        self, address: Address, dim: int | None, key: ApiKey, timeout: float, concurrency: int
    ) -> None:
        timeout = check_number(timeout, "timeout", above=0, most=LONGEST_TIMEOUT)
        concurrency = check_int(concurrency, "concurrency", most=64)
        dim = None if dim is None else check_int(dim, "dim", most=MAX_DIMENSION)
        self._address = _checked(address)
        key.check(control_plane(address.host))
        self._closed = False
        # Whether the connections are those of the process that this one was forked from.
        self._inherited = False
        self._reconnecting = ForkLock()
        self._session = Session(self._address, dim, key, Calls(key, timeout, concurrency))
        renew_after_fork(self)

    @property
    def metric(self) -> Metric:
        """How nearness is measured."""
        return self._address.metric

    @property
    def dim(self) -> int | None:
        """The vectors' dimension; None until it is given, or there is an index."""
        return self._session.dim

    def flush(self) -> None:
        """Return when searches see everything that this object wrote.

        Raises
        ------
        StoreUnavailableError
            If that takes longer than the timeout.
        StoreError
            If a manifest waits for an index that is not made yet.
        """
        self._require_open()
        self._session.settle()

    def close(self) -> None:
        """Flush and close the connections, even if the flush fails; calling it again does nothing."""
        if self._closed:
            return
        if self._inherited:
            self._closed = True
            return
        try:
            self.flush()
        finally:
            self._closed = True
            self._session.close()

    def location(self) -> dict[str, Any]:
        """Return the options that open the same contents elsewhere, where PINECONE_API_KEY is set."""
        at = self._address
        options = {"index": at.index, "namespace": at.namespace, "metric": str(at.metric)}
        return options if at.host is None else {**options, "host": at.host}

    @safe_repr
    def __repr__(self) -> str:
        at = self._address
        return (
            f"PineconeStore({at.index!r}, namespace={at.namespace!r}, metric={str(at.metric)!r}, "
            f"dim={self._session.dim}{', closed' if self._closed else ''})"
        )

    def __getstate__(self) -> dict[str, Any]:
        raise UnsupportedOperationError(
            f"{self!r} holds an API key and cannot be pickled or copied; open it again with "
            "PineconeStore(**store.location())"
        )

    def __sklearn_clone__(self) -> PineconeBase:
        raise unclonable(self)

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError("this PineconeStore is closed; open it anew")
        if self._inherited:
            with self._reconnecting.current:
                if self._inherited:
                    self._session.reconnect()
                    self._inherited = False

    def _after_fork(self) -> None:
        """Leave the connections to the parent: an answer to one process could be read by the other."""
        self._inherited = True


def _checked(address: Address) -> Address:
    index, namespace = address.index, address.namespace
    if not isinstance(index, str) or not INDEX_NAME.fullmatch(index):
        raise InvalidInputError(
            "a Pinecone index's name must be 1 to 45 lower-case letters, digits and hyphens, the first and "
            f"last not a hyphen; got {shown(index)}"
        )
    fits = isinstance(namespace, str) and namespace.isascii() and "\0" not in namespace
    if not fits or len(namespace) > MAX_NAMESPACE_LENGTH:
        raise InvalidInputError(
            f"a namespace must be ASCII, of at most {MAX_NAMESPACE_LENGTH} characters; got {shown(namespace)}"
        )
    if namespace.startswith(MANIFEST_SPACE):
        raise InvalidInputError(f"namespaces that begin with {MANIFEST_SPACE!r} are reserved for manifests")
    check_choice(address.cloud, "cloud", CLOUDS)
    if not isinstance(address.region, str) or not REGION.fullmatch(address.region):
        raise InvalidInputError(f"region must be a name such as 'us-east-1'; got {shown(address.region)}")
    check_bool(address.create, "create")
    return replace(address, namespace="") if namespace == DEFAULT_NAMESPACE else address
