"""How records lie in Pinecone: its ids and metadata take less than the store's."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, quote_plus

import numpy as np
import orjson

from clipretrieval.errors import InvalidInputError, StoreCorruptedError
from clipretrieval.stores.checks import NO_METADATA, Batch
from clipretrieval.types import AnyArray, FloatArray, Label, Listing, Records, as_label_array

__all__ = [
    "ID_FIELD",
    "MAX_COUNT",
    "as_listing",
    "as_records",
    "check_limits",
    "fetch_parts",
    "is_zero",
    "json_numbers",
    "key_of",
    "label_condition",
    "label_of",
    "name_of",
    "packed_labels",
    "packed_names",
    "per_answer",
    "upsert_parts",
]

ID_FIELD = "id"
"""The metadata field that holds the true id."""
# A number comes back as a float, which holds an int only up to 2**53: labels are kept as text, typed by name.
INT_LABEL, STR_LABEL = "label_int", "label_str"
METADATA = "metadata"
# Pinecone takes no zero vector: the shortest that it surely takes stands in for it, and this field tells.
ZERO = "zero"
STAND_IN = 2e-8

MAX_COUNT = 1000
"""Records, or ids, in one request."""
MAX_BYTES = 1_900_000
"""Of one request's JSON: the service takes 2 MB, the envelope included."""
MAX_URL_BYTES = 6_000
ANSWER_BYTES = 4_000_000
"""Of records that are read: the service documents this limit for searches, and none for reads by id."""
# A float32 as the service writes it, widened to float64; what is beside the values, metadata of usual length.
VALUE_BYTES = 21
RECORD_BYTES = 1_000
MAX_METADATA_BYTES = 40_000
SMALLEST_MAGNITUDE = 1e-8
MAX_ID_LENGTH = 512
PLAIN_ID = re.compile(r"[!-}][!-~]{0,511}")
ESCAPE = "~"


def key_of(name: str) -> str:
    """Return the id that stands for `name` in Pinecone, another one for each name.

    Printable ASCII ids of up to 512 characters without spaces stand for themselves. Others are
    percent-encoded behind a tilde, as are those that begin with one, or hashed where that is too long.
    """
    if PLAIN_ID.fullmatch(name):
        return name
    encoded = ESCAPE + quote(name, safe="", errors="surrogatepass")
    if len(encoded) <= MAX_ID_LENGTH:
        return encoded
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{ESCAPE}#{digest}"  # percent-encoding leaves no number sign


def check_limits(batch: Batch) -> None:
    """Refuse what Pinecone cannot store, before anything is sent.

    Raises
    ------
    InvalidInputError
        If a vector is all but zero, or a record's metadata is too long.
    """
    largest = np.abs(batch.vectors).max(axis=1)
    tiny = (largest > 0) & (largest < SMALLEST_MAGNITUDE)
    if tiny.any():
        raise InvalidInputError(
            f"Pinecone takes no vector whose values are all below {SMALLEST_MAGNITUDE:g}; row "
            f"{int(np.argmax(tiny))} is one. Scale the vectors, or use another store"
        )
    for name, label, metadata in zip(batch.ids, batch.labels, batch.metadata, strict=True):
        size = len(orjson.dumps(_fields(name, label, metadata)))
        if size > MAX_METADATA_BYTES:
            raise InvalidInputError(
                f"id, label and metadata must fit {MAX_METADATA_BYTES} bytes as JSON in Pinecone; those of "
                f"{name[:60]!r} have {size}"
            )


def upsert_parts(batch: Batch) -> Iterator[tuple[list[str], list[dict[str, Any]]]]:
    """Cut a batch into requests, each within the service's limits of count and bytes.

    Yields
    ------
    (ids, records) : (list of str, list of dict)
        Made when they are asked for: as Python numbers, vectors take eight times their memory.
    """
    names: list[str] = []
    records: list[dict[str, Any]] = []
    used = 0
    for place, name in enumerate(batch.ids):
        fields = _fields(name, batch.labels[place], batch.metadata[place])
        values = json_numbers(batch.vectors[place])
        if not batch.norms[place]:
            values[0], fields[ZERO] = STAND_IN, True
        record = {"id": key_of(name), "values": values, "metadata": fields}
        size = len(orjson.dumps(record)) + 1
        if records and (used + size > MAX_BYTES or len(records) == MAX_COUNT):
            yield names, records
            names, records, used = [], [], 0
        names.append(name)
        records.append(record)
        used += size
    if records:
        yield names, records


