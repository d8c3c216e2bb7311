"""One question to a cascade: what each exit says of images, and who leaves where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.progress import Progress
from clipretrieval._util.timing import Timing
from clipretrieval.cascade.exit_policy import ExitPolicy
from clipretrieval.classifier import RetrievalClassifier
from clipretrieval.encoding.base import EncodedBatch
from clipretrieval.encoding.staged_encoder import StagedEncoder
from clipretrieval.encoding.streams import VECTORS
from clipretrieval.heads.decision import Decision
from clipretrieval.heads.fitted_head import DecisionRule
from clipretrieval.images.stream import SkippedImage
from clipretrieval.retrieval.classes import ClassNumbers
from clipretrieval.retrieval.inputs import none_left, ready
from clipretrieval.retrieval.labelled_index import LabelledIndex
from clipretrieval.retrieval.retriever import NoImagesError
from clipretrieval.types import FloatArray, Neighbors, no_neighbors

__all__ = ["CascadePass", "ExitAnswer"]


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
        Whether the exit before gave the same answer.
    distance : float
        To the nearest neighbor; NaN where none was looked up.
    lost : float
        The accuracy that leaving here is expected to lose, in [-1, 1]; NaN at the last exit.
    probabilities : ndarray of float64, shape (n_classes of the exit,), or None
        Where they were asked for.
    """

    place: int
    answer: Any
    share: float
    margin: float
    agrees: bool
    distance: float
    lost: float
    probabilities: npt.NDArray[np.float64] | None = None


class _Exit:
    """An exit's index and head, fixed for one question."""

    def __init__(self, classifier: RetrievalClassifier, k: int | None) -> None:
        self.index: LabelledIndex = classifier.retriever_.index
        self.head: DecisionRule = classifier.head_
        self.numbers: ClassNumbers = self.index.number_classes()
        self.k = self.head.k if k is None else max(k, self.head.shown)
        count = self.index.count_for(self.k)
        self.width = min(self.k, count)

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
        near = self.index.look_up(vectors, self.width) if self.width else no_neighbors(len(vectors))
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
        Whether all images go to the last exit, and the answers of all exits are kept.
    probabilities : bool
        Whether the probabilities of all classes are wanted of each image.

    Attributes
    ----------
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
    ) -> None:
        self._encoder, self._stages, self._policy = encoder, list(stages), policy
        self._complete, self._wants_probabilities = complete, probabilities
        self._exits = [_Exit(classifier, None) for classifier in classifiers]
        self._said: dict[int, list[ExitAnswer]] = {}
        self._on_error = "raise"
        self.skipped: list[SkippedImage] = []
        self.timing = Timing()

    @property
    def numbers(self) -> list[ClassNumbers]:
        """Each exit's classes."""
        return [each.numbers for each in self._exits]

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
            Of each image, the answer of the exit where it left; of all exits where that was asked for.
        """
        self._on_error = on_error
        stream = self._encoder.stream_exits(
            X, y, stages=self._stages, stay_on=self._stay_on, on_error=on_error, skipped=self.skipped
        )
        done, empty = 0, True
        for batch in stream:
            for part, seconds in batch.seconds.items():
                self.timing.add(part, seconds, len(batch))
            done += len(batch)
            if tell is not None:
                tell(done + len(self.skipped), total)
            kept = [row for row, index in enumerate(batch.indices) if index in self._said]
            if len(kept) < len(batch):  # vectors that nothing can be done with
                batch = EncodedBatch(
                    [batch.ids[row] for row in kept],
                    {},
                    [batch.labels[row] for row in kept],
                    [batch.sources[row] for row in kept],
                    [batch.indices[row] for row in kept],
                )
            if len(batch):
                empty = False
                yield batch, [self._said.pop(index) for index in batch.indices]
        if empty:
            raise NoImagesError(none_left("to classify", self.skipped))
        self.skipped.sort(key=lambda image: image.index)

    def _stay_on(self, place: int, batch: EncodedBatch) -> npt.NDArray[np.bool_]:
        """Answer images at an exit, and tell which go on."""
        with self.timing.measure("search", len(batch) if place == 0 else 0):
            at = self._exits[place]
            stay = np.zeros(len(batch), dtype=bool)
            usable = at.prepare(batch, self._stages[place], self._on_error, self.skipped)
            lost_rows = set(batch.indices) - set(() if usable is None else usable.indices)
            for index in lost_rows:
                self._said.pop(index, None)
            if usable is None:
                return stay
            near, decision = at.decide(usable.vectors[VECTORS])
            shares, margins = decision.share_and_margin
            labels = at.numbers.labels(decision.answers).tolist()
            before = [self._said.get(index) for index in usable.indices]
            agrees = np.array(
                [
                    said is not None and said[-1].answer == label
                    for said, label in zip(before, labels, strict=True)
                ],
                dtype=bool,
            )
            distances = (
                near.distances[:, 0].astype(np.float64)
                if near.distances.shape[1]
                else np.full(len(usable), np.nan)
            )
            last = place == len(self._exits) - 1
            lost = (
                np.full(len(usable), np.nan) if last else self._policy.lost(place, margins, agrees, distances)
            )
            leaves = self._policy.leaves(place, margins, agrees, distances)
            if self._complete and not last:
                leaves = np.zeros(len(usable), dtype=bool)
            whole = self._probabilities(decision, len(usable)) if self._wants_probabilities else None
            rows = {index: row for row, index in enumerate(batch.indices)}
            for row, index in enumerate(usable.indices):
                said = ExitAnswer(
                    place,
                    labels[row],
                    float(shares[row]),
                    float(margins[row]),
                    bool(agrees[row]),
                    float(distances[row]),
                    float(lost[row]),
                    whole[row] if whole is not None and leaves[row] else None,
                )
                kept = self._said.setdefault(index, [])
                if not self._complete:
                    kept.clear()
                kept.append(said)
                stay[rows[index]] = not leaves[row]
            return stay

    def _probabilities(self, decision: Decision, n: int) -> npt.NDArray[np.float64]:
        """Return the share of every class by its number, shape (n, n_classes)."""
        rows, codes, shares = decision.cells
        found = np.zeros((n, int(codes.max(initial=-1)) + 1))
        found[rows, codes] = shares
        return found
