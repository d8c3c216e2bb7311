"""Apply the decisions on an audit."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipretrieval._util.checks import check_bool, shown
from clipretrieval._util.labels import Spelling, fitted_labels, label_kind, stored_labels
from clipretrieval.auditing.applied_decisions import AppliedDecisions
from clipretrieval.auditing.decisions import Decisions
from clipretrieval.auditing.folder_moves import FolderMoves, Move
from clipretrieval.auditing.image_decision import ImageDecision, is_same_label
from clipretrieval.encoding.fingerprint import differences
from clipretrieval.errors import FingerprintMismatchError, InvalidInputError
from clipretrieval.retrieval.changes import is_changing
from clipretrieval.retrieval.exclusive import one_at_a_time, sole_writer
from clipretrieval.retrieval.labelled_index import LabelledIndex
from clipretrieval.stores.base import view_manifest

if TYPE_CHECKING:
    from clipretrieval.cascade.cascade_classifier import CascadeClassifier
    from clipretrieval.classifier import RetrievalClassifier

__all__ = ["apply_decisions"]

BATCH = 1024
"""Records that are looked up together."""
APPLIED, MOST_APPLIED = "applied_decisions", 100
"""What a manifest calls the digests of the last so many decisions that have forgotten images."""
COMPARED = ("encoder", "metric", "normalize")
"""What of a report's fingerprint must be the same: labels and images are compared one by one."""


class _Stored:
    """The images of the decisions, as they are stored now.

    An audit of a folder numbers equal images; a classifier stores them once.
    """

    def __init__(self, index: LabelledIndex, decisions: Sequence[ImageDecision]) -> None:
        self.kind = index.classes.kind
        self._spelling = Spelling(index.classes.labels.tolist())
        known = [each for each in decisions if each.id is not None]
        self._labels: dict[str, Any] = {}
        names = list(dict.fromkeys(str(name) for each in known for name in (each.id, each.content)))
        for start in range(0, len(names), BATCH):
            records = index.store.get(names[start : start + BATCH])
            labels = fitted_labels(records.labels.tolist(), self.kind)
            self._labels.update(zip(records.ids.tolist(), labels, strict=True))
        self._before: dict[str, list[Any]] = {}
        for each in known:
            self._before.setdefault(self.name(each), []).append(each.before)

    def __len__(self) -> int:
        return len(self._labels)

    def name(self, decision: ImageDecision) -> str:
        """Return the id under which an image is stored, if it is."""
        return str(decision.id if decision.id in self._labels else decision.content)

    def wanted(self, decision: ImageDecision) -> Any:
        """Return the label that an image is to have, spelled as the classes are.

        Raises
        ------
        InvalidInputError
            If it is of another type than those that were fitted.
        """
        kind = label_kind([decision.label])
        if kind != self.kind and not {kind, self.kind} <= {"int", "float"}:
            raise InvalidInputError(
                f"the labels decided on are of the type {kind}, but the classifier was fitted on "
                f"{self.kind}; decide on the page of its own audit"
            )
        stored = self._spelling.apply(stored_labels([decision.label], kind, self.kind))
        return fitted_labels(stored, self.kind)[0]

    def due(self, decision: ImageDecision) -> tuple[str, str]:
        """Return ``"relabel"``, ``"forget"`` or nothing that is to be done, and why it cannot be done."""
        name = self.name(decision)
        label = self._labels.get(name)
        if label is None:
            gone = decision.action == "forget" and decision.label is None
            return "", "" if gone else "it is not stored any more"
        if decision.label is not None and is_same_label(label, self.wanted(decision)):
            return "", ""
        if decision.leaves_copies and not is_same_label(label, decision.before):
            return "", ""  # it is stored under a copy's label
        if not any(is_same_label(label, before) for before in self._before[name]):
            return "", f"it is labeled {label!r} now, and was {decision.before!r} when it was audited"
        return ("forget" if decision.label is None else "relabel"), ""


@dataclass
class _Plan:
    """What is to be done with the images in a store, by id, and with files."""

    relabel: dict[str, ImageDecision] = field(default_factory=dict)
    forget: dict[str, ImageDecision] = field(default_factory=dict)
    moves: list[tuple[ImageDecision, Move]] = field(default_factory=list)
    done: list[ImageDecision] = field(default_factory=list)
    skipped: list[tuple[ImageDecision, str]] = field(default_factory=list)


