"""Several indexes, each of its own stage, filled by one pass over the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from clipretrieval._util.checks import check_strings, shown
from clipretrieval._util.progress import Progress
from clipretrieval._util.timing import Timing
from clipretrieval.comparison.calibration_part import CalibrationPart
from clipretrieval.encoding.base import StreamingEncoder
from clipretrieval.encoding.staged_encoder import StagedEncoder, stopped_at
from clipretrieval.errors import InvalidInputError
from clipretrieval.heads.index_statistics import IndexStatistics
from clipretrieval.heads.statistics import Moments
from clipretrieval.images.sources import count_hint
from clipretrieval.images.stream import SkippedImage
from clipretrieval.retrieval.fill import known_to_all, store_images
from clipretrieval.retrieval.index_writer import Existing, IndexWriter, write_index
from clipretrieval.retrieval.labelled_index import LabelledIndex
from clipretrieval.retrieval.manifest import Origin, plain_fingerprint
from clipretrieval.retrieval.parameters import check_store
from clipretrieval.retrieval.unusable import direction_needed, usable_batches
from clipretrieval.stores.base import VectorStore
from clipretrieval.stores.registry import create_store
from clipretrieval.types import Metric

__all__ = [
    "NO_IMAGES",
    "StageIndex",
    "StoreMakers",
    "at_stage",
    "fill_indexes",
    "needs",
    "open_indexes",
    "store_makers",
]

StoreMakers: TypeAlias = Mapping[str, Callable[[str], VectorStore]]

NO_IMAGES = "there are no images to learn from; pass at least one that can be used"


@dataclass(eq=False)
class StageIndex:
    """One stage's vectors in one store.

    Attributes
    ----------
    stage : str
    name : str
        The store's.
    encoder : StreamingEncoder
        At the stage.
    store : VectorStore
    writer : IndexWriter
    statistics : IndexStatistics or None
        Of what the store holds, where a head reads any.
    """

    stage: str
    name: str
    encoder: StreamingEncoder
    store: VectorStore
    writer: IndexWriter
    statistics: IndexStatistics | None = None

    def open(self) -> LabelledIndex:
        """Return what was filled, ready to be asked."""
        metric = Metric.parse(self.store.metric)
        index = LabelledIndex.open(self.store, self.encoder, metric, normalize=False)
        index.follower = self.statistics
        return index


def at_stage(encoder: Any, stage: str) -> StreamingEncoder:
    """Return an encoder that stops at a stage: the same one, if it is the only stage that it has.

    Raises
    ------
    InvalidInputError
        If it has no such stage, or is none that can be compared.
    """
    if isinstance(encoder, StagedEncoder):
        return stopped_at(encoder, stage)
    own = getattr(encoder, "stage", None)
    if not isinstance(own, str) or not callable(getattr(encoder, "stream", None)):
        raise InvalidInputError(
            "encoder must be a StagedEncoder, whose stages are compared, or one with a single stage, as an "
            f"OnnxEncoder or FunctionEncoder; got {shown(encoder)}. Wrap another one in a FunctionEncoder: "
            "FunctionEncoder(encoder.encode, name=…, version=…)"
        )
    if stage != own:
        raise InvalidInputError(f"{shown(encoder)} has one stage, {own!r}; got {stage!r}")
    found: StreamingEncoder = encoder
    return found


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
    encoder: StreamingEncoder,
    stages: Sequence[str],
    makers: StoreMakers,
    metric: Metric,
    resume: bool,
    named: bool = False,
    moments: Sequence[Moments] = (),
) -> Iterator[list[StageIndex]]:
    """Open an index for each stage and store, and close them all behind the block.

    `named` is that of `write_index`; `moments` are the class statistics to gather while they are filled.
    """
    indexes: list[StageIndex] = []
    with ExitStack() as opened:
        for stage in stages:
            view = at_stage(encoder, stage)
            fingerprint = plain_fingerprint(view.fingerprint)
            for name, make in makers.items():
                store = make(stage)
                check_store(store)
                opened.callback(store.close)
                if Metric.parse(store.metric) != metric:
                    raise InvalidInputError(
                        f"the store {name!r} has the metric {str(store.metric)!r}; pass metric= to compare"
                    )
                existing: Existing = "resume" if resume else "refuse"
                statistics = IndexStatistics() if moments else None
                if statistics is not None:
                    statistics.want(moments)
                writing = write_index(
                    store,
                    Origin(fingerprint, metric),
                    existing,
                    vectors=stage,
                    named=named,
                    follower=statistics,
                )
                writer = opened.enter_context(writing)
                indexes.append(StageIndex(stage, name, view, store, writer, statistics))
        yield indexes


def fill_indexes(
    encoder: StreamingEncoder,
    indexes: list[StageIndex],
    images: Any,
    labels: Any,
    *,
    on_error: str,
    progress: Progress,
    part: CalibrationPart | None = None,
) -> tuple[Timing, list[SkippedImage]]:
    """Encode labelled images once, and put each stage's vectors into its indexes.

    What was encoded before a failure is stored and flushed. Images that every index holds already are
    decoded only, and those of a `part` are kept in its spool alone.

    Returns
    -------
    timing : Timing
        Of ``"decode"``, ``"encode"``, ``"store"`` and ``"flush"``.
    skipped : list of SkippedImage

    Raises
    ------
    InvalidInputError
        If there are no images, labels are missing or of several types, or an index holds vectors of other
        images than these.
    """
    timing, skipped = Timing(), list[SkippedImage]()
    writers = [index.writer for index in indexes]
    batches = usable_batches(
        encoder.stream(
            images,
            labels,
            stages=tuple(dict.fromkeys(index.stage for index in indexes)),
            on_error=on_error,
            skipped=skipped,
            known=known_to_all(writers),
        ),
        needs(indexes),
        encoder=type(encoder).__name__,
        on_error=on_error,
        skipped=skipped,
    )
    tell = progress
    if part is not None:
        held, batches = part.spool, part.hold_out(batches)

        def tell(done: int, total: int | None) -> None:
            progress(done + len(held), total)

    store_images(
        writers,
        batches,
        total=count_hint(images),
        skipped=skipped,
        timing=timing,
        progress=tell,
        chunk=1,  # each batch as it comes: it is large, having the vectors of all stages
    )
    if not writers[0].count:
        raise InvalidInputError(NO_IMAGES)
    for index in indexes:
        _settle(index)
    return timing, skipped


def needs(indexes: list[StageIndex]) -> dict[str, str]:
    """Return what needs vectors with a direction, by their stage, as `usable_batches` takes it."""
    found = {index.stage: direction_needed(index.writer.origin.metric) for index in indexes}
    return {stage: f"{need} at the stage {stage!r}" for stage, need in found.items() if need}


def _settle(index: StageIndex) -> None:
    """Make certain that an index, which may have been begun before, holds what was given and no more.

    Raises
    ------
    InvalidInputError
        If it holds vectors of other images, which would answer too.
    """
    writer = index.writer
    held, came = index.store.count(), len(writer.given)
    if held > came:
        raise InvalidInputError(
            f"the store {index.name!r} holds {held} vectors of the stage {index.stage!r}, {held - came} more "
            f"than the {came} images to learn from: images were changed or taken away since it was "
            "begun, and their vectors would still answer. Begin anew with an empty store, or with another "
            "folder for the results"
        )
    writer.keep(remove={*writer.listed} - writer.classes)  # those whose images were relabelled
    index.store.flush()
