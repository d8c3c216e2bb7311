"""Images that were kept in earlier decisions, which a later audit does not list again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import check_path, check_sequence
from clipretrieval._util.warning import warn_caller
from clipretrieval.auditing.decisions import Decisions
from clipretrieval.auditing.finding import leak_with
from clipretrieval.auditing.image_decision import (
    ImageDecision,
    content_of,
    is_same_label,
    with_findings,
)
from clipretrieval.auditing.subject import Subject

__all__ = ["KeptImages"]


class KeptImages:
    """Images that earlier decisions keep.

    A decision is about the image with the label that it had, and about the findings that it was shown for. Of
    several decisions on an image, the last one counts; if several keep it, all findings do.

    Parameters
    ----------
    decisions : iterable of Decisions
        In the order in which they were made.
    """

    def __init__(self, decisions: Iterable[Decisions] = ()) -> None:
        self._by_id: dict[str, ImageDecision] = {}
        self._by_content: dict[str, ImageDecision] = {}
        self._by_file: dict[str, ImageDecision] = {}
        for each in decisions:
            for decision in each.decisions:
                self._add(decision)

    @classmethod
    def read(cls, given: Any) -> KeptImages:
        """Read decisions, or files of them, one or several.

        Raises
        ------
        InvalidInputError
            If it is anything else, or a file cannot be read.
        """
        if given is None or isinstance(given, str | Path | Decisions):
            given = [] if given is None else [given]
        return cls(
            each if isinstance(each, Decisions) else Decisions.from_json(check_path(each, "decisions"))
            for each in check_sequence(given, "decisions", "Decisions or of paths")
        )

    def _add(self, decision: ImageDecision) -> None:
        places: list[tuple[dict[str, ImageDecision], str | None]] = [
            (self._by_id, decision.id),
            (self._by_content, decision.content),
            (self._by_file, decision.source if decision.id is None else None),
        ]
        for known, name in places:
            if name is not None and decision.action == "keep":
                before = known.get(name)
                same = before is not None and is_same_label(before.before, decision.before)
                known[name] = decision if before is None or not same else with_findings(decision, before)
            elif name is not None:
                known.pop(name, None)

    def rows(self, kind: str, subject: Subject) -> npt.NDArray[np.bool_]:
        """Tell which records are kept in spite of a finding of a kind, shape (n,)."""
        found = np.zeros(len(subject), dtype=np.bool_)
        for row, name in enumerate(subject.ids.tolist() if self._by_id else ()):
            decision = self._by_id.get(name) or self._by_content.get(content_of(name))
            if decision is not None:
                found[row] = _holds(decision, subject.labels[subject.codes[row]], kind)
        return found

    def has_file(self, kind: str, source: str | None) -> bool:
        """Tell whether a file that cannot be decoded is kept in spite of a finding of a kind."""
        decision = None if source is None else self._by_file.get(source)
        return decision is not None and _covers(decision, kind)

    def has_group(self, kind: str, members: Sequence[tuple[str, Any]], tested: Sequence[str]) -> bool:
        """Tell whether a group of images that are the same is kept: all of them, as they are.

        Parameters
        ----------
        kind : {"duplicate", "leak"}
        members : sequence of (id, label)
            Audited images. The group is listed again if one is not decided on, such as a new copy.
        tested : sequence of str
            Ids of test images.
        """
        needed = [kind] if kind != "leak" else [leak_with(each) for each in tested]
        found = [(self._by_id.get(name), label) for name, label in members]
        return bool(found) and all(
            decision is not None and all(_holds(decision, label, each) for each in needed)
            for decision, label in found
        )

    def warn_of_others(self, subject: Subject) -> None:
        """Say that decisions are about other images, where they are about none of these."""
        if self._by_id and subject.is_listed:
            known = {content_of(name) for name in subject.ids.tolist()}
            if not known & self._by_content.keys():
                warn_caller(
                    f"none of the {len(self._by_content):,} images that the decisions keep is among those "
                    "audited; pass the decisions on an audit of these images"
                )


def _covers(decision: ImageDecision, finding: str) -> bool:
    return not decision.findings or finding in decision.findings


def _holds(decision: ImageDecision, label: Any, finding: str) -> bool:
    return is_same_label(decision.before, label) and _covers(decision, finding)
