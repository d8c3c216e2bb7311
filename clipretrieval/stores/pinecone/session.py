"""What a PineconeStore holds open: the project, its index once it is there, and three namespaces of that."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pinecone import ConflictError, NotFoundError, Pinecone, PineconeError

from clipretrieval._util.checks import check_bool, check_choice, shown
from clipretrieval.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    StoreError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.stores.checks import Batch, check_dim, check_label_kind
from clipretrieval.stores.pinecone.api_key import (
    ApiKey,
    check_host,
    control_plane,
    is_from_environment,
    is_own,
)
from clipretrieval.stores.pinecone.namespace import DEFAULT_NAMESPACE, Namespace
from clipretrieval.stores.pinecone.records import label_of
from clipretrieval.stores.pinecone.requests import Requests, without_retries
from clipretrieval.stores.pinecone.texts import BLOB_NAMESPACE, MANIFEST_NAMESPACE, KeptBlob, kept_manifest
from clipretrieval.stores.release import release_of
from clipretrieval.types import AnyArray, Metric, as_label_array

__all__ = ["MAX_DIMENSION", "Address", "Project", "Session"]

INDEX_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,43}[a-z0-9])?")
MAX_NAMESPACE_LENGTH = 400
CLOUDS = ("aws", "gcp", "azure")
REGION = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
METRICS = {Metric.L2: "euclidean", Metric.COSINE: "cosine", Metric.IP: "dotproduct"}
MAX_DIMENSION = 20_000
# The reserved field of indexes that are served by the vectors API.
DENSE = "_values"
POLL = 0.25


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

    Raises
    ------
    InvalidInputError
        If one of them is malformed; `host` is not looked at.
    """

    index: str
    namespace: str
    metric: Metric
    host: str | None
    cloud: str
    region: str
    create: bool

    def __post_init__(self) -> None:
        index, namespace = self.index, self.namespace
        if not isinstance(index, str) or not INDEX_NAME.fullmatch(index):
            raise InvalidInputError(
                "a Pinecone index's name must be 1 to 45 lower-case letters, digits and hyphens, the first "
                f"and last not a hyphen; got {shown(index)}"
            )
        fits = isinstance(namespace, str) and namespace.isascii() and "\0" not in namespace
        if not fits or len(namespace) > MAX_NAMESPACE_LENGTH:
            raise InvalidInputError(
                f"a namespace must be ASCII, of at most {MAX_NAMESPACE_LENGTH} characters; got "
                f"{shown(namespace)}"
            )
        for prefix, reserved in ((MANIFEST_NAMESPACE, "manifests"), (BLOB_NAMESPACE, "blobs")):
            if namespace.startswith(prefix):
                raise InvalidInputError(f"namespaces that begin with {prefix!r} are reserved for {reserved}")
        check_choice(self.cloud, "cloud", CLOUDS)
        if not isinstance(self.region, str) or not REGION.fullmatch(self.region):
            raise InvalidInputError(f"region must be a name such as 'us-east-1'; got {shown(self.region)}")
        check_bool(self.create, "create")
        if namespace == DEFAULT_NAMESPACE:
            object.__setattr__(self, "namespace", "")


@dataclass(frozen=True)
class _OpenIndex:
    vectors: Namespace
    manifest: Namespace
    blobs: Namespace
    host: str

    @property
    def namespaces(self) -> tuple[Namespace, Namespace, Namespace]:
        return self.vectors, self.manifest, self.blobs


@dataclass(eq=False)
class _State:
    index: _OpenIndex | None = None
    # The label of some stored record, once it is known.
    label: AnyArray | None = None
    # Upserts on their way.
    sending: int = 0
    # What waits for the index to be made.
    manifest: str | None = None
    blobs: dict[str, bytes] = field(default_factory=dict)
    guard: threading.RLock = field(default_factory=threading.RLock)


