"""An argument of an estimator that is no attribute of it."""

from __future__ import annotations

from typing import Any, NoReturn

__all__ = ["ArgumentOnly"]


class ArgumentOnly:
    """An argument that `get_params` returns and that is no attribute.

    scikit-learn takes an estimator that has an attribute `transform` for a transformer.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> NoReturn:
        raise AttributeError(f"{self._name!r} is an argument; read it with get_params()[{self._name!r}]")

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)[self._name] = value
