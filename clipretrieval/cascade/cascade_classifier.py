"""Classify by retrieval at several stages, each image only as deep as it has to go."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

from clipretrieval._util.checks import (
    check_bool,
    check_choice,
    check_int,
    check_number,
    check_sequence,
    shown,
)
from clipretrieval._util.progress import Progress, check_progress, open_progress
from clipretrieval._util.secrets import MaskedDict
from clipretrieval._util.timing import Timing
from clipretrieval._util.warning import warn_caller
from clipretrieval.cascade.cascade_pass import CascadePass, ExitAnswer
from clipretrieval.cascade.exit_policy import CERTAINTIES, PRICES, ExitEvidence, ExitPolicy
from clipretrieval.cascade.risk_control import last_accepted, least_sample
from clipretrieval.classifier import ArgumentOnly, RetrievalClassifier, params_of
from clipretrieval.encoding.staged_encoder import StagedEncoder, stopped_at
from clipretrieval.errors import InvalidInputError, NotFittedError
from clipretrieval.heads.base import Head
from clipretrieval.heads.voting import TEMPERATURE
from clipretrieval.heads.weighting import Weighting
from clipretrieval.heads.whitening import AUTO, Whitening
from clipretrieval.images.sources import class_names, count_hint
from clipretrieval.images.stream import SkippedImage
from clipretrieval.retrieval.conflicts import warn_of_labels
from clipretrieval.retrieval.exclusive import one_at_a_time
from clipretrieval.retrieval.fill import known_to_all, store_images
from clipretrieval.retrieval.index_writer import Existing
from clipretrieval.retrieval.inputs import FitSource, none_left, open_fit_source
from clipretrieval.retrieval.manifest import plain_fingerprint
from clipretrieval.retrieval.reports import FitReport, ForgetReport
from clipretrieval.stores.base import VectorStore
from clipretrieval.stores.registry import DEFAULT_STORE, options_for_part
from clipretrieval.types import AnyArray, Metric

__all__ = ["Calibration", "CascadeClassifier"]

Self = TypeVar("Self", bound="CascadeClassifier")

STAGES = ("layer1", "layer2", "mid", "late")
HELD_OUT = 1000
"""Stored images that the policy is learned on, at most."""
LEAST_HELD_OUT = 100
NOT_FITTED = "this CascadeClassifier is not fitted yet; call fit with labelled images, or load a saved one"


@dataclass(frozen=True)
class Calibration:
    """What `CascadeClassifier.calibrate` has set, and what it saw.

    Attributes
    ----------
    n : int
        Images that it was calibrated on.
    max_loss, confidence : float or None
        What was promised; None with a budget.
    budget : float or None
        In 10⁹ multiply-adds an image.
    price : float or None
        See `ExitPolicy`; None: nothing leaves before the last exit.
    loss : float
        The accuracy of always going to the last exit less that of the cascade, on these images.
    cost, last_cost : float
        Mean arithmetic of the cascade on them, and of the last exit, in 10⁹ multiply-adds an image.
    shares : tuple of float
        The share of the images that left at each exit.
    """

    n: int
    max_loss: float | None
    confidence: float | None
    budget: float | None
    price: float | None
    loss: float
    cost: float
    last_cost: float
    shares: tuple[float, ...]


class CascadeClassifier(ClassifierMixin, BaseEstimator):
    """Classify images at the first of several stages that is sure.

    Each exit is a `~clipretrieval.RetrievalClassifier` at a stage of its own; all are filled by one pass over
    the images, which are added, forgotten and relabelled at all of them. `calibrate` decides how sure an exit
    has to be. An image that goes on computes nothing twice.

    Parameters
    ----------
    encoder : StagedEncoder
        Its own stage is of no consequence.
    stages : sequence of str
        The exits, at least two, each deeper than the one before. Joined stages, such as ``"layer1+layer2"``,
        cost what the deepest costs.
    head, k, weights, temperature, priors, metric, normalize, transform
        As for `~clipretrieval.RetrievalClassifier`, of every exit.
    store : str, or mapping of stage to VectorStore
        A name opens a store for each stage.
    store_options : mapping, optional
        For the stores that a name makes. The option that tells several apart gets the stage's name behind
        what is given: a sub-folder of `path` with FAISS, ``collection-layer1`` with Chroma.
    certainty : {"combined", "margin", "agreement", "distance"}
        What tells how sure an exit is: how far the first class is ahead of the second, whether the exit before
        gave the same answer, the distance to the nearest neighbor, or the first two together. What leaving
        loses is estimated from these, by logistic regressions on stored images that are left out one by one.

    Attributes
    ----------
    exits_ : tuple of RetrievalClassifier
        One for each stage.
    classes_ : ndarray, shape (n_classes,)
    policy_ : ExitPolicy
        What lets images leave.
    calibration_ : Calibration or None
        What was last calibrated.
    fit_report_ : FitReport
        Of the last exit.
    skipped_ : list of SkippedImage

    """

    transform = ArgumentOnly()
    exits_: tuple[RetrievalClassifier, ...]
    policy_: ExitPolicy
    calibration_: Calibration | None
    fit_report_: FitReport
    skipped_: list[SkippedImage]

    def __init__(
        self,
        encoder: StagedEncoder,
        stages: Sequence[str] = STAGES,
        *,
        head: str | Head = "fused",
        store: str | Mapping[str, VectorStore] = DEFAULT_STORE,
        k: int = 1,
        weights: Weighting = "uniform",
        temperature: float = TEMPERATURE,
        priors: Any = "equal",
        metric: Metric | str = "l2",
        normalize: bool = False,
        transform: str | Whitening | None = AUTO,
        store_options: Mapping[str, Any] | None = None,
        certainty: str = "combined",
    ) -> None:
        self.encoder = encoder
        self.stages = stages
        self.head = head
        self.store = store
        self.k = k
        self.weights = weights
        self.temperature = temperature
        self.priors = priors
        self.metric = metric
        self.normalize = normalize
        self.transform = transform
        self.store_options = store_options
        self.certainty = certainty

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments by name; `store_options` is printed with its secrets masked."""
        return params_of(self, deep)

    def fit(
        self: Self,
        X: Any,
        y: Any = None,
        *,
        overwrite: bool = False,
        resume: bool = False,
        flush_every: int | None = None,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
    ) -> Self:
        """Encode labelled images once, and store them at every exit.

        Parameters, errors and warnings are those of `RetrievalClassifier.fit`. With ``resume=True``, images
        are encoded that one exit or another does not have. The cascade has to be calibrated anew.

        Returns
        -------
        CascadeClassifier
            Itself.
        """
        overwrite, resume = check_bool(overwrite, "overwrite"), check_bool(resume, "resume")
        if overwrite and resume:
            raise InvalidInputError("overwrite=True and resume=True exclude each other; pass one of them")
        existing: Existing = "replace" if overwrite else "resume" if resume else "refuse"
        with one_at_a_time(self):
            exits = self._make_exits(renew=True)
            self._learn(exits, X, y, existing, flush_every, on_error, progress)
            self.policy_, self.calibration_ = self._learn_policy(), None
        warn_of_labels(self.fit_report_, self.classes_.tolist(), vectors=False)
        return self

    def partial_fit(
        self: Self,
        X: Any,
        y: Any = None,
        *,
        classes: Any = None,
        flush_every: int | None = None,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
    ) -> Self:
        """Add labelled images at every exit; see `RetrievalClassifier.partial_fit`.

        What was calibrated stays as it was. After changes of many images, calibrate anew.
        """
        known = getattr(self, "classes_", ())
        with one_at_a_time(self):
            fitted = hasattr(self, "exits_")
            exits = self.exits_ if fitted else self._make_exits(renew=False)
            self._learn(exits, X, y, "add", flush_every, on_error, progress, classes)
            if not fitted:
                self.policy_, self.calibration_ = self._learn_policy(), None
        warn_of_labels(self.fit_report_, self.classes_.tolist(), known=known, vectors=False)
        return self

    def forget(self, ids: Any = None, *, label: Any = None) -> ForgetReport:
        """Remove images at every exit, by their ids or all of a class; see `RetrievalClassifier.forget`."""
        with one_at_a_time(self._fitted()):
            return [each.forget(ids, label=label) for each in self.exits_][-1]

    def relabel(self, ids: Any, labels: Any) -> int:
        """Give stored images other labels at every exit; see `RetrievalClassifier.relabel`."""
        with one_at_a_time(self._fitted()):
            return [each.relabel(ids, labels) for each in self.exits_][-1]

    def calibrate(
        self: Self,
        X: Any,
        y: Any = None,
        *,
        max_loss: float = 0.005,
        confidence: float = 0.95,
        budget: float | None = None,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
    ) -> Self:
        """Set how sure an exit has to be, on images that were not fitted.

        With the given confidence over the draw of these images, the cascade's accuracy on others like them is
        at most `max_loss` below that of always going to the last exit: Learn then Test, with bets; see
        `clipretrieval.cascade.betting_p_value`. All images go to the last exit meanwhile.

        Parameters
        ----------
        X, y, on_error, progress
            As for `fit`; images that are not stored.
        max_loss : float
            Accuracy that may be lost, in (0, 1): 0.005 is half a point.
        confidence : float
            In (0, 1).
        budget : float, optional
            Instead of a promise: the mean arithmetic of an image, in 10⁹ multiply-adds; the cascade is as
            accurate as it can be at that.

        Returns
        -------
        CascadeClassifier
            Itself; ``calibration_`` tells what was set.

        Raises
        ------
        NotFittedError
        InvalidInputError
            If there are too few images to promise that (the message says how many it takes), one of them is
            stored, labels are missing or of another type, or the budget is below the first exit's arithmetic.
        """
        self._fitted()
        bound = check_number(max_loss, "max_loss", above=0, most=0.999)
        level = check_number(confidence, "confidence", above=0, most=0.999999)
        wanted = None if budget is None else check_number(budget, "budget", above=0)
        costs = self._costs()
        if wanted is not None and wanted < costs[0]:
            raise InvalidInputError(
                f"budget={wanted:g} is less than the {costs[0]:.3g} · 10⁹ multiply-adds that it takes to reach "
                f"the first exit, {self.stages[0]!r}; pass at least that"
            )
        with open_progress(progress, "calibrating") as tell:
            evidence, ids = self._evidence(X, y, on_error, tell)
        evidence = _reordered(evidence, np.argsort(np.array(ids)))  # ids are hashes: no order of the source
        n = len(evidence)
        if wanted is None:
            needed = least_sample(bound, level)
            if needed is not None and n < needed:
                raise InvalidInputError(
                    f"{n} images are too few to promise a loss of at most {bound:g} with a confidence of "
                    f"{level:g}: it takes at least {needed}, of which no one is lost. Pass more images, or a "
                    "greater max_loss, or a budget"
                )
            number = last_accepted(
                (_losses(evidence, self.policy_.at(price)) for price in PRICES.tolist()), bound, level
            )
            price = None if number is None else float(PRICES[number])
        else:
            price = _dearest(evidence, self.policy_, costs, wanted)
        self.policy_ = self.policy_.at(price)
        places = self.policy_.exits(evidence)
        self.calibration_ = Calibration(
            n=n,
            max_loss=None if wanted is not None else bound,
            confidence=None if wanted is not None else level,
            budget=wanted,
            price=price,
            loss=float(_losses(evidence, self.policy_).mean()),
            cost=float(np.array(costs)[places].mean()),
            last_cost=costs[-1],
            shares=tuple((np.bincount(places, minlength=len(costs)) / n).tolist()),
        )
        self._calibrated_on = frozenset(ids)
        return self

    def predict(
        self, X: Any, *, on_error: str = "raise", progress: Progress | bool | None = None
    ) -> AnyArray:
        """Return the label of each image; see `RetrievalClassifier.predict`.

        Warns
        -----
        ClipRetrievalWarning
            If the cascade was never calibrated: all images then go to the last exit.
        """
        asked, total, answers = self._ask(X), count_hint(X), dict[int, Any]()
        with open_progress(progress, "classifying") as tell:
            for batch, said in asked.answers(X, on_error=on_error, tell=tell, total=total):
                answers.update(
                    (index, each[-1].answer) for index, each in zip(batch.indices, said, strict=True)
                )
        return self._arranged(answers, asked.skipped, on_error)

    def predict_proba(
        self, X: Any, *, on_error: str = "raise", progress: Progress | bool | None = None
    ) -> AnyArray:
        """Return the probability of each class at the exit where an image leaves.

        Returns
        -------
        ndarray of float64, shape (n, n_classes)
            Rows sum to 1; columns in the order of ``classes_``. NaN where an image was skipped.
        """
        asked, total = self._ask(X, probabilities=True), count_hint(X)
        rows: dict[int, ExitAnswer] = {}
        with open_progress(progress, "classifying") as tell:
            for batch, said in asked.answers(X, on_error=on_error, tell=tell, total=total):
                rows.update((index, each[-1]) for index, each in zip(batch.indices, said, strict=True))
        columns = {label: place for place, label in enumerate(self.classes_.tolist())}
        places = [
            np.array([columns[label] for label in numbers.labels(np.arange(len(numbers))).tolist()])
            for numbers in asked.numbers
        ]
        count = max(*rows, *(image.index for image in asked.skipped), -1) + 1
        found = np.zeros((count, len(columns)))
        found[[image.index for image in asked.skipped]] = np.nan
        for index, said in rows.items():
            if said.probabilities is not None:
                found[index, places[said.place][: len(said.probabilities)]] = said.probabilities
        return found

    @property
    def classes_(self) -> AnyArray:
        """The labels, sorted, of the type that was fitted."""
        if not hasattr(self, "exits_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute 'classes_'")
        return self.exits_[-1].classes_

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "exits_")

    def _fitted(self: Self) -> Self:
        if not hasattr(self, "exits_"):
            raise NotFittedError(NOT_FITTED)
        return self

    def _costs(self) -> list[float]:
        return [self.encoder.multiply_adds(stage) for stage in self.stages]

    def _ask(self, X: Any, **options: Any) -> CascadePass:
        self._fitted()
        if self.calibration_ is None:
            warn_caller(
                "this cascade was never calibrated, so all images go to the last exit; call calibrate with "
                "labelled images that were not fitted"
            )
        return CascadePass(self.encoder, self.stages, self.exits_, self.policy_, **options)

    def _arranged(
        self, answers: Mapping[int, Any], skipped: Sequence[SkippedImage], on_error: str
    ) -> AnyArray:
        """Return answers in the order of their images, of the type that was fitted."""
        if not skipped and on_error == "raise":
            return np.array([answers[index] for index in sorted(answers)], dtype=self.classes_.dtype)
        count = max(*answers, *(image.index for image in skipped), -1) + 1
        found = np.full(count, None, dtype=object)
        for index, answer in answers.items():
            found[index] = answer
        if skipped:
            warn_caller(
                f"{len(skipped)} of {count} images were skipped and have an empty answer; the first: "
                f"{skipped[0].reason}"
            )
        return found

    def _evidence(self, X: Any, y: Any, on_error: str, tell: Progress) -> tuple[ExitEvidence, list[str]]:
        """Have every exit answer labelled images that none of them holds."""
        asked = CascadePass(self.encoder, self.stages, self.exits_, self.policy_, complete=True)
        labels, ids, said = list[Any](), list[str](), list[list[ExitAnswer]]()
        for batch, each in asked.answers(X, y, on_error=on_error, tell=tell, total=count_hint(X)):
            self._refuse_stored(batch.ids)
            labels += batch.labels
            ids += batch.ids
            said += each
        if any(label is None for label in labels):
            raise InvalidInputError("labels are missing; pass y, or images with labels of their own")
        known = set(self.classes_.tolist())
        correct = np.array(
            [[each.answer == label for each in all_] for all_, label in zip(said, labels, strict=True)]
        ).T
        if not known & set(labels):
            raise InvalidInputError(
                f"no label of the calibration images, such as {shown(labels[0])}, is a class that was fitted"
            )
        return (
            ExitEvidence(
                np.array([[each.margin for each in all_] for all_ in said]).T,
                np.array([[each.agrees for each in all_] for all_ in said]).T,
                np.array([[each.distance for each in all_] for all_ in said]).T,
                correct,
            ),
            ids,
        )

    def _refuse_stored(self, ids: Sequence[str]) -> None:
        held = self.exits_[-1].store_.get(list(ids)).ids
        if len(held):
            raise InvalidInputError(
                f"{len(held)} of the images are stored, such as {held[0]!r}, and would be found by themselves; "
                "calibrate on images that were not fitted"
            )

    def _make_exits(self, *, renew: bool) -> tuple[RetrievalClassifier, ...]:
        """Return a classifier for each stage, those that there are where they fit."""
        if not isinstance(self.encoder, StagedEncoder):
            raise InvalidInputError(
                f"encoder must be a StagedEncoder, which can stop on the way; got {shown(self.encoder)}"
            )
        check_choice(self.certainty, "certainty", CERTAINTIES)
        stages = check_sequence(self.stages, "stages", "str")
        if len(stages) < 2:
            raise InvalidInputError(
                f"a cascade has at least two exits; got {shown(self.stages)}. With one stage, use "
                "RetrievalClassifier"
            )
        views = [stopped_at(self.encoder, stage) for stage in stages]
        depths = [view.multiply_adds() for view in views]
        for before, after, cost, more in zip(stages, stages[1:], depths, depths[1:], strict=False):
            if more <= cost:
                raise InvalidInputError(
                    f"the exit {after!r} is not deeper than {before!r}, which comes before it; order stages "
                    "from shallow to deep"
                )
        if isinstance(self.store, Mapping) and set(self.store) != set(stages):
            raise InvalidInputError(
                f"store has stores for {', '.join(map(repr, self.store))}; pass one for each of "
                f"{', '.join(map(repr, stages))}"
            )
        found = []
        for number, (stage, view) in enumerate(zip(stages, views, strict=True)):
            held = getattr(self, "exits_", None)
            classifier = held[number] if held is not None and len(held) == len(stages) else None
            params = self._exit_params(stage, view)
            found.append(
                RetrievalClassifier(**params) if classifier is None else classifier.set_params(**params)
            )
        return tuple(found)

    def _exit_params(self, stage: str, view: StagedEncoder) -> dict[str, Any]:
        by_name = isinstance(self.store, str)
        options = MaskedDict(self.store_options or {})
        return {
            "encoder": view,
            "store": self.store if isinstance(self.store, str) else self.store[stage],
            "store_options": options_for_part(self.store, options, _part(stage)) if by_name else None,
            **{
                name: getattr(self, name)
                for name in ("head", "k", "weights", "temperature", "priors", "metric", "normalize")
            },
            "transform": vars(self)["transform"],
        }

    def _learn(
        self,
        exits: tuple[RetrievalClassifier, ...],
        X: Any,
        y: Any,
        existing: Existing,
        flush_every: int | None,
        on_error: str,
        progress: Progress | bool | None,
        classes: Any = None,
    ) -> None:
        """Store labelled images at every exit, in one pass."""
        started, timing = time.perf_counter(), Timing()
        check_progress(progress)
        interval = None if flush_every is None else check_int(flush_every, "flush_every")
        listed = [] if classes is None else check_sequence(classes, "classes", "int or of str")
        names = class_names(X) if y is None else {}
        metric = exits[-1]._check_params()
        stages = list(self.stages)
        with ExitStack() as opened:
            for each in exits:
                opened.enter_context(one_at_a_time(each))
                opened.enter_context(each._restored_on_failure())
            source = open_fit_source(
                exits[-1],
                X,
                y,
                encoder=exits[-1].encoder,
                metric=metric,
                normalize=bool(self.normalize),
                on_error=on_error,
                ahead=None if interval is None else max(1, interval // 4),
                stages=stages,
            )
            writers = [
                opened.enter_context(
                    each._writing(
                        _at_exit(source, each.encoder),
                        existing,
                        getattr(each, "store_", None) if existing == "add" else None,
                        listed,
                        vectors=stage,
                    )
                )
                for each, stage in zip(exits, stages, strict=True)
            ]
            with open_progress(progress, "fitting") as shown_to:
                store_images(
                    writers,
                    source.open(known_to_all(writers)),
                    total=source.total,
                    skipped=source.skipped,
                    timing=timing,
                    progress=shown_to,
                    flush_every=interval,
                )
            if not writers[-1].count:
                raise InvalidInputError(none_left("to fit on", source.skipped))
        report = writers[-1].report(source.skipped, timing, time.perf_counter() - started)
        for each in exits:
            each.skipped_, each._class_names, each.fit_report_ = source.skipped, names, report
        self.exits_, self.skipped_, self.fit_report_ = exits, source.skipped, report

    def _learn_policy(self) -> ExitPolicy:
        """Learn what leaving loses from stored images, each left out, if the heads can tell."""
        costs = self._costs()
        saved = [1 - cost / costs[-1] for cost in costs]
        plain = ExitPolicy(self.certainty, tuple(saved))
        found = [each._held_out(HELD_OUT) for each in self.exits_]
        told = [each for each in found if each is not None]
        if len(told) < len(found):
            return plain
        shared = sorted(set.intersection(*(set(each.ids) for each in told)))
        if len(shared) < LEAST_HELD_OUT:
            return plain
        rows = [[each.ids.index(name) for name in shared] for each in told]
        answers = np.array([each.answers[row] for each, row in zip(told, rows, strict=True)])
        agrees = np.zeros(answers.shape, dtype=bool)
        agrees[1:] = answers[1:] == answers[:-1]
        evidence = ExitEvidence(
            margins=np.array([each.margins[row] for each, row in zip(told, rows, strict=True)]),
            agrees=agrees,
            distances=np.array([each.distances[row] for each, row in zip(told, rows, strict=True)]),
            correct=np.array([each.correct[row] for each, row in zip(told, rows, strict=True)]),
        )
        return ExitPolicy.learn(evidence, saved, self.certainty)


def _part(stage: str) -> str:
    """Return a stage's name as folders and collections may have it."""
    return stage.replace("+", "-").replace(".", "-")


def _at_exit(source: FitSource, encoder: Any) -> FitSource:
    """Return what is to be stored at one exit."""
    origin = replace(source.origin, fingerprint=plain_fingerprint(encoder.fingerprint))
    return replace(source, origin=origin, dim=int(encoder.dim))


def _reordered(evidence: ExitEvidence, order: Any) -> ExitEvidence:
    return ExitEvidence(
        evidence.margins[:, order],
        evidence.agrees[:, order],
        evidence.distances[:, order],
        evidence.correct[:, order],
    )


def _losses(evidence: ExitEvidence, policy: ExitPolicy) -> Any:
    """Return what a policy loses on each image beside the last exit, in {-1, 0, 1}, shape (n,)."""
    places = policy.exits(evidence)
    given = evidence.correct[places, np.arange(len(evidence))]
    return evidence.correct[-1].astype(np.float64) - given


def _dearest(
    evidence: ExitEvidence, policy: ExitPolicy, costs: Sequence[float], budget: float
) -> float | None:
    """Return the lowest price at which images cost no more than a budget on average."""
    if costs[-1] <= budget:
        return None
    for price in PRICES.tolist():
        if np.array(costs)[policy.at(price).exits(evidence)].mean() <= budget:
            return float(price)
    return float(PRICES[-1])
