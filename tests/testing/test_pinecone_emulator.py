"""The emulator, asked over plain HTTP: it answers and refuses what the service does."""

from __future__ import annotations

import http.client
import json
import math
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from pinecone import Pinecone

from clipretrieval.errors import InvalidInputError
from clipretrieval.testing import PineconeEmulator

KEY = "emulated-key-0123456789"
SCHEMA = {"fields": {"_values": {"type": "dense_vector", "dimension": 3, "metric": "euclidean"}}}
SERVERLESS = {"deployment_type": "managed", "cloud": "aws", "region": "us-east-1"}


def ask(
    host: str, method: str, path: str, content: Any = None, key: str | None = KEY, **changed: str | None
) -> tuple[int, Any, dict[str, str]]:
    """Send one request; return status, JSON or text, and headers. None leaves a header out."""
    connection = http.client.HTTPConnection(urlsplit(host).netloc, timeout=10)
    given = {
        "Content_Type": "application/json",
        "X_Pinecone_Api_Version": "2026-07",
        "Api_Key": key,
        **changed,
    }
    headers = {name.replace("_", "-"): value for name, value in given.items() if value is not None}
    body = content if isinstance(content, (bytes, type(None))) else json.dumps(content).encode()
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        found = response.read()
        kind = response.headers.get("Content-Type", "")
        told = json.loads(found) if kind.startswith("application/json") else found.decode()
        return response.status, told, {name.lower(): value for name, value in response.headers.items()}
    finally:
        connection.close()


@pytest.fixture
def emulator() -> Iterator[PineconeEmulator]:
    """An emulator without indexes."""
    with PineconeEmulator(KEY) as emulator:
        yield emulator


@pytest.fixture
def index(emulator: PineconeEmulator) -> str:
    """The address of an index of dimension 3."""
    return make(emulator)


def make(emulator: PineconeEmulator, name: str = "animals", schema: Any = SCHEMA) -> str:
    status, told, _ = ask(emulator.host, "POST", "/indexes", {"name": name, "schema": schema})
    assert status == 201, told
    host: str = told["host"]
    return host


def vector(name: str = "a", **fields: Any) -> dict[str, Any]:
    return {"id": name, "values": [1.0, 2.0, 3.0], **fields}


def upsert(index: str, *vectors: Any, **fields: Any) -> tuple[int, Any, dict[str, str]]:
    return ask(index, "POST", "/vectors/upsert", {"vectors": list(vectors), **fields})


def query(index: str, **fields: Any) -> tuple[int, Any, dict[str, str]]:
    return ask(index, "POST", "/query", {"vector": [1.0, 2.0, 3.0], "topK": 10, **fields})


@pytest.mark.parametrize("key", [None, "", "another key", KEY + "0"])
def test_a_wrong_key_is_refused_as_plain_text(
    emulator: PineconeEmulator, index: str, key: str | None
) -> None:
    """Both planes answer 401 in plain text."""
    for host, path in ((emulator.host, "/indexes"), (index, "/vectors/list")):
        status, told, headers = ask(host, "GET", path, key=key)
        assert (status, told) == (401, "Unauthorized")
        assert headers["content-type"].startswith("text/plain")


