"""Which map a store's vectors go through, and how far that has come: what its manifest says of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from clipretrieval._util.warning import warn_caller
from clipretrieval.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    StoreCorruptedError,
    StoreLockedError,
    UnsupportedOperationError,
)
from clipretrieval.retrieval.transform import LinearTransform
from clipretrieval.stores.base import BlobStore, ScannableStore, VectorStore, view_manifest
from clipretrieval.types import AnyArray, Label

__all__ = [
    *("DONE", "LEARNED_FROM", "NORM", "PENDING", "RAW", "REWRITING", "STORED", "TRANSFORM", "TransformPlan"),
    *("TransformRule", "blob_name", "check_entry", "mark", "read_entry", "read_transform"),
    *("transform_settings", "unfinished", "warn_of_growth"),
]

TRANSFORM = "transform"
"""What the manifest, and the metadata of each record, say of the map that vectors went through."""
NORM = "norm"
"""In the metadata: the length that a mapped vector had before it was scaled to one."""

PENDING, REWRITING, DONE = "pending", "rewriting", "done"
"""Vectors are raw until the map is learned; some are rewritten by it; all are."""
LEARNED_FROM = "learned_from"
"""In the manifest's entry: how many ``records`` and ``classes`` the map was learned from; may be missing."""
_PROGRESS = ("state", "digest", "before", LEARNED_FROM)
_UNTRANSFORMED = {"name": None}

MOST_GROWTH = 10
"""Times the records that a map was learned from; see `warn_of_growth`."""
MOST_NEW_CLASSES = 1.1
"""Times the classes that it was learned from."""
_warned: set[str] = set()  # the digests of maps of which this process has been told


class TransformRule(Protocol):
    """How a map is learned from labelled vectors."""

    @property
    def settings(self) -> dict[str, Any]:
        """What it is called and learned with, as JSON values; ``dim``: dimensions that are kept, or None."""
        ...

    def learn(self, batches: Iterable[tuple[AnyArray, Sequence[Label]]]) -> LinearTransform:
        """Learn from vectors, each batch of shape (n, dim), and their labels as stored."""
        ...


def _no_rule(settings: Mapping[str, Any]) -> TransformRule:
    raise UnsupportedOperationError(f"nothing here can learn the transform {dict(settings)}")


