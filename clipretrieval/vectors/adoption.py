"""A store that something else has filled, made a classifier's."""

from __future__ import annotations

from itertools import islice

import numpy as np

from clipretrieval._util.labels import stored_labels
from clipretrieval.encoding.base import Encoder
from clipretrieval.errors import (
    DimensionMismatchError,
    InvalidInputError,
    UnsupportedOperationError,
)
from clipretrieval.retrieval.changes import STATISTICS, new_state
from clipretrieval.retrieval.exclusive import sole_writer
from clipretrieval.retrieval.manifest import Origin, plain_fingerprint, vector_fingerprint
from clipretrieval.retrieval.transform_plan import TRANSFORM
from clipretrieval.stores.base import ScannableStore, VectorStore
from clipretrieval.stores.exact import row_norms
from clipretrieval.types import Label, Metric
from clipretrieval.vectors.exporting import all_records

__all__ = ["adopt"]

_OURS = frozenset({"format_version", "encoder", "label_kind"})
"""Of which a manifest has one if a classifier has filled its store."""
_LOOKED_AT = 2
"""Batches of records that are looked at for marks of a transform; for lengths, all are."""
_UNIT = 1e-3


def adopt(store: VectorStore, encoder: Encoder | None, metric: Metric, normalize: bool) -> None:
    """Write the manifest of a store that has none; see `RetrievalClassifier.adopt_store`."""
    with sole_writer(store):
        found = store.read_manifest()
        if _OURS & found.keys():
            raise InvalidInputError(
                "a classifier has filled this store, and its manifest says how; attach to it with "
                "RetrievalClassifier.from_store"
            )
        if not isinstance(store, ScannableStore):
            raise UnsupportedOperationError(
                f"{type(store).__name__} cannot list what it holds (it has no scan method), so the classes "
                "cannot be found; fill a store by RetrievalClassifier.from_vectors instead"
            )
        classes: set[Label] = {label for listing in store.scan() for label in listing.labels.tolist()}
        if not classes:
            raise InvalidInputError("the store holds no vectors, so there is nothing to adopt; fit on it")
        _check_records(store, encoder, normalize)
        kind = "str" if isinstance(next(iter(classes)), str) else "int"
        stored_labels(classes, kind)  # whether a fit could have stored them
        dim = int(store.dim or 0)
        fingerprint = vector_fingerprint(dim) if encoder is None else plain_fingerprint(encoder.fingerprint)
        own = Origin(fingerprint, metric, normalize).manifest(kind, classes)
        store.write_manifest({**found, **own, STATISTICS: new_state()})
        store.flush()


def _check_records(store: VectorStore, encoder: Encoder | None, normalize: bool) -> None:
    """Refuse what is stated of vectors, where some show that it cannot be."""
    if encoder is not None and store.dim != encoder.dim:
        raise DimensionMismatchError(
            f"the store holds vectors of dimension {store.dim}, and the encoder's have {encoder.dim}; pass "
            "the encoder that made them"
        )
    for records in islice(all_records(store), None if normalize else _LOOKED_AT):
        if any(TRANSFORM in each for each in records.metadata):
            raise InvalidInputError(
                "the vectors went through a transform, which nothing but their lost manifest names; fit into "
                "another store"
            )
        norms = row_norms(records.vectors)
        if normalize and (np.abs(norms - 1) > _UNIT).any():
            row = int(np.argmax(np.abs(norms - 1)))
            raise InvalidInputError(
                f"normalize=True says that all vectors have length one, and that of {records.ids[row]!r} has "
                f"length {norms[row]:.4g}; pass normalize=False, or store them scaled"
            )
