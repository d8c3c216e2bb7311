"""Pairs of images that are the same: candidates by vectors and by miniatures, checked on the files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from clipretrieval.auditing.duplicates import (
    TRIED,
    Pairs,
    Scale,
    candidate_pairs,
    far,
)
from clipretrieval.auditing.evidence import Evidence
from clipretrieval.auditing.pixels import PAIRS, Miniatures, mirror_features, same_picture
from clipretrieval.auditing.subject import BLOCK, Ints, Subject
from clipretrieval.auditing.validation_images import ValidationImages
from clipretrieval.retrieval.parameters import make_store
from clipretrieval.stores.registry import DEFAULT_STORE
from clipretrieval.types import FloatArray, Metric

__all__ = ["FileFinder", "find_same"]

LIKE_FEATURES = 2 * (1 - 0.85)
"""Squared distance of two miniatures' features, up to which they are compared: a cosine of 0.85."""
_CONTENT = re.compile(r"([0-9a-f]{32})(?:-\d+)?")
FileFinder: TypeAlias = Callable[[list[int]], Mapping[int, str | None]]

NEARLY = 0.999
"""Score of images that are nearly equal, at most."""


def find_same(
    subject: Subject,
    evidence: Evidence | None,
    test: ValidationImages | None,
    near_test: Ints | None,
    miniatures: Miniatures,
    sources: FileFinder,
) -> tuple[Pairs, npt.NDArray[np.float64]]:
    """Return pairs of images that are the same, and how surely they are.

    Candidates are the nearest vectors and, where miniatures are at hand, the miniatures that are like each
    other as they lie or mirrored. Where both have a file, `same_picture` decides. Where not, vectors have to
    be so much nearer than all others around that the data have nothing like it.

    Parameters
    ----------
    subject : Subject
    evidence : Evidence or None
    test : ValidationImages or None
    near_test : ndarray of int32, shape (n_test, k), or None
        The records nearest to test images, by number.
    miniatures : Miniatures
    sources : callable
        Given numbers of images, returns their files, where they are known.

    Returns
    -------
    pairs : Pairs
    scores : ndarray of float64, shape (n_pairs,)
        In (0, 1]; 1 for equal images.
    """
    n = len(subject)
    parts: list[Pairs] = []
    around = np.full(n, np.nan)
    if evidence is not None:
        scale = Scale.of(evidence.distances)
        around = far(evidence.distances, scale.offset)
        parts.append(candidate_pairs(0, evidence.near, evidence.distances, around, scale))
    if test is not None and near_test is not None:
        distances = test.near.distances
        if evidence is None:
            scale = Scale.of(distances)
        parts.append(candidate_pairs(n, near_test, distances, around, scale))
    if miniatures.at_hand is not None:
        parts.append(_alike(miniatures.at_hand, n))
    if not parts:
        raise ValueError("there is nothing to compare")
    # What vectors found stays, with its distances.
    pairs = Pairs.joined([*parts, _equal([*subject.ids.tolist(), *([] if test is None else test.ids)])])
    pairs = pairs.take(pairs.left != pairs.right)
    scores = _checked(pairs, subject, test, scale, miniatures, sources)
    kept = scores > 0
    return pairs.take(kept), scores[kept]


def _checked(
    pairs: Pairs,
    subject: Subject,
    test: ValidationImages | None,
    scale: Scale,
    miniatures: Miniatures,
    sources: FileFinder,
) -> npt.NDArray[np.float64]:
    """Return how surely each pair is the same; 0 where it is not."""
    ids = [*subject.ids.tolist(), *([] if test is None else test.ids)]
    contents = [_content_of(name) for name in ids]
    equal = np.array(
        [contents[one] == contents[other] for one, other in zip(pairs.left, pairs.right, strict=True)], bool
    )
    equal |= pairs.ratios == 0
    scores = np.where(equal, 1.0, 0.0)
    open_pairs = np.flatnonzero(~equal)
    numbers = np.unique([pairs.left[open_pairs], pairs.right[open_pairs]])
    files = sources(numbers.tolist()) if miniatures.at_hand is None else {}
    for start in range(0, len(open_pairs), PAIRS):
        part = open_pairs[start : start + PAIRS]
        left, right, seen = miniatures.of_pairs(pairs.left[part], pairs.right[part], files)
        if len(seen):
            scores[part[seen]] = np.minimum(same_picture(left, right), NEARLY)
        blind = np.ones(len(part), dtype=bool)
        blind[seen] = False
        ratios = pairs.ratios[part]
        by_vectors = blind & (ratios <= scale.bound)
        scores[part[by_vectors]] = np.minimum(1 - ratios[by_vectors], NEARLY)
    return scores


def _equal(ids: list[str]) -> Pairs:
    """Return each image with the first one of the same content, which its id tells."""
    first: dict[str, int] = {}
    found = [(first.setdefault(_content_of(name), number), number) for number, name in enumerate(ids)]
    pairs = np.array([pair for pair in found if pair[0] != pair[1]], dtype=np.int64).reshape(-1, 2)
    return Pairs(
        pairs[:, 0], pairs[:, 1], np.full(len(pairs), np.nan, dtype=np.float32), np.zeros(len(pairs))
    )


def _content_of(name: str) -> str:
    """Return the id that equal images have in common; of one that is no content id, all of it."""
    found = _CONTENT.fullmatch(name)
    return name if found is None else found[1]


def _alike(miniatures: npt.NDArray[np.uint8], n: int) -> Pairs:
    """Return pairs of images whose miniatures are like each other, as they lie or mirrored.

    Test images, whose numbers are from `n` on, are compared with records only.
    """
    features: FloatArray = np.concatenate(
        [mirror_features(miniatures[start : start + BLOCK]) for start in range(0, len(miniatures), BLOCK)]
    )
    store = make_store(DEFAULT_STORE, None, Metric.L2)
    try:
        names = [str(number) for number in range(n)]
        for start in range(0, n, BLOCK):
            part = slice(start, min(start + BLOCK, n))
            store.upsert(names[part], features[part], [0] * (part.stop - part.start))
        left, right = list[npt.NDArray[np.int64]](), list[npt.NDArray[np.int64]]()
        for start in range(0, len(features), BLOCK):
            found = store.search(features[start : start + BLOCK], min(TRIED + 1, n))
            rows, columns = np.nonzero(found.valid & (found.distances <= LIKE_FEATURES))
            left.append(start + rows)
            right.append(found.ids[rows, columns].astype(np.int64))
    finally:
        store.close()
    one, other = np.concatenate(left), np.concatenate(right)
    nothing = np.full(len(one), np.nan)
    return Pairs(one, other, nothing.astype(np.float32), nothing)
