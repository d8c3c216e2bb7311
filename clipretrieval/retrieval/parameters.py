"""What an estimator is given as its encoder and its store, checked; a store is made of a name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from clipretrieval._util.checks import check_mapping, shown
from clipretrieval._util.secrets import MaskedDict
from clipretrieval.errors import InvalidInputError, StoreError
from clipretrieval.stores.base import LocatedStore, VectorStore
from clipretrieval.stores.registry import create_store, existing_store
from clipretrieval.types import Metric

__all__ = [
    *("can_be_reopened", "check_encoder", "check_store", "make_store", "params_of", "restored_on_failure"),
]

_STORE_MEMBERS = (
    *("metric", "dim", "upsert", "search", "get", "delete", "count"),
    *("read_manifest", "write_manifest", "flush", "close"),
)
_ENCODER_MEMBERS = ("dim", "fingerprint", "encode")


def params_of(estimator: Any, deep: bool) -> dict[str, Any]:
    """Return an estimator's constructor arguments by name, with the secrets of `store_options` masked."""
    params: dict[str, Any] = {name: vars(estimator)[name] for name in estimator._get_param_names()}
    for name, value in list(params.items()) if deep else ():
        if hasattr(value, "get_params") and not isinstance(value, type):
            params.update({f"{name}__{key}": each for key, each in value.get_params().items()})
    options = params["store_options"]
    if isinstance(options, Mapping) and not isinstance(options, MaskedDict):
        params["store_options"] = MaskedDict(options)
    return params


@contextmanager
def restored_on_failure(estimator: Any) -> Iterator[None]:
    """Leave an estimator as it was when the block fails, the fit before it included."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        for name in set(vars(estimator)) - set(before):
            delattr(estimator, name)
        vars(estimator).update(before)  # by name: other threads may be asking
        raise


def check_encoder(encoder: Any) -> None:
    """Refuse what is neither an encoder nor None.

    Raises
    ------
    InvalidInputError
    """
    missing = [] if encoder is None else [name for name in _ENCODER_MEMBERS if not hasattr(encoder, name)]
    if isinstance(encoder, type):
        missing = ["an instance: it is a class"]
    if missing:
        raise InvalidInputError(
            f"encoder={shown(encoder)} is not an encoder: it lacks {', '.join(missing)}. Pass a "
            "StagedEncoder, an object that follows clipretrieval.encoding.Encoder, or None to classify "
            "vectors"
        )


def make_store(
    store: str | VectorStore, options: Mapping[str, Any] | None, metric: Metric, *, existing: bool = False
) -> VectorStore:
    """Make the store that a name stands for, or check the one that was given.

    Parameters
    ----------
    store : str or VectorStore
    options : mapping or None
        Arguments for the store that a name makes.
    metric : Metric
    existing : bool
        Whether it must be there already, so that nothing may be made for it.
    """
    # Tracebacks may be printed with local variables.
    options = MaskedDict(check_mapping(options, "store_options"))
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


def can_be_reopened(store: VectorStore | None) -> bool:
    """Tell whether somebody has closed a store that is still in its place."""
    if not isinstance(store, LocatedStore) or store.location() is None:
        return False
    try:
        store.count()
    except StoreError:
        return True
    return False
