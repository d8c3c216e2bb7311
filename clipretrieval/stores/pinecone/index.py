"""Find, make and open an index of Pinecone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from pinecone import ConflictError, NotFoundError, Pinecone, PineconeError

from clipretrieval.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    StoreError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.stores.pinecone.host import check_host, control_plane, is_environments, is_own
from clipretrieval.stores.pinecone.http import unretried
from clipretrieval.stores.pinecone.key import ApiKey
from clipretrieval.stores.pinecone.requests import Calls
from clipretrieval.stores.release import release_of
from clipretrieval.types import Metric

__all__ = ["MAX_DIMENSION", "METRICS", "Description", "Project", "check_description"]

METRICS = {Metric.L2: "euclidean", Metric.COSINE: "cosine", Metric.IP: "dotproduct"}
MAX_DIMENSION = 20_000
# The reserved field of indexes that are served by the vectors API.
DENSE = "_values"
POLL = 0.25


@dataclass(frozen=True)
class Description:
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

    def __init__(self, key: ApiKey, host: str | None, calls: Calls) -> None:
        self._calls, self._key = calls, key
        plane = control_plane(host)
        self._is_service = is_own(plane)
        # Without others, the SDK sends those of PINECONE_ADDITIONAL_HEADERS, which may be secret too.
        trusted = self._is_service or is_environments(plane)
        headers = None if trusted else {"Accept": "application/json"}
        try:
            self._client = unretried(  # `Calls` retries
                Pinecone(api_key=key.reveal(), host=host, additional_headers=headers)
            )
            release_of(calls, self._client.close)  # which every request that is under way refers to
            return
        except PineconeError as error:
            told = calls.scrubbed(str(error))
        raise InvalidInputError(f"Pinecone's SDK cannot be set up with these arguments: {told}")

    def __repr__(self) -> str:
        return "Project()"  # the client's own repr shows the end of the key

    def describe(self, name: str) -> Description | None:
        """Return what there is of an index; None if there is no such index."""

        def call() -> Any:
            try:
                return self._client.indexes.describe(name)
            except NotFoundError:
                return None

        found = self._calls.one(f"when it was asked for the index {name!r}", call)
        if found is None:
            return None
        dense = found.schema.fields.get(DENSE)
        dim, metric = getattr(dense, "dimension", None), getattr(dense, "metric", None)
        if not isinstance(dim, int) or metric is None:
            raise UnsupportedOperationError(
                f"the Pinecone index {name!r} does not hold plain dense vectors; name another one"
            )
        return Description(found.host, dim, str(metric), bool(found.status.ready))

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

        self._calls.one(f"when it was asked to make the index {name!r}", call)

    def wait(self, name: str) -> Description:
        """Return the description of an index once it is ready.

        Raises
        ------
        StoreUnavailableError
            If it is not, within the timeout.
        """
        deadline = time.monotonic() + self._calls.timeout
        while True:
            found = self.describe(name)
            if found is not None and found.ready and found.host:
                return found
            if time.monotonic() + POLL > deadline:
                raise StoreUnavailableError(
                    f"the Pinecone index {name!r} was not ready within {self._calls.timeout:g} s; try again "
                    "later, or allow a longer timeout"
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
                self._key.check(url)
        except InvalidInputError as error:
            raise StoreError(f"the address that Pinecone gives for the index is not used: {error}") from error
        client = unretried(self._client.index(host=host))
        release_of(self._calls, client.close)
        return client

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def check_description(found: Description, name: str, metric: Metric, dim: int | None) -> None:
    """Refuse an index of another metric or dimension.

    Raises
    ------
    FingerprintMismatchError
        If it is; the message names what differs.
    """
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
