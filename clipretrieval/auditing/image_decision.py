"""What somebody has decided about an image that an audit has shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipretrieval._util.checks import shown
from clipretrieval.auditing.finding import Finding
from clipretrieval.errors import InvalidInputError

__all__ = ["ACTIONS", "ImageDecision"]

_COPY = re.compile(r"([0-9a-f]{32})-[0-9]+")
ACTIONS = ("relabel", "forget", "keep")
"""What may be decided; what is kept is as it should be."""


@dataclass(frozen=True)
class ImageDecision:
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
        The one that it is to have, where it is to be relabeled. Of a file that is to be forgotten while
        copies of it stay: their label, under which the image stays stored.

    Raises
    ------
    InvalidInputError
        If they do not go together.
    """

    action: str
    id: str | None
    source: str | None = None
    before: Any = None
    label: Any = None

    def __post_init__(self) -> None:
        wrong = self._fault()
        if wrong:
            raise InvalidInputError(wrong)

    @classmethod
    def on(cls, finding: Finding, action: str, label: Any = None) -> ImageDecision:
        """Decide what is to become of the image of a finding.

        Raises
        ------
        InvalidInputError
            If the finding is about classes or about a test image, which is not stored, or action and label do
            not go together.
        """
        if finding.where != "train":
            raise InvalidInputError(
                "the finding is about a test image, which is not among those to decide on"
            )
        return cls(action, finding.id, finding.source, finding.label, label)

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
        if self.action == "relabel" and self.label is None:
            return "there is no label for it to have"
        if self.action == "keep" and self.label is not None:
            return "what is kept gets no other label"
        if self.label is not None and (self.id is None or (self.action == "forget" and self.source is None)):
            return "a label goes with an id, and of a copy that is forgotten with a source"
        return ""

    @property
    def content(self) -> str | None:
        """The id of what the image shows: copies of it in an audit's own store are numbered behind it."""
        found = None if self.id is None else _COPY.fullmatch(self.id)
        return self.id if found is None else found[1]

    @property
    def leaves_copies(self) -> bool:
        """Whether only the file is to be forgotten."""
        return self.action == "forget" and self.label is not None

    def __str__(self) -> str:
        return self.source or str(self.id)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, which `from_dict` takes."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageDecision:
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