def test_the_life_of_an_index(emulator: PineconeEmulator) -> None:
    """An index is made, listed, described and deleted, in the shapes of the control plane."""
    body = {"name": "animals", "schema": SCHEMA, "deployment": SERVERLESS, "tags": {"env": "test"}}
    status, made, _ = ask(emulator.host, "POST", "/indexes", body)
    assert status == 201
    assert made["status"] == {"ready": True, "state": "Ready"}
    assert made["schema"]["fields"]["_values"] == SCHEMA["fields"]["_values"]
    assert made["deployment"]["deployment_type"] == "managed"
    assert {"name", "host", "status", "deployment", "schema", "deletion_protection"} <= set(made)
    assert ask(emulator.host, "GET", "/indexes")[:2] == (200, {"indexes": [made]})
    assert ask(emulator.host, "GET", "/indexes/animals")[:2] == (200, made)
    status, told, _ = ask(emulator.host, "POST", "/indexes", body)
    assert (status, told["status"], told["error"]["code"]) == (409, 409, "ALREADY_EXISTS")
    assert ask(emulator.host, "DELETE", "/indexes/animals")[0] == 202
    status, told, _ = ask(emulator.host, "GET", "/indexes/animals")
    assert (status, told["error"]["code"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"dimension": 3}, 422),
        ({"schema": None}, 422),
        ({"name": "Upper"}, 400),
        ({"name": "-a"}, 400),
        ({"name": "a" * 46}, 400),
        ({"schema": {"fields": {"_values": {"type": "dense_vector", "dimension": 3, "metric": "l2"}}}}, 400),
        (
            {"schema": {"fields": {"_values": {"type": "dense_vector", "dimension": 0, "metric": "cosine"}}}},
            400,
        ),
        (
            {
                "schema": {
                    "fields": {"_values": {"type": "dense_vector", "dimension": 20001, "metric": "cosine"}}
                }
            },
            400,
        ),
        ({"deployment": {"deployment_type": "pod", "environment": "us-east1-gcp", "pod_type": "p1.x1"}}, 400),
        ({"deployment": {**SERVERLESS, "cloud": "attic"}}, 404),
        ({"deployment": {**SERVERLESS, "environment": "mine"}}, 422),
        ({"tags": {"a": 1}}, 422),
        ({"tags": ["a"]}, 422),
        ({"tags": {"a b": "c"}}, 400),
        ({"tags": {"a" * 81: "c"}}, 400),
        ({"tags": {"a": "é"}}, 400),
        ({"tags": {"a": "c" * 121}}, 400),
        ({"tags": {str(place): "" for place in range(21)}}, 400),
        ({"deletion_protection": True}, 400),
        ({"cmek_id": 5}, 422),
        ({"read_capacity": {"mode": "Some"}}, 400),
        ({"read_capacity": {"mode": "Dedicated"}}, 501),
        ({"schema": {"fields": {"_values": {**SCHEMA["fields"]["_values"], "description": "x"}}}}, 400),
    ],
)
def test_a_malformed_index_is_refused(emulator: PineconeEmulator, change: Any, status: int) -> None:
    """Wrong names, dimensions, metrics, deployments and unknown fields make no index."""
    body = {"name": "animals", "schema": SCHEMA, "deployment": SERVERLESS, **change}
    found, told, _ = ask(emulator.host, "POST", "/indexes", body)
    assert (found, told["status"]) == (status, status)
    assert ask(emulator.host, "GET", "/indexes")[1] == {"indexes": []}


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"X_Pinecone_Api_Version": None}, 400),
        ({"X_Pinecone_Api_Version": ""}, 400),
        ({"X_Pinecone_Api_Version": "2026-08"}, 400),
        ({"X_Pinecone_Api_Version": "2025-10"}, 501),
        ({"Content_Type": None}, 415),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/json; charset=utf-8"}, 200),
    ],
)
def test_requests_need_their_headers(
    emulator: PineconeEmulator, index: str, changed: dict[str, str | None], status: int
) -> None:
    """The version of the API and the type of the body are required, on both planes."""
    body = {"vector": [1.0, 2.0, 3.0], "topK": 1}
    assert ask(index, "POST", "/query", body, **changed)[0] == status
    other = {"name": "other", "schema": SCHEMA}
    assert ask(emulator.host, "POST", "/indexes", other, **changed)[0] == (201 if status == 200 else status)
    if "Content_Type" not in changed:  # nothing has a body there
        assert ask(emulator.host, "GET", "/indexes", **changed)[0] == status
        assert ask(index, "GET", "/vectors/list", **changed)[0] == status


def test_empty_bodies_and_malformed_filters_are_refused_everywhere(index: str) -> None:
    """A request that needs a body has one, and filters are checked where nothing is that could meet them."""
    for path in ("/vectors/upsert", "/query", "/vectors/delete", "/describe_index_stats"):
        assert ask(index, "POST", path, b"")[0] == 400
    for wrong in (5, [], None, "", 0):
        assert query(index, filter=wrong)[0] == 400
        assert ask(index, "POST", "/describe_index_stats", {"filter": wrong})[0] == 400
        assert ask(index, "POST", "/vectors/delete", {"filter": wrong})[0] == 400
        assert ask(index, "POST", "/vectors/fetch_by_metadata", {"filter": wrong})[0] == 400
    assert ask(index, "POST", "/vectors/delete", {"filter": {}})[0] == 400
    assert query(index, filter={})[0] == 200
    assert query(index, scanFactor=0.5, maxCandidates=100_000)[0] == 200
    assert ask(index, "POST", "/describe_index_stats", {"filter": {}})[0] == 200


