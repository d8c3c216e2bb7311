"""The segments of a folder: their rows numbered through, and those of them that were removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from clipretrieval.errors import StoreCorruptedError
from clipretrieval.stores.base import LISTED
from clipretrieval.stores.exact import DoubleArray, IndexArray
from clipretrieval.stores.local.folder_manifest import FileEntry, damaged
from clipretrieval.stores.local.mapped_file import unused, write_file
from clipretrieval.stores.local.segment import Segment, id_hashes
from clipretrieval.types import AnyArray, FloatArray, Label, Listing

__all__ = ["Segments", "first_to_join", "to_rewrite"]

# The most of a segment: rows, bytes of vectors, and characters of ids and metadata.
MOST_ROWS, MOST_BYTES, MOST_CHARACTERS = 1 << 19, 1 << 29, 1 << 26
# So many segments at least are joined at once, none of them of more bytes.
TOGETHER, LARGEST_JOINED = 8, 1 << 26

BitArray = npt.NDArray[np.bool_]
Filled = TypeVar("Filled", bound=AnyArray)
NOTHING: IndexArray = np.empty(0, dtype=np.int64)


class Segments:
    """Rows in files, which never change; a row that is removed stays, and is marked.

    A row's number is its place in all segments, one after the other. Nothing is read before it is asked for.

    Parameters
    ----------
    parts : sequence of Segment
    removed : ndarray of bool, shape (total,), optional
        Which rows were removed; none if left out.
    listed : FileEntry, optional
        The file of the folder that says so; see `filed`.

    Attributes
    ----------
    parts : tuple of Segment
    total : int
        The number of rows, removed ones included.
    removed : ndarray of bool, shape (total,)
    """

    _label_counts: Counter[Label] | None = None  # from the first time on that one is asked for

    def __init__(
        self,
        parts: Sequence[Segment] = (),
        removed: BitArray | None = None,
        listed: FileEntry | None = None,
    ) -> None:
        self.parts, self.listed = tuple(parts), listed
        self._ends: IndexArray = np.cumsum([0, *map(len, self.parts)], dtype=np.int64)
        self.total = int(self._ends[-1])
        self.removed = np.zeros(self.total, dtype=bool) if removed is None else removed
        self._gone = int(np.count_nonzero(self.removed)) if removed is not None else 0

    def __len__(self) -> int:
        return self.total - self._gone

    @cached_property
    def numbers(self) -> IndexArray | None:
        """The rows that are left, ascending; None where none was removed."""
        return np.flatnonzero(~self.removed) if self._gone else None

    @property
    def longest(self) -> float:
        """A bound on the norms of the vectors."""
        return max((part.entry.longest for part in self.parts), default=0.0)

    @property
    def has_texts(self) -> bool:
        """Whether labels are str; they are of one type, but for segments of which nothing is left."""
        left = (part for start, part in self._placed() if not self.removed[start : start + len(part)].all())
        return next(left).has_texts

    def start(self, place: int) -> int:
        """Return the number of the first row of the segment at `place`; of the last, the total."""
        return int(self._ends[place])

    def without(self, rows: IndexArray) -> Segments:
        """Return these segments with some more rows removed."""
        if not len(rows):
            return self
        removed = self.removed.copy()
        removed[rows] = True
        new = Segments(self.parts, removed)
        if self._label_counts is not None:
            new._label_counts = self._label_counts.copy()
            new._label_counts.subtract(self.labels(np.unique(rows)).tolist())
        return new

    def with_part(self, part: Segment) -> Segments:
        """Return these segments and one more."""
        removed = np.concatenate([self.removed, np.zeros(len(part), dtype=bool)]) if self._gone else None
        new = Segments((*self.parts, part), removed, self.listed)
        if self._label_counts is not None:
            new._label_counts = self._label_counts.copy()
            new._label_counts.update(part.label_counts(np.ones(len(part), dtype=bool)))
        return new

    def require_whole(self) -> None:
        """Raise StoreCorruptedError if a file is missing, or no such file."""
        for part in self.parts:
            if (damage := part.damage) is not None:
                raise damage

    def filed(self, folder: Path, generation: int) -> Segments:
        """Return these segments with what was removed of them in a file: a bit for each row up to the last.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        if not self._gone or self.listed is not None:
            return self
        bits = np.packbits(self.removed, bitorder="little").tobytes()
        path = unused(folder, f"removed-{generation}", ".bin")
        new = Segments(self.parts, self.removed, write_file(path, lambda write: write(bits)))
        new._label_counts = self._label_counts
        return new

    def count(self, label: Label) -> int:
        """Return the number of records with one label; one of the other type is that of none."""
        if self._label_counts is None:
            counts = Counter[Label]()
            for start, part in self._placed():
                left = ~self.removed[start : start + len(part)]
                if left.any():  # otherwise it need not be readable
                    counts.update(part.label_counts(left))
            self._label_counts = counts
        return self._label_counts[label]

    def find(self, names: Sequence[str]) -> IndexArray:
        """Return the row of each id, -1 where it is not there or was removed.

        Raises
        ------
        StoreCorruptedError
            If one of them may be in a segment that cannot be read.
        """
        found = np.full(len(names), -1, dtype=np.int64)
        if not self.total or not len(names):
            return found
        hashes = id_hashes(names)
        for search in (Segment.find_at_once, Segment.find):
            sought = np.flatnonzero(found < 0)
            sought = sought[np.argsort(hashes[sought])]  # neighbors lie in the same pages
            for start, part in self._placed():
                if not len(sought):
                    return found
                try:
                    rows = search(part, [names[at] for at in sought.tolist()], hashes[sought])
                except StoreCorruptedError:
                    if search is Segment.find:
                        raise
                    continue
                here = rows >= 0
                here[here] = ~self.removed[start + rows[here]]
                found[sought[here]] = start + rows[here]
                sought = sought[~here]
        return found

    def vectors(self, rows: IndexArray) -> FloatArray:
        """Return a copy of some rows, in any order, shape (n, dim)."""
        dim = self.parts[0].dim if self.parts else 0
        return self._gathered(rows, Segment.vectors, np.empty((len(rows), dim), dtype=np.float32))

    def whole_blocks(self, start: int, most: int) -> Iterator[tuple[FloatArray, BitArray | None]]:
        """Go through rows as they lie in the files, from one that is left on, at most so many at a time.

        Yields
        ------
        vectors : ndarray of float32, shape (n, dim)
        left : ndarray of bool, shape (n,), or None
            Which of them were not removed; None where all are left.
        """
        if start >= len(self):
            return
        row = start if self.numbers is None else int(self.numbers[start])
        for begin, part in self._placed():
            for first in range(max(row - begin, 0), len(part), most):
                last = min(first + most, len(part))
                left = ~self.removed[begin + first : begin + last]
                if left.any():
                    yield part.part(first, last), None if left.all() else left

    def norms(self, rows: IndexArray) -> DoubleArray:
        """Return the norms of some rows."""
        return self._gathered(rows, Segment.norms, np.empty(len(rows)))

    def ids(self, rows: IndexArray) -> AnyArray:
        """Return the ids of some rows, of object (str)."""
        return self._gathered(rows, Segment.ids, np.empty(len(rows), dtype=object))

    def labels(self, rows: IndexArray) -> AnyArray:
        """Return the labels of some rows, of int64 or of object (str)."""
        dtype = object if self.has_texts else np.int64
        return self._gathered(rows, Segment.labels, np.empty(len(rows), dtype=dtype))

    def texts(self, rows: IndexArray) -> AnyArray:
        """Return the metadata of some rows as JSON, of object (str)."""
        return self._gathered(rows, Segment.texts, np.empty(len(rows), dtype=object))

    def metadata(self, rows: IndexArray) -> AnyArray:
        """Return fresh copies of the metadata of some rows, of object (dict)."""
        return self._gathered(rows, Segment.metadata, np.empty(len(rows), dtype=object))

    def _gathered(self, rows: IndexArray, read: Callable[[Segment, IndexArray], Any], out: Filled) -> Filled:
        """Return `out`, filled with what each segment reads of its own rows."""
        places = np.searchsorted(self._ends, rows, side="right") - 1
        for place in np.unique(places).tolist():
            chosen = np.flatnonzero(places == place)
            out[chosen] = read(self.parts[place], rows[chosen] - self._ends[place])
        return out

    def verify(self) -> None:
        """Read and check everything.

        Raises
        ------
        StoreCorruptedError
            If anything is not as it was written, or two records have one id.
        """
        numbers = np.arange(self.total) if self.numbers is None else self.numbers
        pieces = [piece for part in self.parts for piece in part.verify()]
        hashes = np.concatenate([np.empty(0, dtype=np.uint64), *pieces])[numbers]
        order = np.argsort(hashes)
        same = np.flatnonzero(np.diff(hashes[order]) == 0)
        rows = numbers[np.union1d(order[same], order[same + 1])]
        if len(rows) and len(np.unique(ids := self.ids(rows))) < len(ids):
            path = self.parts[int(np.searchsorted(self._ends, rows[-1], side="right")) - 1].path
            raise damaged(path, "it holds an id that another segment holds too")

    def listings(self, label: Label | None) -> Iterator[Listing]:
        """Go through ids and labels; what of them is damaged is told at the end, after all the others.

        Raises
        ------
        StoreCorruptedError
        """
        failed: StoreCorruptedError | None = None
        for start, part in self._placed():
            if self.removed[start : start + len(part)].all():
                continue
            try:
                rows = np.arange(len(part))
                if label is not None:
                    rows = part.rows_with(label) if part.has_texts == isinstance(label, str) else NOTHING
            except StoreCorruptedError as error:
                failed = error
                continue
            rows = rows[~self.removed[start + rows]]
            for first in range(0, len(rows), LISTED):
                some = rows[first : first + LISTED]
                try:
                    ids: AnyArray = np.empty(len(some), dtype=object)
                    ids[:] = part.ids(some)
                    listing = Listing(ids, part.labels(some))
                except StoreCorruptedError as error:
                    failed = error
                    continue
                yield listing
        if failed is not None:
            raise failed

    def _placed(self) -> Iterator[tuple[int, Segment]]:
        return zip(self._ends.tolist(), self.parts, strict=False)


