"""Reprs in one short line, whatever a record holds."""

from __future__ import annotations

from typing import Any

from clipretrieval._checks import shown

__all__ = ["short_repr"]


def short_repr(record: object, **facts: Any) -> str:
    """Return ``Name(fact=value, …)``: what tells one record from another, numbers in four digits."""
    told = [
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={shown(value)}"
        for name, value in facts.items()
    ]
    return f"{type(record).__name__}({', '.join(told)})"
