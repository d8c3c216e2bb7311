"""Heads by name, and as JSON values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from clipretrieval._util.checks import check_choice, check_int, check_mapping, check_sequence, shown
from clipretrieval.errors import InvalidInputError
from clipretrieval.heads.base import Head
from clipretrieval.heads.discriminant import Discriminant
from clipretrieval.heads.fused import Fused
from clipretrieval.heads.quadratic import Quadratic
from clipretrieval.heads.ridge import Ridge
from clipretrieval.heads.statistics import Moments

__all__ = ["FUSED_K", "HEADS", "as_heads", "choose_head", "head_name", "head_values", "read_head"]

HEADS = ("votes", "discriminant", "quadratic", "ridge", "fused")
FUSED_K = 20
"""Neighbors of ``"fused"`` where the classifier's k is 1: a single vote says too little."""

_MEMBERS = ("k", "moments", "learn")
_CLASSES: dict[type, str] = {
    Discriminant: "discriminant",
    Quadratic: "quadratic",
    Ridge: "ridge",
    Fused: "fused",
}


def choose_head(head: Any, k: int) -> Head | None:
    """Return the head that an estimator's arguments stand for; None for the votes, which learn nothing.

    Parameters
    ----------
    head : str or Head
    k : int
        Neighbors that vote.

    Raises
    ------
    InvalidInputError
        If there is no such head; the message lists the known ones.
    """
    if isinstance(head, str):
        if head not in HEADS:
            raise InvalidInputError(
                f"unknown head {shown(head)}; choose one of {', '.join(map(repr, HEADS))}, or pass an object "
                "that follows clipretrieval.heads.Head"
            )
        if head == "votes":
            return None
        if head == "fused":
            return Fused(k=k if k > 1 else FUSED_K)
        return next(kind for kind, name in _CLASSES.items() if name == head)()  # type: ignore[no-any-return]
    missing = [name for name in _MEMBERS if not hasattr(head, name)]
    if isinstance(head, type):
        raise InvalidInputError(
            f"head={shown(head)} is no head: it is a class. Pass an object of it, {head.__name__}(), or one "
            f"of {', '.join(map(repr, HEADS))}"
        )
    if missing:
        raise InvalidInputError(
            f"head={shown(head)} is no head: it lacks {', '.join(missing)}. Pass one of "
            f"{', '.join(map(repr, HEADS))}, or an object that follows clipretrieval.heads.Head"
        )
    check_int(head.k, "the k of a head", least=0)
    if not all(isinstance(each, Moments) for each in check_sequence(head.moments, "moments", "Moments")):
        raise InvalidInputError(f"the moments of {shown(head)} must be Moments; see clipretrieval.heads")
    chosen: Head = head
    return chosen


def as_heads(heads: Any, name: str) -> list[Any]:
    """Return one head or several as a list: names, objects, or both; `choose_head` checks each.

    Raises
    ------
    InvalidInputError
        If they are in no order; the message calls them `name`.
    """
    single = isinstance(heads, str | bytes) or hasattr(heads, "learn") or not isinstance(heads, Iterable)
    return [heads] if single else check_sequence(heads, name, "heads")


def head_name(head: Any) -> str:
    """Return what reports call a head: such as ``discriminant(shrinkage=0.1)``; a user's own by its class."""
    if isinstance(head, str) or type(head) not in _CLASSES:
        return head if isinstance(head, str) else type(head).__name__
    default = type(head)()
    changed = {field.name: getattr(head, field.name) for field in fields(head)}
    told = [
        f"{name}={head_name(value) if is_dataclass(value) else value}"
        for name, value in changed.items()
        if value != getattr(default, name)
    ]
    return _CLASSES[type(head)] + (f"({', '.join(told)})" if told else "")


def head_values(head: Any) -> str | dict[str, Any] | None:
    """Return a head as JSON values, which `read_head` takes; None for one of a user's own.

    Returns
    -------
    str, dict or None
        A name stays what it is. An object becomes its ``name`` with its arguments.
    """
    if isinstance(head, str):
        return head
    if type(head) not in _CLASSES:
        return None
    given = {field.name: getattr(head, field.name) for field in fields(head)}
    return {"name": _CLASSES[type(head)], **{name: _value(value) for name, value in given.items()}}


def read_head(values: Any, name: str) -> str | Head:
    """Return the head of which `head_values` returned JSON values, which anybody may have written since.

    Raises
    ------
    InvalidInputError
        If there is no such head, or it does not have, or take, such arguments; the message calls it `name`.
    """
    if isinstance(values, str):
        return check_choice(values, name, HEADS)
    return _read_head(values, name, HEADS[1:])


def _read_head(values: Any, name: str, known: Sequence[str]) -> Head:
    given = check_mapping(values, name, optional=False)
    kind = check_choice(given.pop("name", None), f"{name}.name", known)
    made = next(each for each, called in _CLASSES.items() if called == kind)
    strange = set(given) ^ {field.name for field in fields(made)}
    if strange:
        raise InvalidInputError(f"{name} should not have, or lacks, {', '.join(map(shown, sorted(strange)))}")
    for argument, value in given.items():
        if isinstance(value, dict) and argument in HEADS:
            given[argument] = _read_head(value, f"{name}.{argument}", (argument,))
    try:
        head: Head = made(**given)
    except InvalidInputError as error:
        raise InvalidInputError(f"{name}: {error}") from error
    return head


def _value(value: Any) -> Any:
    """Return an argument of a head as a JSON value."""
    if is_dataclass(value):
        return head_values(value)
    return value.item() if isinstance(value, np.generic) else value
