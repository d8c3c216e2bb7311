"""Several indexes, each of its own stage, filled by one pass over the pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from clipretrieval._util.checks import check_strings
from clipretrieval._util.progress import Progress
from clipretrieval._util.timing import Timing
from clipretrieval.classifier import RetrievalClassifier
from clipretrieval.encoding.staged import StagedEncoder
from clipretrieval.encoding.views import stopped_at
from clipretrieval.errors import InvalidInputError
from clipretrieval.heads.votes import Weighting
from clipretrieval.images.sources import count_hint
from clipretrieval.images.stream import SkippedImage
from clipretrieval.retrieval.exclusive import sole_writer
from clipretrieval.retrieval.inputs import Source
from clipretrieval.retrieval.manifest import plain_fingerprint
from clipretrieval.retrieval.parameters import check_store
from clipretrieval.retrieval.putter import Putter, open_putter
from clipretrieval.retrieval.unusable import direction_needed, usable_batches
from clipretrieval.stores import create_store
from clipretrieval.stores.base import VectorStore
from clipretrieval.types import FloatArray, Metric

__all__ = ["NO_IMAGES", "Index", "StoreMakers", "fill_indexes", "needs", "open_indexes", "store_makers"]

StoreMakers: TypeAlias = Mapping[str, Callable[[str], VectorStore]]

NO_IMAGES = "there are no images to learn from; pass at least one that can be used"
_PAUSE = 15.0
"""Seconds between two flushes, at least, …"""
_SHARE = 20
"""… and so many times what the last one took."""


@dataclass(eq=False)
class Index:
    """One stage's vectors in one store.

    Attributes
    ----------
    stage : str
    name : str
        The store's.
    encoder : StagedEncoder
        At the stage.
    store : VectorStore
    putter : Putter
    """

    stage: str
    name: str
    encoder: StagedEncoder
    store: VectorStore
    putter: Putter

    def classifier(self, k: int, weights: Weighting) -> RetrievalClassifier:
        """Make a classifier that asks this index."""
        made = RetrievalClassifier.from_store(self.store, self.encoder, k=k, weights=weights)
        made.store = self.name  # a report says which store it was, not how it was opened
        return made


def store_makers(stores: Sequence[str] | StoreMakers, metric: Metric) -> StoreMakers:
    """Return what makes a store for a stage, by the store's name.

    Raises
    ------
    InvalidInputError
        If there is none, or one is neither a name nor a callable.
    """
    if isinstance(stores, str):
        stores = (stores,)
    if not isinstance(stores, Mapping):
        stores = {name: _maker(name, metric) for name in check_strings(stores, "stores")}
    wrong = [name for name, make in stores.items() if not callable(make)]
    if wrong or not stores:
        raise InvalidInputError(
            "stores must be names such as ('faiss',), at least one, or a mapping of names to callables that "
            f"make a store for a stage; got {wrong or stores!r:.100}"
        )
    return stores


def _maker(name: Any, metric: Metric) -> Callable[[str], VectorStore]:
    if not isinstance(name, str):
        raise InvalidInputError(
            f"{name!r:.100} is not a store's name; one store cannot hold several stages, so pass a mapping "
            "of a name to a callable that makes one for a stage"
        )
    return lambda stage: create_store(name, metric=metric)


@contextmanager
def open_indexes(
    encoder: StagedEncoder,
    stages: Sequence[str],
    makers: StoreMakers,
    metric: Metric,
    resume: bool,
    named: bool = False,
) -> Iterator[list[Index]]:
    """Open an index for each stage and store, and close them all behind the block.

    `named` is that of `Source`.
    """
    indexes: list[Index] = []
    with ExitStack() as opened:
        for stage in stages:
            view = stopped_at(encoder, stage)
            fingerprint = plain_fingerprint(view.fingerprint)
            for name, make in makers.items():
                store = make(stage)
                check_store(store)
                opened.callback(store.close)
                if Metric.parse(store.metric) != metric:
                    raise InvalidInputError(
                        f"the store {name!r} has the metric {str(store.metric)!r}; pass metric= to compare"
                    )
                opened.enter_context(sole_writer(store))
                source = Source(lambda known: iter(()), fingerprint, metric, False, None, named=named)
                putter = open_putter(store, source, "resume" if resume else "refuse")
                indexes.append(Index(stage, name, view, store, putter))
        yield indexes


def fill_indexes(
    encoder: StagedEncoder,
    indexes: list[Index],
    images: Any,
    labels: Any,
    *,
    on_error: str,
    progress: Progress | None,
) -> tuple[Timing, list[SkippedImage]]:
    """Encode labelled pictures once, and put each stage's vectors into its indexes.

    What was encoded before a failure is stored and flushed. Pictures that every index holds already are
    decoded only.

    Returns
    -------
    timing : Timing
        Of ``"decode"``, ``"encode"``, ``"store"`` and ``"flush"``.
    skipped : list of SkippedImage

    Raises
    ------
    InvalidInputError
        If there are no pictures, labels are missing or of several types, or an index holds vectors of other
        pictures than these.
    """
    timing, skipped, done = Timing(), list[SkippedImage](), 0
    putters = [index.putter for index in indexes]
    total = count_hint(images)
    batches = usable_batches(
        encoder.stream(
            images,
            labels,
            stages=tuple(dict.fromkeys(index.stage for index in indexes)),
            on_error=on_error,
            skipped=skipped,
            known=None if any(putter.fresh for putter in putters) else _known_to_all(putters),
        ),
        needs(indexes),
        encoder=type(encoder).__name__,
        on_error=on_error,
        skipped=skipped,
    )
    flushed, took = time.monotonic(), 0.0
    try:
        for batch in batches:
            for part, seconds in batch.seconds.items():
                timing.add(part, seconds, len(batch))
            came = len(batch) + len(batch.known)
            with timing.measure("store", len(batch)):
                for index in indexes if came else ():
                    index.putter.put(batch, batch.vectors.get(index.stage, _no_vectors(index)))
            done += came
            if progress is not None:
                progress(done + len(skipped), total)
            if time.monotonic() - flushed >= max(_PAUSE, _SHARE * took):
                took = _flush(indexes, timing)
                flushed = time.monotonic()
        if not done:
            raise InvalidInputError(NO_IMAGES)
        for index in indexes:
            _settle(index)
    finally:
        _flush(indexes, timing)
    return timing, skipped


def needs(indexes: list[Index]) -> dict[str, str]:
    """Return what needs vectors with a direction, by their stage, as `usable_batches` takes it."""
    found = {index.stage: direction_needed(index.putter.source.metric) for index in indexes}
    return {stage: f"{need} at the stage {stage!r}" for stage, need in found.items() if need}


def _settle(index: Index) -> None:
    """Make certain that an index, which may have been begun before, holds what was given and no more.

    Raises
    ------
    InvalidInputError
        If it holds vectors of other pictures, which would answer too.
    """
    putter = index.putter
    held, came = index.store.count(), len(putter.given)
    if held > came:
        raise InvalidInputError(
            f"the store {index.name!r} holds {held} vectors of the stage {index.stage!r}, {held - came} more "
            f"than the {came} pictures to learn from: pictures were changed or taken away since it was "
            "begun, and their vectors would still answer. Begin anew with an empty store, or with another "
            "folder for the results"
        )
    putter.write_manifest(remove=putter.listed - putter.classes)  # those whose pictures were relabelled


def _known_to_all(putters: list[Putter]) -> Callable[[list[str]], set[str]]:
    return lambda ids: set.intersection(*(putter.known(ids) for putter in putters))


def _no_vectors(index: Index) -> FloatArray:
    return np.empty((0, index.encoder.dim), dtype=np.float32)


def _flush(indexes: list[Index], timing: Timing) -> float:
    started = time.monotonic()
    with timing.measure("flush", 0):
        for index in indexes:
            index.store.flush()
    return time.monotonic() - started