def first_to_join(segments: Segments, covered: int) -> int | None:
    """Return the place of the first segment of those at the end that are to be one; None if they may stay.

    Segments are joined with all that came after them once these are as large together, so that a record is
    written again as often as what it lies in doubles, and segments are few: each is larger than all after it.

    Parameters
    ----------
    segments : Segments
    covered : int
        What begins before this row stays: an index is over it.
    """
    sizes = [part.size for part in segments.parts]
    first = len(sizes)
    while (
        first
        and segments.start(first - 1) >= covered
        and _is_small(segments.parts[first - 1], LARGEST_JOINED)
    ):
        first -= 1
    for start in range(first, len(sizes) - TOGETHER + 1):
        if sizes[start] <= sum(sizes[start + 1 :]):
            return start
    return None


def to_rewrite(segments: Segments, largest: int) -> list[tuple[int, int]]:
    """Return the runs of segments, from one to another, that are to be written anew.

    Those are the ones that removed records lie in, and neighbors that are both small; see `_is_small`.
    """
    small = [_is_small(part, largest) for part in segments.parts]
    runs: list[tuple[int, int]] = []
    for place, part in enumerate(segments.parts):
        start = segments.start(place)
        beside = small[max(0, place - 1) : place] + small[place + 1 : place + 2]
        if (small[place] and any(beside)) or segments.removed[start : start + len(part)].any():
            first = runs.pop()[0] if runs and runs[-1][1] == place else place
            runs.append((first, place + 1))
    return runs


def _is_small(part: Segment, largest: int) -> bool:
    """Tell whether a segment has at most so many bytes, and with another like it would make one, not two."""
    entry = part.entry  # which counts bytes, of which there are no fewer than characters
    return (
        part.size <= largest
        and 2 * len(part) <= MOST_ROWS
        and 8 * len(part) * part.dim <= MOST_BYTES
        and 2 * (entry.ids + entry.texts) <= MOST_CHARACTERS
    )
