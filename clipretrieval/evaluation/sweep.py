"""One search, many settings: the accuracy of each, from the same neighbors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
from clipretrieval.errors import InvalidInputError
from clipretrieval.evaluation.measurement import check_kind, check_truth
from clipretrieval.evaluation.metrics import wilson_interval
from clipretrieval.evaluation.validation import Validation, count_known
from clipretrieval.heads.votes import Candidates
from clipretrieval.heads.voting import Voting
from clipretrieval.heads.weighting import Weighting, vote_weights, weighting_name
from clipretrieval.images.sources import count_hint
from clipretrieval.images.stream import SkippedImage
from clipretrieval.images.tables import labelled_source
from clipretrieval.retrieval.classes import ClassNumbers
from clipretrieval.retrieval.retriever import Retriever
from clipretrieval.types import Label, Metric, Neighbors

__all__ = ["SweepResult", "sweep"]


@dataclass(frozen=True)
class _Setting:
    """One combination; `temperature` is None where the weighting has none."""

    k: int
    weights: Weighting
    temperature: float | None

    @property
    def warmth(self) -> dict[str, float]:
        return {} if self.temperature is None else {"temperature": self.temperature}

    @property
    def params(self) -> dict[str, Any]:
        return {"k": self.k, "weights": self.weights, **self.warmth}


@dataclass(frozen=True, eq=False)
class SweepResult:
    """The accuracy of every setting, on the same validation images.

    Attributes
    ----------
    rows : list of dict
        One a combination, in the order of k, weights and temperature as they were given: ``k``,
        ``weights`` (a callable by its name), ``temperature`` (None except for softmax), ``accuracy`` in
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
        order = [(-row["accuracy"], row["k"], place) for place, row in enumerate(self.rows)]
        return min(order)[2]

    def table(self) -> str:
        """Return the rows as aligned text, the best one marked with ``*``."""
        width = max(len("weights"), *(len(row["weights"]) for row in self.rows))
        lines = [f"  {'k':>7} {'weights':<{width}} {'temperature':>11} {'accuracy':>8}  95 % interval"]
        for place, row in enumerate(self.rows):
            mark = "*" if place == self._place else " "
            temperature = "-" if row["temperature"] is None else f"{row['temperature']:g}"
            lines.append(
                f"{mark} {row['k']:>7} {row['weights']:<{width}} {temperature:>11} {row['accuracy']:>8.2%}  "
                f"{row['low']:.2%} to {row['high']:.2%}"
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
        best = {name: self.best[name] for name in ("k", "weights", "temperature", "accuracy")}
        return short_repr(self, rows=len(self.rows), best=best, held_out=len(self.held_out))

    def __str__(self) -> str:
        return f"{self.table()}\non {self.rows[0]['n']} validation images; {len(self.held_out)} held out"


def sweep(
    retriever: Retriever,
    X: Any,
    y: Any,
    *,
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

    `tuned` has the content ids of the images that were tuned on before; those that are now too are returned
    with them.
    """
    index = retriever.index
    allow_known = check_bool(allow_known, "allow_known")
    check_truth(index, X, y)
    X = labelled_source(X, y) if index.encoder is not None else X
    settings = _settings(index.metric, k, weights, temperature)
    part = Validation(validation, seed, tuned)
    timing, skipped = Timing(), list[SkippedImage]()
    tell = image_counter(progress, count_hint(X) if index.encoder is not None else None, skipped)
    numbers = index.number_classes()
    spelling = Spelling(index.classes.labels.tolist())
    right = np.zeros(len(settings), dtype=np.int64)
    kind: str | None = None
    done = 0
    batches = retriever.search(
        X,
        max(setting.k for setting in settings),
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
        right += _right_answers(settings, near, truth, numbers, index.metric)
    result = SweepResult(
        rows=[_row(setting, int(count), done) for setting, count in zip(settings, right, strict=True)],
        held_out=np.array(part.held_out, dtype=np.int64),
        params=[setting.params for setting in settings],
        timing=timing,
        skipped=tuple(skipped),
    )
    return result, tuned | part.ids


def _settings(metric: Metric, k: Any, weights: Any, temperature: Any) -> list[_Setting]:
    """Combine what was given, each combination once, refusing what the classifier itself would refuse."""
    given = {"k": k, "weights": weights, "temperature": temperature}
    axes = {name: _listed(values, name) for name, values in given.items()}
    for name, values in axes.items():
        if not values:
            raise InvalidInputError(f"{name} holds nothing to try; pass at least one value")
    settings: list[_Setting] = []
    for number, weighting, warmth in product(*axes.values()):
        Voting(number, weighting, warmth, metric).check()
        softmax = isinstance(weighting, str) and weighting == "softmax"
        setting = _Setting(int(number), weighting, float(warmth) if softmax else None)
        if setting not in settings:
            settings.append(setting)
    return settings


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


def _right_answers(
    settings: list[_Setting], near: Neighbors, truth: list[Label], numbers: ClassNumbers, metric: Metric
) -> npt.NDArray[np.int64]:
    """Count the right answers of each setting among some images, shape (n_settings,)."""
    candidates = Candidates.of(numbers.codes(near), near.distances, len(numbers))
    wanted = numbers.of_labels(truth)
    weigh = _weigher(near, metric)
    right = []
    for setting in settings:
        votes = candidates.votes(weigh(setting), near.distances[:, : setting.k])
        right.append((votes.answers == wanted).sum())
    return np.array(right, dtype=np.int64)


def _weigher(near: Neighbors, metric: Metric) -> Callable[[_Setting], npt.NDArray[np.float64]]:
    """Return what gives a setting's weights for the first k of some neighbors."""
    known: dict[tuple[str, float | None], npt.NDArray[np.float64]] = {}

    def weigh(setting: _Setting) -> npt.NDArray[np.float64]:
        if not isinstance(setting.weights, str):
            return vote_weights(near.distances[:, : setting.k], setting.weights, metric=metric)
        # Those of the first k neighbors are the first k columns: see vote_weights.
        name = (setting.weights, setting.temperature)
        if name not in known:
            known[name] = vote_weights(near.distances, setting.weights, metric=metric, **setting.warmth)
        return known[name][:, : setting.k]

    return weigh


def _row(setting: _Setting, right: int, n: int) -> dict[str, Any]:
    low, high = wilson_interval(right, n)
    return {
        "k": setting.k,
        "weights": weighting_name(setting.weights),
        "temperature": setting.temperature,
        "accuracy": right / n,
        "n": n,
        "low": low,
        "high": high,
    }
