"""What is known of very many ids, in files without a name: some 30 bytes each, and hardly any memory."""

from __future__ import annotations

import hashlib
import struct
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

__all__ = ["IdRuns"]

LARGEST = 2**20
"""Ids of a run that is merged with others; …"""
RUNS = 32
"""… more where there would be many more runs than so many."""
HEX_DIGITS = 32
"""Of a key of 128 bits."""
LENGTH = struct.Struct("<I")

Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class _SortedIds:
    """Ids in the order of their keys, none twice.

    Attributes
    ----------
    keys : ndarray of uint64, shape (2, n)
        The two halves of each one's digest.
    numbers, places : ndarray of int64, shape (n,)
    """

    keys: Keys
    numbers: Ints
    places: Ints

    def __len__(self) -> int:
        return len(self.numbers)

    def find(self, keys: Keys) -> Ints:
        """Return where each key lies, -1 where it is not there."""
        first, second = self.keys
        found = np.searchsorted(first, keys[0])
        result = np.full(keys.shape[1], -1, dtype=np.int64)
        open_ = np.arange(keys.shape[1])
        while True:  # once, unless two keys have one first half
            open_ = open_[found[open_] < len(self)]
            open_ = open_[first[found[open_]] == keys[0, open_]]
            if not len(open_):
                return result
            same = second[found[open_]] == keys[1, open_]
            result[open_[same]] = found[open_[same]]
            open_ = open_[~same]
            found[open_] += 1


class IdRuns:
    """A number and a text for each id, where the last that was given counts.

    Ids are known by a digest of 128 bits. They lie in sorted runs, which are merged when they are about as
    long as one another.
    """

    def __init__(self) -> None:
        self._runs: list[_SortedIds] = []
        self._texts: BinaryIO | None = None

    def __bool__(self) -> bool:
        return bool(self._runs)

    def put(self, entries: Mapping[str, tuple[int, str | None]]) -> None:
        """Take entries in.

        Raises
        ------
        OSError
            If there is no room for temporary files; what was there before still is, and no more.
        """
        keys = _keys(list(entries))
        numbers = np.array([number for number, _ in entries.values()], dtype=np.int64)
        places = self._write([text for _, text in entries.values()])
        run = _sorted(keys, numbers, places)
        limit = max(LARGEST, sum(map(len, self._runs)) // RUNS)
        left = list(self._runs)
        while left and len(left[-1]) <= min(2 * len(run), limit - len(run)):
            run = _merged(left.pop(), run)
        self._runs = [*left, _kept(run)]

    def get(self, ids: Sequence[str]) -> dict[str, tuple[int, str | None]]:
        """Return the entries of those ids that have one."""
        if not self._runs:
            return {}
        keys, found, open_ = _keys(ids), dict[str, tuple[int, str | None]](), np.arange(len(ids))
        for run in reversed(self._runs):
            places = run.find(keys[:, open_])
            for row, place in zip(open_[places >= 0].tolist(), places[places >= 0].tolist(), strict=True):
                found[ids[row]] = int(run.numbers[place]), self._read(int(run.places[place]))
            open_ = open_[places < 0]
        return found

    def _write(self, texts: Sequence[str | None]) -> Ints:
        """Append texts, and return where each one lies; -1 for none."""
        contents = [None if text is None else text.encode("utf-8", "surrogatepass") for text in texts]
        sizes = np.array(
            [0 if each is None else LENGTH.size + len(each) for each in contents], dtype=np.int64
        )
        if not sizes.any():
            return np.full(len(texts), -1, dtype=np.int64)
        if self._texts is None:
            self._texts = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115  closed with this
            weakref.finalize(self, self._texts.close)
        start = self._texts.seek(0, 2)
        self._texts.write(b"".join(LENGTH.pack(len(each)) + each for each in contents if each is not None))
        self._texts.flush()
        places: Ints = np.where(sizes > 0, start + np.cumsum(sizes) - sizes, -1)
        return places

    def _read(self, place: int) -> str | None:
        if place < 0 or self._texts is None:
            return None
        self._texts.seek(place)
        (length,) = LENGTH.unpack(self._texts.read(LENGTH.size))
        return self._texts.read(length).decode("utf-8", "surrogatepass")


def _keys(ids: Sequence[str]) -> Keys:
    """Return 128 bits of each id, shape (2, n): those that it spells, as content ids do, or a digest."""
    joined = "".join(ids)
    content = _spelled(joined) if set(map(len, ids)) <= {HEX_DIGITS} else None
    if content is None:
        content = b"".join((len(each) == HEX_DIGITS and _spelled(each)) or _digest(each) for each in ids)
    return np.frombuffer(content, dtype=np.uint64).reshape(-1, 2).T


def _spelled(text: str) -> bytes | None:
    """Return what hexadecimal digits spell; None where there are others, or not as many as of keys."""
    if len(text) % HEX_DIGITS:
        return None
    try:
        content = bytes.fromhex(text)
    except ValueError:
        return None
    return content if content.hex() == text else None


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, person=b"id").digest()


def _sorted(keys: Keys, numbers: Ints, places: Ints) -> _SortedIds:
    """Return a run of entries, of equal keys the last."""
    order = np.lexsort((keys[1], keys[0]))
    last = np.ones(len(order), dtype=bool)
    last[:-1] = (keys[:, order[1:]] != keys[:, order[:-1]]).any(axis=0)
    order = order[last]
    return _SortedIds(keys[:, order], numbers[order], places[order])


def _merged(older: _SortedIds, newer: _SortedIds) -> _SortedIds:
    return _sorted(
        np.concatenate([older.keys, newer.keys], axis=1),
        np.concatenate([older.numbers, newer.numbers]),
        np.concatenate([older.places, newer.places]),
    )


def _kept(run: _SortedIds) -> _SortedIds:
    """Write a run into a file, and map that: on a full disk, a map that is written to ends the process."""
    columns: list[npt.NDArray[Any]] = [*run.keys, run.numbers, run.places]
    with tempfile.TemporaryFile() as file:
        for column in columns:
            file.write(column.tobytes())
        file.flush()
        mapped = np.memmap(file, dtype=np.int64, mode="r", shape=(len(columns), len(run)))
    return _SortedIds(mapped[:2].view(np.uint64), mapped[2], mapped[3])
