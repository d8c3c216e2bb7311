"""Stores that were filled apart, made one."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipretrieval._util.checks import check_choice, check_sequence, shown
from clipretrieval._util.progress import Progress, check_progress, open_progress
from clipretrieval._util.timing import Timing
from clipretrieval.encoding.base import EncodedBatch, select_images
from clipretrieval.encoding.fingerprint import differences
from clipretrieval.encoding.streams import VECTORS
from clipretrieval.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    StoreLockedError,
    UnsupportedOperationError,
)
from clipretrieval.heads.features import RandomFeatures
from clipretrieval.heads.index_statistics import IndexStatistics
from clipretrieval.heads.statistics import Moments
from clipretrieval.heads.whitening import Whitening
from clipretrieval.retrieval.changes import STATISTICS_BLOBS
from clipretrieval.retrieval.fill import store_images
from clipretrieval.retrieval.given_labels import CONFLICTS, RECENT, GivenLabels
from clipretrieval.retrieval.index_writer import write_index
from clipretrieval.retrieval.manifest import CLEARING, Origin, manifest_classes
from clipretrieval.retrieval.parameters import check_store
from clipretrieval.retrieval.reports import LabelConflict
from clipretrieval.retrieval.same_vectors import is_other, raw_vectors
from clipretrieval.retrieval.transform import LinearTransform
from clipretrieval.retrieval.transform_plan import (
    DONE,
    STORED,
    TRANSFORM,
    TransformPlan,
    read_entry,
    read_transform,
    transform_settings,
    unfinished,
)
from clipretrieval.retrieval.vectorless_store import VectorlessStore, is_vectorless
from clipretrieval.stores.base import (
    LocatedStore,
    RefreshableStore,
    ScannableStore,
    VectorStore,
    view_manifest,
)
from clipretrieval.types import FloatArray, Label, Metric
from clipretrieval.vectors.exporting import all_records, foreign_metadata, refuse_cut
from clipretrieval.vectors.merge_report import MergeReport, told_conflict
from clipretrieval.vectors.part_manifest import SOURCE
from clipretrieval.vectors.vector_block import ROWS

__all__ = ["merge_stores"]

_ON_CONFLICT = ("raise", "first", "last")
_KEPT = re.compile(r"moments-(?:vectors|relu-(\d+)-(\d+))(-per-class)?")
"""What blobs of statistics are called; see `Moments.name`."""


@dataclass(frozen=True, eq=False)
class _Shard:
    """A store that is read, with what its manifest says."""

    name: str
    store: VectorStore
    manifest: Mapping[str, Any]
    transform: LinearTransform | None

    @property
    def identity(self) -> dict[str, Any]:
        """What has to be the same of all, in the words of an error."""
        manifest = self.manifest
        return {
            "encoder": manifest["encoder"],
            "metric": manifest["metric"],
            "normalize": manifest.get("normalize", False),
            "label_kind": manifest["label_kind"],
            "transform": transform_settings(read_entry(manifest)),
        }


def merge_stores(
    target: VectorStore,
    shards: Sequence[VectorStore],
    on_conflict: str = "raise",
    *,
    progress: Progress | bool | None = None,
) -> MergeReport:
    """Put what several stores hold into one, so that it is what one fit of all images would have filled.

    Records are known by their ids, which come from the images' contents: an image that several shards hold is
    stored once. Where the shards keep class statistics, the target gets those of all; where their vectors
    went through a `transform`, an empty target learns it anew of all of them, and a filled one keeps its own
    (`RetrievalClassifier.refit_transform` learns it anew). The shards are only read. What was merged
    before a failure or a kill is kept, and the same call goes on from there.

    Parameters
    ----------
    target : VectorStore
        Empty, or filled as the shards were; then they are added to it.
    shards : sequence of VectorStore
        Each filled by a classifier with the same encoder, metric, normalization, `transform` and type of
        labels, of which `RetrievalClassifier.adopt_store` makes one that was filled otherwise.
    on_conflict : {"raise", "first", "last"}
        What to do about an id that comes under several labels, or with several vectors: refuse all, before
        anything is stored; keep what came first, that of the target before all others; take the last.
    progress : callable or True, optional
        Called with (records done, total).

    Returns
    -------
    MergeReport

    Raises
    ------
    InvalidInputError
        If there are no shards, one is empty of a manifest, is given twice or is the target, or an id comes
        under several labels or with several vectors; the message lists them.
    FingerprintMismatchError
        If stores were filled by different encoders or otherwise; the message names two, and what differs.
    StoreLockedError
        If another process writes to the target, or a shard is being filled or rewritten.
    UnsupportedOperationError
        If a store cannot list what it holds, keeps no vectors, or a `transform` has cut their dimensions.
    """
    started, timing = time.perf_counter(), Timing()
    check_store(target)
    if isinstance(target, VectorlessStore) or is_vectorless(target):
        raise UnsupportedOperationError(
            "the target keeps no vectors (keep_vectors=False), so nothing can be merged into it; pass another"
        )
    listed = check_sequence(shards, "shards", "stores")
    check_choice(on_conflict, "on_conflict", _ON_CONFLICT)
    check_progress(progress)
    if not listed:
        raise InvalidInputError("shards is empty; pass at least one store")
    opened = [_open(store, f"shard {number} ({shown(store)})") for number, store in enumerate(listed)]
    _check_distinct(target, opened)
    _check_alike(target, opened)
    kind = str(opened[0].manifest["label_kind"])
    n_conflicts, conflicts = _conflicts(target, opened, kind)
    if n_conflicts and on_conflict == "raise":
        raise _refused(n_conflicts, conflicts)
    first = opened[0].manifest
    origin = Origin(first["encoder"], Metric.parse(target.metric), bool(first.get("normalize", False)))
    read = [0] * len(opened)
    total = sum(shard.store.count() for shard in opened)
    with (
        open_progress(progress, "merging") as tell,
        write_index(
            target,
            origin,
            "add",
            follower=_follower([target.read_manifest(), *(shard.manifest for shard in opened)]),
            plan=_plan(target, first),
        ) as writer,
    ):
        writer.kind = writer.kind or kind
        if on_conflict == "last":
            writer.on_other_vector = _replace
        writer.list_classes(
            [_fitted(label, kind) for shard in opened for label in manifest_classes(shard.manifest)]
        )
        store_images(
            [writer],
            _batches(target, opened, read, keep_first=on_conflict == "first"),
            total=total,
            skipped=(),
            timing=timing,
            progress=tell,
        )
        if not writer.count:  # nothing but what was there: what was cut short may have to be said to be done
            writer.keep()
            target.flush()
    return MergeReport(
        read=tuple(read),
        new=writer.new,
        already_there=sum(read) - writer.new - writer.relabelled,
        relabelled=writer.relabelled,
        n_conflicts=n_conflicts,
        conflicts=conflicts,
        count=target.count(),
        seconds=time.perf_counter() - started,
    )


def _open(given: Any, name: str) -> _Shard:
    check_store(given)
    store: VectorStore = given
    if isinstance(store, RefreshableStore):
        store.refresh()
    manifest = store.read_manifest()
    if not manifest:
        raise InvalidInputError(
            f"{name} holds {store.count()} vectors and no manifest, so nobody knows what made them; write "
            "one by RetrievalClassifier.adopt_store, or leave it out"
        )
    # Compared with itself: its format, and whether it names an encoder and labels.
    entry = read_entry(manifest)
    own = Origin(
        manifest["encoder"] if isinstance(manifest.get("encoder"), Mapping) else {},
        Metric.parse(store.metric),
        bool(manifest.get("normalize", False)),
        entry,
    )
    own.check(manifest)
    if manifest.get(CLEARING):
        raise StoreLockedError(
            f"what {name} holds is being overwritten, or that was interrupted: finish it by fit(…, "
            "resume=True), and merge then"
        )
    if isinstance(store, VectorlessStore) or is_vectorless(store):
        raise UnsupportedOperationError(
            f"{name} keeps no vectors (keep_vectors=False), so there is nothing to merge; fit with "
            "keep_vectors=True"
        )
    if not isinstance(given, ScannableStore):
        raise UnsupportedOperationError(
            f"{name} cannot list what it holds (it has no scan method), so it cannot be merged"
        )
    if entry is not None and entry["state"] != DONE:
        raise unfinished(entry)
    transform = None if entry is None else read_transform(store, entry["digest"])
    refuse_cut(transform, f"those of {name} cannot be merged with others")
    return _Shard(name, store, manifest, transform)


def _check_distinct(target: VectorStore, shards: Sequence[_Shard]) -> None:
    """Refuse a store that is given twice, or one that is merged into itself."""
    places = [_place(target)]
    for shard in shards:
        place = _place(shard.store)
        if place in places:
            which = "the target" if places.index(place) == 0 else f"shard {places.index(place) - 1}"
            raise InvalidInputError(f"{shard.name} is the same store as {which}; pass each once")
        places.append(place)


def _place(store: VectorStore) -> Any:
    location = store.location() if isinstance(store, LocatedStore) else None
    return id(store) if location is None else (type(store), sorted(map(str, location.items())))


def _check_alike(target: VectorStore, shards: Sequence[_Shard]) -> None:
    """Refuse stores whose records cannot lie in one."""
    first = shards[0]
    for shard in shards[1:]:
        _compare(first.name, first.identity, shard.name, shard.identity)
    metric, wanted = str(Metric.parse(target.metric)), first.manifest["metric"]
    if metric != wanted:
        raise FingerprintMismatchError(
            f"the target's metric is {metric!r} and the shards' {wanted!r}; pass a target of that"
        )
    manifest = target.read_manifest()
    if target.count() == 0:
        return  # what it held is gone
    if not manifest:
        raise InvalidInputError(
            f"the target holds {target.count()} vectors and no manifest, so nobody knows what made them; "
            "write one by RetrievalClassifier.adopt_store, or pass an empty store"
        )
    if manifest.get(CLEARING):
        raise StoreLockedError(
            "what the target holds is being overwritten, or that was interrupted: finish it by fit(…, "
            "resume=True), or pass an empty store"
        )
    held = _Shard("the target", target, {"label_kind": None, "encoder": {}, "metric": None, **manifest}, None)
    _compare(held.name, held.identity, first.name, first.identity)


def _compare(name: str, one: Mapping[str, Any], other_name: str, other: Mapping[str, Any]) -> None:
    found = differences(one, other, words=("the first has", "the second"))
    if found:
        raise FingerprintMismatchError(
            f"{name} and {other_name} were filled by different encoders or otherwise: {'; '.join(found)}. "
            "Merge stores that were filled alike"
        )


def _conflicts(
    target: VectorStore, shards: Sequence[_Shard], kind: str
) -> tuple[int, tuple[LabelConflict, ...]]:
    """Count the ids that come under several labels or with several vectors, and list some."""
    given, others = GivenLabels(RECENT), dict[str, LabelConflict]()
    before: list[_Shard] = []
    held = _held(target)
    for shard in shards if held is None else (held, *shards):
        if not isinstance(shard.store, ScannableStore):
            raise UnsupportedOperationError(
                f"{shard.name} cannot list what it holds (it has no scan method), so nothing can be merged "
                "into it; pass an empty store"
            )
        for listing in shard.store.scan():
            ids, again = listing.ids.tolist(), dict[str, Label]()
            given.prepare(ids)
            for each, label in zip(ids, listing.labels.tolist(), strict=True):
                if given.note(each, label, shard.name) == label:  # another label is a conflict anyway
                    again[each] = label
            for each, earlier in _with_other_vectors(shard, before, list(again)):
                label = _fitted(again[each], kind)
                others.setdefault(each, LabelConflict((each,) * 2, (label,) * 2, (earlier, shard.name)))
        before.append(shard)
    n_labels, conflicts = given.count_and_list(kind)
    return n_labels + len(others), (*conflicts, *others.values())[:CONFLICTS]


def _held(target: VectorStore) -> _Shard | None:
    """Return what the target holds; None where it holds nothing."""
    if not target.count():
        return None
    entry = read_entry(target.read_manifest())
    done = entry is not None and entry["state"] == DONE
    transform = read_transform(target, entry["digest"]) if entry is not None and done else None
    return _Shard("the target", target, target.read_manifest(), transform)


def _with_other_vectors(
    shard: _Shard, before: Sequence[_Shard], ids: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Yield each id whose vector is another one in a store before, with that store's name."""
    for start in range(0, len(ids), ROWS):
        some = list(ids[start : start + ROWS])
        own = _vectors(shard, some)
        metric = Metric.parse(shard.store.metric)
        for earlier in before:
            for name, vector in _vectors(earlier, some).items():
                if name in own and is_other(own[name], vector, metric):
                    yield name, earlier.name


