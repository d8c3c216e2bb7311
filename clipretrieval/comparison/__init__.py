"""Put CLIP itself and its stages side by side on the same images."""

from __future__ import annotations

__all__: list[str] = []
