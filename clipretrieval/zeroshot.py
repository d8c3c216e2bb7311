"""Classify by CLIP's own answer: the class whose text lies nearest to the image."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin

from clipretrieval._util.checks import check_bool
from clipretrieval._util.labels import Spelling, class_array, label_kind, stored_labels
from clipretrieval._util.progress import Progress, image_counter, open_progress
from clipretrieval._util.timing import Timing
from clipretrieval._util.unit_length import to_unit_length
from clipretrieval._util.warning import warn_caller
from clipretrieval.encoding.base import EncodedBatch
from clipretrieval.encoding.streams import gather
from clipretrieval.errors import DimensionMismatchError, InvalidInputError
from clipretrieval.evaluation.report import EvaluationReport
from clipretrieval.evaluation.scoring import weighted_accuracy
from clipretrieval.evaluation.words import PROMPTS
from clipretrieval.heads.class_texts import STAGE, ensemble_vectors
from clipretrieval.heads.confidence import share_and_margin
from clipretrieval.images.sources import count_hint
from clipretrieval.images.stream import SkippedImage
from clipretrieval.images.tables import labelled_source
from clipretrieval.images.tars import without_labels
from clipretrieval.prompts import STUDY_PROMPT, Templates, filled, listed_templates, read_classes
from clipretrieval.retrieval.answer_places import AnswerPlaces
from clipretrieval.retrieval.inputs import none_left
from clipretrieval.retrieval.retriever import NoImagesError
from clipretrieval.retrieval.unusable import usable_batches
from clipretrieval.stores.checks import check_directions, check_vectors
from clipretrieval.types import AnyArray, FloatArray, Label, Metric

if TYPE_CHECKING:
    from torch import nn

    from clipretrieval.encoding.staged_encoder import StagedEncoder

__all__ = ["TEXT_NEEDS", "ZeroShotAnswers", "ZeroShotClassifier", "check_true_labels"]

TEXT_NEEDS = {STAGE: "the cosine with a text"}
"""What needs them to have a direction."""
_TOGETHER = 1024
_LARGEST = 32 * 2**20
"""Bytes of the cosines that are computed together, unless those of one image take more."""


class ZeroShotClassifier(ClassifierMixin, BaseEstimator):
    """CLIP's zero-shot classifier: no images are needed beforehand, only the classes' names.

    Each class has a text vector: its prompts' vectors scaled to length one, averaged, and scaled again
    [1]_. An image belongs to the class whose vector has the largest cosine with its own. A scikit-learn
    estimator, but for `fit`, which learns nothing and need not be called.

    Parameters
    ----------
    encoder : StagedEncoder, str or nn.Module
        An encoder, at whatever stage: its image tower is used as it is loaded, and the text tower of the same
        weights is read beside it. Or a model, as `StagedEncoder` takes it.
    class_names : sequence of str, or mapping of label to str
        The classes. A sequence's strings are the labels, and the prompts have them with spaces for
        underscores. A mapping gives each label, int or str, the name for the prompts.
    templates : str, callable, or sequence of these
        Prompts with ``{}`` for the name and, if wanted, ``{article}`` for "a" or "an"; or callables of the
        name, such as those of ``open_clip.OPENAI_IMAGENET_TEMPLATES``. Several make an ensemble. By default
        those of the study: "an airplane", "an automobile", "a bird", …
    pretrained : str, path or None
        As for `StagedEncoder`; ignored where `encoder` is one.

    Attributes
    ----------
    classes_ : ndarray, shape (n_classes,)
        The labels, sorted.
    encoder_ : StagedEncoder
        What encodes the images.

    References
    ----------
    .. [1] A. Radford et al., "Learning transferable visual models from natural language supervision",
       ICML 2021, section 3.1.4, and the notebook on prompts that its authors published with the code.
    """

    def __init__(
        self,
        encoder: StagedEncoder | str | nn.Module,
        class_names: Sequence[str] | Mapping[Any, str],
        *,
        templates: Templates = STUDY_PROMPT,
        pretrained: Any = "openai",
    ) -> None:
        self.encoder = encoder
        self.class_names = class_names
        self.templates = templates
        self.pretrained = pretrained

    def fit(self, X: Any = None, y: Any = None) -> ZeroShotClassifier:
        """Encode the prompts, which the first question would do otherwise; `X` and `y` are not looked at."""
        self._text_vectors()
        return self

    @property
    def classes_(self) -> AnyArray:
        """The labels, sorted, of the type that was given."""
        return read_classes(self.class_names)[0]

    @property
    def prompts_(self) -> list[list[str]]:
        """Each class's prompts, in the order of ``classes_``."""
        templates = listed_templates(self.templates)
        return [
            [filled(template, name) for template in templates] for name in read_classes(self.class_names)[1]
        ]

    @property
    def encoder_(self) -> StagedEncoder:
        """What encodes the images: `encoder` itself where it is one."""
        from clipretrieval.encoding.staged_encoder import StagedEncoder

        if isinstance(self.encoder, StagedEncoder):
            return self.encoder
        asked = (self.encoder, self.pretrained)
        kept = getattr(self, "_made", None)
        if kept is None or kept[0] != asked:
            kept = self._made = (asked, StagedEncoder(self.encoder, self.pretrained, STAGE))
        made: StagedEncoder = kept[1]
        return made

    def predict(
        self, X: Any, *, on_error: str = "raise", progress: Progress | bool | None = None
    ) -> AnyArray:
        """Return the label of each image.

        Parameters
        ----------
        X : images
            Whatever `clipretrieval.images.iter_images` takes.
        on_error, progress
            As for `RetrievalClassifier.predict`.

        Returns
        -------
        ndarray, shape (n,)
            Equal cosines go to the class that comes first in ``classes_``. Under ``on_error="skip"`` of
            objects, None where an image was skipped.

        Raises
        ------
        InvalidInputError
            If the classes or templates are not as they should be, or there are no images.
        ImageDecodeError
        WeightsUnavailableError
        """
        places = AnswerPlaces()
        codes = [cosines.argmax(axis=1) for cosines in self._cosines_of(places, X, on_error, progress)]
        labels: AnyArray = self.classes_[np.concatenate(codes)]
        return labels if on_error == "raise" else places.arrange([labels.astype(object)], None)

    def predict_proba(
        self, X: Any, *, on_error: str = "raise", progress: Progress | bool | None = None
    ) -> AnyArray:
        """Return each class's probability: the softmax of the cosines times the model's logit scale.

        Parameters
        ----------
        X, on_error, progress
            As for `predict`.

        Returns
        -------
        ndarray of float64, shape (n, n_classes)
            In [0, 1], rows sum to 1; columns in the order of ``classes_``. NaN where an image was skipped.
        """
        places = AnswerPlaces()
        parts = deque(self.probabilities(each) for each in self._cosines_of(places, X, on_error, progress))
        shares = np.empty((places.count, parts[0].shape[1]))
        shares[[item.index for item in places.skipped]] = np.nan
        done = 0
        while parts:  # each goes as soon as it is taken: nothing is held twice
            part = parts.popleft()
            shares[places.places[done : done + len(part)]] = part
            done += len(part)
        return shares

    def score(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
        allow_tuned: bool = False,
    ) -> float:
        """Return the accuracy on labelled images, in [0, 1].

        Parameters
        ----------
        X, y, on_error, progress, allow_tuned
            As for `evaluate`.
        sample_weight : array-like of shape (n,), optional
            One an image, those that are skipped included.
        """
        report = self.evaluate(X, y, on_error=on_error, progress=progress, allow_tuned=allow_tuned)
        return weighted_accuracy(report, sample_weight)

    def _cosines_of(
        self, places: AnswerPlaces, X: Any, on_error: str, progress: Progress | bool | None
    ) -> Iterator[npt.NDArray[np.float64]]:
        """Yield the cosines of each batch, and note what was skipped."""
        with open_progress(progress, "classifying") as shown:
            tell = image_counter(shown, count_hint(X), places.skipped)
            for batch, cosines in self.cosine_batches(
                without_labels(X), on_error=on_error, skipped=places.skipped, tell=tell
            ):
                places.places += batch.indices
                yield cosines
        places.warn()

    def cosines(self, vectors: FloatArray) -> npt.NDArray[np.float64]:
        """Compare vectors of the stage ``final`` with each class's text.

        Parameters
        ----------
        vectors : ndarray of float32, shape (n, dim)

        Returns
        -------
        ndarray of float64, shape (n, n_classes)
            In [−1, 1].
        """
        rows, norms = check_vectors(vectors)
        check_directions(norms, Metric.COSINE)
        width = self.encoder_.stages[STAGE].dim
        if rows.shape[1] != width:
            raise DimensionMismatchError(
                f"the vectors have dimension {rows.shape[1]}; those of the stage {STAGE!r} have {width}"
            )
        found: npt.NDArray[np.float64] = to_unit_length(rows.astype(np.float64)) @ self._text_vectors().T
        return found

    def probabilities(self, cosines: npt.NDArray[np.float64]) -> AnyArray:
        """Turn cosines into probabilities, shape (n, n_classes)."""
        shares: AnyArray = softmax(cosines * self.encoder_.text.logit_scale, axis=1)
        return shares

    def evaluate(
        self,
        X: Any,
        y: Any = None,
        *,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
        allow_tuned: bool = False,
    ) -> EvaluationReport:
        """Classify labelled images and measure how right and how fast that was.

        Parameters
        ----------
        X, y, on_error, progress
            As for `RetrievalClassifier.evaluate`.
        allow_tuned : bool
            Has no effect, as nothing is tuned here.

        Returns
        -------
        EvaluationReport
            Whose distances are 1 − cosine between each image and the text of its answer.

        Raises
        ------
        InvalidInputError
            If labels are missing, or one is none of the classes.
        """
        check_bool(allow_tuned, "allow_tuned")
        with open_progress(progress, "evaluating") as shown:
            started, timing, skipped = time.perf_counter(), Timing(), list[SkippedImage]()
            X = labelled_source(X, y)
            tell = image_counter(shown, count_hint(X), skipped)
            answers = ZeroShotAnswers(self)
            for batch, cosines in self.cosine_batches(
                X, y, on_error=on_error, skipped=skipped, timing=timing, tell=tell
            ):
                answers.add(cosines, batch)
            return answers.report(
                timing=timing, seconds=time.perf_counter() - started, skipped=tuple(skipped)
            )

    def cosine_batches(
        self,
        X: Any,
        y: Any = None,
        *,
        on_error: str = "raise",
        skipped: list[SkippedImage] | None = None,
        timing: Timing | None = None,
        tell: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[EncodedBatch, npt.NDArray[np.float64]]]:
        """Encode images and compare each with the texts, a bounded number at a time.

        Parameters
        ----------
        X, y, on_error
            As for `evaluate`.
        skipped, timing, tell
            Receive what was skipped, the times, and the number of images of each batch that has come.

        Yields
        ------
        batch : EncodedBatch
        cosines : ndarray of float64, shape (len(batch), n_classes)
        """
        texts = self._text_vectors()  # what is wrong with the prompts shows before an image is read
        size = max(1, min(_TOGETHER, _LARGEST // (8 * len(texts))))
        encoder, timing = self.encoder_, timing if timing is not None else Timing()
        stream = usable_batches(
            encoder.stream(X, y, stages=(STAGE,), on_error=on_error, skipped=skipped),
            TEXT_NEEDS,
            encoder=type(encoder).__name__,
            on_error=on_error,
            skipped=skipped,
        )
        empty = True
        for batch in gather(stream, size, timing, tell):
            if len(batch):
                empty = False
                with timing.measure("search", len(batch)):
                    cosines = self.cosines(batch.vectors[STAGE])
                yield batch, cosines
        if empty:
            raise NoImagesError(none_left("to classify", skipped or ()))

    def _text_vectors(self) -> npt.NDArray[np.float64]:
        """Return each class's text vector, of length one, shape (n_classes, dim)."""
        prompts, encoder = self.prompts_, self.encoder_
        kept = getattr(self, "_texts", None)
        if kept is None or kept[0] is not encoder or kept[1] != prompts:
            self._warn_of_twins(prompts)
            kept = self._texts = (encoder, prompts, ensemble_vectors(encoder.text, prompts))
        found: npt.NDArray[np.float64] = kept[2]
        return found

    def _warn_of_twins(self, prompts: list[list[str]]) -> None:
        """Say which classes cannot be told apart, as their prompts are the same."""
        first: dict[tuple[str, ...], Any] = {}
        for label, some in zip(self.classes_.tolist(), prompts, strict=True):
            other = first.setdefault(tuple(some), label)
            if other != label:
                warn_caller(
                    f"the classes {other!r} and {label!r} have the same prompts ({some[0]!r:.100}), so no "
                    f"image is ever answered with {label!r}; give them different names with a mapping "
                    "{label: name}"
                )

    def __setattr__(self, name: str, value: Any) -> None:
        """Read what can be read only once, such as a generator of templates, and keep what it gave."""
        super().__setattr__(name, tuple(value) if isinstance(value, Iterator) else value)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can be computed again."""
        state = super().__getstate__()
        return {key: value for key, value in state.items() if key not in ("_made", "_texts")}


@dataclass
class ZeroShotAnswers:
    """Answers batch by batch: of each image the class, its cosine and its probability, and no more.

    Parameters
    ----------
    classifier : ZeroShotClassifier
    """

    classifier: ZeroShotClassifier
    _truth: list[Label] = field(default_factory=list)
    _codes: list[AnyArray] = field(default_factory=list)
    _nearest: list[AnyArray] = field(default_factory=list)
    _shares: list[AnyArray] = field(default_factory=list)
    _margins: list[AnyArray] = field(default_factory=list)
    _sources: list[str | None] = field(default_factory=list)
    _positions: list[int] = field(default_factory=list)

    def add(self, cosines: npt.NDArray[np.float64], batch: EncodedBatch) -> None:
        """Take a batch.

        Parameters
        ----------
        cosines : ndarray of float64, shape (n, n_classes)
        batch : EncodedBatch
            With the true labels.

        Raises
        ------
        InvalidInputError
            If a label is missing, or none of the classes.
        """
        self._truth += check_true_labels(self.classifier, batch.labels)
        codes = cosines.argmax(axis=1)
        self._codes.append(codes)
        self._nearest.append(cosines[np.arange(len(codes)), codes])
        probabilities = self.classifier.probabilities(cosines)
        self._shares.append(probabilities.max(axis=1))
        self._margins.append(share_and_margin(probabilities, codes)[1])
        self._sources += batch.sources
        self._positions += batch.indices

    def report(self, **rest: Any) -> EvaluationReport:
        """Make a report of all batches.

        Parameters
        ----------
        **rest
            The report's ``timing``, ``seconds`` and ``skipped``.
        """
        classes = self.classifier.classes_
        return EvaluationReport(
            y_true=class_array(self._truth, label_kind(classes.tolist()), sort=False),
            y_pred=classes[np.concatenate(self._codes)],
            distances=(1 - np.concatenate(self._nearest)).astype(np.float32),
            confidence=np.concatenate(self._shares),
            margin=np.concatenate(self._margins),
            sources=tuple(self._sources),
            positions=np.array(self._positions, dtype=np.int64),
            classes=classes,
            setting=_setting(self.classifier),
            **rest,
        )


def check_true_labels(classifier: ZeroShotClassifier, labels: Sequence[Any]) -> list[Label]:
    """Return true labels as they are stored.

    Raises
    ------
    InvalidInputError
        If one is missing, or none of the classes.
    """
    kind, classes = label_kind(labels), classifier.classes_.tolist()
    found = Spelling(classes).apply(stored_labels(labels, kind))
    same = kind == label_kind(classes)
    listed = set(classes)
    unknown = [label for label in dict.fromkeys(found) if not same or label not in listed]
    if unknown:
        shown = ", ".join(map(repr, classes[:10])) + (", …" if len(classes) > 10 else "")
        raise InvalidInputError(
            f"the label {unknown[0]!r} is none of the {len(classes)} classes ({shown}), so no answer can be "
            "right for it; pass class_names that have it, where labels are numbers as a mapping "
            "{label: name}"
        )
    return found


def _setting(classifier: ZeroShotClassifier) -> dict[str, Any]:
    encoder = classifier.encoder_
    return {
        "n_train": 0,
        "model": encoder.model if isinstance(encoder.model, str) else None,
        "pretrained": encoder.pretrained,
        "stage": "zero-shot",
        "plan": encoder.plan.to_dict(),
        "dim": encoder.stages["final"].dim,
        "store": PROMPTS,
        "metric": "cosine",
        "k": 1,
        "weights": "softmax",
        "prompts": classifier.prompts_,
    }