class Session:
    """Finds the index, makes it when its dimension is known, and keeps its namespaces open.

    Raises
    ------
    FingerprintMismatchError
        If the index has another metric or dimension.
    StoreUnavailableError
        If the service cannot be reached, or there is no index and none may be made.
    """

    def __init__(self, address: Address, dim: int | None, key: ApiKey, requests: Requests) -> None:
        self._address, self.dim = address, dim
        self._state = _State()
        self._key, self._requests = key, requests
        self._project = Project(key, address.host, requests)
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
        requests = self._requests.renewed()
        project = Project(self._key, self._address.host, requests)
        index = self._state.index
        if index is not None:
            client = project.open(index.host)
            for namespace in index.namespaces:
                namespace.reconnect(client, requests)
        self._requests, self._project = requests, project
        before = self._state
        self._state = _State(index, before.label, manifest=before.manifest, blobs=before.blobs)

    def find(self) -> Namespace | None:
        """Return the vectors' namespace, also of an index made meanwhile; None while there is no index."""
        if self._state.index is None:
            with self._state.guard:
                if self._project.describe(self._address.index) is None:
                    return None
                self._open(None)
        return None if self._state.index is None else self._state.index.vectors

    @contextmanager
    def prepared(self, batch: Batch) -> Iterator[Namespace]:
        """Give the namespace to send a batch to, whose labels and dimension are those that it holds."""
        namespace = self._prepare(batch)
        try:
            yield namespace
        finally:
            with self._state.guard:
                self._state.sending -= 1

    def _prepare(self, batch: Batch) -> Namespace:
        with self._state.guard:
            dim = batch.vectors.shape[1]
            self.find()
            check_dim(dim, self.dim)
            namespace = self._open(dim).vectors
            known = self._state.label
            if known is None or known.dtype != batch.labels.dtype:
                if known is not None and (self._state.sending or namespace.doubtful):
                    check_label_kind(batch.labels, known)  # they may be stored any moment
                check_label_kind(batch.labels, _stored_label(namespace))
                self._state.label = batch.labels[:1]
            self._keep_waiting()
            self._state.sending += 1
            return namespace

    def manifest(self) -> str | None:
        """Return the manifest's text; None if there is none."""
        waiting = self._state.manifest
        if waiting is not None or self.find() is None or self._state.index is None:
            return waiting
        self._state.index.manifest.settle()
        return kept_manifest(self._state.index.manifest).fetch()

    def replace_manifest(self, text: str) -> None:
        """Store the manifest's text, as soon as there is an index."""
        with self._state.guard:
            if self.find() is None and self.dim is None:
                self._state.manifest = text
                return
            kept_manifest(self._open(self.dim).manifest).replace(text)
            self._state.manifest = None

    def blob(self, name: str) -> bytes | None:
        """Return a blob; None if there is none."""
        waiting = self._state.blobs.get(name)
        if waiting is not None or self.find() is None or self._state.index is None:
            return waiting
        self._state.index.blobs.settle()
        return KeptBlob(self._state.index.blobs, name).fetch()

    def replace_blob(self, name: str, content: bytes | None) -> None:
        """Store a blob, as soon as there is an index, or remove it."""
        with self._state.guard:
            if self.find() is None and (self.dim is None or content is None):
                self._state.blobs.pop(name, None)
                if content is not None:
                    self._state.blobs[name] = content
                return
            KeptBlob(self._open(self.dim).blobs, name).replace(content)
            self._state.blobs.pop(name, None)

    def settle(self) -> None:
        """Return when everything written can be seen.

        Raises
        ------
        StoreError
            If a manifest or a blob still waits for the index to be made.
        """
        with self._state.guard:
            if self._waiting() and self.find() is not None:
                self._keep_waiting()
        if self._state.index is not None:
            deadline = self._requests.deadline()
            for namespace in self._state.index.namespaces:
                namespace.settle(deadline)
        waiting = self._waiting()
        if waiting:
            raise StoreError(
                f"{waiting} is not stored: there is no Pinecone index {self._address.index!r} yet, and "
                "its dimension is not known. Store vectors first, or open the store with dim="
            )

    def close(self) -> None:
        """Close the connections; what another thread was about to send stays unsent."""
        self._requests.close()
        if self._state.index is not None:
            self._state.index.vectors.close()
        self._project.close()

    def _open(self, dim: int | None) -> _OpenIndex:
        """Open the index, which is made for vectors of dimension `dim` where it is not there."""
        state, address = self._state, self._address
        with state.guard:
            if state.index is None:
                if dim is not None and self._project.describe(address.index) is None:
                    self._project.create(address.index, dim, address.metric, address.cloud, address.region)
                found = self._project.wait(address.index)
                _check_description(found, address, dim if dim is not None else self.dim)
                host = str(found.host)
                client = self._project.open(host)
                vectors, manifest, blobs = (
                    Namespace(client, prefix + address.namespace, found.dim, self._requests)
                    for prefix in ("", MANIFEST_NAMESPACE, BLOB_NAMESPACE)
                )
                state.index = _OpenIndex(vectors, manifest, blobs, host)
                self.dim = found.dim
            return state.index

    def _waiting(self) -> str | None:
        """Return what waits for the index to be made, in words; None if nothing does."""
        blob = next(iter(self._state.blobs), None)
        return "the manifest" if self._state.manifest is not None else blob and f"the blob {blob!r}"

    def _keep_waiting(self) -> None:
        """Send what waits; from then on it is read from the service."""
        state = self._state
        if state.index is None:
            return
        if state.manifest is not None:
            kept_manifest(state.index.manifest).replace(state.manifest)
            state.manifest = None
        for name, content in list(state.blobs.items()):
            KeptBlob(state.index.blobs, name).replace(content)
            del state.blobs[name]


@dataclass(frozen=True)
class _Description:
    """What the service tells of an index.

    Attributes
    ----------
    host : str or None
        None while it has no address yet.
    dim : int
    metric : str
        As Pinecone calls it.
    ready : bool
    """

    host: str | None
    dim: int
    metric: str
    ready: bool


