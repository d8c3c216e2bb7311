"""The parts of an audit, each of which reads the same evidence and drafts its findings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from clipretrieval.auditing.drafts import SHOWN, Draft
from clipretrieval.auditing.duplicates import Pairs, UnionFind
from clipretrieval.auditing.estimate import Estimate
from clipretrieval.auditing.evidence import Evidence
from clipretrieval.auditing.harm import shapley_values
from clipretrieval.auditing.label_errors import LabelErrors
from clipretrieval.auditing.outliers import SCORE_LISTED, outlier_scores
from clipretrieval.auditing.subject import Ints, Subject
from clipretrieval.auditing.validation_images import ValidationImages

__all__ = ["PartFindings", "confused_pairs_of", "grouped", "harmful", "outlying", "wrong_labels"]

Flags: TypeAlias = npt.NDArray[np.bool_]

NEIGHBORS_SHOWN = 5
LEAST_CONFUSED, CONFUSED_SHARE = 2, 0.005
"""Images, and their share of the two classes, from which on two classes are listed as confused."""


@dataclass
class PartFindings:
    """What one part has found.

    Attributes
    ----------
    drafts : list of Draft
        The strongest first.
    count : int
        Of all findings, drafted or not.
    estimate : Estimate or None
    kept : int
        Of the findings that are left out, as somebody has decided to keep the image.
    """

    drafts: list[Draft] = field(default_factory=list)
    count: int = 0
    estimate: Estimate | None = None
    kept: int = 0


def _near(evidence: Evidence, row: int) -> list[tuple[int, float | None]]:
    near, distances = evidence.near[row, :NEIGHBORS_SHOWN], evidence.distances[row, :NEIGHBORS_SHOWN]
    pairs = zip(near.tolist(), distances.tolist(), strict=True)
    return [(number, distance) for number, distance in pairs if number >= 0]


def wrong_labels(errors: LabelErrors, evidence: Evidence, most: int | None) -> PartFindings:
    """Draft the labels that are the most probably wrong: as many as there probably are."""
    listed = errors.ranked()[: errors.estimate.listed]
    drafts = [
        Draft(
            "label",
            score=float(errors.odds[row]),
            image=row,
            suggested=int(errors.suggested[row]),
            probability=float(errors.probabilities[row]),
            others=_near(evidence, row),
        )
        for row in listed[:most].tolist()
    ]
    return PartFindings(drafts, len(listed), errors.estimate, errors.kept)


def outlying(evidence: Evidence, kept: Flags, most: int | None) -> PartFindings:
    """Draft the images that lie far from all others, but for those that are kept."""
    scores = outlier_scores(evidence.distances)
    listed = np.argsort(-scores, kind="stable")
    far = listed[scores[listed] >= SCORE_LISTED]
    listed = far[~kept[far]]
    drafts = [
        Draft("outlier", score=float(scores[row]), image=row, others=_near(evidence, row))
        for row in listed[:most].tolist()
    ]
    return PartFindings(drafts, len(listed), kept=len(far) - len(listed))


def confused_pairs_of(
    subject: Subject, evidence: Evidence, errors: LabelErrors, most: int | None
) -> PartFindings:
    """Draft the pairs of classes whose images are taken for one another's, each left out.

    Images whose label is probably wrong do not count: they are confused by whoever labelled them.
    """
    codes, n_classes = subject.codes.astype(np.int64), len(subject.classes)
    sizes = np.bincount(codes, minlength=n_classes)
    right = (errors.probabilities <= 0.5) & np.isfinite(evidence.own)
    answers = evidence.answers[:, 0].astype(np.int64)
    by_head = _crossings(codes, answers, right, n_classes)
    votes = _votes(evidence.near, subject.codes)
    by_neighbors = _crossings(codes, votes, right & (votes >= 0), n_classes)
    pairs = {(min(pair), max(pair)) for pair in (*by_head, *by_neighbors)}
    found: list[tuple[float, int, int]] = []
    for one, other in pairs:
        count = by_head.get((one, other), 0) + by_head.get((other, one), 0)
        share = count / int(sizes[one] + sizes[other])
        if count >= LEAST_CONFUSED and share >= CONFUSED_SHARE:
            more = by_head.get((one, other), 0) / sizes[one] >= by_head.get((other, one), 0) / sizes[other]
            found.append((share, *((one, other) if more else (other, one))))
    found.sort(key=lambda each: (-each[0], each[1:]))
    drafts = []
    for share, taken, answered in found[:most]:
        near_count = by_neighbors.get((taken, answered), 0) + by_neighbors.get((answered, taken), 0)
        near_share = near_count / int(sizes[taken] + sizes[answered])
        between = np.flatnonzero(
            right & (((codes == taken) & (answers == answered)) | ((codes == answered) & (answers == taken)))
        )
        shown = between[np.argsort(errors.odds[between], kind="stable")[:SHOWN]]
        drafts.append(
            Draft(
                "confusion",
                score=share,
                label=taken,
                suggested=answered,
                others=[(int(row), None) for row in shown],
                note=_confusion_note(
                    repr(subject.labels[taken]),
                    repr(subject.labels[answered]),
                    (by_head.get((taken, answered), 0), int(sizes[taken])),
                    (by_head.get((answered, taken), 0), int(sizes[answered])),
                    share,
                    near_share,
                ),
            )
        )
    return PartFindings(drafts, len(found))


def _confusion_note(
    taken: str, answered: str, there: tuple[int, int], back: tuple[int, int], share: float, near_share: float
) -> str:
    """Say how often two classes are confused, and what tells them apart the worse."""
    worse = "the head tells" if share >= near_share else "neighbors tell"
    better = "neighbors" if share >= near_share else "the head"
    return (
        f"{there[0]} of {there[1]} of {taken} are taken for {answered}, and {back[0]} of {back[1]} the other "
        f"way; {worse} them apart worse ({max(share, near_share):.1%} mistaken) than {better} "
        f"({min(share, near_share):.1%})"
    )


def _crossings(
    codes: npt.NDArray[np.int64], answers: npt.NDArray[np.int64], counted: npt.NDArray[np.bool_], n: int
) -> dict[tuple[int, int], int]:
    """Count the images of one class that get the answer of another."""
    wrong = counted & (codes != answers)
    cells, counts = np.unique(codes[wrong] * n + answers[wrong], return_counts=True)
    return {(int(cell) // n, int(cell) % n): int(count) for cell, count in zip(cells, counts, strict=True)}


def _votes(near: Ints, codes: Ints) -> npt.NDArray[np.int64]:
    """Return the class that most neighbors are of, the nearest one's of equal ones; -1 without neighbors."""
    found = np.full(len(near), -1, dtype=np.int64)
    if not near.shape[1]:
        return found
    there = near >= 0
    labels = np.where(there, codes[np.maximum(near, 0)], -1)
    best = np.zeros(len(near), dtype=np.int64)
    for column in range(labels.shape[1]):
        count = ((labels == labels[:, column : column + 1]) & there).sum(axis=1)
        better = (count > best) & there[:, column]
        found[better], best[better] = labels[better, column], count[better]
    return found


