"""Decide what becomes of each image of a fit: new, already there, or labelled anew."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, cast

import numpy as np

from clipretrieval._util.labels import Spelling, label_kind, stored_labels
from clipretrieval._util.timing import Timing
from clipretrieval.encoding.base import EncodedBatch
from clipretrieval.encoding.streams import VECTORS
from clipretrieval.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    StoreError,
    StoreLockedError,
)
from clipretrieval.images.stream import SkippedImage
from clipretrieval.retrieval.changes import (
    CHANGING,
    ChangeFollower,
    final_state,
    following,
    new_state,
    state_token,
    storing,
)
from clipretrieval.retrieval.classes import Classes
from clipretrieval.retrieval.clearing import check_clearable, clear, drop_transform
from clipretrieval.retrieval.exclusive import sole_writer
from clipretrieval.retrieval.given_labels import RECENT, GivenLabels
from clipretrieval.retrieval.manifest import CLEARING, Origin
from clipretrieval.retrieval.manifest_update import update_manifest
from clipretrieval.retrieval.reports import FitReport
from clipretrieval.retrieval.rewriting import (
    as_batches,
    go_on_rewriting,
    learn_counted,
    learn_transform,
    mapped_metadata,
    records_in_order,
)
from clipretrieval.retrieval.same_vectors import with_other_vectors
from clipretrieval.retrieval.transform import LinearTransform
from clipretrieval.retrieval.transform_plan import (
    DONE,
    NORM,
    RAW,
    REWRITING,
    TRANSFORM,
    TransformPlan,
    TransformRule,
    blob_name,
    read_entry,
    read_transform,
)
from clipretrieval.retrieval.vectorless_store import VectorlessStore, holding
from clipretrieval.stores.base import (
    BlobStore,
    RefreshableStore,
    ScannableStore,
    VectorStore,
    view_manifest,
)
from clipretrieval.stores.memory import MemoryStore
from clipretrieval.types import FloatArray, Label, Metric

__all__ = ["Existing", "IndexWriter", "open_writer", "write_index"]

Existing: TypeAlias = Literal["refuse", "resume", "add", "replace"]
"""What a fit does where the store holds vectors already."""


@dataclass(frozen=True)
class _GivenImage:
    """One image of a batch: `row` is the place of its vector, -1 where the store has it."""

    place: int
    id: str
    label: Any
    source: str | None
    row: int
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class IndexWriter:
    """Puts encoded batches into a store and keeps count.

    Attributes
    ----------
    store : VectorStore
    origin : Origin
        Of the vectors that it puts there.
    vectors : str
        The name of these in a batch.
    fresh : bool
        Whether the store holds nothing of the same encoder, so that nothing needs looking up.
    kind : str or None
        The labels' type, once known.
    classes : set of int or of str
        What this fit has to list, as stored.
    listed : Classes
        What the store's manifest lists since it was last written, the classes of others included. Before,
        what it most likely does.
    replaces : mapping, optional
        The manifest of the store without records that the fit starts from; None once it has stored something.
    sole : bool
        Whether nobody else may have stored anything since the fit began.
    clearing : bool
        Whether what the store holds has still to go, as soon as the first batch has come.
    replacing : bool
        Whether it held anything that goes.
    given : GivenLabels
        The images that have come.
    spelling : Spelling
        Of the classes that the store held, where the labels are names.
    follower : ChangeFollower, optional
        Who is told of every change.
    transform : LinearTransform, optional
        What vectors go through on their way into the store.
    changed : bool
        Whether it has changed any record since it last kept what it did.
    unsure : bool
        Whether it is not known what became of a record.
    on_other_vector : callable, optional
        Called with an id and a place in the source, where a vector comes that is another than the one that
        the store, or the batch, has under the same id. It raises, or the vector takes the other's place.
        When left out, ids are taken for hashes of images, which have one vector.
    """

    store: VectorStore
    origin: Origin
    vectors: str
    fresh: bool
    kind: str | None = None
    classes: set[Label] = field(default_factory=set)
    listed: Classes = field(default_factory=lambda: Classes((), "int"))
    replaces: Mapping[str, Any] | None = None
    sole: bool = False
    clearing: bool = False
    replacing: bool = False
    new: int = 0
    already_there: int = 0
    relabelled: int = 0
    given: GivenLabels = field(default_factory=lambda: GivenLabels(RECENT))
    spelling: Spelling = field(default_factory=Spelling)
    follower: ChangeFollower | None = None
    transform: LinearTransform | None = None
    changed: bool = False
    unsure: bool = False
    on_other_vector: Callable[[str, int], None] | None = None
    _unlisted: set[Label] = field(default_factory=set)

    def advise(self, error: BaseException) -> None:
        """Note on a failure what it has left of a store that was to be replaced."""
        if self.replacing and hasattr(error, "add_note"):  # Python 3.11
            error.add_note(
                "The store still holds what it held: fit again with overwrite=True."
                if self.clearing
                else "What the store held is gone: fit again with resume=True to go on with what is new."
            )

    @property
    def count(self) -> int:
        """Images that have come, repeats included."""
        return self.new + self.already_there + self.relabelled

    def list_classes(self, classes: Sequence[Any]) -> None:
        """List classes, of the type that was fitted, before they have an image."""
        if classes:
            self.kind = label_kind(classes, self.kind, "those that the store holds")
            self._add_classes(stored_labels(classes, self.kind))

    def _add_classes(self, labels: Iterable[Label]) -> None:
        self.classes.update(labels)
        self._unlisted.update(labels)

    def report(self, skipped: Sequence[SkippedImage], timing: Timing, seconds: float) -> FitReport:
        """Return what became of the images that have come."""
        n_conflicts, conflicts = self.given.count_and_list(str(self.kind))
        return FitReport(
            new=self.new,
            already_there=self.already_there,
            relabelled=self.relabelled,
            skipped=tuple(skipped),
            timing=timing,
            seconds=seconds,
            n_conflicts=n_conflicts,
            conflicts=conflicts,
        )

    def known(self, ids: list[str]) -> set[str]:
        """Return those ids that the store holds; their images need no encoding."""
        return set(self.store.get(ids).ids.tolist())

    def put(self, batch: EncodedBatch) -> None:
        """Store what is new of a batch, and new labels of what is not.

        Raises
        ------
        InvalidInputError
            If labels are missing or not of one type; nothing of the batch is stored then.
        FingerprintMismatchError, StoreLockedError
            If another process has meanwhile filled the store by other means, or is doing so.
        """
        images = _given_images(batch)
        holder = "those given before them" if self.fresh else "those that the store holds"
        kind = label_kind(
            [image.label for image in images], self.kind, holder, [image.place for image in images]
        )
        labels = self.spelling.apply(stored_labels([image.label for image in images], kind))
        vectors = batch.vectors.get(self.vectors)
        if self.follower is not None:
            dim = self.store.dim or 0 if vectors is None else vectors.shape[1]
            self.follower.expect(set(labels), dim, anew=self.clearing)
        self._make_room()
        self.kind = kind
        self._add_classes(labels)
        self._store(images, labels, vectors)

    def take_over(self, spool: IndexWriter, rule: TransformRule) -> None:
        """Store what another store holds raw, by a map that is learned of it."""
        transform, learned_from = learn_counted(rule, as_batches(spool.store))
        self.transform = transform
        self._make_room()
        self.kind = spool.kind
        self._add_classes(spool.classes)
        done = {**rule.settings, "state": DONE, "digest": transform.digest, "before": None, **learned_from}
        self.origin = replace(self.origin, transform=done)
        cast("BlobStore", self.store).write_blob(blob_name(transform.digest), transform.to_bytes())
        self.write_manifest(state=CHANGING)
        for records in records_in_order(spool.store):
            ids, labels = records.ids.tolist(), records.labels.tolist()
            vectors, norms = transform.apply(records.vectors)
            marks = mapped_metadata(transform, norms)
            metadata = [{**own, **mark} for own, mark in zip(records.metadata, marks, strict=True)]
            with storing(self.store, self.follower, ids, vectors, labels, ()):
                self.store.upsert(ids, vectors, labels, metadata)
        self.keep()
        self.store.flush()
        spool.transform, spool.listed = transform, self.listed

    def write_manifest(self, remove: Iterable[Label] = (), state: Mapping[str, Any] | None = None) -> None:
        """Keep the identity and the classes in the store, beside the classes of others.

        They go before the vectors: a fit that is cut short must not leave anonymous ones.

        Parameters
        ----------
        remove : iterable of int or of str
            Classes that are to be listed no more.
        state : mapping, optional
            As for `update_manifest`.

        Raises
        ------
        FingerprintMismatchError, StoreLockedError
            If another process has meanwhile filled the store by other means, or is doing so.
        """
        if self.kind is None:
            return
        own, replaced = self.origin.manifest(self.kind), self.replaces
        known, found = self.listed, view_manifest(self.store)
        # What it has listed before is listed still, unless others have changed that.
        add = self._unlisted if replaced is None and known.is_listed_by(found) else self.classes
        self.listed = update_manifest(
            self.store, own, known=known, add=add, remove=remove, replaces=replaced, state=state
        )
        self.replaces, self._unlisted = None, set()
        self.changed |= state is CHANGING
        if replaced:
            drop_transform(self.store, replaced, own)

    def keep(self, remove: Iterable[Label] = ()) -> None:
        """Have the follower keep what it has, and bring the manifest up to date; the flush comes after."""
        if self.kind is not None:
            self.write_manifest(remove, final_state(self.store, self.follower, self.changed))
            self.changed = False

    def settle(self) -> None:
        """Say in the manifest that the records are in a state of their own, though more may come."""
        if self.changed and not self.unsure and state_token(view_manifest(self.store)) is None:
            self.write_manifest(state=new_state())

    def flush(self) -> None:
        """Flush what has come; who reads a folder gets a state that can be told from those after it."""
        if isinstance(self.store, VectorlessStore) and self.changed and not self.unsure:
            self.keep()  # after a kill, gathering statistics would take encoding everything again
        elif isinstance(self.store, RefreshableStore):
            self.settle()
        self.store.flush()

    def _make_room(self) -> None:
        """Remove what is to go, and see that nobody else has come."""
        if self.clearing:
            self.replaces = clear(self.store)
            self.clearing = False
            if self.follower is not None:
                self.follower.clear()
        if self.replaces is not None and not self._is_untouched():
            if self.sole:
                raise StoreLockedError(
                    "another process has begun to fill the store since this fit looked at it, and nothing of "
                    "this one was stored. To add to what it holds: fit(…, resume=True); to replace it: "
                    "overwrite=True"
                )
            self.fresh, self.replaces = False, None

    def _is_untouched(self) -> bool:
        """Tell whether the store, which may have no lock, is as empty as the fit has found or made it."""
        store = self.store
        if view_manifest(store) != self.replaces:
            return False
        if isinstance(store, ScannableStore):
            return not any(len(listing) for listing in store.scan())
        return store.count() == 0

    def _store(
        self, images: Sequence[_GivenImage], labels: Sequence[Label], vectors: FloatArray | None
    ) -> None:
        """Store each image once, under its last label; count all as if each came in a call of its own."""
        given, due, replaced = self.given, dict[str, tuple[_GivenImage, Label]](), set[str]()
        given.prepare(image.id for image in images)
        come = {image.id for image in images if given.label(image.id) is not None}
        compared = self.on_other_vector is not None and vectors is not None
        asked = [image.id for image in images if (compared if image.id in come else not self.fresh)]
        records = self.store.get(list(dict.fromkeys(asked))) if asked else None
        held = (
            {} if records is None else dict(zip(records.ids.tolist(), records.labels.tolist(), strict=True))
        )
        others = set[int]()
        if self.on_other_vector is not None and vectors is not None:
            given_rows = [(image.id, image.place, image.row) for image in images if image.row >= 0]
            others = with_other_vectors(given_rows, vectors, records, self.transform, self.origin.metric)
            for image in images:
                if image.place in others:
                    self.on_other_vector(image.id, image.place)
        for image, label in zip(images, labels, strict=True):
            # A store need not show yet what this fit has put there.
            before = given.note(image.id, label, image.source)
            before = held.get(image.id) if before is None else before
            if before == label and image.place not in others:
                self.already_there += 1
            else:
                if before is not None and image.id not in due:
                    replaced.add(image.id)
                due[image.id] = image, label
                self.new += before is None
                self.relabelled += before is not None
        if isinstance(self.store, VectorlessStore):
            self.store.check([image.source for image, _ in due.values()])
            there = [image for image in images if image.source and image.id not in due]
            self.store.renew_files({image.id: str(image.source) for image in there})
        if not due:
            self.write_manifest()
            return
        files = {name: image.source for name, (image, _) in due.items() if image.source}
        with holding(self.store, sorted(replaced), files):
            self._upsert(images, due, replaced, vectors)

    def _upsert(
        self,
        images: Sequence[_GivenImage],
        due: Mapping[str, tuple[_GivenImage, Label]],
        replaced: Collection[str],
        vectors: FloatArray | None,
    ) -> None:
        """Store images under labels, some of them in the place of what is there."""
        rows = {image.id: image.row for image in images if image.row >= 0}
        marks: list[dict[str, Any]] = [{}] * len(images)
        if vectors is not None and self.transform is not None:
            vectors, norms = self.transform.apply(vectors)
            marks = mapped_metadata(self.transform, norms)
        absent = [name for name in due if name not in rows]  # known images were not encoded
        if absent:
            records = self.store.get(absent)
            if len(records) < len(absent):
                raise StoreLockedError(
                    f"another process has removed {len(absent) - len(records)} of the images that are being "
                    "added or labeled anew; call it again to store them"
                )
            encoded = records.vectors[:0] if vectors is None else vectors
            rows.update({name: row for row, name in enumerate(records.ids.tolist(), len(encoded))})
            vectors = np.concatenate([encoded, records.vectors])
            marks = marks[: len(encoded)] + [
                {key: metadata[key] for key in (NORM, TRANSFORM) if key in metadata}
                for metadata in records.metadata
            ]
        chosen = cast("FloatArray", vectors)[[rows[name] for name in due]]
        wanted = [label for _, label in due.values()]
        sources = [
            {**image.metadata, "source": image.source} if image.source else dict(image.metadata)
            for image, _ in due.values()
        ]
        metadata = [{**own, **marks[rows[name]]} for own, name in zip(sources, due, strict=True)]
        self.write_manifest(state=CHANGING)
        self.unsure = True
        with storing(self.store, self.follower, list(due), chosen, wanted, replaced):
            self.store.upsert(list(due), chosen, wanted, metadata)
        self.unsure = False


@contextmanager
def write_index(
    store: VectorStore,
    origin: Origin,
    existing: Existing,
    *,
    vectors: str = VECTORS,
    named: bool = False,
    keep_open: bool = True,
    follower: ChangeFollower | None = None,
    plan: TransformPlan = RAW,
    known: Classes | None = None,
) -> Iterator[IndexWriter]:
    """Be the only writer of a store while the block runs; see `open_writer`.

    A map that the vectors are to go through is learned at the end of the block, of all that is there then,
    and what the store holds is rewritten. Where it cuts dimensions, the block writes into a store in memory.

    Parameters
    ----------
    store, origin, existing, vectors, named, plan, known
        As for `open_writer`.
    keep_open : bool
        Whether the store stays open when the block fails. One that was made for the block should not: nobody
        else could close it, and it may hold a lock.
    follower : ChangeFollower, optional
        Who is told of every change.
    """
    try:
        if existing == "refuse":  # what it holds says more than that somebody else may hold the store
            open_writer(store, origin, existing, vectors=vectors, named=named, plan=plan)
        with sole_writer(store), following(store, follower):
            if existing in ("resume", "add"):
                _finish_rewriting(store, origin, plan, follower)
            writer = open_writer(
                store, origin, existing, vectors=vectors, named=named, plan=plan, known=known
            )
            entry = writer.origin.transform
            if entry is None or entry["state"] == DONE:
                writer.follower = follower
                yield writer
            elif _kept_dim(origin, entry) == _raw_dim(origin):
                yield writer  # nobody follows what is going to be rewritten
                writer.transform = learn_transform(store, plan.rule_of(entry), follower)
            else:
                yield from _spooled(writer, plan.rule_of(entry), follower)
    except BaseException:
        if not keep_open:
            with suppress(StoreError):  # what failed before is what the caller has to know
                store.close()
        raise


def _finish_rewriting(
    store: VectorStore, origin: Origin, plan: TransformPlan, follower: ChangeFollower | None
) -> None:
    """Finish what was interrupted, if it is one's own."""
    manifest = view_manifest(store) if isinstance(store, BlobStore) else {}
    entry = read_entry(manifest)
    if entry is not None and entry["state"] == REWRITING and not manifest.get(CLEARING):
        replace(origin, transform=entry).check(manifest)
        plan.for_filled(manifest)
        go_on_rewriting(store, follower)


