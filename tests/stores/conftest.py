"""Servers that the tests of several stores share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chroma_server import chroma_server


@pytest.fixture(scope="session")
def chroma_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Chroma server that all tests share."""
    with chroma_server(tmp_path_factory.mktemp("chroma") / "data") as (_, port):
        yield port
