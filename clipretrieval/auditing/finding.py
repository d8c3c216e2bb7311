"""A finding of an audit, and the images shown with it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from clipretrieval._util.repr import short_repr

__all__ = ["KINDS", "SETS", "Finding", "RelatedImage", "leak_with", "shown_for"]

KINDS = ("label", "duplicate", "leak", "outlier", "harm", "confusion", "broken", "tiny", "blank")
"""Kinds of findings."""
SETS = ("train", "test")
"""The set that an image belongs to: the audited images, or the test images."""


@dataclass(frozen=True)
class RelatedImage:
    """An image that is shown with a finding.

    Attributes
    ----------
    id : str
    label : bool, int, float, str or None
        Of the type that was fitted; None where it has none.
    source : str or None
        The file's path at the time when it was stored, where it came from one.
    distance : float or None
        From the image that the finding is about, lower is nearer; None where none was measured.
    where : {"train", "test"}
    """

    id: str
    label: Any
    source: str | None = None
    distance: float | None = None
    where: str = "train"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, which `from_dict` takes."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RelatedImage:
        """Read what `to_dict` returned.

        Raises
        ------
        ValueError
            If it is anything else.
        """
        found = _fields(values, cls)
        _check_image(found, "id")
        _check_number(found["distance"], "distance", optional=True)
        return cls(**found)


@dataclass(frozen=True)
class Finding:
    """Something that an audit has found: an image, one of several that belong together, or a pair of classes.

    Attributes
    ----------
    kind : str
        One of `KINDS`: ``"label"`` (the label is probably wrong), ``"duplicate"`` (one of a group of equal or
        nearly equal images), ``"leak"`` (one of a group that has images of both sets), ``"outlier"`` (unlike
        all others), ``"harm"`` (stored, and the cause of mistakes on the test images), ``"confusion"`` (two
        classes), ``"broken"``, ``"tiny"`` and ``"blank"`` (files).
    id : str or None
        Of the image, in the store; None where the finding is about classes, or about a file that could not be
        read.
    label : bool, int, float, str or None
        The image's, of the type that was fitted; of a confusion the class whose images are taken for another.
    source : str or None
        The file's path, where it is known.
    score : float
        How strong the finding is, higher is stronger; comparable within a kind.
    probability : float or None
        How probably the finding is real, in [0, 1], where the audit can tell.
    suggested : bool, int, float, str or None
        The label that it should have; of a confusion the class that is answered.
    neighbors : tuple of RelatedImage
        The nearest other images, nearest first; of a duplicate or a leak the others of its group, the nearest
        first; of harm the test images that it misleads; of a confusion images that lie between.
    group : int or None
        Findings of one kind and one number belong together.
    where : {"train", "test"}
        The set that the image is of.
    note : str
        What else there is to say, in words; may be empty.
    """

    kind: str
    id: str | None
    label: Any
    source: str | None = None
    score: float = 0.0
    probability: float | None = None
    suggested: Any = None
    neighbors: tuple[RelatedImage, ...] = ()
    group: int | None = None
    where: str = "train"
    note: str = ""

    def __repr__(self) -> str:
        told = {"id": self.id, "label": self.label, "suggested": self.suggested, "group": self.group}
        known = {name: value for name, value in told.items() if value is not None}
        return short_repr(self, kind=self.kind, score=self.score, **known)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, which `from_dict` takes."""
        return {**vars(self), "neighbors": [each.to_dict() for each in self.neighbors]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Finding:
        """Read what `to_dict` returned.

        Raises
        ------
        ValueError
            If it is anything else.
        """
        found = _fields(values, cls)
        if found["kind"] not in KINDS:
            raise ValueError(f"a finding is of the kind {found['kind']!r}, which is none of {KINDS}")
        _check_image(found, None)
        if not _is_label(found["suggested"]) or not isinstance(found["note"], str):
            raise ValueError("a suggested label or a note is of a wrong type")
        _check_number(found["score"], "score")
        _check_number(found["probability"], "probability", optional=True)
        group = found["group"]
        if group is not None and (isinstance(group, bool) or not isinstance(group, int)):
            raise ValueError("a group is no number")
        if not isinstance(found["neighbors"], list):
            raise ValueError("the neighbors are no list")
        near = tuple(RelatedImage.from_dict(each) for each in found["neighbors"])
        return cls(**{**found, "neighbors": near})


def shown_for(finding: Finding, others: Iterable[Finding | RelatedImage]) -> tuple[str, ...]:
    """Return what a later audit recognizes a finding by: its kind, or the test images of a leak.

    Parameters
    ----------
    finding : Finding
    others : iterable of (Finding or RelatedImage)
        What else is of its group.
    """
    if finding.kind != "leak":
        return (finding.kind,)
    tested = sorted({leak_with(str(each.id)) for each in others if each.where == "test"})
    return tuple(tested) or (finding.kind,)


def leak_with(image_id: str) -> str:
    """Return what identifies a leak, for one test image."""
    return f"leak:{image_id}"


def _fields(values: Any, cls: Any) -> dict[str, Any]:
    names = set(cls.__dataclass_fields__)
    if not isinstance(values, Mapping) or set(values) != names:
        raise ValueError(f"a {cls.__name__} must have the fields {', '.join(sorted(names))}")
    return dict(values)


def _check_image(found: Mapping[str, Any], required: str | None) -> None:
    for name in ("id", "source"):
        if not isinstance(found[name], str) and (found[name] is not None or name == required):
            raise ValueError(f"the {name} of an image is no text")
    if not _is_label(found["label"]):
        raise ValueError("a label is of a wrong type")
    if found["where"] not in SETS:
        raise ValueError(f"an image lies in {found['where']!r}, which is none of {SETS}")


def _is_label(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _check_number(value: Any, name: str, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"the {name} is no finite number")
