"""Heads by name."""

from __future__ import annotations

from typing import Any

from clipretrieval._util.checks import check_int, check_sequence, shown
from clipretrieval.errors import InvalidInputError
from clipretrieval.heads.base import Head
from clipretrieval.heads.discriminant import Discriminant
from clipretrieval.heads.fused import Fused
from clipretrieval.heads.quadratic import Quadratic
from clipretrieval.heads.ridge import Ridge
from clipretrieval.heads.statistics import Moments

__all__ = ["FUSED_K", "HEADS", "choose_head", "head_name"]

HEADS = ("votes", "discriminant", "quadratic", "ridge", "fused")
FUSED_K = 20
"""Neighbors of ``"fused"`` where the classifier's k is 1: a single vote says too little."""

_MEMBERS = ("k", "moments", "learn")
_CLASSES: dict[type, str] = {
    Discriminant: "discriminant",
    Quadratic: "quadratic",
    Ridge: "ridge",
    Fused: "fused",
}


def choose_head(head: Any, k: int) -> Head | None:
    """Return the head that an estimator's arguments stand for; None for the votes, which learn nothing.

    Parameters
    ----------
    head : str or Head
    k : int
        Neighbors that vote.

    Raises
    ------
    InvalidInputError
        If there is no such head; the message lists the known ones.
    """
    if isinstance(head, str):
        if head not in HEADS:
            raise InvalidInputError(
                f"unknown head {shown(head)}; choose one of {', '.join(map(repr, HEADS))}, or pass an object "
                "that follows clipretrieval.heads.Head"
            )
        if head == "votes":
            return None
        if head == "fused":
            return Fused(k=k if k > 1 else FUSED_K)
        return next(kind for kind, name in _CLASSES.items() if name == head)()  # type: ignore[no-any-return]
    missing = [name for name in _MEMBERS if not hasattr(head, name)]
    if missing or isinstance(head, type):
        raise InvalidInputError(
            f"head={shown(head)} is no head: it lacks {', '.join(missing) or 'an instance'}. Pass one of "
            f"{', '.join(map(repr, HEADS))}, or an object that follows clipretrieval.heads.Head"
        )
    check_int(head.k, "the k of a head", least=0)
    if not all(isinstance(each, Moments) for each in check_sequence(head.moments, "moments", "Moments")):
        raise InvalidInputError(f"the moments of {shown(head)} must be Moments; see clipretrieval.heads")
    chosen: Head = head
    return chosen


def head_name(head: Any) -> str:
    """Return what reports call a head: one of a user's own by its class."""
    return head if isinstance(head, str) else _CLASSES.get(type(head), type(head).__name__)
