"""Classes as CLIP's texts have them: what a vector of the stage ``final`` says by itself of its class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import shown
from clipretrieval._util.labels import Spelling, label_kind, stored_labels
from clipretrieval._util.unit_length import to_unit_length
from clipretrieval.errors import InvalidInputError
from clipretrieval.prompts import STUDY_PROMPT, Template, Templates, filled, listed_templates, read_classes
from clipretrieval.types import AnyArray, FloatArray, Label

__all__ = ["STAGE", "ClassTexts", "TextTower", "ensemble_vectors", "text_tower", "zero_shot_scores"]

Floats = npt.NDArray[np.float64]

STAGE = "final"
"""The only stage whose vectors lie in one space with the texts'."""


class TextTower(Protocol):
    """What an encoder's ``text`` has to have; `clipretrieval.encoding.text_encoder.TextEncoder` does."""

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by before the softmax."""
        ...

    def encode(self, prompts: Sequence[str]) -> FloatArray:
        """Return the texts' vectors, shape (n, dim)."""
        ...


class ClassTexts:
    """Each class's text vector, encoded when it is first asked for, and kept.

    Parameters
    ----------
    tower : TextTower
    class_names : mapping of label to str, optional
        Names for the prompts. A class that is a str and has none is its own name, with spaces for
        underscores.
    templates : str, callable, or sequence of these
        As for `ZeroShotClassifier`.
    known : mapping of int to str, optional
        Names of classes that are numbers, where `class_names` has none.

    Raises
    ------
    InvalidInputError
        If the names or templates are not as they should be.
    """

    def __init__(
        self,
        tower: TextTower,
        class_names: Mapping[Any, str] | None = None,
        templates: Templates = STUDY_PROMPT,
        known: Mapping[int, str] | None = None,
    ) -> None:
        if isinstance(templates, Iterator):
            raise InvalidInputError("templates is an iterator, which can be read only once; pass a list")
        self.tower = tower
        self.templates: list[Template] = listed_templates(templates)
        self.names = read_names(class_names)
        self.known = dict(known or {})
        self._vectors: dict[tuple[str, ...], Floats] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClassTexts) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash((id(self.tower), len(self.names), len(self.templates)))

    @property
    def _identity(self) -> tuple[Any, ...]:
        return self.tower, self.templates, self.names, self.known

    def prepare(self) -> None:
        """Read the text tower and encode the names that were given: what is wrong with them shows."""
        _ = self.tower.logit_scale
        if self.names:
            self.vectors(list(self.names))

    def check_known(self, classes: Sequence[Label]) -> None:
        """Refuse names of what is none of the classes.

        Parameters
        ----------
        classes : sequence of (int or str)
            As stored.

        Raises
        ------
        InvalidInputError
        """
        listed = set(classes)
        unknown = [label for label in self._named(classes) if label not in listed]
        if unknown:
            raise InvalidInputError(
                f"class_names has {shown(unknown[0])}, which is none of the {len(listed)} classes "
                f"({_some(classes)}); take it out, or, so that it is answered before it has an image, list "
                "it: partial_fit(…, classes=[…])"
            )

    def vectors(self, classes: Sequence[Label]) -> Floats:
        """Return the text vector of each class, as stored, of length one, shape (n_classes, dim).

        Raises
        ------
        InvalidInputError
            If a class that is a number has no name, or a prompt cannot be encoded.
        """
        prompts = self.prompts(classes)
        missing = [some for some in dict.fromkeys(prompts) if some not in self._vectors]
        if missing:
            self._vectors.update(zip(missing, ensemble_vectors(self.tower, missing), strict=True))
        return np.stack([self._vectors[some] for some in prompts])

    def prompts(self, classes: Sequence[Label]) -> list[tuple[str, ...]]:
        """Return the prompts of each class, length n_classes."""
        named = self._named(classes)
        names = []
        for label in classes:
            name = named.get(label, self.known.get(label) if isinstance(label, int) else label)
            if not isinstance(name, str):
                raise InvalidInputError(
                    f"the class {label!r} has no name to make a prompt of; pass class_names, a mapping "
                    "{label: name} that has it, or text_weight=None"
                )
            names.append(name if label in named else name.replace("_", " "))
        return [tuple(filled(template, name) for template in self.templates) for name in names]

    def _named(self, classes: Sequence[Label]) -> dict[Label, str]:
        """Return the names that were given, by the labels as the classes spell them."""
        if not self.names or not len(classes):
            return self.names
        kinds = {type(label) is str for label in (*self.names, *classes)}
        if len(kinds) > 1:
            raise InvalidInputError(
                f"class_names has labels such as {shown(next(iter(self.names)))}, and the classes are "
                f"{_some(classes)}: labels of another type; use the labels that were fitted as its keys"
            )
        spelled = Spelling(classes).apply(list(self.names))
        return dict(zip(spelled, self.names.values(), strict=True))


