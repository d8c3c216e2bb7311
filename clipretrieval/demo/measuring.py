"""Every stage of the embedded model, and its zero-shot answer, on the same pictures."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import open_clip
import torch

from clipretrieval.classifier import RetrievalClassifier
from clipretrieval.encoding.staged import StagedEncoder
from clipretrieval.encoding.stages import STUDY_STAGES
from clipretrieval.encoding.weights import load_clip, resolve
from clipretrieval.images import ImageFolder
from clipretrieval.types import AnyArray

__all__ = ["ZERO_SHOT", "Measured", "measure"]

ZERO_SHOT = "zero-shot"


@dataclass(frozen=True, eq=False)
class Measured:
    """One way to classify, and its answers.

    Attributes
    ----------
    name : str
        A stage, or ``"zero-shot"``.
    dim : int
        Dimension of the vectors.
    truth, answers : ndarray of str, shape (n_test,)
    seconds : float
        Wall time of fitting and classifying; for zero-shot, of classifying.
    """

    name: str
    dim: int
    truth: AnyArray
    answers: AnyArray
    seconds: float

    def accuracy(self, kinds: Collection[str] | None = None) -> float:
        """Return the share of right answers, in [0, 1], on the pictures of all kinds, or of some."""
        asked = np.full(len(self.truth), True) if kinds is None else np.isin(self.truth, list(kinds))
        return float((self.answers == self.truth)[asked].mean())


def measure(model: str, train: ImageFolder, test: ImageFolder) -> list[Measured]:
    """Classify by retrieval at each stage of the study, one neighbour, from FAISS; then zero-shot.

    Parameters
    ----------
    model : str
        As `StagedEncoder` takes it, in ``local-dir:`` form.
    train, test : ImageFolder
        With labels.

    Returns
    -------
    list of Measured
        The stages from the shallowest on, the zero-shot answer last.
    """
    found = []
    for stage in STUDY_STAGES:
        began = time.perf_counter()
        encoder = StagedEncoder(model, stage=stage)
        classifier = RetrievalClassifier(encoder, "faiss", k=1).fit(train)
        with closing(classifier.store_):
            report = classifier.evaluate(test)
        passed = time.perf_counter() - began
        found.append(Measured(stage, encoder.dim, report.y_true, report.y_pred, passed))
    return [*found, _zero_shot(model, train.classes, test)]


def _zero_shot(model: str, kinds: Sequence[str], test: ImageFolder) -> Measured:
    """Answer with the kind whose prompt, "a star", has the largest cosine with the picture."""
    began = time.perf_counter()
    encoder = StagedEncoder(model, stage="final")
    clip: Any = load_clip(resolve(model, None))
    tokenizer = open_clip.SimpleTokenizer(context_length=clip.context_length)
    with torch.inference_mode():
        prompts = clip.encode_text(tokenizer([f"a {kind}" for kind in kinds]), normalize=True).numpy()
    answers = np.array(kinds)[(encoder.encode(test.paths) @ prompts.T).argmax(axis=1)]
    return Measured(ZERO_SHOT, encoder.dim, np.array(test.labels), answers, time.perf_counter() - began)
