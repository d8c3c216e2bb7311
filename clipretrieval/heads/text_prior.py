"""What CLIP's texts say of a class, put together with what a head says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax, logsumexp

from clipretrieval._util.checks import check_number, shown
from clipretrieval.errors import InvalidInputError
from clipretrieval.heads.base import Contents, Head, LearnedHead, PartedHead, Queries, StoredSample
from clipretrieval.heads.class_texts import ClassTexts, zero_shot_scores
from clipretrieval.heads.fused import Expert, LearnedFused, class_shares, log_probabilities, maximise
from clipretrieval.heads.statistics import Moments
from clipretrieval.types import Label

__all__ = ["TEXT", "LearnedTextPrior", "TextPrior", "check_text_weight"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TEXT = "text"
"""What the part is called in explanations."""
VALIDATED_ON = 1000
"""Stored vectors that weights are learned on, at most."""
EXPECTED_TEXT = 1.0
"""The weight of the texts before a stored vector is seen."""
TRUSTED, DOUBTED = 0.02, 0.4
"""The weight of another part before one is seen that was left out: where the texts explain the stored vectors
perfectly, and how much more where they do not at all."""
DOUBT_POWER = 3
TEXT_SPREAD, PART_SPREAD = 0.5, 0.1
"""How far weights may be from what was expected: the standard deviations of normal distributions."""


def check_text_weight(weight: Any) -> float | str | None:
    """Return a weight of texts: None, ``"auto"``, or a number of at least 0.

    Raises
    ------
    InvalidInputError
    """
    if weight is None or (isinstance(weight, str) and weight == "auto"):
        return weight
    if isinstance(weight, str):
        raise InvalidInputError(
            f"text_weight must be a number of at least 0, 'auto', or None; got {shown(weight)}"
        )
    return check_number(weight, "text_weight", least=0)


@dataclass(frozen=True)
class TextPrior:
    """A head, and CLIP's zero-shot answer as a prior: the sum of their log probabilities, with weights.

    With few images of a class, texts know more of it than these; with many, the images do [1]_ [2]_. A weight
    that is a number is that of the texts, beside the head as it is. ``"auto"`` weighs the texts and each part
    of the head, by stored vectors that are left out one by one, never by those that are to be classified. Of
    few vectors little is learned, so the weights are those of the largest posterior. It begins near the texts
    alone where these explain the stored vectors, and nearer to the head where they do not: what texts say of
    a vector needs no other vector, so a single one of each class shows that.

    A class that has no image yet is as probable as the texts hold it to be, unless they count nothing; the
    rest is divided among the others.

    Parameters
    ----------
    head : Head
    name : str
        What the head is called in explanations, where it has no parts.
    texts : ClassTexts
    listed : tuple of (int or str)
        Classes that may be answered without an image.
    weight : float or "auto"
        At least 0. ``"auto"`` needs a head that can leave stored vectors out: whatever it learns has
        ``held_out_scores``, as `LearnedDiscriminant.held_out_scores`.

    References
    ----------
    .. [1] Z. Wang et al., "A hard-to-beat baseline for training-free CLIP-based adaptation", ICLR (2024).
    .. [2] R. Zhang et al., "Tip-Adapter: Training-free adaption of CLIP for few-shot classification", ECCV
       (2022).
    """

    head: Head
    name: str
    texts: ClassTexts
    listed: tuple[Label, ...]
    weight: float | str

    @property
    def k(self) -> int:
        """Neighbors that the head reads."""
        return int(self.head.k)

    @property
    def moments(self) -> Sequence[Moments]:
        """Those of the head; with ``"auto"`` it has to be known which vectors are alone in their class."""
        counted = [Moments()] if self.weight == "auto" else []
        return tuple(dict.fromkeys([*self.head.moments, *counted]))

    def learn(self, contents: Contents) -> LearnedTextPrior:
        """Have the head learn, and weigh it."""
        learned = self.head.learn(contents)
        if self.weight != "auto":
            return LearnedTextPrior(learned, self, contents, {}, float(self.weight))
        parts: Mapping[str, Any] = (
            learned.parts if isinstance(learned, LearnedFused) else {self.name: learned}
        )
        for part in parts.values():
            if not hasattr(part, "held_out_scores"):
                raise InvalidInputError(
                    f"text_weight='auto' needs a head that can leave stored images out, and {self.name!r} "
                    "cannot (it has no held_out_scores); pass a number, or head='fused', 'discriminant', "
                    "'ridge' or 'votes'"
                )
        weights = learn_text_weights(parts, self.texts, contents)
        return LearnedTextPrior(learned, self, contents, weights, weights.pop(TEXT))


class LearnedTextPrior:
    """A head that has learned, and the texts, with their weights.

    Parameters
    ----------
    learned : LearnedHead
    prior : TextPrior
    contents : Contents
        Whose classes have a vector; one whose prior is 0 is never answered.
    weights : mapping of str to float
        Of each part of the head; empty where the head counts as it is.
    text_weight : float

    Attributes
    ----------
    answered_classes : list of (int or str)
        Of the columns of its scores: sorted, those without an image among them.
    weights : dict of str to float
        By the parts' names.
    """

    def __init__(
        self,
        learned: LearnedHead,
        prior: TextPrior,
        contents: Contents,
        weights: Mapping[str, float],
        text_weight: float,
    ) -> None:
        self._learned, self._name = learned, prior.name
        self._weights, self._text_weight = dict(weights), text_weight
        self.weights = {**self._weights, TEXT: text_weight}
        self.answered_classes: list[Label] = sorted({*contents.classes, *prior.listed})
        places = {label: place for place, label in enumerate(self.answered_classes)}
        self._stored = np.array([places[label] for label in contents.classes])
        self._impossible = contents.priors == 0
        self._texts = prior.texts.vectors(self.answered_classes)
        self._scale = prior.texts.tower.logit_scale

    def log_scores(self, queries: Queries) -> Floats:
        """Return log probabilities, but for a constant in each row, shape (n, n_classes)."""
        text = zero_shot_scores(queries.vectors, self._texts, self._scale)
        if self._weights:
            parts = self._head_parts(queries)
            total = np.sum([self._weights[name] * scores for name, scores in parts.items()], axis=0)
        else:
            total = log_softmax(self._learned.log_scores(queries), axis=1)
        stored = text[:, self._stored]
        if self._text_weight:
            total = total + self._text_weight * log_softmax(stored, axis=1)
        total[:, self._impossible] = -np.inf
        if self._text_weight and len(self._stored) < len(self.answered_classes):
            found = text.copy()
            found[:, self._stored] = log_softmax(total, axis=1) + logsumexp(stored, axis=1, keepdims=True)
            return found
        return self._spread(total)

    def part_scores(self, queries: Queries) -> dict[str, Floats]:
        """Return the log probabilities of each part of the head and of the texts, by its name."""
        text = zero_shot_scores(queries.vectors, self._texts, self._scale)
        return {
            **{name: self._spread(scores) for name, scores in self._head_parts(queries).items()},
            TEXT: text,
        }

    def _head_parts(self, queries: Queries) -> dict[str, Floats]:
        """Return the scores of the head's parts, of the classes that have a vector."""
        if isinstance(self._learned, PartedHead):
            return {name: np.asarray(scores) for name, scores in self._learned.part_scores(queries).items()}
        scores = np.asarray(self._learned.log_scores(queries))
        return {self._name: log_probabilities(scores) if self._weights else scores}

    def _spread(self, scores: Floats) -> Floats:
        """Give classes without a vector a column of −inf."""
        found = np.full((len(scores), len(self.answered_classes)), -np.inf)
        found[:, self._stored] = scores
        return found


