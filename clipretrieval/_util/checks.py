"""Arguments of any public call, checked: the one set of checks that all of them use.

Each check returns its value as a plain one of Python's, or raises `InvalidInputError`, which calls it `name`.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipretrieval._util.foreign import column_list
from clipretrieval._util.secrets import masked, masked_text
from clipretrieval.errors import InvalidInputError

__all__ = [
    *("check_bool", "check_choice", "check_int", "check_list", "check_mapping", "check_number"),
    *("check_path", "check_sequence", "check_strings", "check_text", "shown"),
]

LONGEST_SHOWN = 100
"""Characters of a value that an error quotes."""
LONGEST_PATH = 4096
"""Bytes of a path, as Linux has it in PATH_MAX."""


def shown(value: Any) -> str:
    """Return how an error quotes a value: its repr, in one line, shortened, and with secrets masked.

    Where that fails, it is the type.
    """
    try:
        text = masked_text(" ".join(repr(masked(value)).split()))
    except Exception:  # noqa: BLE001  whatever an object's own repr raises must not hide what is wrong with it
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…"


def check_bool(value: Any, name: str) -> bool:
    """Return True or False, also of NumPy; nothing else by its truth, as the string "no" would be True."""
    if not isinstance(value, bool | np.bool_):
        raise InvalidInputError(f"{name} must be True or False; got {shown(value)}")
    return bool(value)


def check_int(value: Any, name: str, *, least: int = 1, most: int = 2**63 - 1) -> int:
    """Return a whole number from `least` to `most` as an int: what has ``__index__`` and is not a bool."""
    wanted = f"at least {least}" + ("" if most == 2**63 - 1 else f" and at most {most}")
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        raise InvalidInputError(f"{name} must be a whole number, {wanted}; got {shown(value)}")
    return number


def check_number(
    value: Any, name: str, *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf
) -> float:
    """Return a finite real number, larger than `above` and from `least` to `most`, as a float."""
    bounds = [
        *([f"above {above:g}"] if above > -math.inf else ()),
        *([f"at least {least:g}"] if least > -math.inf else ()),
        *([f"at most {most:g}"] if most < math.inf else ()),
    ]
    wanted = f"{name} must be a finite number{' ' if bounds else ''}{' and '.join(bounds)}"
    plain = not isinstance(value, bool | np.bool_) and isinstance(
        value, int | float | np.integer | np.floating
    )
    try:
        number = float(value) if plain else math.nan
    except OverflowError:  # an int of hundreds of digits
        number = math.inf
    if not (math.isfinite(number) and above < number and least <= number <= most):
        raise InvalidInputError(f"{wanted}; got {shown(value)}")
    return number


def check_choice(value: Any, name: str, choices: Sequence[str]) -> str:
    """Return one of some words, which the error lists."""
    if not isinstance(value, str) or value not in choices:
        raise InvalidInputError(f"{name} must be one of {', '.join(map(repr, choices))}; got {shown(value)}")
    return str(value)


def check_text(value: Any, name: str, *, empty: bool = False) -> str:
    """Return a str as a plain one, without surrogates, which cannot be written; `empty` where it may be."""
    if not isinstance(value, str) or not (value or empty):
        raise InvalidInputError(
            f"{name} must be a str{'' if empty else ' that is not empty'}; got {shown(value)}"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"{name} is not valid Unicode: {shown(value)}") from error
    return str(value)


def check_sequence(values: Any, name: str, of: str) -> list[Any]:
    """Return the values of a sequence, or of anything else with an order, as a list.

    Not taken are one string, and what gives other things than its values when it is iterated over: a mapping
    and a DataFrame give their keys, a set gives no order, and an open file gives its lines.

    Parameters
    ----------
    values : list, tuple, 1-D array, tensor, Series, Index, Arrow array or iterator
    name : str
    of : str
        What the values should be, in an error's words: "str".
    """
    listed = isinstance(values, Iterable) and not isinstance(values, str | bytes | bytearray | type)
    keyed = hasattr(values, "keys") and getattr(values, "ndim", 2) != 1  # a Series has keys too
    if not listed or keyed or hasattr(values, "read"):
        raise InvalidInputError(f"{name} must be a sequence of {of}; got {shown(values)}")
    if isinstance(values, set | frozenset):
        raise InvalidInputError(f"{name} must be in an order, such as a list; got {shown(values)}")
    items = column_list(values, name)
    return list(values) if items is None else items


def check_strings(values: Any, name: str) -> list[str]:
    """Return a sequence of strings as a list of plain ones; see `check_sequence`."""
    items = check_sequence(values, name, "str")
    for place, item in enumerate(items):
        if not isinstance(item, str):
            raise InvalidInputError(f"{name} must be str; {name}[{place}] is {shown(item)}")
    return [item if type(item) is str else str(item) for item in items]


def check_mapping(value: Any, name: str, *, optional: bool = True) -> dict[str, Any]:
    """Return a mapping of names as a dict; where it is optional, an empty one for None."""
    if value is None and optional:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        # Not its repr: it may hold a key or a password.
        raise InvalidInputError(
            f"{name} must be a mapping of names, such as a dict with str keys; got one object of the type "
            f"{type(value).__name__}"
        )
    return dict(value)


def check_list(value: Any, name: str) -> None:
    """Refuse what cannot receive records, such as those of skipped images; None is taken."""
    if value is not None and not isinstance(value, list):
        raise InvalidInputError(f"{name} must be a list, which receives records, or None; got {shown(value)}")


def check_path(value: Any, name: str) -> Path:
    """Return a path that the operating system can take; whether anything is there is not looked at."""
    if not isinstance(value, str | os.PathLike):
        raise InvalidInputError(f"{name} must be a path, str or pathlib.Path; got {shown(value)}")
    text = os.fspath(value)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if not text:
        raise InvalidInputError(f"{name} must not be empty; pass '.' for the current folder")
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"{name} is not valid Unicode: {shown(text)}") from error
    if b"\0" in encoded:
        raise InvalidInputError(f"{name} holds a NUL character, which no path can: {shown(text)}")
    if len(encoded) >= LONGEST_PATH or any(len(part) > 255 for part in encoded.split(os.sep.encode())):
        raise InvalidInputError(f"{name} is too long for a path: {shown(text)}")
    return Path(text)
