"""What a fit, a question and a change do with an encoder and a store."""

from __future__ import annotations

__all__: list[str] = []
