"""The data plane of one emulated index."""

from __future__ import annotations

import json
import operator
import re
import threading
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from clipretrieval.testing.pinecone_emulator.answers import Answer, Refused, json_answer
from clipretrieval.testing.pinecone_emulator.limits import (
    MAX_RESULT_BYTES,
    check_fields,
    check_id,
    check_ids,
    check_namespace,
    check_object,
    check_prefix,
    check_range,
    check_record,
    check_top_k,
    check_values,
    parse_object,
)
from clipretrieval.testing.pinecone_emulator.records import NamespaceContents, Record

__all__ = ["DataPlane"]

MAX_VECTORS = 1000
MAX_REQUEST_BYTES = 2 * 1024 * 1024
PAGE = 100
MAX_MATCHES = 10_000
MAX_CANDIDATES = 100_000
SCAN_FACTORS = (0.5, 4.0)
MISSING = object()
ORDERINGS: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
# The service takes this many values in one $in or $nin.
MAX_FILTER_VALUES = 10_000

Parameters = Mapping[str, list[str]]


class DataPlane:
    """Answers the requests to one index, one at a time.

    Parameters
    ----------
    dimension : int
    metric : {"euclidean", "cosine", "dotproduct"}
    visibility_delay : float
        Seconds until a write can be seen.
    numbered : bool
        Whether answers carry log sequence numbers.
    """

    plane = "data"

    def __init__(self, dimension: int, metric: str, visibility_delay: float, numbered: bool) -> None:
        self.dimension, self.metric = dimension, metric
        self._delay, self._numbered = visibility_delay, numbered
        self._namespaces: dict[str, NamespaceContents] = {}
        self._lock = threading.Lock()
        self._routes: dict[tuple[str, str], Callable[[bytes, Parameters], Answer]] = {
            ("POST", "/vectors/upsert"): self._upsert,
            ("POST", "/query"): self._query,
            ("GET", "/vectors/fetch"): self._fetch,
            ("POST", "/vectors/fetch_by_metadata"): self._fetch_by_metadata,
            ("POST", "/vectors/delete"): self._delete,
            ("GET", "/vectors/list"): self._list,
            ("POST", "/describe_index_stats"): self._stats,
        }

    def answer(self, method: str, path: str, parameters: Parameters, body: bytes) -> Answer:
        """Answer one request.

        Raises
        ------
        Refused
            If the service would refuse it.
        """
        route = self._routes.get((method, path))
        if route is None:
            raise Refused(501, f"{method} {path} is not emulated")
        with self._lock:
            return route(body, parameters)

    def catch_up(self) -> None:
        """Let reads find everything written so far."""
        with self._lock:
            for held in self._namespaces.values():
                held.catch_up()

    def contents(self, namespace: str) -> dict[str, Record]:
        """Return all records of a namespace, whether reads find them yet or not."""
        with self._lock:
            held = self._namespaces.get(check_namespace(namespace))
            return {} if held is None else dict(held.latest)

    def _upsert(self, body: bytes, parameters: Parameters) -> Answer:
        if len(body) > MAX_REQUEST_BYTES:
            raise Refused(
                413, f"Request size {len(body)} exceeds the maximum supported size of {MAX_REQUEST_BYTES}"
            )
        content = parse_object(body)
        check_fields(content, ("vectors", "namespace"), ("vectors",))
        namespace = check_namespace(content.get("namespace", ""))
        vectors = content["vectors"]
        if not isinstance(vectors, list) or not 1 <= len(vectors) <= MAX_VECTORS:
            raise Refused(400, f"vectors must be a list of 1 to {MAX_VECTORS} vectors")
        records = [check_record(each, self.dimension) for each in vectors]
        if len({record.id for record in records}) < len(records):
            raise Refused(400, "Upsert request contains duplicate ids")
        lsn = self._namespaces.setdefault(namespace, NamespaceContents(self._delay)).upsert(records)
        return json_answer(200, {"upsertedCount": len(records)}, self._committed(lsn))

    def _query(self, body: bytes, parameters: Parameters) -> Answer:
        content = parse_object(body)
        known = ("namespace", "topK", "filter", "includeValues", "includeMetadata", "vector", "sparseVector")
        check_fields(content, (*known, "id", "scanFactor", "maxCandidates"), ("topK",))
        namespace = check_namespace(content.get("namespace", ""))
        top_k = check_top_k(content["topK"])
        if "sparseVector" in content:
            raise Refused(400, "Index does not support sparse vectors")
        if ("vector" in content) == ("id" in content):
            raise Refused(400, "exactly one of 'vector' and 'id' must be given")
        wanted = [_flag(content, name) for name in ("includeValues", "includeMetadata")]
        # For dedicated indexes, which have other searches; here they change nothing.
        check_range(content.get("scanFactor", 4), "scanFactor", *SCAN_FACTORS)
        check_range(content.get("maxCandidates", top_k), "maxCandidates", top_k, MAX_CANDIDATES, whole=True)
        condition = check_object(content.get("filter", {}), "filter")
        _check_condition(condition)
        if "id" in content:
            check_id(content["id"])
        if "vector" in content:
            query = check_values(content["vector"], self.dimension)
        held = self._namespaces.get(namespace)
        records, lsn = held.seen() if held is not None else ({}, 0)
        if "id" in content:
            same = records.get(content["id"])
            if same is None:
                return self._found(namespace, [], lsn)
            query = same.values
        if held is None or not records:
            return self._found(namespace, [], lsn)
        every, filtered = list(records.values()), bool(condition)
        # Any record may meet a filter.
        places, scores = held.nearest(query, len(every) if filtered else top_k, self.metric)
        ranked = ((every[place], float(score)) for place, score in zip(places, scores, strict=True))
        kept = (each for each in ranked if not filtered or _matches(condition, each[0].metadata))
        near = [_match_json(record, score, *wanted) for record, score in islice(kept, top_k)]
        return self._found(namespace, near, lsn)

    def _found(self, namespace: str, near: list[dict[str, Any]], lsn: int) -> Answer:
        answer = json_answer(
            200,
            {"matches": near, "namespace": namespace, "usage": {"readUnits": 1}},
            {"x-pinecone-max-indexed-lsn": str(lsn)} if self._numbered else None,
        )
        if len(answer.body) > MAX_RESULT_BYTES:
            raise Refused(
                400, f"the result has {len(answer.body)} bytes, which exceeds the limit of {MAX_RESULT_BYTES}"
            )
        return answer

    def _fetch(self, body: bytes, parameters: Parameters) -> Answer:
        check_fields(parameters, ("ids", "namespace"), ("ids",))
        namespace = check_namespace(_single(parameters, "namespace"))
        records = self._seen(namespace)
        names = check_ids(parameters["ids"])
        vectors = {name: _record_json(records[name]) for name in names if name in records}
        return json_answer(200, {"vectors": vectors, "namespace": namespace, "usage": {"readUnits": 1}})

    def _fetch_by_metadata(self, body: bytes, parameters: Parameters) -> Answer:
        content = parse_object(body)
        check_fields(content, ("namespace", "filter", "limit", "paginationToken"))
        namespace = check_namespace(content.get("namespace", ""))
        condition, limit = content.get("filter"), content.get("limit", PAGE)
        if not condition:
            raise Refused(400, "Empty filter provided for fetch by metadata request")
        _check_condition(condition)
        check_range(limit, "limit", 1, MAX_MATCHES, whole=True)
        records = self._seen(namespace)
        names = [name for name, record in records.items() if _matches(condition, record.metadata)]
        page, following = _page(names, limit, _token(content.get("paginationToken", "")))
        vectors = {name: _record_json(records[name]) for name in page}
        answer = {"vectors": vectors, "namespace": namespace, **following, "usage": {"readUnits": 1}}
        return json_answer(200, answer)

    def _delete(self, body: bytes, parameters: Parameters) -> Answer:
        content = parse_object(body)
        check_fields(content, ("ids", "deleteAll", "namespace", "filter"))
        everything = _flag(content, "deleteAll")
        if ("ids" in content) + ("filter" in content) + everything != 1:
            raise Refused(400, "exactly one of 'ids', 'filter' and 'deleteAll' must be given")
        namespace = check_namespace(content.get("namespace", ""))
        names = check_ids(content["ids"]) if "ids" in content else []
        if "filter" in content:
            _matches(content["filter"], {})  # an empty one is malformed here
        if namespace not in self._namespaces:
            raise Refused(404, "Namespace not found")
        held = self._namespaces[namespace]
        if "filter" in content:
            names = [each.id for each in held.latest.values() if _matches(content["filter"], each.metadata)]
        return json_answer(200, {}, self._committed(held.delete(list(held.latest) if everything else names)))

    def _list(self, body: bytes, parameters: Parameters) -> Answer:
        check_fields(parameters, ("prefix", "limit", "paginationToken", "namespace"))
        namespace = check_namespace(_single(parameters, "namespace"))
        prefix, token = check_prefix(_single(parameters, "prefix")), _single(parameters, "paginationToken")
        limit = _single(parameters, "limit") if "limit" in parameters else str(PAGE)
        if not re.fullmatch("[0-9]{1,3}", limit) or not 1 <= int(limit) <= PAGE:
            raise Refused(400, f"limit must be from 1 to {PAGE}; found {limit}")
        names = [name for name in self._seen(namespace) if name.startswith(prefix)]
        page, following = _page(names, int(limit), _token(token))
        content = {"vectors": [{"id": name} for name in page], "namespace": namespace, **following}
        return json_answer(200, {**content, "usage": {"readUnits": 1}})

    def _stats(self, body: bytes, parameters: Parameters) -> Answer:
        content = parse_object(body)
        check_fields(content, ("filter",))
        if check_object(content.get("filter", {}), "filter"):
            raise Refused(400, "Serverless indexes do not support index stats with a filter")
        counts = {name: len(held.seen()[0]) for name, held in self._namespaces.items()}
        return json_answer(
            200,
            {
                "namespaces": {name: {"vectorCount": count} for name, count in counts.items() if count},
                "dimension": self.dimension,
                "indexFullness": 0.0,
                "totalVectorCount": sum(counts.values()),
                "metric": self.metric,
                "vectorType": "dense",
            },
        )

    def _seen(self, namespace: str) -> dict[str, Record]:
        held = self._namespaces.get(namespace)
        return {} if held is None else held.seen()[0]

    def _committed(self, lsn: int) -> dict[str, str]:
        return {"x-pinecone-request-lsn": str(lsn)} if self._numbered else {}


