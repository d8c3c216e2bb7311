"""A segment of a store's folder: some rows in one file that never changes, verified as far as it is read.

::

    vectors     float32, shape (rows, dim)
    norms       float64: of the vectors as they were given
    labels      int64; or int32, places in `names`
    names       JSON: the different labels, where they are texts
    id_ends     int64: where in `ids` each record's id ends
    ids         UTF-8
    text_ends   int64: where in `texts` each record's metadata ends
    texts       JSON in UTF-8; nothing where no record has metadata
    hashes      uint64, ascending: of the ids
    order       uint32: the row of each hash
    footer      the SHA-256 of each block of each part, in this order

Each part begins at a multiple of 64 bytes. A folder's manifest has the SHA-256 of the footer, so that a block
can be verified by itself when something in it is first asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import shown
from clipretrieval._util.files import replacing
from clipretrieval._util.text import parse_json
from clipretrieval.errors import InvalidInputError, StoreCorruptedError
from clipretrieval.stores.checks import NO_METADATA
from clipretrieval.stores.exact import DoubleArray, IndexArray, row_norms
from clipretrieval.stores.local.folder_manifest import MANIFEST_NAME, SegmentEntry, damaged
from clipretrieval.stores.local.mapped_file import MappedFile, not_yet_in_force
from clipretrieval.types import AnyArray, FloatArray, Metric, as_label_array

__all__ = ["Columns", "Segment", "id_hashes", "lengths_agree", "open_segment", "write_segment"]

BLOCK, ALIGNMENT, DIGEST = 1 << 16, 64, 32
# The length of a vector as it lies in the rows may differ so much, relatively, from the one kept beside it:
# normalised vectors are rounded to float32.
LENGTH_TOLERANCE = 1e-5
# A label or an id is looked at by Python alone; so many at a time.
PIECE_ROWS = 1 << 13

HashArray = npt.NDArray[np.uint64]


class Columns(NamedTuple):
    """What is kept beside some vectors.

    Attributes
    ----------
    ids : list of str, length n
    labels : ndarray of int64 or of object (str), shape (n,)
    norms : ndarray of float64, shape (n,)
    texts : list of str, length n
        Metadata as JSON.
    """

    ids: list[str]
    labels: AnyArray
    norms: DoubleArray
    texts: list[str]

    def part(self, start: int, stop: int) -> Columns:
        """Return those of some neighboring records."""
        some = slice(start, stop)
        return Columns(self.ids[some], self.labels[some], self.norms[some], self.texts[some])

    @classmethod
    def joined(cls, pieces: Sequence[Columns]) -> Columns:
        """Return those of all pieces, of which there is one at least."""
        ids, labels, norms, texts = zip(*pieces, strict=True)
        return cls(list(chain(*ids)), np.concatenate(labels), np.concatenate(norms), list(chain(*texts)))


class _Part(NamedTuple):
    """Where a part lies in the file: its first byte, its size, the size of its blocks, its first block."""

    start: int
    size: int
    block: int
    first: int

    @property
    def blocks(self) -> int:
        return -(-self.size // self.block)


def id_hashes(ids: Sequence[str]) -> HashArray:
    """Return a hash of each id, the same in every process, shape (n,)."""
    digests = [hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in ids]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


class Segment:
    """The rows of one file.

    Parameters
    ----------
    file : MappedFile
    entry : SegmentEntry
    dim : int
    metric : Metric
    parts : dict of str to _Part
        Where they lie in the file.

    Raises
    ------
    StoreCorruptedError
        From every method, if what it reads is not as it was written.
    """

    def __init__(
        self, file: MappedFile, entry: SegmentEntry, dim: int, metric: Metric, parts: dict[str, _Part]
    ) -> None:
        self.path, self.size = file.path, file.size
        self.entry, self.rows, self.dim = entry, entry.rows, dim
        self._file, self._metric = file, metric
        self._parts = parts
        self._blocks = sum(part.blocks for part in self._parts.values())
        self._verified = np.zeros(self._blocks, dtype=bool)

    def __len__(self) -> int:
        return self.rows

    @property
    def damage(self) -> StoreCorruptedError | None:
        """The error for a file that is missing, or no such file."""
        return self._file.damage

    def trust(self) -> None:
        """Take for verified what this process has just written."""
        self._verified[:] = True

    @property
    def has_texts(self) -> bool:
        """Whether the labels are str."""
        return self.entry.names is not None

    def vectors(self, rows: IndexArray) -> FloatArray:
        """Return a copy of some rows, shape (n, dim)."""
        steps = np.diff(rows, prepend=-2)
        if (steps <= 0).any():
            distinct, places = np.unique(rows, return_inverse=True)
            if len(distinct) < len(rows):  # queries share candidates, and no row is read twice
                read: FloatArray = self.vectors(distinct)[places]
                return read
        width, part = 4 * self.dim, self._parts["vectors"]
        self._verify("vectors", part, np.unique(rows // (part.block // width)))
        out: FloatArray = np.empty((len(rows), self.dim), dtype="<f4")
        target = out.reshape(-1).view(np.uint8).data
        # Each run of neighbors is read at once, and nothing around it: through the map, all pages around it
        # would be taken into this process.
        begins = np.flatnonzero(steps != 1)
        ends = np.append(begins[1:], len(rows))
        for begin, end, row in zip(begins.tolist(), ends.tolist(), rows[begins].tolist(), strict=True):
            self._file.read_into(row * width, target[begin * width : end * width])
        return out

    def part(self, start: int, stop: int) -> FloatArray:
        """Return neighboring rows as they lie in the file, shape (stop - start, dim)."""
        self._require_range("vectors", start * 4 * self.dim, stop * 4 * self.dim)
        return self._vectors[start:stop]

    def norms(self, rows: IndexArray) -> DoubleArray:
        """Return the norms of some rows."""
        found: DoubleArray = self._values("norms", "<f8", rows)
        return found

    def labels(self, rows: IndexArray) -> AnyArray:
        """Return the labels of some rows, int64 or object (str)."""
        if not self.has_texts:
            whole: AnyArray = self._values("labels", "<i8", rows)
            return whole
        labels: AnyArray = self._names[self._checked(self._values("labels", "<i4", rows))]
        return labels

    def label_counts(self, chosen: npt.NDArray[np.bool_]) -> dict[Any, int]:
        """Return how many of the chosen rows have each label; `chosen` has the shape (rows,)."""
        self._require_range("labels", 0, self._parts["labels"].size)
        if not self.has_texts:
            values, counts = np.unique(self._view("labels", "<i8")[chosen], return_counts=True)
            return dict(zip(values.tolist(), counts.tolist(), strict=True))
        codes = self._checked(self._view("labels", "<i4")[chosen])
        counts = np.bincount(codes, minlength=len(self._names))
        return {name: count for name, count in zip(self._names, counts.tolist(), strict=True) if count}

    def _checked(self, codes: IndexArray) -> IndexArray:
        """Return labels by their places in the names, which they must have."""
        if codes.size and not (codes.min() >= 0 and codes.max() < len(self._names)):
            raise self._damaged("a label is none of its names")
        return codes

    def rows_with(self, label: object) -> IndexArray:
        """Return the rows with a label, which is of the type that the labels have."""
        self._require_range("labels", 0, self._parts["labels"].size)
        if not self.has_texts:
            return np.flatnonzero(self._view("labels", "<i8") == label)
        return np.flatnonzero(np.isin(self._view("labels", "<i4"), np.flatnonzero(self._names == label)))

    def ids(self, rows: IndexArray) -> list[str]:
        """Return the ids of some rows."""
        return self._texts("id_ends", "ids", rows)

    def texts(self, rows: IndexArray) -> list[str]:
        """Return the metadata of some rows as JSON."""
        if not self.entry.texts:
            return [NO_METADATA] * len(rows)
        return self._texts("text_ends", "texts", rows)

    def columns(self, rows: IndexArray) -> Columns:
        """Return all that is kept beside some vectors."""
        return Columns(self.ids(rows), self.labels(rows), self.norms(rows), self.texts(rows))

    def find_at_once(self, names: Sequence[str], hashes: HashArray) -> IndexArray:
        """Return the row of each id, as far as it is there and easily found, -1 otherwise.

        Nothing is verified: that an id lies in the row to which its hash leads is proof enough.
        """
        found, held = np.full(len(names), -1, dtype=np.int64), self._view("hashes", "<u8")
        places = np.searchsorted(held, hashes)
        there = np.flatnonzero(held[np.minimum(places, self.rows - 1)] == hashes)
        rows = self._view("order", "<u4")[places[there]].astype(np.int64)
        there, rows = there[rows < self.rows], rows[rows < self.rows]
        ends, part = self._view("id_ends", "<i8"), self._parts["ids"]
        stops = ends[rows].tolist()
        starts = np.where(rows > 0, ends[rows - 1], 0).tolist()
        content = self._file.content.data[part.start : part.start + part.size]
        for at, row, start, stop in zip(there.tolist(), rows.tolist(), starts, stops, strict=True):
            name = names[at].encode("utf-8", "surrogatepass")
            if stop - start == len(name) and content[start:stop] == name:
                found[at] = row
        return found

    def find(self, names: Sequence[str], hashes: HashArray) -> IndexArray:
        """Return the row of each id, -1 where it is not here; `hashes` are those of `names`."""
        found, held = np.full(len(names), -1, dtype=np.int64), self._view("hashes", "<u8")
        places = np.searchsorted(held, hashes)
        # What damage may have led to is no place between a lesser hash and one that is not.
        low, high = np.maximum(places - 1, 0), np.minimum(places, self.rows - 1)
        self._require("hashes", low * 8, high * 8 + 8)
        if not (
            ((places == 0) | (held[low] < hashes)) & ((places == self.rows) | (held[high] >= hashes))
        ).all():
            self._require_range("hashes", 0, 8 * self.rows)
            raise self._damaged("its hashes do not ascend")
        open_ = np.flatnonzero(places < self.rows)
        open_ = open_[held[places[open_]] == hashes[open_]]
        while len(open_):  # once, but for ids of one hash
            rows = self._values("order", "<u4", places[open_]).astype(np.int64)
            if rows.max() >= self.rows:
                raise self._damaged("an id is that of no row")
            same = np.array(
                [names[at] == name for at, name in zip(open_.tolist(), self.ids(rows), strict=True)]
            )
            found[open_[same]] = rows[same]
            open_ = open_[~same]
            places[open_] += 1
            open_ = open_[places[open_] < self.rows]
            self._require("hashes", places[open_] * 8, places[open_] * 8 + 8)
            open_ = open_[held[places[open_]] == hashes[open_]]
        return found

    def verify(self) -> Iterator[HashArray]:
        """Read and check everything, verified or not; yield the ids' hashes piece by piece, by their rows."""
        self._verified[:] = False
        end = 0
        for name, part in self._parts.items():
            self._require_range(name, 0, part.size)
            if self._file.content[end : part.start].any():
                raise self._damaged(f"there is something between its parts, before its {name}")
            end = part.start + part.size
        if self._file.content[end : _footer_start(self._parts)].any():
            raise self._damaged("there is something behind its parts")
        for start in range(0, self.rows, PIECE_ROWS):
            rows = np.arange(start, min(start + PIECE_ROWS, self.rows))
            columns = self.columns(rows)
            hashes = id_hashes(columns.ids)
            if not np.array_equal(self.find(columns.ids, hashes), rows):
                raise self._damaged("an id is not found by its hash, or is there more than once")
            for text in set(columns.texts):
                self.metadata_of(text)
            yield hashes

    def metadata(self, rows: IndexArray) -> list[dict[str, Any]]:
        """Return fresh copies of the metadata of some rows."""
        return [self.metadata_of(text) for text in self.texts(rows)]

    def metadata_of(self, text: str) -> dict[str, Any]:
        """Return the metadata that a text stands for."""
        try:
            found = parse_json(text)
        except ValueError as error:
            raise self._damaged(f"metadata is not JSON ({error})") from error
        if not isinstance(found, dict):
            raise self._damaged(f"metadata must be an object; it holds {shown(text)}")
        return found

    def _damaged(self, why: str) -> StoreCorruptedError:
        return damaged(self.path, why)

    @cached_property
    def _vectors(self) -> FloatArray:
        vectors: FloatArray = self._view("vectors", "<f4").reshape(self.rows, self.dim)
        return vectors

    @cached_property
    def _footer(self) -> AnyArray:
        footer = self._file.read(_footer_start(self._parts), self._file.size)
        if hashlib.sha256(footer.data).hexdigest() != self.entry.sha256:
            raise self._damaged("its list of checksums does not match its checksum")
        return footer

    @cached_property
    def _names(self) -> AnyArray:
        part = self._parts["names"]
        self._require_range("names", 0, part.size)
        try:
            found = parse_json(bytes(self._file.content[part.start : part.start + part.size]))
            if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
                raise InvalidInputError("they are no list of texts")
            return as_label_array(found)
        except (InvalidInputError, ValueError) as error:
            raise self._damaged(f"its labels are malformed ({error})") from error

    def _view(self, name: str, dtype: str) -> Any:
        part = self._parts[name]
        return self._file.content[part.start : part.start + part.size].view(dtype)

    def _values(self, name: str, dtype: str, rows: IndexArray) -> Any:
        width = np.dtype(dtype).itemsize
        self._require(name, rows * width, (rows + 1) * width)
        return self._view(name, dtype)[rows]

    def _texts(self, ends: str, name: str, rows: IndexArray) -> list[str]:
        if not len(rows):
            return []
        stops, part = self._values(ends, "<i8", rows), self._parts[name]
        starts = np.where(rows > 0, self._values(ends, "<i8", np.maximum(rows - 1, 0)), 0)
        if not (np.all(starts >= 0) and np.all(starts <= stops) and np.all(stops <= part.size)):
            raise self._damaged("its texts overlap")
        self._require(name, starts, stops)
        content = self._file.content.data[part.start : part.start + part.size]
        try:
            found = [
                str(content[start:stop], "utf-8")
                for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
            ]
        except UnicodeDecodeError as error:
            raise self._damaged(f"a text is not UTF-8 ({error})") from error
        if name == "ids" and not all(found):
            raise self._damaged("an id is empty")
        return found

    def _require(self, name: str, starts: IndexArray, stops: IndexArray) -> None:
        """Verify the blocks of a part that hold these ranges of bytes."""
        part = self._parts[name]
        if self._verified[part.first : part.first + part.blocks].all():
            return
        full = starts < stops
        first, last = starts[full] // part.block, (stops[full] - 1) // part.block
        if not len(first):
            return
        if np.any(last - first > 1):
            blocks = np.concatenate([np.arange(low, high + 1) for low, high in zip(first, last, strict=True)])
        else:
            blocks = np.concatenate([first, last])
        self._verify(name, part, np.unique(blocks))

    def _require_range(self, name: str, start: int, stop: int) -> None:
        part = self._parts[name]
        self._verify(name, part, np.arange(start // part.block, -(-stop // part.block)))

    def _verify(self, name: str, part: _Part, blocks: IndexArray) -> None:
        for block in blocks[~self._verified[part.first + blocks]].tolist():
            start, place = part.start + block * part.block, DIGEST * (part.first + block)
            content = self._file.read(start, min(start + part.block, part.start + part.size))
            if hashlib.sha256(content.data).digest() != self._footer[place : place + DIGEST].tobytes():
                raise self._damaged(
                    f"its {name} do not match their checksum ({len(content)} bytes at {start})"
                )
            if name == "vectors":
                vectors = content.view("<f4").reshape(-1, self.dim)
                self._check_lengths(block * part.block // (4 * self.dim), vectors)
            self._verified[part.first + block] = True

    def _check_lengths(self, start: int, vectors: FloatArray) -> None:
        norms = self.norms(np.arange(start, start + len(vectors)))
        wrong = lengths_agree(vectors, norms, self._metric, self.entry.longest, start)
        if wrong is not None:
            raise self._damaged(wrong)


def lengths_agree(
    vectors: FloatArray, kept: DoubleArray, metric: Metric, longest: float = np.inf, start: int = 0
) -> str | None:
    """Compare vectors, which must be finite, with the norms kept beside them: searches rely on both.

    Returns
    -------
    str or None
        What is wrong; rows are counted from `start`.
    """
    with np.errstate(invalid="ignore"):  # a signalling NaN, too
        norms = row_norms(vectors)
        agree = np.abs(norms - kept) <= LENGTH_TOLERANCE * kept
        if metric is Metric.COSINE:  # some stores keep normalised vectors
            agree |= np.abs(norms - 1) <= LENGTH_TOLERANCE
            agree &= kept > 0
        agree &= np.isfinite(norms) & np.isfinite(kept) & (kept <= longest)
    if agree.all():
        return None
    row = int(np.argmin(agree))
    return f"the vector in row {start + row} has the length {norms[row]:g}, not {kept[row]:g}"


_opened: WeakValueDictionary[Any, Segment] = WeakValueDictionary()
"""The segments that are held, by their file and entry: what is verified once is not verified again."""


def open_segment(folder: Path, entry: SegmentEntry, dim: int, metric: Metric) -> Segment:
    """Map a segment's file, without reading anything of it; one that is missing is told of when it is read.

    Raises
    ------
    OSError
        If it cannot be opened.
    """
    path = folder / entry.name
    parts = _parts(entry, dim)
    blocks = sum(part.blocks for part in parts.values())
    file = MappedFile(path, _footer_start(parts) + DIGEST * blocks)
    if file.damage is not None:
        return Segment(file, entry, dim, metric, parts)
    key = (path, entry, dim, metric, file.identity)
    found = _opened.get(key)
    if found is None:
        found = _opened[key] = Segment(file, entry, dim, metric, parts)
    return found


def write_segment(path: Path, vectors: Iterable[FloatArray], dim: int, columns: Columns) -> SegmentEntry:
    """Write rows durably into a new file.

    Parameters
    ----------
    path : Path
    vectors : iterable of ndarray of float32, shape (m, dim)
        As many rows, all together, as there are `columns`.
    dim : int
    columns : Columns
        Of at least one record.

    Raises
    ------
    OSError
        If it cannot be written; nothing is left of it.
    """
    count, longest = len(columns.ids), float(columns.norms.max())
    names, labels = None, columns.labels.astype("<i8") if columns.labels.dtype != object else None
    if labels is None:
        codes: dict[str, int] = {}
        held = [codes.setdefault(each, len(codes)) for each in columns.labels.tolist()]
        labels = np.array(held, dtype="<i4")
        names = json.dumps(list(codes), separators=(",", ":")).encode()
    id_ends, ids = _packed(columns.ids)
    has_metadata = any(text != NO_METADATA for text in columns.texts)
    text_ends, texts = _packed(columns.texts) if has_metadata else (np.empty(0, dtype="<i8"), b"")
    hashes = id_hashes(columns.ids)
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order].astype("<u8")
    entry = SegmentEntry(
        path.name, count, longest, None if names is None else len(names), len(ids), len(texts), ""
    )
    parts = _parts(entry, dim)
    contents: dict[str, Iterable[Any]] = {
        "vectors": (np.ascontiguousarray(piece, dtype="<f4") for piece in vectors),
        "norms": [columns.norms.astype("<f8")],
        "labels": [labels],
        "names": [names or b""],
        "id_ends": [id_ends],
        "ids": [ids],
        "text_ends": [text_ends],
        "texts": [texts],
        "hashes": [hashes],
        "order": [order.astype("<u4")],
    }
    digests: list[bytes] = []
    mode_of = path.with_name(MANIFEST_NAME)  # a private store stays private
    with (
        not_yet_in_force(),
        replacing(path, follow=False, mode_of=mode_of) as temporary,
        open(temporary, "wb") as file,
    ):
        for name, part in parts.items():
            file.write(bytes(part.start - file.tell()))
            size = _write_part(file.write, contents[name], part.block, digests)
            if size != part.size:
                raise ValueError(f"{size} bytes of {name} were given, not {part.size}")
        file.write(bytes(_footer_start(parts) - file.tell()))
        footer = b"".join(digests)
        file.write(footer)
    return entry._replace(sha256=hashlib.sha256(footer).hexdigest())


def _write_part(
    write: Callable[[Any], object], pieces: Iterable[Any], block: int, digests: list[bytes]
) -> int:
    """Write a part, append the checksums of its blocks, and return its size."""
    size, begun = 0, hashlib.sha256()
    for piece in pieces:
        content = memoryview(piece).cast("B") if len(piece) else memoryview(b"")
        write(content)
        place = 0
        while place < len(content):
            step = min(block - size % block, len(content) - place)
            begun.update(content[place : place + step])
            place, size = place + step, size + step
            if size % block == 0:
                digests.append(begun.digest())
                begun = hashlib.sha256()
    if size % block:
        digests.append(begun.digest())
    return size


def _packed(texts: list[str]) -> tuple[AnyArray, bytes]:
    """Return where each text ends, and all of them in UTF-8."""
    encoded = [text.encode() for text in texts]
    return np.cumsum([len(text) for text in encoded], dtype="<i8"), b"".join(encoded)


def _parts(entry: SegmentEntry, dim: int) -> dict[str, _Part]:
    """Work out where the parts of a segment lie."""
    rows = entry.rows
    sizes = {
        "vectors": 4 * rows * dim,
        "norms": 8 * rows,
        "labels": (8 if entry.names is None else 4) * rows,
        "names": entry.names or 0,
        "id_ends": 8 * rows,
        "ids": entry.ids,
        "text_ends": 8 * rows if entry.texts else 0,
        "texts": entry.texts,
        "hashes": 8 * rows,
        "order": 4 * rows,
    }
    parts: dict[str, _Part] = {}
    start = first = 0
    for name, size in sizes.items():
        # A block of vectors is one of whole rows.
        block = 4 * dim * max(1, BLOCK // (4 * dim)) if name == "vectors" else BLOCK
        parts[name] = part = _Part(start, size, block, first)
        start, first = _aligned(start + size), first + part.blocks
    return parts


def _footer_start(parts: dict[str, _Part]) -> int:
    last = parts["order"]
    return _aligned(last.start + last.size)


def _aligned(place: int) -> int:
    return -(-place // ALIGNMENT) * ALIGNMENT