def _vectors(shard: _Shard, ids: list[str]) -> dict[str, FloatArray]:
    records = shard.store.get(ids)
    if shard.transform is None:  # amid a rewriting, which goes on before anything is merged
        rows = [row for row, each in enumerate(records.metadata) if TRANSFORM not in each]
        return {str(records.ids[row]): records.vectors[row] for row in rows}
    return dict(zip(records.ids.tolist(), raw_vectors(records, shard.transform), strict=True))


def _replace(name: str, place: int) -> None:
    """Let the last vector count, as the last label does."""


def _refused(n_conflicts: int, conflicts: Sequence[LabelConflict]) -> InvalidInputError:
    what = "1 id comes" if n_conflicts == 1 else f"{n_conflicts} ids come"
    told = "; ".join(told_conflict(each) for each in conflicts[:5])
    more = f"; and {n_conflicts - 5} more" if n_conflicts > 5 else ""
    return InvalidInputError(
        f"{what} under several labels, or with several vectors ({told}{more}), so nothing was "
        "merged. Give each vector an id of its own, and each id one label; or pass on_conflict='first' or "
        "'last'"
    )


def _follower(manifests: Sequence[Mapping[str, Any]]) -> IndexStatistics | None:
    """Return what keeps the statistics that the stores keep; None where they keep none."""
    names = {name for each in manifests for name in _names(each.get(STATISTICS_BLOBS))}
    wanted = [found for name in sorted(names) if (found := _moments(name)) is not None]
    if not wanted:
        return None
    statistics = IndexStatistics()
    statistics.want(wanted)
    return statistics


