"""How many of the findings of a kind are real."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Estimate"]


@dataclass(frozen=True)
class Estimate:
    """How many findings of a kind are probably real, among all images that were looked at.

    Attributes
    ----------
    expected : float
        Images.
    low, high : float
        Bounds that the number probably lies within.
    checked : int
        Images that were looked at.
    listed : int
        Of these, how many a complete list of findings has; the report may have fewer.
    method : str
        How the number was estimated, in words.
    """

    expected: float
    low: float
    high: float
    checked: int
    listed: int
    method: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, which `from_dict` takes."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Estimate:
        """Read what `to_dict` returned.

        Raises
        ------
        ValueError, TypeError
            If it is anything else.
        """
        if not isinstance(values, Mapping) or set(values) != set(cls.__dataclass_fields__):
            raise ValueError("an estimate has not the fields that it should have")
        numbers = {name: float(values[name]) for name in ("expected", "low", "high")}
        return cls(
            **numbers,
            checked=int(values["checked"]),
            listed=int(values["listed"]),
            method=str(values["method"]),
        )
