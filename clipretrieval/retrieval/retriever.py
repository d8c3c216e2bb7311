"""Ask an index about images: encode them, and look each one up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clipretrieval._util.progress import Progress, image_counter, open_progress
from clipretrieval._util.timing import Timing
from clipretrieval.encoding.base import EncodedBatch
from clipretrieval.encoding.streams import VECTORS, gather, image_batches, vector_batches
from clipretrieval.errors import InvalidInputError
from clipretrieval.images.sources import count_hint
from clipretrieval.images.stream import SkippedImage, check_on_error
from clipretrieval.images.tars import without_labels
from clipretrieval.retrieval.answer_places import AnswerPlaces
from clipretrieval.retrieval.classes import ClassNumbers
from clipretrieval.retrieval.inputs import none_left, read_vectors, ready, vector_labels
from clipretrieval.retrieval.labelled_index import LabelledIndex
from clipretrieval.types import FloatArray, Neighbors, no_neighbors

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

__all__ = ["NOT_FITTED", "NoImagesError", "Retriever"]

NOT_FITTED = "this RetrievalClassifier is not fitted yet; call fit with labeled images, or load a saved one"

QUERIES = 1024
"""Queries that are searched together: enough for a store to work in bulk, few enough to hold."""


class NoImagesError(InvalidInputError):
    """There was nothing to classify, or all of it was skipped."""


@dataclass(frozen=True, eq=False)
class Retriever:
    """What turns images into neighbors: the encoder of an index, and the index.

    Attributes
    ----------
    index : LabelledIndex
    estimator : BaseEstimator, optional
        Whose number and names of features vectors must have, where there is no encoder.
    """

    index: LabelledIndex
    estimator: BaseEstimator | None = None

    def count_hint(self, X: Any) -> int | None:
        """Return how many images are asked about, where that is known without reading them."""
        if self.index.encoder is not None:
            return count_hint(X)
        shape = getattr(X, "shape", ())  # a sparse matrix has no length
        return int(shape[0]) if shape else len(X) if hasattr(X, "__len__") else None

    def answer(
        self,
        X: Any,
        k: int,
        places: AnswerPlaces,
        *,
        numbers: ClassNumbers | None = None,
        pad: bool = False,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
    ) -> Iterator[tuple[FloatArray, Neighbors]]:
        """Yield the vectors of each batch and what is near them; see `answered`."""
        for batch, near in self.answered(
            X, k, places, numbers=numbers, pad=pad, on_error=on_error, progress=progress
        ):
            yield batch.vectors[VECTORS], near

    def answered(
        self,
        X: Any,
        k: int,
        places: AnswerPlaces,
        *,
        numbers: ClassNumbers | None = None,
        pad: bool = False,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
    ) -> Iterator[tuple[EncodedBatch, Neighbors]]:
        """Yield each batch and what is near its images.

        Their places are noted; what was skipped is warned of.
        """
        with open_progress(progress, "searching") as shown:
            tell = image_counter(shown, self.count_hint(X), places.skipped)
            for batch, near in self.search(
                without_labels(X),
                k,
                numbers=numbers,
                pad=pad,
                on_error=on_error,
                skipped=places.skipped,
                tell=tell,
            ):
                places.places += batch.indices
                yield batch, near
        places.warn()

    def neighbors(self, X: Any, k: int, *, on_error: str, progress: Progress | bool | None) -> Neighbors:
        """Return the nearest records of each image; see `RetrievalClassifier.kneighbors`."""
        places = AnswerPlaces()
        answers = self.answer(X, k, places, pad=True, on_error=on_error, progress=progress)
        parts = [near for _, near in answers]
        labels = [part.labels for part in parts]
        return Neighbors(
            ids=places.arrange([part.ids for part in parts], ""),
            distances=places.arrange([part.distances for part in parts], np.inf),
            labels=places.arrange(labels, "" if labels[0].dtype == object else -1),
        )

    def search(
        self,
        X: Any,
        k: int,
        *,
        y: Any = None,
        numbers: ClassNumbers | None = None,
        pad: bool = False,
        on_error: str = "raise",
        skipped: list[SkippedImage] | None = None,
        pick: Callable[[Iterator[EncodedBatch]], Iterator[EncodedBatch]] | None = None,
        timing: Timing | None = None,
        tell: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[EncodedBatch, Neighbors]]:
        """Encode images and look each one up, a bounded number at a time.

        Parameters
        ----------
        X, y, on_error
            As for `RetrievalClassifier.evaluate`.
        k : int
            Neighbors to look up; all where the store holds fewer. With 0, nothing is searched.
        numbers : ClassNumbers, optional
            Classes that turn up are taken over from it when everything is answered.
        pad : bool
            Whether rows have `k` places also where the store holds fewer.
        pick : callable, optional
            Given the encoded batches, yields those, or the parts of those, that are to be looked up.
        skipped, timing, tell
            Receive what was skipped, the times, and the number of images of each batch that has come.

        Yields
        ------
        batch : EncodedBatch
            With the vectors that were searched.
        near : Neighbors
            Each of shape (len(batch), k), or narrower where the store holds fewer.
        """
        index = self.index
        k = int(k)  # stores get no integers of NumPy
        count = index.count_for(k)
        wanted = k if pad else min(k, count)
        timing = timing if timing is not None else Timing()
        source = self.encode(X, y, on_error, skipped if skipped is not None else [])
        if pick is not None:
            source = pick(source)
        empty = True
        for batch in gather(source, QUERIES, timing, tell):
            if not len(batch):
                continue
            empty = False
            with timing.measure("search", len(batch)):
                near = index.look_up(batch.vectors[VECTORS], wanted) if wanted else no_neighbors(len(batch))
            index.check_manifest()  # afterwards: it may have changed while this batch was encoded
            yield batch, near
        if empty:
            raise NoImagesError(none_left("to classify", skipped or ()))
        if numbers is not None and numbers.turned_up:
            index.update_classes(add=numbers.turned_up)

    def encode(self, X: Any, y: Any, on_error: str, skipped: list[SkippedImage]) -> Iterator[EncodedBatch]:
        """Return the vectors as they are looked up, in batches; see `search`."""
        check_on_error(on_error)
        index = self.index
        if index.encoder is not None:
            batches = image_batches(index.encoder, X, y, on_error=on_error, skipped=skipped)
        else:
            rows = read_vectors(self.estimator, X, reset=False)
            labels = None if y is None else vector_labels(y, len(rows))
            batches = vector_batches(rows, labels)
        return ready(
            batches,
            index.encoder,
            index.metric,
            index.normalize,
            on_error,
            skipped,
            stored=False,
            transform=index.transform,
        )
