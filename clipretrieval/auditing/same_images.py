"""Pairs of images that are the same: candidates by vectors and by miniatures, checked on the files."""

from __future__ import annotations

from collections.abc import Sequence

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

__all__ = ["find_same"]

LIKE_FEATURES = 2 * (1 - 0.85)
"""Squared distance of two miniatures' features, up to which they are compared: a cosine of 0.85."""
NEARLY = 0.999
"""Score of images that are nearly equal, at most."""


def find_same(
    subject: Subject,
    evidence: Evidence | None,
    test: ValidationImages | None,
    near_test: Ints | None,
    miniatures: Miniatures,
    sources: Sequence[str | None],
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
    sources : sequence of (str or None)
        Files of all images, by number; empty where they are not known.

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
    if miniatures.at_hand is not None and evidence is not None:
        parts.append(_alike(miniatures.at_hand, n))
    if not parts:
        raise ValueError("there is nothing to compare")
    pairs = Pairs.joined(parts)
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
    sources: Sequence[str | None],
) -> npt.NDArray[np.float64]:
    """Return how surely each pair is the same; 0 where it is not."""
    ids = [*subject.ids.tolist(), *([] if test is None else test.ids)]
    # Equal images have one content id, but for what tells records apart.
    contents = [name.split("-")[0] for name in ids]
    equal = np.array(
        [contents[one] == contents[other] for one, other in zip(pairs.left, pairs.right, strict=True)], bool
    )
    equal |= pairs.ratios == 0
    scores = np.where(equal, 1.0, 0.0)
    open_pairs = np.flatnonzero(~equal)
    for start in range(0, len(open_pairs), PAIRS):
        part = open_pairs[start : start + PAIRS]
        left, right, seen = miniatures.of_pairs(pairs.left[part], pairs.right[part], sources)
        if len(seen):
            scores[part[seen]] = np.minimum(same_picture(left, right), NEARLY)
        blind = np.ones(len(part), dtype=bool)
        blind[seen] = False
        ratios = pairs.ratios[part]
        by_vectors = blind & (ratios <= scale.bound)
        scores[part[by_vectors]] = np.minimum(1 - ratios[by_vectors], NEARLY)
    return scores


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
