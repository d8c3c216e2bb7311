"""Images or vectors on their way into a store of the audit's own, which keeps each one, equal ones too."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from clipretrieval._util.labels import label_kind, stored_labels
from clipretrieval._util.progress import Progress, image_counter
from clipretrieval._util.warning import warn_caller
from clipretrieval.classifier import RetrievalClassifier
from clipretrieval.encoding.base import EncodedBatch, Encoder
from clipretrieval.encoding.streams import VECTORS
from clipretrieval.errors import InvalidInputError
from clipretrieval.images.stream import SkippedImage, unique_ids
from clipretrieval.retrieval.changes import CHANGING, STATISTICS, is_changing, new_state
from clipretrieval.retrieval.inputs import FitSource, none_left, open_fit_source
from clipretrieval.retrieval.parameters import make_store
from clipretrieval.stores.base import ScannableStore, VectorStore
from clipretrieval.stores.registry import DEFAULT_STORE
from clipretrieval.types import FloatArray, Label, Metric

__all__ = ["VECTORS_FOLDER", "gather_images"]

VECTORS_FOLDER = "vectors"
"""Where the vectors lie inside an audit's folder."""
FLUSH_EVERY = 60.0
"""Seconds of encoding that a kill may cost."""

_Held: TypeAlias = tuple[Label, str | None]


@dataclass
class _Filling:
    """One pass over a source, into a store."""

    store: VectorStore
    source: FitSource
    kept: dict[str, _Held]
    """What the store holds, by id: the label and the file."""
    flushed: float = field(default_factory=time.monotonic)
    kind: str | None = None
    classes: set[Label] = field(default_factory=set)
    seen: dict[str, int] = field(default_factory=dict)
    came: set[str] = field(default_factory=set)
    new: int = 0
    changed: int = 0
    gone: int = 0
    begun: bool = False
    """Whether the manifest says that the records are being changed."""

    def known(self, ids: list[str]) -> set[str]:
        """Return those that are there: from before, or because an equal image has come already."""
        return self.kept.keys() & ids

    def put(self, batch: EncodedBatch) -> None:
        """Store a batch; equal images get ids with ``-2``, ``-3``, … behind them."""
        rows = {name: row for row, name in enumerate(batch.ids)}
        images = [
            *zip(batch.indices, batch.ids, batch.labels, batch.sources, strict=True),
            *((each.index, each.id, each.label, each.source) for each in batch.known),
        ]
        images.sort(key=lambda image: image[0])
        if not images:
            return
        places, contents, labels, sources = zip(*images, strict=True)
        self.kind = label_kind(list(labels), self.kind, places=list(places))
        stored = stored_labels(list(labels), self.kind)
        ids = unique_ids(list(contents), self.seen)
        self.came.update(ids)
        wanted = list(zip(stored, sources, strict=True))
        due = [place for place, name in enumerate(ids) if self.kept.get(name) != wanted[place]]
        vectors = self._vectors([contents[place] for place in due], rows, batch.vectors.get(VECTORS))
        if due:
            if not self.begun or not set(stored) <= self.classes:
                self.classes.update(stored)
                self._write_manifest(CHANGING)
                self.begun = True
            self.store.upsert(
                [ids[place] for place in due],
                vectors,
                [stored[place] for place in due],
                [{"source": sources[place]} if sources[place] else {} for place in due],
            )
        known = sum(ids[place] in self.kept for place in due)
        self.changed, self.new = self.changed + known, self.new + len(due) - known
        self.kept.update((ids[place], wanted[place]) for place in due)
        if time.monotonic() - self.flushed > FLUSH_EVERY:
            self.store.flush()
            self.flushed = time.monotonic()

    def _vectors(self, contents: list[str], rows: dict[str, int], given: FloatArray | None) -> FloatArray:
        """Return the vectors of some contents, of which some were encoded now and others are stored."""
        absent = sorted({name for name in contents if name not in rows})
        parts = [] if given is None or not len(given) else [given]
        first = sum(map(len, parts))
        places = dict(rows)
        if absent:
            records = self.store.get(absent)
            places.update({name: row for row, name in enumerate(records.ids.tolist(), first)})
            parts.append(records.vectors)
        if not contents:
            return np.empty((0, self.source.dim), dtype=np.float32)
        return np.ascontiguousarray(np.concatenate(parts)[[places[name] for name in contents]])

    def _write_manifest(self, state: Any) -> None:
        content = self.source.origin.manifest(str(self.kind), self.classes)
        self.store.write_manifest({**content, STATISTICS: dict(state)})

    def finish(self) -> None:
        """Remove what has not come this time, and say that the records are as they should be."""
        gone = sorted(set(self.kept) - self.came)
        if gone:
            self._write_manifest(CHANGING)
            self.store.delete(gone)
        self.gone = len(gone)
        if gone or self.begun or is_changing(self.store.read_manifest()):
            self.classes = {self.kept[name][0] for name in self.came}
            self._write_manifest(new_state())
        self.store.flush()


def gather_images(
    X: Any,
    y: Any,
    encoder: Encoder | None,
    folder: Path | None,
    progress: Progress,
    skipped: list[SkippedImage],
) -> RetrievalClassifier:
    """Encode images, or take vectors, into a store where every one of them has a record.

    Parameters
    ----------
    X, y
        As for `RetrievalClassifier.fit`.
    encoder : Encoder or None
    folder : Path or None
        Where the store is kept, and gone on with: only what is not there is encoded. None: in memory.
    progress : callable
    skipped : list of SkippedImage
        Receives what could not be decoded.

    Returns
    -------
    RetrievalClassifier
        Attached to the store.

    Raises
    ------
    InvalidInputError
        If there are no images, or labels are missing or of several types.
    FingerprintMismatchError
        If another encoder filled the folder's store.
    """
    probe = RetrievalClassifier(encoder)
    source = open_fit_source(probe, X, y, encoder=encoder, metric=Metric.L2, normalize=False, on_error="skip")
    options = {} if folder is None else {"path": str(folder / VECTORS_FOLDER)}
    store = make_store(DEFAULT_STORE, options, Metric.L2)
    try:
        manifest = store.read_manifest()
        before = store.count()
        if manifest and before:
            source.origin.check(manifest)
        kept = dict(_held(store)) if before else {}
        classes = {label for label, _ in kept.values()}
        filling = _Filling(store, source, kept, classes=classes)
        tell = image_counter(progress, source.total, source.skipped)
        for batch in source.open(filling.known):
            filling.put(batch)
            tell(len(batch) + len(batch.known))
        skipped += source.skipped
        if not filling.came:
            raise InvalidInputError(none_left("to audit", source.skipped))
        filling.finish()
        if before and filling.gone + filling.changed:
            warn_caller(
                f"the images are not those of the run before: {filling.gone} are gone, {filling.changed} "
                f"have another label or file, {filling.new} are new; the audit is of what is there now"
            )
        return RetrievalClassifier.from_store(store, encoder)
    except BaseException:
        store.close()
        raise


def _held(store: VectorStore) -> Iterator[tuple[str, _Held]]:
    if not isinstance(store, ScannableStore):
        return
    for listing in store.scan():
        records = store.get(listing.ids.tolist())
        sources = [each.get("source") for each in records.metadata]
        yield from zip(records.ids.tolist(), zip(records.labels.tolist(), sources, strict=True), strict=True)
