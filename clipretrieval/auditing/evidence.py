"""What all parts of an audit read: each image's neighbors, and what would be answered to it without it."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import zipfile
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from clipretrieval._util.files import read_file, reason, replacing
from clipretrieval._util.progress import Progress
from clipretrieval._version import __version__
from clipretrieval.auditing.subject import Ints, Subject
from clipretrieval.errors import InvalidInputError
from clipretrieval.heads.base import Head, StoredSample
from clipretrieval.heads.fitted_head import FittedHead
from clipretrieval.heads.index_statistics import IndexStatistics
from clipretrieval.heads.priors import Priors
from clipretrieval.types import FloatArray, Neighbors

__all__ = ["BLOCKS_FOLDER", "Evidence", "gather_evidence"]

BLOCKS_FOLDER = "neighbors"
"""Where finished blocks lie inside an audit's folder."""
ANSWERS = 16
"""Classes whose scores are kept of each image, the most probable ones."""
_KEY = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of each record, in the subject's order.

    Attributes
    ----------
    near : ndarray of int32, shape (n, k)
        The nearest other records, by number; -1 where there are no more.
    distances : ndarray of float32, shape (n, k)
        Ascending; +inf where there are no more.
    answers : ndarray of int32, shape (n, m)
        The most probable classes, the first one first, by a head that has learned from all other records.
    scores : ndarray of float32, shape (n, m)
        Their log scores, less the greatest.
    own : ndarray of float32, shape (n,)
        That of the record's own class; −inf where no other record is of it.
    """

    near: Ints
    distances: FloatArray
    answers: Ints
    scores: FloatArray
    own: FloatArray


def gather_evidence(
    subject: Subject, k: int, head: Head, name: str, folder: Path | None, progress: Progress
) -> Evidence:
    """Look up every record, and ask the head about it as it would be without it.

    One search of all records, block by block; a block is at hand again for a later run with the same
    `folder`, as long as neither the records nor the question have changed.

    Parameters
    ----------
    subject : Subject
    k : int
        Neighbors of each record.
    head : Head
        Whatever it learns has ``held_out_scores``.
    name : str
        The head's.
    folder : Path or None
        Where blocks are kept.
    progress : callable

    Raises
    ------
    StoreLockedError
        If somebody changes the store meanwhile.
    InvalidInputError
        If a block cannot be written.
    """
    question = _Question(subject, min(k, len(subject) - 1), head, name)
    blocks = _Blocks(folder, question.key) if folder is not None else None
    done, parts = 0, list[Evidence]()
    for place, rows in enumerate(subject.blocks()):
        count = rows.stop - rows.start
        part = blocks.read(place, count, question.k) if blocks is not None else None
        if part is None:
            part = question.ask(rows)
            if blocks is not None:
                blocks.write(place, part)
        parts.append(part)
        done += count
        progress(done, len(subject))
    return Evidence(*(np.concatenate([getattr(each, one) for each in parts]) for one in _NAMES))


_NAMES = tuple(each.name for each in fields(Evidence))


@dataclass(frozen=True, eq=False)
class _Question:
    """What is asked about each block."""

    subject: Subject
    k: int
    head: Head
    name: str

    @property
    def key(self) -> str:
        """What decides the answers, as a digest."""
        asked = [__version__, self.subject.fingerprint, self.k, repr(self.head), ANSWERS]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]

    @cached_property
    def _fitted(self) -> FittedHead:
        statistics = IndexStatistics()
        return statistics.fit_each(self.subject.index, [(self.head, self.name)], Priors("equal"), 1)[0]

    @cached_property
    def _columns(self) -> Ints:
        """The head's column of each class."""
        columns = {label: column for column, label in enumerate(self._fitted.classes)}
        return np.array([columns[label] for label in self.subject.classes], dtype=np.int32)

    def ask(self, rows: slice) -> Evidence:
        subject = self.subject
        numbers = np.arange(rows.start, rows.stop)
        records = subject.records(rows)
        found = subject.index.look_up(records.vectors, self.k + 1)
        near = subject.rows(found.ids)
        # Where it is not found itself, among many equal ones, the last is left out.
        order = np.argsort(near == numbers[:, None], axis=1, kind="stable")[:, : self.k]
        others = Neighbors(
            *(np.take_along_axis(part, order, axis=1) for part in (found.ids, found.distances, found.labels))
        )
        learned: Any = self._fitted.learned
        codes = subject.codes[rows].astype(np.int64)
        sample = StoredSample(records.ids, records.vectors, codes, others.first(max(int(self.head.k), 1)))
        scores = np.asarray(learned.held_out_scores(sample), dtype=np.float64)[:, self._columns]
        greatest = scores.max(axis=1, keepdims=True)
        # The only record of the only class has nothing that speaks for any.
        scores -= np.where(np.isfinite(greatest), greatest, 0.0)
        most = min(ANSWERS, scores.shape[1])
        top = np.argsort(-scores, axis=1, kind="stable")[:, :most]
        with np.errstate(over="ignore"):
            return Evidence(
                np.take_along_axis(near, order, axis=1),
                others.distances,
                top.astype(np.int32),
                np.take_along_axis(scores, top, axis=1).astype(np.float32),
                scores[np.arange(len(codes)), codes].astype(np.float32),
            )


class _Blocks:
    """Finished blocks, a file each, in a folder named by what decides them."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder = folder / BLOCKS_FOLDER / key
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(
                f"the audit's folder {str(folder)!r} cannot be written to: {reason(error)}; pass another one"
            ) from error
        for other in self._folder.parent.iterdir():  # of another question, or other contents
            ours = _KEY.fullmatch(other.name) and other != self._folder
            if ours and other.is_dir() and not other.is_symlink():
                shutil.rmtree(other, ignore_errors=True)

    def _file(self, place: int) -> Path:
        return self._folder / f"{place:06d}.npz"

    def read(self, place: int, count: int, k: int) -> Evidence | None:
        """Return a block; None where it is not there, or not as it was written."""
        try:
            with np.load(io.BytesIO(read_file(self._file(place))), allow_pickle=False) as arrays:
                found = Evidence(*(arrays[name] for name in _NAMES))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        rows = {len(getattr(found, name)) for name in _NAMES}
        return found if rows == {count} and found.near.shape == (count, k) else None

    def write(self, place: int, part: Evidence) -> None:
        try:
            with replacing(self._file(place)) as temporary, temporary.open("wb") as file:
                np.savez(file, **{name: getattr(part, name) for name in _NAMES})
        except OSError as error:
            raise InvalidInputError(
                f"a block of the audit cannot be written to {str(self._folder)!r}: {reason(error)}; make "
                "room, or pass another folder: what is done already is kept"
            ) from error
