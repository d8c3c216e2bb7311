"""``classifier.json``, what is kept of a classifier beside its store: written with a checksum, then checked.

::

    {"format": "clipretrieval.classifier", "format_version": 3, …, "sha256": "…"}

The checksum is the SHA-256 of all other fields as JSON with sorted keys, without white space, in ASCII.
Files of version 1 have none, and those of version 2 name no head: the neighbors voted. Only a
cascade's file has version 4, and the field ``cascade``; and only one of a classifier that was conformalized
or calibrated, or answers `unknown`, has version 5, and the field ``trust``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipretrieval._util.checks import check_bool, check_choice, check_int, check_number, check_strings, shown
from clipretrieval._util.files import IrregularFileError, read_file, write_text
from clipretrieval._util.text import json_document, parse_json
from clipretrieval._version import __version__
from clipretrieval.errors import InvalidInputError, StoreCorruptedError
from clipretrieval.heads.choice import read_head
from clipretrieval.heads.class_texts import read_names
from clipretrieval.heads.priors import Priors
from clipretrieval.heads.text_prior import check_text_weight
from clipretrieval.heads.voting import TEMPERATURE
from clipretrieval.heads.weighting import WEIGHTINGS
from clipretrieval.prompts import listed_templates
from clipretrieval.retrieval.manifest import KINDS
from clipretrieval.stores.checks import MOST_NEIGHBORS
from clipretrieval.types import Label, Metric

__all__ = ["FILE", "ClassifierFile", "digest_in", "read", "write"]

FILE = "classifier.json"
FORMAT, FORMAT_VERSION = "clipretrieval.classifier", 5
COMPLETE_SINCE = 2
"""The first format version with a checksum and all arguments that there were."""
HEADS_SINCE = 3
"""The first format version with a head and priors."""
CASCADES_SINCE = 4
"""The format version of a cascade; any other classifier without `trust` is written as the version before."""
TRUST_SINCE = 5
"""The format version of a classifier that has something to do with held-out images."""
LARGEST = 64 * 2**20
"""Bytes; the names of a million features fit."""
_FIELDS = ("params", "encoder", "label_kind", "n_features_in", "feature_names_in", "store")
_MORE = {"cascade": CASCADES_SINCE, "trust": TRUST_SINCE}
"""Fields that a file of one version has."""
_HEAD = ("format", "format_version", "library_version")


@dataclass(frozen=True)
class ClassifierFile:
    """What a ``classifier.json`` says, checked.

    Attributes
    ----------
    path : Path
    params : dict
        Arguments of `RetrievalClassifier`.
    encoder : dict or None
        ``class``, and ``config`` where a `StagedEncoder` can be built again.
    label_kind : {"bool", "int", "float", "str"}
    n_features_in : int
    feature_names_in : list of str or None
    store : dict or None
        ``name``, with ``folder`` or ``options``; of a cascade, its last exit's.
    cascade : dict or None
        ``stages``, ``stores`` (of all exits, as `store`), ``dims`` and ``state``, which its own class checks.
    trust : dict or None
        ``unknown`` and ``max_turned_away``, which the classifier checks; and where something was learned of
        held-out images, the name of their ``file``, and its ``sha256``.
    digest : str
        Of the file's bytes: another one is another save.
    format_version : int
    library_version : str
        Of the library that wrote it.
    """

    path: Path
    params: dict[str, Any]
    encoder: dict[str, Any] | None
    label_kind: str
    n_features_in: int
    feature_names_in: list[str] | None
    store: dict[str, Any] | None
    cascade: dict[str, Any] | None
    trust: dict[str, Any] | None
    digest: str
    format_version: int
    library_version: str


def write(folder: Path, fields: Mapping[str, Any]) -> None:
    """Replace the file in a folder, atomically.

    Parameters
    ----------
    folder : Path
    fields : mapping of JSON values
        All that `ClassifierFile` has, but for path and digest; one of `cascade` and `trust` may be there.
    """
    more = next((name for name in _MORE if fields.get(name) is not None), None)
    names = _FIELDS if more is None else (*_FIELDS, more)
    version = CASCADES_SINCE - 1 if more is None else _MORE[more]
    head = {"format": FORMAT, "format_version": version, "library_version": __version__}
    content = {**head, **{name: fields[name] for name in names}}
    content["sha256"] = _checksum(content)
    write_text(folder / FILE, json_document(content, 2) + "\n", follow=False)


def digest_in(folder: Path) -> str | None:
    """Return the digest of the file in a folder; None where there is none.

    Raises
    ------
    StoreCorruptedError
        If it is no regular file, or too large.
    OSError
        If it cannot be read.
    """
    try:
        return _digest(_bytes(folder / FILE))
    except FileNotFoundError:
        return None


def read(folder: Path) -> ClassifierFile:
    """Read the file in a folder.

    Raises
    ------
    InvalidInputError
        If it is not a classifier's.
    StoreCorruptedError
        If it is damaged, or of a format version that this version of the library does not know.
    OSError
        If it cannot be read.
    """
    path = folder / FILE
    found = _bytes(path)
    try:
        content = parse_json(found)
    except ValueError as error:
        raise _damaged(path, f"it is not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InvalidInputError(f"{path} was not written by clipretrieval; pass a folder that save wrote")
    version = content.get("format_version")
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise StoreCorruptedError(
            f"{path} has format version {shown(version)}; clipretrieval {__version__} reads versions 1 to "
            f"{FORMAT_VERSION}. Upgrade clipretrieval to read it"
        )
    if version >= COMPLETE_SINCE and content.pop("sha256", None) != _checksum(content):
        raise _damaged(path, "its content does not match its checksum")
    strange = set(content) ^ {*_HEAD, *_FIELDS, *(name for name, since in _MORE.items() if version == since)}
    if strange:
        raise _damaged(path, f"it should not have, or lacks, {', '.join(map(shown, sorted(strange)))}")
    try:
        _check_text(content["library_version"], "library_version")
        return ClassifierFile(
            path=path,
            params=_check_params(content["params"], version),
            encoder=_check_encoder(content["encoder"]),
            label_kind=check_choice(content["label_kind"], "label_kind", KINDS),
            n_features_in=check_int(content["n_features_in"], "n_features_in"),
            feature_names_in=_check_names(content["feature_names_in"], content["n_features_in"]),
            store=_check_store(content["store"]),
            cascade=_check_cascade(content["cascade"]) if version == CASCADES_SINCE else None,
            trust=_check_trust(content["trust"]) if version == TRUST_SINCE else None,
            digest=_digest(found),
            format_version=version,
            library_version=content["library_version"],
        )
    except InvalidInputError as error:
        raise _damaged(path, str(error)) from error


def _check_params(found: Any, version: int) -> dict[str, Any]:
    """Return the arguments; a file of version 1 may lack some, which were the defaults."""
    checks: dict[str, Callable[[Any], Any]] = {
        "k": lambda value: check_int(value, "params.k", most=MOST_NEIGHBORS),
        "weights": lambda value: check_choice(value, "params.weights", WEIGHTINGS),
        "temperature": lambda value: check_number(value, "params.temperature", above=0),
        "metric": lambda value: check_choice(value, "params.metric", [str(each) for each in Metric]),
        "normalize": lambda value: check_bool(value, "params.normalize"),
    }
    if version >= HEADS_SINCE:
        checks["head"] = lambda value: read_head(value, "params.head")
        checks["priors"] = _check_priors
    required = tuple(checks) if version >= COMPLETE_SINCE else ()
    if version >= HEADS_SINCE:  # those of texts are there where texts count
        checks["text_weight"] = check_text_weight
        checks["class_names"] = _check_class_names
        checks["templates"] = listed_templates
    params = _check_object(found, "params", required=required, known=tuple(checks))
    voting = {"k": 1, "weights": "uniform", "temperature": TEMPERATURE}
    defaults = {**voting, "metric": "l2", "normalize": False, "head": "votes", "priors": "equal"}
    return defaults | {name: checks[name](value) for name, value in params.items()}


def _check_class_names(found: Any) -> dict[Label, str]:
    if not isinstance(found, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in found):
        raise InvalidInputError(f"params.class_names must be pairs [label, name]; got {shown(found)}")
    if any(isinstance(label, list | dict) for label, _ in found):
        raise InvalidInputError("params.class_names has a label that is neither a number nor a string")
    return read_names(dict(found))


def _check_priors(found: Any) -> str | list[float]:
    if not isinstance(found, str | list):
        raise InvalidInputError(f"params.priors must be a name or numbers; got {shown(found)}")
    given = Priors.parse(found).given
    return given if isinstance(given, str) else list(given)


def _check_encoder(found: Any) -> dict[str, Any] | None:
    if found is None:
        return None
    encoder = _check_object(found, "encoder", required=("class", "config"))
    _check_text(encoder["class"], "encoder.class")
    if encoder["config"] is not None:
        config = _check_object(
            encoder["config"], "encoder.config", required=("model", "pretrained"), known=None
        )
        _check_text(config["model"], "encoder.config.model")
        if config["pretrained"] is not None:
            _check_text(config["pretrained"], "encoder.config.pretrained")
    return encoder


def _check_names(found: Any, count: int) -> list[str] | None:
    if found is None:
        return None
    names = check_strings(found, "feature_names_in")
    if len(names) != count:
        raise InvalidInputError(f"feature_names_in must be {count} names; got {len(names)}")
    return names


def _check_store(found: Any) -> dict[str, Any] | None:
    if found is None:
        return None
    store = _check_object(found, "store", required=("name",), known=("name", "folder", "options"))
    _check_text(store["name"], "store.name")
    if ("folder" in store) == ("options" in store):
        raise InvalidInputError("store must have a folder or options, one of the two")
    if "folder" in store:
        _check_text(store["folder"], "store.folder")
    else:
        _check_object(store["options"], "store.options", known=None)
    return store


def _check_cascade(found: Any) -> dict[str, Any]:
    cascade = _check_object(found, "cascade", required=("stages", "stores", "dims", "state"))
    stages = check_strings(cascade["stages"], "cascade.stages")
    for name in ("stores", "dims"):
        if not isinstance(cascade[name], list) or len(cascade[name]) != len(stages):
            raise InvalidInputError(f"cascade.{name} must have a value for each of {len(stages)} stages")
    if len(stages) < 2:
        raise InvalidInputError("cascade.stages must be at least two")
    for store, dim in zip(cascade["stores"], cascade["dims"], strict=True):
        _check_store(store)
        check_int(dim, "cascade.dims")
    if not isinstance(cascade["state"], dict):
        raise InvalidInputError(f"cascade.state must be an object; got {shown(cascade['state'])}")
    return cascade


def _check_trust(found: Any) -> dict[str, Any]:
    trust = _check_object(found, "trust", required=("unknown", "max_turned_away"), known=("file", "sha256"))
    if trust["unknown"] is not None and type(trust["unknown"]) not in (int, str):
        raise InvalidInputError(f"trust.unknown must be a label or null; got {shown(trust['unknown'])}")
    check_number(trust["max_turned_away"], "trust.max_turned_away", above=0, most=1)
    for name in ("file", "sha256") if {"file", "sha256"} & set(trust) else ():
        _check_text(trust.get(name), f"trust.{name}")
    return trust


def _check_text(found: Any, name: str) -> None:
    if not isinstance(found, str) or not found or "\0" in found:
        raise InvalidInputError(f"{name} must be a text; got {shown(found)}")


def _check_object(
    found: Any, name: str, *, required: tuple[str, ...] = (), known: tuple[str, ...] | None = ()
) -> dict[str, Any]:
    """Return a JSON object that has the required fields, and none but those and the known; None knows all."""
    if not isinstance(found, dict):
        raise InvalidInputError(f"{name} must be an object; got {shown(found)}")
    missing = [field for field in required if field not in found]
    strange = [] if known is None else [field for field in found if field not in (*required, *known)]
    if missing or strange:
        raise InvalidInputError(
            f"{name} should not have, or lacks, {', '.join(map(shown, missing + strange))}"
        )
    return found


def _bytes(path: Path) -> bytes:
    try:
        return read_file(path, LARGEST)
    except IrregularFileError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> StoreCorruptedError:
    return StoreCorruptedError(f"{path} is damaged: {why}. Restore the folder from a copy, or fit again")


def _checksum(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
