"""PgVectorStores for the tests, each with a table of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from postgres_server import PostgresServer

from clipretrieval.stores import PgVectorStore


@pytest.fixture
def make(postgres: PostgresServer) -> Iterator[Callable[..., PgVectorStore]]:
    """Make stores at the server, and close them at the end."""
    made: list[PgVectorStore] = []

    def make_store(**options: Any) -> PgVectorStore:
        given = {"conninfo": postgres.conninfo, "table": f"test-{uuid4().hex}", **options}
        made.append(PgVectorStore(**given))
        return made[-1]

    yield make_store
    for store in made:
        store.close()
