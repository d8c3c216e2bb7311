"""What an encoder has to do: the protocol that the classifier works with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np

from clipretrieval._util.repr import short_repr
from clipretrieval.types import FloatArray

__all__ = [
    "EncodedBatch",
    "Encoder",
    "KnownIds",
    "KnownImage",
    "StreamingEncoder",
    "encoding_to",
    "join_batches",
    "select_images",
]

KnownIds: TypeAlias = Callable[[list[str]], Collection[str]]
"""Called with content ids, from any thread: those of them whose images need no encoding."""


class Encoder(Protocol):
    """Turns images into vectors.

    Anything with these three members serves as ``RetrievalClassifier(encoder=…)``; images reach
    `encode` as a list of RGB `PIL.Image.Image`.
    """

    @property
    def dim(self) -> int:
        """The vectors' dimension."""
        ...

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """Everything that decides the vectors' values, as JSON values.

        It is kept in the store's manifest; a store filled under one fingerprint refuses every other.
        """
        ...

    def encode(self, images: Any) -> FloatArray:
        """Return one vector per image: float32, shape (n, dim)."""
        ...


@dataclass(frozen=True)
class KnownImage:
    """An image that was decoded, found to be known, and not encoded.

    Attributes
    ----------
    id : str
        Content id.
    label : object
        None where the source gave none.
    source : str or None
        The file's path where known.
    index : int
        Place in the source, counted from 0.
    """

    id: str
    label: Any
    source: str | None
    index: int


@dataclass(frozen=True, eq=False)
class EncodedBatch:
    """Some images' vectors, with what is known of each image.

    Attributes
    ----------
    ids : list of str, length n
        Content ids (see `clipretrieval.images`).
    vectors : dict of str to ndarray of float32, shape (n, dim of the stage)
        One array for each stage that was asked for.
    labels : list, length n
        None where the source gave no label.
    sources : list of (str or None), length n
        File paths where known.
    indices : list of int, length n
        Places in the source, counted from 0, skipped ones included.
    seconds : dict
        Time spent on this batch: ``"decode"`` (waiting for images) and ``"encode"``; see also `encoding_to`.
    known : list of KnownImage
        Images of the same part of the source that needed no encoding; not counted in the length.
    metadata : list of dict, length n
        What else is kept of each image, as JSON values; empty where nothing is of any.
    """

    ids: list[str]
    vectors: dict[str, FloatArray]
    labels: list[Any]
    sources: list[str | None]
    indices: list[int]
    seconds: dict[str, float] = field(default_factory=dict)
    known: list[KnownImage] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return short_repr(self, n=len(self.ids), vectors=sorted(self.vectors), known=len(self.known))


def encoding_to(place: int) -> str:
    """Return what the time is called that images took to get to an exit from the one before."""
    return f"encode {place}"


def join_batches(batches: Sequence[EncodedBatch]) -> EncodedBatch:
    """Make one batch of several, with their vectors and the sums of their seconds."""
    filled = [batch for batch in batches if batch.ids]
    stages = filled[0].vectors if filled else ()
    parts = {part: None for batch in batches for part in batch.seconds}  # in their order
    return EncodedBatch(
        ids=[name for batch in batches for name in batch.ids],
        vectors={stage: np.concatenate([batch.vectors[stage] for batch in filled]) for stage in stages},
        labels=[label for batch in batches for label in batch.labels],
        sources=[source for batch in batches for source in batch.sources],
        indices=[index for batch in batches for index in batch.indices],
        seconds={part: sum(batch.seconds.get(part, 0.0) for batch in batches) for part in parts},
        known=[image for batch in batches for image in batch.known],
        metadata=(
            [each for batch in batches for each in batch.metadata or [{} for _ in batch.ids]]
            if any(batch.metadata for batch in batches)
            else []
        ),
    )


def select_images(batch: EncodedBatch, places: Sequence[int]) -> EncodedBatch:
    """Make a batch of some images of another one, with their vectors and all that is known already."""
    rows = np.array(places, dtype=np.intp)
    return EncodedBatch(
        ids=[batch.ids[place] for place in places],
        vectors={name: vectors[rows] for name, vectors in batch.vectors.items()},
        labels=[batch.labels[place] for place in places],
        sources=[batch.sources[place] for place in places],
        indices=[batch.indices[place] for place in places],
        seconds=batch.seconds,
        known=batch.known,
        metadata=[batch.metadata[place] for place in places] if batch.metadata else [],
    )


class StreamingEncoder(Encoder, Protocol):
    """Optional: an encoder that reads its own images, ahead of the computation."""

    @property
    def stage(self) -> str:
        """The stage whose vectors `encode` returns."""
        ...

    def stream(
        self,
        images: Any,
        labels: Any = None,
        *,
        stages: tuple[str, ...] | None = None,
        on_error: str = "raise",
        skipped: list[Any] | None = None,
        known: KnownIds | None = None,
    ) -> Iterator[EncodedBatch]:
        """Yield encoded batches in the order of the source, holding only a few at a time."""
        ...
