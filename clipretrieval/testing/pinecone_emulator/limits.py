"""What the data plane refuses, by its published limits and schemas."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from clipretrieval.testing.pinecone_emulator.answers import Refused
from clipretrieval.testing.pinecone_emulator.records import Record

__all__ = [
    "MAX_RESULT_BYTES",
    "check_fields",
    "check_id",
    "check_ids",
    "check_namespace",
    "check_object",
    "check_prefix",
    "check_range",
    "check_record",
    "check_top_k",
    "check_values",
    "parse_object",
]

MAX_ID_LENGTH = 512
MAX_IDS = 1000
MAX_TOP_K = 10_000
MAX_METADATA_BYTES = 40 * 1024
MAX_RESULT_BYTES = 4 * 1024 * 1024
SMALLEST_MAGNITUDE = 1e-8
FLOAT64_MAX = float(np.finfo(np.float64).max)
FLOAT32_MAX = float(np.finfo(np.float32).max)


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse a request's body, which has to be a JSON object."""

    def refuse(constant: str) -> Any:
        raise Refused(400, f"{constant} is not valid JSON")

    try:
        content = json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise Refused(400, "the body must be a JSON object")
    return content


def check_object(content: Any, name: str) -> dict[str, Any]:
    """Return a JSON object."""
    if not isinstance(content, dict):
        raise Refused(400, f"{name} must be an object; found {json.dumps(content)[:60]}")
    return content


def check_range(number: Any, name: str, least: float, most: float, *, whole: bool = False) -> None:
    """Refuse what is not a number of a range, both ends in it."""
    kinds = int if whole else (int, float)
    if isinstance(number, bool) or not isinstance(number, kinds) or not least <= number <= most:
        kind = "an integer" if whole else "a number"
        raise Refused(
            400, f"{name} must be {kind} from {least:g} to {most:g}; found {json.dumps(number)[:60]}"
        )


def check_prefix(prefix: str) -> str:
    """Return the beginning of ids that are to be listed."""
    if len(prefix) > MAX_ID_LENGTH or not prefix.isascii() or "\0" in prefix:
        raise Refused(400, f"prefix must be ASCII, of at most {MAX_ID_LENGTH} characters, without NUL")
    return prefix


def check_fields(content: Mapping[str, Any], known: Collection[str], required: Collection[str] = ()) -> None:
    """Refuse fields that the schema does not list, and their absence where it requires them."""
    for name in content:
        if name not in known:
            raise Refused(400, f"unknown field {name!r}")
    for name in required:
        if name not in content:
            raise Refused(400, f"missing field {name!r}")


def check_namespace(name: Any) -> str:
    """Return a namespace's name, the default one's as ``__default__``."""
    if not isinstance(name, str) or len(name) > MAX_ID_LENGTH or not name.isascii() or "\0" in name:
        raise Refused(400, "namespace must be ASCII, of at most 512 characters, without NUL")
    return name or "__default__"


def check_id(name: Any) -> str:
    """Return a record's id."""
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_ID_LENGTH:
        raise Refused(400, f"an id must be a string of 1 to {MAX_ID_LENGTH} characters")
    if not name.isascii() or "\0" in name:
        raise Refused(400, "an id must be ASCII and must not contain NUL")
    return name


def check_ids(names: Any) -> list[str]:
    """Return the ids of one request."""
    if not isinstance(names, list) or not 1 <= len(names) <= MAX_IDS:
        raise Refused(400, f"ids must be a list of 1 to {MAX_IDS} ids")
    return [check_id(name) for name in names]


def check_top_k(number: Any) -> int:
    """Return how many matches a query asks for."""
    check_range(number, "topK", 1, MAX_TOP_K, whole=True)
    return int(number)


def check_values(values: Any, dimension: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return a vector as the service stores it, float32 of shape (dimension,)."""
    if not isinstance(values, list):
        raise Refused(400, "a vector must be a list of numbers")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise Refused(400, f"a vector must hold only numbers; found {value!r}")
        if abs(value) > FLOAT32_MAX:
            raise Refused(400, f"{value!r} does not fit a float32")
    if len(values) != dimension:
        raise Refused(
            400, f"Vector dimension {len(values)} does not match the dimension of the index {dimension}"
        )
    return np.array(values, dtype=np.float32)


def check_record(content: Any, dimension: int) -> Record:
    """Return one record of an upsert."""
    if not isinstance(content, dict):
        raise Refused(400, "a vector must be an object")
    check_fields(content, ("id", "values", "sparseValues", "metadata"), ("id",))
    name = check_id(content["id"])
    if "sparseValues" in content:
        raise Refused(400, "Index does not support sparse values")
    values = check_values(content.get("values"), dimension)
    if not (np.abs(values) >= SMALLEST_MAGNITUDE).any():
        raise Refused(400, "Dense vectors must contain at least one non-zero value")
    return Record(name, values, _stored_metadata(content.get("metadata", {})))


def _stored_metadata(content: Any) -> dict[str, Any]:
    """Return metadata as the service stores them: all numbers are floats."""
    kept: dict[str, Any] = {}
    for name, value in check_object(content, "metadata").items():
        if name.startswith("$"):
            raise Refused(400, f"a metadata field must not begin with '$'; found {name!r}")
        strings = isinstance(value, list) and all(isinstance(each, str) for each in value)
        if not strings and not isinstance(value, (str, bool, int, float)):
            raise Refused(
                400,
                "Metadata value must be a string, number, boolean or list of strings, got "
                f"{json.dumps(value)[:60]!r} for field {name!r}",
            )
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and abs(value) > FLOAT64_MAX:
            raise Refused(400, f"the number of metadata field {name!r} does not fit a float64")
        kept[name] = float(value) if number else value
    size = len(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode())
    if size > MAX_METADATA_BYTES:
        raise Refused(400, f"metadata size is {size} bytes, which exceeds the limit of {MAX_METADATA_BYTES}")
    return kept
