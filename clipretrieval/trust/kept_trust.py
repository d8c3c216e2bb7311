"""Held-out images, and what was computed from them, as bytes: a line of JSON, and their vectors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from clipretrieval._util.checks import check_int, check_mapping, check_number, check_strings
from clipretrieval._util.labels import label_kind
from clipretrieval._util.text import parse_json
from clipretrieval.errors import InvalidInputError, StoreCorruptedError
from clipretrieval.trust.basis import BasisKey, Remembered, Value
from clipretrieval.trust.calibrated import Calibrated, check_method
from clipretrieval.trust.calibration_images import CalibrationImages
from clipretrieval.trust.conformal import ConformalRule, Ranked
from clipretrieval.trust.conformalized import Conformalized, LikenessEvidence, ShareEvidence
from clipretrieval.trust.probability_maps import IsotonicMap, ProbabilityMap, TemperatureMap
from clipretrieval.trust.trust import Trust

__all__ = ["trust_from_bytes", "trust_to_bytes"]

FORMAT, FORMAT_VERSION = "clipretrieval.trust", 1


def trust_to_bytes(trust: Trust) -> bytes:
    """Return all of it, with what was computed if the store's state has a token to recognize it by."""
    parts, vectors = dict[str, Any](), list[bytes]()
    if (conformal := trust.conformal) is not None:
        parts["conformal"] = {
            **_images(conformal.images, vectors),
            "rule": conformal.rule.to_dict(),
            "shares": _remembered(conformal.shares, _share_values),
            "likeness": _remembered(conformal.likeness, _likeness_values),
        }
    if (calibrated := trust.calibrated) is not None:
        parts["calibrated"] = {
            **_images(calibrated.images, vectors),
            "method": calibrated.method,
            "token": calibrated.token,
            "map": _remembered(calibrated.remembered, _map_values),
        }
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, **parts}
    return b"".join([json.dumps(head, allow_nan=False).encode("ascii"), b"\n", *vectors])


def trust_from_bytes(content: bytes, kind: str, dim: int) -> Trust:
    """Read what `trust_to_bytes` returned.

    Parameters
    ----------
    content : bytes
        May have been written by anybody.
    kind : {"bool", "int", "float", "str"}
        The type of the classes.
    dim : int
        Of the vectors.

    Raises
    ------
    StoreCorruptedError
        If it is anything else, or of other classes or vectors.
    """
    try:
        start = content.index(b"\n") + 1
        head = check_mapping(parse_json(content[:start]), "it", optional=False)
        if head.get("format") != FORMAT or head.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"its format is {head.get('format')!r:.50}, version {head.get('format_version')!r:.50}"
            )
        rows = np.frombuffer(content[start:], dtype="<f4").reshape(-1, dim).astype(np.float32)
        if not np.isfinite(rows).all():
            raise ValueError("a vector is not finite")
        first, conformal, calibrated = 0, None, None
        if (part := head.get("conformal")) is not None:
            images = _read_images(part, rows[first:], kind)
            first += len(images)
            conformal = Conformalized(
                images,
                ConformalRule(**part["rule"]),
                _read_remembered(part["shares"], lambda value: _read_shares(value, len(images))),
                _read_remembered(part["likeness"], lambda value: _read_likeness(value, len(images))),
            )
        if (part := head.get("calibrated")) is not None:
            images = _read_images(part, rows[first:], kind)
            first += len(images)
            token = check_strings([part["token"]], "token")[0]
            remembered = _read_remembered(part["map"], _read_map)
            calibrated = Calibrated(images, check_method(part["method"]), token, remembered)
        if first != len(rows):
            raise ValueError(f"it holds {len(rows)} vectors of {first} images")
        return Trust(conformal, calibrated)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise StoreCorruptedError(f"what was kept of held-out images is damaged: {error}") from error


def _images(images: CalibrationImages, vectors: list[bytes]) -> dict[str, Any]:
    vectors.append(np.ascontiguousarray(images.vectors, dtype="<f4").tobytes())
    return {"ids": list(images.ids), "labels": list(images.labels)}


