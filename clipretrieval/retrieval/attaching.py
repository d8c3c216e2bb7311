"""Make a fitted classifier of a store that is filled already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clipretrieval._util.labels import class_array
from clipretrieval.encoding.base import Encoder
from clipretrieval.errors import FingerprintMismatchError, InvalidInputError
from clipretrieval.retrieval.manifest import (
    check_manifest,
    manifest_classes,
    plain_fingerprint,
    vector_fingerprint,
)
from clipretrieval.retrieval.parameters import check_params, check_store, make_store, recipe
from clipretrieval.stores.base import VectorStore
from clipretrieval.types import Metric

if TYPE_CHECKING:
    from clipretrieval.classifier import RetrievalClassifier

__all__ = ["adopt", "attach"]


def attach(
    cls: type[RetrievalClassifier],
    store: str | VectorStore,
    encoder: Encoder | None,
    params: Mapping[str, Any],
) -> RetrievalClassifier:
    """Make a fitted classifier of a store that is filled; see `RetrievalClassifier.from_store`."""
    opened = store if not isinstance(store, str) else None
    try:
        if opened is None:
            probe = cls(encoder, store, **params)
            check_params(probe)
            opened = make_store(probe, existing=True)
        check_store(opened)
        manifest = opened.read_manifest()
        if not manifest:
            raise InvalidInputError(
                f"no classifier has filled this {type(opened).__name__}: it holds {opened.count()} vectors "
                "and no manifest. Fit one on it first, or check which store this is"
            )
        own = {"metric": opened.metric, "normalize": bool(manifest.get("normalize", False))}
        classifier = cls(encoder, store, **{**own, **params})
        check_params(classifier)
        if encoder is not None:
            fingerprint = plain_fingerprint(encoder.fingerprint)
        else:
            fingerprint = _vectors_only(manifest, opened)
        adopt(classifier, opened, fingerprint, None)
    except BaseException:
        if isinstance(store, str) and opened is not None:
            opened.close()
        raise
    return classifier


def _vectors_only(manifest: Mapping[str, Any], store: VectorStore) -> dict[str, Any]:
    """Return the fingerprint of a store of plain vectors, or ask for the encoder of any other."""
    filler = manifest.get("encoder")
    if isinstance(filler, Mapping) and filler.get("encoder") is not None:
        what = ", ".join(f"{key}={filler[key]!r}" for key in ("encoder", "stage") if key in filler)
        raise InvalidInputError(
            f"an encoder filled this store ({what}); pass the same one: RetrievalClassifier.from_store("
            "store, encoder)"
        )
    return vector_fingerprint(int(store.dim or 0))


def adopt(
    classifier: RetrievalClassifier, store: VectorStore, fingerprint: Mapping[str, Any], kind: str | None
) -> None:
    """Make a classifier a fitted one with what a store holds.

    Raises
    ------
    FingerprintMismatchError
        If something else filled the store, or, where `kind` is given, with labels of another type.
    """
    manifest = store.read_manifest()
    metric, unit = Metric.parse(classifier.metric), bool(classifier.normalize)
    check_manifest(manifest, fingerprint, metric, normalize=unit)
    if kind is not None and manifest["label_kind"] != kind:
        raise FingerprintMismatchError(
            f"the store holds labels of the type {manifest['label_kind']}, but the classifier was saved "
            f"with {kind}"
        )
    classifier.store_ = store
    classifier._label_kind = str(manifest["label_kind"])
    classifier.classes_ = class_array(manifest_classes(manifest), classifier._label_kind)
    classifier.n_features_in_ = int(store.dim or 0)
    classifier._made_of = recipe(classifier)
