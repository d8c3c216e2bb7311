"""Put encoded, labelled images into a store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipretrieval._inputs import Source, gather
from clipretrieval._labels import label_kind, stored_labels
from clipretrieval._manifest import check_manifest, make_manifest
from clipretrieval._timing import Progress, Timing
from clipretrieval.errors import InvalidInputError
from clipretrieval.images import unique_ids
from clipretrieval.stores.base import VectorStore
from clipretrieval.types import Label

__all__ = ["Filled", "check_fillable", "fill"]

CHUNK = 1024
"""Vectors that go into the store together."""


@dataclass(frozen=True)
class Filled:
    """What went into the store.

    Attributes
    ----------
    count : int
    dim : int
    label_kind : {"bool", "int", "float", "str"}
    classes : set of int or of str
        As stored.
    """

    count: int
    dim: int
    label_kind: str
    classes: set[Label]


def check_fillable(store: VectorStore, fingerprint: Mapping[str, Any]) -> None:
    """Refuse to mix a new fit with what a store already holds.

    Raises
    ------
    FingerprintMismatchError
        If a different encoder or metric filled it.
    InvalidInputError
        If it holds anything else.
    """
    count = store.count()
    if count == 0:
        return
    check_manifest(store.read_manifest(), fingerprint, store.metric)
    raise InvalidInputError(
        f"the store already holds {count} vectors, and fit needs an empty one: pass another store, or "
        "another path for it. To use what it holds, save the classifier that filled it and load that"
    )


def fill(store: VectorStore, source: Source, timing: Timing, progress: Progress | None = None) -> Filled:
    """Read a source to its end into a store, and flush it.

    Parameters
    ----------
    store : VectorStore
        Empty.
    source : Source
    timing : Timing
        Counts the seconds of ``"decode"``, ``"encode"`` and ``"store"``.
    progress : callable, optional

    Raises
    ------
    InvalidInputError
        If the source yields nothing, or labels that are missing or of mixed types.
    """
    kind: str | None = None
    classes: set[Label] = set()
    seen: dict[str, int] = {}
    done, dim = 0, 0
    arrived = 0

    def tell(images: int) -> None:
        nonlocal arrived
        arrived += images
        if progress is not None:
            progress(arrived + len(source.skipped), source.total)

    tell(0)
    for batch, vectors in gather(source.batches, CHUNK, timing, tell):
        kind = label_kind(batch.labels, kind)
        labels = stored_labels(batch.labels, kind)
        dim = vectors.shape[1]
        with timing.measure("store", len(batch)):
            if not done:
                # The identity goes first: a fit that is cut short must not leave anonymous vectors.
                store.write_manifest(make_manifest(source.fingerprint, source.metric, kind, set(labels)))
            metadata = [{"source": _readable(path)} if path else {} for path in batch.sources]
            store.upsert(unique_ids(batch.ids, seen), vectors, labels, metadata)
        classes.update(labels)
        done += len(batch)
    if kind is None:
        raise InvalidInputError(
            "there are no images to fit on; pass at least one"
            + (f" that can be decoded ({len(source.skipped)} were skipped)" if source.skipped else "")
        )
    with timing.measure("store", 0):
        store.write_manifest(make_manifest(source.fingerprint, source.metric, kind, classes))
        store.flush()
    return Filled(done, dim, kind, classes)


def _readable(path: str) -> str:
    """Write the bytes of a path that is not valid Unicode as escapes, so that every store can keep it."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")