@pytest.mark.parametrize(
    "wrong", ["prefix=%C3%A9", "prefix=" + "a" * 513, "prefix=a%00", "limit=", "limit=0", "limit=1e1"]
)
def test_a_malformed_list_is_refused(index: str, wrong: str) -> None:
    """Prefixes are of what ids can begin with, and limits are whole numbers."""
    assert ask(index, "GET", f"/vectors/list?{wrong}")[0] == 400


def test_an_exhausted_quota_is_answered_as_the_planes_do(emulator: PineconeEmulator, index: str) -> None:
    """Another index is refused as JSON, more use of one as plain text, both with status 403."""
    emulator.fail(script=["quota", "quota"])
    status, told, _ = ask(emulator.host, "POST", "/indexes", {"name": "more", "schema": SCHEMA})
    assert (status, told["status"], told["error"]["code"]) == (403, 403, "FORBIDDEN")
    assert "quota" in told["error"]["message"]
    status, told, headers = upsert(index, vector())
    assert (status, headers["content-type"]) == (403, "text/plain; charset=utf-8")


def test_a_protected_index_stays(emulator: PineconeEmulator) -> None:
    """An index with deletion protection is not deleted."""
    body = {"name": "animals", "schema": SCHEMA, "deletion_protection": "enabled"}
    assert ask(emulator.host, "POST", "/indexes", body)[1]["deletion_protection"] == "enabled"
    assert ask(emulator.host, "DELETE", "/indexes/animals")[0] == 403


def test_an_index_takes_time_to_be_ready() -> None:
    """Until it is ready, an index is described as initialising."""
    with PineconeEmulator(KEY, creation_delay=math.inf) as emulator:
        make(emulator)
        assert ask(emulator.host, "GET", "/indexes/animals")[1]["status"]["state"] == "Initializing"
        emulator.catch_up()
        assert ask(emulator.host, "GET", "/indexes/animals")[1]["status"] == {"ready": True, "state": "Ready"}


def test_records_come_back_as_the_service_returns_them(index: str) -> None:
    """Numbers in metadata come back as floats, values as float32, and namespaces are apart."""
    given = vector(metadata={"n": 1, "flag": True, "text": "é", "list": ["x", "y"]}, values=[0.1, 2, 3])
    assert upsert(index, given)[:2] == (200, {"upsertedCount": 1})
    upsert(index, vector("b"), namespace="other")
    status, told, _ = ask(index, "GET", "/vectors/fetch?" + urlencode({"ids": ["a", "b"]}, doseq=True))
    assert status == 200
    assert list(told["vectors"]) == ["a"]
    held = told["vectors"]["a"]
    assert held["values"][0] == pytest.approx(0.1, abs=1e-8)
    assert held["values"][0] != 0.1
    assert json.dumps(held["metadata"]) == json.dumps(
        {"n": 1.0, "flag": True, "text": "é", "list": ["x", "y"]}
    )
    assert ask(index, "POST", "/describe_index_stats", {})[1]["namespaces"] == {
        "__default__": {"vectorCount": 1},
        "other": {"vectorCount": 1},
    }


