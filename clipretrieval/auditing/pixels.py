"""What files show by themselves: whether they are tiny or blank, and whether two show one picture."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipretrieval.errors import ImageDecodeError
from clipretrieval.images.decoding import RawImage, decode
from clipretrieval.types import FloatArray

__all__ = ["FEATURES", "FileFacts", "Miniatures", "mirror_features", "read_facts", "same_picture"]

SIDE = 32
"""Of the miniatures that are compared, in pixels."""
FEATURES = 32
"""Numbers by which a miniature finds those that are like it or its mirror image."""
TINY = 16
"""Pixels of an image's shorter side, below which it is tiny."""
BLANK = 2.0
"""Standard deviation of an image's values from 0 to 255, below which it is blank."""
BLUR = 1.5
"""Of the miniature that is taken away, in pixels, so that its edges remain."""
CLIPPED = 3.0
"""Standard deviations beyond which an edge counts no more: a frame would decide alone."""
LIKE, SAME = 0.85, 0.75
"""Correlations of two miniatures, and of their edges, from which on they show the same."""
WORTHWHILE = 0.25
"""Correlation of edges as they lie, below which no crop makes them the same."""
CROPS = (0.0125, 0.025, 0.04)
"""Parts of a miniature that may be cut off at each side."""
HELD = 4096
"""Miniatures that are kept at hand."""
PAIRS = 2048
"""Pairs that are compared together."""

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class FileFacts:
    """What a file shows.

    Attributes
    ----------
    width, height : int
        In pixels, upright.
    spread : float
        The standard deviation of its grey values from 0 to 255.
    miniature : ndarray of uint8, shape (32, 32)
        Its grey values, whatever its proportions are.
    """

    width: int
    height: int
    spread: float
    miniature: Bytes

    @property
    def is_tiny(self) -> bool:
        """Whether the shorter side has fewer than 16 pixels."""
        return min(self.width, self.height) < TINY

    @property
    def is_blank(self) -> bool:
        """Whether it is one grey nearly everywhere."""
        return self.spread < BLANK