def learn_text_weights(
    parts: Mapping[str, Expert], texts: ClassTexts, contents: Contents
) -> dict[str, float]:
    """Return the most probable weights of a head's parts and of the texts, by name.

    A vector that is alone in its class tells something of the texts only.
    """
    sample = contents.sample(VALIDATED_ON)
    counts = contents.statistics(Moments()).counts
    kept = np.flatnonzero(counts[sample.codes] > 1)
    held = StoredSample(sample.ids[kept], sample.vectors[kept], sample.codes[kept])
    stacked = np.zeros((len(parts) + 1, len(sample.codes), len(contents.classes)))
    if len(kept):
        for number, part in enumerate(parts.values()):
            stacked[number, kept] = log_probabilities(part.held_out_scores(held))
    text = zero_shot_scores(sample.vectors, texts.vectors(contents.classes), texts.tower.logit_scale)
    stacked[-1] = log_probabilities(text)
    shares = class_shares(contents.priors, sample.codes)
    doubt = _doubt(stacked[-1], sample.codes, shares)
    expected = TRUSTED + DOUBTED * doubt**DOUBT_POWER
    found = maximise(
        stacked,
        sample.codes,
        shares,
        expected=np.array([expected] * len(parts) + [EXPECTED_TEXT]),
        spread=np.array([PART_SPREAD] * len(parts) + [TEXT_SPREAD]),
    )
    return dict(zip([*parts, TEXT], found.tolist(), strict=True))


def _doubt(text: Floats, codes: Ints, shares: Floats) -> float:
    """Return what the texts by themselves leave open of stored vectors' classes: 0 nothing, 1 all."""
    if text.shape[1] < 2:
        return 0.0
    expected, spread = np.array([EXPECTED_TEXT]), np.array([TEXT_SPREAD])
    (weight,) = maximise(text[None], codes, shares, expected=expected, spread=spread)
    found = log_softmax(weight * text, axis=1)[np.arange(len(codes)), codes]
    loss = -float(shares @ found) / float(np.log(text.shape[1]))
    return min(loss, 1.0)