@pytest.mark.parametrize(
    "wrong",
    [
        vector("é"),
        vector(""),
        vector("a" * 513),
        vector("a\0b"),
        vector(7),  # type: ignore[arg-type]
        {"values": [1.0, 2.0, 3.0]},
        vector(values=[1.0, 2.0]),
        vector(values=[1.0, 2.0, None]),
        vector(values=[1.0, 2.0, True]),
        vector(values=[1.0, 2.0, "3"]),
        vector(values=[1.0, 2.0, 1e39]),
        vector(values=[0.0, 0.0, 0.0]),
        vector(values=[9e-9, -9e-9, 0.0]),
        vector(metadata={"a": None}),
        vector(metadata={"a": {"b": 1}}),
        vector(metadata={"a": [1, 2]}),
        vector(metadata={"$a": 1}),
        vector(metadata={"a": "x" * 41_000}),
        vector(metadata=[]),
        vector(metadata=None),
        vector(metadata={"a": 10**400}),
        vector(sparseValues={"indices": [1], "values": [1.0]}),
        vector(label="cat"),
        "a",
    ],
)
def test_a_malformed_vector_is_refused_with_its_whole_request(
    emulator: PineconeEmulator, index: str, wrong: Any
) -> None:
    """What the service refuses is a 400 in the data plane's shape, and nothing of the request is kept."""
    status, told, _ = upsert(index, vector("good"), wrong)
    assert (status, told["code"], told["details"]) == (400, 3, [])
    assert told["message"]
    assert emulator.contents("animals") == {}


def test_limits_of_an_upsert(emulator: PineconeEmulator, index: str) -> None:
    """A thousand vectors pass and one more does not, nor do more than two megabytes, none, or repeats."""
    assert upsert(index, *(vector(str(place)) for place in range(1000)))[0] == 200
    assert upsert(index, *(vector(str(place)) for place in range(1001)))[0] == 400
    assert upsert(index)[0] == 400
    assert upsert(index, vector("a"), vector("a"))[0] == 400
    large = [vector(str(place), metadata={"text": "x" * 39_000}) for place in range(55)]
    assert upsert(index, *large)[0] == 413
    assert upsert(index, *large[:50])[0] == 200
    assert upsert(index, vector(), colour="red")[0] == 400
    assert upsert(index, vector(), namespace="é")[0] == 400
    assert ask(index, "POST", "/vectors/upsert", b"{")[0] == 400
    assert ask(index, "POST", "/vectors/upsert", b'{"vectors":[{"id":"a","values":[1,2,NaN]}]}')[0] == 400
    assert len(emulator.contents("animals")) == 1000


@pytest.mark.parametrize(
    "wrong",
    [
        {"topK": 0},
        {"topK": 10_001},
        {"topK": True},
        {"topK": 1.5},
        {"vector": [1.0]},
        {"vector": [1.0, None, 2.0]},
        {"id": "a"},
        {"includeValues": 1},
        {"include_values": True},
        {"filter": {"a": {"$near": 1}}},
        {"filter": 5},
        {"filter": None},
        {"filter": []},
        {"filter": {"a": {"$exists": 1}}},
        {"filter": {"n": {"$in": [1, None]}}},
        {"filter": {"$or": []}},
        {"scanFactor": 9},
        {"scanFactor": 0.4},
        {"scanFactor": "2"},
        {"maxCandidates": 9},
        {"maxCandidates": 100_001},
        {"maxCandidates": 10.5},
        {"namespace": None},
        {"sparseVector": {"indices": [1], "values": [1.0]}},
    ],
)
def test_a_malformed_query_is_refused(index: str, wrong: Any) -> None:
    """Queries with unknown fields or values out of range are a 400."""
    upsert(index, vector())
    status, told, _ = query(index, **wrong)
    assert (status, told["code"]) == (400, 3)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("euclidean", [("near", 1.0), ("far", 20.0), ("back", 56.0)]),
        ("dotproduct", [("far", 22.0), ("near", 17.0), ("back", -14.0)]),
        ("cosine", [("near", 17 / 294**0.5), ("far", 22 / 700**0.5), ("back", -1.0)]),
    ],
)
def test_scores_by_hand(emulator: PineconeEmulator, metric: str, expected: Any) -> None:
    """Euclidean scores are squared distances, the nearest first; the others are similarities."""
    index = make(emulator, schema={"fields": {"_values": {**SCHEMA["fields"]["_values"], "metric": metric}}})
    rows = {"near": [1.0, 2.0, 4.0], "back": [-1.0, -2.0, -3.0], "far": [5.0, 4.0, 3.0]}
    upsert(index, *(vector(name, values=row) for name, row in rows.items()))
    found = [(each["id"], each["score"]) for each in query(index)[1]["matches"]]
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-6)


