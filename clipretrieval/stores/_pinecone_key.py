"""The API key, which no representation of anything shows."""

from __future__ import annotations

import os

from clipretrieval.errors import InvalidInputError, UnsupportedOperationError

__all__ = ["ApiKey"]


class ApiKey:
    """An API key that debuggers and tracebacks with local variables may print.

    Parameters
    ----------
    text : str or None
        The environment variable ``PINECONE_API_KEY`` if None or empty.

    Raises
    ------
    InvalidInputError
        If there is none.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str | None) -> None:
        self._text = text or os.environ.get("PINECONE_API_KEY", "")
        if not self._text:
            raise InvalidInputError("PineconeStore needs an API key; set PINECONE_API_KEY, or pass api_key=…")

    def __repr__(self) -> str:
        return "***"

    def __reduce__(self) -> str:
        raise UnsupportedOperationError("an API key cannot be pickled or copied")

    def reveal(self) -> str:
        """Return the key; to be handed on at once, and kept in no variable."""
        return self._text

    def struck_out(self, text: str) -> str:
        """Return a text without the key."""
        return text.replace(self._text, "***")
