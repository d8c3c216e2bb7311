"""A store whose vectors are labelled, together with what its manifest has to say and the classes it has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clipretrieval import errors
from clipretrieval._util.rounding import without_range_warnings
from clipretrieval._util.warning import warn_caller
from clipretrieval.encoding.base import Encoder
from clipretrieval.errors import FingerprintMismatchError, StoreCorruptedError, StoreError
from clipretrieval.retrieval.changes import ChangeFollower
from clipretrieval.retrieval.classes import Classes, ClassNumbers
from clipretrieval.retrieval.manifest import (
    Origin,
    manifest_classes,
    plain_fingerprint,
    vector_fingerprint,
)
from clipretrieval.retrieval.transform import LinearTransform
from clipretrieval.retrieval.transform_plan import (
    DONE,
    RAW,
    TransformPlan,
    check_entry,
    read_entry,
    read_transform,
    unfinished,
)
from clipretrieval.retrieval.vectorless_store import VectorlessStore, is_vectorless
from clipretrieval.stores.base import BlobStore, RefreshableStore, VectorStore, view_manifest
from clipretrieval.types import FloatArray, Label, Metric, Neighbors

__all__ = ["EMPTY", "LabelledIndex"]

ATTEMPTS = 3
"""Searches of a store that is empty at one moment and not at the next, before it is held to be at fault."""
EMPTY = "the store holds no vectors any more; fit the classifier again"


@dataclass(eq=False)
class LabelledIndex:
    """A store that is filled, who filled it, and the classes of its records.

    Attributes
    ----------
    store : VectorStore
    encoder : Encoder or None
        Whose vectors it holds; None where it holds vectors as they were given.
    metric : Metric
    normalize : bool
        Whether the vectors were scaled to length one.
    classes : Classes
        Those known by now; the store may gain more at any time.
    dim : int
        Of the vectors that are given; those of the store may have fewer.
    change_classes : callable, optional
        Given classes to add and to remove, as stored, returns those that follow: an estimator's way to learn
        of what its store has gained.
    class_names : mapping of int to str
        Of classes that were fitted by their numbers in a dataset.
    follower : ChangeFollower, optional
        Who is told of changes of the records.
    transform : LinearTransform, optional
        What the vectors of the store went through, and those of queries have to.
    transform_entry : mapping, optional
        What the manifest says of it.
    unknown : int or str, optional
        What is answered of an image that is of none of the classes, as stored.
    """

    store: VectorStore
    encoder: Encoder | None
    metric: Metric
    normalize: bool
    classes: Classes
    dim: int
    change_classes: Callable[[Iterable[Label], Iterable[Label]], Classes] | None = None
    class_names: Mapping[int, str] = field(default_factory=dict)
    follower: ChangeFollower | None = None
    transform: LinearTransform | None = None
    transform_entry: Mapping[str, Any] | None = None
    unknown: Label | None = None

    @classmethod
    def open(
        cls,
        store: VectorStore,
        encoder: Encoder | None,
        metric: Metric,
        normalize: bool,
        *,
        dim: int | None = None,
        kind: str | None = None,
        plan: TransformPlan = RAW,
        finished: bool = True,
    ) -> LabelledIndex:
        """Attach to a store that is filled.

        Parameters
        ----------
        store, encoder, metric, normalize
        dim : int, optional
            Where it is known beforehand; otherwise the store's.
        kind : {"bool", "int", "float", "str"}, optional
            The type that its labels must have.
        plan : TransformPlan
            Which map its vectors must have gone through.
        finished : bool
            Whether all of them must have; else nothing can be looked up.

        Raises
        ------
        FingerprintMismatchError
            If something else filled the store, or, where `kind` is given, with labels of another type.
        StoreLockedError
            If its vectors are being rewritten, or that was interrupted.
        """
        if encoder is not None and not isinstance(store, VectorlessStore) and is_vectorless(store):
            store = VectorlessStore(store, encoder, normalize)
        manifest = view_manifest(store)
        entry = read_entry(manifest)
        digest = None if entry is None else entry["digest"]
        transform = None if digest is None else read_transform(store, digest)
        if dim is None:
            dim = int(store.dim or 0) if transform is None else transform.dim
        _origin(encoder, dim, metric, normalize, entry).check(manifest)
        entry = plan.for_filled(manifest)
        if finished:
            _finished(entry)
        if kind is not None and manifest["label_kind"] != kind:
            raise FingerprintMismatchError(
                f"the store holds labels of the type {manifest['label_kind']}, but the classifier was saved "
                f"with {kind}"
            )
        classes = Classes((), str(manifest["label_kind"])).listed_by(manifest)
        return cls(
            store, encoder, metric, normalize, classes, dim, transform=transform, transform_entry=entry
        )

    @property
    def is_searchable(self) -> bool:
        """Whether the store keeps vectors."""
        return not isinstance(self.store, VectorlessStore)

    @property
    def records(self) -> VectorStore:
        """The store that keeps all there is."""
        return self.store.records if isinstance(self.store, VectorlessStore) else self.store

    def manifest(self) -> dict[str, Any]:
        """Return what the manifest of the store has to agree with."""
        return self._origin().manifest(self.classes.kind)

    def check_manifest(self) -> Mapping[str, Any]:
        """Refuse a store that a different encoder has filled, perhaps since the question began.

        Returns
        -------
        mapping
            The manifest.
        """
        manifest = view_manifest(self.store)
        self._origin().check(manifest)
        return manifest

    def follow_transform(self, plan: TransformPlan, known: LinearTransform | None = None) -> None:
        """Find out which map the vectors of the store have gone through by now.

        Parameters
        ----------
        plan : TransformPlan
            Which one they must have.
        known : LinearTransform, optional
            The one that they had before; it is not read again.

        Raises
        ------
        FingerprintMismatchError, StoreLockedError
            As for `open`.
        """
        if not isinstance(self.store, BlobStore):
            return  # it can have none; see `check_manifest`
        entry = _finished(plan.for_filled(view_manifest(self.store)))
        if entry is not None:
            same = known is not None and known.digest == entry["digest"]
            try:
                self.transform = known if same else read_transform(self.store, entry["digest"])
            except StoreCorruptedError:
                check_entry(read_entry(self.store.read_manifest()), entry)  # it may be gone for good reason
                raise
        self.transform_entry = entry

    def refresh(self) -> None:
        """Take up what other processes have put into the store."""
        if isinstance(self.store, RefreshableStore) and self.store.refresh() and self.follower is not None:
            self.follower.lose()

    def count_for(self, k: int) -> int:
        """Return the number of records, once it is certain that they can be asked for `k` neighbors.

        Raises
        ------
        FingerprintMismatchError
        NotFittedError
            If there are none.
        """
        count = self.look()[1]
        if k > count:
            warn_caller(f"k={k} is more than the {count} vectors in the store; all {count} are used")
        return count

    def look(self) -> tuple[Mapping[str, Any], int]:
        """Return the manifest and the number of records, once it is certain that there are any.

        Raises
        ------
        FingerprintMismatchError
        NotFittedError
            If there are none.
        """
        self.refresh()
        manifest = self.check_manifest()
        count = self.store.count()
        if count == 0:
            raise errors.NotFittedError(EMPTY)
        return manifest, count

    def number_classes(self) -> ClassNumbers:
        """Fix the classes for one question; those that the store has gained meanwhile are taken up."""
        self.refresh()
        manifest = view_manifest(self.store)
        known = self.classes.kind
        kind = manifest.get("label_kind", known)
        if kind != known and "str" in (kind, known):
            raise StoreError(
                f"the store was filled anew, with labels of the type {kind} where this "
                f"classifier knows {known}; attach to it with RetrievalClassifier.from_store"
            )
        if not self.classes.lists_all(manifest):
            self.update_classes(add=manifest_classes(manifest))
        return ClassNumbers(self.classes, self.unknown)

    def update_classes(self, *, add: Iterable[Label] = (), remove: Iterable[Label] = ()) -> None:
        """Change the classes that are known, here and in the estimator that the index is of."""
        change = self.classes.changed if self.change_classes is None else self.change_classes
        self.classes = change(add, remove)

    def look_up(self, vectors: FloatArray, k: int) -> Neighbors:
        """Search a store that others may empty and fill meanwhile.

        Raises
        ------
        NotFittedError
            If it holds nothing any more.
        StoreError
            If it holds vectors and answers what no store may.
        """
        for _ in range(ATTEMPTS):
            with without_range_warnings():
                near = self.store.search(vectors, k)
            # A row without a single neighbor: the store was empty at that moment, whatever it counted before.
            if near.distances.shape != (len(vectors), k) or near.valid[:, 0].all():
                break
            if self.store.count() == 0:
                raise errors.NotFittedError(EMPTY)
        self._check_neighbors(near, len(vectors), k)
        return near

    def _origin(self) -> Origin:
        return _origin(self.encoder, self.dim, self.metric, self.normalize, self.transform_entry)

    def _check_neighbors(self, near: Neighbors, n: int, k: int) -> None:
        """Refuse what no store may answer."""
        fault = ""
        if not near.ids.shape == near.distances.shape == near.labels.shape == (n, k):
            fault = (
                f"arrays of shape {near.ids.shape}, {near.distances.shape} and {near.labels.shape}, not "
                f"{(n, k)}"
            )
        elif np.isnan(near.distances).any() or (near.distances[:, 1:] < near.distances[:, :-1]).any():
            fault = "distances that are NaN or do not ascend"
        elif not np.isfinite(near.distances[:, 0]).all():
            fault = "no neighbor at all for a query, though it counts some"
        if fault:
            raise StoreError(
                f"{type(self.store).__name__}.search returned {fault}; the store has a fault of its own"
            )


def _origin(
    encoder: Encoder | None,
    dim: int,
    metric: Metric,
    normalize: bool,
    transform: Mapping[str, Any] | None,
) -> Origin:
    found = vector_fingerprint(dim) if encoder is None else plain_fingerprint(encoder.fingerprint)
    return Origin(found, metric, normalize, transform)


def _finished(entry: dict[str, Any] | None) -> dict[str, Any] | None:
    if entry is not None and entry["state"] != DONE:
        raise unfinished(entry)
    return entry