def test_a_query_returns_what_it_is_asked_for(index: str) -> None:
    """Values and metadata come only when they are asked for, and a query may name a stored vector."""
    upsert(index, vector("a", metadata={"n": 1}), vector("b", values=[9.0, 9.0, 9.0]))
    assert query(index, topK=1)[1]["matches"] == [{"id": "a", "score": 0.0, "values": []}]
    full = query(index, topK=1, includeValues=True, includeMetadata=True)[1]["matches"]
    assert full == [{"id": "a", "score": 0.0, "values": [1.0, 2.0, 3.0], "metadata": {"n": 1.0}}]
    by_id = ask(index, "POST", "/query", {"id": "b", "topK": 1})[1]
    assert [each["id"] for each in by_id["matches"]] == ["b"]
    assert query(index, namespace="empty")[1]["matches"] == []


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"n": 1}, ["a"]),
        ({"n": {"$gte": 2}}, ["b", "c"]),
        ({"n": {"$gt": 1, "$lt": 3}}, ["b"]),
        ({"name": {"$in": ["a", "c", "x"]}}, ["a", "c"]),
        ({"name": {"$nin": ["a", "c"]}}, ["b"]),
        ({"name": {"$ne": "a"}}, ["b", "c"]),
        ({"tags": "x"}, ["c"]),
        ({"tags": {"$exists": True}}, ["c"]),
        ({"$or": [{"n": 1}, {"$and": [{"n": 3}, {"name": "c"}]}]}, ["a", "c"]),
        ({"n": True}, []),
    ],
)
def test_filters(index: str, condition: Any, expected: list[str]) -> None:
    """The operators of metadata filters select what they say, in queries and deletes."""
    for place, name in enumerate("abc"):
        tags = {"tags": ["x", "y"]} if name == "c" else {}
        upsert(index, vector(name, metadata={"n": place + 1, "name": name, **tags}))
    assert sorted(each["id"] for each in query(index, filter=condition)[1]["matches"]) == expected
    assert ask(index, "POST", "/vectors/delete", {"filter": condition})[:2] == (200, {})
    left = {each["id"] for each in query(index)[1]["matches"]}
    assert left == {"a", "b", "c"} - set(expected)


def test_a_result_over_four_megabytes_is_refused(index: str) -> None:
    """A query whose answer would be too long fails, and passes with fewer neighbours."""
    for start in range(0, 150, 50):
        upsert(index, *(vector(str(start + place), metadata={"text": "x" * 39_000}) for place in range(50)))
    assert query(index, topK=150, includeMetadata=True)[0] == 400
    assert query(index, topK=100, includeMetadata=True)[0] == 200
    assert query(index, topK=150)[0] == 200


def test_ids_are_listed_in_pages(index: str) -> None:
    """Pages hold a hundred ids in their order, and the last has no token."""
    upsert(index, *(vector(f"v{place:03}") for place in range(205)), vector("w"))
    found, token = [], ""
    for size in (100, 100, 5):
        parameters = {"prefix": "v", **({"paginationToken": token} if token else {})}
        _, told, _ = ask(index, "GET", "/vectors/list?" + urlencode(parameters))
        assert len(told["vectors"]) == size
        found += [each["id"] for each in told["vectors"]]
        token = told.get("pagination", {}).get("next", "")
    assert found == [f"v{place:03}" for place in range(205)]
    assert not token
    assert ask(index, "GET", "/vectors/list?limit=101")[0] == 400