def per_answer(dim: int) -> int:
    """Return how many records of dimension `dim` one answer is asked for."""
    return max(1, min(MAX_COUNT, ANSWER_BYTES // (VALUE_BYTES * dim + RECORD_BYTES)))


def fetch_parts(keys: list[str], most: int) -> list[list[str]]:
    """Cut ids into parts of up to `most` that fit a request's address."""
    parts: list[list[str]] = []
    used = 0
    for key in keys:
        size = len(quote_plus(key)) + len("&ids=")
        if not parts or used + size > MAX_URL_BYTES or len(parts[-1]) == most:
            parts.append([])
            used = 0
        parts[-1].append(key)
        used += size
    return parts


def json_numbers(vector: FloatArray) -> list[float]:
    """Return the numbers whose shortest decimal forms are those of the float32 values.

    They are read as the same float32, and are half as long in JSON as the values widened to float64.
    """
    numbers: list[float] = orjson.loads(orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY))
    return numbers


def name_of(key: str, fields: Mapping[str, Any] | None) -> str:
    """Return the true id of a record."""
    name = (fields or {}).get(ID_FIELD)
    if not isinstance(name, str):
        raise _foreign(key)
    return name


def label_of(key: str, fields: Mapping[str, Any] | None) -> Label:
    """Return the label of a record, of the type that it was given."""
    held = fields or {}
    if isinstance(held.get(STR_LABEL), str):
        return str(held[STR_LABEL])
    try:
        return int(held[INT_LABEL])
    except (KeyError, TypeError, ValueError):
        raise _foreign(key) from None


def label_condition(label: Label) -> dict[str, Any]:
    """Return the filter that the records of a label meet, and no others."""
    return {STR_LABEL if isinstance(label, str) else INT_LABEL: {"$eq": str(label)}}


def is_zero(fields: Mapping[str, Any] | None) -> bool:
    """Tell whether a record's values stand in for the zero vector."""
    return (fields or {}).get(ZERO) is True


def as_records(names: Sequence[str], found: dict[str, Any], dim: int | None) -> Records:
    """Put fetched records in the order of the ids that were asked for."""
    held = [(name, key) for name in names if (key := key_of(name)) in found]
    vectors = np.empty((len(held), dim or 0), dtype=np.float32)
    for place, (_, key) in enumerate(held):
        vectors[place] = 0.0 if is_zero(found[key].metadata) else found[key].values
    labels = packed_labels([label_of(key, found[key].metadata) for _, key in held])
    metadata = [_metadata_of(key, found[key].metadata) for _, key in held]
    return Records(packed_names([name for name, _ in held]), vectors, labels, metadata)


def as_listing(found: dict[str, Any]) -> Listing:
    """Return the true ids and the labels of fetched records."""
    names = [name_of(key, record.metadata) for key, record in found.items()]
    labels = [label_of(key, record.metadata) for key, record in found.items()]
    return Listing(packed_names(names), packed_labels(labels))


def packed_labels(labels: Sequence[Label]) -> AnyArray:
    """Return labels as an array.

    Raises
    ------
    StoreCorruptedError
        If they are of mixed types.
    """
    try:
        return as_label_array(labels)
    except InvalidInputError as error:
        raise StoreCorruptedError(f"the labels in the Pinecone index are damaged: {error}") from error


def packed_names(names: Sequence[str]) -> AnyArray:
    """Return ids as an array of objects."""
    packed = np.empty(len(names), dtype=object)
    packed[:] = names
    return packed


def _metadata_of(key: str, fields: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        found = json.loads((fields or {}).get(METADATA, NO_METADATA))
    except (TypeError, ValueError):
        raise _foreign(key) from None
    if not isinstance(found, dict):
        raise _foreign(key)
    return found


def _fields(name: str, label: Any, metadata: str) -> dict[str, Any]:
    fields: dict[str, Any] = {ID_FIELD: name}
    fields[STR_LABEL if isinstance(label, str) else INT_LABEL] = str(label)
    if metadata != NO_METADATA:
        fields[METADATA] = metadata
    return fields


def _foreign(key: str) -> StoreCorruptedError:
    return StoreCorruptedError(
        f"the record {key!r} in the Pinecone index was not written by PineconeStore, or was changed since; "
        "remove it, or use a namespace that nothing else writes to"
    )
