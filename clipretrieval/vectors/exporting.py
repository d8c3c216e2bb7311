"""All that an index holds, as one Parquet file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipretrieval._util.labels import fitted_labels
from clipretrieval._util.progress import Progress, open_progress
from clipretrieval.errors import UnsupportedOperationError
from clipretrieval.retrieval.labelled_index import LabelledIndex
from clipretrieval.retrieval.manifest import plain_fingerprint, vector_fingerprint
from clipretrieval.retrieval.same_vectors import raw_vectors
from clipretrieval.retrieval.transform import LinearTransform
from clipretrieval.retrieval.transform_plan import NORM, TRANSFORM
from clipretrieval.stores.base import ScannableStore, VectorStore
from clipretrieval.types import Records
from clipretrieval.vectors.part_manifest import PartManifest
from clipretrieval.vectors.part_writer import write_part
from clipretrieval.vectors.vector_block import ROWS
from clipretrieval.vectors.vector_files import check_local_path

__all__ = ["all_records", "export_index", "foreign_metadata", "refuse_cut"]


def export_index(index: LabelledIndex, path: str | Path, progress: Progress | bool | None) -> int:
    """Write an index into a file; see `RetrievalClassifier.export`."""
    target, store = check_local_path(path, "path"), index.store
    _, count = index.look()
    encoder, kind = index.encoder, index.classes.kind
    refuse_cut(index.transform, "the whole vectors are not there any more and cannot be exported")
    manifest = PartManifest(
        vector_fingerprint(index.dim) if encoder is None else plain_fingerprint(encoder.fingerprint),
        index.dim,
        index.normalize,
    )
    done = 0
    with open_progress(progress, "exporting") as tell, write_part(target, manifest, kind) as writer:
        for records in all_records(store):
            writer.write(
                records.ids.tolist(),
                raw_vectors(records, index.transform),
                fitted_labels(records.labels.tolist(), kind),
                [foreign_metadata(each) for each in records.metadata],
            )
            done += len(records)
            tell(done, count)
        index.check_manifest()  # it may have been filled anew, or rewritten, meanwhile
    return done


def all_records(store: VectorStore) -> Iterator[Records]:
    """Go through all records of a store, some at a time, in its own order.

    Raises
    ------
    UnsupportedOperationError
        If the store cannot list what it holds.
    """
    if not isinstance(store, ScannableStore):
        raise UnsupportedOperationError(
            f"{type(store).__name__} cannot list what it holds (it has no scan method), so it can be neither "
            "exported nor merged"
        )
    for listing in store.scan():
        for start in range(0, len(listing), ROWS):
            records = store.get(listing.ids[start : start + ROWS].tolist())
            if len(records):  # others may have removed some
                yield records


def refuse_cut(transform: LinearTransform | None, why: str) -> None:
    """Refuse a map that has cut dimensions.

    Raises
    ------
    UnsupportedOperationError
    """
    if transform is not None and transform.is_cut:
        raise UnsupportedOperationError(
            f"the store keeps {transform.kept_dim} of {transform.dim} dimensions, so {why}; fit with "
            "transform=None, or one that keeps all dimensions"
        )


def foreign_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return a record's metadata but for what the library keeps there of a map."""
    return {key: value for key, value in metadata.items() if key not in (NORM, TRANSFORM)}
