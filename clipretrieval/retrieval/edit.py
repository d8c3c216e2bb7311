"""Take images out of a fitted classifier's store, and correct their labels."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from clipretrieval import errors
from clipretrieval._util.checks import check_strings, check_text
from clipretrieval._util.labels import Spelling, class_array, label_kind, stored_labels
from clipretrieval._util.rounding import without_range_warnings
from clipretrieval._util.text import counted
from clipretrieval.errors import InvalidInputError, StoreError, UnsupportedOperationError
from clipretrieval.images.sources import open_labels
from clipretrieval.retrieval.changes import CHANGING, final_state, following, removing, storing
from clipretrieval.retrieval.labelled_index import LabelledIndex
from clipretrieval.retrieval.manifest import check_owner
from clipretrieval.retrieval.manifest_update import update_manifest
from clipretrieval.retrieval.reports import ForgetReport
from clipretrieval.retrieval.vectorless_store import VectorlessStore, holding
from clipretrieval.stores.base import ScannableStore, VectorStore, label_counter, view_manifest
from clipretrieval.types import Label, Records

__all__ = [
    *("finish_change", "forget_records", "held_ids", "ids_to_forget", "ids_to_relabel", "relabel_records"),
    "replace_sources",
]

BATCH = 1024
SCANNED = 1000
"""Records for each label up to which all are listed once, and not those of one label after the other."""
REACH = 10
"""Neighbors looked at when a forgotten vector is searched for: it would be the first, or tied with it."""


def forget_records(index: LabelledIndex, ids: Any, label: Any) -> ForgetReport:
    """Remove images by id or by label, and make certain that they are gone; see `RetrievalClassifier.forget`.

    Called, as is `relabel_records`, inside of `sole_writer`.
    """
    store, names = index.store, ids_to_forget(index, ids, label)
    touched: set[Label] = set()
    searched = 0
    with holding(store, names), following(store, index.follower):
        _update_manifest(index, state=CHANGING)
        for start in range(0, len(names), BATCH):
            records = store.get(names[start : start + BATCH])
            if not len(records):  # another process, of a store without a lock, was faster
                continue
            touched.update(records.labels.tolist())
            with removing(index.follower, records):
                store.delete(records.ids.tolist())
                searched += _make_certain(store, records, search=index.is_searchable)
        emptied = _emptied(store, touched)
        _keep(index, emptied, changed=True)
    return ForgetReport(
        ids=tuple(names),
        classes=class_array(emptied, index.classes.kind),
        searched=searched,
        remaining=store.count(),
    )


def ids_to_forget(index: LabelledIndex, ids: Any, label: Any) -> list[str]:
    """Return the ids of stored images that are to be forgotten, checked, once each."""
    if (ids is None) == (label is None):
        raise InvalidInputError("forget takes either ids or label=…, one of the two")
    _check_owner(index)
    if ids is None:
        return _ids_of(index, label)
    names = _checked_ids(ids)
    _require(index.store, names)
    return names


def relabel_records(index: LabelledIndex, ids: Any, labels: Any) -> int:
    """Give stored images other labels; see `RetrievalClassifier.relabel`."""
    store = index.store
    wanted = _labels_wanted(index, ids, labels)
    names = list(wanted)
    touched: set[Label] = set()
    changed = 0
    with holding(store, _with_others(store, wanted)), following(store, index.follower):
        if index.follower is not None:
            index.follower.expect(set(wanted.values()), index.dim)
        for start in range(0, len(names), BATCH):
            records = store.get(names[start : start + BATCH])
            held = records.labels.tolist()
            rows = [row for row, name in enumerate(records.ids.tolist()) if held[row] != wanted[name]]
            if rows and not changed:
                # A new class goes into the manifest first, so that no record is ever without its class there.
                _update_manifest(index, add=wanted.values(), state=CHANGING)
            if rows:
                chosen = records.ids[rows].tolist()
                touched.update(held[row] for row in rows)
                metadata = [records.metadata[row] for row in rows]
                vectors, given = records.vectors[rows], [wanted[name] for name in chosen]
                with storing(store, index.follower, chosen, vectors, given, chosen):
                    store.upsert(chosen, vectors, given, metadata)
            changed += len(rows)
        _keep(index, _emptied(store, touched), changed=changed > 0)
    return changed


def ids_to_relabel(index: LabelledIndex, ids: Any, labels: Any) -> list[str]:
    """Return the ids of stored images that have other labels than they are to have."""
    return _with_others(index.store, _labels_wanted(index, ids, labels))


def finish_change(index: LabelledIndex, labels: Iterable[Any] = ()) -> None:
    """Have the follower keep what it has, where a change was cut short behind its last record.

    `labels` are those of which that change may have taken the last image.
    """
    touched = set(_as_stored(index, list(labels)))
    with following(index.store, index.follower):
        _keep(index, _emptied(index.store, touched), changed=True)


def replace_sources(index: LabelledIndex, files: Mapping[str, str]) -> int:
    """Note where the files of stored images are now, and return how many were noted; inside of `sole_writer`.

    Parameters
    ----------
    index : LabelledIndex
    files : mapping of id to path
        Ids that are not stored are passed over.
    """
    _check_owner(index)
    store, names, noted = index.store, list(files), 0
    if isinstance(store, VectorlessStore):
        store.renew_files(files)
        return len(held_ids(store, names))
    for start in range(0, len(names), BATCH):
        records = store.get(names[start : start + BATCH])
        ids = records.ids.tolist()
        rows = [row for row, name in enumerate(ids) if records.metadata[row].get("source") != files[name]]
        if rows:
            chosen = [ids[row] for row in rows]
            metadata = [{**records.metadata[row], "source": files[ids[row]]} for row in rows]
            with without_range_warnings():
                store.upsert(chosen, records.vectors[rows], records.labels[rows].tolist(), metadata)
        noted += len(rows)
    store.flush()
    return noted


def _labels_wanted(index: LabelledIndex, ids: Any, labels: Any) -> dict[str, Label]:
    """Return the labels that stored images are to have, as stored, by id; checked."""
    _check_owner(index)
    names = _checked_ids(ids)
    given = [labels] * len(names) if isinstance(labels, str) else list(open_labels(labels)[1])
    if len(given) != len(names):
        raise InvalidInputError(
            f"there are {len(names)} ids and {len(given)} labels; pass one label for each id"
        )
    wanted = dict(zip(names, _as_stored(index, given), strict=True))
    _require(index.store, names)
    return wanted


def _with_others(store: VectorStore, wanted: Mapping[str, Label]) -> list[str]:
    """Return the ids of records that have other labels than they are to have."""
    names, found = list(wanted), list[str]()
    for start in range(0, len(names), BATCH):
        records = store.get(names[start : start + BATCH])
        pairs = zip(records.ids.tolist(), records.labels.tolist(), strict=True)
        found += (name for name, label in pairs if label != wanted[name])
    return found


def _keep(index: LabelledIndex, emptied: Iterable[Label], *, changed: bool) -> None:
    """End a change: the follower keeps what it has, and the manifest says what is there now."""
    _update_manifest(index, remove=emptied, state=final_state(index.store, index.follower, changed))
    index.store.flush()


def _as_stored(index: LabelledIndex, labels: Sequence[Any]) -> list[Label]:
    """Return labels as the store keeps them.

    Raises
    ------
    InvalidInputError
        If they are of another type than those that were fitted.
    """
    if not labels:
        return []
    fitted = index.classes.kind
    kind = label_kind(labels)
    if kind != fitted and not {kind, fitted} <= {"int", "float"}:
        raise InvalidInputError(
            f"the labels given are of the type {kind}, but the classifier was fitted on {fitted}; pass "
            "labels of the same type"
        )
    return stored_labels(labels, kind, fitted)


def _check_owner(index: LabelledIndex) -> None:
    """Refuse a store that holds by now what another kind of classifier has put there."""
    manifest = view_manifest(index.store)
    if not manifest:
        raise errors.NotFittedError("the store has no manifest any more; fit the classifier again")
    check_owner(manifest, index.manifest())


def _ids_of(index: LabelledIndex, label: Any) -> list[str]:
    store = index.store
    wanted = Spelling(index.classes).apply(_as_stored(index, [label]))[0]
    if not isinstance(store, ScannableStore):
        raise UnsupportedOperationError(
            f"{type(store).__name__} cannot list what it holds (it has no scan method); forget its images by "
            "their ids"
        )
    names = [name for listing in store.scan(wanted) for name in listing.ids.tolist()]
    if not names:
        known, told = index.classes.labels.tolist(), "its classes are"
        if len(known) > 10:
            known = difflib.get_close_matches(str(label), map(str, known), n=5)
            told = f"of its {counted(len(index.classes), 'class')} these are near it:"
        raise InvalidInputError(
            f"the store holds no image labeled {label!r}, so there is nothing to forget; {told} "
            f"{', '.join(map(repr, known)) or 'none'}"
        )
    return names


def _checked_ids(ids: Any) -> list[str]:
    """Return ids once each, in their order."""
    names = check_strings([ids] if isinstance(ids, str) else ids, "ids")
    if not names:
        raise InvalidInputError("there are no ids; pass at least one, such as those of kneighbors(…).ids[0]")
    for name in names:
        check_text(name, "an id")
    return list(dict.fromkeys(names))


def _require(store: VectorStore, names: list[str]) -> None:
    """Refuse ids that the store does not hold, before anything is changed."""
    held = held_ids(store, names)
    unknown = [name for name in names if name not in held]
    if unknown:
        listed = ", ".join(map(repr, unknown[:5])) + (", …" if len(unknown) > 5 else "")
        share = f" ({len(unknown)} of {len(names)} ids are unknown)" if len(names) > 1 else ""
        raise InvalidInputError(
            f"the store holds no image with the id {listed}{share}; nothing was changed. kneighbors and "
            "explain return ids, and `clipretrieval classify --explain --json` prints them whole"
        )


def held_ids(store: VectorStore, names: Sequence[str]) -> set[str]:
    """Return which of some ids a store holds."""
    held: set[str] = set()
    for start in range(0, len(names), BATCH):
        held.update(store.get(list(names[start : start + BATCH])).ids.tolist())
    return held


def _make_certain(store: VectorStore, records: Records, *, search: bool) -> int:
    """Look for deleted records by id and, if asked, by search, and return the number of searches."""
    gone = records.ids.tolist()
    left = store.get(gone).ids.tolist()
    searched = 0
    if not left and search and store.count():
        with without_range_warnings():
            near = store.search(records.vectors, min(REACH, store.count()))
        left = sorted(set(near.ids[near.valid].tolist()) & set(gone))
        searched = len(gone)
    if left:
        raise StoreError(
            f"{type(store).__name__}.delete left {len(left)} of {len(gone)} records behind, such as "
            f"{left[0]!r}; another process has added them again, or the store has a fault of its own"
        )
    return searched


def _emptied(store: VectorStore, labels: Iterable[Label]) -> list[Label]:
    """Return those labels of which no record is left; none where the store cannot tell."""
    left = list(labels)
    records = store.records if isinstance(store, VectorlessStore) else store
    if (counter := label_counter(records)) is not None:
        return [label for label in left if not counter(label)]
    if not left or not isinstance(store, ScannableStore):
        return []
    if store.count() > SCANNED * len(left):
        return [label for label in left if not _any(store.scan(label))]
    for listing in store.scan():
        held = set(listing.labels.tolist())
        left = [label for label in left if label not in held]
        if not left:
            break
    return left


def _any(listings: Iterator[Any]) -> bool:
    return any(len(listing.ids) for listing in listings)


def _update_manifest(
    index: LabelledIndex,
    *,
    add: Iterable[Label] = (),
    remove: Iterable[Label] = (),
    state: Mapping[str, Any] | None,
) -> None:
    """Change what the manifest says, and the classes that are known of the index with those it lists."""
    add, remove, before = set(add), set(remove), index.classes
    listed = update_manifest(index.store, index.manifest(), known=before, add=add, remove=remove, state=state)
    index.update_classes(add=add if listed is before.changed(add, remove) else listed, remove=remove)
