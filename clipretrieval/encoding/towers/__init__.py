"""The image encoders that can be stopped: one file a family, its stages as a table of data."""

from __future__ import annotations

__all__: list[str] = []
