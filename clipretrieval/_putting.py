"""Decide what becomes of each image of a fit: new, already there, or labelled anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from clipretrieval._conflicts import Conflicts
from clipretrieval._inputs import Source
from clipretrieval._labels import label_kind, stored_labels
from clipretrieval._manifest import check_manifest, make_manifest, manifest_classes
from clipretrieval.encoding.base import EncodedBatch
from clipretrieval.errors import (
    DimensionMismatchError,
    FingerprintMismatchError,
    InvalidInputError,
    UnsupportedOperationError,
)
from clipretrieval.images import unique_ids
from clipretrieval.stores import ScannableStore
from clipretrieval.stores.base import VectorStore
from clipretrieval.types import FloatArray, Label, Metric

__all__ = ["Existing", "Putter", "open_putter"]

Existing: TypeAlias = Literal["refuse", "resume", "add", "replace"]
"""What a fit does where the store holds vectors already."""

CLEARING = "clearing"
"""Set in the manifest while what the store holds is being removed to make room for a new fit."""


@dataclass(frozen=True)
class _Item:
    """One image of a batch: `row` is the place of its vector, -1 where the store has it."""

    place: int
    id: str
    label: Any
    source: str | None
    row: int


@dataclass
class Putter:
    """Puts encoded batches into a store and keeps count.

    Attributes
    ----------
    store : VectorStore
    source : Source
        Where the batches come from.
    fresh : bool
        Whether the store holds nothing of the same encoder, so that nothing needs looking up.
    kind : str or None
        The labels' type, once known.
    classes : set of int or of str
        As stored.
    clearing : bool
        Whether what the store holds has still to go, as soon as the first batch has come.
    replacing : bool
        Whether it held anything that goes.
    conflicts : Conflicts
        Equal images that came under several labels.
    """

    store: VectorStore
    source: Source
    fresh: bool
    kind: str | None = None
    classes: set[Label] = field(default_factory=set)
    clearing: bool = False
    replacing: bool = False
    new: int = 0
    already_there: int = 0
    relabelled: int = 0
    conflicts: Conflicts = field(default_factory=Conflicts)
    _seen: dict[str, int] = field(default_factory=dict)
    _listed: set[Label] | None = None

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
        """Images that have come."""
        return self.new + self.already_there + self.relabelled

    def known(self, ids: list[str]) -> set[str]:
        """Return those ids that the store holds; their images need no encoding."""
        return set(self.store.get(ids).ids.tolist())

    def put(self, batch: EncodedBatch, vectors: FloatArray) -> None:
        """Store what is new of a batch, and new labels of what is not.

        Raises
        ------
        InvalidInputError
            If labels are missing or not of one type; nothing of the batch is stored then.
        """
        items = _items(batch)
        kind = label_kind([item.label for item in items], self.kind)
        labels = stored_labels([item.label for item in items], kind)
        if self.clearing:
            _clear(self.store)
            self.clearing = False
        self.kind = kind
        self.classes.update(labels)
        self.write_manifest()
        ids = unique_ids([item.id for item in items], self._seen)
        if self.fresh:
            self._upsert(ids, vectors[[item.row for item in items]], labels, items)
            self.new += len(items)
        else:
            self._merge(ids, vectors, labels, items)
        self.conflicts.note([item.id for item in items], ids, labels)

    def write_manifest(self) -> None:
        """Keep the identity and the classes in the store, if they are not what it has.

        They go before the vectors: a fit that is cut short must not leave anonymous ones.
        """
        if self.kind is not None and self._listed != self.classes:
            source = self.source
            manifest = make_manifest(
                source.fingerprint, source.metric, self.kind, self.classes, normalize=source.normalize
            )
            self.store.write_manifest(manifest)
            self._listed = set(self.classes)

    def _merge(
        self, ids: list[str], vectors: FloatArray, labels: list[Label], items: Sequence[_Item]
    ) -> None:
        held = _labels_of(self.store, ids)
        changed = [place for place, name in enumerate(ids) if held.get(name, labels[place]) != labels[place]]
        new = [place for place, name in enumerate(ids) if name not in held]
        # A repeat of what is known was not encoded: its vector is that of the first.
        copied = [place for place in new if items[place].row < 0]
        originals = [ids[place] for place in changed] + [items[place].id for place in copied]
        rows: dict[int, Any] = {place: vectors[items[place].row] for place in new if place not in set(copied)}
        if originals:
            records = self.store.get(sorted(set(originals)))
            found = dict(zip(records.ids.tolist(), records.vectors, strict=True))
            for place, name in zip([*changed, *copied], originals, strict=True):
                rows[place] = found[name]
        places = sorted(rows)
        if places:
            self._upsert(
                [ids[place] for place in places],
                np.stack([rows[place] for place in places]),
                [labels[place] for place in places],
                [items[place] for place in places],
            )
        self.conflicts.note_relabelled(items[place].id for place in changed)
        self.new += len(new)
        self.relabelled += len(changed)
        self.already_there += len(ids) - len(new) - len(changed)

    def _upsert(
        self, ids: list[str], vectors: FloatArray, labels: list[Label], items: Iterable[_Item]
    ) -> None:
        metadata = [{"source": _readable(item.source)} if item.source else {} for item in items]
        self.store.upsert(ids, vectors, labels, metadata)


def open_putter(store: VectorStore, source: Source, existing: Existing) -> Putter:
    """Decide how a fit starts on what a store holds.

    Parameters
    ----------
    store : VectorStore
    source : Source
    existing : {"refuse", "resume", "add", "replace"}
        What becomes of it. A replacement that was interrupted is finished by another, or by ``"resume"``, and
        is not added to.

    Raises
    ------
    FingerprintMismatchError
        If a different encoder or metric filled it.
    InvalidInputError
        If it holds anything else, and that is not to be replaced, resumed or added to.
    """
    if Metric.parse(store.metric) != source.metric:
        raise FingerprintMismatchError(
            f"the store's metric is {str(store.metric)!r} and the classifier's {str(source.metric)!r}; set "
            f"metric={str(store.metric)!r}, or fit into another store"
        )
    count = store.count()
    if count == 0:
        return Putter(store, source, fresh=True)
    manifest = store.read_manifest()
    clearing = bool(manifest.get(CLEARING))
    if clearing and existing == "add":
        raise InvalidInputError(
            f"overwriting what the store holds was interrupted, and {count} old vectors are left: adding to "
            "them would mix old and new. Finish it by fit(…, resume=True) with the new images"
        )
    if existing == "replace" or (clearing and existing == "resume"):
        _check_clearable(
            store, int(source.fingerprint["dim"]) if "dim" in source.fingerprint else store.dim or 0
        )
        return Putter(store, source, fresh=True, clearing=True, replacing=True)
    check_manifest(manifest, source.fingerprint, source.metric, normalize=source.normalize)
    if existing == "refuse":
        raise InvalidInputError(
            f"the store already holds {count} vectors: pass resume=True to keep them and add what is "
            "missing, overwrite=True to replace them, or another store, or another path for it. To use "
            "what it holds as it is: RetrievalClassifier.from_store"
        )
    kind, held = manifest["label_kind"], set(manifest_classes(manifest))
    return Putter(store, source, fresh=False, kind=kind, classes=held)


def _check_clearable(store: VectorStore, dim: int) -> None:
    """Refuse to overwrite what cannot be cleared.

    Raises
    ------
    UnsupportedOperationError
        If the store does not list what it holds.
    DimensionMismatchError
        If it is made for vectors of another dimension.
    """
    if not isinstance(store, ScannableStore):
        raise UnsupportedOperationError(
            f"{type(store).__name__} cannot list what it holds (it has no scan method), so overwrite=True "
            "cannot clear it; pass an empty store"
        )
    if store.dim not in (None, dim):
        raise DimensionMismatchError(
            f"the store is made for vectors of dimension {store.dim}, and the new ones have {dim}; pass a "
            "new store, or another path for it"
        )


def _clear(store: VectorStore) -> None:
    """Remove everything from a store that can be scanned; a clearing that is cut short is marked as such."""
    if isinstance(store, ScannableStore):
        store.write_manifest({**store.read_manifest(), CLEARING: True})
        store.flush()
        for ids in [listing.ids.tolist() for listing in store.scan()]:
            store.delete(ids)


def _items(batch: EncodedBatch) -> list[_Item]:
    """List a batch's images in the order of the source, which decides the suffixes of repeats."""
    columns = (batch.indices, batch.ids, batch.labels, batch.sources, range(len(batch)))
    encoded = map(_Item, *columns)
    known = (_Item(item.index, item.id, item.label, item.source, -1) for item in batch.known)
    return sorted([*encoded, *known], key=lambda item: item.place)


def _labels_of(store: VectorStore, ids: list[str]) -> dict[str, Label]:
    records = store.get(ids)
    return dict(zip(records.ids.tolist(), records.labels.tolist(), strict=True))


def _readable(path: str) -> str:
    """Write the bytes of a path that is not valid Unicode as escapes, so that every store can keep it."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")
