"""A linear map of vectors, and the way back."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from clipretrieval.errors import StoreCorruptedError
from clipretrieval.types import AnyArray, FloatArray

__all__ = ["LinearTransform"]

Floats = npt.NDArray[np.float64]

NOTHING = 1e-12
"""A vector that differs from the mean by less than this part of the mean's size is equal to it."""


@dataclass(frozen=True, eq=False)
class LinearTransform:
    """Vectors less a mean, times a matrix, scaled to length one.

    In float64, so that a vector's image is, to the last digits of float32, the same whatever it is mapped
    together with.

    Attributes
    ----------
    mean : ndarray of float64, shape (dim,)
    matrix : ndarray of float64, shape (dim, kept_dim)
        Of full column rank.
    """

    mean: Floats
    matrix: Floats

    @property
    def dim(self) -> int:
        """Of the vectors that are mapped."""
        return len(self.mean)

    @property
    def kept_dim(self) -> int:
        """Of what they are mapped to."""
        return int(self.matrix.shape[1])

    @property
    def is_cut(self) -> bool:
        """Whether there is no way back to the whole vectors."""
        return self.kept_dim < self.dim

    @cached_property
    def digest(self) -> str:
        """SHA-256 of shape and values, as 64 hexadecimal digits."""
        found = hashlib.sha256(f"{self.dim},{self.kept_dim};".encode())
        for array in (self.mean, self.matrix):
            found.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
        return found.hexdigest()

    def apply(self, vectors: AnyArray) -> tuple[FloatArray, Floats]:
        """Map vectors.

        Parameters
        ----------
        vectors : ndarray of float32 or float64, shape (n, dim)

        Returns
        -------
        mapped : ndarray of float32, shape (n, kept_dim)
            Of length one. A vector that is equal to the mean has no direction; it gets the first axis.
        norms : ndarray of float64, shape (n,)
            Lengths before the scaling; 0 for such a vector.
        """
        deviations = vectors.astype(np.float64) - self.mean
        nothing = np.abs(deviations).max(axis=1, initial=0) <= NOTHING * np.abs(self.mean).max(initial=0)
        deviations[nothing] = 0.0
        mapped: Floats = deviations @ self.matrix
        norms: Floats = np.linalg.norm(mapped, axis=1)
        mapped[norms == 0, 0] = 1.0
        mapped /= np.where(norms == 0, 1.0, norms)[:, None]
        return mapped.astype(np.float32), norms

    def coordinates(self, mapped: FloatArray, norms: Floats) -> Floats:
        """Return what was mapped as it was before the scaling, shape (n, kept_dim)."""
        found: Floats = mapped.astype(np.float64) * norms[:, None]
        return found

    def recover(self, mapped: FloatArray, norms: Floats) -> Floats:
        """Return the vectors of which `apply` made these, to float32 precision.

        Parameters
        ----------
        mapped : ndarray of float32, shape (n, kept_dim)
        norms : ndarray of float64, shape (n,)

        Returns
        -------
        ndarray of float64, shape (n, dim)
            Where dimensions were cut, the nearest to the mean of all that are mapped to these.
        """
        found: Floats = self.coordinates(mapped, norms) @ self._inverse + self.mean
        return found

    def then(self, other: LinearTransform) -> LinearTransform:
        """Return the map of vectors that `other` is of the coordinates here."""
        return LinearTransform(self.mean + other.mean @ self._inverse, self.matrix @ other.matrix)

    def to_bytes(self) -> bytes:
        """Return all of it as bytes, which `from_bytes` takes."""
        file = io.BytesIO()
        np.savez(file, mean=self.mean, matrix=self.matrix)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, digest: str) -> LinearTransform:
        """Read what `to_bytes` returned.

        Raises
        ------
        StoreCorruptedError
            If it is anything else, or has another digest.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                found = cls(arrays["mean"], arrays["matrix"])
            if any(array.dtype != np.float64 for array in (found.mean, found.matrix)):
                raise ValueError("it is not of float64")
            if found.mean.ndim != 1 or found.matrix.shape[:-1] != found.mean.shape:
                raise ValueError(f"its shapes are {found.mean.shape} and {found.matrix.shape}")
            if found.digest != digest:
                raise ValueError("it is another one than the manifest says")
        except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise StoreCorruptedError(f"the transform that the store keeps is damaged: {error}") from error
        return found

    @cached_property
    def _inverse(self) -> Floats:
        return np.asarray(np.linalg.pinv(self.matrix), dtype=np.float64)
