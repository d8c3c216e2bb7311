"""Where a CLIP model comes from: open_clip's tags, checkpoint files, local folders, or a seed."""

from __future__ import annotations

__all__: list[str] = []
