"""A classifier of a store that another one has filled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clipretrieval.encoding.base import Encoder
from clipretrieval.errors import InvalidInputError
from clipretrieval.retrieval.labelled_index import LabelledIndex
from clipretrieval.retrieval.manifest import check_vectors_only
from clipretrieval.retrieval.parameters import check_store, make_store
from clipretrieval.stores.base import VectorStore

if TYPE_CHECKING:
    from clipretrieval.classifier import RetrievalClassifier

__all__ = ["attached"]


def attached(
    cls: type[RetrievalClassifier],
    store: str | VectorStore,
    encoder: Encoder | None,
    params: Mapping[str, Any],
) -> RetrievalClassifier:
    """Return a fitted classifier of a class; see `RetrievalClassifier.from_store`."""
    opened = store if not isinstance(store, str) else None
    try:
        if opened is None:
            probe = cls(encoder, store, **params)
            metric = probe._check_params()
            opened = make_store(store, probe.store_options, metric, existing=True)
        check_store(opened)
        manifest = opened.read_manifest()
        if not manifest:
            raise InvalidInputError(
                f"no classifier has filled this {type(opened).__name__}: it holds {opened.count()} vectors "
                "and no manifest. Fit one on it first, or check which store this is"
            )
        own = {"metric": opened.metric, "normalize": bool(manifest.get("normalize", False))}
        classifier = cls(encoder, store, **{**own, **params})
        metric = classifier._check_params()
        if encoder is None:
            check_vectors_only(manifest)
        index = LabelledIndex.open(
            opened, encoder, metric, bool(classifier.normalize), plan=classifier._plan()
        )
        classifier._become(index.store, index.classes, index.dim)
    except BaseException:
        if isinstance(store, str) and opened is not None:
            opened.close()
        raise
    return classifier
