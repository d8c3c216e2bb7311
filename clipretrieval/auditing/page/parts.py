"""What the page of an audit shows, as the template wants it."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from clipretrieval._util.text import counted, readable
from clipretrieval.auditing.decisions import DECISIONS_KIND, DECISIONS_SCHEMA
from clipretrieval.auditing.estimate import Estimate
from clipretrieval.auditing.finding import KINDS, Finding, RelatedImage, shown_for
from clipretrieval.auditing.image_decision import content_of
from clipretrieval.auditing.words import KIND_TITLES, KIND_WORDS, estimate_words
from clipretrieval.evaluation.page.parts import PageTable, table_part

__all__ = ["Audited", "page_values"]

SHOWN_NEIGHBORS = 5
"""Images beside the one that a card is about."""
LARGEST_GROUP = 30
"""Images of a group that are shown."""
MOST_BYTES = 24 * 2**20
"""Of all thumbnails on a page, so that it can be opened and sent."""
TABLE_ROWS = 200
"""Pairs of confused classes."""


class Audited(Protocol):
    """What the page reads of an `AuditReport`."""

    @property
    def findings(self) -> tuple[Finding, ...]: ...
    @property
    def n_images(self) -> int: ...
    @property
    def n_test(self) -> int: ...
    @property
    def classes(self) -> tuple[Any, ...]: ...
    @property
    def fingerprint(self) -> Mapping[str, Any]: ...
    @property
    def counts(self) -> Mapping[str, int]: ...
    @property
    def kept(self) -> Mapping[str, int]: ...
    @property
    def estimates(self) -> Mapping[str, Estimate]: ...
    @property
    def left_out(self) -> Mapping[str, str]: ...
    @property
    def cautions(self) -> Mapping[str, str]: ...
    @property
    def setting(self) -> Mapping[str, Any]: ...

    def groups(self, kind: str) -> list[tuple[Finding, ...]]: ...


class _Images:
    """The images that can be decided on, each once, and the labels, as the script writes them down.

    All that goes into the file with the decisions is JSON already: a script would round long numbers, forget
    which ones are floats, and lose bytes of names that are no text.
    """

    def __init__(self, report: Audited) -> None:
        suggested = [each.suggested for each in report.findings if each.suggested is not None]
        labels = {json.dumps(label): label for label in (*report.classes, *suggested)}
        read = [readable(label) for label in labels.values()]
        often = Counter(read)
        self.labels = list(labels)
        self.names = [
            name if often[name] == 1 else text for name, text in zip(read, self.labels, strict=True)
        ]
        self._numbers = {text: number for number, text in enumerate(self.labels)}
        self._files: dict[str, set[str | None]] = defaultdict(set)
        for each in report.findings:
            if each.id is not None and each.where == "train":
                self._files[content_of(each.id)].add(each.source)
        self._places: dict[tuple[str | None, str | None], int] = {}
        self._first: dict[str, int] = {}
        self.rows: list[dict[str, Any]] = []

    def number(self, label: Any) -> int | None:
        """Return a class's number; None for what is no class."""
        return None if label is None else self._numbers.get(json.dumps(label))

    def place(self, finding: Finding, group: tuple[Finding, ...]) -> int | None:
        """Return the number of a finding's image; None where nothing can be decided on it."""
        key = (finding.id, finding.source)
        if finding.where != "train" or key == (None, None):
            return None
        place = self._places.setdefault(key, len(self.rows))
        if place == len(self.rows):
            same, copies = place, 1
            if finding.id is not None:
                content = content_of(finding.id)
                same, copies = self._first.setdefault(content, place), len(self._files[content])
            told = {"id": finding.id, "source": finding.source, "before": finding.label, "findings": []}
            self.rows.append(
                {"told": told, "label": self.number(finding.label), "same": same, "copies": copies}
            )
        findings = self.rows[place]["told"]["findings"]
        findings += [each for each in shown_for(finding, group) if each not in findings]
        return place

    def written(self) -> list[dict[str, Any]]:
        """Return the images with what is written down of each as JSON."""
        return [{**row, "told": json.dumps(row["told"])[1:-1]} for row in self.rows]


def _title(kind: str) -> str:
    title = KIND_TITLES.get(kind, kind)
    return title[:1].upper() + title[1:]


def page_values(report: Audited, thumbnail: Callable[[str], str | None], most: int) -> dict[str, Any]:
    """Prepare the page: its cards, what it says of each kind, and what its script needs.

    Parameters
    ----------
    report : AuditReport
    thumbnail : callable
        Returns the address of an image's thumbnail, given its file; None where there is no image any more.
    most : int
        Findings of each kind.
    """
    images = _Images(report)
    chosen = _choose(report, thumbnail, most)
    found = [kind for kind in KINDS if any(each.kind == kind for each in report.findings)]
    sections = [_section(report, kind, chosen.get(kind, []), images, thumbnail) for kind in found]
    used = sorted({number for each in sections for item in each["items"] for number in item["classes"]})
    head = {
        "schema_version": DECISIONS_SCHEMA,
        "kind": DECISIONS_KIND,
        "fingerprint": dict(report.fingerprint),
    }
    return {
        "counts": _count_words(report),
        "sections": sections,
        "left_out": [(_title(kind), why) for kind, why in report.left_out.items()],
        "clean": [KIND_TITLES[kind] for kind in KINDS if report.counts.get(kind) == 0],
        "decidable": bool(images.rows),
        "audited": report.setting.get("audited", "classifier"),
        "folder": report.setting.get("folder"),
        "class_names": images.names,
        "used": [(number, images.names[number]) for number in used],
        "data": {
            "head": json.dumps(head)[1:-1],
            "images": images.written(),
            "labels": images.labels,
            "names": images.names,
        },
    }


