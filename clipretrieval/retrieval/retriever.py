"""Ask a fitted classifier: encode, look up, vote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from clipretrieval._util.progress import Progress, image_counter, open_progress
from clipretrieval._util.rounding import without_range_warnings
from clipretrieval._util.timing import Timing
from clipretrieval._util.warning import warn_caller
from clipretrieval.encoding.base import EncodedBatch
from clipretrieval.errors import InvalidInputError, NotFittedError, StoreError
from clipretrieval.heads.tally import Candidates, Votes
from clipretrieval.heads.votes import vote_weights
from clipretrieval.images.sources import count_hint
from clipretrieval.images.stream import SkippedImage
from clipretrieval.retrieval.ballot import Ballot, class_index, take_up
from clipretrieval.retrieval.inputs import Batches, check_neighbors, gather, none_left, query_source
from clipretrieval.retrieval.manifest import (
    check_manifest,
    make_manifest,
    plain_fingerprint,
    vector_fingerprint,
    view_manifest,
)
from clipretrieval.retrieval.parameters import check_params
from clipretrieval.stores import RefreshableStore
from clipretrieval.stores.base import VectorStore
from clipretrieval.types import AnyArray, FloatArray, Metric, Neighbors

if TYPE_CHECKING:
    from clipretrieval._learner import Learner
    from clipretrieval.classifier import RetrievalClassifier

__all__ = [
    *("QUERY_VECTORS", "Asked", "NoImagesError", "check_fitted", "look_up", "open_ballot"),
    *("own_manifest", "question_length"),
    *("search_batches", "vote"),
]

QUERIES = 1024
"""Queries that are searched together: enough for a store to work in bulk, few enough to hold."""


ATTEMPTS = 3
"""Searches of a store that is empty at one moment and not at the next, before it is held to be at fault."""

EMPTY = "the store holds no vectors any more; fit the classifier again"

QUERY_VECTORS = "query"
"""Under which name a batch that was searched holds its vectors."""


class NoImagesError(InvalidInputError):
    """There was nothing to classify, or all of it was skipped."""


def check_fitted(classifier: Learner) -> None:
    """Refuse a classifier that has no store to ask.

    Raises
    ------
    NotFittedError
    """
    if not hasattr(classifier, "store_"):
        raise NotFittedError(
            "this RetrievalClassifier is not fitted yet; call fit with labelled images, or load a saved one"
        )


def open_ballot(classifier: RetrievalClassifier) -> Ballot:
    """Fix the classes for one question; those that the store has gained meanwhile are taken up."""
    manifest = view_manifest(_current_store(classifier))
    kinds = {classifier._label_kind, manifest.get("label_kind", classifier._label_kind)}
    if "str" in kinds and len(kinds) > 1:
        raise StoreError(
            f"the store was filled anew, with labels of the type {manifest['label_kind']} where this "
            f"classifier knows {classifier._label_kind}; attach to it with RetrievalClassifier.from_store"
        )
    return Ballot(class_index(classifier, manifest))


@dataclass
class Asked:
    """One question about any number of images: what was passed over, and where each answer belongs.

    Answers have the places of their images in the source. So whoever pairs them with what was asked is right
    also where images were skipped: these have an empty answer.

    Attributes
    ----------
    skipped : list of SkippedImage
        Grows while images come.
    places : list of int
        The place in the source of each image that was answered.
    """

    skipped: list[SkippedImage] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def search(
        self,
        classifier: RetrievalClassifier,
        X: Any,
        k: int | None = None,
        *,
        ballot: Ballot | None = None,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
    ) -> Iterator[tuple[EncodedBatch, Neighbors]]:
        """Yield what `search_batches` does, and warn at the end of what was skipped."""
        total = question_length(classifier, X)
        with open_progress(progress, "searching") as shown:
            tell = image_counter(shown, total, self.skipped)
            for batch, near in search_batches(
                classifier, X, k, ballot=ballot, on_error=on_error, skipped=self.skipped, tell=tell
            ):
                self.note(batch)
                yield batch, near
        self.warn()

    def note(self, batch: EncodedBatch) -> None:
        """Take the places of a batch's images."""
        self.places += batch.indices

    def warn(self) -> None:
        """Say how many images have no answer."""
        if self.skipped:
            warn_caller(
                f"{len(self.skipped)} of {len(self.skipped) + len(self.places)} images were skipped and "
                f"have an empty answer; the first: {self.skipped[0].reason}"
            )

    def placed(self, parts: Sequence[AnyArray], empty: Any) -> AnyArray:
        """Join the answers of all batches, with `empty` in the rows of skipped images."""
        joined: AnyArray = np.concatenate(parts)
        if not self.skipped:
            return joined
        whole: AnyArray = np.full((self.count, *joined.shape[1:]), empty, dtype=joined.dtype)
        whole[self.places] = joined
        return whole

    @property
    def count(self) -> int:
        """Images that have come, skipped ones included."""
        return max(*self.places, *(item.index for item in self.skipped), -1) + 1


