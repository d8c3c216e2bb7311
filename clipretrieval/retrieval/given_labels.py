"""The label that each image of a call was given last, and who was given several."""

from __future__ import annotations

from collections.abc import Iterable

from clipretrieval._util.labels import class_array
from clipretrieval.retrieval.id_runs import IdRuns
from clipretrieval.retrieval.reports import LabelConflict
from clipretrieval.types import Label

__all__ = ["CONFLICTS", "RECENT", "GivenLabels"]

RECENT = 2**17
"""Images of a fit that are held in memory by their ids."""
CONFLICTS = 20
"""Conflicts that a report lists; all are counted."""
LABELS = 10
"""Labels that each of them lists."""


class GivenLabels:
    """The label that each image of a call was given last, by content id, and who was given several.

    Parameters
    ----------
    recent : int, optional
        The images that are held in memory; what is known of those before lies in temporary files. All when
        left out.
    """

    def __init__(self, recent: int | None = None) -> None:
        self._most, self._count = recent, 0
        self._last: dict[str, tuple[Label, str | None, bool]] = {}  # whether it was given several, at last
        self._older = IdRuns()
        self._prepared, self._looked = set[str](), dict[str, tuple[Label, str | None, bool]]()
        self._several: dict[str, dict[Label, str | None]] = {}  # those that are listed
        self._n_several = 0
        self._numbers: dict[Label, int] = {}  # by which the files name labels
        self._labels: list[Label] = []

    def __len__(self) -> int:
        """Return the number of distinct images."""
        return self._count

    def prepare(self, contents: Iterable[str]) -> None:
        """Look up images together that are going to be asked for."""
        if self._most is not None and len(self._last) >= self._most:
            self._put_away()
        if self._older:
            self._prepared = {content for content in contents if content not in self._last}
            found = self._older.get(list(self._prepared))
            self._looked = {content: self._read(*entry) for content, entry in found.items()}

    def label(self, content: str) -> Label | None:
        """Return the label that an image was given last, None where it has not come."""
        found = self._find(content)
        return None if found is None else found[0]

    def note(self, content: str, label: Label, source: str | None) -> Label | None:
        """Take an image that has come, and return the label that it was given before; None: it comes first.

        Parameters
        ----------
        content : str
            Its content id.
        label : int or str
            As stored.
        source : str or None
            Its path.
        """
        before = self._find(content)
        if before is not None and before[0] == label:
            return before[0]
        number = self._numbers.setdefault(label, len(self._labels))
        if number == len(self._labels):
            self._labels.append(label)
        self._last[content] = self._labels[number], source, before is not None  # equal labels share memory
        self._prepared.discard(content)
        if before is None:
            self._count += 1
            return None
        self._note_several(content, before, label, source)
        return before[0]

    def _note_several(
        self, content: str, before: tuple[Label, str | None, bool], label: Label, source: str | None
    ) -> None:
        self._n_several += not before[2]
        if content not in self._several:
            if before[2] or len(self._several) >= CONFLICTS:
                return
            self._several[content] = {before[0]: before[1]}
        labels = self._several[content]
        labels.pop(label, None)
        labels[label] = source  # behind the others: it counts
        if len(labels) > LABELS:
            del labels[next(iter(labels))]

    def count_and_list(self, kind: str) -> tuple[int, tuple[LabelConflict, ...]]:
        """Return how many images came under several labels, and the first of them."""
        conflicts = tuple(
            LabelConflict(
                ids=(content,) * len(labels),
                labels=tuple(class_array(labels, kind, sort=False).tolist()),
                sources=tuple(labels.values()),
            )
            for content, labels in self._several.items()
        )
        return self._n_several, conflicts

    def _find(self, content: str) -> tuple[Label, str | None, bool] | None:
        found = self._last.get(content)
        if found is not None:
            return found
        if content in self._prepared:
            return self._looked.get(content)
        if not self._older:
            return None
        entry = self._older.get([content]).get(content)
        return None if entry is None else self._read(*entry)

    def _read(self, number: int, source: str | None) -> tuple[Label, str | None, bool]:
        return self._labels[number // 2], source, bool(number % 2)

    def _put_away(self) -> None:
        """Have files hold what is in memory; all stays there where they cannot."""
        numbers = self._numbers
        try:
            self._older.put(
                {
                    content: (2 * numbers[label] + several, source)
                    for content, (label, source, several) in self._last.items()
                }
            )
        except OSError:
            self._most = None
        else:
            self._last = {}
