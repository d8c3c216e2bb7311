"""What PineconeStore is made with: checked before anything is sent, and told apart when it is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pinecone_parts import KEY

from clipretrieval.errors import InvalidInputError, StoreUnavailableError
from clipretrieval.stores import PineconeStore
from clipretrieval.stores.pinecone.api_key import check_host, is_own
from clipretrieval.testing import PineconeEmulator


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("host", [5, "", b"x", [], "ftp://x", "http://example.com", "http://me:pw-SECRET@127.0.0.1"]),
        ("host", ["https://x?key=SECRET", "https://x#y", "https://x y", "https://x:99999", "https://[x]"]),
        ("timeout", [math.inf, math.nan, 0, -1, "5", None, True, 10**400, 1e9]),
        ("concurrency", [0, 65, 1.5, "8", True, None]),
        ("dim", [0, -1, 2.5, "3", True, 20_001]),
        ("index", [5, None, "", "Upper", ["a"], "http://me:SECRET@x"]),
        ("namespace", [5, None, "é", "a\0", "a" * 401]),
        ("metric", [5, None, "hamming", []]),
        ("cloud", [5, "", "attic"]),
        ("region", [5, "", "us east", None]),
        ("create", ["no", 1, None]),
        ("api_key", [5, b"key", ["SECRET"]]),
    ],
)
def test_wrong_arguments_are_refused(emulator: PineconeEmulator, name: str, wrong: list[Any]) -> None:
    """Every argument of another type or out of range is an error that names it, and nothing is sent."""
    before = len(emulator.requests)
    for value in wrong:
        options = {"index": "arguments", "api_key": KEY, "host": emulator.host, name: value}
        with pytest.raises(InvalidInputError, match=rf"{name}|Pinecone index's name") as caught:
            PineconeStore(**options)
        assert "SECRET" not in str(caught.value)
        assert KEY not in str(caught.value)
    assert len(emulator.requests) == before


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("https://api.pinecone.io", True),
        ("api.pinecone.io", True),
        ("https://Index-1.svc.aped-4627.pinecone.io:443/", True),
        ("http://127.0.0.1:5080", False),
        ("http://localhost", False),
        ("http://[::1]:80", False),
        ("https://example.com", False),
        ("https://pinecone.io.example.com", False),
        ("https://notpinecone.io", False),
        ("https://example.com/api.pinecone.io", False),
    ],
)
def test_hosts_of_the_service(host: str, own: bool) -> None:
    """A host is the service's own by the end of its name, and under https alone."""
    assert is_own(check_host(host)) is own


@pytest.mark.parametrize(
    "host",
    [
        "https://api.pinecone.io@example.com",
        "https://example.com\\.pinecone.io",
        "https://example.com#.pinecone.io",
        "https://example.com?.pinecone.io",
        "http://api.pinecone.io",
        "https://api.pinecone.io\n",
        "https://äpi.pinecone.io",
        "//api.pinecone.io",
    ],
)
def test_hosts_that_pretend_are_refused(host: str) -> None:
    """Addresses that other programs may read in another way, or that need no TLS, are none."""
    with pytest.raises(InvalidInputError, match="host must"):
        check_host(host)


def test_the_environments_key_goes_to_the_environments_host(
    emulator: PineconeEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PINECONE_API_KEY goes where PINECONE_CONTROLLER_HOST says, and to no other host but the service."""
    monkeypatch.setenv("PINECONE_API_KEY", KEY)
    for index, options in (("own", {}), ("named", {"host": emulator.host})):
        monkeypatch.setenv("PINECONE_CONTROLLER_HOST", emulator.host)
        with PineconeStore(index, **options) as store:
            store.upsert(["a"], np.ones((1, 4)), [1])
            assert ("host" in store.location()) is ("host" in options)
        assert list(emulator.contents(index)) == ["a"]
    before = len(emulator.requests)
    for other in (None, "https://api.pinecone.io", "http://127.0.0.1:9"):
        if other is None:
            monkeypatch.delenv("PINECONE_CONTROLLER_HOST")
        else:
            monkeypatch.setenv("PINECONE_CONTROLLER_HOST", other)
        with pytest.raises(InvalidInputError, match="api_key="):
            PineconeStore("own", host=emulator.host)
    monkeypatch.setenv("PINECONE_CONTROLLER_HOST", "http://example.com")
    with pytest.raises(InvalidInputError, match="PINECONE_CONTROLLER_HOST must begin with https"):
        PineconeStore("own")
    assert len(emulator.requests) == before


def test_an_index_that_the_service_says_is_elsewhere_does_not_get_the_environments_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The address of an index is checked as the control plane's is."""
    from clipretrieval.errors import StoreError
    from clipretrieval.stores.pinecone.api_key import ApiKey
    from clipretrieval.stores.pinecone.requests import Requests
    from clipretrieval.stores.pinecone.session import Project

    monkeypatch.delenv("PINECONE_CONTROLLER_HOST", raising=False)
    monkeypatch.setenv("PINECONE_API_KEY", KEY)
    key = ApiKey(None)
    project = Project(key, None, Requests(key, 1.0, 1))
    for host in ("example.com", "http://127.0.0.1:9", "http://x.svc.pinecone.io"):
        with pytest.raises(StoreError, match="the address that Pinecone gives"):
            project.open(host)
    project.open("x.svc.pinecone.io")
    project.close()


def test_an_exhausted_quota_is_not_told_as_a_refused_key(make: Any, other: Any) -> None:
    """A 403 for a quota says so on both planes; a key that is refused is still told as that."""
    emulator = other()
    emulator.fail(script=[None, "quota"], paths=["/indexes"])
    store = make(host=emulator.host, dim=4)
    for call in (lambda: store.upsert(["a"], np.ones((1, 4)), [1]), lambda: store.search(np.ones((1, 4)), 1)):
        with pytest.raises(StoreUnavailableError) as caught:
            call()
        assert "quota" in str(caught.value)
        assert "refused the API key" not in str(caught.value)
        emulator.heal()
        store.upsert(["a"], np.ones((1, 4)), [1])
        emulator.fail(1.0, ["quota"], paths=["/query"])
    emulator.heal()
    with pytest.raises(StoreUnavailableError, match="refused the API key"):
        make(host=emulator.host, api_key="pcsk_another_key")
