"""Evaluation reports as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

__all__: list[str] = []