@dataclass(frozen=True)
class TransformPlan:
    """Which map somebody wants vectors to go through.

    Attributes
    ----------
    rule : TransformRule or None
        None: they stay as they are.
    auto : bool
        Whether a store that is filled decides instead, and one that cannot keep the map goes without.
    restore : callable
        Given the settings of a rule, as JSON values, returns it.
    """

    rule: TransformRule | None = None
    auto: bool = False
    restore: Callable[[Mapping[str, Any]], TransformRule] = _no_rule

    def for_empty(
        self, store: VectorStore, manifest: Mapping[str, Any], dim: int | None
    ) -> dict[str, Any] | None:
        """Return what the manifest has to say when a store is filled from nothing.

        Parameters
        ----------
        store : VectorStore
        manifest : mapping
            Of what it held before: without a wish of one's own, the vectors go through the same map anew.
        dim : int or None
            Of the vectors, where it is known.

        Raises
        ------
        UnsupportedOperationError
            If the store cannot keep a map.
        InvalidInputError
            If more dimensions are to be kept than there are.
        """
        rule = self.rule
        if rule is None and self.auto:
            before = transform_settings(read_entry(manifest))
            rule = self.restore(before) if before != _UNTRANSFORMED else None
        if rule is None:
            return None
        if not isinstance(store, BlobStore) or not isinstance(store, ScannableStore):
            if self.auto:
                return None
            raise UnsupportedOperationError(
                f"{type(store).__name__} cannot keep a transform (it has no read_blob, write_blob and scan "
                "methods); pass transform=None, or another store"
            )
        settings = rule.settings
        if dim is not None and settings["dim"] is not None and settings["dim"] > dim:
            raise InvalidInputError(
                f"the transform is to keep {settings['dim']} dimensions, and the vectors have {dim}; pass "
                f"dim={dim} or less, or None to keep all"
            )
        return {**settings, "state": PENDING, "digest": None, "before": None}

    def for_filled(self, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what the manifest of a filled store says.

        Raises
        ------
        FingerprintMismatchError
            If it is not what is wanted.
        """
        held = read_entry(manifest)
        if not self.auto:
            wanted = _UNTRANSFORMED if self.rule is None else self.rule.settings
            if transform_settings(held) != wanted:
                raise _mismatch(held, wanted)
        return held

    def rule_of(self, entry: Mapping[str, Any]) -> TransformRule:
        """Return the rule that an entry of a manifest stands for."""
        settings = transform_settings(entry)
        if self.rule is not None and self.rule.settings == settings:
            return self.rule
        return self.restore(settings)


RAW = TransformPlan()
"""Vectors stay as they are."""
STORED = TransformPlan(auto=True)
"""Whatever the store has."""


def read_entry(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a manifest says of the map; None where vectors are as they were given.

    Raises
    ------
    StoreCorruptedError
        If that is nothing that this library writes.
    """
    found = manifest.get(TRANSFORM)
    if found is None:
        return None
    if isinstance(found, Mapping) and found.get("state") in (PENDING, REWRITING, DONE):
        digests = [found.get("digest"), found.get("before")]
        usable = all(
            each is None or (isinstance(each, str) and re.fullmatch("[0-9a-f]{64}", each)) for each in digests
        )
        usable = usable and _is_tally(found.get(LEARNED_FROM))
        named = found.get("name") is None or isinstance(found.get("name"), str)
        dim = found.get("dim")
        whole = dim is None or (isinstance(dim, int) and not isinstance(dim, bool) and dim >= 1)
        if usable and named and whole and (found["state"] != DONE or digests[0] is not None):
            return dict(found)
    raise StoreCorruptedError(
        f"the store's manifest says of its transform {found!r:.200}, which no fit writes; fill the store "
        "again"
    )


def _is_tally(found: Any) -> bool:
    """Tell whether that is what `LEARNED_FROM` says, or nothing."""
    if found is None:
        return True
    if not isinstance(found, Mapping) or found.keys() != {"records", "classes"}:
        return False
    return all(type(count) is int and count >= 1 for count in found.values())


def warn_of_growth(store: VectorStore, classes: Collection[Label]) -> None:
    """Warn, once a process, of a map that was learned from few of the images, or classes, that a store holds.

    Measured on CIFAR-10 (20 neighbors, softmax weights, 50,000 images): a store of ten times the images has
    2 to 5 points less accuracy than after learning anew where it was learned from 50 to 500 images, and 0 to
    0.6 where from 5,000. New classes weigh more, whatever the number of images: a map of nine of ten classes
    has 1 to 2 points less, of eight 3 to 6, of five 4 to 7, which is less than without a map.

    Parameters
    ----------
    store : VectorStore
    classes : collection of int or of str
        Those that its manifest lists.

    Warns
    -----
    ClipRetrievalWarning
    """
    entry = read_entry(view_manifest(store)) or {}
    digest, learned = entry.get("digest"), entry.get(LEARNED_FROM)
    if entry.get("state") != DONE or learned is None or digest in _warned:
        return
    count, most = store.count(), MOST_NEW_CLASSES * learned["classes"]
    held = len(classes) if len(classes) > most else 0
    if held and isinstance(store, ScannableStore):  # some may be listed without an image
        held = len({label for listing in store.scan() for label in listing.labels.tolist()})
    if count < MOST_GROWTH * learned["records"] and held <= most:
        return
    _warned.add(str(digest))
    new = f" of {held}" if held > most else ""
    known = f" of {learned['classes']} classes" if new else ""
    warn_caller(
        f"the store's vectors are mapped by a transform that was learned from {learned['records']:,} "
        f"images{known}, and there are {count:,}{new} now; call refit_transform() to learn it of all"
    )


def transform_settings(entry: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what an entry says but for how far it has come."""
    if entry is None:
        return dict(_UNTRANSFORMED)
    return {key: value for key, value in entry.items() if key not in _PROGRESS}


def check_entry(held: Mapping[str, Any] | None, own: Mapping[str, Any] | None) -> None:
    """Compare what a manifest says with what it has to.

    Raises
    ------
    FingerprintMismatchError
        If vectors went, or are to go, through different maps.
    StoreLockedError
        If what the store holds is being rewritten, that was interrupted, or it has happened meanwhile.
    """
    if held == own:
        return
    if held is not None and held["state"] != DONE:
        raise unfinished(held)
    if own is not None and own["state"] == REWRITING:
        return  # it was ended by whoever asks
    if transform_settings(held) != transform_settings(own):
        raise _mismatch(held, transform_settings(own))
    raise StoreLockedError("the vectors of the store were mapped anew meanwhile; ask again")


def unfinished(entry: Mapping[str, Any]) -> StoreLockedError:
    """Return the error for a store whose vectors are not all mapped yet."""
    what = "is being rewritten" if entry["state"] == REWRITING else "is being filled, to be mapped at the end"
    return StoreLockedError(
        f"what the store holds {what}, or that was interrupted: wait for it, or go on with it by fit(…, "
        "resume=True) with the images, or by RetrievalClassifier(encoder, store).refit_transform()"
    )


def _mismatch(held: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> FingerprintMismatchError:
    return FingerprintMismatchError(
        "the vectors of the store went through another transform: stored "
        f"{_shown(transform_settings(held))}, given {_shown(wanted)}. Use transform='auto' to take the "
        "store's, or refit_transform() to rewrite what it holds"
    )


def _shown(settings: Mapping[str, Any]) -> str:
    if settings.get("name") is None:
        return "none"
    rest = ", ".join(f"{key}={value!r}" for key, value in settings.items() if key != "name")
    return f"{settings['name']!r} ({rest})"


def blob_name(digest: str) -> str:
    """Return the name of the blob that a store keeps a map in."""
    return f"transform-{mark(digest)}"


def mark(digest: str) -> str:
    """Return what records say of the map that they went through."""
    return digest[:8]


def read_transform(store: VectorStore, digest: str) -> LinearTransform:
    """Read a map that a store keeps.

    Raises
    ------
    StoreCorruptedError
        If it is missing or damaged.
    """
    try:
        content = store.read_blob(blob_name(digest)) if isinstance(store, BlobStore) else None
    except StoreCorruptedError as error:
        raise StoreCorruptedError(
            f"the transform that the store's vectors went through cannot be read ({error}). It cannot be "
            "computed from them: restore it from a copy, or fit again with overwrite=True"
        ) from error
    if content is None:
        raise StoreCorruptedError(
            f"the store lacks {blob_name(digest)}, the transform that its vectors went through; restore it "
            "from a copy, or fit again with overwrite=True"
        )
    return LinearTransform.from_bytes(content, digest)
