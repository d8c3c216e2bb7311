"""Findings that refer to images by number, and how they become complete ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from clipretrieval._util.labels import fitted_labels
from clipretrieval.auditing.finding import Finding, RelatedImage
from clipretrieval.auditing.subject import Subject
from clipretrieval.auditing.validation_images import ValidationImages

__all__ = ["SHOWN", "Draft", "resolve_drafts"]

SHOWN = 8
"""Other images that a finding shows, at most."""


@dataclass(frozen=True)
class Draft:
    """A finding, with images and classes by number.

    Attributes
    ----------
    kind, score, probability, group, note
        As those of `Finding`.
    image : int or None
        Number of a record; those of test images are behind those of the records.
    label : int or None
        The class of a finding that is about no image.
    suggested : int or None
        A class.
    others : sequence of (int, float or None)
        Images that are shown beside it, with their distances.
    """

    kind: str
    score: float
    image: int | None = None
    label: int | None = None
    suggested: int | None = None
    probability: float | None = None
    others: Sequence[tuple[int, float | None]] = ()
    group: int | None = None
    note: str = ""


def resolve_drafts(drafts: Sequence[Draft], subject: Subject, test: ValidationImages | None) -> list[Finding]:
    """Give images and classes their names; files are looked up in the store, each once."""
    n = len(subject)
    wanted = {each.image for each in drafts} | {other for each in drafts for other, _ in each.others}
    files = subject.sources([row for row in wanted if row is not None and row < n])
    names = {} if test is None or test.labels is None else _test_labels(subject, test)

    def facts(number: int) -> dict[str, Any]:
        if number < n:
            return {
                "id": str(subject.ids[number]),
                "label": subject.labels[subject.codes[number]],
                "source": files[number],
                "where": "train",
            }
        if test is None:
            raise IndexError(number)
        place = number - n
        source = test.sources[place]
        return {"id": test.ids[place], "label": names.get(place), "source": source, "where": "test"}

    def related(others: Iterable[tuple[int, float | None]]) -> tuple[RelatedImage, ...]:
        return tuple(RelatedImage(**facts(other), distance=distance) for other, distance in others)

    found = []
    for each in drafts:
        about: dict[str, Any] = {"id": None, "label": None} if each.image is None else facts(each.image)
        if each.label is not None:
            about["label"] = subject.labels[each.label]
        found.append(
            Finding(
                kind=each.kind,
                **about,
                score=each.score,
                probability=each.probability,
                suggested=None if each.suggested is None else subject.labels[each.suggested],
                neighbors=related(each.others[:SHOWN]),
                group=each.group,
                note=each.note,
            )
        )
    return found


def _test_labels(subject: Subject, test: ValidationImages) -> dict[int, Any]:
    return dict(enumerate(fitted_labels(test.labels or [], subject.kind)))
