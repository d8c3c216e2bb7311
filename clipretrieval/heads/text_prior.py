"""What CLIP's texts say of a class, put together with what a head says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import check_number, shown
from clipretrieval.errors import InvalidInputError
from clipretrieval.heads.base import Contents, Head, LearnedHead, PartedHead, Queries, StoredSample
from clipretrieval.heads.class_texts import ClassTexts, zero_shot_scores
from clipretrieval.heads.fused import (
    LEAST_VALIDATED,
    Expert,
    LearnedFused,
    class_shares,
    log_probabilities,
    maximise,
)
from clipretrieval.heads.statistics import Moments
from clipretrieval.types import Label

__all__ = ["TEXT", "LearnedTextPrior", "TextPrior", "check_text_weight"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TEXT = "text"
"""What the part is called in explanations."""
VALIDATED_ON = 1000
"""Stored vectors that weights are learned on, at most."""
SURE = 2.326
"""Standard errors: of a normal distribution, one value in a hundred is more above its mean."""
STEPS = 20
"""Between the texts alone and the most probable weights."""
LEAST_WEIGHT = 1e-6
"""Of a part that says nothing but where the others say the same of two classes."""


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
    of the head by stored vectors, never by those that are to be classified, in two steps:

    - Texts are trusted where their log loss on the stored vectors is what their own probabilities promise, by
      Spiegelhalter's test [3]_, and beats by its standard error the loss of knowing nothing. What texts say
      of a vector needs no other vector, so a single one of each class shows that.
    - Weights are the most probable ones of vectors that are left out one by one. From texts that are trusted,
      these lead away only as far as the likelihood that is surely gained is largest: the gain, less 2.3
      standard errors [4]_ and less what parameters gain by themselves [5]_.

    Where fewer than ten can be left out, as most are alone in their classes, texts that are trusted decide
    alone; the weight of others is the share that they tell of what they claim to, and the head has the rest.

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
    .. [3] D. J. Spiegelhalter, "Probabilistic prediction in patient management and clinical trials",
       Statistics in Medicine 5 (1986), pages 421-433; here of the log loss.
    .. [4] After the rule of L. Breiman et al., "Classification and regression trees" (1984), section 3.4.3,
       which takes the simpler one unless another is better by a standard error.
    .. [5] H. Akaike, "A new look at the statistical model identification", IEEE Transactions on Automatic
       Control 19 (1974), pages 716-723.
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
        from scipy.special import log_softmax, logsumexp

        text = zero_shot_scores(queries.vectors, self._texts, self._scale)
        if self._weights:
            parts = self._head_parts(queries)
            total = np.sum([self._weights[name] * scores for name, scores in parts.items()], axis=0)
        else:
            total = log_softmax(self._learned.log_scores(queries), axis=1)
        stored = text[:, self._stored]
        if self._text_weight:
            said = log_probabilities(stored) if self._weights else log_softmax(stored, axis=1)
            total = total + self._text_weight * said
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
    """Return the weights of a head's parts and of the texts, by name.

    A vector that is alone in its class tells something of the texts only.
    """
    sample = contents.sample(VALIDATED_ON)
    codes, shares = sample.codes, class_shares(contents.priors, sample.codes)
    text = log_probabilities(
        zero_shot_scores(sample.vectors, texts.vectors(contents.classes), texts.tower.logit_scale)
    )
    trust = _trust(text, codes, shares)
    kept = np.flatnonzero(contents.statistics(Moments()).counts[codes] > 1)
    shares_kept = class_shares(contents.priors, codes[kept])
    if len(kept) >= LEAST_VALIDATED and shares_kept.any():
        held = StoredSample(sample.ids[kept], sample.vectors[kept], codes[kept])
        said = [log_probabilities(part.held_out_scores(held)) for part in parts.values()]
        stacked = np.stack([*said, text[kept]])
        found = maximise(stacked, held.codes, shares_kept)
        if trust == 1:
            found = _retreat(found, stacked, held.codes, shares_kept)
    else:
        found = np.append(np.full(len(parts), (1 - trust) / len(parts)), trust)
    return dict(zip([*parts, TEXT], np.maximum(found, LEAST_WEIGHT).tolist(), strict=True))


def _trust(text: Floats, codes: Ints, shares: Floats) -> float:
    """Return 1 for texts that nothing stored contradicts, 0 for those that tell nothing.

    In between: the part of what they claim to tell of the classes that they do tell. Texts that give each
    class its true probability have, in the mean, a log loss of the entropy of their own probabilities; by how
    many standard errors it is more is the statistic of Spiegelhalter's test.
    """
    if text.shape[1] < 2 or not shares.any():
        return 1.0
    probabilities, unknown = np.exp(text), np.log(text.shape[1])
    entropies = -np.einsum("nc,nc->n", probabilities, text)
    variances = np.einsum("nc,nc->n", probabilities, text**2) - entropies**2
    losses = -text[np.arange(len(codes)), codes]
    told, claimed = float(unknown - shares @ losses), float(unknown - shares @ entropies)
    if told <= _standard_error(losses, shares):
        return 0.0
    doubted = claimed - told > SURE * np.sqrt(shares**2 @ variances)
    return told / claimed if doubted else 1.0


def _retreat(found: Floats, stacked: Floats, codes: Ints, shares: Floats) -> Floats:
    """Return weights between those of the texts alone and those that were found.

    Where the gain in log likelihood, less `SURE` standard errors, is largest; what new parameters gain by
    themselves, one divided by the number of vectors each, is taken off.
    """
    from scipy.special import log_softmax

    rows = np.arange(len(codes))
    (weight,) = maximise(stacked[-1:], codes, shares)
    start = weight * stacked[-1]
    way = np.tensordot(found, stacked, 1) - start
    at_start = log_softmax(start, axis=1)[rows, codes]
    optimism = (len(stacked) - 1) * float(shares @ shares)
    best, reached = 0.0, 0.0
    for step in np.linspace(0, 1, STEPS + 1)[1:]:
        gains = log_softmax(start + step * way, axis=1)[rows, codes] - at_start
        worth = float(shares @ gains) - SURE * _standard_error(gains, shares) - step * optimism
        if worth > best:
            best, reached = worth, step
    retreated: Floats = reached * found
    retreated[-1] += (1 - reached) * weight
    return retreated


def _standard_error(values: Floats, shares: Floats) -> float:
    """Return that of a weighted mean; infinite of a single value."""
    squares = shares**2
    if squares.sum() >= 1:
        return float("inf")
    return float(np.sqrt(squares @ (values - shares @ values) ** 2 / (1 - squares.sum())))
