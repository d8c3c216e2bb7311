"""Put encoded batches together."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from clipretrieval.encoding.base import EncodedBatch
from clipretrieval.errors import InvalidInputError
from clipretrieval.types import FloatArray

__all__ = ["joined"]


def joined(
    batches: Iterable[EncodedBatch], stages: tuple[str, ...], count: int | None = None
) -> dict[str, FloatArray]:
    """Put batches together as they come, so that no vector is held twice.

    Parameters
    ----------
    batches : iterable of EncodedBatch
    stages : tuple of str
    count : int, optional
        How many pictures will come, if that is known; more or fewer are no error.

    Returns
    -------
    dict of str to ndarray of float32, shape (n, dim of the stage)

    Raises
    ------
    InvalidInputError
        If there are none.
    """
    whole: dict[str, FloatArray] = {}
    filled = 0
    for batch in batches:
        end = filled + len(batch.ids)
        for stage in stages:
            part = batch.vectors[stage]
            if stage not in whole:
                whole[stage] = np.empty((max(count or 0, end), part.shape[1]), dtype=np.float32)
            elif end > len(whole[stage]):
                # In place: the system moves pages of large arrays and does not copy them.
                whole[stage].resize((end + end // 4, part.shape[1]), refcheck=False)
            whole[stage][filled:end] = part
        filled = end
    if not filled:
        raise InvalidInputError("there are no images to encode; pass at least one")
    for rows in whole.values():
        rows.resize((filled, rows.shape[1]), refcheck=False)
    return whole
