"""Rewrite what a store holds by another map, so that a kill at any moment can be gone on from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from clipretrieval._util.progress import Progress
from clipretrieval.errors import (
    InvalidInputError,
    NotFittedError,
    StoreCorruptedError,
    StoreLockedError,
    UnsupportedOperationError,
)
from clipretrieval.retrieval.changes import CHANGING, STATISTICS, ChangeFollower, final_state
from clipretrieval.retrieval.manifest import check_owner, format_version
from clipretrieval.retrieval.transform import LinearTransform
from clipretrieval.retrieval.transform_plan import (
    DONE,
    LEARNED_FROM,
    NORM,
    PENDING,
    REWRITING,
    TRANSFORM,
    TransformPlan,
    TransformRule,
    blob_name,
    mark,
    read_entry,
    read_transform,
    transform_settings,
)
from clipretrieval.stores.base import BlobStore, ScannableStore, VectorStore
from clipretrieval.types import AnyArray, FloatArray, Label, Records

__all__ = [
    *("as_batches", "go_on_rewriting", "learn_counted", "learn_transform", "mapped_metadata"),
    *("records_in_order", "refit_transform", "stored_norms"),
]

Floats = npt.NDArray[np.float64]
Batches = Iterator[tuple[AnyArray, Sequence[Label]]]

BATCH = 1024
NO_TRANSFORM = (
    "the store's vectors went through no transform, so there is none to learn anew; set one first, as by "
    "set_params(transform='whiten')"
)


def learn_transform(
    store: VectorStore, rule: TransformRule, follower: ChangeFollower | None, progress: Progress | None = None
) -> LinearTransform:
    """Learn a map of all that a store holds raw, and rewrite it; inside of `sole_writer`, as all here."""
    found, learned_from = learn_counted(rule, as_batches(store))
    _begin(store, rule.settings, found, None, learned_from)
    go_on_rewriting(store, follower, progress)
    return found


def learn_counted(rule: TransformRule, batches: Batches) -> tuple[LinearTransform, dict[str, Any]]:
    """Learn a map, and count what it is learned from, for the manifest."""
    count, classes = 0, set[Label]()

    def counted() -> Batches:
        nonlocal count
        for vectors, labels in batches:
            count += len(labels)
            classes.update(labels)
            yield vectors, labels

    found = rule.learn(counted())
    return found, {LEARNED_FROM: {"records": count, "classes": len(classes)}}


def as_batches(store: VectorStore) -> Batches:
    """Yield the vectors and labels of all that a store holds, in the order of the ids."""
    for records in records_in_order(store):
        yield records.vectors, records.labels.tolist()


def refit_transform(
    store: VectorStore,
    own: Mapping[str, Any],
    plan: TransformPlan,
    follower: ChangeFollower | None,
    progress: Progress | None = None,
) -> None:
    """Bring what a store holds to what a plan wants, by a map that is learned of it now.

    Parameters
    ----------
    store : VectorStore
    own : mapping
        From `Origin.manifest`, of the one who changes the store; what it says of the map is not read.
    plan : TransformPlan
    follower : ChangeFollower, optional
    progress : callable, optional

    Raises
    ------
    FingerprintMismatchError, StoreLockedError, StoreCorruptedError
        As from `check_owner`.
    InvalidInputError
        If there is no map, nor one wanted.
    UnsupportedOperationError
        If the store cannot keep a map, or the vectors would have another dimension.
    """
    manifest = store.read_manifest()
    check_owner(manifest, {**own, TRANSFORM: read_entry(manifest)})
    if not store.count():
        raise NotFittedError("the store holds no vectors, so there is nothing to learn a transform from")
    went_on = go_on_rewriting(store, follower, progress)
    held = read_entry(store.read_manifest())
    rule = plan.rule
    if plan.auto and (held is not None or went_on):
        rule = None if held is None else plan.restore(transform_settings(held))
    elif rule is None and plan.auto:
        raise InvalidInputError(NO_TRANSFORM)
    if went_on and transform_settings(held) == (transform_settings(None) if rule is None else rule.settings):
        return  # what was interrupted was this, and nothing has changed since
    old = None if held is None or held["state"] == PENDING else read_transform(store, held["digest"])
    dim = int(store.dim or 0)
    if rule is None:
        if old is not None and old.is_cut:
            raise UnsupportedOperationError(
                f"the store holds {old.kept_dim} of {old.dim} dimensions, so the whole vectors are not there "
                "any more; fit into another store"
            )
        if held is not None:
            _begin(store, transform_settings(None), None, None if old is None else old.digest, {})
            go_on_rewriting(store, follower, progress)
        return
    if held is None:
        TransformPlan(rule).for_empty(store, {}, dim)  # refuses a store that cannot keep it
    if rule.settings["dim"] not in (None, dim) or (old and old.is_cut and rule.settings["dim"] is None):
        raise UnsupportedOperationError(
            f"the store is made for vectors of dimension {dim}, and the transform is to keep "
            f"{rule.settings['dim'] or 'all'} dimensions; fit into another store"
        )
    if old is None:
        learn_transform(store, rule, follower, progress)
        return
    found, learned_from = learn_counted(rule, _before(store, old))
    if old.is_cut:
        found = old.then(found)
    done = {**rule.settings, **_progress(DONE, found.digest, None), **learned_from}
    if held != done:
        _begin(store, rule.settings, found, old.digest, learned_from)
        go_on_rewriting(store, follower, progress)


def go_on_rewriting(
    store: VectorStore, follower: ChangeFollower | None, progress: Progress | None = None
) -> bool:
    """Finish a rewriting that the manifest says was begun, and tell whether one was.

    Raises
    ------
    StoreCorruptedError
        If a record went through neither of the two maps.
    """
    entry = read_entry(store.read_manifest())
    if entry is None or entry["state"] != REWRITING:
        return False
    new = None if entry["digest"] is None else read_transform(store, entry["digest"])
    before = entry["before"]
    former = _Former(store, before)
    if follower is not None:
        follower.clear()
    try:
        total, done = store.count(), 0
        for records in records_in_order(store):
            vectors = _rewritten(store, records, former, new)
            if follower is not None:
                follower.add(records.ids.tolist(), vectors, records.labels.tolist())
            done += len(records)
            if progress is not None:
                progress(done, total)
    except BaseException:
        if follower is not None:
            follower.lose()
        raise
    if before is not None and before != entry["digest"]:  # no record needs it any more
        cast("BlobStore", store).write_blob(blob_name(before), None)
    state = final_state(store, follower, changed=True)
    manifest = {**store.read_manifest(), STATISTICS: state}
    if new is None:
        del manifest[TRANSFORM]
    else:
        manifest[TRANSFORM] = {**entry, **_progress(DONE, new.digest, None)}
    store.write_manifest({**manifest, **format_version(manifest.get(TRANSFORM))})
    store.flush()
    return True


def records_in_order(store: VectorStore) -> Iterator[Records]:
    """Go through all records in the order of their ids, so that equal contents give equal sums.

    Raises
    ------
    UnsupportedOperationError
        If the store does not list what it holds.
    StoreLockedError
        If what it lists is not there.
    """
    if not isinstance(store, ScannableStore):
        raise UnsupportedOperationError(
            f"{type(store).__name__} cannot list what it holds (it has no scan method), so no transform can "
            "be learned of it"
        )
    names = sorted(name for listing in store.scan() for name in listing.ids.tolist())
    for start in range(0, len(names), BATCH):
        records = store.get(names[start : start + BATCH])
        missing = len(names[start : start + BATCH]) - len(records)
        if missing:  # one that were only not visible yet would stay as it is among those that are rewritten
            raise StoreLockedError(
                f"{missing} of the records that the store lists cannot be read; another process has removed "
                "them. Call it again"
            )
        yield records


def mapped_metadata(transform: LinearTransform, norms: Floats) -> list[dict[str, Any]]:
    """Return what records say of the map that they went through."""
    name = mark(transform.digest)
    return [{NORM: norm, TRANSFORM: name} for norm in norms.tolist()]


def _begin(
    store: VectorStore,
    settings: Mapping[str, Any],
    new: LinearTransform | None,
    before: str | None,
    learned_from: Mapping[str, Any],
) -> None:
    """Keep the new map and say that records go from one to the other, before the first one does."""
    if new is not None:
        cast("BlobStore", store).write_blob(blob_name(new.digest), new.to_bytes())
    digest = None if new is None else new.digest
    entry = {**settings, **_progress(REWRITING, digest, before), **learned_from}
    own = {TRANSFORM: entry, STATISTICS: dict(CHANGING), **format_version(entry)}
    store.write_manifest({**store.read_manifest(), **own})
    store.flush()


def _progress(state: str, digest: str | None, before: str | None) -> dict[str, Any]:
    return {"state": state, "digest": digest, "before": before}


def _before(store: VectorStore, old: LinearTransform) -> Batches:
    """Yield vectors as they were before a map; where it has cut them, as they were before the scaling."""
    undo = old.coordinates if old.is_cut else old.recover
    for records in records_in_order(store):
        yield undo(records.vectors, stored_norms(records, range(len(records)))), records.labels.tolist()


class _Former:
    """The map before a rewriting, read when a record needs it: behind the last one, it is not kept."""

    def __init__(self, store: VectorStore, digest: str | None) -> None:
        self._store, self.digest = store, digest

    @cached_property
    def transform(self) -> LinearTransform | None:
        return None if self.digest is None else read_transform(self._store, self.digest)


def _rewritten(
    store: VectorStore, records: Records, former: _Former, new: LinearTransform | None
) -> FloatArray:
    """Rewrite those records that are not yet, and return the vectors that the store holds of all."""
    marks = [metadata.get(TRANSFORM) for metadata in records.metadata]
    wanted = None if new is None else mark(new.digest)
    due = [row for row, found in enumerate(marks) if found != wanted]
    if not due:
        return records.vectors
    origin = None if former.digest is None else mark(former.digest)
    strange = [row for row in due if marks[row] != origin]
    if strange:
        raise StoreCorruptedError(
            f"the record {records.ids[strange[0]]!r} went through the transform {marks[strange[0]]!r}, and "
            f"those of the store through {origin!r} or {wanted!r}; fit again with overwrite=True"
        )
    raw: AnyArray = records.vectors[due]
    old = former.transform
    if old is not None:
        raw = old.recover(records.vectors[due], stored_norms(records, due))
    metadata = [
        {key: value for key, value in records.metadata[row].items() if key not in (NORM, TRANSFORM)}
        for row in due
    ]
    if new is None:
        mapped: FloatArray = raw.astype(np.float32)
    else:
        mapped, norms = new.apply(raw)
        marked = mapped_metadata(new, norms)
        metadata = [{**rest, **own} for rest, own in zip(metadata, marked, strict=True)]
    store.upsert(records.ids[due].tolist(), mapped, records.labels[due].tolist(), metadata)
    vectors = records.vectors.copy()
    vectors[due] = mapped
    return vectors


def stored_norms(records: Records, rows: Sequence[int] | range) -> Floats:
    found = [records.metadata[row].get(NORM) for row in rows]
    if any(not isinstance(norm, int | float) or isinstance(norm, bool) for norm in found):
        raise StoreCorruptedError(
            "a record lacks the length that its vector had before it was scaled; something else than this "
            "library has written it. Fit again with overwrite=True"
        )
    return np.array(found, dtype=np.float64)
