"""Constructor arguments of a classifier, checked, and the store that they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipretrieval._util.checks import check_bool, check_int, check_mapping, check_number, shown
from clipretrieval._util.secrets import MaskedDict
from clipretrieval.errors import InvalidInputError, StoreError, StoreLockedError
from clipretrieval.heads.votes import WEIGHTINGS
from clipretrieval.stores import create_store
from clipretrieval.stores.base import LocatedStore, VectorStore
from clipretrieval.stores.checks import MOST_NEIGHBORS
from clipretrieval.stores.registry import existing_store
from clipretrieval.types import Metric

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
_ENCODER_MEMBERS = ("dim", "fingerprint", "encode")


def check_params(classifier: Learner) -> None:
    """Refuse constructor arguments that cannot work; scikit-learn has them checked at fit."""
    check_k(classifier.k)
    metric = Metric.parse(classifier.metric)
    check_weights(classifier.weights, metric)
    check_number(classifier.temperature, "temperature", above=0)
    check_bool(classifier.normalize, "normalize")
    encoder = classifier.encoder
    missing = [] if encoder is None else [name for name in _ENCODER_MEMBERS if not hasattr(encoder, name)]
    if isinstance(encoder, type):
        missing = ["an instance: it is a class"]
    if missing:
        raise InvalidInputError(
            f"encoder={shown(encoder)} is not an encoder: it lacks {', '.join(missing)}. Pass a "
            "StagedEncoder, an object that follows clipretrieval.encoding.Encoder, or None to classify "
            "vectors"
        )


def check_k(k: Any) -> int:
    """Return `k` as an int.

    Raises
    ------
    InvalidInputError
        If it is not a whole number from 1 to a million.
    """
    return check_int(k, "k", most=MOST_NEIGHBORS)


def check_weights(weights: Any, metric: Metric) -> None:
    """Refuse what is no weighting, or none that goes with the metric.

    Raises
    ------
    InvalidInputError
    """
    if callable(weights) and not isinstance(weights, type):
        return
    if not isinstance(weights, str) or weights not in WEIGHTINGS:
        raise InvalidInputError(
            f"unknown weights {shown(weights)}; choose one of {', '.join(map(repr, WEIGHTINGS))}, or pass a "
            "callable"
        )
    if weights == "distance" and metric == Metric.IP:
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
    # Tracebacks may be printed with local variables.
    options = MaskedDict(check_mapping(classifier.store_options, "store_options"))
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
            f"store={shown(store)} is not a vector store: it lacks {', '.join(missing) or 'an instance'}. "
            "Pass a registered name, or an object that follows clipretrieval.stores.VectorStore"
        )


def store_to_fill(classifier: Learner, again: bool) -> VectorStore:
    """Return the store that a fit goes into.

    Parameters
    ----------
    classifier : Learner
    again : bool
        Whether the fit goes on with, or replaces, what the store holds.

    Returns
    -------
    VectorStore
        The one that the classifier has, if the same arguments made it and the fit goes on with it, or it is
        what keeps a second one out of its folder. Else a new one; the one before is freed as soon as nobody
        has it.
    """
    held: VectorStore | None = getattr(classifier, "store_", None)
    if getattr(classifier, "_made_of", None) != recipe(classifier) or _can_be_reopened(held):
        held = None
    if held is not None and again:
        return held
    try:
        return make_store(classifier)
    except StoreLockedError:
        if held is None:
            raise
        return held


def _can_be_reopened(store: VectorStore | None) -> bool:
    """Tell whether somebody has closed a store that is still in its place."""
    if not isinstance(store, LocatedStore) or store.location() is None:
        return False
    try:
        store.count()
    except StoreError:
        return True
    return False


def recipe(classifier: Learner) -> tuple[Any, ...]:
    """Return what decides which store `make_store` makes."""
    options = MaskedDict(check_mapping(classifier.store_options, "store_options"))
    return (classifier.store, options, str(Metric.parse(classifier.metric)))
