"""Why a classifier answers as it does: the neighbors, how much their votes counted, what each part said."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from clipretrieval import errors
from clipretrieval._util.checks import check_int, check_list
from clipretrieval._util.labels import fitted_labels
from clipretrieval._util.progress import Progress, image_counter, open_progress
from clipretrieval._util.repr import short_repr
from clipretrieval._util.text import readable, shortened
from clipretrieval._util.warning import warn_caller
from clipretrieval.encoding.streams import VECTORS
from clipretrieval.heads.confidence import check_measure, measure_text
from clipretrieval.heads.decision import Decision
from clipretrieval.heads.fitted_head import DecisionRule
from clipretrieval.heads.votes import Votes
from clipretrieval.images.stream import SkippedImage
from clipretrieval.images.thumbnail import THUMBNAIL, thumbnail
from clipretrieval.retrieval.classes import ClassNumbers
from clipretrieval.retrieval.labelled_index import LabelledIndex
from clipretrieval.retrieval.retriever import NOT_FITTED, Retriever
from clipretrieval.stores.base import VectorStore
from clipretrieval.stores.checks import check_k
from clipretrieval.trust.conformalized import SetPredictor
from clipretrieval.types import FloatArray, Neighbors

__all__ = ["ExplainedNeighbor", "ExplainedPart", "Explanation", "explain_stream"]

LOOKED_UP = 4096
"""Records whose metadata are read together: `get` returns their vectors too."""
WIDEST_PATH = 48
WIDEST_LABEL = 28
WIDEST_ID = 16

_BOX = f"width:{THUMBNAIL}px;height:{THUMBNAIL}px;display:flex;align-items:center;justify-content:center;"
_CARD = "margin:0;width:128px;font:12px/1.4 sans-serif;overflow-wrap:anywhere;"


@dataclass(frozen=True)
class ExplainedNeighbor:
    """A stored image that was found near the one in question.

    Attributes
    ----------
    id : str
        In the store.
    label : bool, int, float or str
        Of the type that was fitted.
    distance : float
        Lower is nearer, under every metric.
    share : float
        Its part of all votes, in [0, 1]; 0 where it had none.
    source : str or None
        The file's path at the time when it was stored, where it came from one.
    """

    id: str
    label: Any
    distance: float
    share: float
    source: str | None = None


@dataclass(frozen=True)
class ExplainedPart:
    """How one part of a head that is put together of several spoke.

    Attributes
    ----------
    name : str
    answer : bool, int, float or str
        What it would have answered by itself.
    share : float
        How probable it held the answer that was given, in [0, 1].
    """

    name: str
    answer: Any
    share: float


@dataclass(frozen=True)
class Explanation:
    """What a classifier answers for one image, and the neighbors that the answer rests on.

    Printed, it is a table. In a notebook it shows the images, where their files are still there.

    Attributes
    ----------
    query : str or None
        The image's path, where it has one.
    answer : bool, int, float or str
        What `RetrievalClassifier.predict` returns, as a plain Python value.
    share : float
        The answer's part of all votes, or its probability by the head, in (0, 1], as
        `RetrievalClassifier.predict_proba` has it; 0 where the answer is `unknown`.
    neighbors : tuple of ExplainedNeighbor
        First those that voted, then the others that were asked for; each group nearest first. The shares sum
        to 1; all are 0 where the head does not count votes.
    margin : float or None
        How far the answer's share is ahead of the second class's, in [0, 1]; None where that is not known.
    by : {"share", "margin", "distance"}
        The measure of confidence that the text shows beside the answer.
    parts : tuple of ExplainedPart
        How each part of the head spoke; empty where it is not put together of parts.
    head : str
        What has decided: ``"votes"``, or another head's name.
    top : tuple of (label, float)
        The most probable classes, the answer first, with their probabilities, where it is not the votes of
        the neighbors that tell of them; as many as were asked for.
    prediction_set : tuple of labels, or None
        The classes among which the true one is, where a coverage was asked for; see
        `RetrievalClassifier.predict_set`.
    """

    query: str | None
    answer: Any
    share: float
    neighbors: tuple[ExplainedNeighbor, ...]
    margin: float | None = None
    by: str = "share"
    parts: tuple[ExplainedPart, ...] = ()
    head: str = "votes"
    top: tuple[tuple[Any, float], ...] = ()
    prediction_set: tuple[Any, ...] | None = None

    @property
    def counts_votes(self) -> bool:
        """Whether the neighbors have decided by their votes."""
        return self.head == "votes"

    @property
    def distance(self) -> float:
        """To the nearest neighbor; ``+inf`` where there is none."""
        return min((each.distance for each in self.neighbors), default=math.inf)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {
            "query": None if self.query is None else readable(self.query),
            "answer": self.answer,
            "share": self.share,
            "margin": self.margin,
            "distance": self.distance if math.isfinite(self.distance) else None,
            "neighbors": [vars(each).copy() for each in self.neighbors],
            **({} if self.counts_votes else {"head": self.head}),
            **({"parts": [vars(each).copy() for each in self.parts]} if self.parts else {}),
            **({} if self.prediction_set is None else {"set": list(self.prediction_set)}),
        }

    def __str__(self) -> str:
        """Return an aligned table under a line with the answer."""
        return _as_text(self)

    def __repr__(self) -> str:
        facts = {"answer": self.answer, "share": self.share, "distance": self.distance}
        return short_repr(self, **facts, neighbors=len(self.neighbors), query=self.query)

    def _repr_html_(self) -> str:
        return _as_html(self)


class Fitted(Protocol):
    """A classifier that has something to look up, and decides by what it finds."""

    @property
    def retriever_(self) -> Retriever: ...

    @property
    def head_(self) -> DecisionRule: ...

    def set_predictor(self, coverage: float) -> SetPredictor: ...


def explain_stream(
    classifier: Fitted,
    X: Any,
    k: int | None = None,
    on_error: str = "raise",
    skipped: list[SkippedImage] | None = None,
    *,
    by: str = "share",
    top: int = 1,
    coverage: float | None = None,
    progress: Progress | bool | None = None,
) -> Iterator[Explanation]:
    """Explain the answers for any number of images, holding one batch of them at a time.

    Parameters
    ----------
    classifier : RetrievalClassifier
    X : images, or array of shape (n, d) without an encoder
    k : int, optional
        Neighbors to show of each image. Those that vote are always shown.
    on_error : {"raise", "skip"}
        What to do about an image that cannot be decoded.
    skipped : list of SkippedImage, optional
        Receives those that were skipped.
    by : {"share", "margin", "distance"}
        The measure of confidence that each explanation's text shows beside the answer.
    top : int
        The most classes in each explanation's `Explanation.top`.
    coverage : float, optional
        Of each explanation's `Explanation.prediction_set`, as for `RetrievalClassifier.predict_set`.
    progress : callable or True, optional
        As for `RetrievalClassifier.fit`.

    Yields
    ------
    Explanation
        One for each image that is not skipped, in their order.

    Raises
    ------
    NotFittedError
    InvalidInputError
        If there are no images, `k` is not a whole number of at least 1, or `by` is no measure.
    ImageDecodeError
    StoreError
    """
    shown, by, top = 0 if k is None else check_k(k), check_measure(by), check_int(top, "top")
    check_list(skipped, "skipped")
    left_out = skipped if skipped is not None else []
    if not hasattr(classifier, "retriever_"):  # an AttributeError too where it is not fitted
        raise errors.NotFittedError(NOT_FITTED)
    retriever, head = classifier.retriever_, classifier.head_
    predictor = None if coverage is None else classifier.set_predictor(coverage)
    numbers = retriever.index.number_classes()
    with open_progress(progress, "explaining") as report:
        tell = image_counter(report, retriever.count_hint(X), left_out)
        for batch, near in retriever.search(
            X, head.shown, numbers=numbers, on_error=on_error, skipped=left_out, tell=tell
        ):
            vectors = batch.vectors[VECTORS]
            decision = head.decide(vectors, near, numbers)
            shares, margins = decision.share_and_margin
            yield from explain_found(
                retriever.index,
                head,
                near,
                queries=batch.sources,
                answers=numbers.labels(decision.answers).tolist(),
                shares=shares.tolist(),
                margins=margins.tolist(),
                vectors=vectors,
                parts=explained_parts(head.parts(vectors, near, numbers), decision.answers, numbers),
                tops=None if isinstance(decision, Votes) else _top_classes(decision, numbers, top),
                sets=None
                if predictor is None
                else _named_sets(predictor.sets(decision, batch.ids, numbers), numbers),
                shown=shown,
                by=by,
            )


def explain_all(
    classifier: Fitted,
    X: Any,
    k: int | None = None,
    *,
    by: str = "share",
    on_error: str = "raise",
    progress: Progress | bool | None = None,
) -> list[Explanation | None]:
    """Explain the answers for all images together; see `RetrievalClassifier.explain`."""
    skipped = list[SkippedImage]()
    found: list[Explanation | None] = list(
        explain_stream(classifier, X, k, by=by, on_error=on_error, skipped=skipped, progress=progress)
    )
    if skipped:
        for image in sorted(skipped, key=lambda image: image.index):
            found.insert(image.index, None)
        warn_caller(
            f"{len(skipped)} of {len(found)} images were skipped and have no explanation; the first: "
            f"{skipped[0].reason}"
        )
    return found


def explain_found(
    index: LabelledIndex,
    head: DecisionRule,
    near: Neighbors,
    *,
    queries: Sequence[str | os.PathLike[str] | None],
    answers: Sequence[Any],
    shares: Sequence[float],
    margins: Sequence[float],
    vectors: FloatArray,
    shown: int,
    by: str = "share",
    parts: Sequence[tuple[ExplainedPart, ...]] | None = None,
    tops: Sequence[tuple[tuple[Any, float], ...]] | None = None,
    sets: Sequence[tuple[Any, ...]] | None = None,
) -> Iterator[Explanation]:
    """Explain answers whose neighbors are known.

    Parameters
    ----------
    index : LabelledIndex
    head : DecisionRule
    near : Neighbors
        Those that voted, each of shape (n, k).
    queries : sequence of (path or None), length n
    answers : sequence, length n
    shares, margins : sequence of float, length n
        The answers' parts of all votes, and how far these are ahead of the second classes'.
    vectors : ndarray of float32, shape (n, dim)
        Searched again where more neighbors are to be shown than voted.
    shown : int
        Neighbors to show of each, those that voted at least.
    by : {"share", "margin", "distance"}
    parts : sequence of tuple of ExplainedPart, length n, optional
        How each part of the head spoke.
    tops : sequence of tuple of (label, float), length n, optional
        The most probable classes.
    sets : sequence of tuple of labels, length n, optional
        The classes among which the true one is.

    Yields
    ------
    Explanation
    """
    store, votes = index.store, head.shares(near)
    width = min(shown, store.count()) if index.is_searchable else 0
    if width > near.ids.shape[1]:
        # A search of its own: with another k an approximate store may find others to vote.
        near, votes = _joined(near, votes, index.look_up(vectors, width), width)
    labels, sources = _in_fitted_type(near, index.classes.kind), stored_sources(store, near)
    name = str(head.describe()["head"])
    for row, query in enumerate(queries):
        neighbors = tuple(
            ExplainedNeighbor(
                str(near.ids[row, place]),
                labels[row][place],
                float(near.distances[row, place]),
                float(votes[row, place]),
                sources.get(near.ids[row, place]),
            )
            for place in np.flatnonzero(near.valid[row])
        )
        path = None if query is None else os.fspath(query)
        spoken = parts[row] if parts else ()
        top = tops[row] if tops else ()
        told = sets[row] if sets is not None else None
        yield Explanation(
            path, answers[row], shares[row], neighbors, margins[row], by, spoken, name, top, told
        )


def _top_classes(decision: Decision, numbers: ClassNumbers, most: int) -> list[tuple[tuple[Any, float], ...]]:
    """Return the most probable classes of each query, the answer first, those of no probability left out."""
    rows, codes, shares = decision.cells
    order = np.lexsort((codes, -shares, codes != decision.answers[rows], rows))
    places = np.arange(len(rows)) - np.searchsorted(rows[order], rows[order])
    kept = order[(places < most) & (shares[order] > 0)]
    found: list[list[tuple[Any, float]]] = [[] for _ in decision.answers]
    labels = numbers.labels(codes[kept]).tolist()
    for row, label, share in zip(rows[kept].tolist(), labels, shares[kept].tolist(), strict=True):
        found[row].append((label, share))
    return list(map(tuple, found))


def _named_sets(sets: npt.NDArray[np.bool_], numbers: ClassNumbers) -> list[tuple[Any, ...]]:
    """Return the labels of sets, in their order."""
    rows, codes = np.nonzero(sets)
    found: list[list[Any]] = [[] for _ in sets]
    for row, label in zip(rows.tolist(), numbers.labels(codes).tolist(), strict=True):
        found[row].append(label)
    return [tuple(sorted(labels)) for labels in found]


def explained_parts(
    parts: Mapping[str, Decision], answered: npt.NDArray[np.int64], numbers: ClassNumbers
) -> list[tuple[ExplainedPart, ...]]:
    """Tell of each query how each part of a head spoke; empty where it has none.

    Parameters
    ----------
    parts : mapping of str to Decision
    answered : ndarray of int64, shape (n,)
        The classes that were answered, by number.
    numbers : ClassNumbers
    """
    columns = []
    for name, part in parts.items():
        rows, codes, shares = part.cells
        support = np.zeros(len(answered))
        chosen = codes == answered[rows]
        support[rows[chosen]] = shares[chosen]
        answers = numbers.labels(part.answers).tolist()
        columns.append(list(map(ExplainedPart, repeat(name), answers, support.tolist())))
    return list(zip(*columns, strict=True))


def _joined(
    near: Neighbors, shares: npt.NDArray[np.float64], wider: Neighbors, width: int
) -> tuple[Neighbors, npt.NDArray[np.float64]]:
    """Put behind the neighbors of each row those that only the wider search found, without a share."""
    ids = np.full((len(near), width), "", dtype=object)
    distances = np.full((len(near), width), np.inf, dtype=np.float32)
    labels = np.full((len(near), width), near.labels.flat[0], dtype=near.labels.dtype)
    parts = np.zeros((len(near), width))
    for row in range(len(near)):
        voted = near.valid[row]
        more = wider.valid[row] & ~np.isin(wider.ids[row].astype(object), near.ids[row][voted])
        count = int(voted.sum())
        places = np.flatnonzero(more)[: width - count]
        end = count + len(places)
        parts[row, :count] = shares[row][voted]
        for column, first, second in (
            (ids, near.ids, wider.ids),
            (distances, near.distances, wider.distances),
            (labels, near.labels, wider.labels),
        ):
            column[row, :count] = first[row][voted]
            column[row, count:end] = second[row][places]
    return replace(near, ids=ids, distances=distances, labels=labels), parts


def _in_fitted_type(near: Neighbors, kind: str) -> list[list[Any]]:
    """Return the neighbors' labels as plain values; those of padding mean nothing."""
    values = np.empty(near.labels.shape, dtype=object)
    values[near.valid] = fitted_labels(near.labels[near.valid].tolist(), kind)
    plain: list[list[Any]] = values.tolist()
    return plain


