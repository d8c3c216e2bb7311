"""Bring a store's manifest up to date with a change of its records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from clipretrieval.retrieval.changes import STATISTICS, STATISTICS_BLOBS
from clipretrieval.retrieval.classes import Classes
from clipretrieval.retrieval.manifest import check_owner
from clipretrieval.stores.base import VectorStore, view_manifest
from clipretrieval.types import Label

__all__ = ["update_manifest"]


def update_manifest(
    store: VectorStore,
    own: Mapping[str, Any],
    *,
    known: Classes | None = None,
    add: Iterable[Label] = (),
    remove: Iterable[Label] = (),
    replaces: Mapping[str, Any] | None = None,
    state: Mapping[str, Any] | None = None,
) -> Classes:
    """Bring a store's manifest up to date with a change, starting from what it is at this moment.

    Nobody may write a manifest from memory alone: another process may have added classes since, or have
    filled the store by another encoder, whose vectors would then be taken for those of this one.

    Parameters
    ----------
    store : VectorStore
    own : mapping
        From `Origin.manifest`, of the one who changes the store.
    known : Classes, optional
        Those that the manifest most likely lists: nothing of these is done again.
    add, remove : iterable of int or of str
        Classes, as stored.
    replaces : mapping, optional
        The manifest of a store without records, which need not be of the same encoder, and goes. Where the
        store has another by now, that is kept to.
    state : mapping, optional
        What it says of the records' state from now on, see `changes.STATISTICS`; as before when left out.

    Returns
    -------
    Classes
        Those that the store lists now; `known`, where it is them.

    Raises
    ------
    FingerprintMismatchError
        If the store was meanwhile filled by another encoder; nothing is written.
    StoreLockedError
        If another process is overwriting what it holds.
    """
    found = view_manifest(store)
    kept: Mapping[str, Any] = {key: found[key] for key in (STATISTICS_BLOBS,) if key in found}
    if found != replaces:
        check_owner(found, own)
        kept = found
    if known is None or known.kind != own["label_kind"]:
        known = Classes((), own["label_kind"])
    add, remove, before = set(add), set(remove), known.listed_by(kept)
    after, names = before.changed(add, remove), kept.get("classes", [])  # a list that `listed_by` has checked
    if after is not before or len(names) > len(after):
        coming = list(add - remove)
        new = [label for label, place in zip(coming, before.places(coming), strict=True) if place < 0]
        names = sorted([*(label for label in dict.fromkeys(names) if label not in remove), *sorted(new)])
        after.agree(names)
    content = {**own, **kept, "classes": names}
    if state is not None:
        content[STATISTICS] = dict(state)
    if content != found:
        store.write_manifest(content)
    return after