def _check_condition(condition: Any) -> None:
    """Refuse a filter that is malformed, whether there is a record to meet it or not."""
    if condition:
        _matches(condition, {})


def _flag(content: Mapping[str, Any], name: str) -> bool:
    value = content.get(name, False)
    if not isinstance(value, bool):
        raise Refused(400, f"{name} must be a boolean; found {json.dumps(value)[:60]}")
    return value


def _page(names: list[str], limit: int, after: str) -> tuple[list[str], dict[str, Any]]:
    """Return the first ids behind `after` in the order of their bytes, and where the next page begins."""
    left = sorted(name for name in names if name > after)
    page = left[:limit]
    more = len(left) > limit
    return page, {"pagination": {"next": page[-1].encode().hex()}} if more else {}


def _token(token: Any) -> str:
    """Return the id that a page's token stands for."""
    try:
        return bytes.fromhex(token).decode()
    except (TypeError, ValueError):
        raise Refused(400, "Invalid pagination token") from None


def _single(parameters: Parameters, name: str) -> str:
    values = parameters.get(name, [""])
    if len(values) != 1:
        raise Refused(400, f"{name} must be given once")
    return values[0]


def _record_json(record: Record) -> dict[str, Any]:
    content: dict[str, Any] = {"id": record.id, "values": record.values.tolist()}
    return {**content, "metadata": record.metadata} if record.metadata else content


