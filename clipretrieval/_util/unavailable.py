"""A method that a class does not have, and what to do instead."""

from __future__ import annotations

from typing import Any, NoReturn

__all__ = ["Unavailable"]


class Unavailable:
    """A name that others know from a similar class; whoever asks for it is told what to do instead.

    `hasattr` is False of it, which is how scikit-learn finds out what an estimator can do.

    Parameters
    ----------
    instead : str
        Why it is not there, and what to do.
    """

    def __init__(self, instead: str) -> None:
        self._instead = instead

    def __set_name__(self, owner: type, name: str) -> None:
        self._name, self._owner = name, owner.__name__

    def __get__(self, instance: Any, owner: type | None = None) -> NoReturn:
        raise AttributeError(f"{self._owner} has no {self._name}: {self._instead}")
