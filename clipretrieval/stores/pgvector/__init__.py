"""A store in PostgreSQL, with the extension pgvector."""

from __future__ import annotations

from clipretrieval.errors import MissingDependencyError

try:
    from clipretrieval.stores.pgvector.store import PgVectorStore
except ImportError as error:  # psycopg without libpq raises an ImportError of its own
    if isinstance(error, MissingDependencyError) or "psycopg" not in f"{error.name} {error}":
        raise
    raise MissingDependencyError(
        "PgVectorStore needs psycopg, which is not installed whole; run: "
        'pip install "clipretrieval[pgvector]"',
        name=error.name,
    ) from error

__all__ = ["PgVectorStore"]
