"""The head that a classifier's arguments stand for, and how it comes to decide by an index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from clipretrieval.errors import InvalidInputError
from clipretrieval.heads.base import Head
from clipretrieval.heads.choice import choose_head, head_name
from clipretrieval.heads.class_texts import ClassTexts
from clipretrieval.heads.fitted_head import DecisionRule
from clipretrieval.heads.index_statistics import IndexStatistics
from clipretrieval.heads.priors import Priors
from clipretrieval.heads.text_prior import TEXT, TextPrior
from clipretrieval.heads.vote_shares import VoteShares
from clipretrieval.heads.voting import Voting
from clipretrieval.retrieval.labelled_index import LabelledIndex

__all__ = ["ChosenHead"]


@dataclass(frozen=True, eq=False)
class ChosenHead:
    """What decides, as it was asked for.

    Attributes
    ----------
    head : str or Head
    voting : Voting
        The neighbors that vote, or that a head of the name ``"fused"`` reads.
    priors : {"equal", "empirical"} or sequence of float
    texts : ClassTexts or None
        None: they do not count.
    text_weight : float or "auto"
        Of texts that count.
    """

    head: Any
    voting: Voting
    priors: Any
    texts: ClassTexts | None = None
    text_weight: float | str = "auto"

    def check(self) -> None:
        """Refuse what cannot work.

        Raises
        ------
        InvalidInputError
        """
        self.voting.check()
        _ = self.learner
        Priors.parse(self.priors)

    @property
    def name(self) -> str:
        """What reports call it."""
        name = head_name(self.head)
        return name if self.texts is None else f"{name} + {TEXT}"

    @property
    def learner(self) -> Head | None:
        """What learns from a store's contents; None where the votes of the nearest are all there is.

        Raises
        ------
        InvalidInputError
            If there is no such head.
        """
        head = choose_head(self.head, self.voting.k)
        if self.texts is None:
            return head
        voting = VoteShares(self.voting) if head is None else head
        return TextPrior(voting, head_name(self.head), self.texts, (), self.text_weight)

    def decision(self, index: LabelledIndex, statistics: Callable[[], IndexStatistics]) -> DecisionRule:
        """Return what decides by an index's contents as they are now.

        Parameters
        ----------
        index : LabelledIndex
        statistics : callable
            Returns what follows the index's records; called where the head learns from them.

        Raises
        ------
        InvalidInputError
            If the arguments do not fit one another, or the contents.
        NotFittedError, UnsupportedOperationError
            As for `IndexStatistics.fit`.
        """
        head = self.learner
        if head is None:
            return self.voting
        if isinstance(head, TextPrior):
            head = _listing_classes(head, index)
        return statistics().fit(index, head, Priors.parse(self.priors), self.name, self.voting.k)


def _listing_classes(head: TextPrior, index: LabelledIndex) -> TextPrior:
    """Tell a head which classes there are, and refuse what it cannot read."""
    if index.transform is not None:
        raise InvalidInputError(
            "text_weight needs vectors as the encoder gives them, and those of this store went through a "
            "transform; set transform=None and call refit_transform(), or set text_weight=None"
        )
    index.number_classes()  # takes up those that the store has gained
    listed = list(index.classes.codes)
    head.texts.check_known(listed)
    return replace(head, listed=tuple(listed))
