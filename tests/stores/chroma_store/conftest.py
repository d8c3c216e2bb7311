"""ChromaStores for the tests, in memory, in a folder and at a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from clipretrieval.stores import ChromaStore

PLACES = ["memory", "folder", "server"]


@pytest.fixture(params=PLACES)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., ChromaStore]]:
    """Make stores in one place, each with a collection of its own, and close them at the end."""
    made: list[ChromaStore] = []

    def make_store(metric: str = "l2", **options: Any) -> ChromaStore:
        if request.param == "folder":
            options["path"] = tmp_path / uuid4().hex
        elif request.param == "server":
            options.update(host="127.0.0.1", port=request.getfixturevalue("chroma_port"))
        made.append(ChromaStore(collection=f"test-{uuid4().hex}", metric=metric, **options))
        return made[-1]

    yield make_store
    for store in made:
        store.close()