def test_records_are_fetched_by_metadata_in_pages(index: str) -> None:
    """Pages hold a hundred records that meet a filter, with values and metadata; the last has no token."""
    odd, even = {"n": "odd"}, {"n": "even"}
    upsert(index, *(vector(f"v{place:03}", metadata=odd if place % 2 else even) for place in range(250)))
    found: dict[str, Any] = {}
    body: dict[str, Any] = {"filter": {"n": {"$eq": "odd"}}}
    for size, last in ((100, False), (25, True)):
        status, told, _ = ask(index, "POST", "/vectors/fetch_by_metadata", body)
        assert (status, len(told["vectors"]), "pagination" not in told) == (200, size, last)
        found.update(told["vectors"])
        body["paginationToken"] = told.get("pagination", {}).get("next")
    assert sorted(found) == [f"v{place:03}" for place in range(1, 250, 2)]
    assert {(len(each["values"]), each["metadata"]["n"]) for each in found.values()} == {(3, "odd")}
    for wrong in (
        {},
        {"filter": {}},
        {"filter": {"n": {"$like": "x"}}},
        {"filter": odd, "limit": 0},
        {"filter": odd, "limit": 10_001},
        {"filter": odd, "paginationToken": "no token"},
    ):
        assert ask(index, "POST", "/vectors/fetch_by_metadata", wrong)[0] == 400
    elsewhere = {"filter": odd, "namespace": "unknown"}
    assert ask(index, "POST", "/vectors/fetch_by_metadata", elsewhere)[1]["vectors"] == {}


def test_deletes(emulator: PineconeEmulator, index: str) -> None:
    """Records go by id or all at once; exactly one way must be named."""
    upsert(index, vector("a"), vector("b"), vector("c"))
    assert ask(index, "POST", "/vectors/delete", {"ids": ["a", "unknown"]})[:2] == (200, {})
    assert sorted(emulator.contents("animals")) == ["b", "c"]
    for wrong in ({}, {"ids": ["b"], "deleteAll": True}, {"ids": []}, {"ids": ["x"] * 1001}):
        assert ask(index, "POST", "/vectors/delete", wrong)[0] == 400
    assert ask(index, "POST", "/vectors/delete", {"deleteAll": True})[0] == 200
    assert emulator.contents("animals") == {}
    assert ask(index, "POST", "/vectors/delete", {"ids": ["a"], "namespace": "unknown"})[0] == 404


def test_what_is_not_emulated_says_so(emulator: PineconeEmulator, index: str) -> None:
    """Other operations are answered with 501 in the shape of their plane."""
    status, told, _ = ask(index, "POST", "/vectors/update", {"id": "a"})
    assert (status, told["code"]) == (501, 12)
    status, told, _ = ask(emulator.host, "GET", "/collections")
    assert (status, told["error"]["code"]) == (501, "UNIMPLEMENTED")


def test_writes_show_late_and_numbers_tell_when() -> None:
    """Until a write shows, queries, fetches, lists and counts lack it and report a lower log number."""
    with PineconeEmulator(KEY, visibility_delay=math.inf) as emulator:
        index = make(emulator)
        _, _, headers = upsert(index, vector())
        assert headers["x-pinecone-request-lsn"] == "1"
        _, told, headers = query(index)
        assert (told["matches"], headers["x-pinecone-max-indexed-lsn"]) == ([], "0")
        assert ask(index, "GET", "/vectors/fetch?ids=a")[1]["vectors"] == {}
        assert ask(index, "GET", "/vectors/list")[1]["vectors"] == []
        assert ask(index, "POST", "/describe_index_stats", {})[1]["totalVectorCount"] == 0
        assert list(emulator.contents("animals")) == ["a"]
        emulator.catch_up()
        _, told, headers = query(index)
        assert ([each["id"] for each in told["matches"]], headers["x-pinecone-max-indexed-lsn"]) == (
            ["a"],
            "1",
        )
        ask(index, "POST", "/vectors/delete", {"ids": ["a"]})
        assert len(query(index)[1]["matches"]) == 1
        emulator.catch_up()
        assert query(index)[1]["matches"] == []


def test_a_write_shows_by_itself_after_its_delay() -> None:
    """A write that is not seen at first is seen once its delay is over."""
    with PineconeEmulator(KEY, visibility_delay=0.2) as emulator:
        index = make(emulator)
        upsert(index, vector())
        deadline = time.monotonic() + 20
        while not query(index)[1]["matches"]:
            assert time.monotonic() < deadline


def test_log_numbers_can_be_left_out() -> None:
    """Without log numbers neither writes nor queries carry any."""
    with PineconeEmulator(KEY, log_numbers=False) as emulator:
        index = make(emulator)
        for _, _, headers in (upsert(index, vector()), query(index)):
            assert not any("lsn" in name for name in headers)


