"""What a classifier that can be tuned has besides: the choice of its settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from clipretrieval._util.progress import Progress, open_progress
from clipretrieval.heads.votes import Weighting

if TYPE_CHECKING:
    from clipretrieval.classifier import RetrievalClassifier
    from clipretrieval.evaluation.sweep import SweepResult

__all__ = ["Tuning"]


class Tuning:
    """Mixin of `RetrievalClassifier`: measures settings for it."""

    def sweep(
        self,
        X: Any,
        y: Any = None,
        *,
        k: int | Iterable[int] = (1, 5, 20, 50),
        weights: Weighting | Iterable[Weighting] = ("uniform", "distance", "softmax"),
        temperature: float | Iterable[float] = (0.07,),
        validation: float | str | None = None,
        allow_known: bool = False,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
        seed: int = 0,
    ) -> SweepResult:
        """Measure the accuracy of many settings with one search, at the largest k.

        Each accuracy is what `evaluate` gives with the setting on the same images. All images are
        encoded; those of the validation part are searched.

        Parameters
        ----------
        X, y, on_error, progress
            As for `fit`; images that are not in the store.
        k, weights, temperature
            What to try, one value or several, combined. The temperature is that of softmax alone.
        validation : float in (0, 1], "all" or None
            The share of the images that settings are tuned on, drawn by their content; None: a half.
            ``"all"`` where `X` is a validation set of your own. `evaluate` refuses these images until
            the next fit.
        allow_known : bool
            Whether to tune on images that the store holds, each of which votes for itself.
        seed : int
            Of the draw.

        Returns
        -------
        SweepResult

        Raises
        ------
        InvalidInputError
            If a setting is none that the classifier takes, the validation part is empty, an image of it
            is in the store, or labels are missing or of another type than those fitted.

        Warns
        -----
        ClipRetrievalWarning
            If a k is more than the store holds; all vectors are used then.

        Examples
        --------
        >>> from clipretrieval import RetrievalClassifier
        >>> points, sides = [[0.0], [1.0], [4.0], [5.0]], ["left", "left", "right", "right"]
        >>> classifier = RetrievalClassifier(store="memory").fit(points, sides)
        >>> result = classifier.sweep([[0.4], [4.6]], ["left", "right"], k=[1, 3], validation="all")
        >>> result.best_params
        {'k': 1, 'weights': 'uniform'}
        """
        from clipretrieval.evaluation.sweep import sweep

        with open_progress(progress, "tuning") as shown:
            return sweep(
                cast("RetrievalClassifier", self),
                X,
                y,
                k=k,
                weights=weights,
                temperature=temperature,
                validation=validation,
                allow_known=allow_known,
                on_error=on_error,
                progress=shown,
                seed=seed,
            )