def apply_decisions(
    classifier: RetrievalClassifier | CascadeClassifier | None,
    decisions: Decisions | str | Path,
    folder: str | Path | None = None,
    *,
    dry_run: bool = False,
) -> AppliedDecisions:
    """Relabel and forget images as decided on an audit's page and, if asked, move their files.

    Each decision is about one image with the label that it had. If the image or its label has changed since,
    the decision is skipped and reported. The same call finishes an interrupted one, and does nothing twice.

    Parameters
    ----------
    classifier : RetrievalClassifier, CascadeClassifier or None
        The one that was audited, which is changed by `relabel` and `forget`; save it afterwards. None to only
        move files.
    decisions : Decisions, str or Path
        A path is that of the file saved by the page.
    folder : str or Path, optional
        The images, with a folder for each class. Files of relabeled images are moved to the folder of their
        new class, those of forgotten ones to ``_removed/<class>`` in it, which does not count as a class. No
        file is deleted or overwritten: if a name is taken, a number is appended.
    dry_run : bool
        Only report what would be done.

    Returns
    -------
    AppliedDecisions

    Raises
    ------
    InvalidInputError
        If there is neither a classifier nor a folder, the file holds no decisions, or a label is of another
        type than those that were fitted. Nothing is changed.
    NotFittedError
    FingerprintMismatchError
        If another encoder or metric filled the classifier's store than the one that was audited, or it holds
        none of the images.
    StoreLockedError
        If another process writes to the store.
    """
    dry_run = check_bool(dry_run, "dry_run")
    read = decisions if isinstance(decisions, Decisions) else Decisions.from_json(decisions)
    if classifier is None and folder is None:
        raise InvalidInputError("decisions are applied to a classifier, a folder, or both; pass one of them")
    moves = None if folder is None else FolderMoves(folder)
    exits: Sequence[RetrievalClassifier] = () if classifier is None else _exits(classifier)
    _check_fingerprint(read, exits)
    stored = _Stored(exits[-1].retriever_.index, read.decisions) if exits else None
    if stored is not None:
        _check_stored(read, stored, view_manifest(exits[-1].store_))
    plan = _plan(read, stored, moves)
    if stored is not None and not dry_run:
        if plan.forget:
            _note_applied(exits[-1], read)
        _change(classifier, exits, plan, stored)
    moved = [] if moves is None else _moved(moves, plan, dry_run)
    if stored is not None and not dry_run:
        _note_files(exits, stored, {each: target for each, _, target in moved})
    return AppliedDecisions(
        relabeled=tuple(plan.relabel.values()),
        forgotten=tuple(plan.forget.values()),
        moved=tuple((str(source), str(target)) for _, source, target in moved),
        unchanged=tuple(plan.done),
        skipped=tuple(plan.skipped),
        kept=read.count("keep"),
        dry_run=dry_run,
    )


def _exits(classifier: Any) -> Sequence[RetrievalClassifier]:
    """Return the classifiers that a cascade consists of, or a single one."""
    from clipretrieval.cascade.cascade_classifier import CascadeClassifier
    from clipretrieval.classifier import RetrievalClassifier

    if isinstance(classifier, CascadeClassifier):
        return classifier._fitted().exits_
    if isinstance(classifier, RetrievalClassifier):
        return (classifier,)
    raise InvalidInputError(
        f"classifier must be a RetrievalClassifier, a CascadeClassifier or None; got {shown(classifier)}"
    )


def _plan(read: Decisions, stored: _Stored | None, moves: FolderMoves | None) -> _Plan:
    """Decide what is to be done, by what is in the store and in the folder now."""
    plan = _Plan()
    for each in read.decisions:
        if each.action == "keep":
            continue
        todo, reason = ("", "") if stored is None or each.id is None else stored.due(each)
        if each.id is None and moves is None:
            reason = "it is a file that is not stored, and no folder was given"
        if reason:
            plan.skipped.append((each, reason))
            continue
        move = Move() if moves is None else moves.plan(each)
        if move.reason:
            plan.skipped.append((each, move.reason))
        elif move.target is not None:
            plan.moves.append((each, move))
        if todo and stored is not None:
            (plan.relabel if todo == "relabel" else plan.forget).setdefault(stored.name(each), each)
        elif not move.reason and move.source is None:
            plan.done.append(each)
    return plan


