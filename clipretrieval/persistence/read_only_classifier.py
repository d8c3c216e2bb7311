"""A saved classifier that is asked, and never learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipretrieval.encoding.base import Encoder
from clipretrieval.heads.class_texts import ClassTexts
from clipretrieval.heads.fitted_head import DecisionRule
from clipretrieval.heads.index_statistics import IndexStatistics
from clipretrieval.persistence.saving import SavedClassifier, load
from clipretrieval.prompts import STUDY_PROMPT, Templates
from clipretrieval.retrieval.retriever import Retriever
from clipretrieval.retrieval.transform_plan import STORED
from clipretrieval.stores.base import VectorStore
from clipretrieval.text_search import PLAIN, search_text
from clipretrieval.trust.answering_params import AnsweringParams
from clipretrieval.trust.basis import Basis
from clipretrieval.trust.conformalized import SetPredictor
from clipretrieval.trust.trust import check_unknown
from clipretrieval.types import AnyArray, Neighbors

__all__ = ["ReadOnlyClassifier"]


class ReadOnlyClassifier:
    """What answers as a `RetrievalClassifier`, and is no estimator.

    The command asks it, because loading scikit-learn takes longer than an answer by raw pixels.

    Parameters
    ----------
    saved : SavedClassifier

    Attributes
    ----------
    encoder : Encoder or None
    store_ : VectorStore
    """

    def __init__(self, saved: SavedClassifier) -> None:
        texts = {"text_weight": None, "class_names": None, "templates": STUDY_PROMPT}
        trusted = {"unknown": None, "max_turned_away": 0.05}
        self._index, self._params = saved.index, {**texts, **trusted, **saved.params}
        self._trust = saved.trust
        self._texts: ClassTexts | None = None
        self.encoder: Encoder | None = saved.index.encoder
        self.store_: VectorStore = saved.index.store

    @classmethod
    def load(
        cls, path: str | Path, encoder: Encoder | None = None, *, allow_remote: bool = False
    ) -> ReadOnlyClassifier:
        """Open what was saved; see `RetrievalClassifier.load`."""
        return cls(load(path, encoder, store=None, allow_remote=allow_remote))

    def set_params(self, **params: Any) -> None:
        """Change `head`, `priors`, `text_weight`, `class_names` or `templates`; questions check them."""
        self._params.update(params)

    @property
    def text_weight(self) -> float | str | None:
        """As for `RetrievalClassifier`."""
        found: float | str | None = self._params["text_weight"]
        return found

    @property
    def classes_(self) -> AnyArray:
        """The labels, sorted, of the type that was fitted."""
        return self._index.classes.labels

    @property
    def retriever_(self) -> Retriever:
        """What looks images up, with what other processes have written."""
        self._index.refresh()
        self._answering.chosen_head.check()
        self._index.follow_transform(STORED, self._index.transform)
        return Retriever(self._index)

    @property
    def head_(self) -> DecisionRule:
        """What decides: votes, or what the head has learned from the store as it is now."""
        if not self._trust and self._params["unknown"] is None:
            return self._answering.chosen_head.decision(self._index, self._statistics)
        self._index.unknown = check_unknown(self._params["unknown"], self._index.classes)
        return self._trust.rule(self._basis, self._params["max_turned_away"])

    def set_predictor(self, coverage: float) -> SetPredictor:
        """Return what tells the sets of classes; see `RetrievalClassifier.predict_set`."""
        return self._trust.predictor(self._basis, coverage)

    @property
    def _basis(self) -> Basis:
        return self._answering.basis(self._index, self._statistics)

    def search_text(
        self, texts: str | Sequence[str], k: int = 10, *, templates: Templates = PLAIN
    ) -> Neighbors:
        """Return the stored images nearest to texts; see `RetrievalClassifier.search_text`."""
        return search_text(self.retriever_.index, texts, k, templates)

    @property
    def _answering(self) -> AnsweringParams:
        found = AnsweringParams(self._params, self.encoder, known_texts=self._texts)
        self._texts = found.texts
        return found

    def _statistics(self) -> IndexStatistics:
        if not isinstance(self._index.follower, IndexStatistics):
            self._index.follower = IndexStatistics()
        return self._index.follower
