"""A fitted classifier as a folder: a small JSON file beside its store."""

from __future__ import annotations

__all__: list[str] = []
