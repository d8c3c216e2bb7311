"""The API key, which no representation of anything shows, and the addresses that it may be sent to."""

from __future__ import annotations

import ipaddress
import os
import re
from urllib.parse import urlsplit

from clipretrieval._util.checks import shown
from clipretrieval._util.secrets import MASK
from clipretrieval.errors import InvalidInputError, UnsupportedOperationError

__all__ = ["ApiKey", "check_host", "control_plane", "is_from_environment", "is_own"]

KEY_VARIABLE = "PINECONE_API_KEY"
# Where the SDK, too, looks for the control plane's address.
HOST_VARIABLE = "PINECONE_CONTROLLER_HOST"
OWN_DOMAIN = ".pinecone.io"
SERVICE = "https://api.pinecone.io"

# No user, password, query or fragment: they would be repeated wherever the address is.
_URL = re.compile(
    r"(?:https?://)?(?:[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?(?:/[a-z0-9._~-]+)*/?",
    re.IGNORECASE,
)


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
        self._text = text or os.environ.get(KEY_VARIABLE, "")
        if not self._text:
            raise InvalidInputError(f"PineconeStore needs an API key; set {KEY_VARIABLE}, or pass api_key=…")

    def __repr__(self) -> str:
        return MASK

    def __reduce__(self) -> str:
        raise UnsupportedOperationError("an API key cannot be pickled or copied")

    def check_receiver(self, url: str) -> None:
        """Refuse a checked address that may not be sent this key.

        Whoever set the environment's key meant the service, or the host that the environment names beside it;
        an address from an argument or a file may be anybody's.

        Raises
        ------
        InvalidInputError
        """
        if self._from_environment and not is_own(url) and not is_from_environment(url):
            raise InvalidInputError(
                f"{KEY_VARIABLE} is sent to Pinecone's own hosts alone, and host={url!r} is none of them; "
                "pass the key for it as api_key=…, or name the host in the environment too, as "
                f"{HOST_VARIABLE}"
            )

    def reveal(self) -> str:
        """Return the key; to be handed on at once, and kept in no variable."""
        return self._text

    def struck_out(self, text: str) -> str:
        """Return a text without the key."""
        return text.replace(self._text, MASK)


def check_host(host: object, name: str = "host") -> str:
    """Return an address as a URL.

    Raises
    ------
    InvalidInputError
        If it is none, has credentials, or would be spoken to without TLS over a network.
    """
    if not isinstance(host, str) or not _URL.fullmatch(host):
        raise InvalidInputError(
            f"{name} must be a str such as 'https://proxy.example.com', without user, password or query; got "
            f"{shown(host)}"
        )
    url = host if host.lower().startswith(("http://", "https://")) else f"https://{host}"
    try:
        split = urlsplit(url)
        secure = split.scheme == "https" or _is_loopback(split.hostname or "")
        valid = split.port != 0
    except ValueError as error:  # a port above 65535, or brackets around what is no address
        raise InvalidInputError(f"{name} must be a valid address; got {shown(host)} ({error})") from error
    if not secure or not valid:
        raise InvalidInputError(
            f"{name} must begin with https://, as the API key is sent there (http:// only for this machine, "
            f"such as http://127.0.0.1:5080); got {shown(host)}"
        )
    return url


def control_plane(host: object) -> str:
    """Return the address that the SDK speaks to for an argument `host`.

    Raises
    ------
    InvalidInputError
        If it, or the environment's where it is None, is not one to send a key to.
    """
    if host is not None:
        return check_host(host)
    named = os.environ.get(HOST_VARIABLE)
    return check_host(named, HOST_VARIABLE) if named else SERVICE


def is_own(url: str) -> bool:
    """Tell whether a checked address is the Pinecone service's own."""
    split = urlsplit(url)
    return split.scheme == "https" and f".{split.hostname}".endswith(OWN_DOMAIN)


def is_from_environment(url: str) -> bool:
    """Tell whether a checked address is the one that the environment names for its key."""
    named = os.environ.get(HOST_VARIABLE)
    return bool(named) and _origin(check_host(named, HOST_VARIABLE)) == _origin(url)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    split = urlsplit(url)
    return split.scheme, split.hostname, split.port


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
