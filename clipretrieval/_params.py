"""Constructor arguments of a classifier, checked, and the store that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from clipretrieval._checks import shown
from clipretrieval._secrets import MaskedDict
from clipretrieval.errors import InvalidInputError
from clipretrieval.stores import create_store
from clipretrieval.stores.base import VectorStore
from clipretrieval.stores.registry import existing_store
from clipretrieval.types import Metric
from clipretrieval.voting import WEIGHTINGS

if TYPE_CHECKING:
    from clipretrieval._learner import Learner

__all__ = [
    *("check_k", "check_params", "check_store", "check_weights"),
    *("make_store", "recipe", "store_to_fill"),
]

_STORE_MEMBERS = (
    *("metric", "dim", "upsert", "search", "get", "delete", "count"),
    *("read_manifest", "write_manifest", "flush", "close"),
)
MOST_NEIGHBORS = 1_000_000
_ENCODER_MEMBERS = ("dim", "fingerprint", "encode")


def check_params(classifier: Learner) -> None:
    """Refuse constructor arguments that cannot work; scikit-learn has them checked at fit."""
    check_k(classifier.k)
    metric = Metric.parse(classifier.metric)
    temperature = classifier.temperature
    check_weights(classifier.weights, metric)
    if not isinstance(temperature, int | float | np.number) or not 0 < temperature < np.inf:
        raise InvalidInputError(f"temperature must be a positive number; got {temperature!r}")
    if not isinstance(classifier.normalize, bool | np.bool_):
        raise InvalidInputError(f"normalize must be True or False; got {classifier.normalize!r}")
    encoder = classifier.encoder
    missing = [] if encoder is None else [name for name in _ENCODER_MEMBERS if not hasattr(encoder, name)]
    if isinstance(encoder, type):
        missing = ["an instance: it is a class"]
    if missing:
        raise InvalidInputError(
            f"encoder={encoder!r} is not an encoder: it lacks {', '.join(missing)}. Pass a StagedEncoder, an "
            "object that follows clipretrieval.encoding.Encoder, or None to classify vectors"
        )


def check_k(k: Any) -> int:
    """Return `k` as an int.

    Raises
    ------
    InvalidInputError
        If it is not a whole number from 1 to a million.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise InvalidInputError(f"k must be a whole number of at least 1; got {k!r}")
    if k > MOST_NEIGHBORS:
        raise InvalidInputError(f"k must be at most {MOST_NEIGHBORS}; got {k!r}")
    return int(k)


def check_weights(weights: Any, metric: Metric) -> None:
    """Refuse what is no weighting, or none that goes with the metric.

    Raises
    ------
    InvalidInputError
    """
    if not callable(weights) and (not isinstance(weights, str) or weights not in WEIGHTINGS):
        raise InvalidInputError(
            f"unknown weights {weights!r}; choose one of {', '.join(map(repr, WEIGHTINGS))}, or pass a "
            "callable"
        )
    if isinstance(weights, str) and weights == "distance" and metric == Metric.IP:
        raise InvalidInputError(
            "weights='distance' needs distances that are not negative; with metric='ip' use 'softmax'"
        )


def make_store(classifier: Learner, *, existing: bool = False) -> VectorStore:
    """Make the store that a name stands for, or check the one that was given.

    Parameters
    ----------
    classifier : Learner
    existing : bool
        Whether it must be there already, so that nothing may be made for it.
    """
    store = classifier.store
    if not isinstance(classifier.store_options, Mapping | None):
        raise InvalidInputError(
            f"store_options must be a mapping of argument names; got {shown(classifier.store_options)}"
        )
    options = MaskedDict(classifier.store_options or {})  # tracebacks may be printed with local variables
    metric = Metric.parse(classifier.metric)
    if "metric" in options and Metric.parse(options["metric"]) != metric:
        raise InvalidInputError(
            f"store_options say metric={str(options['metric'])!r} and the classifier {str(metric)!r}; pass "
            "the metric to the classifier alone"
        )
    if isinstance(store, str):
        make = existing_store if existing else create_store
        return make(store, **{"metric": metric, **options})
    check_store(store)
    if options:
        raise InvalidInputError(
            "store_options are for a store given by name; this one is an instance already"
        )
    if Metric.parse(store.metric) != metric:
        raise InvalidInputError(
            f"the store's metric is {str(store.metric)!r} and the classifier's {str(metric)!r}; "
            f"pass metric={str(store.metric)!r}"
        )
    return store


def check_store(store: Any) -> None:
    """Refuse what does not follow the protocol of a vector store."""
    missing = [name for name in _STORE_MEMBERS if not hasattr(store, name)]
    if missing or isinstance(store, type):
        raise InvalidInputError(
            f"store={store!r} is not a vector store: it lacks {', '.join(missing) or 'an instance'}. Pass a "
            "registered name, or an object that follows clipretrieval.stores.VectorStore"
        )


def store_to_fill(classifier: Learner, again: bool) -> VectorStore:
    """Return the store that a fit goes into.

    Parameters
    ----------
    classifier : Learner
    again : bool
        Whether the fit goes on with, or replaces, what the store holds: then a store that a name made stays
        the same for as long as the arguments that made it.
    """
    if (
        again
        and hasattr(classifier, "store_")
        and getattr(classifier, "_made_of", None) == recipe(classifier)
    ):
        return classifier.store_
    return make_store(classifier)


def recipe(classifier: Learner) -> tuple[Any, ...]:
    """Return what decides which store `make_store` makes."""
    return (
        classifier.store,
        MaskedDict(classifier.store_options or {}),
        str(Metric.parse(classifier.metric)),
    )
