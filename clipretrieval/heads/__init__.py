"""Neighbours to class scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipretrieval._util.lazy import attach

if TYPE_CHECKING:
    from clipretrieval.heads.votes import (
        WEIGHTINGS,
        Weighting,
        choose_class,
        class_scores,
        vote_weights,
        weighting_name,
    )

__all__ = ["WEIGHTINGS", "Weighting", "choose_class", "class_scores", "vote_weights", "weighting_name"]

_lazy_getattr, _lazy_dir = attach(
    __name__,
    {
        "votes": [
            "WEIGHTINGS",
            "Weighting",
            "choose_class",
            "class_scores",
            "vote_weights",
            "weighting_name",
        ],
    },
)


def __getattr__(name: str) -> Any:
    return _lazy_getattr(name)


def __dir__() -> list[str]:
    return _lazy_dir()
