"""Equal images that were given under several labels, found by their content ids while a fit goes on."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from clipretrieval._labels import class_array
from clipretrieval.fitting import LabelConflict
from clipretrieval.stores.base import VectorStore
from clipretrieval.types import Label

__all__ = ["Conflicts", "describe_conflicts", "lookalikes"]

LISTED = 20
"""Conflicts that a report lists; all are counted."""
COPIES = 10
"""Copies that each of them lists, the first of each label."""
LOOKED_UP = 1024


@dataclass
class Conflicts:
    """Which contents are stored under more than one label.

    Of each content the first label is kept, as it comes; of those that conflict, the ids of a few copies.
    """

    _first: dict[str, Label] = field(default_factory=dict)
    _canon: dict[Label, Label] = field(default_factory=dict)
    _found: dict[str, dict[Label, str]] = field(default_factory=dict)
    _relabelled: dict[str, None] = field(default_factory=dict)

    def note(self, contents: Iterable[str], ids: Iterable[str], labels: Iterable[Label]) -> None:
        """Take some images that have come: content ids, the ids they are stored under, and stored labels."""
        for content, name, label in zip(contents, ids, labels, strict=True):
            one = self._canon.setdefault(label, label)  # equal strings share their memory
            first = self._first.setdefault(content, one)
            if first != one:
                copies = self._found.setdefault(content, {first: content})
                if len(copies) < COPIES:
                    copies.setdefault(one, name)

    def note_relabelled(self, contents: Iterable[str]) -> None:
        """Take the content ids of stored images that got another label: older copies may have kept theirs."""
        self._relabelled.update(dict.fromkeys(contents))

    def count_and_list(self, store: VectorStore, kind: str) -> tuple[int, tuple[LabelConflict, ...]]:
        """Return how many contents are stored under several labels, and the first of them."""
        self._look_for_older_copies(store)
        listed = list(self._found.values())[:LISTED]
        records = store.get([name for copies in listed for name in copies.values()]) if listed else None
        sources = {}
        if records is not None:
            paths = [metadata.get("source") for metadata in records.metadata]
            sources = dict(zip(records.ids.tolist(), paths, strict=True))
        conflicts = tuple(
            LabelConflict(
                ids=tuple(copies.values()),
                labels=tuple(class_array(copies, kind, sort=False).tolist()),
                sources=tuple(
                    path if isinstance(path := sources.get(name), str) else None for name in copies.values()
                ),
            )
            for copies in listed
        )
        return len(self._found), conflicts

    def _look_for_older_copies(self, store: VectorStore) -> None:
        """Compare contents that were relabelled with the copies that earlier fits have stored."""
        asked = [content for content in self._relabelled if content not in self._found]
        number = 2
        while asked:
            held: dict[str, Label] = {}
            for start in range(0, len(asked), LOOKED_UP):
                records = store.get([f"{content}-{number}" for content in asked[start : start + LOOKED_UP]])
                held.update(zip(records.ids.tolist(), records.labels.tolist(), strict=True))
            asked = [content for content in asked if f"{content}-{number}" in held]
            for content in asked:
                name = f"{content}-{number}"
                if held[name] != self._first[content]:
                    copies = self._found.setdefault(content, {self._first[content]: content})
                    if len(copies) < COPIES:
                        copies.setdefault(held[name], name)
            number += 1


def lookalikes(classes: Iterable[Any], known: Iterable[Any] = ()) -> list[list[str]]:
    """Group labels that readers take for one: they differ in case, in spaces or as Unicode alone.

    Parameters
    ----------
    classes : iterable
        Labels; those that are no str have no lookalikes.
    known : iterable
        Labels that were there before: a group of these alone is no news.

    Returns
    -------
    list of list of str
        Groups of two or more, sorted.
    """
    met, old = set(classes), set(known)
    if met <= old:
        return []
    groups: dict[str, set[str]] = {}
    for label in met:
        if isinstance(label, str):
            groups.setdefault(_folded(label), set()).add(label)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1 and not group <= old)


def describe_conflicts(count: int, conflicts: Sequence[LabelConflict]) -> str:
    """Return one sentence on conflicts, with the first of them as an example."""
    return (
        f"{count} {'image is' if count == 1 else 'images are'} stored under several labels, "
        f"such as {conflicts[0]}"
    )


def _folded(label: str) -> str:
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold())
    return " ".join(plain.split())