def facts_of(payload: Any) -> FileFacts | None:
    """Return what an image shows; None where it cannot be decoded."""
    try:
        image = decode(RawImage(0, payload)).image
    except ImageDecodeError:
        return None
    grey = image.convert("L")
    small = grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
    # A reduced copy has all that tells a blank image from others, save a few stray pixels.
    spread = float(np.asarray(grey.reduce(max(1, min(grey.size) // 256))).std())
    return FileFacts(image.width, image.height, spread, np.asarray(small))


def read_facts(payloads: Sequence[Any]) -> Iterator[FileFacts | None]:
    """Decode images side by side, a bounded number at a time, and yield what each one shows, in order."""
    threads = min(8, os.cpu_count() or 1)
    rest = iter(payloads)
    with ThreadPoolExecutor(threads) as pool:
        while part := list(islice(rest, 16 * threads)):
            yield from pool.map(facts_of, part)


def mirror_features(miniatures: Bytes) -> FloatArray:
    """Return 32 numbers of each miniature that are those of its mirror image too, scaled to length one.

    They are its grey values at 8 × 8 pixels, each added to the one across the middle.

    Parameters
    ----------
    miniatures : ndarray of uint8, shape (n, 32, 32)

    Returns
    -------
    ndarray of float32, shape (n, 32)
        Zeros for a miniature that is blank.
    """
    cells = miniatures.astype(np.float32).reshape(-1, 8, SIDE // 8, 8, SIDE // 8).mean(axis=(2, 4))
    even = (cells + cells[:, :, ::-1])[:, :, :4].reshape(-1, FEATURES)
    even -= even.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(even, axis=1, keepdims=True)
    found: FloatArray = np.where(lengths > 1.0, even / np.maximum(lengths, 1.0), 0.0).astype(np.float32)
    return found


def same_picture(left: Bytes, right: Bytes) -> npt.NDArray[np.float64]:
    """Tell how surely pairs of miniatures show one picture, in [0, 1]; 0 where they do not.

    Compared are the miniatures, as they lie and mirrored, whole and with up to 4 % cut off at each side of
    one of them: by their correlation, and by that of what is left when a blurred copy is taken away. Two
    blank ones are the same where their greys are.

    Parameters
    ----------
    left, right : ndarray of uint8, shape (n, 32, 32)

    Returns
    -------
    ndarray of float64, shape (n,)
        The correlation of the edges.
    """
    found = np.zeros(len(left))
    for start in range(0, len(left), PAIRS):
        part = slice(start, start + PAIRS)
        found[part] = _compare(left[part].astype(np.float32), right[part].astype(np.float32))
    return found


def _compare(left: FloatArray, right: FloatArray) -> npt.NDArray[np.float64]:
    blank = (left.std(axis=(1, 2)) < BLANK) & (right.std(axis=(1, 2)) < BLANK)
    level = np.abs(left.mean(axis=(1, 2)) - right.mean(axis=(1, 2)))
    found = np.where(blank & (level < BLANK), 1.0, 0.0)
    likes, edges = _correlations(left, right)
    best = np.where(likes >= LIKE, edges, 0.0)
    doubtful = np.flatnonzero((best < 0.95) & (edges >= WORTHWHILE) & ~blank)
    for cut in CROPS if len(doubtful) else ():
        zoom = _zoom(cut)
        for one, other in ((left, right), (right, left)):
            zoomed = (zoom @ one[doubtful] @ zoom.T).astype(np.float32)
            likes, edges = _correlations(zoomed, other[doubtful])
            best[doubtful] = np.maximum(best[doubtful], np.where(likes >= LIKE, edges, 0.0))
    return np.maximum(found, np.where((best >= SAME) & ~blank, best, 0.0))


def _correlations(left: FloatArray, right: FloatArray) -> tuple[Any, Any]:
    """Return the correlations of pairs and of their edges, of the way round that fits better."""
    edged, other_edges = _edges(left), _edges(right)
    plain, other = _scaled(left), _scaled(right)
    mirrored, mirrored_edges = other[:, :, ::-1], other_edges[:, :, ::-1]
    straight, turned = _products(edged, other_edges), _products(edged, mirrored_edges)
    likes = np.where(straight >= turned, _products(plain, other), _products(plain, mirrored))
    return likes, np.maximum(straight, turned)


def _products(left: FloatArray, right: FloatArray) -> Any:
    return np.einsum("nij,nij->n", left, right).astype(np.float64)


def _edges(grey: FloatArray) -> FloatArray:
    from scipy.ndimage import gaussian_filter

    edges = grey - gaussian_filter(grey, (0, BLUR, BLUR))
    bound = CLIPPED * edges.std(axis=(1, 2), keepdims=True)
    return _scaled(np.clip(edges, -bound, bound))


def _scaled(grey: FloatArray) -> FloatArray:
    centred = grey - grey.mean(axis=(1, 2), keepdims=True)
    lengths = np.sqrt(np.einsum("nij,nij->n", centred, centred))[:, None, None]
    found: FloatArray = centred / np.maximum(lengths, np.float32(1e-3))
    return found


def _zoom(cut: float) -> FloatArray:
    """Return the matrix that interpolates the middle of a row of 32 values to as many."""
    places = np.clip((np.arange(SIDE) + 0.5) * (1 - 2 * cut) + SIDE * cut - 0.5, 0, SIDE - 1)
    low = np.minimum(places.astype(int), SIDE - 2)
    matrix = np.zeros((SIDE, SIDE), dtype=np.float32)
    rows = np.arange(SIDE)
    matrix[rows, low] = 1 - (places - low)
    matrix[rows, low + 1] = places - low
    return matrix


@dataclass(eq=False)
class Miniatures:
    """Miniatures of images: all of them at hand, or of files, read when they are asked for.

    Attributes
    ----------
    at_hand : ndarray of uint8, shape (n, 32, 32), or None
        By number.
    missing : ndarray of bool, shape (n,), or None
        Which of these are none.
    """

    at_hand: Bytes | None = None
    missing: npt.NDArray[np.bool_] | None = None
    _held: OrderedDict[str, Bytes | None] = field(default_factory=OrderedDict)

    def of_pairs(
        self, left: Any, right: Any, sources: Mapping[int, str | None]
    ) -> tuple[Bytes, Bytes, npt.NDArray[np.int64]]:
        """Return the miniatures of pairs of images that both have one, and which pairs these are."""
        if self.at_hand is not None and self.missing is not None:
            seen = np.flatnonzero(~(self.missing[left] | self.missing[right]))
            return self.at_hand[left[seen]], self.at_hand[right[seen]], seen
        pairs = [
            (self._read(sources.get(one)), self._read(sources.get(other)))
            for one, other in zip(left.tolist(), right.tolist(), strict=True)
        ]
        found = [
            (place, *pair) for place, pair in enumerate(pairs) if pair[0] is not None and pair[1] is not None
        ]
        if not found:
            empty = np.empty((0, SIDE, SIDE), dtype=np.uint8)
            return empty, empty, np.empty(0, dtype=np.int64)
        places, one, other = zip(*found, strict=True)
        return np.stack(one), np.stack(other), np.array(places)

    def _read(self, source: str | None) -> Bytes | None:
        """Return the miniature of a file; None where there is no image."""
        if source is None:
            return None
        if source not in self._held:
            facts = facts_of(source)
            self._held[source] = None if facts is None else facts.miniature
            if len(self._held) > HELD:
                self._held.popitem(last=False)
        return self._held[source]
