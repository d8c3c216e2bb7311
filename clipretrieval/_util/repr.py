"""Reprs in one short line, whatever a record holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from clipretrieval._util.checks import shown

__all__ = ["safe_repr", "short_repr"]


def short_repr(record: object, **facts: Any) -> str:
    """Return ``Name(fact=value, …)``: what tells one record from another, numbers in four digits."""
    told = [
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={shown(value)}"
        for name, value in facts.items()
    ]
    return f"{type(record).__name__}({', '.join(told)})"


def safe_repr(method: Callable[[Any], str]) -> Callable[[Any], str]:
    """Let a ``__repr__`` serve objects whose constructor failed: tracebacks with locals show them."""

    @wraps(method)
    def __repr__(self: Any) -> str:  # noqa: N807
        try:
            return method(self)
        except AttributeError:
            return f"{type(self).__name__}(not initialized)"

    return __repr__