def harmful(
    subject: Subject, test: ValidationImages, near: Ints, k: int, kept: Flags, most: int | None
) -> PartFindings:
    """Draft the stored images that mislead the votes of k neighbors on test images, but for kept ones."""
    places = {label: code for code, label in enumerate(subject.classes)}
    truth = np.array([places.get(label, -2) for label in test.labels or []], dtype=np.int64)
    there = near >= 0
    matches = there & (np.where(there, subject.codes[np.maximum(near, 0)], -1) == truth[:, None])
    stored = subject.index.store.count()
    values = shapley_values(near, matches, k, stored if near.shape[1] < stored else near.shape[1])
    first = near[:, :k]
    votes = _votes(first, subject.codes)
    misled: dict[int, list[tuple[int, float | None]]] = {}
    for place in np.flatnonzero((votes != truth) & (truth >= 0)).tolist():
        for column, row in enumerate(first[place].tolist()):
            if row >= 0 and not matches[place, column]:
                distance = float(test.near.distances[place, column])
                misled.setdefault(row, []).append((len(subject) + place, distance))
    harming = sorted(
        (row for row in misled if values[row] < 0), key=lambda row: (values[row], str(subject.ids[row]))
    )
    listed = [row for row in harming if not kept[row]]
    drafts = [
        Draft(
            "harm",
            score=float(-values[row] * len(test)),
            image=row,
            others=sorted(misled[row], key=lambda each: each[1] or 0.0),
            note=f"among the {k} nearest of {len(misled[row])} test images that are answered wrongly",
        )
        for row in listed[:most]
    ]
    return PartFindings(drafts, len(listed), kept=len(harming) - len(listed))