def _read_images(part: Mapping[str, Any], rows: Any, kind: str) -> CalibrationImages:
    ids, labels = check_strings(part["ids"], "ids"), part["labels"]
    if not isinstance(labels, list) or not len(ids) == len(labels) <= len(rows):
        raise ValueError("there are more ids than labels or vectors, or fewer")
    if len(set(ids)) != len(ids):
        raise ValueError("an id comes twice")
    if labels:
        label_kind(labels, "str" if kind == "str" else "int")
    return CalibrationImages(tuple(ids), rows[: len(ids)], tuple(labels))


def _remembered(found: Remembered[Value] | None, values: Callable[[Value], Any]) -> dict[str, Any] | None:
    """Return a value and its key as JSON values; None where others could not tell whether it is right."""
    if found is None:
        return None
    key = found.key
    if key.state is None or key.state[0] is None or key.answering is None:
        return None
    return {
        "state": list(key.state),
        "answering": dict(key.answering),
        "more": key.more,
        "value": values(found.value),
    }


def _read_remembered(found: Any, read: Callable[[Any], Value]) -> Remembered[Value] | None:
    if found is None:
        return None
    token, count, digest = found["state"]
    answering, more = check_mapping(found["answering"], "answering", optional=False), found["more"]
    key = BasisKey((str(token), check_int(count, "count", least=0), digest), answering, None, more)
    return Remembered(key, read(found["value"]))


def _share_values(found: ShareEvidence) -> dict[str, Any]:
    ranked = {name: column.tolist() for name, column in vars(found.ranked).items()}
    return {"rows": found.rows.tolist(), **ranked}


def _read_shares(value: Any, n: int) -> ShareEvidence:
    rows = _rows(value["rows"], n)
    own, above = (_numbers(value[name], len(rows)) for name in ("own", "above"))
    return ShareEvidence(rows, Ranked(own, above, _numbers(value["rank"], len(rows)).astype(np.int64)))


def _likeness_values(found: LikenessEvidence) -> dict[str, Any]:
    return {"rows": found.rows.tolist(), "scores": found.scores.tolist()}


def _read_likeness(value: Any, n: int) -> LikenessEvidence:
    rows = _rows(value["rows"], n)
    return LikenessEvidence(rows, _numbers(value["scores"], len(rows)))


def _map_values(found: ProbabilityMap) -> dict[str, Any]:
    if isinstance(found, TemperatureMap):
        return {"temperature": found.temperature, "smoothing": found.smoothing}
    if not isinstance(found, IsotonicMap):
        raise TypeError(f"there is no form to keep a {type(found).__name__} in")
    return {"curves": [[label, x.tolist(), y.tolist()] for label, (x, y) in found.curves.items()]}


def _read_map(value: Any) -> ProbabilityMap:
    if "temperature" in value:
        smoothing = check_number(value["smoothing"], "smoothing", least=0, most=0.5)
        return TemperatureMap(check_number(value["temperature"], "temperature", above=0), smoothing)
    curves = {}
    for label, before, after in value["curves"]:
        x = _numbers(before, len(before))
        if not len(x) or (np.diff(x) < 0).any():
            raise ValueError("a curve is empty or does not ascend")
        curves[label] = x, np.clip(_numbers(after, len(x)), 0.0, 1.0)
    return IsotonicMap(curves)


def _rows(value: Any, n: int) -> Any:
    rows = np.array([check_int(row, "a row", least=0, most=max(n - 1, 0)) for row in value], dtype=np.int64)
    if len(np.unique(rows)) != len(rows) or len(rows) > n:
        raise ValueError("a row comes twice")
    return rows


def _numbers(value: Any, n: int) -> Any:
    found = np.array([check_number(each, "a number") for each in value], dtype=np.float64)
    if len(found) != n:
        raise InvalidInputError(f"there are {len(found)} numbers where there should be {n}")
    return found
