"""Which addresses Pinecone's requests may go to, and which of them may see the environment's key."""

from __future__ import annotations

import ipaddress
import os
import re
from urllib.parse import urlsplit

from clipretrieval._util.checks import shown
from clipretrieval.errors import InvalidInputError

__all__ = ["HOST_VARIABLE", "check_host", "control_plane", "is_environments", "is_own"]

HOST_VARIABLE = "PINECONE_CONTROLLER_HOST"
"""Where the SDK, too, looks for the control plane's address."""
OWN_DOMAIN = ".pinecone.io"
SERVICE = "https://api.pinecone.io"

# No user, password, query or fragment: they would be repeated wherever the address is.
_URL = re.compile(
    r"(?:https?://)?(?:[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?(?:/[a-z0-9._~-]+)*/?",
    re.IGNORECASE,
)


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


def is_environments(url: str) -> bool:
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
