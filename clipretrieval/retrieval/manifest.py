"""The manifest that a classifier keeps in its store: who filled it, and with what."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from clipretrieval._version import __version__
from clipretrieval.encoding.fingerprint import differences
from clipretrieval.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    StoreCorruptedError,
    StoreLockedError,
)
from clipretrieval.retrieval.transform_plan import TRANSFORM, check_entry, read_entry
from clipretrieval.types import Label, Metric

__all__ = [
    *("CLEARING", "Origin", "check_owner", "check_vectors_only", "format_version"),
    *("manifest_classes", "plain_fingerprint", "vector_fingerprint"),
]

FORMAT_VERSION, TRANSFORMED_VERSION = 1, 2
"""Of manifests; the second of those that name a transform, which versions before it would not apply."""
CLEARING = "clearing"
"""Set in the manifest while what the store holds is being removed to make room for a new fit."""
KINDS = ("bool", "int", "float", "str")


@dataclass(frozen=True)
class Origin:
    """What the vectors of a store were made by.

    Attributes
    ----------
    fingerprint : mapping of JSON values
        The encoder's.
    metric : Metric
    normalize : bool
        Whether the vectors were scaled to length one.
    transform : mapping of JSON values, optional
        What the manifest says of the map that they went through; see `read_entry`.
    """

    fingerprint: Mapping[str, Any]
    metric: Metric
    normalize: bool = False
    transform: Mapping[str, Any] | None = None

    def manifest(self, label_kind: str, classes: Iterable[Label] = ()) -> dict[str, Any]:
        """Put together what a later fit, predict or load is compared with.

        Parameters
        ----------
        label_kind : {"bool", "int", "float", "str"}
        classes : iterable of int or of str
            As stored.

        Returns
        -------
        dict of JSON values
        """
        mapped = {} if self.transform is None else {TRANSFORM: dict(self.transform)}
        return {
            **format_version(self.transform),
            "library_version": __version__,
            "encoder": dict(self.fingerprint),
            "metric": str(self.metric),
            "normalize": self.normalize,
            "label_kind": label_kind,
            "classes": sorted(set(classes)),
            **mapped,
        }

    def check(self, manifest: Mapping[str, Any]) -> None:
        """Refuse a store that a different encoder or metric filled, or with vectors of another length.

        Raises
        ------
        FingerprintMismatchError
            The message names everything that differs.
        StoreLockedError
            If the vectors are being rewritten, or were since.
        StoreCorruptedError
            If there is no manifest, or one of an unknown format.
        """
        if isinstance(manifest, Mapping) and not manifest:
            raise StoreCorruptedError(
                "the store holds vectors and no manifest, so nobody knows which encoder made them. If "
                "you do: RetrievalClassifier.adopt_store(store, encoder); else fill the store again"
            )
        version = manifest.get("format_version") if isinstance(manifest, Mapping) else None
        if isinstance(version, bool) or version not in (FORMAT_VERSION, TRANSFORMED_VERSION):
            raise StoreCorruptedError(
                f"the store's manifest has format version {version!r}; this "
                f"version of the library (clipretrieval {__version__}) reads versions {FORMAT_VERSION} and "
                f"{TRANSFORMED_VERSION}. "
                "Was the store filled by something else, or by a newer version?"
            )
        if not isinstance(manifest.get("encoder"), Mapping) or manifest.get("label_kind") not in KINDS:
            raise StoreCorruptedError(
                "the store's manifest lacks the encoder's fingerprint or the labels' type; fill the store "
                "again"
            )
        found = differences(manifest["encoder"], self.fingerprint)
        found += differences(
            {"metric": manifest.get("metric"), "normalize": manifest.get("normalize", False)},
            {"metric": str(self.metric), "normalize": self.normalize},
        )
        if found:
            raise FingerprintMismatchError(
                "the store was filled by a different encoder or metric, so its vectors cannot be compared "
                f"with yours: {'; '.join(found)}. Use what it was filled with, or an empty store."
            )
        check_entry(read_entry(manifest), self.transform)


def format_version(transform: Mapping[str, Any] | None) -> dict[str, int]:
    """Return what a manifest says of its own format, which a transform decides."""
    return {"format_version": FORMAT_VERSION if transform is None else TRANSFORMED_VERSION}


def check_owner(manifest: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse a store that another kind of classifier has filled, or that is being emptied for a new fit.

    Parameters
    ----------
    manifest : mapping
        What the store holds.
    own : mapping
        From `Origin.manifest`, of the one who is about to change the store.

    Raises
    ------
    FingerprintMismatchError
        If encoder, metric, the vectors' length or the labels' type differ.
    StoreLockedError
        If what the store holds is being overwritten, or that was interrupted.
    StoreCorruptedError
        If there is no manifest, or one of an unknown format.
    """
    Origin(own["encoder"], Metric(own["metric"]), own["normalize"], own.get(TRANSFORM)).check(manifest)
    if manifest.get(CLEARING):
        raise StoreLockedError(
            "what the store holds is being overwritten by another writer, or that was interrupted: wait for "
            "it, or finish it by fit(…, resume=True) with the new images"
        )
    held, given = manifest["label_kind"], own["label_kind"]
    if "str" in (held, given) and held != given:
        raise FingerprintMismatchError(
            f"the store was filled anew, with labels of the type {held} where this classifier has {given}; "
            "attach to it with RetrievalClassifier.from_store"
        )


def manifest_classes(manifest: Mapping[str, Any]) -> list[Label]:
    """Return the classes that a manifest lists, as stored.

    Raises
    ------
    StoreCorruptedError
        If they are no list, or not of the manifest's own type.
    """
    classes = manifest.get("classes", [])
    kind: Any = str if manifest.get("label_kind", "str") == "str" else int
    if not isinstance(classes, list) or not set(map(type, classes)) <= {kind}:
        raise StoreCorruptedError("the store's manifest lists no usable classes; fill the store again")
    return classes


def check_vectors_only(manifest: Mapping[str, Any]) -> None:
    """Ask for the encoder of a store that holds more than plain vectors.

    Raises
    ------
    InvalidInputError
    """
    filler = manifest.get("encoder")
    if isinstance(filler, Mapping) and filler.get("encoder") is not None:
        what = ", ".join(f"{key}={filler[key]!r}" for key in ("encoder", "stage") if key in filler)
        raise InvalidInputError(
            f"an encoder filled this store ({what}); pass the same one: RetrievalClassifier.from_store("
            "store, encoder)"
        )


def vector_fingerprint(dim: int) -> dict[str, Any]:
    """Stand in for an encoder's fingerprint when the classifier takes vectors as they are."""
    return {"encoder": None, "dim": dim}


def plain_fingerprint(fingerprint: Any) -> dict[str, Any]:
    """Return a fingerprint as it will come back from a store: as plain JSON values.

    Raises
    ------
    InvalidInputError
        If it is no mapping, or holds anything that JSON does not.
    """
    try:
        plain = json.loads(json.dumps(dict(fingerprint), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"an encoder's fingerprint must be a mapping of JSON values (str, int, float, bool, None, list, "
            f"dict); found {fingerprint!r:.100}: {error}"
        ) from error
    kept: dict[str, Any] = plain
    return kept
