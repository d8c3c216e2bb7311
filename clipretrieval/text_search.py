"""Search stored images by text: what CLIP's text tower says lies near."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import check_strings, check_text, shown
from clipretrieval._util.foreign import as_array
from clipretrieval._util.unit_length import to_unit_length
from clipretrieval.encoding.weights.text_tower import FOR_TEXTS
from clipretrieval.errors import DimensionMismatchError, InvalidInputError, UnsupportedOperationError
from clipretrieval.heads.class_texts import STAGE
from clipretrieval.images.formats import image_extensions
from clipretrieval.prompts import Templates, filled, listed_templates
from clipretrieval.retrieval.labelled_index import LabelledIndex
from clipretrieval.stores.base import ScannableStore
from clipretrieval.stores.checks import check_k
from clipretrieval.types import Metric, Neighbors

__all__ = ["PLAIN", "refuse_text", "search_text"]

Floats = npt.NDArray[np.float64]

PLAIN = "{}"
"""The template that leaves a text as it is."""
_READ = 4096
"""Stored vectors that are read together."""


def search_text(
    index: LabelledIndex, texts: str | Sequence[str], k: int, templates: Templates = PLAIN
) -> Neighbors:
    """Return the stored images whose vectors have the largest cosine with a text's.

    Where the store searches by the cosine already, as vectors of length one are searched under any metric, it
    is asked; else all that it holds is read and compared.

    Parameters
    ----------
    index : LabelledIndex
    texts, k, templates
        As for `RetrievalClassifier.search_text`, as are the errors.
    """
    listed, k = _checked_texts(texts), check_k(k)
    ways = listed_templates(templates)
    encode = _text_encoder(index.encoder)
    if index.transform is not None:
        raise UnsupportedOperationError(
            "the stored vectors went through a transform (whitening), after which they lie in no space with "
            "texts; index with transform=None, or take it out: set_params(transform=None).refit_transform()"
        )
    count = index.count_for(k)
    prompts = [filled(way, text) for text in listed for way in ways]
    vectors = _checked_vectors(encode(prompts), index, len(prompts))
    means = to_unit_length(vectors).reshape(len(listed), len(ways), -1).sum(axis=1)
    queries = to_unit_length(means)
    width = min(k, count)
    if index.metric is Metric.COSINE or index.normalize:
        near = index.look_up(queries.astype(np.float32), width)
        near = Neighbors(near.ids, _cosine_distances(near.distances, index.metric), near.labels)
    else:
        near = _ranked(index, queries, width)
    index.check_manifest()  # afterwards: it may have been filled anew while texts were encoded
    return _padded(near, k)


def refuse_text(X: Any) -> None:
    """Refuse a text, or a vector, where images are asked for; a missing file keeps the error that it has.

    Raises
    ------
    InvalidInputError
        With the method that takes it.
    """
    first = X[0] if isinstance(X, list | tuple) and X else X
    if isinstance(first, str) and _names_nothing(first):
        raise InvalidInputError(
            f"there is no file or folder {shown(first)}; to find images by text: search_text({shown(first)})"
        )
    if getattr(X, "ndim", 3) <= 2 and "float" in str(getattr(X, "dtype", "")):
        raise InvalidInputError(
            f"floats of shape {tuple(X.shape)} are no image but perhaps vectors, of texts or of images. Pass "
            "images; to find images by text: search_text(texts); by vectors of your own: "
            "store_.search(vectors, k)"
        )


def _names_nothing(text: str) -> bool:
    """Whether a str is the path of nothing, and looks like none: it has neither folders nor an ending."""
    path = Path(text)
    try:
        return not (path.suffix.lower() in image_extensions() or len(path.parts) > 1 or path.exists())
    except (OSError, ValueError):  # too long for a path, or with a null character
        return True


def _checked_texts(texts: Any) -> list[str]:
    listed = [texts] if isinstance(texts, str) else check_strings(texts, "texts")
    if not listed:
        raise InvalidInputError("texts is empty; pass at least one, such as 'a red cup'")
    for text in listed:
        check_text(text, "a text", empty=True)
        if not text.strip():
            raise InvalidInputError("a text is empty; pass words, such as 'a red cup'")
    return listed


def _text_encoder(encoder: Any) -> Callable[[list[str]], Any]:
    """Return what turns texts into vectors that lie in one space with those of an encoder.

    Raises
    ------
    InvalidInputError
        If there is none.
    """
    if encoder is None:
        raise InvalidInputError(
            "this classifier takes vectors and has no encoder, so none for text either; to search by "
            "vectors: kneighbors(vectors)"
        )
    own: Any = getattr(encoder, "encode_text", None)
    if callable(own):
        return own  # type: ignore[no-any-return]
    stage, name = getattr(encoder, "stage", STAGE), type(encoder).__name__
    tower: Any = getattr(encoder, "text", None) if stage == STAGE else None
    from clipretrieval.encoding.staged_encoder import StagedEncoder, check_texts

    if isinstance(encoder, StagedEncoder):
        check_texts(encoder)  # first, for no other stage would help
    if hasattr(encoder, "stages") and stage != STAGE:
        raise InvalidInputError(
            f"only vectors of the stage 'final' lie in one space with texts, and this classifier's are of "
            f"{stage!r}; index with stage='final'"
        )
    if not hasattr(tower, "encode"):
        raise InvalidInputError(
            f"{name} has no text tower, which {FOR_TEXTS}; pass a StagedEncoder of a CLIP model with "
            "stage='final', or FunctionEncoder(…, encode_text=function) or another encoder with a method "
            "encode_text"
        )
    return tower.encode  # type: ignore[no-any-return]


def _checked_vectors(given: Any, index: LabelledIndex, n: int) -> Floats:
    """Return the vectors of texts, which a user's own function may have made, shape (n, dim).

    Raises
    ------
    InvalidInputError
        If they are none.
    """
    found = as_array(given, "what the text encoder returned")
    if found.dtype.kind not in "fiu" or found.ndim != 2 or len(found) != n:
        raise InvalidInputError(
            f"the text encoder returned {found.dtype} of shape {found.shape} for {n} texts; it must return "
            f"real numbers of shape ({n}, {index.dim})"
        )
    if found.shape[1] != index.dim:
        raise DimensionMismatchError(
            f"the text encoder returned {found.shape[1]} dimensions, and the images' vectors have "
            f"{index.dim}: they lie in no common space"
        )
    vectors = found.astype(np.float64)
    if not np.isfinite(vectors).all() or not vectors.any(axis=1).all():
        raise InvalidInputError(
            "the text encoder returned NaN, infinite values or nothing but zeros for a text, which has no "
            "direction then; mend it, or leave the text out"
        )
    return vectors


def _cosine_distances(distances: npt.NDArray[np.float32], metric: Metric) -> npt.NDArray[np.float32]:
    """Return 1 − cosine, of the distances of vectors of length one: ‖x − y‖² = 2 − 2 cos."""
    if metric is Metric.COSINE:
        return distances
    return distances / np.float32(2) if metric is Metric.L2 else distances + np.float32(1)


def _ranked(index: LabelledIndex, queries: Floats, k: int) -> Neighbors:
    """Compare queries of length one with all that a store holds; the `k` nearest of each."""
    best: list[list[tuple[float, str, Any]]] = [[] for _ in queries]
    for records in _all_records(index):
        rows = to_unit_length(records.vectors.astype(np.float64))
        distances = (1 - queries @ rows.T).astype(np.float32)
        for row, some in zip(best, distances, strict=True):
            order = np.lexsort((records.ids, some))[:k]
            found = zip(some[order].tolist(), records.ids[order], records.labels[order].tolist(), strict=True)
            row[:] = heapq.nsmallest(k, [*row, *found], key=lambda item: item[:2])
    width = min(map(len, best))
    shape = len(best), width
    ids, labels = np.empty(shape, dtype=object), np.empty(shape, dtype=object)
    distances = np.empty(shape, dtype=np.float32)
    for place, row in enumerate(best):
        for column, (distance, name, label) in enumerate(row[:width]):
            ids[place, column], labels[place, column] = name, label
            distances[place, column] = distance
    return Neighbors(ids, distances, labels if index.classes.kind == "str" else labels.astype(np.int64))


def _all_records(index: LabelledIndex) -> Iterator[Any]:
    store = index.store
    if not isinstance(store, ScannableStore):
        raise UnsupportedOperationError(
            f"text is searched for by the cosine, this index ranks by metric={str(index.metric)!r}, and "
            f"{type(store).__name__} cannot list what it holds, to be compared one by one; index with "
            "metric='cosine' or normalize=True"
        )
    waiting: list[str] = []
    for listing in store.scan():
        waiting += listing.ids.tolist()
        while len(waiting) >= _READ:
            yield store.get(waiting[:_READ])
            del waiting[:_READ]
    if waiting:
        yield store.get(waiting)


def _padded(near: Neighbors, k: int) -> Neighbors:
    """Return rows of `k` places, also where the store holds fewer."""
    missing = ((0, 0), (0, k - near.ids.shape[1]))
    empty = "" if near.labels.dtype == object else -1
    return Neighbors(
        np.pad(near.ids, missing, constant_values=""),
        np.pad(near.distances, missing, constant_values=np.inf),
        np.pad(near.labels, missing, constant_values=empty),
    )