def stored_sources(store: VectorStore, near: Neighbors) -> dict[str, str]:
    """Return the paths that are kept with the neighbors, by id."""
    names = list(dict.fromkeys(near.ids[near.valid].tolist()))
    found: dict[str, str] = {}
    for start in range(0, len(names), LOOKED_UP):
        records = store.get(names[start : start + LOOKED_UP])
        for name, metadata in zip(records.ids.tolist(), records.metadata, strict=True):
            source = metadata.get("source")
            if isinstance(source, str):
                found[name] = source
    return found


def _as_text(explanation: Explanation) -> str:
    """Return an explanation as an aligned table under a line with the answer."""
    lines = [_headline(explanation), *([f"  {_spoken(explanation)}"] if explanation.parts else [])]
    header = ("share", "distance", "label", "id", "source")
    rows = [
        (
            f"{each.share:.1%}" if explanation.counts_votes else "-",
            f"{each.distance:.4g}",
            shortened(each.label, WIDEST_LABEL),
            shortened(each.id, WIDEST_ID),
            "-" if each.source is None else shortened(each.source, WIDEST_PATH),
        )
        for each in explanation.neighbors
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        numbers = [text.rjust(width) for text, width in zip(row[:2], widths[:2], strict=True)]
        words = [text.ljust(width) for text, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(("", *numbers, *words)).rstrip())
    return "\n".join(lines)


def _as_html(explanation: Explanation) -> str:
    """Return an explanation as HTML that needs nothing from elsewhere: thumbnails are within it."""
    cards = [
        _card(
            each.source,
            [
                shortened(each.label, WIDEST_LABEL),
                (f"{each.share:.1%} · " if explanation.counts_votes else "") + f"{each.distance:.4g}",
            ],
            faint=explanation.counts_votes and not each.share,
        )
        for each in explanation.neighbors
    ]
    asked = _card(explanation.query, ["asked"])
    text = html.escape(_spoken(explanation))
    spoken = f'<p style="font:12px sans-serif;color:#777">{text}</p>' if explanation.parts else ""
    return (
        f'<div><p style="font:13px sans-serif">{html.escape(_headline(explanation))}</p>{spoken}'
        f'<div style="display:flex;flex-wrap:wrap;gap:8px">{asked}'
        '<div style="border-left:1px solid #999"></div>'
        f"{''.join(cards)}</div></div>"
    )


def _headline(explanation: Explanation) -> str:
    where = "" if explanation.query is None else f" for {shortened(explanation.query, WIDEST_PATH)}"
    answer = shortened(explanation.answer, WIDEST_LABEL)
    value = getattr(explanation, explanation.by)
    sure = (
        "" if value is None else f" ({measure_text(explanation.by, value, votes=explanation.counts_votes)})"
    )
    return f"{answer}{where}{sure}"


def _spoken(explanation: Explanation) -> str:
    """Return how each part spoke, in one line."""
    return "; ".join(
        f"{part.name}: {shortened(part.answer, WIDEST_LABEL)}"
        + (f" {part.share:.1%}" if part.answer == explanation.answer else f" (the answer {part.share:.1%})")
        for part in explanation.parts
    )


def _card(path: str | None, lines: list[str], faint: bool = False) -> str:
    """Return an image with a caption, and its path where the mouse rests on it."""
    title = "" if path is None else f' title="{html.escape(readable(path))}"'
    caption = "<br>".join(html.escape(line) for line in lines)
    opacity = "opacity:0.55;" if faint else ""
    return (
        f'<figure style="{_CARD}{opacity}"{title}>{_picture(path)}<figcaption>{caption}</figcaption></figure>'
    )


def _picture(path: str | None) -> str:
    found = None if path is None else thumbnail(path)
    if found is not None:
        name = html.escape(shortened(path, WIDEST_PATH))
        return f'<div style="{_BOX}"><img alt="{name}" src="data:image/jpeg;base64,{found}"></div>'
    text = "no file" if path is None else f"not readable: {shortened(path, WIDEST_PATH)}"
    return f'<div style="{_BOX}border:1px dashed #999;color:#777">{html.escape(text)}</div>'
