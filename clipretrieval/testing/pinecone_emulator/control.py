"""The control plane: indexes are made, described, listed and deleted."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

from clipretrieval.testing.pinecone_emulator.answers import Answer, Refused, json_answer
from clipretrieval.testing.pinecone_emulator.data import DataPlane
from clipretrieval.testing.pinecone_emulator.limits import parse_object

__all__ = ["ControlPlane"]

METRICS = ("cosine", "euclidean", "dotproduct")
MAX_DIMENSION = 20_000
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,43}[a-z0-9])?")
DEPLOYMENT = {"deployment_type": "managed", "cloud": "aws", "region": "us-east-1"}
CLOUDS = ("aws", "gcp", "azure")
TAG_NAME, TAG_VALUE, MAX_TAGS = re.compile(r"[A-Za-z0-9_-]{1,80}"), re.compile(r"[ -~]{0,120}"), 20
KNOWN = ("name", "deployment", "schema", "cmek_id", "read_capacity", "tags", "deletion_protection")


@dataclass(frozen=True, eq=False)
class _Index:
    plane: DataPlane
    host: str
    deployment: Mapping[str, str]
    tags: Mapping[str, str] | None
    protected: bool
    ready_at: float
    stop: Callable[[], None]


class ControlPlane:
    """Answers the requests that manage indexes, one at a time.

    Parameters
    ----------
    serve : callable
        Serves a data plane; returns its address and what stops it.
    visibility_delay, creation_delay : float
        Seconds until a write can be seen, and until an index is ready.
    numbered : bool
        Whether answers carry log sequence numbers.
    """

    plane = "control"

    def __init__(
        self,
        serve: Callable[[DataPlane, str], tuple[str, Callable[[], None]]],
        visibility_delay: float,
        creation_delay: float,
        numbered: bool,
    ) -> None:
        self._serve, self._numbered = serve, numbered
        self._visibility_delay, self._creation_delay = visibility_delay, creation_delay
        self._indexes: dict[str, _Index] = {}
        self._lock = threading.Lock()

    def answer(self, method: str, path: str, parameters: Mapping[str, list[str]], body: bytes) -> Answer:
        """Answer one request.

        Raises
        ------
        Refused
            If the service would refuse it.
        """
        head, _, name = path.removeprefix("/").partition("/")
        name = unquote(name)
        if head != "indexes" or "/" in name:
            raise Refused(501, f"{method} {path} is not emulated")
        with self._lock:
            if not name and method == "GET":
                return json_answer(200, {"indexes": [self._model(each) for each in self._indexes]})
            if not name and method == "POST":
                return self._create(body)
            if name and name not in self._indexes:
                raise Refused(404, f"Index {name} not found.")
            if name and method == "GET":
                return json_answer(200, self._model(name))
            if name and method == "DELETE":
                return self._delete(name)
        raise Refused(501, f"{method} {path} is not emulated")

    def index(self, name: str) -> DataPlane | None:
        """Return the data plane of an index; None if there is none of that name."""
        with self._lock:
            found = self._indexes.get(name)
            return None if found is None else found.plane

    def catch_up(self) -> None:
        """Let every index be ready, and every write be seen."""
        with self._lock:
            for name, index in self._indexes.items():
                self._indexes[name] = replace(index, ready_at=0.0)
                index.plane.catch_up()

    def stop(self) -> None:
        """Stop serving all indexes."""
        with self._lock:
            while self._indexes:
                self._indexes.popitem()[1].stop()

    def _create(self, body: bytes) -> Answer:
        content = parse_object(body)
        for field in content:
            if field not in KNOWN:
                raise Refused(422, f"Failed to deserialize the JSON body: unknown field `{field}`")
        name = content.get("name", f"index-{len(self._indexes)}")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise Refused(
                400, "Name must be 1-45 characters, lower case alphanumeric or '-', beginning and ending so"
            )
        dimension, metric = _check_schema(content.get("schema"))
        deployment = _check_deployment(content.get("deployment", DEPLOYMENT))
        _check_settings(content)
        if name in self._indexes:
            raise Refused(409, "Resource already exists.")
        plane = DataPlane(dimension, metric, self._visibility_delay, self._numbered)
        host, stop = self._serve(plane, name)
        self._indexes[name] = _Index(
            plane,
            host,
            deployment,
            content.get("tags"),
            content.get("deletion_protection") == "enabled",
            time.monotonic() + self._creation_delay,
            stop,
        )
        return json_answer(201, self._model(name))

    def _delete(self, name: str) -> Answer:
        if self._indexes[name].protected:
            raise Refused(403, "Deletion protection is enabled for this index.")
        self._indexes.pop(name).stop()
        return Answer(202, b"")

    def _model(self, name: str) -> dict[str, Any]:
        index = self._indexes[name]
        ready = time.monotonic() >= index.ready_at
        dense = {
            "type": "dense_vector",
            "dimension": index.plane.dimension,
            "metric": index.plane.metric,
        }
        return {
            "name": name,
            "host": index.host,
            "status": {"ready": ready, "state": "Ready" if ready else "Initializing"},
            "schema": {"fields": {"_values": dense, "_sparse_values": {"type": "sparse_vector"}}},
            "deployment": {**index.deployment, "environment": "emulated"},
            "deletion_protection": "enabled" if index.protected else "disabled",
            "read_capacity": {"mode": "OnDemand", "status": {"state": "Ready"}},
            "tags": index.tags,
        }


def _check_schema(content: Any) -> tuple[int, str]:
    """Return dimension and metric of a schema for the vectors API: one dense field called ``_values``."""
    if not isinstance(content, dict) or not isinstance(content.get("fields"), dict):
        raise Refused(422, "Failed to deserialize the JSON body: missing field `schema`")
    fields = content["fields"]
    dense = fields.get("_values")
    if not isinstance(dense, dict) or dense.get("type") != "dense_vector" or len(fields) > 1:
        raise Refused(400, "only the schema of one dense field called '_values' is emulated")
    if "description" in dense:
        raise Refused(400, "the reserved field '_values' takes no description")
    dimension, metric = dense.get("dimension"), dense.get("metric")
    if isinstance(dimension, bool) or not isinstance(dimension, int) or not 1 <= dimension <= MAX_DIMENSION:
        raise Refused(400, f"dimension must be an integer from 1 to {MAX_DIMENSION}; found {dimension!r}")
    if metric not in METRICS:
        raise Refused(400, f"metric must be one of {', '.join(METRICS)}; found {metric!r}")
    return dimension, metric


def _check_settings(content: Mapping[str, Any]) -> None:
    """Refuse malformed fields that change nothing about what the index answers."""
    tags = content.get("tags")
    if tags is not None:
        if not isinstance(tags, dict) or not all(isinstance(value, str) for value in tags.values()):
            raise Refused(422, "Failed to deserialize the JSON body: tags must be an object of strings")
        named = all(TAG_NAME.fullmatch(name) and TAG_VALUE.fullmatch(tags[name]) for name in tags)
        if not named or len(tags) > MAX_TAGS:
            raise Refused(
                400,
                f"there may be {MAX_TAGS} tags, with names of at most 80 letters, digits, '_' and '-', and "
                "values of at most 120 printable ASCII characters",
            )
    if content.get("deletion_protection", "disabled") not in ("disabled", "enabled"):
        raise Refused(400, "deletion_protection must be 'disabled' or 'enabled'")
    if not isinstance(content.get("cmek_id", ""), str):
        raise Refused(422, "Failed to deserialize the JSON body: cmek_id must be a string")
    capacity = content.get("read_capacity", {"mode": "OnDemand"})
    if not isinstance(capacity, dict) or capacity.get("mode") not in ("OnDemand", "Dedicated"):
        raise Refused(400, "read_capacity must be an object with the mode 'OnDemand' or 'Dedicated'")
    if capacity["mode"] == "Dedicated":
        raise Refused(501, "dedicated read capacity is not emulated")


def _check_deployment(content: Any) -> dict[str, str]:
    if not isinstance(content, dict) or content.get("deployment_type") != "managed":
        raise Refused(400, "only managed (serverless) deployments can be created")
    strange = set(content) - {"deployment_type", "cloud", "region"}
    if strange:
        raise Refused(422, f"Failed to deserialize the JSON body: unknown field `{min(strange)}`")
    cloud, region = content.get("cloud"), content.get("region")
    if cloud not in CLOUDS or not isinstance(region, str) or not region:
        raise Refused(404, f"Resource cloud: {cloud} region: {region} not found.")
    return {"deployment_type": "managed", "cloud": cloud, "region": region}