def text_tower(encoder: Any) -> TextTower:
    """Return the text tower of an encoder whose vectors lie in one space with its texts'.

    Raises
    ------
    InvalidInputError
        If there is no encoder, it has no text tower, or it stops before ``final``.
    """
    if encoder is None:
        raise InvalidInputError(
            "text_weight needs an encoder with a text tower, and this classifier takes vectors; pass a "
            "StagedEncoder with stage='final', or text_weight=None"
        )
    tower: Any = getattr(encoder, "text", None)
    if not hasattr(tower, "encode") or not hasattr(tower, "logit_scale"):
        raise InvalidInputError(
            f"text_weight needs an encoder with a text tower, and {type(encoder).__name__} has none (no "
            "attribute text that encodes prompts); pass a StagedEncoder with stage='final', or "
            "text_weight=None"
        )
    stage = getattr(encoder, "stage", STAGE)
    if stage != STAGE:
        raise InvalidInputError(
            f"text_weight needs stage='final', the only one whose vectors lie in one space with texts; the "
            f"encoder's is {shown(stage)}: make it with stage='final', or pass text_weight=None"
        )
    found: TextTower = tower
    return found


def zero_shot_scores(vectors: AnyArray, texts: Floats, logit_scale: float) -> Floats:
    """Return CLIP's zero-shot answer: the log softmax of the cosines times the model's logit scale.

    Parameters
    ----------
    vectors : ndarray of float32 or float64, shape (n, dim)
        Of the stage ``final``, of any length.
    texts : ndarray of float64, shape (n_classes, dim)
        Of length one.
    logit_scale : float

    Returns
    -------
    ndarray of float64, shape (n, n_classes)
        Log probabilities.
    """
    from scipy.special import log_softmax

    found: Floats = log_softmax(logit_scale * (to_unit_length(vectors.astype(np.float64)) @ texts.T), axis=1)
    return found


def ensemble_vectors(tower: TextTower, prompts: Sequence[Sequence[str]]) -> Floats:
    """Encode the prompts of each class as one vector: the mean of their directions [1]_.

    Parameters
    ----------
    tower : TextTower
    prompts : sequence of (sequence of str), length n_classes
        At least one of each.

    Returns
    -------
    ndarray of float64, shape (n_classes, dim)
        Of length one.

    References
    ----------
    .. [1] A. Radford et al., "Learning transferable visual models from natural language supervision",
       ICML 2021, section 3.1.4, and the notebook on prompts that its authors published with the code.
    """
    vectors = to_unit_length(tower.encode([one for some in prompts for one in some]).astype(np.float64))
    starts = np.cumsum([0, *(len(some) for some in prompts[:-1])])
    found: Floats = to_unit_length(np.add.reduceat(vectors, starts))
    return found


def read_names(class_names: Any) -> dict[Label, str]:
    """Return names by labels as stored; none where none are given.

    Raises
    ------
    InvalidInputError
        If they are no mapping of labels to text.
    """
    if class_names is None:
        return {}
    if not isinstance(class_names, Mapping):
        raise InvalidInputError(
            f"class_names must be a mapping {{label: name}}, or None where the labels are names; got "
            f"{shown(class_names)}"
        )
    names = read_classes(class_names)[1] if class_names else []
    kind = label_kind(class_names)
    return dict(zip(sorted(stored_labels(class_names, kind)), names, strict=True)) if names else {}


def _some(classes: Sequence[Label]) -> str:
    return ", ".join(map(repr, classes[:10])) + (", …" if len(classes) > 10 else "")
