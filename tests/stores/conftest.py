"""Servers that the tests of several stores share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chroma_server import chroma_server
from postgres_server import PASSWORD, PostgresServer


@pytest.fixture(scope="session")
def chroma_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Chroma server that all tests share."""
    with chroma_server(tmp_path_factory.mktemp("chroma") / "data") as (_, port):
        yield port


@pytest.fixture
def postgres(postgres_at_large: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> PostgresServer:
    """A PostgreSQL server of which no test may end; its password is in the environment."""
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    return postgres_at_large