def _match_json(record: Record, score: float, values: bool, metadata: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"id": record.id, "score": score}
    content["values"] = record.values.tolist() if values else []
    if metadata and record.metadata:
        content["metadata"] = record.metadata
    return content


def _matches(condition: Any, metadata: Mapping[str, Any]) -> bool:
    """Tell whether a record's metadata meets a filter.

    Raises
    ------
    Refused
        If the filter is malformed.
    """
    if not isinstance(condition, dict) or not condition:
        raise Refused(400, "filter must be a non-empty object")
    # A list, so that every clause is checked.
    return all([_meets_clause(name, wanted, metadata) for name, wanted in condition.items()])  # noqa: C419


def _meets_clause(name: str, wanted: Any, metadata: Mapping[str, Any]) -> bool:
    if name in ("$and", "$or"):
        if not isinstance(wanted, list) or not wanted:
            raise Refused(400, f"{name} takes a non-empty list")
        parts = [_matches(part, metadata) for part in wanted]
        return all(parts) if name == "$and" else any(parts)
    if name.startswith("$"):
        raise Refused(400, f"{name} is not a valid operator")
    value = metadata.get(name, MISSING)
    if not isinstance(wanted, dict):
        return _equals(value, wanted)
    if not wanted:
        raise Refused(400, f"the filter of {name!r} is empty")
    return all([_meets_operation(kind, value, operand) for kind, operand in wanted.items()])  # noqa: C419


def _meets_operation(kind: str, value: Any, operand: Any) -> bool:
    if kind == "$eq":
        return _equals(value, operand)
    if kind == "$ne":
        return not _equals(value, operand)
    if kind in ("$in", "$nin"):
        if not isinstance(operand, list) or len(operand) > MAX_FILTER_VALUES:
            raise Refused(400, f"{kind} takes a list of at most {MAX_FILTER_VALUES} values")
        # A list, so that every value is checked.
        return any([_equals(value, each) for each in operand]) == (kind == "$in")  # noqa: C419
    if kind == "$exists":
        if not isinstance(operand, bool):
            raise Refused(400, "$exists takes true or false")
        return (value is not MISSING) == operand
    if kind in ORDERINGS:
        if isinstance(operand, bool) or not isinstance(operand, (int, float)):
            raise Refused(400, f"{kind} takes a number")
        return isinstance(value, float) and ORDERINGS[kind](value, operand)
    raise Refused(400, f"{kind} is not a valid operator")


def _equals(value: Any, operand: Any) -> bool:
    """Compare as the service does: a list of str equals each of its members."""
    if isinstance(operand, (list, dict)) or operand is None:
        raise Refused(400, f"a filter compares with a string, a number or a boolean; found {operand!r}")
    if isinstance(value, list):
        return operand in value
    # True is 1 in Python, not in JSON.
    return isinstance(value, bool) == isinstance(operand, bool) and bool(value == operand)