def question_length(classifier: RetrievalClassifier, X: Any) -> int | None:
    """Return how many images are asked about, where that is known without reading them."""
    if classifier.encoder is not None:
        return count_hint(X)
    shape = getattr(X, "shape", ())  # a sparse matrix has no length
    return int(shape[0]) if shape else len(X) if hasattr(X, "__len__") else None


def search_batches(
    classifier: RetrievalClassifier,
    X: Any,
    k: int | None = None,
    *,
    y: Any = None,
    ballot: Ballot | None = None,
    on_error: str = "raise",
    skipped: list[SkippedImage] | None = None,
    pick: Callable[[Batches], Batches] | None = None,
    timing: Timing | None = None,
    tell: Callable[[int], None] | None = None,
) -> Iterator[tuple[EncodedBatch, Neighbors]]:
    """Encode images and look each one up, a bounded number at a time.

    Parameters
    ----------
    classifier : RetrievalClassifier
    X, y, on_error
        As for `RetrievalClassifier.evaluate`.
    k : int, optional
        When left out, as many neighbours as vote: the classifier's own `k`, or all where there are fewer.
    ballot : Ballot, optional
        Classes that turn up are taken over from it when everything is answered.
    pick : callable, optional
        Given the encoded batches, yields those, or the parts of those, that are to be looked up.
    skipped, timing, tell
        Receive what was passed over, the times, and the number of images of each batch that has come.

    Yields
    ------
    batch : EncodedBatch
        With the vectors that were searched, under the name `QUERY_VECTORS`.
    near : Neighbors
        Each of shape (len(batch), k).
    """
    check_params(classifier)
    count = _check_store(classifier, classifier.k if k is None else k)
    wanted = min(int(classifier.k), count) if k is None else k
    timing = timing if timing is not None else Timing()
    source = query_source(classifier, X, y, on_error, skipped if skipped is not None else [])
    if pick is not None:
        source = pick(source)
    empty = True
    for batch, vectors in gather(source, QUERIES, timing, tell):
        empty = False
        with timing.measure("search", len(batch)):
            near = look_up(classifier.store_, vectors, wanted)
        _check_manifest(classifier)  # afterwards: it may have changed while this batch was encoded
        yield replace(batch, vectors={QUERY_VECTORS: vectors}), near
    if empty:
        raise NoImagesError(none_left("to classify", skipped or ()))
    if ballot is not None and ballot.turned_up:
        take_up(classifier, ballot.turned_up)


def look_up(store: VectorStore, vectors: FloatArray, k: int) -> Neighbors:
    """Search a store that others may empty and fill meanwhile.

    Raises
    ------
    NotFittedError
        If it holds nothing any more.
    StoreError
        If it holds vectors and answers what no store may.
    """
    for _ in range(ATTEMPTS):
        with without_range_warnings():
            near = store.search(vectors, k)
        # A row without a single neighbour: the store was empty at that moment, whatever it counted before.
        if near.distances.shape != (len(vectors), k) or near.valid[:, 0].all():
            break
        if store.count() == 0:
            raise NotFittedError(EMPTY)
    return check_neighbors(near, len(vectors), k, store)


def vote(classifier: RetrievalClassifier, near: Neighbors, ballot: Ballot) -> Votes:
    """Count the votes of neighbours."""
    weights = vote_weights(
        near.distances,
        classifier.weights,
        metric=classifier.store_.metric,
        temperature=classifier.temperature,
    )
    codes = ballot.codes(near)
    return Candidates.of(codes, near.distances, len(ballot)).votes(weights, near.distances)


def _current_store(classifier: RetrievalClassifier) -> VectorStore:
    """Return the store, with what other processes have put there since."""
    check_fitted(classifier)
    store = classifier.store_
    if isinstance(store, RefreshableStore):
        store.refresh()
    return store


def _check_store(classifier: RetrievalClassifier, k: int) -> int:
    """Return the store's count once it is certain that it can be asked."""
    store = _current_store(classifier)
    _check_manifest(classifier)
    count = store.count()
    if count == 0:
        raise NotFittedError(EMPTY)
    if k > count:
        warn_caller(f"k={k} is more than the {count} vectors in the store; all {count} are used")
    return count


def _check_manifest(classifier: Learner) -> None:
    """Refuse a store that a different encoder has filled, perhaps since the question began."""
    metric, unit = Metric.parse(classifier.metric), bool(classifier.normalize)
    check_manifest(view_manifest(classifier.store_), _fingerprint(classifier), metric, normalize=unit)


def own_manifest(classifier: Learner) -> dict[str, Any]:
    """Return what the manifest of a fitted classifier's store has to agree with."""
    metric, unit = Metric.parse(classifier.metric), bool(classifier.normalize)
    return make_manifest(_fingerprint(classifier), metric, classifier._label_kind, normalize=unit)


def _fingerprint(classifier: Learner) -> Mapping[str, Any]:
    if classifier.encoder is None:
        return vector_fingerprint(classifier.n_features_in_)
    return plain_fingerprint(classifier.encoder.fingerprint)
