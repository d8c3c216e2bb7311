"""Metadata filters in Pinecone's query language."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from clipretrieval.testing.pinecone_emulator.answers import Refused

__all__ = ["matches"]

_MISSING = object()
_ORDERINGS: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
# The service takes this many values in one $in or $nin.
MAX_VALUES = 10_000


def matches(condition: Any, metadata: Mapping[str, Any]) -> bool:
    """Tell whether a record's metadata meets a filter.

    Raises
    ------
    Refused
        If the filter is malformed.
    """
    if not isinstance(condition, dict) or not condition:
        raise Refused(400, "filter must be a non-empty object")
    # A list, so that every clause is checked.
    return all([_clause(name, wanted, metadata) for name, wanted in condition.items()])  # noqa: C419


def _clause(name: str, wanted: Any, metadata: Mapping[str, Any]) -> bool:
    if name in ("$and", "$or"):
        if not isinstance(wanted, list) or not wanted:
            raise Refused(400, f"{name} takes a non-empty list")
        parts = [matches(part, metadata) for part in wanted]
        return all(parts) if name == "$and" else any(parts)
    if name.startswith("$"):
        raise Refused(400, f"{name} is not a valid operator")
    value = metadata.get(name, _MISSING)
    if not isinstance(wanted, dict):
        return _equal(value, wanted)
    if not wanted:
        raise Refused(400, f"the filter of {name!r} is empty")
    return all([_operation(kind, value, operand) for kind, operand in wanted.items()])  # noqa: C419


def _operation(kind: str, value: Any, operand: Any) -> bool:
    if kind == "$eq":
        return _equal(value, operand)
    if kind == "$ne":
        return not _equal(value, operand)
    if kind in ("$in", "$nin"):
        if not isinstance(operand, list) or len(operand) > MAX_VALUES:
            raise Refused(400, f"{kind} takes a list of at most {MAX_VALUES} values")
        # A list, so that every value is checked.
        return any([_equal(value, each) for each in operand]) == (kind == "$in")  # noqa: C419
    if kind == "$exists":
        if not isinstance(operand, bool):
            raise Refused(400, "$exists takes true or false")
        return (value is not _MISSING) == operand
    if kind in _ORDERINGS:
        if isinstance(operand, bool) or not isinstance(operand, (int, float)):
            raise Refused(400, f"{kind} takes a number")
        return isinstance(value, float) and _ORDERINGS[kind](value, operand)
    raise Refused(400, f"{kind} is not a valid operator")


def _equal(value: Any, operand: Any) -> bool:
    """Compare as the service does: a list of str equals each of its members."""
    if isinstance(operand, (list, dict)) or operand is None:
        raise Refused(400, f"a filter compares with a string, a number or a boolean; found {operand!r}")
    if isinstance(value, list):
        return operand in value
    # True is 1 in Python, not in JSON.
    return isinstance(value, bool) == isinstance(operand, bool) and bool(value == operand)
