"""Secrets in options, addresses and messages: recognized, and hidden from whatever is printed or saved."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["MASK", "MaskedDict", "is_secret", "masked", "masked_text", "masked_urls", "without_secrets"]

MASK = "***"
_DEEPEST = 20
"""Levels of nesting that are looked into; what lies deeper is masked as a whole."""

_NOUN = (
    "keys?|tokens?|secrets?|pas+w?o?r?ds?|pass|passphrases?|pwd|credentials?|creds?|"
    "auth|oauth|authorization|authentication|bearer|cookies?|headers?|jwt|sas|sig|signatures?|dsn"
)
_OWNER = (
    "access|account|admin|api|app|auth|aws|bearer|client|db|encryption|id|license|master|my|private|refresh|"
    "secret|service|session|shared|signing|ssh|ssl|subscription|user"
)
_PART = re.compile(rf"(?:{_OWNER})*(?:{_NOUN})")
_WORD_BREAK = re.compile(r"[^A-Za-z0-9]+|(?<=[a-z0-9])(?=[A-Z])")
# Keys of data rather than of doors.
_PUBLIC_KEY = re.compile(
    r"(?:partition|sort|primary|foreign|row|public|id|label|text|vector|field|metadata|cache|group|order)_keys?"
)

_USER_INFO = re.compile(r"(?<=://)(?:[^\s'\"/]*|[^\s'\"/:]*:[^\s'\"]*)@")
# The passwords of a connection string of libpq, as psycopg takes it: \ keeps a quote or a space in the value.
_CONNINFO_PASSWORD = re.compile(
    r"(?<![A-Za-z0-9_?&-])(?P<name>(?:ssl)?password)\s*=\s*(?:'(?:[^'\\]|\\.)*'?|(?:[^\s\\]|\\.)+)"
)
# A word up to its last @, behind which is no user. Looked for first: in a long word without one, which a file
# of a stranger may hold, each :// would have all the rest searched.
_BEFORE_AT = re.compile(r"(?<![^\s'\"])[^\s'\"]*@")
# NAME=VALUE and NAME: VALUE, as options, queries of URLs, headers and the repr of a dict have them.
_NAME = re.compile(r"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]+(?=['\"]?\s*[=:])")
_VALUE = re.compile(
    r"(?P<sign>['\"]?\s*[=:]\s*)"
    r"(?:(?P<quote>['\"]).*?(?P=quote)|(?:(?:Bearer|Basic|Token)\s+)?[^\s'\"&,;)}\]]+)"
)
_QUERY = re.compile(r"(?<=[?&])(?P<name>[^=&#\s]+)=[^&#\s]*&?")


def is_secret(name: Any, value: Any = MASK) -> bool:
    """Tell whether an option is to be kept secret, by its name: ``api_key``, ``authToken``, ``headers``.

    Parameters
    ----------
    name : str
        Of any spelling: words joined by underscores, hyphens or capitals. Anything else is none.
    value : object
        None and booleans are no secrets under any name.
    """
    if not isinstance(name, str) or value is None or isinstance(value, bool):
        return False
    parts = [word.lower() for word in _WORD_BREAK.split(name) if word]
    if _PUBLIC_KEY.fullmatch("_".join(parts)):
        return False
    return any(_PART.fullmatch(part) for part in parts)


def masked_urls(text: str) -> str:
    """Return a text in which ``***`` stands for the users and passwords of URLs and connection strings."""
    return _CONNINFO_PASSWORD.sub(rf"\g<name>={MASK}", _replace_user_info(text, f"{MASK}@"))


def masked_text(text: str) -> str:
    """Return a text in which ``***`` stands for the passwords of URLs and what secret names are set to."""
    text, shown, place = masked_urls(text), [], 0
    for name in _NAME.finditer(text):
        if name.start() < place or not is_secret(name[0]):
            continue
        value = _VALUE.match(text, name.end())
        if value is not None:
            quote = value["quote"] or ""
            shown.append(f"{text[place : name.end()]}{value['sign']}{quote}{MASK}{quote}")
            place = value.end()
    return "".join(shown) + text[place:]


def masked(value: Any) -> Any:
    """Return a value to be printed: the same, at any depth, with ``***`` for every secret.

    Mappings come back as dicts; texts have the passwords of their URLs masked; what is neither, nor a
    list or a tuple, comes back as it is.
    """
    return _hide(value, masked_text, MASK)


def without_secrets(value: Any) -> Any:
    """Return a value to be saved: options without the secret ones, URLs without theirs; see `masked`."""
    return _hide(value, _without_url_secrets, None)


def _hide(value: Any, hide_in_text: Callable[[str], str], stand_in: str | None, depth: int = 0) -> Any:
    """Return a value with something in the place of its secrets; without a stand-in, options are left out."""
    if isinstance(value, str):
        return hide_in_text(value)
    if not isinstance(value, Mapping | list | tuple):
        return value
    if depth >= _DEEPEST:
        return stand_in
    if isinstance(value, Mapping):
        return {
            name: stand_in if is_secret(name, each) else _hide(each, hide_in_text, stand_in, depth + 1)
            for name, each in value.items()
            if stand_in is not None or not is_secret(name, each)
        }
    if type(value) in (list, tuple) and len(value) == 2 and is_secret(*value):  # as headers are often listed
        parts = [value[0], stand_in]
    else:
        parts = [_hide(each, hide_in_text, stand_in, depth + 1) for each in value]
    return parts if isinstance(value, list) else tuple(parts)


def _without_url_secrets(text: str) -> str:
    text = _QUERY.sub(
        lambda found: "" if is_secret(found["name"]) else found[0], _replace_user_info(text, "")
    )
    return _CONNINFO_PASSWORD.sub("", text)


def _replace_user_info(text: str, by: str) -> str:
    return _BEFORE_AT.sub(lambda found: _USER_INFO.sub(by, found[0]), text)


class MaskedDict(dict[str, Any]):
    """A dict like any other whose secrets are masked where it is printed, and left out where it is pickled.

    Its copies have them.
    """

    def __repr__(self) -> str:
        return repr(masked(dict(self)))

    def __rich_repr__(self) -> Iterator[Any]:
        yield masked(dict(self))

    def __copy__(self) -> MaskedDict:
        return MaskedDict(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> MaskedDict:
        return MaskedDict({name: copy.deepcopy(value, memo) for name, value in self.items()})

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return MaskedDict, (without_secrets(dict(self)),)