def grouped(
    pairs: Pairs,
    scores: npt.NDArray[np.float64],
    n: int,
    labels: Sequence[Any],
    is_kept: Callable[[str, list[int]], bool],
    most: int | None,
) -> dict[str, PartFindings]:
    """Draft groups of images that are the same: those within one set, and those across (leaks).

    Parameters
    ----------
    pairs : Pairs
    scores : ndarray of float64, shape (n_pairs,)
        How surely each pair is the same, in (0, 1]; 1 for equal ones.
    n : int
        Records; numbers from there on are test images.
    labels : sequence
        Of all images, by number; None where there is none.
    is_kept : callable
        Tells of a kind and a group of numbers whether somebody has decided to keep it as it is.
    most : int, optional
        Findings of each kind; a group is whole or left out, save the first.
    """
    joined = UnionFind()
    strongest: dict[int, float] = {}
    nearest: dict[int, list[tuple[int, float | None]]] = {}
    for left, right, distance, score in zip(
        pairs.left.tolist(), pairs.right.tolist(), pairs.distances.tolist(), scores.tolist(), strict=True
    ):
        joined.join(left, right)
        known = None if np.isnan(distance) else distance
        for one, other in ((left, right), (right, left)):
            strongest[one] = max(strongest.get(one, 0.0), score)
            nearest.setdefault(one, []).append((other, known))
    groups: dict[int, list[int]] = {}
    for number in sorted(strongest):
        groups.setdefault(joined.find(number), []).append(number)
    found = {"duplicate": PartFindings(), "leak": PartFindings()}
    ranked = sorted(groups.values(), key=lambda group: (-max(strongest[each] for each in group), group[0]))
    for group in ranked:
        kind = "leak" if group[0] < n <= group[-1] else "duplicate"
        part = found[kind]
        if is_kept(kind, group):
            part.kept += len(group)
            continue
        part.count += len(group)
        if most is not None and len(part.drafts) + len(group) > (
            most if part.drafts or not most else len(group)
        ):
            continue
        number = part.drafts[-1].group + 1 if part.drafts and part.drafts[-1].group is not None else 0
        several = len({labels[each] for each in group} - {None}) > 1
        equal = all(strongest[each] >= 1 for each in group)
        note = ("equal images" if equal else "nearly equal images") + (
            ", under several labels" if several else ""
        )
        for each in group:
            direct = sorted(nearest[each], key=lambda near: np.inf if near[1] is None else near[1])
            there = {other for other, _ in direct}
            rest = [(other, None) for other in group[: SHOWN + 1] if other != each and other not in there]
            part.drafts.append(
                Draft(
                    kind,
                    score=strongest[each],
                    image=each,
                    others=[*direct, *rest][:SHOWN],
                    group=number,
                    note=note,
                )
            )
    return found