def _check_fingerprint(read: Decisions, exits: Sequence[RetrievalClassifier]) -> None:
    """Refuse a classifier whose vectors are not those that were audited; of a cascade, any exit's may be."""
    wanted = {key: read.fingerprint.get(key) for key in COMPARED}
    found = []
    for each in exits:
        manifest = view_manifest(each.retriever_.index.store)
        given = {"normalize": False, **{key: manifest[key] for key in COMPARED if key in manifest}}
        found.append(differences(wanted, given))
    if found and all(found):
        listed = "; ".join(found[-1]).replace("stored", "audited").replace("given", "here")
        raise FingerprintMismatchError(
            f"the decisions are on the audit of another classifier ({listed}), so nothing was changed; name "
            "the one that was audited, or audit this one"
        )


def _digest(read: Decisions) -> str:
    """Return what identifies decisions."""
    told = [{**each.to_dict(), "findings": []} for each in read.decisions]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def _applied(manifest: Mapping[str, Any]) -> list[str]:
    """Return the digests of the decisions that a store's manifest says were applied to it."""
    found = manifest.get(APPLIED)
    return [str(each) for each in found] if isinstance(found, list) else []


def _note_applied(classifier: RetrievalClassifier, read: Decisions) -> None:
    """Note in the store, before anything is forgotten, by which decisions: nothing else tells afterwards."""
    store = classifier.store_
    with one_at_a_time(classifier), sole_writer(store):
        manifest = store.read_manifest()
        known = _applied(manifest)
        if _digest(read) not in known:
            store.write_manifest({**manifest, APPLIED: [*known[1 - MOST_APPLIED :], _digest(read)]})
            store.flush()


def _check_stored(read: Decisions, stored: _Stored, manifest: Mapping[str, Any]) -> None:
    """Refuse a store that holds no image that was audited, unless these decisions have forgotten them."""
    wanted = [each for each in read.decisions if each.id is not None]
    forgotten = all(each.action == "forget" and each.label is None for each in wanted)
    if wanted and not stored and not (forgotten and _digest(read) in _applied(manifest)):
        raise FingerprintMismatchError(
            f"the store holds none of the {len(wanted):,} images that the decisions are about, so it is not "
            "the one that was audited, and nothing was changed; name the classifier that was audited"
        )


def _change(classifier: Any, exits: Sequence[RetrievalClassifier], plan: _Plan, stored: _Stored) -> None:
    """Change what is stored, or end a change that was cut short."""
    # A file that was moved before the process was killed may be needed, where no vectors are kept.
    before = {each: move.target for each, move in plan.moves if move.source is None and move.target}
    _note_files(exits, stored, before)
    if plan.relabel:
        classifier.relabel(list(plan.relabel), [stored.wanted(each) for each in plan.relabel.values()])
    if plan.forget:
        classifier.forget(list(plan.forget))
    left = [each.before for each in plan.done if each.id is not None and each.before is not None]
    for each in exits:
        if is_changing(view_manifest(each.store_)):
            each._finish_change(left)


def _moved(moves: FolderMoves, plan: _Plan, dry_run: bool) -> list[tuple[ImageDecision, Path, Path]]:
    """Move files, and return from where to where; name those that cannot be moved."""
    moved: list[tuple[ImageDecision, Path, Path]] = []
    for decision, move in plan.moves:
        if move.source is None:  # it was moved before
            continue
        try:
            if dry_run:
                target = moves.free_name(move, {target for _, _, target in moved})
            else:
                target = moves.carry_out(move)
        except OSError as error:
            reason = f"its file {str(move.source)!r} cannot be moved: {error.strerror or error}"
            plan.skipped.append((decision, reason))
        else:
            moved.append((decision, move.source, target))
    return moved


def _note_files(
    exits: Sequence[RetrievalClassifier], stored: _Stored, files: Mapping[ImageDecision, Path]
) -> None:
    """Have the stores know where moved files are: an explanation shows them."""
    placed = {
        stored.name(each): str(target) if Path(str(each.source)).is_absolute() else os.path.relpath(target)
        for each, target in files.items()
        if each.id is not None
    }
    if placed:
        for each in exits:
            each._replace_sources(placed)
