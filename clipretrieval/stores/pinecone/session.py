"""What a PineconeStore holds open: the index, once it is there, and its two namespaces."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from clipretrieval.errors import StoreError, StoreUnavailableError
from clipretrieval.stores.checks import Batch, check_dim, check_label_kind
from clipretrieval.stores.pinecone.index import Project, check_description
from clipretrieval.stores.pinecone.key import ApiKey
from clipretrieval.stores.pinecone.manifest import MANIFEST_SPACE, read_text, write_text
from clipretrieval.stores.pinecone.namespace import Space
from clipretrieval.stores.pinecone.records import label_of
from clipretrieval.stores.pinecone.requests import Calls
from clipretrieval.types import AnyArray, Metric, as_label_array

__all__ = ["Address", "Session"]


@dataclass(frozen=True)
class Address:
    """Where the vectors are, or will be.

    Attributes
    ----------
    index, namespace : str
    metric : Metric
    host : str or None
        The control plane's.
    cloud, region : str
    create : bool
    """

    index: str
    namespace: str
    metric: Metric
    host: str | None
    cloud: str
    region: str
    create: bool


@dataclass(frozen=True)
class _Spaces:
    vectors: Space
    manifest: Space
    dim: int
    host: str


@dataclass(eq=False)
class _State:
    spaces: _Spaces | None = None
    # The label of some stored record, once it is known.
    label: AnyArray | None = None
    # Upserts on their way.
    sending: int = 0
    # Text that waits for the index to be made.
    manifest: str | None = None
    guard: threading.RLock = field(default_factory=threading.RLock)


class Session:
    """Finds the index, makes it when its dimension is known, and keeps both its namespaces open.

    Raises
    ------
    FingerprintMismatchError
        If the index has another metric or dimension.
    StoreUnavailableError
        If the service cannot be reached, or there is no index and none may be made.
    """

    def __init__(self, address: Address, dim: int | None, key: ApiKey, calls: Calls) -> None:
        self._address, self.dim = address, dim
        self._state = _State()
        self._key, self._calls = key, calls
        self._project = Project(key, address.host, calls)
        try:
            if self.find() is None and not address.create:
                raise StoreUnavailableError(
                    f"there is no Pinecone index {address.index!r}; check the name, or allow create=True"
                )
        except BaseException:
            self.close()
            raise

    def reconnect(self) -> None:
        """Make all connections anew; those of before are left as they are, to the process that made them."""
        calls = self._calls.anew()
        project = Project(self._key, self._address.host, calls)
        spaces = self._state.spaces
        if spaces is not None:
            client = project.open(spaces.host)
            for space in (spaces.vectors, spaces.manifest):
                space.reconnect(client, calls)
        self._calls, self._project = calls, project
        self._state = _State(spaces, self._state.label, manifest=self._state.manifest)

    def find(self) -> Space | None:
        """Return the vectors' namespace, also of an index made meanwhile; None while there is no index."""
        if self._state.spaces is None:
            with self._state.guard:
                if self._project.describe(self._address.index) is None:
                    return None
                self._open(None)
        return None if self._state.spaces is None else self._state.spaces.vectors

    @contextmanager
    def prepared(self, batch: Batch) -> Iterator[Space]:
        """Give the space for a batch, whose labels and dimension are those that it holds, to send it to."""
        space = self._prepare(batch)
        try:
            yield space
        finally:
            with self._state.guard:
                self._state.sending -= 1

    def _prepare(self, batch: Batch) -> Space:
        with self._state.guard:
            dim = batch.vectors.shape[1]
            self.find()
            check_dim(dim, self.dim)
            space = self._open(dim).vectors
            known = self._state.label
            if known is None or known.dtype != batch.labels.dtype:
                if known is not None and (self._state.sending or space.doubtful):
                    check_label_kind(batch.labels, known)  # they may be stored any moment
                check_label_kind(batch.labels, _stored_label(space))
                self._state.label = batch.labels[:1]
            self._keep_manifest()
            self._state.sending += 1
            return space

    def manifest(self) -> str | None:
        """Return the manifest's text; None if there is none."""
        waiting = self._state.manifest
        if waiting is not None or self.find() is None or self._state.spaces is None:
            return waiting
        self._state.spaces.manifest.settle()
        return read_text(self._state.spaces.manifest)

    def replace_manifest(self, text: str) -> None:
        """Store the manifest's text, as soon as there is an index."""
        with self._state.guard:
            if self.find() is None and self.dim is None:
                self._state.manifest = text
                return
            spaces = self._open(self.dim)
            write_text(spaces.manifest, text, spaces.dim)
            self._state.manifest = None

    def settle(self) -> None:
        """Return when everything written can be seen.

        Raises
        ------
        StoreError
            If a manifest still waits for the index to be made.
        """
        with self._state.guard:
            if self._state.manifest is not None and self.find() is not None:
                self._keep_manifest()
        if self._state.spaces is not None:
            deadline = self._calls.deadline()
            self._state.spaces.vectors.settle(deadline)
            self._state.spaces.manifest.settle(deadline)
        if self._state.manifest is not None:
            raise StoreError(
                f"the manifest is not stored: there is no Pinecone index {self._address.index!r} yet, and "
                "its dimension is not known. Store vectors first, or open the store with dim="
            )

    def close(self) -> None:
        """Close the connections; what another thread was about to send stays unsent."""
        self._calls.close()
        if self._state.spaces is not None:
            self._state.spaces.vectors.close()
        self._project.close()

    def _open(self, dim: int | None) -> _Spaces:
        """Open the index, which is made for vectors of dimension `dim` where it is not there."""
        state, address = self._state, self._address
        with state.guard:
            if state.spaces is None:
                if dim is not None and self._project.describe(address.index) is None:
                    self._project.create(address.index, dim, address.metric, address.cloud, address.region)
                found = self._project.wait(address.index)
                expected = dim if dim is not None else self.dim
                check_description(found, address.index, address.metric, expected)
                host = str(found.host)
                client = self._project.open(host)
                vectors, manifest = (
                    Space(client, name, found.dim, self._calls)
                    for name in (address.namespace, MANIFEST_SPACE + address.namespace)
                )
                state.spaces = _Spaces(vectors, manifest, found.dim, host)
                self.dim = found.dim
            return state.spaces

    def _keep_manifest(self) -> None:
        """Send a manifest that waits; from then on it is read from the service."""
        state = self._state
        if state.manifest is not None and state.spaces is not None:
            write_text(state.spaces.manifest, state.manifest, state.spaces.dim)
            state.manifest = None


def _stored_label(space: Space) -> AnyArray:
    """Return the label of some stored record; an empty array if there is no record."""
    space.settle()
    key = space.first()
    found = {} if key is None else space.fetch([key])
    return as_label_array([label_of(name, each.metadata) for name, each in found.items()])
