"""A decision on one image of an audit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from clipretrieval._util.checks import shown
from clipretrieval.auditing.finding import Finding, shown_for
from clipretrieval.errors import InvalidInputError

__all__ = ["ACTIONS", "ImageDecision", "content_of", "is_same_label", "with_findings"]

_COPY = re.compile(r"([0-9a-f]{32})-[0-9]+")
ACTIONS = ("relabel", "forget", "keep")
"""What can be decided; an image that is kept is correct as it is."""


@dataclass(frozen=True)
class ImageDecision:
    """A decision on one image.

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
        The new label, if the image is relabeled. If a file is forgotten while copies of it stay: their label,
        under which the image stays stored.
    findings : tuple of str
        What the image was shown for: kinds, and for a leak ``"leak:"`` with the id of each test image. A
        later audit that is given the decisions does not list a kept image again for these, or for any
        finding if this is empty.

    Raises
    ------
    InvalidInputError
        If they contradict each other.
    """

    action: str
    id: str | None
    source: str | None = None
    before: Any = None
    label: Any = None
    findings: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        wrong = self._fault()
        if wrong:
            raise InvalidInputError(wrong)

    @classmethod
    def on(cls, finding: Finding, action: str, label: Any = None) -> ImageDecision:
        """Decide on the image of a finding.

        Raises
        ------
        InvalidInputError
            If the finding is about classes or about a test image, which is not stored, or the label does not
            fit the action.
        """
        if finding.where != "train":
            raise InvalidInputError(
                "the finding is about a test image, and only audited images can be decided on"
            )
        findings = shown_for(finding, finding.neighbors)
        return cls(action, finding.id, finding.source, finding.label, label, findings)

    def _fault(self) -> str:
        """Say what is wrong, if anything."""
        if self.action not in ACTIONS:
            return f"the action is {shown(self.action)}, which is none of {', '.join(map(repr, ACTIONS))}"
        for name, value in (("id", self.id), ("source", self.source)):
            if value is not None and not (isinstance(value, str) and value):
                return f"the {name} is {shown(value)}, which is no text"
        if self.id is None and self.source is None:
            return "there is neither an id nor a source, so it names no image"
        for name, label in (("before", self.before), ("label", self.label)):
            if label is not None and not isinstance(label, bool | int | float | str):
                return f"the {name} is {shown(label)}, which is no label"
        if self.action == "relabel" and self.label is None:
            return "there is no label to relabel it to"
        if self.action == "keep" and self.label is not None:
            return "an image that is kept gets no other label"
        if not isinstance(self.findings, tuple) or not all(isinstance(each, str) for each in self.findings):
            return f"the findings are {shown(self.findings)}, which is no tuple of str"
        if self.label is not None and (self.id is None or (self.action == "forget" and self.source is None)):
            return "a label needs an id and, for a copy that is forgotten, a source"
        return ""

    @property
    def content(self) -> str | None:
        """The id of the image's content: in an audit's own store, copies have a number behind it."""
        return None if self.id is None else content_of(self.id)

    @property
    def leaves_copies(self) -> bool:
        """Whether only the file is to be forgotten."""
        return self.action == "forget" and self.label is not None

    def __str__(self) -> str:
        return self.source or str(self.id)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, which `from_dict` takes."""
        return {**vars(self), "findings": list(self.findings)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageDecision:
        """Read what `to_dict` returned.

        Raises
        ------
        ValueError
            If it is anything else.
        """
        names = list(cls.__dataclass_fields__)
        if not isinstance(values, Mapping) or {*values, "findings"} != set(names):
            raise ValueError(f"it must have the fields {', '.join(names)}")
        findings = values.get("findings", [])
        if not isinstance(findings, list):
            raise ValueError("the findings are no list")
        return cls(**{**values, "findings": tuple(findings)})


def content_of(image_id: str) -> str:
    """Return the id of an image's content: in an audit's own store, copies have a number behind it."""
    found = _COPY.fullmatch(image_id)
    return image_id if found is None else found[1]


def with_findings(decision: ImageDecision, other: ImageDecision) -> ImageDecision:
    """Return a decision for the findings of another one, too; for any finding, if one of them is."""
    if not decision.findings or not other.findings:
        return replace(decision, findings=())
    return replace(decision, findings=tuple(dict.fromkeys(other.findings + decision.findings)))


def is_same_label(one: Any, other: Any) -> bool:
    """Tell whether two labels are one: True is not 1, and 1.0 is."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