def _choose(
    report: Audited, thumbnail: Callable[[str], str | None], most: int
) -> dict[str, list[tuple[Finding, ...]]]:
    """Choose the strongest groups of every kind, in turn, until there are too many bytes."""
    chosen: dict[str, list[tuple[Finding, ...]]] = defaultdict(list)
    counts, left = Counter[str](), MOST_BYTES
    waiting = {kind: report.groups(kind) for kind in KINDS if kind != "confusion"}
    for place in range(max(map(len, waiting.values()))):
        for kind, groups in waiting.items():
            if place >= len(groups) or counts[kind] >= most:
                continue
            group = groups[place]
            for finding in group[:LARGEST_GROUP]:
                files = [finding.source, *(each.source for each in _beside(finding, group))]
                left -= sum(len(thumbnail(file) or "") for file in files if file is not None)
            if left < 0:
                return chosen
            counts[kind] += len(group)
            chosen[kind].append(group)
    return chosen


def _beside(finding: Finding, group: tuple[Finding, ...]) -> list[RelatedImage]:
    """Return the images that a card shows beside its own: none that has a card in the same group."""
    members = {(each.where, each.id) for each in group}
    return [each for each in finding.neighbors if (each.where, each.id) not in members][:SHOWN_NEIGHBORS]


def _section(
    report: Audited,
    kind: str,
    groups: Sequence[tuple[Finding, ...]],
    images: _Images,
    thumbnail: Callable[[str], str | None],
) -> dict[str, Any]:
    items = [_item(group, images, thumbnail) for group in groups]
    estimate = report.estimates.get(kind)
    table = _confusions(report) if kind == "confusion" else None
    shown = len(table["rows"]) if table else sum(len(item["cards"]) for item in items)
    return {
        "kind": kind,
        "title": _title(kind),
        "words": KIND_WORDS[kind],
        "caution": report.cautions.get(kind, ""),
        "estimate": "" if estimate is None else estimate_words(estimate),
        "count": report.counts.get(kind, shown),
        "more": max(0, report.counts.get(kind, shown) - shown),
        "items": items,
        "table": table,
    }


def _item(
    group: tuple[Finding, ...], images: _Images, thumbnail: Callable[[str], str | None]
) -> dict[str, Any]:
    cards = [_card(each, group, images, thumbnail) for each in group[:LARGEST_GROUP]]
    return {
        "cards": cards,
        "size": len(group),
        "note": group[0].note if len(group) > 1 else "",
        "more": len(group) - len(cards),
        "classes": sorted({number for card in cards for number in card["classes"]}),
    }


def _card(
    finding: Finding, group: tuple[Finding, ...], images: _Images, thumbnail: Callable[[str], str | None]
) -> dict[str, Any]:
    numbers = (images.number(finding.label), images.number(finding.suggested))
    return {
        "image": images.place(finding, group),
        "stored": finding.id is not None,
        "label": finding.label,
        "suggested": finding.suggested,
        "number": numbers[1],
        "classes": [number for number in numbers if number is not None],
        "id": finding.id,
        **_file(finding, thumbnail),
        "test": finding.where == "test",
        "probability": finding.probability,
        "score": finding.score,
        "note": finding.note if len(group) == 1 else "",
        "neighbors": [
            {
                "label": each.label,
                **_file(each, thumbnail),
                "distance": each.distance,
                "test": each.where == "test",
                "frame": _frame(each.label, finding),
            }
            for each in _beside(finding, group)
        ],
    }


def _file(image: Finding | RelatedImage, thumbnail: Callable[[str], str | None]) -> dict[str, Any]:
    """Return an image's file, its thumbnail, and whether the file is there no more."""
    source = image.source
    found = source and thumbnail(source)
    return {
        "source": source,
        "thumbnail": found,
        "gone": bool(source) and not found and not os.path.lexists(str(source)),
    }


def _frame(label: Any, finding: Finding) -> str:
    if label is None or finding.suggested is None:
        return ""
    return "right" if label == finding.suggested else "wrong" if label == finding.label else ""


def _confusions(report: Audited) -> dict[str, Any]:
    rows = [
        {
            "true": readable(each.label),
            "answer": readable(each.suggested),
            "share": each.score,
            "note": each.note or None,
        }
        for each in report.findings
        if each.kind == "confusion"
    ]
    columns = (
        ("true", "class"),
        ("answer", "taken for"),
        ("share", "mistaken"),
        ("note", "how often, and by what"),
    )
    return table_part(PageTable(_title("confusion"), columns, rows[:TABLE_ROWS]))


def _count_words(report: Audited) -> str:
    told = f"{counted(report.n_images, 'image')} of {counted(len(report.classes), 'class')} "
    told += "was audited" if report.n_images == 1 else "were audited"
    if report.n_test:
        told += f", beside {counted(report.n_test, 'test image')}"
    if report.kept:
        kept = ", ".join(f"{count:,} {kind}" for kind, count in report.kept.items())
        told += f". Not listed, as earlier decisions keep their images: {kept}"
    return told + "."
