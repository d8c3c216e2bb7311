"""A store in LanceDB: in a folder or in object storage."""

from __future__ import annotations

from clipretrieval.errors import MissingDependencyError

try:
    from clipretrieval.stores.lance.store import LanceStore
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("lancedb", "pyarrow"):
        raise
    raise MissingDependencyError(
        'LanceStore needs lancedb, which is not installed; run: pip install "clipretrieval[lance]"',
        name=error.name,
    ) from error

__all__ = ["LanceStore"]
