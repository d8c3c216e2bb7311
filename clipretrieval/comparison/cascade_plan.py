"""The cascades that are compared, and what they are calibrated to, checked before any work begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clipretrieval._util.checks import check_number, check_sequence, check_strings
from clipretrieval.cascade.calibration import check_promise
from clipretrieval.cascade.cascade_classifier import CascadeClassifier
from clipretrieval.cascade.risk_control import least_sample
from clipretrieval.encoding.staged_encoder import StagedEncoder
from clipretrieval.errors import InvalidInputError

__all__ = ["CascadePlan", "check_cascades"]


@dataclass(frozen=True)
class CascadePlan:
    """Cascades, and what each is calibrated to.

    Attributes
    ----------
    exits : tuple of tuple of str
        The stages of each.
    share : float
        Of the training images, held out to calibrate on, in (0, 1).
    max_loss, confidence : float
    budget : float or None
        As for `CascadeClassifier.calibrate`.
    """

    exits: tuple[tuple[str, ...], ...]
    share: float
    max_loss: float
    confidence: float
    budget: float | None

    @property
    def stages(self) -> tuple[str, ...]:
        """Those of all cascades, each once."""
        return tuple(dict.fromkeys(stage for exits in self.exits for stage in exits))

    def check_count(self, held_out: float) -> None:
        """Refuse to hold out so few images that nothing can be promised.

        Raises
        ------
        InvalidInputError
        """
        if not self.exits:
            return
        needed = 1 if self.budget is not None else least_sample(self.max_loss, self.confidence) or 1
        if held_out < needed:
            raise InvalidInputError(
                f"calibration_share={self.share:g} of the training images are {held_out:.0f}, and to promise "
                f"max_loss={self.max_loss:g} with a confidence of {self.confidence:g} takes at least "
                f"{needed}; pass more images, a greater calibration_share or max_loss, or a budget"
            )


def check_cascades(
    encoder: StagedEncoder, cascades: Any, share: Any, max_loss: Any, confidence: Any, budget: Any
) -> CascadePlan:
    """Return the arguments of `compare` that are about cascades in one piece.

    Raises
    ------
    InvalidInputError
        If one of them is none that can be compared.
    """
    given = check_sequence(cascades, "cascades", "sequences of stages, such as [('layer2', 'mid', 'late')]")
    exits = dict.fromkeys(tuple(check_strings(each, "each of cascades")) for each in given)
    share = check_number(share, "calibration_share", above=0, most=0.9)
    max_loss, confidence, budget = check_promise(max_loss, confidence, budget)
    for stages in exits:
        CascadeClassifier(encoder, stages)._make_exits()
        check_promise(max_loss, confidence, budget, least=encoder.multiply_adds(stages[0]), first=stages[0])
    return CascadePlan(tuple(exits), share, max_loss, confidence, budget)
