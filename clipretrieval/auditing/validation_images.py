"""The images that an audit compares the stored ones with, and what is stored near them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from clipretrieval._util.labels import Spelling, label_kind, stored_labels
from clipretrieval._util.progress import Progress, image_counter
from clipretrieval.images.stream import SkippedImage
from clipretrieval.images.tables import labelled_source
from clipretrieval.retrieval.retriever import Retriever
from clipretrieval.retrieval.true_labels import check_kind
from clipretrieval.types import Label, Neighbors

__all__ = ["ValidationImages", "look_up_test"]


@dataclass(frozen=True, eq=False)
class ValidationImages:
    """Test images, in their order, and the records nearest to each.

    Attributes
    ----------
    ids : list of str
        Of their contents.
    labels : list of (int or str) or None
        As stored; None where none were given.
    sources : list of (str or None)
    near : Neighbors
        Each of shape (n_test, width).
    """

    ids: list[str]
    labels: list[Label] | None
    sources: list[str | None]
    near: Neighbors

    def __len__(self) -> int:
        return len(self.ids)


def look_up_test(
    retriever: Retriever,
    X: Any,
    y: Any,
    width: int,
    skipped: list[SkippedImage],
    progress: Progress,
) -> ValidationImages:
    """Look up test images.

    Parameters
    ----------
    retriever : Retriever
    X, y
        As for `RetrievalClassifier.evaluate`; labels may be missing.
    width : int
        Neighbors of each.
    skipped : list of SkippedImage
        Receives what could not be decoded.
    progress : callable

    Raises
    ------
    InvalidInputError
        If the labels are of another type than those that are stored.
    """
    index = retriever.index
    source = labelled_source(X, y) if index.encoder is not None else X
    tell = image_counter(progress, retriever.count_hint(X), skipped)
    ids, sources, found = list[str](), list[str | None](), list[Neighbors]()
    labels: list[Label] | None = []
    spelling = Spelling(index.classes.labels.tolist())
    kind: str | None = None
    for batch, near in retriever.search(source, width, y=y, on_error="skip", skipped=skipped, tell=tell):
        ids += batch.ids
        sources += batch.sources
        found.append(near)
        if labels is None or all(label is None for label in batch.labels):
            labels = None
            continue
        kind = label_kind(batch.labels, kind, places=batch.indices)
        check_kind(kind, index.classes.kind)
        labels += spelling.apply(stored_labels(batch.labels, kind, index.classes.kind))
    columns = [np.concatenate([getattr(each, name) for each in found]) for name in _COLUMNS]
    return ValidationImages(ids, labels, sources, Neighbors(*columns))


_COLUMNS = ("ids", "distances", "labels")
