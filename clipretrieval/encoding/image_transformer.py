"""The face that scikit-learn knows: an encoder as a transformer of images."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from inspect import signature
from typing import Any, TypeVar

import numpy as np

from clipretrieval._util.checks import check_choice, shown
from clipretrieval._util.dependencies import require
from clipretrieval.errors import InvalidInputError
from clipretrieval.images.sources import count_hint
from clipretrieval.types import AnyArray, FloatArray

__all__ = ["ImageTransformer"]

Self = TypeVar("Self", bound="ImageTransformer")

_CONTAINERS = ("default", "pandas", "polars")


class ImageTransformer:
    """A scikit-learn transformer, images to vectors, without loading scikit-learn.

    Nothing is learned. Clones share the weights that are loaded; what `set_params` changes is changed in one
    of them alone.
    """

    _given: Mapping[str, Any] = {}
    """Arguments as they were given, where the attribute of the name is something else."""
    _container: str | None = None
    """What `set_output` asked for."""

    @property
    def dim(self) -> int:
        """The dimension of the vectors."""
        raise NotImplementedError

    def encode(self, images: Any) -> FloatArray:
        """Return one vector for each image, shape (n, dim)."""
        raise NotImplementedError

    def fit(self: Self, X: Any, y: Any = None) -> Self:
        """Check that `X` can hold images; there is nothing to learn, and none is read.

        Parameters
        ----------
        X : images
            As for `encode`.
        y : object
            Not looked at.

        Raises
        ------
        InvalidInputError
            If `X` is of no kind that holds images, or empty.
        """
        if count_hint(X) == 0:
            raise InvalidInputError("there are no images to fit on; pass at least one")
        return self

    def transform(self, X: Any) -> Any:
        """Return the vectors of images, as `encode` does.

        Returns
        -------
        ndarray of float32, shape (n, dim)
            Or a DataFrame, where `set_output` or ``sklearn.set_config`` asks for one.
        """
        vectors, wanted = self.encode(X), self._container
        if wanted is None:  # who has not loaded scikit-learn cannot have set it
            sklearn = sys.modules.get("sklearn")
            wanted = "default" if sklearn is None else sklearn.get_config()["transform_output"]
        if wanted == "default":
            return vectors
        names = self.get_feature_names_out().tolist()
        frames = require(wanted, "set_output", f"run: pip install {wanted}")
        if wanted == "polars":
            return frames.DataFrame(vectors, schema=names, orient="row")
        index = X.index if isinstance(X, frames.DataFrame | frames.Series) else None
        return frames.DataFrame(vectors, columns=names, index=index, copy=False)

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        """Return the vectors of images; see `transform`."""
        return self.fit(X, y).transform(X)

    def get_feature_names_out(self, input_features: Any = None) -> AnyArray:
        """Return the names of the vectors' columns: the class's name in small letters, and a number.

        Parameters
        ----------
        input_features : object
            Not looked at: images have no features with names.

        Returns
        -------
        ndarray of object (str), shape (dim,)
        """
        prefix = type(self).__name__.lower()
        return np.array([f"{prefix}{place}" for place in range(self.dim)], dtype=object)

    def set_output(self: Self, *, transform: str | None = None) -> Self:
        """Choose what `transform` returns.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"}, optional
            None leaves it as it is.
        """
        if transform is not None:
            self._container = check_choice(transform, "transform", _CONTAINERS)
        return self

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments by name; none of them has any of its own (`deep`)."""
        names = [name for name in signature(type(self)).parameters if not name.startswith("_")]
        return {name: self._given[name] if name in self._given else getattr(self, name) for name in names}

    def set_params(self: Self, **params: Any) -> Self:
        """Change arguments of this encoder, and of no clone or classifier that has another one.

        For scikit-learn's searches, which set what they try in a clone. A classifier that was fitted with
        this very encoder refuses to answer afterwards, as its vectors are others.

        Raises
        ------
        InvalidInputError
            If an argument is unknown, or its value is none that the constructor takes; nothing is changed.
        """
        known = self.get_params()
        unknown = sorted(set(params) - set(known))
        if unknown:
            raise InvalidInputError(
                f"{type(self).__name__} has no argument {shown(unknown[0])}; it has {', '.join(known)}"
            )
        if params:
            vars(self).update(vars(self._with(params)))
        return self

    def _with(self: Self, params: Mapping[str, Any]) -> Self:
        """Return another encoder, with some arguments changed."""
        return type(self)(**{**self.get_params(), **params})

    def __sklearn_clone__(self: Self) -> Self:
        copied = object.__new__(type(self))
        vars(copied).update(vars(self))
        return copied

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(preserves_dtype=[]),
            input_tags=InputTags(two_d_array=False, three_d_array=True),
            requires_fit=False,
            no_validation=True,
        )
