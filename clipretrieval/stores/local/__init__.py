"""What the stores that keep their records in this process share."""

from __future__ import annotations

__all__: list[str] = []
