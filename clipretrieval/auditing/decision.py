"""What somebody has decided about an image that an audit has shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipretrieval._util.checks import shown

__all__ = ["ACTIONS", "Decision"]

ACTIONS = ("relabel", "forget", "keep")
"""What may be decided; what is kept is as it should be."""


@dataclass(frozen=True)
class Decision:
    """What is to become of an image.

    Attributes
    ----------
    action : {"relabel", "forget", "keep"}
    id : str or None
        The image's, in the store; None for a file that could not be read.
    source : str or None
        The file's path as the audit knew it.
    before : bool, int, float, str or None
        The label that the image had then.
    label : bool, int, float, str or None
        The one that it is to have, where it is to be relabeled.
    file_only : bool
        To be forgotten is this file alone: the image is stored, and stays so, because copies of the file lie
        elsewhere.

    Raises
    ------
    ValueError
        If they do not go together.
    """

    action: str
    id: str | None
    source: str | None = None
    before: Any = None
    label: Any = None
    file_only: bool = False

    def __post_init__(self) -> None:
        wrong = self._fault()
        if wrong:
            raise ValueError(wrong)

    def _fault(self) -> str:
        """Say what is wrong, if anything."""
        if self.action not in ACTIONS:
            return f"the action is {shown(self.action)}, which is none of {', '.join(map(repr, ACTIONS))}"
        for name, value in (("id", self.id), ("source", self.source)):
            if value is not None and not (isinstance(value, str) and value):
                return f"the {name} is {shown(value)}, which is no text"
        if self.id is None and self.source is None:
            return "there is neither an id nor a source, so no image is meant"
        for name, label in (("before", self.before), ("label", self.label)):
            if label is not None and not isinstance(label, bool | int | float | str):
                return f"the {name} is {shown(label)}, which is no label"
        if not isinstance(self.file_only, bool):
            return f"file_only is {shown(self.file_only)}, which is neither true nor false"
        if (self.action == "relabel") != (self.label is not None):
            return "a label goes with relabel, and with nothing else"
        if self.action == "relabel" and self.id is None:
            return "a file that could not be read has no id, and cannot be relabeled"
        if self.file_only and (self.action != "forget" or self.source is None):
            return "file_only goes with forget and a source"
        return ""

    def __str__(self) -> str:
        return self.source or str(self.id)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, which `from_dict` takes."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Decision:
        """Read what `to_dict` returned.

        Raises
        ------
        ValueError
            If it is anything else.
        """
        names = list(cls.__dataclass_fields__)
        if not isinstance(values, Mapping) or set(values) != set(names):
            raise ValueError(f"it must have the fields {', '.join(names)}")
        return cls(**values)
