"""What FAISS writes of the transforms before an index, compared with those of an empty one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss as _faiss
import numpy as np

from clipretrieval.stores.faiss.reader import IndexReader, MalformedIndexError, UnknownFormatError

__all__ = ["TRANSFORMS", "chain", "check_transform"]

# Much of what FAISS offers is missing in its type information.
faiss: Any = _faiss


def chain(index: Any) -> list[Any]:
    """List the transforms before an index, in the order in which they are applied."""
    return [faiss.downcast_VectorTransform(index.chain.at(place)) for place in range(index.chain.size())]


def check_transform(reader: IndexReader, template: Any, used: bool = True) -> None:
    """Read one transform and compare it with `template`; ``used`` tells whether it should be trained."""
    found = TRANSFORMS.get(type(template))
    if found is None:
        raise UnknownFormatError(f"it should hold a {type(template).__name__}")
    kind, check = found
    reader.kind(kind)
    check(reader, template, used)
    reader.expect("the dimension before a transform", "i", template.d_in)
    reader.expect("the dimension after a transform", "i", template.d_out)
    reader.expect("whether a transform is trained", "?", used)


def _check_linear(reader: IndexReader, template: Any, used: bool) -> None:
    shifted = reader.value("whether a transform shifts", "B")
    weights = reader.vector("the matrix of a transform", "<f4")
    shifts = reader.vector("the shift of a transform", "<f4")
    sizes = range(template.d_in * template.d_out, max(template.d_in, template.d_out) ** 2 + 1)
    if shifted > 1 or len(shifts) != shifted * template.d_out or len(weights) not in (sizes if used else {0}):
        raise MalformedIndexError("the matrix of a transform has another size")
    if not (np.all(np.isfinite(weights)) and np.all(np.isfinite(shifts))):
        raise MalformedIndexError("the matrix of a transform is not finite")


def _check_components(reader: IndexReader, template: Any, used: bool) -> None:
    reader.expect("the power of eigenvalues", "f", template.eigen_power)
    reader.expect("the smallest eigenvalue", "f", template.epsilon)
    reader.expect("whether components are rotated", "?", template.random_rotation)
    reader.expect("the balanced bins", "i", template.balanced_bins)
    reader.floats("the mean", template.d_in)
    reader.floats("the eigenvalues", template.d_in)
    reader.floats("the components", template.d_in**2)
    _check_linear(reader, template, used)


def _check_order(reader: IndexReader, template: Any, used: bool) -> None:
    if not np.array_equal(reader.vector("the order", "<i4"), faiss.vector_to_array(template.map)):
        raise MalformedIndexError("the dimensions are in another order")


def _check_normalization(reader: IndexReader, template: Any, used: bool) -> None:
    reader.expect("the norm", "f", template.norm)


TRANSFORMS: dict[type, tuple[bytes, Callable[[IndexReader, Any, bool], None]]] = {
    faiss.RandomRotationMatrix: (b"rrot", _check_linear),
    faiss.OPQMatrix: (b"LTra", _check_linear),
    faiss.PCAMatrix: (b"Pcam", _check_components),
    faiss.RemapDimensionsTransform: (b"RmDT", _check_order),
    faiss.NormalizationTransform: (b"VNrm", _check_normalization),
}