def _spooled(
    writer: IndexWriter, rule: TransformRule, follower: ChangeFollower | None
) -> Iterator[IndexWriter]:
    """Yield a writer into memory, and have the other one take over what that has got.

    A store's vectors have one dimension for ever: those of all dimensions never come there.
    """
    origin = replace(writer.origin, transform=None)
    with MemoryStore(origin.metric) as store:
        spool = IndexWriter(store, origin, writer.vectors, fresh=True, replaces={})
        try:
            yield spool
            writer.follower = follower
            writer.take_over(spool, rule)
        except BaseException as error:
            writer.advise(error)
            raise


def _raw_dim(origin: Origin) -> int | None:
    """Return the dimension of vectors before a map, where their fingerprint names it."""
    dim = origin.fingerprint.get("dim")
    return None if dim is None else int(dim)


def _kept_dim(origin: Origin, entry: Mapping[str, Any] | None) -> int | None:
    """Return the dimension of vectors in the store."""
    kept = None if entry is None else entry["dim"]
    return _raw_dim(origin) if kept is None else int(kept)


def open_writer(
    store: VectorStore,
    origin: Origin,
    existing: Existing,
    *,
    vectors: str = VECTORS,
    named: bool = False,
    plan: TransformPlan = RAW,
    known: Classes | None = None,
) -> IndexWriter:
    """Decide how a fit starts on what a store holds, inside of `sole_writer`.

    Parameters
    ----------
    store : VectorStore
    origin : Origin
        Of the vectors that it is filled with.
    existing : {"refuse", "resume", "add", "replace"}
        What becomes of what it holds. A replacement that was interrupted is finished by another, or by
        ``"resume"``, and is not added to.
    vectors : str
        The name of the vectors in the batches that come.
    named : bool
        Whether the labels are names of folders, or of a CSV file, which may have any Unicode form.
    plan : TransformPlan
        Which map the vectors go through; what `origin` says of it is not read.
    known : Classes, optional
        Those that the store most likely lists.

    Raises
    ------
    FingerprintMismatchError
        If a different encoder or metric filled it.
    InvalidInputError
        If it holds anything else, and that is not to be replaced, resumed or added to.
    UnsupportedOperationError
        If the store cannot keep what is planned.
    """
    if Metric.parse(store.metric) != origin.metric:
        raise FingerprintMismatchError(
            f"the store's metric is {str(store.metric)!r} and the classifier's {str(origin.metric)!r}; set "
            f"metric={str(store.metric)!r}, or fit into another store"
        )
    manifest, count = view_manifest(store), store.count()  # in this order: the records come last
    if count == 0:
        sole = existing in ("refuse", "replace")
        origin = replace(origin, transform=plan.for_empty(store, manifest, _raw_dim(origin)))
        return IndexWriter(store, origin, vectors, fresh=True, replaces=manifest, sole=sole)
    manifest = view_manifest(store)
    clearing = bool(manifest.get(CLEARING))
    if clearing and existing == "add":
        raise InvalidInputError(
            f"overwriting what the store holds was interrupted, and {count} old vectors are left: adding to "
            "them would mix old and new. Finish it by fit(…, resume=True) with the new images"
        )
    if existing == "replace" or (clearing and existing == "resume"):
        entry = plan.for_empty(store, manifest, _raw_dim(origin))
        check_clearable(store, _kept_dim(origin, entry) or store.dim or 0)
        origin = replace(origin, transform=entry)
        return IndexWriter(store, origin, vectors, fresh=True, sole=True, clearing=True, replacing=True)
    entry = read_entry(manifest)
    origin = replace(origin, transform=entry)
    origin.check(manifest)
    plan.for_filled(manifest)
    if existing == "refuse":
        raise InvalidInputError(
            f"the store already holds {count} vectors: pass resume=True to keep them and add what is "
            "missing, overwrite=True to replace them, or another store, or another place for it. To use "
            "what it holds as it is: RetrievalClassifier.from_store"
        )
    kind = manifest["label_kind"]
    if known is None or known.kind != kind:
        known = Classes((), kind)
    spelling = Spelling(known.listed_by(manifest) if named else ())
    done = entry is not None and entry["state"] == DONE
    transform = read_transform(store, entry["digest"]) if entry is not None and done else None
    return IndexWriter(
        store,
        origin,
        vectors,
        fresh=False,
        kind=kind,
        listed=known,
        spelling=spelling,
        transform=transform,
    )


def _given_images(batch: EncodedBatch) -> list[_GivenImage]:
    """List a batch's images in the order of the source: the last label of an image counts."""
    columns = (
        *(batch.indices, batch.ids, batch.labels, map(_readable, batch.sources), range(len(batch))),
        batch.metadata or [{}] * len(batch),
    )
    encoded = map(_GivenImage, *columns)
    known = (
        _GivenImage(image.index, image.id, image.label, _readable(image.source), -1) for image in batch.known
    )
    return sorted([*encoded, *known], key=lambda image: image.place)


def _readable(path: str | None) -> str | None:
    """Write the bytes of a path that is not valid Unicode as escapes, so that every store can keep it."""
    return path and path.encode("utf-8", "backslashreplace").decode("utf-8")
