"""A store on Chroma: in memory, in a folder, at a server, or through a client of the user's."""

from __future__ import annotations

from clipretrieval.errors import MissingDependencyError

try:
    from clipretrieval.stores.chroma.store import ChromaStore
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("chromadb", "httpx"):
        raise
    raise MissingDependencyError(
        'ChromaStore needs chromadb, which is not installed; run: pip install "clipretrieval[chroma]"',
        name=error.name,
    ) from error

__all__ = ["ChromaStore"]