def test_faults_by_script(emulator: PineconeEmulator, index: str) -> None:
    """A script befalls the requests one after the other, and a cut one is applied all the same."""
    emulator.fail(script=["429", None, "503", "cut", "echo"], retry_after=2, paths=["/vectors/upsert"])
    assert query(index)[0] == 200
    status, told, headers = upsert(index, vector("a"))
    assert (status, told, headers["retry-after"]) == (429, "Too many requests", "2")
    assert headers["content-type"].startswith("text/plain")
    assert upsert(index, vector("b"))[0] == 200
    assert upsert(index, vector("c"))[0] == 503
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        upsert(index, vector("d"))
    assert sorted(emulator.contents("animals")) == ["b", "d"]
    status, told, _ = upsert(index, vector("e"))
    assert status == 400
    assert KEY in told["message"]
    assert upsert(index, vector("f"))[0] == 200
    sent = [each for each in emulator.requests if each.path == "/vectors/upsert"]
    assert [each.status for each in sent] == [429, 200, 503, None, 400, 200]
    assert [each.fault for each in sent] == ["429", None, "503", "cut", "echo", None]
    assert sent[1].json() == {"vectors": [vector("b")]}
    assert KEY not in repr(emulator.requests)
    assert KEY not in repr(emulator)


def test_faults_by_rate_follow_their_seed(emulator: PineconeEmulator, index: str) -> None:
    """The same seed lets the same requests fail, in about the share asked for, until it is healed."""

    def run(seed: int) -> list[int]:
        emulator.fail(1 / 3, kinds=("429", "503"), seed=seed)
        return [query(index)[0] for _ in range(60)]

    first = run(0)
    assert run(0) == first
    assert run(1) != first
    assert 8 <= sum(status != 200 for status in first) <= 32
    assert set(first) == {200, 429, 503}
    emulator.heal()
    assert {query(index)[0] for _ in range(20)} == {200}


def test_a_slow_answer_comes_late(emulator: PineconeEmulator, index: str) -> None:
    """A slow answer takes its delay, and is right."""
    emulator.fail(script=["slow"], delay=0.3)
    start = time.monotonic()
    assert upsert(index, vector())[0] == 200
    assert time.monotonic() - start >= 0.3


@pytest.mark.parametrize(
    "wrong", [{"rate": 2.0}, {"kinds": ["fire"]}, {"script": ["418"]}, {"rate": 1, "kinds": ()}]
)
def test_malformed_faults_are_refused(emulator: PineconeEmulator, wrong: Any) -> None:
    """A plan with an unknown kind or a rate out of range is refused."""
    with pytest.raises(InvalidInputError):
        emulator.fail(**wrong)


def test_a_stopped_emulator_refuses_connections(emulator: PineconeEmulator, index: str) -> None:
    """After `stop` both planes refuse connections, and stopping again does nothing."""
    emulator.stop()
    for host in (emulator.host, index):
        with pytest.raises(ConnectionError):
            ask(host, "GET", "/indexes")
    emulator.stop()


def test_the_sdk_talks_to_it(emulator: PineconeEmulator) -> None:
    """Pinecone's own SDK makes an index, writes, reads, and learns what a query has seen."""
    with Pinecone(api_key=KEY, host=emulator.host) as client:
        made = client.indexes.create(name="animals", schema=SCHEMA, deployment=SERVERLESS, timeout=-1)
        with client.index(host=made.host) as index:
            written = index.upsert(vectors=[("a", [1.0, 2.0, 3.0], {"n": 1}), ("b", [3.0, 2.0, 1.0])])
            assert written.upserted_count == 2
            found = index.query(vector=[1.0, 2.0, 3.0], top_k=1, include_metadata=True)
            assert (found.matches[0].id, found.matches[0].score, found.matches[0].metadata) == (
                "a",
                0.0,
                {"n": 1.0},
            )
            assert found.response_info.is_reconciled(written.response_info.lsn_committed)
            assert index.fetch(ids=["b", "c"]).vectors["b"].values == [3.0, 2.0, 1.0]
            assert index.describe_index_stats().total_vector_count == 2
            index.delete(ids=["a"])
            assert [each.id for page in index.list() for each in page.vectors] == ["b"]
