"""What is audited: a filled store, with its records in one order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval import errors
from clipretrieval._util.labels import fitted_labels
from clipretrieval.errors import StoreLockedError
from clipretrieval.retrieval.changes import state_token
from clipretrieval.retrieval.labelled_index import EMPTY, LabelledIndex
from clipretrieval.stores.base import ScannableStore, view_manifest
from clipretrieval.types import AnyArray, Label, Records

__all__ = ["BLOCK", "Ints", "Subject"]

BLOCK = 1024
"""Records that are read and looked up together: as many as a classifier looks up at a time."""

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Subject:
    """A store's records, by number in the order of their ids.

    Attributes
    ----------
    index : LabelledIndex
    ids : ndarray of object (str), shape (n,)
        Ascending; of none where the store cannot list what it holds.
    codes : ndarray of int32, shape (n,)
        Each one's class, as a place in `classes`.
    classes : list of (int or str)
        As stored, sorted: those that have a record.
    """

    index: LabelledIndex
    ids: AnyArray
    codes: Ints
    classes: list[Label]

    @classmethod
    def of(cls, index: LabelledIndex) -> Subject:
        """List what a store holds, where it can.

        Raises
        ------
        NotFittedError
            If it holds nothing.
        """
        index.look()
        store = index.store
        if not isinstance(store, ScannableStore):
            return cls(index, np.empty(0, dtype=object), np.empty(0, dtype=np.int32), [])
        listings = list(store.scan())
        if not listings:
            raise errors.NotFittedError(EMPTY)
        ids = np.concatenate([each.ids for each in listings])
        labels = np.concatenate([each.labels for each in listings])
        order = np.argsort(ids, kind="stable")
        classes = sorted(set(labels.tolist()))
        places = {label: place for place, label in enumerate(classes)}
        codes = np.array([places[label] for label in labels[order].tolist()], dtype=np.int32)
        return cls(index, ids[order], codes, classes)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_listed(self) -> bool:
        """Whether the store could list what it holds."""
        return isinstance(self.index.store, ScannableStore)

    @property
    def kind(self) -> str:
        """The labels' type, as fitted."""
        return self.index.classes.kind

    @cached_property
    def labels(self) -> list[Any]:
        """The classes, of the type that was fitted."""
        return fitted_labels(self.classes, self.kind)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.ids.tolist())}

    def rows(self, ids: AnyArray) -> Ints:
        """Return each id's number, of the shape of `ids`; -1 for one that was not listed."""
        known = self._rows
        found = [known.get(name, -1) for name in ids.ravel().tolist()]
        return np.array(found, dtype=np.int32).reshape(ids.shape)

    def records(self, rows: Any) -> Records:
        """Return some records, in that order.

        Raises
        ------
        StoreLockedError
            If one is there no more, or has another label now.
        """
        records = self.index.store.get(self.ids[rows].tolist())
        wanted = [self.classes[code] for code in self.codes[rows].tolist()]
        if records.labels.tolist() != wanted:
            raise StoreLockedError(
                "the store was changed while it was audited; run the audit again when nothing writes to it"
            )
        return records

    def blocks(self) -> Iterator[slice]:
        """Cut the records into blocks."""
        for start in range(0, len(self), BLOCK):
            yield slice(start, min(start + BLOCK, len(self)))

    def sources(self, rows: list[int]) -> dict[int, str | None]:
        """Return the files of some records, where they are known."""
        found: dict[int, str | None] = {}
        wanted = sorted(set(rows))
        for start in range(0, len(wanted), BLOCK):
            part = wanted[start : start + BLOCK]
            for row, metadata in zip(part, self.records(np.array(part)).metadata, strict=True):
                source = metadata.get("source")
                found[row] = source if isinstance(source, str) else None
        return found

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Identifies this store in this state, as JSON values; see `AuditReport.fingerprint`."""
        manifest = view_manifest(self.index.store)
        entry = self.index.transform_entry
        return {
            "encoder": dict(manifest.get("encoder", {})),
            "metric": str(self.index.metric),
            "normalize": self.index.normalize,
            "transform": None if entry is None else entry.get("digest"),
            "dim": self.index.dim,
            "count": len(self) if self.is_listed else self.index.store.count(),
            "state": state_token(manifest),
            "contents": self.contents if self.is_listed else None,
        }

    @cached_property
    def contents(self) -> str:
        """A digest of all ids and labels, whatever the order: ``"sha256:"`` and 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for name, code in zip(self.ids.tolist(), self.codes.tolist(), strict=True):
            digest.update(json.dumps([name, self.classes[code]]).encode())
        return f"sha256:{digest.hexdigest()}"
