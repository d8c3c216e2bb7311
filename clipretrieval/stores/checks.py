"""The checks that every store makes of its arguments, before it changes anything."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import check_int, check_sequence, check_strings, shown
from clipretrieval._util.foreign import as_array, is_missing
from clipretrieval._util.rounding import warn_of_range, warn_of_rounding
from clipretrieval.errors import DimensionMismatchError, InvalidInputError
from clipretrieval.stores.exact import row_norms
from clipretrieval.types import AnyArray, FloatArray, Label, Metric, as_label_array

__all__ = [
    "BLOB_NAME",
    "LARGEST_BLOB",
    "NO_METADATA",
    "Batch",
    "check_batch",
    "check_blob",
    "check_blob_name",
    "check_dim",
    "check_directions",
    "check_k",
    "check_label",
    "check_label_kind",
    "check_lookup_ids",
    "check_queries",
    "check_vectors",
    "json_copy",
    "json_text",
    "storable_ids",
]

BLOB_NAME = "[a-z][a-z0-9-]{0,63}"
"""What a blob may be called."""
LARGEST_BLOB = 1 << 30
"""The most bytes of a blob."""
MOST_NEIGHBORS = 1_000_000
NO_METADATA = "{}"
_COMPACT = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, eq=False)
class Batch:
    """The checked arguments of one upsert.

    Attributes
    ----------
    ids : list of str, length n
    vectors : ndarray of float32, shape (n, dim), C-contiguous
    norms : ndarray of float64, shape (n,)
        Euclidean norms of `vectors`.
    labels : ndarray of int64 or of object (str), shape (n,)
    metadata : list of str, length n
        JSON text.
    """

    ids: list[str]
    vectors: FloatArray
    norms: npt.NDArray[np.float64]
    labels: AnyArray
    metadata: list[str]


def check_batch(
    ids: Sequence[str],
    vectors: FloatArray,
    labels: Sequence[Label],
    metadata: Sequence[Mapping[str, Any]] | None,
    metric: Metric,
) -> Batch:
    """Check all that can be checked of an upsert without looking at the store.

    Raises
    ------
    InvalidInputError
        If an argument is malformed or their lengths differ.
    """
    names = _check_ids(ids)
    rows, norms = check_vectors(vectors)
    check_directions(norms, metric)
    warn_of_range(rows, norms, metric, stored=True)
    packed = as_label_array(labels)
    if metadata is None:
        texts = [NO_METADATA] * len(names)
    else:
        given = check_sequence(metadata, "metadata", "mappings, one for each record")
        texts = [json_text(each, f"metadata[{place}]") for place, each in enumerate(given)]
    lengths = {"ids": len(names), "vectors": len(rows), "labels": len(packed), "metadata": len(texts)}
    if len(set(lengths.values())) > 1:
        if metadata is None:
            del lengths["metadata"]
        found = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise InvalidInputError(f"there must be one of each for every record; found {found}")
    return Batch(names, rows, norms, packed, texts)


def check_vectors(vectors: Any) -> tuple[FloatArray, npt.NDArray[np.float64]]:
    """Return vectors as float32 rows, with their norms.

    Parameters
    ----------
    vectors : array_like of real numbers, shape (n, dim)
        At least one row and one column; finite, also as float32.

    Returns
    -------
    rows : ndarray of float32, shape (n, dim), C-contiguous
    norms : ndarray of float64, shape (n,)

    Raises
    ------
    InvalidInputError
        If they are anything else.
    """
    given = as_array(vectors, "vectors")
    if given.dtype == object and not isinstance(vectors, np.ndarray | list | tuple):
        _check_numbers(given)  # what a table of several types becomes
    elif given.dtype.kind not in "fiu":
        raise InvalidInputError(f"vectors must be real numbers; found dtype {given.dtype}")
    if given.ndim != 2:
        raise InvalidInputError(
            f"vectors must be 2-D, shape (n, dim); found shape {given.shape}. "
            "Give a single vector as vector[None, :]"
        )
    if not given.shape[0] or not given.shape[1]:
        raise InvalidInputError(f"vectors must not be empty; found shape {given.shape}")
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            rows: FloatArray = np.ascontiguousarray(given, dtype=np.float32)
    except OverflowError as error:  # an int of hundreds of digits
        raise InvalidInputError("vectors must fit float32; one holds a value beyond ±3.4e38") from error
    # The squares of float32 values cannot overflow in float64, so a norm is finite just where its row is.
    norms = row_norms(rows)
    finite = np.isfinite(norms)
    if not finite.all():
        row = int(np.argmin(finite))
        if np.isfinite(given[row].astype(np.float64)).all():
            raise InvalidInputError(f"vectors must fit float32; row {row} holds a value beyond ±3.4e38")
        raise InvalidInputError(f"vectors must be finite; row {row} holds NaN or infinity")
    warn_of_rounding(given, rows)
    return rows, norms


def check_queries(vectors: Any, metric: Metric) -> tuple[FloatArray, npt.NDArray[np.float64]]:
    """Return vectors to look up as float32 rows, with their norms; see `check_vectors`.

    Raises
    ------
    InvalidInputError
        If they are anything else, or zero under the cosine metric.
    """
    rows, norms = check_vectors(vectors)
    check_directions(norms, metric)
    warn_of_range(rows, norms, metric, stored=False)
    return rows, norms


def check_directions(norms: npt.NDArray[np.float64], metric: Metric) -> None:
    """Refuse zero vectors under the cosine metric: they have no direction."""
    if metric is Metric.COSINE and not norms.all():
        row = int(np.argmin(norms))
        raise InvalidInputError(f"the cosine of a zero vector is undefined; row {row} is all zeros")


def check_dim(found: int, expected: int | None) -> None:
    """Compare the vectors' dimension with the store's, if that is settled."""
    if expected is not None and found != expected:
        raise DimensionMismatchError(
            f"the vectors have dimension {found}; the store holds dimension {expected}"
        )


def check_k(k: Any) -> int:
    """Return `k` as a plain int, from 1 to a million."""
    return check_int(k, "k", most=MOST_NEIGHBORS)


def check_lookup_ids(ids: Sequence[str]) -> list[str]:
    """Return the ids to look up as a list of plain str; repeats and unknown ones are allowed."""
    return check_strings(ids, "ids")


def storable_ids(names: list[str]) -> list[str]:
    """Return those of the ids that a record may have: not empty, and valid Unicode."""
    return [name for name in names if name and not SURROGATE.search(name)]


def check_label_kind(found: AnyArray, held: AnyArray) -> None:
    """Refuse labels of another type than those the store holds, where it holds any."""
    new, old = ("str" if labels.dtype == object else "int" for labels in (found, held))
    if len(held) and new != old:
        raise InvalidInputError(f"the store holds {old} labels; found {new} labels. Convert them first")


def check_label(label: Any) -> Label | None:
    """Return the label that a scan asks for as a plain int or str; None for all.

    Raises
    ------
    InvalidInputError
        If no record can have it.
    """
    if label is None:
        return None
    plain = label.item() if isinstance(label, np.generic) else label
    if type(plain) not in (int, str):
        raise InvalidInputError(f"label must be an int or a str, as it was stored, or None; found {label!r}")
    checked: Label = as_label_array([plain]).tolist()[0]
    return checked


def check_blob_name(name: Any) -> str:
    """Return the name of a blob, which it may also be in a file's or a collection's name.

    Raises
    ------
    InvalidInputError
        If no blob can have it.
    """
    if type(name) is not str or not re.fullmatch(BLOB_NAME, name):
        raise InvalidInputError(
            "a blob's name must be 1 to 64 of the characters a-z, 0-9 and '-', the first of them a letter; "
            f"found {shown(name)}"
        )
    return name


def check_blob(name: Any, content: Any) -> tuple[str, bytes | None]:
    """Return what a blob is to hold, and its name; see `check_blob_name`.

    Raises
    ------
    InvalidInputError
        If the name is none, or the content is neither bytes of at most `LARGEST_BLOB` nor None.
    """
    name = check_blob_name(name)
    if content is not None and type(content) is not bytes:
        raise InvalidInputError(
            f"the content of the blob {name!r} must be bytes, or None to remove it; found an object of the "
            f"type {type(content).__name__}"
        )
    if content is not None and len(content) > LARGEST_BLOB:
        raise InvalidInputError(
            f"the blob {name!r} has {len(content):,} bytes; {LARGEST_BLOB:,} are the most. Keep what is "
            "larger beside the store"
        )
    return name, content


def json_text(value: Any, name: str) -> str:
    """Return a mapping of JSON values as compact JSON text; errors are those of `json_copy`."""
    return json_copy(value, name)[0]


def json_copy(value: Any, name: str) -> tuple[str, dict[str, Any]]:
    """Return a mapping of JSON values as compact JSON text, and as it comes back from that.

    Raises
    ------
    InvalidInputError
        If it is not a mapping, or would not come back from JSON as it was given.
    """
    if not isinstance(value, Mapping):
        raise InvalidInputError(f"{name} must be a mapping; found {type(value).__name__}")
    plain = dict(value)
    if not plain:
        return NO_METADATA, {}
    try:
        text = _COMPACT.encode(plain)
        returned = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"{name} must hold only finite JSON values: {error}") from error
    try:
        same = bool(returned == plain)
    except ValueError:  # an array beside a list compares element by element
        same = False
    if not same:
        raise InvalidInputError(
            f"{name} must hold only JSON values with str keys (dict, list, str, int, float, bool, None); "
            f"{plain!r} would come back as {returned!r}"
        )
    return text, returned


def _check_numbers(given: AnyArray) -> None:
    """Refuse an array of Python objects that are not all real numbers; the message names the row."""
    for place, value in np.ndenumerate(given):
        if is_missing(value) or not isinstance(value, Real | Decimal | np.bool_):
            where = f"row {place[0]} holds" if place else "found"
            raise InvalidInputError(f"vectors must be real numbers; {where} {shown(value)}")


def _check_ids(ids: Sequence[str]) -> list[str]:
    names = check_strings(ids, "ids")
    if not all(names):
        raise InvalidInputError(f"ids must be non-empty str; ids[{names.index('')}] is ''")
    try:
        "".join(names).encode("utf-8")
    except UnicodeEncodeError:
        wrong = next(name for name in names if any("\ud800" <= letter <= "\udfff" for letter in name))
        raise InvalidInputError(f"ids must be valid Unicode; {wrong!r} holds a lone surrogate") from None
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InvalidInputError(f"ids must be unique within a call; {twice!r} is there more than once")
    return names
