"""One search, many settings: the accuracy of each, from the same neighbors and the same statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import check_bool, check_sequence
from clipretrieval._util.labels import Spelling, label_kind, stored_labels
from clipretrieval._util.progress import Progress, image_counter
from clipretrieval._util.repr import short_repr
from clipretrieval._util.timing import Timing
from clipretrieval.encoding.streams import VECTORS
from clipretrieval.errors import InvalidInputError
from clipretrieval.evaluation.metrics import wilson_interval
from clipretrieval.evaluation.validation import Validation, count_known
from clipretrieval.heads.base import Head
from clipretrieval.heads.choice import as_heads, choose_head, head_name
from clipretrieval.heads.decision import Decision
from clipretrieval.heads.fitted_head import DecisionRule
from clipretrieval.heads.votes import Candidates
from clipretrieval.heads.voting import Voting
from clipretrieval.heads.weighting import Weighting, vote_weights, weighting_name
from clipretrieval.images.sources import count_hint
from clipretrieval.images.stream import SkippedImage
from clipretrieval.images.tables import labelled_source
from clipretrieval.retrieval.classes import ClassNumbers
from clipretrieval.retrieval.retriever import Retriever
from clipretrieval.retrieval.true_labels import check_kind, check_truth
from clipretrieval.types import Metric, Neighbors

__all__ = ["SweepResult", "sweep"]


@dataclass(frozen=True)
class _Setting:
    """One combination.

    Attributes
    ----------
    head : str or Head
    rule : Head or None
        What the head learns by; None where the neighbors vote.
    k : int
        Neighbors that it reads.
    weights : str, callable or None
        Of votes.
    temperature : float or None
        Of softmax.
    params : dict
        The arguments that stand for it.
    """

    head: Any = field(compare=False)
    rule: Head | None
    k: int
    weights: Weighting | None
    temperature: float | None
    params: dict[str, Any] = field(compare=False)

    @property
    def warmth(self) -> dict[str, float]:
        return {} if self.temperature is None else {"temperature": self.temperature}


@dataclass(frozen=True, eq=False)
class SweepResult:
    """The accuracy of every setting, on the same validation images.

    Attributes
    ----------
    rows : list of dict
        One a combination, in the order of head, k, weights and temperature as they were given: ``head`` (an
        object by its name and arguments), ``k`` (None where it reads no neighbors), ``weights`` (None except
        for votes; a callable by its name), ``temperature`` (None except for softmax), ``accuracy`` in
        [0, 1], ``n`` (validation images), ``low`` and ``high`` (the 95 % Wilson interval).
    held_out : ndarray of int64, shape (n_held_out,)
        Places in `X`, counted from 0, of the images that no sweep since the last fit has tuned on, those
        that were skipped aside.
    params : list of dict
        The arguments of each row, as ``set_params`` takes them.
    timing : Timing
        Of decoding and encoding all images, and of searching those of the validation part.
    skipped : tuple of SkippedImage
    """

    rows: list[dict[str, Any]]
    held_out: npt.NDArray[np.int64]
    params: list[dict[str, Any]]
    timing: Timing = field(default_factory=Timing)
    skipped: tuple[SkippedImage, ...] = ()

    @property
    def best(self) -> dict[str, Any]:
        """The row of the highest accuracy; of equal ones that of the smallest k, then the first."""
        return self.rows[self._place]

    @property
    def best_params(self) -> dict[str, Any]:
        """The best row's arguments: ``classifier.set_params(**result.best_params)``."""
        return dict(self.params[self._place])

    @property
    def _place(self) -> int:
        return self.ranked[0]

    @property
    def ranked(self) -> list[int]:
        """The places of the rows, that of `best` first, and the others as they compare."""
        return sorted(
            range(len(self.rows)),
            key=lambda place: (-self.rows[place]["accuracy"], self.rows[place]["k"] or 0),
        )

    def table(self) -> str:
        """Return the rows as aligned text, the best one marked with ``*``."""
        names = ["head", "k", "weights", "temperature"]
        if all(row["head"] == "votes" for row in self.rows):
            names.remove("head")
        cells = [[_cell(row[name]) for name in names] for row in self.rows]
        widths = [max(len(each) for each in column) for column in zip(names, *cells, strict=True)]
        widths = [max(width, 7) if name == "k" else width for name, width in zip(names, widths, strict=True)]

        def line(texts: list[str]) -> str:
            return " ".join(
                text.ljust(width) if name in ("head", "weights") else text.rjust(width)
                for name, text, width in zip(names, texts, widths, strict=True)
            )

        lines = [f"  {line(names)} {'accuracy':>8}  95 % interval"]
        for place, (row, texts) in enumerate(zip(self.rows, cells, strict=True)):
            mark = "*" if place == self._place else " "
            lines.append(
                f"{mark} {line(texts)} {row['accuracy']:>8.2%}  {row['low']:.2%} to {row['high']:.2%}"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: ``rows``, ``best``, ``held_out`` and ``n_skipped``."""
        return {
            "rows": [dict(row) for row in self.rows],
            "best": dict(self.best),
            "held_out": self.held_out.tolist(),
            "n_skipped": len(self.skipped),
        }

    def __repr__(self) -> str:
        best = {name: self.best[name] for name in ("head", "k", "weights", "temperature", "accuracy")}
        return short_repr(self, rows=len(self.rows), best=best, held_out=len(self.held_out))

    def __str__(self) -> str:
        return f"{self.table()}\non {self.rows[0]['n']} validation images; {len(self.held_out)} held out"


def sweep(
    retriever: Retriever,
    X: Any,
    y: Any,
    *,
    head: Any,
    own_head: Any,
    learn: Callable[[list[tuple[Head, str]]], Sequence[DecisionRule]],
    k: int | Iterable[int],
    weights: Weighting | Iterable[Weighting],
    temperature: float | Iterable[float],
    validation: float | str | None,
    allow_known: bool,
    tuned: frozenset[str],
    on_error: str,
    progress: Progress,
    seed: int,
) -> tuple[SweepResult, frozenset[str]]:
    """Measure many settings with one search; see `RetrievalClassifier.sweep`.

    Parameters
    ----------
    own_head : str or Head
        What answers where `head` is None.
    learn : callable
        Given heads with their names, returns each one as it has learned from the index.
    tuned : frozenset of str
        The content ids of the images that were tuned on before.

    Returns
    -------
    SweepResult
    frozenset of str
        The content ids of the images that were tuned on before or now.
    """
    index = retriever.index
    allow_known = check_bool(allow_known, "allow_known")
    check_truth(index, X, y)
    X = labelled_source(X, y) if index.encoder is not None else X
    settings = _settings(index.metric, head, own_head, k, weights, temperature)
    part = Validation(validation, seed, tuned)
    timing, skipped = Timing(), list[SkippedImage]()
    tell = image_counter(progress, count_hint(X) if index.encoder is not None else None, skipped)
    learned = dict(zip(*_learned(settings, learn), strict=True))
    numbers = index.number_classes()
    spelling = Spelling(index.classes.labels.tolist())
    right = np.zeros(len(settings), dtype=np.int64)
    kind: str | None = None
    done = 0
    batches = retriever.search(
        X,
        # One at least: images that the store holds are known by it.
        max(int(not allow_known), *(setting.k for setting in settings)),
        y=y,
        numbers=numbers,
        on_error=on_error,
        skipped=skipped,
        pick=lambda source: part.pick(source, timing, tell),
        timing=timing,
    )
    for batch, near in batches:
        done += len(batch)
        if not allow_known:
            _check_unknown(batch.ids, near, done)
        kind = label_kind(batch.labels, kind, places=batch.indices)
        check_kind(kind, index.classes.kind)
        truth = spelling.apply(stored_labels(batch.labels, kind, index.classes.kind))
        decide = _voter(near, numbers, index.metric)
        wanted = numbers.of_labels(truth)  # behind the neighbors, among which new classes turn up
        for place, setting in enumerate(settings):
            decision = (
                decide(setting)
                if setting.rule is None
                else learned[place].decide(batch.vectors[VECTORS], near, numbers)
            )
            right[place] += (decision.answers == wanted).sum()
    result = SweepResult(
        rows=[_row(setting, int(count), done) for setting, count in zip(settings, right, strict=True)],
        held_out=np.array(part.held_out, dtype=np.int64),
        params=[setting.params for setting in settings],
        timing=timing,
        skipped=tuple(skipped),
    )
    return result, tuned | part.ids


def _settings(
    metric: Metric, head: Any, own_head: Any, k: Any, weights: Any, temperature: Any
) -> list[_Setting]:
    """Combine what was given, each combination once, refusing what the classifier itself would refuse."""
    given = {"k": k, "weights": weights, "temperature": temperature}
    axes = {name: _listed(values, name) for name, values in given.items()}
    axes["head"] = [own_head] if head is None else as_heads(head, "head")
    for name, values in axes.items():
        if not values:
            raise InvalidInputError(f"{name} holds nothing to try; pass at least one value")
    for number, weighting, warmth in product(axes["k"], axes["weights"], axes["temperature"]):
        Voting(number, weighting, warmth, metric).check()
    several = sorted({int(number) for number in axes["k"] if number > 1}) or [1]
    settings: list[_Setting] = []
    for each in axes["head"]:
        own = {} if head is None else {"head": each}
        if choose_head(each, 1) is None:
            found = [
                _voting(number, weighting, warmth, own)
                for number, weighting, warmth in product(axes["k"], axes["weights"], axes["temperature"])
            ]
        else:
            named = isinstance(each, str) and each == "fused"
            found = [_learning(each, number, own, named) for number in (several if named else [1])]
        for setting in found:
            if setting not in settings:
                settings.append(setting)
    return settings


def _voting(number: int, weighting: Weighting, warmth: float, own: dict[str, Any]) -> _Setting:
    softmax = isinstance(weighting, str) and weighting == "softmax"
    temperature = float(warmth) if softmax else None
    params = {**own, "k": int(number), "weights": weighting}
    if temperature is not None:
        params["temperature"] = temperature
    return _Setting("votes", None, int(number), weighting, temperature, params)


def _learning(head: Any, number: int, own: dict[str, Any], takes_k: bool) -> _Setting:
    """Return the setting of a head that learns; the classifier's k is that of some heads by name."""
    rule = choose_head(head, number)
    read = 0 if rule is None else int(rule.k)
    return _Setting(head, rule, read, None, None, {**own, **({"k": read} if takes_k else {})})


def _learned(
    settings: list[_Setting], learn: Callable[[list[tuple[Head, str]]], Sequence[DecisionRule]]
) -> tuple[list[int], Sequence[DecisionRule]]:
    """Return the places of the settings whose heads learn, and these as they have learned."""
    heads = [(place, each.rule, head_name(each.head)) for place, each in enumerate(settings) if each.rule]
    if not heads:
        return [], []
    return [place for place, *_ in heads], learn([(rule, name) for _, rule, name in heads])


def _listed(values: Any, name: str) -> list[Any]:
    single = isinstance(values, str | bytes) or callable(values) or not isinstance(values, Iterable)
    return [values] if single else check_sequence(values, name, "values to try")


def _check_unknown(ids: list[str], near: Neighbors, done: int) -> None:
    known = count_known(ids, near)
    if known:
        raise InvalidInputError(
            f"{known} of the first {done} validation images are stored, and each would vote for itself; "
            "tune on images that the classifier does not know, or pass allow_known=True"
        )


def _voter(near: Neighbors, numbers: ClassNumbers, metric: Metric) -> Callable[[_Setting], Decision]:
    """Return what counts the votes of some neighbors by a setting."""
    candidates = Candidates.of(numbers.codes(near), near.distances, len(numbers))
    weigh = _weigher(near, metric)
    return lambda setting: candidates.votes(weigh(setting), near.distances[:, : setting.k])


def _weigher(near: Neighbors, metric: Metric) -> Callable[[_Setting], npt.NDArray[np.float64]]:
    """Return what gives a setting's weights for the first k of some neighbors."""
    known: dict[tuple[str, float | None], npt.NDArray[np.float64]] = {}

    def weigh(setting: _Setting) -> npt.NDArray[np.float64]:
        if not isinstance(setting.weights, str):
            if setting.weights is None:
                raise TypeError(f"{setting.head} does not count votes")
            return vote_weights(near.distances[:, : setting.k], setting.weights, metric=metric)
        # Those of the first k neighbors are the first k columns: see vote_weights.
        name = (setting.weights, setting.temperature)
        if name not in known:
            known[name] = vote_weights(near.distances, setting.weights, metric=metric, **setting.warmth)
        return known[name][:, : setting.k]

    return weigh


def _cell(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:g}"


def _row(setting: _Setting, right: int, n: int) -> dict[str, Any]:
    low, high = wilson_interval(right, n)
    return {
        "head": head_name(setting.head),
        "k": setting.k or None,
        "weights": None if setting.weights is None else weighting_name(setting.weights),
        "temperature": setting.temperature,
        "accuracy": right / n,
        "n": n,
        "low": low,
        "high": high,
    }