class Project:
    """The indexes that an API key gives access to.

    Raises
    ------
    InvalidInputError
        If the key cannot be sent in an HTTP header.
    """

    def __init__(self, key: ApiKey, host: str | None, requests: Requests) -> None:
        self._requests, self._key = requests, key
        plane = control_plane(host)
        self._is_service = is_own(plane)
        # Without others, the SDK sends those of PINECONE_ADDITIONAL_HEADERS, which may be secret too.
        trusted = self._is_service or is_from_environment(plane)
        headers = None if trusted else {"Accept": "application/json"}
        try:
            self._client = without_retries(  # `Requests` retries
                Pinecone(api_key=key.reveal(), host=host, additional_headers=headers)
            )
            release_of(requests, self._client.close)  # which every request that is under way refers to
            return
        except PineconeError as error:
            told = requests.scrubbed(str(error))
        raise InvalidInputError(f"Pinecone's SDK cannot be set up with these arguments: {told}")

    def __repr__(self) -> str:
        return "Project()"  # the client's own repr shows the end of the key

    def describe(self, name: str) -> _Description | None:
        """Return what there is of an index; None if there is no such index."""

        def call() -> Any:
            try:
                return self._client.indexes.describe(name)
            except NotFoundError:
                return None

        found = self._requests.send(f"when it was asked for the index {name!r}", call)
        if found is None:
            return None
        dense = found.schema.fields.get(DENSE)
        dim, metric = getattr(dense, "dimension", None), getattr(dense, "metric", None)
        if not isinstance(dim, int) or metric is None:
            raise UnsupportedOperationError(
                f"the Pinecone index {name!r} does not hold plain dense vectors; name another one"
            )
        return _Description(found.host, dim, str(metric), bool(found.status.ready))

    def create(self, name: str, dim: int, metric: Metric, cloud: str, region: str) -> None:
        """Make a serverless index; one that another process made meanwhile is left as it is."""
        if dim > MAX_DIMENSION:
            raise InvalidInputError(
                f"Pinecone takes vectors of up to {MAX_DIMENSION} dimensions; found {dim}"
            )
        dense = {"type": "dense_vector", "dimension": dim, "metric": METRICS[metric]}

        def call() -> None:
            try:
                self._client.indexes.create(
                    name=name,
                    schema={"fields": {DENSE: dense}},
                    deployment={"deployment_type": "managed", "cloud": cloud, "region": region},
                    timeout=-1,
                )
            except ConflictError:
                # Made by another process, or by an attempt of ours whose answer was lost.
                return

        self._requests.send(f"when it was asked to make the index {name!r}", call)

    def wait(self, name: str) -> _Description:
        """Return the description of an index once it is ready.

        Raises
        ------
        StoreUnavailableError
            If it is not, within the timeout.
        """
        deadline = self._requests.deadline()
        while True:
            found = self.describe(name)
            if found is not None and found.ready and found.host:
                return found
            if time.monotonic() + POLL > deadline:
                raise StoreUnavailableError(
                    f"the Pinecone index {name!r} was not ready within {self._requests.timeout:g} s; try "
                    "again later, or allow a longer timeout"
                )
            time.sleep(POLL)

    def open(self, host: str) -> Any:
        """Return the SDK's client of an index; its threads may share it.

        Raises
        ------
        StoreError
            If the key must not be sent to the address that the control plane has given for it.
        """
        try:
            url = check_host(host)
            if self._is_service:
                self._key.check_receiver(url)
        except InvalidInputError as error:
            raise StoreError(f"the address that Pinecone gives for the index is not used: {error}") from error
        client = without_retries(self._client.index(host=host))
        release_of(self._requests, client.close)
        return client

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _check_description(found: _Description, address: Address, dim: int | None) -> None:
    """Refuse an index of another metric or dimension; the message names what differs."""
    name, metric = address.index, address.metric
    if found.metric != METRICS[metric]:
        known = {ours: theirs for ours, theirs in METRICS.items() if theirs == found.metric}
        ours = ", ".join(f"metric={str(each)!r}" for each in known) or "no metric of this library"
        raise FingerprintMismatchError(
            f"the Pinecone index {name!r} was made with {found.metric!r} ({ours}); found "
            f"metric={str(metric)!r}. Open it with its own metric, or name another index"
        )
    if dim is not None and found.dim != dim:
        raise FingerprintMismatchError(
            f"the Pinecone index {name!r} was made for vectors of dimension {found.dim}; found {dim}. "
            "Name another index"
        )


def _stored_label(namespace: Namespace) -> AnyArray:
    """Return the label of some stored record; an empty array if there is no record."""
    namespace.settle()
    key = namespace.first()
    found = {} if key is None else namespace.fetch([key])
    return as_label_array([label_of(name, each.metadata) for name, each in found.items()])
