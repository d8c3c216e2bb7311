"""Neighbors to class scores."""

from __future__ import annotations

__all__: list[str] = []
