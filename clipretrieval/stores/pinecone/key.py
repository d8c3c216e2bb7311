"""The API key, which no representation of anything shows."""

from __future__ import annotations

import os

from clipretrieval._util.secrets import MASK
from clipretrieval.errors import InvalidInputError, UnsupportedOperationError
from clipretrieval.stores.pinecone.host import HOST_VARIABLE, is_environments, is_own

__all__ = ["ApiKey"]

VARIABLE = "PINECONE_API_KEY"


class ApiKey:
    """An API key that debuggers and tracebacks with local variables may print.

    Parameters
    ----------
    text : str or None
        The environment variable ``PINECONE_API_KEY`` if None or empty.

    Raises
    ------
    InvalidInputError
        If there is none, or it is not a str.
    """

    __slots__ = ("_from_environment", "_text")

    def __init__(self, text: str | None) -> None:
        if text is not None and not isinstance(text, str):
            raise InvalidInputError(f"api_key must be a str; got an object of type {type(text).__name__}")
        self._from_environment = not text
        self._text = text or os.environ.get(VARIABLE, "")
        if not self._text:
            raise InvalidInputError(f"PineconeStore needs an API key; set {VARIABLE}, or pass api_key=…")

    def __repr__(self) -> str:
        return MASK

    def __reduce__(self) -> str:
        raise UnsupportedOperationError("an API key cannot be pickled or copied")

    def may_see(self, url: str) -> bool:
        """Tell whether a checked address may be sent this key.

        Whoever set the environment's key meant the service, or the host that the environment names beside it;
        an address from an argument or a file may be anybody's.
        """
        return not self._from_environment or is_own(url) or is_environments(url)

    def check(self, url: str) -> None:
        """Refuse an address that may not be sent this key.

        Raises
        ------
        InvalidInputError
        """
        if not self.may_see(url):
            raise InvalidInputError(
                f"{VARIABLE} is sent to Pinecone's own hosts alone, and host={url!r} is none of them; pass "
                f"the key for it as api_key=…, or name the host in the environment too, as {HOST_VARIABLE}"
            )

    def reveal(self) -> str:
        """Return the key; to be handed on at once, and kept in no variable."""
        return self._text

    def struck_out(self, text: str) -> str:
        """Return a text without the key."""
        return text.replace(self._text, MASK)