def _names(found: Any) -> Collection[str]:
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


def _moments(name: str) -> Moments | None:
    match = _KEPT.fullmatch(name)
    if match is None:
        return None
    features = None if match[1] is None else RandomFeatures(int(match[1]), int(match[2]))
    return Moments(per_class=match[3] is not None, features=features)


def _plan(target: VectorStore, first: Mapping[str, Any]) -> TransformPlan:
    """Return which map the target's vectors are to go through: that of the shards, learned of all."""
    settings = transform_settings(read_entry(first))
    if settings.get("name") is None:
        return TransformPlan()
    if target.count():
        return TransformPlan(auto=STORED.auto, restore=Whitening.from_settings)
    return TransformPlan(Whitening.from_settings(settings), restore=Whitening.from_settings)


def _batches(
    target: VectorStore, shards: Sequence[_Shard], read: list[int], *, keep_first: bool
) -> Iterator[EncodedBatch]:
    """Read the records of all shards, their vectors as they were before any map.

    `read` gets how many there were of each. With `keep_first`, those whose id has come before are left out.
    """
    come, start = GivenLabels(RECENT), 0
    filled = target.count() > 0
    for number, shard in enumerate(shards):
        for records in all_records(shard.store):
            ids, labels = records.ids.tolist(), records.labels.tolist()
            metadata = [foreign_metadata(each) for each in records.metadata]
            sources = [each.pop(SOURCE, None) for each in metadata]
            batch = EncodedBatch(
                ids=ids,
                vectors={VECTORS: raw_vectors(records, shard.transform)},
                labels=[_fitted(label, shard.manifest["label_kind"]) for label in labels],
                sources=[each if isinstance(each, str) else None for each in sources],
                indices=list(range(start, start + len(ids))),
                metadata=metadata,
            )
            start += len(ids)
            read[number] += len(ids)
            if keep_first:
                batch = _unknown(batch, come, target if filled else None)
            if len(batch):
                yield batch
        if view_manifest(shard.store) != shard.manifest:
            raise StoreLockedError(
                f"another process has changed {shard.name} while it was read; call it again when that is done"
            )


def _unknown(batch: EncodedBatch, come: GivenLabels, held: VectorStore | None) -> EncodedBatch:
    """Leave out records whose id has come before, or that a store holds."""
    come.prepare(batch.ids)
    there = set() if held is None else set(held.get(batch.ids).ids.tolist())
    places = []
    for place, (name, label) in enumerate(zip(batch.ids, batch.labels, strict=True)):
        if come.note(name, label, None) is None and name not in there:
            places.append(place)
    return select_images(batch, places)


def _fitted(label: Label, kind: str) -> Any:
    """Return a label in the type that was fitted."""
    return bool(label) if kind == "bool" else float(label) if kind == "float" else label
