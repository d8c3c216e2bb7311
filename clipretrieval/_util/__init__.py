"""Small tools without a home of their own."""

from __future__ import annotations

__all__: list[str] = []
