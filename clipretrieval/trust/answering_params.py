"""The arguments that affect predictions, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from clipretrieval._util.checks import check_bool
from clipretrieval.encoding.base import Encoder
from clipretrieval.errors import UnsupportedOperationError
from clipretrieval.heads.choice import head_values
from clipretrieval.heads.chosen_head import ChosenHead
from clipretrieval.heads.class_texts import ClassTexts, text_tower
from clipretrieval.heads.index_statistics import IndexStatistics
from clipretrieval.heads.priors import Priors
from clipretrieval.heads.text_prior import check_text_weight
from clipretrieval.heads.voting import Voting
from clipretrieval.retrieval.labelled_index import LabelledIndex
from clipretrieval.trust.basis import Basis
from clipretrieval.types import Label, Metric

__all__ = ["AnsweringParams"]


@dataclass(frozen=True, eq=False)
class AnsweringParams:
    """Those of a classifier, as they are now.

    Attributes
    ----------
    params : mapping
        Arguments of `RetrievalClassifier` by name, of which those about heads, votes and texts are read.
    encoder : Encoder or None
    class_names : mapping of int to str, optional
        Names of classes that were fitted by their numbers in a dataset.
    known_texts : ClassTexts, optional
        Whose vectors are encoded already.
    """

    params: Mapping[str, Any]
    encoder: Encoder | None
    class_names: Mapping[int, str] | None = None
    known_texts: ClassTexts | None = None

    @cached_property
    def texts(self) -> ClassTexts | None:
        """The texts of classes; None where none are read."""
        if check_text_weight(self.params["text_weight"]) is None:
            return None
        names, templates = self.params["class_names"], self.params["templates"]
        wanted = ClassTexts(text_tower(self.encoder), names, templates, self.class_names)
        return self.known_texts if self.known_texts == wanted else wanted

    @cached_property
    def chosen_head(self) -> ChosenHead:
        """What decides, as it was asked for."""
        given, weight = self.params, check_text_weight(self.params["text_weight"])
        metric = Metric.parse(given["metric"])
        voting = Voting(given["k"], given["weights"], given["temperature"], metric)
        if weight is None:
            return ChosenHead(given["head"], voting, given["priors"])
        return ChosenHead(given["head"], voting, given["priors"], self.texts, weight)

    def basis(self, index: LabelledIndex, statistics: Callable[[], IndexStatistics]) -> Basis:
        """Return what predictions by an index depend on.

        Parameters
        ----------
        index : LabelledIndex
        statistics : callable
            Returns what follows the index's records.
        """
        try:
            answering = self.to_dict(index)
        except UnsupportedOperationError:  # a rule of the user's own, which cannot be written down
            answering = None
        return Basis(index, self.chosen_head.decision(index, statistics), statistics, answering)

    def to_dict(self, index: LabelledIndex | None = None) -> dict[str, Any]:
        """Return the arguments as JSON values.

        Parameters
        ----------
        index : LabelledIndex, optional
            Whose classes have names. Without, texts are left out.

        Raises
        ------
        UnsupportedOperationError
            If one cannot be written down.
        """
        given = self.params
        if callable(given["weights"]):
            raise UnsupportedOperationError(
                "weights is a callable, which cannot be saved; set weights to one of the named rules before "
                "saving, or pass your callable again after loading"
            )
        head = head_values(given["head"])
        if head is None:
            raise UnsupportedOperationError(
                f"head is a {type(given['head']).__name__} of your own, which cannot be saved; set head to "
                "one of clipretrieval.heads before saving, and pass yours again after loading: "
                "set_params(head=…)"
            )
        self.chosen_head.check()  # they may have been set since it was fitted
        priors = Priors.parse(given["priors"]).given
        return {
            "k": int(given["k"]),
            "weights": given["weights"],
            "temperature": float(given["temperature"]),
            "metric": str(Metric.parse(given["metric"])),
            "normalize": check_bool(given["normalize"], "normalize"),
            "head": head,
            "priors": priors if isinstance(priors, str) else list(priors),
            **({} if index is None else self._texts_to_dict(index)),
        }

    def _texts_to_dict(self, index: LabelledIndex) -> dict[str, Any]:
        texts = self.texts
        if texts is None:
            return {}
        if any(callable(template) for template in texts.templates):
            raise UnsupportedOperationError(
                "a template is a callable, which cannot be saved; set templates to strings before saving, or "
                "pass your callable again after loading"
            )
        names: dict[Label, str] = {
            label: name for label, name in texts.known.items() if label in index.classes.codes
        }
        names.update(texts.names)
        return {
            "text_weight": check_text_weight(self.params["text_weight"]),
            "class_names": [list(pair) for pair in names.items()],
            "templates": texts.templates,
        }
