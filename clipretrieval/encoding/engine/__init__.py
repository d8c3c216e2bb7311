"""Run CLIP's image encoder as far as a stage needs, and no further."""

from __future__ import annotations

__all__: list[str] = []
