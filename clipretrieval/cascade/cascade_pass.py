"""One question to a cascade: what each exit says of images, and who leaves where."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.labels import class_array, stored_labels
from clipretrieval._util.progress import Progress
from clipretrieval._util.timing import Timing
from clipretrieval.cascade.exit_policy import ExitPolicy
from clipretrieval.classifier import RetrievalClassifier
from clipretrieval.encoding.base import EncodedBatch, encoding_to, select_images
from clipretrieval.encoding.staged_encoder import StagedEncoder
from clipretrieval.encoding.streams import VECTORS
from clipretrieval.heads.decision import Decision
from clipretrieval.heads.fitted_head import DecisionRule
from clipretrieval.images.stream import SkippedImage
from clipretrieval.retrieval.classes import ClassNumbers
from clipretrieval.retrieval.inputs import none_left, ready
from clipretrieval.retrieval.labelled_index import LabelledIndex
from clipretrieval.retrieval.retriever import NoImagesError
from clipretrieval.types import AnyArray, FloatArray, Neighbors, no_neighbors

__all__ = ["CascadePass", "ExitAnswer", "PassedExit"]


@dataclass(frozen=True, eq=False)
class ExitAnswer:
    """What one exit said of one image.

    Attributes
    ----------
    place : int
        The exit's number.
    answer : object
        The label, as a plain Python value of the type that was fitted.
    share, margin : float
        The answer's probability, and how far it is ahead of the second, in [0, 1].
    agrees : bool
        Whether the exit before gave the same answer; False at the first.
    distance : float
        To the nearest neighbor; NaN where none was looked up.
    risk : float
        How probable it is that only the last exit is right, in [0, 1]; NaN at the last exit.
    probabilities : ndarray of float64, shape (n_classes of the exit,), or None
        Where they were asked for, at the exit where the image left.
    query : EncodedBatch or None
        The image alone with the vector that was searched, where it was asked for, at the exit where it left.
    near : Neighbors or None
        What was found there, of one row.
    """

    place: int
    answer: Any
    share: float
    margin: float
    agrees: bool
    distance: float
    risk: float
    probabilities: npt.NDArray[np.float64] | None = None
    query: EncodedBatch | None = None
    near: Neighbors | None = None

    def without_query(self) -> ExitAnswer:
        """Return the same without vector and neighbors."""
        return self if self.query is None else replace(self, query=None, near=None)


class PassedExit:
    """An exit's index and head, fixed for one question, and what was done there.

    Attributes
    ----------
    index : LabelledIndex
    head : DecisionRule
    numbers : ClassNumbers
        The exit's classes.
    seconds : float
        Of work on the way from the exit before, and of searching and deciding here.
    images : int
        That came here.
    """

    def __init__(self, classifier: RetrievalClassifier, shown: bool = False) -> None:
        retriever, head = classifier._answering()
        self.index: LabelledIndex = retriever.index
        self.head: DecisionRule = head
        self.numbers: ClassNumbers = self.index.number_classes()
        self.seconds, self.images = 0.0, 0
        wanted = self.head.shown if shown else self.head.k
        self._width = min(wanted, self.index.count_for(wanted))

    def prepare(
        self, batch: EncodedBatch, stage: str, on_error: str, skipped: list[SkippedImage]
    ) -> EncodedBatch | None:
        """Return the vectors as they are searched, without images of which none can be."""
        given = EncodedBatch(
            batch.ids, {VECTORS: batch.vectors[stage]}, batch.labels, batch.sources, batch.indices
        )
        index = self.index
        found = ready(
            iter((given,)),
            index.encoder,
            index.metric,
            index.normalize,
            on_error,
            skipped,
            stored=False,
            transform=index.transform,
        )
        return next(iter(list(found)), None)

    def decide(self, vectors: FloatArray) -> tuple[Neighbors, Decision]:
        """Look vectors up, if the head reads neighbors, and answer them."""
        near = self.index.look_up(vectors, self._width) if self._width else no_neighbors(len(vectors))
        if self._width:
            self.index.check_manifest()
        return near, self.head.decide(vectors, near, self.numbers)


class CascadePass:
    """Answers images exit by exit; made for one question, and used once.

    Parameters
    ----------
    encoder : StagedEncoder
    stages : sequence of str
    classifiers : sequence of RetrievalClassifier
        One for each stage.
    policy : ExitPolicy
        Who leaves.
    complete : bool
        Whether all images go to the last exit.
    probabilities : bool
        Whether the probabilities of all classes are wanted of each image.
    keep : bool
        Whether each image's vector and neighbors are wanted.
    shown : bool
        Whether neighbors are looked up also where the head reads none.

    Attributes
    ----------
    exits : list of PassedExit
    policy : ExitPolicy
    skipped : list of SkippedImage
    timing : Timing
        Of ``"decode"``, ``"encode"`` and ``"search"``.
    """

    def __init__(
        self,
        encoder: StagedEncoder,
        stages: Sequence[str],
        classifiers: Sequence[RetrievalClassifier],
        policy: ExitPolicy,
        *,
        complete: bool = False,
        probabilities: bool = False,
        keep: bool = False,
        shown: bool = False,
    ) -> None:
        self._encoder, self._stages, self.policy = encoder, list(stages), policy
        self._complete, self._wants_probabilities, self._keep = complete, probabilities, keep
        self.exits = [PassedExit(classifier, shown) for classifier in classifiers]
        self._said: dict[int, list[ExitAnswer]] = {}
        self._on_error = "raise"
        self.skipped: list[SkippedImage] = []
        self.timing = Timing()

    @property
    def classes(self) -> AnyArray:
        """All classes that may have been answered, sorted, of the type that was fitted."""
        kind = self.exits[-1].index.classes.kind
        found = [each.numbers.labels(np.arange(len(each.numbers))).tolist() for each in self.exits]
        return class_array(stored_labels({label for each in found for label in each}, kind), kind)

    def answers(
        self,
        X: Any,
        y: Any = None,
        *,
        on_error: str = "raise",
        tell: Progress | None = None,
        total: int | None = None,
    ) -> Iterator[tuple[EncodedBatch, list[list[ExitAnswer]]]]:
        """Yield images in their order, without vectors, with what was said of each.

        Yields
        ------
        batch : EncodedBatch
        said : list of list of ExitAnswer, length n
            Of each image, the answers of all exits that it came to; the last is the one where it left.
        """
        self._on_error = on_error
        stream = self._encoder.stream_exits(
            X, y, stages=self._stages, stay_on=self._stay_on, on_error=on_error, skipped=self.skipped
        )
        done, empty = 0, True
        for batch in stream:
            self._take_times(batch)
            kept = [row for row, index in enumerate(batch.indices) if index in self._said]
            done += len(kept)
            if tell is not None:
                tell(done + len(self.skipped), total)
            if len(kept) < len(batch):  # vectors that nothing can be done with
                batch = select_images(batch, kept)
            if len(batch):
                empty = False
                yield batch, [self._said.pop(index) for index in batch.indices]
        for each in self.exits:
            each.index.check_manifest()  # afterwards: it may have changed meanwhile
        if empty:
            raise NoImagesError(none_left("to classify", self.skipped))
        self.skipped.sort(key=lambda image: image.index)

    def _take_times(self, batch: EncodedBatch) -> None:
        """Count what a batch took on its way."""
        for part, seconds in batch.seconds.items():
            for place, each in enumerate(self.exits):
                if part == encoding_to(place):
                    each.seconds += seconds
                    self.timing.add("encode", seconds, len(batch) if place == 0 else 0)
        if "decode" in batch.seconds:
            self.timing.add("decode", batch.seconds["decode"], len(batch))

    def _stay_on(self, place: int, batch: EncodedBatch) -> npt.NDArray[np.bool_]:
        """Answer images at an exit, and tell which go on."""
        started, at = time.perf_counter(), self.exits[place]
        stay = np.zeros(len(batch), dtype=bool)
        usable = at.prepare(batch, self._stages[place], self._on_error, self.skipped)
        for index in set(batch.indices) - set(() if usable is None else usable.indices):
            self._said.pop(index, None)
        if usable is not None:
            rows = {index: row for row, index in enumerate(batch.indices)}
            stay[[rows[index] for index in usable.indices]] = ~self._answer(place, usable)
        seconds = time.perf_counter() - started
        at.seconds += seconds
        at.images += len(batch)
        self.timing.add("search", seconds, len(batch) if place == 0 else 0)
        return stay

    def _answer(self, place: int, batch: EncodedBatch) -> npt.NDArray[np.bool_]:
        """Note what an exit says of images, and tell which leave."""
        at, n = self.exits[place], len(batch)
        near, decision = at.decide(batch.vectors[VECTORS])
        shares, margins = decision.share_and_margin
        labels = at.numbers.labels(decision.answers).tolist()
        before = [self._said.setdefault(index, []) for index in batch.indices]
        agrees = np.array(
            [bool(said) and said[-1].answer == label for said, label in zip(before, labels, strict=True)]
        )
        looked_up = near.distances.shape[1] > 0
        distances = near.distances[:, 0].astype(np.float64) if looked_up else np.full(n, np.nan)
        read = distances if at.head.k else np.full(n, np.nan)  # what is only shown decides nothing
        last = place == len(self.exits) - 1
        risks = np.full(n, np.nan) if last else self.policy.risk(place, margins, agrees, read)
        leaves = self.policy.leaves(place, margins, agrees, read)
        if self._complete and not last:
            leaves[:] = False
        whole = self._probabilities(decision, n) if self._wants_probabilities else None
        for row, said in enumerate(before):
            kept = self._keep and bool(leaves[row])
            said.append(
                ExitAnswer(
                    place,
                    labels[row],
                    float(shares[row]),
                    float(margins[row]),
                    bool(agrees[row]),
                    float(distances[row]),
                    float(risks[row]),
                    whole[row].copy() if whole is not None and leaves[row] else None,
                    select_images(batch, [row]) if kept else None,
                    _row_of(near, row) if kept else None,
                )
            )
        return leaves

    def _probabilities(self, decision: Decision, n: int) -> npt.NDArray[np.float64]:
        """Return the share of every class by its number, shape (n, n_classes)."""
        rows, codes, shares = decision.cells
        found = np.zeros((n, int(codes.max(initial=-1)) + 1))
        found[rows, codes] = shares
        return found


def _row_of(near: Neighbors, row: int) -> Neighbors:
    return Neighbors(near.ids[row : row + 1], near.distances[row : row + 1], near.labels[row : row + 1])
