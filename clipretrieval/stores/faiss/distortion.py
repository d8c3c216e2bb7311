"""How well an index represents vectors: its codes and lists were trained before some of them came."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss as _faiss
import numpy as np
import numpy.typing as npt

from clipretrieval.stores.faiss.transforms import chain
from clipretrieval.types import FloatArray

__all__ = ["Limits", "Quantizer", "pieces"]

# Much of what FAISS offers is missing in its type information.
faiss: Any = _faiss
DoubleArray = npt.NDArray[np.float64]
CodeArray = npt.NDArray[np.uint8]

# Vectors are encoded so many at a time: the codes of inverted lists may be as long as the vectors.
PIECE_ROWS = 1 << 13
# A vector is left out where more is lost of it than so many times what is lost of all but a hundredth of the
# vectors that the index was built with; measured on so many of these.
TOLERANCE, SHARE, SAMPLE = 1.5, 0.99, 1024
# Where others may be among them, most are still such vectors, of which seldom more is lost than this.
MEDIAN_TOLERANCE = 3.0
SEED = 0
# The kinds of index to which codes may be added as they are, and come out as if the vectors had been.
_TAKES_CODES = {
    faiss.IndexFlat,
    faiss.IndexIVFFlat,
    faiss.IndexScalarQuantizer,
    faiss.IndexIVFScalarQuantizer,
    faiss.IndexPQ,
    faiss.IndexIVFPQ,
    faiss.IndexResidualQuantizer,
    faiss.IndexLocalSearchQuantizer,
}


@dataclass(frozen=True)
class Limits:
    """The greatest distortion of vectors that are in an index, as `Quantizer.encode` measures it.

    Infinity lets in what cannot be measured; 0 keeps it out.
    """

    code: float
    list: float

    def fits(self, lost: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Tell which vectors are within them, given their distortion of shape (n, 2)."""
        within: npt.NDArray[np.bool_] = np.all(lost <= (self.code, self.list), axis=1)
        return within

    def closed(self) -> Limits:
        """Return limits that keep out what cannot be measured."""
        code, centroid = (limit if np.isfinite(limit) else 0.0 for limit in (self.code, self.list))
        return Limits(code, centroid)


class Quantizer:
    """What a trained index makes of vectors: the transforms before it, its lists, and its codes.

    Parameters
    ----------
    index : faiss.Index
    inner : faiss.Index
        What stands behind the transforms of `index`.
    """

    def __init__(self, index: Any, inner: Any) -> None:
        self._index, self._inner = faiss.downcast_index(index), inner
        transformed = isinstance(self._index, faiss.IndexPreTransform)
        self._steps = chain(self._index) if transformed else []
        self._lists = isinstance(inner, faiss.IndexIVF)
        self._storage = faiss.downcast_index(inner.storage) if isinstance(inner, faiss.IndexHNSW) else inner
        # FAISS follows this pointer, which is null in an index that it has read.
        if hasattr(inner, "fine_quantizer"):
            own = next((name for name in ("pq", "rq", "lsq", "prq", "plsq") if hasattr(inner, name)), None)
            if own is not None:
                inner.fine_quantizer = getattr(inner, own)

    @property
    def is_lossless(self) -> bool:
        """Whether the codes are the vectors themselves."""
        whole = isinstance(self._storage, (faiss.IndexFlat, faiss.IndexIVFFlat))
        return whole and not self._steps

    @property
    def takes_codes(self) -> bool:
        """Whether `add` may be given the codes of `encode`."""
        return type(self._inner) in _TAKES_CODES

    def encode(self, vectors: FloatArray) -> tuple[CodeArray, DoubleArray]:
        """Encode vectors, and measure what is lost.

        Parameters
        ----------
        vectors : ndarray of float32, shape (n, dim)

        Returns
        -------
        codes : ndarray of uint8, shape (n, code_size)
            Of code_size 0 where they tell nothing of what is lost.
        distortion : ndarray of float64, shape (n, 2)
            How far each vector lies from what its code stands for, and from the centroid of its list; 0 where
            nothing is lost or there are no lists, infinity where codes cannot be decoded.
        """
        lost = np.zeros((len(vectors), 2))
        nothing = np.empty((len(vectors), 0), dtype=np.uint8)
        if self.is_lossless and not self._lists:
            return nothing, lost
        if isinstance(self._storage, faiss.IndexLSH):  # the bits tell directions only
            lost[:, 0] = np.inf
            return nothing, lost
        turned = vectors
        for step in self._steps:
            turned = step.apply(turned)
        codes: CodeArray = self._storage.sa_encode(turned)
        with np.errstate(over="ignore", invalid="ignore"):
            if self._lists:
                lost[:, 1] = _lengths(turned - self._centroids(codes))
            if not self.is_lossless:
                lost[:, 0] = self._lost(vectors, codes)
        lost[np.isnan(lost)] = np.inf
        return codes, lost

    def limits(self, rows: FloatArray, mixed: bool = False) -> Limits:
        """Return limits by what is lost of rows.

        Parameters
        ----------
        rows : ndarray of float32, shape (n, dim)
            Those that the index is built with.
        mixed : bool
            Whether some of them may have come later.
        """
        picks = np.random.default_rng(SEED).choice(len(rows), min(SAMPLE, len(rows)), replace=False)
        _, lost = self.encode(rows[np.sort(picks)])
        share, tolerance = (0.5, MEDIAN_TOLERANCE) if mixed else (SHARE, TOLERANCE)
        most = tolerance * np.quantile(lost, share, axis=0, method="lower")
        return Limits(float(most[0]), float(most[1]))

    def add(self, codes: CodeArray, places: npt.NDArray[np.int64]) -> None:
        """Add codes of `encode`, under `places` where there are lists."""
        self._inner.add_sa_codes(codes, places if self._lists else None)
        self._index.ntotal = self._inner.ntotal

    def _lost(self, vectors: FloatArray, codes: CodeArray) -> DoubleArray | float:
        try:
            decoded = self._storage.sa_decode(codes)
            for step in reversed(self._steps):
                decoded = step.reverse_transform(decoded)
                if isinstance(step, faiss.PCAMatrix):  # which does not put back what it drops of the mean
                    mean = faiss.vector_to_array(step.mean)[None]
                    decoded += mean - step.reverse_transform(step.apply(mean))
        except RuntimeError:  # FAISS cannot decode such codes, or not undo such a transform
            return np.inf
        return _lengths(vectors - decoded)

    def _centroids(self, codes: CodeArray) -> FloatArray:
        """Return the centroid of each code's list, whose number its first bytes are."""
        width = self._inner.coarse_code_size()
        numbers = codes[:, :width].astype(np.int64) @ (256 ** np.arange(width, dtype=np.int64))
        centroids: FloatArray = self._inner.quantizer.reconstruct_batch(numbers)
        return centroids


def _lengths(rows: FloatArray) -> DoubleArray:
    """Return the lengths of rows, in float32: those of an index are short enough."""
    lengths: DoubleArray = np.sqrt(np.einsum("ij,ij->i", rows, rows)).astype(np.float64)
    return lengths


def pieces(count: int) -> list[slice]:
    """Return slices that go through `count` vectors."""
    return [slice(start, start + PIECE_ROWS) for start in range(0, count, PIECE_ROWS)]
