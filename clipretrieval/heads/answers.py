"""The answers of a decision rule to any number of images, in the order of the images."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from clipretrieval._util.progress import Progress
from clipretrieval.heads.decision import Decision
from clipretrieval.heads.fitted_head import DecisionRule
from clipretrieval.retrieval.answer_places import AnswerPlaces
from clipretrieval.retrieval.retriever import Retriever
from clipretrieval.types import AnyArray

__all__ = ["answer_labels", "answer_probabilities"]


def answer_labels(
    retriever: Retriever, rule: DecisionRule, X: Any, *, on_error: str, progress: Progress | bool | None
) -> AnyArray:
    """Return the label of each image; see `RetrievalClassifier.predict`."""
    numbers, places = retriever.index.number_classes(), AnswerPlaces()
    found = retriever.answer(X, rule.k, places, numbers=numbers, on_error=on_error, progress=progress)
    codes = [rule.decide(vectors, near, numbers).answers for vectors, near in found]
    labels = numbers.labels(np.concatenate(codes))
    return labels if on_error == "raise" else places.arrange([labels.astype(object)], None)


def answer_probabilities(
    retriever: Retriever, rule: DecisionRule, X: Any, *, on_error: str, progress: Progress | bool | None
) -> AnyArray:
    """Return the probability of each class; see `RetrievalClassifier.predict_proba`."""
    numbers, places = retriever.index.number_classes(), AnswerPlaces()
    parts = deque[tuple[int, Decision]]()
    found = retriever.answer(X, rule.k, places, numbers=numbers, on_error=on_error, progress=progress)
    for vectors, near in found:
        parts.append((len(near), rule.decide(vectors, near, numbers)))
    shares = np.zeros((places.count, len(numbers)))  # one array for all images
    shares[[image.index for image in places.skipped]] = np.nan
    answered, columns, first = np.array(places.places), numbers.columns(), 0
    while parts:  # one batch has a cell for each class at a time
        count, decision = parts.popleft()
        rows, codes, part = decision.cells
        shares[answered[first + rows], columns[codes]] = part
        first += count
    return shares
