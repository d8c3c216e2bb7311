"""The manifest that a classifier keeps in its store: who filled it, and with what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from clipretrieval._version import __version__
from clipretrieval.encoding.fingerprint import differences
from clipretrieval.errors import FingerprintMismatchError, StoreCorruptedError
from clipretrieval.types import Label, Metric

__all__ = ["check_manifest", "make_manifest", "vector_fingerprint"]

FORMAT_VERSION = 1


def make_manifest(
    fingerprint: Mapping[str, Any], metric: Metric, label_kind: str, classes: Iterable[Label]
) -> dict[str, Any]:
    """Put together what a later fit, predict or load is compared with.

    Parameters
    ----------
    fingerprint : mapping
        The encoder's.
    metric : Metric
    label_kind : {"bool", "int", "float", "str"}
    classes : iterable of int or of str
        As stored.

    Returns
    -------
    dict of JSON values
    """
    return {
        "format_version": FORMAT_VERSION,
        "library_version": __version__,
        "encoder": dict(fingerprint),
        "metric": str(metric),
        "label_kind": label_kind,
        "classes": sorted(set(classes)),
    }


def check_manifest(manifest: Mapping[str, Any], fingerprint: Mapping[str, Any], metric: Metric) -> None:
    """Refuse a store that a different encoder or metric filled.

    Raises
    ------
    FingerprintMismatchError
        The message names everything that differs.
    StoreCorruptedError
        If there is no manifest, or one of an unknown format.
    """
    if manifest.get("format_version") != FORMAT_VERSION or "encoder" not in manifest:
        raise StoreCorruptedError(
            f"the store's manifest has format version {manifest.get('format_version')!r}; this "
            f"version of the library (clipretrieval {__version__}) reads version {FORMAT_VERSION}. "
            "Was the store filled by something else, or by a newer version?"
        )
    stored = {**manifest["encoder"], "metric": manifest["metric"]}
    found = differences(stored, {**fingerprint, "metric": str(metric)})
    if found:
        raise FingerprintMismatchError(
            "the store was filled by a different encoder or metric, so its vectors cannot be compared with "
            f"yours: {'; '.join(found)}. Use the encoder and metric it was filled with, or an empty store."
        )


def vector_fingerprint(dim: int) -> dict[str, Any]:
    """Stand in for an encoder's fingerprint when the classifier takes vectors as they are."""
    return {"encoder": None, "dim": dim}
