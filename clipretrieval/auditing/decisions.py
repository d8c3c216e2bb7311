"""The decisions on an audit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipretrieval._util.checks import check_path, check_sequence, shown
from clipretrieval._util.files import read_file, write_report
from clipretrieval._util.repr import short_repr
from clipretrieval._util.text import parse_json, readable
from clipretrieval.auditing.image_decision import ACTIONS, ImageDecision, with_findings
from clipretrieval.errors import InvalidInputError

__all__ = ["DECISIONS_KIND", "DECISIONS_SCHEMA", "Decisions"]

DECISIONS_SCHEMA = 1
DECISIONS_KIND = "audit decisions"
"""What identifies a file of decisions."""
_REMEDY = "Save the decisions on the audit's page once more"


@dataclass(frozen=True, eq=False)
class Decisions:
    """Decisions on images, and on which audit they were made.

    Attributes
    ----------
    fingerprint : mapping of JSON values
        The report's, see `AuditReport`.
    decisions : sequence of ImageDecision
        At most one for each image and file.

    Raises
    ------
    InvalidInputError
        If two of them contradict each other.
    """

    fingerprint: Mapping[str, Any]
    decisions: Sequence[ImageDecision]

    def __post_init__(self) -> None:
        if not isinstance(self.fingerprint, Mapping):
            raise InvalidInputError(
                f"fingerprint must be a mapping, such as an AuditReport's; got {shown(self.fingerprint)}"
            )
        listed = check_sequence(self.decisions, "decisions", "ImageDecision")
        if not all(isinstance(each, ImageDecision) for each in listed):
            raise InvalidInputError("decisions must be a sequence of clipretrieval.auditing.ImageDecision")
        object.__setattr__(self, "decisions", _merged(listed))
        files: dict[Any, ImageDecision] = {}
        forgets: dict[Any, ImageDecision] = {}
        labels: dict[Any, ImageDecision] = {}
        for each in self.decisions:
            other = files.setdefault((each.id, each.source), each)
            if each.content is not None and not each.leaves_copies and other is each:
                # Copies of a file are one image.
                other = forgets.setdefault(each.content, each)
                if (other.action == "forget") == (each.action == "forget"):
                    other = each if each.label is None else labels.setdefault(each.content, each)
                    other = each if other.label == each.label else other
            if other is not each:
                raise InvalidInputError(
                    f"two decisions about one image contradict each other: to {_told(other)}, and to "
                    f"{_told(each)}; remove one of the two"
                )

    def count(self, action: str) -> int:
        """Return how many decisions have an action."""
        return sum(each.action == action for each in self.decisions)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, which `from_dict` takes."""
        return {
            "schema_version": DECISIONS_SCHEMA,
            "kind": DECISIONS_KIND,
            "fingerprint": dict(self.fingerprint),
            "decisions": [each.to_dict() for each in self.decisions],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Decisions:
        """Read what `to_dict` returned.

        Raises
        ------
        InvalidInputError
            If it is anything else, or of another version; the message says what is wrong, and where.
        """
        known = values if isinstance(values, Mapping) else {}
        if known.get("kind") != DECISIONS_KIND:
            raise InvalidInputError(
                "this file has no decisions on an audit; pass the one that the audit's page saves, "
                "decisions.json"
            )
        version = known.get("schema_version")
        if version != DECISIONS_SCHEMA:
            raise InvalidInputError(
                f"the decisions have schema version {shown(version)}; this version of the library reads "
                f"{DECISIONS_SCHEMA}. Audit again, and decide on that page"
            )
        listed = known.get("decisions")
        if not isinstance(listed, list) or not isinstance(known.get("fingerprint"), Mapping):
            raise InvalidInputError(f"the decisions have no list, or no fingerprint. {_REMEDY}")
        read = []
        for place, each in enumerate(listed, 1):
            try:
                read.append(ImageDecision.from_dict(each))
            except ValueError as error:
                raise InvalidInputError(f"decision {place} of {len(listed)}: {error}. {_REMEDY}") from error
        return cls(dict(known["fingerprint"]), tuple(read))

    def to_json(self, path: str | Path | None = None) -> str:
        """Return JSON text, and write it to `path` if one is given.

        Raises
        ------
        InvalidInputError
            If the file cannot be written.
        """
        return write_report(path, json.dumps(self.to_dict(), indent=1, allow_nan=False), "file")

    @classmethod
    def from_json(cls, path: str | Path) -> Decisions:
        """Read a file that the page has saved, or `to_json` written.

        Raises
        ------
        InvalidInputError
            If there is no such file, or it holds something else.
        """
        place = check_path(path, "path")
        try:
            content = parse_json(read_file(place))
        except OSError as error:
            raise InvalidInputError(
                f"the decisions {str(place)!r} cannot be read: {error.strerror or error}"
            ) from error
        except ValueError as error:
            raise InvalidInputError(f"{str(place)!r} holds no JSON: {error}. {_REMEDY}") from error
        return cls.from_dict(content)

    def __repr__(self) -> str:
        return short_repr(self, **{action: self.count(action) for action in ACTIONS})


def _told(decision: ImageDecision) -> str:
    label = f" as {readable(decision.label)}" if decision.action == "relabel" else ""
    return f"{decision.action} {readable(decision)}{label}"


def _merged(decisions: Sequence[ImageDecision]) -> tuple[ImageDecision, ...]:
    """Return each decision once, with the findings of all that are equal to it."""
    found: dict[ImageDecision, ImageDecision] = {}
    for each in decisions:
        found[each] = with_findings(each, found[each]) if each in found else each
    return tuple(found.values())
