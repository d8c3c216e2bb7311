"""Images whose vectors can be neither stored nor searched: refused by name, or skipped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from clipretrieval.encoding.base import EncodedBatch, select_images
from clipretrieval.errors import InvalidInputError
from clipretrieval.images.decoding import image_name
from clipretrieval.images.stream import SkippedImage
from clipretrieval.stores.exact import row_norms
from clipretrieval.types import FloatArray, Metric

__all__ = ["check_rows", "direction_needed", "usable_batches"]

_ADVICE = "Leave it out, or pass on_error='skip' to skip it"


def direction_needed(metric: Metric) -> str:
    """Return what needs vectors with a direction, in an error's words; empty where they may be all zeros."""
    return "metric='cosine'" if metric is Metric.COSINE else ""


def usable_batches(
    batches: Iterable[EncodedBatch],
    directed: Mapping[str, str],
    *,
    encoder: str,
    on_error: str,
    skipped: list[SkippedImage] | None,
) -> Iterator[EncodedBatch]:
    """Refuse or skip the images of which a vector is not finite, or has no direction where one is needed.

    Parameters
    ----------
    batches : iterable of EncodedBatch
    directed : mapping of str to str
        What needs vectors with a direction, in an error's words, by the vectors' names.
    encoder : str
        What made the vectors, in an error's words; empty where they were given.
    on_error : {"raise", "skip"}
    skipped : list of SkippedImage, optional
        Receives those that are skipped, in the order of the source.

    Yields
    ------
    EncodedBatch
        Also of what came before an image that is refused.

    Raises
    ------
    InvalidInputError
        If a vector is unusable and `on_error` is ``"raise"``; the message names the image.
    """
    begun = 0 if skipped is None else len(skipped)
    for batch in batches:
        faults = _faults(batch, directed, encoder)
        if not faults:
            yield batch
            continue
        if on_error == "raise":
            first = min(faults)
            before = _before(batch, first)
            if len(before) or before.known:
                yield before
            raise InvalidInputError(f"{faults[first]}. {_ADVICE}")
        if skipped is not None:
            skipped += [
                SkippedImage(batch.indices[row], batch.sources[row], reason) for row, reason in faults.items()
            ]
            skipped[begun:] = sorted(skipped[begun:], key=lambda item: item.index)
        rest = select_images(batch, [row for row in range(len(batch)) if row not in faults])
        if len(rest) or rest.known:
            yield rest


def check_rows(vectors: FloatArray, directed: str) -> None:
    """Refuse vectors of which one has no direction though it needs one.

    Raises
    ------
    InvalidInputError
        With the row, counted from 0.
    """
    if directed and len(vectors) and not (norms := row_norms(vectors)).all():
        raise InvalidInputError(f"{_no_direction(f'row {int(np.argmin(norms))}', directed)}. {_ADVICE}")


def _before(batch: EncodedBatch, row: int) -> EncodedBatch:
    known = [item for item in batch.known if item.index < batch.indices[row]]
    return replace(select_images(batch, range(row)), known=known)


def _faults(batch: EncodedBatch, directed: Mapping[str, str], encoder: str) -> dict[int, str]:
    """Return what is wrong with each image that is unusable, by its row."""
    faults: dict[int, str] = {}
    for name, vectors in batch.vectors.items() if len(batch) else ():
        norms = row_norms(vectors)
        for row in np.flatnonzero(~np.isfinite(norms)).tolist():
            faults.setdefault(
                row, f"{encoder} returned NaN or infinite values for {_which(batch, row, encoder)}"
            )
        if name in directed:
            for row in np.flatnonzero(norms == 0).tolist():
                faults.setdefault(row, _no_direction(_which(batch, row, encoder), directed[name]))
    return dict(sorted(faults.items()))


def _no_direction(what: str, need: str) -> str:
    return f"{what} cannot be used: its vector is all zeros, which has no direction, as {need} needs"


def _which(batch: EncodedBatch, row: int, encoder: str) -> str:
    if not encoder:
        return f"row {batch.indices[row]}"
    return image_name(batch.sources[row], batch.indices[row])
