"""A fitted classifier as a folder: a small JSON file beside its store."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipretrieval._atomic import write_text
from clipretrieval._attaching import adopt
from clipretrieval._checks import check_path
from clipretrieval._keeping import PART, keep_store, open_store, place_inside
from clipretrieval._manifest import plain_fingerprint, vector_fingerprint
from clipretrieval._params import check_params, check_store
from clipretrieval._version import __version__
from clipretrieval.encoding.base import Encoder
from clipretrieval.errors import (
    InvalidInputError,
    StoreCorruptedError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.stores._writer import LOCK_NAME, WriterLock
from clipretrieval.stores.base import VectorStore
from clipretrieval.types import Metric

if TYPE_CHECKING:
    from clipretrieval.classifier import RetrievalClassifier

__all__ = ["FILE", "INDEXING", "check_folder", "load", "save"]

FILE = "classifier.json"
INDEXING = "indexing.json"
"""What the command line keeps in the folder while it fills it."""
_FILES = f"{re.escape(FILE)}|{re.escape(INDEXING)}"
OWN = rf"{PART}|{re.escape(LOCK_NAME)}|{re.escape(INDEXING)}|\.({PART}|{_FILES})\..*\.tmp"
FORMAT, FORMAT_VERSION = "clipretrieval.classifier", 1
_ATTEMPTS = 10


def save(classifier: RetrievalClassifier, path: str | Path) -> None:
    """Write a fitted classifier into a folder.

    A store that lives only in this process is copied into the folder. A store that other processes can
    open (a folder, a server) is flushed and named, without secrets. Any other has to be handed to
    `load` again. The folder changes in one step, when ``classifier.json`` is replaced.

    Parameters
    ----------
    classifier : RetrievalClassifier
    path : str or Path
        Made if missing. An earlier classifier in it is replaced; anything else in it stays.

    Raises
    ------
    UnsupportedOperationError
        If ``weights`` is a callable, which cannot be written down.
    InvalidInputError
        If `path` is a file, or a folder that holds other things.
    StoreLockedError
        If another process is saving into the folder.
    StoreUnavailableError
        If the folder cannot be written to, or the disk is full.
    """
    if callable(classifier.weights):
        raise UnsupportedOperationError(
            "weights is a callable, which cannot be saved; set weights to one of the named rules before "
            "saving, or pass your callable again after loading"
        )
    folder = check_path(path, "path")
    try:
        check_folder(folder, place_inside(classifier.store_, folder))
        folder.mkdir(parents=True, exist_ok=True)
        lock = WriterLock(folder)
        lock.acquire()
        try:
            _save(classifier, folder)
        finally:
            lock.release()
    except OSError as error:
        raise StoreUnavailableError(
            f"the classifier cannot be saved into {str(folder)!r}: {error.strerror or error}"
        ) from error


def _save(classifier: RetrievalClassifier, folder: Path) -> None:
    kept = keep_store(classifier.store_, folder)
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "library_version": __version__,
        "params": {
            "k": int(classifier.k),
            "weights": classifier.weights,
            "temperature": float(classifier.temperature),
            "metric": str(Metric.parse(classifier.metric)),
            "normalize": bool(classifier.normalize),
        },
        "encoder": _describe_encoder(classifier),
        "label_kind": classifier._label_kind,
        "n_features_in": int(classifier.n_features_in_),
        "feature_names_in": list(getattr(classifier, "feature_names_in_", [])) or None,
        "store": kept,
    }
    try:
        write_text(folder / FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    except BaseException:
        if kept is not None and "folder" in kept:
            shutil.rmtree(folder / kept["folder"], ignore_errors=True)
        raise
    for part in _own_things(folder):
        if part.is_dir() and (kept is None or part.name != kept.get("folder")):
            shutil.rmtree(part, ignore_errors=True)
        elif part.name.endswith(".tmp"):
            part.unlink(missing_ok=True)


def load(
    cls: type[RetrievalClassifier],
    path: str | Path,
    encoder: Encoder | None = None,
    *,
    store: VectorStore | None = None,
) -> RetrievalClassifier:
    """Open a classifier that `save` wrote.

    Parameters
    ----------
    cls : type
    path : str or Path
    encoder : Encoder, optional
        The one that was saved, built again from its arguments, when left out. One of your own has to
        be given again.
    store : VectorStore, optional
        Likewise.

    Returns
    -------
    RetrievalClassifier

    Raises
    ------
    InvalidInputError
        If the folder holds no saved classifier, or an encoder or a store has to be given.
    StoreCorruptedError
        If what it holds is damaged.
    FingerprintMismatchError
        If the encoder is not the one that filled the store; the message names what differs.
    """
    folder = check_path(path, "path")
    if store is not None:
        check_store(store)
    for _ in range(_ATTEMPTS):
        content = _read(folder)
        try:
            return _load(cls, folder, content, encoder, store)
        except (StoreCorruptedError, StoreUnavailableError):
            # Another process may have saved anew between our reading of the two.
            if _read(folder) == content:
                raise
    raise StoreUnavailableError(f"{folder} changes faster than it can be read; load it again later")


def _load(
    cls: type[RetrievalClassifier],
    folder: Path,
    content: Mapping[str, Any],
    encoder: Encoder | None,
    store: VectorStore | None,
) -> RetrievalClassifier:
    opened: VectorStore | None = store
    try:
        params, kind, dim = dict(content["params"]), content["label_kind"], int(content["n_features_in"])
        names = [str(name) for name in content["feature_names_in"] or ()]
        encoder = encoder if encoder is not None else _rebuild_encoder(content["encoder"])
        fingerprint = vector_fingerprint(dim) if encoder is None else plain_fingerprint(encoder.fingerprint)
        if opened is None:
            opened = open_store(content["store"], folder)
        classifier = cls(encoder, content["store"]["name"] if store is None else store, **params)
        check_params(classifier)
        adopt(classifier, opened, fingerprint, kind)
        classifier.n_features_in_ = dim
    except BaseException as error:
        if store is None and opened is not None:
            opened.close()
        if isinstance(error, KeyError | TypeError | AttributeError) or type(error) is ValueError:
            raise StoreCorruptedError(f"{folder / FILE} lacks what it should hold ({error!r})") from error
        raise
    if names:
        classifier.feature_names_in_ = np.array(names, dtype=object)
    return classifier


def check_folder(folder: Path, store: Path | None) -> None:
    """Refuse to keep a classifier where other things are.

    Parameters
    ----------
    folder : Path
        May be missing.
    store : Path, optional
        Where in it the classifier's own store lies.

    Raises
    ------
    InvalidInputError
    """
    folder = check_path(folder, "folder")
    if folder.exists() and not folder.is_dir():
        raise InvalidInputError(f"{folder} is a file; pass a folder to save into")
    if not folder.is_dir():
        return
    names = {child.name for child in folder.iterdir()} - set(store.parts[:1] if store is not None else ())
    # A first save that was killed, or is still going on, has put nothing there but things of its own.
    if FILE not in names and not all(re.fullmatch(OWN, name) for name in names):
        raise InvalidInputError(
            f"{folder} holds other things and no saved classifier; pass a new or an empty folder"
        )


def _own_things(folder: Path) -> list[Path]:
    """List what saving puts beside ``classifier.json``: copies of stores, its lock, unfinished files."""
    return [child for child in folder.iterdir() if re.fullmatch(OWN, child.name)]


def _describe_encoder(classifier: RetrievalClassifier) -> dict[str, Any] | None:
    encoder = classifier.encoder
    if encoder is None:
        return None
    ours = getattr(sys.modules.get("clipretrieval.encoding.staged"), "StagedEncoder", None)
    config = encoder.config() if type(encoder) is ours else None  # type: ignore[attr-defined]
    if config is not None and not isinstance(config["model"], str):
        config = None  # a model in memory: it has to be given again
    return {"class": type(encoder).__name__, "config": config}


def _rebuild_encoder(content: Mapping[str, Any] | None) -> Encoder | None:
    if content is None:
        return None
    if content["config"] is None:
        raise InvalidInputError(
            f"the classifier was saved with an encoder of your own ({content['class']}); pass it again: "
            "RetrievalClassifier.load(path, encoder)"
        )
    from clipretrieval.encoding.staged import StagedEncoder

    return StagedEncoder.from_config(content["config"])


def _read(folder: Path) -> dict[str, Any]:
    file = folder / FILE
    if not file.is_file() and (folder / INDEXING).is_file():
        raise InvalidInputError(
            f"{folder} holds what an interrupted `clipretrieval index` has left, and no finished classifier; "
            "go on with it: clipretrieval index PICTURES FOLDER --resume"
        )
    if not folder.exists():
        raise InvalidInputError(
            f"there is no folder {str(folder)!r}; pass one that `clipretrieval index` or "
            "RetrievalClassifier.save wrote"
        )
    if not file.is_file():
        raise InvalidInputError(
            f"{folder} is no saved classifier: it has no {FILE}. Pass a folder that `clipretrieval index` or "
            "RetrievalClassifier.save wrote; a store's folder alone is none"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StoreCorruptedError(
            f"{file} is damaged or truncated ({error}); restore the folder from a copy or fit again"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InvalidInputError(f"{file} was not written by clipretrieval; pass a folder that save wrote")
    if content.get("format_version") != FORMAT_VERSION:
        raise StoreCorruptedError(
            f"{file} has format version {content.get('format_version')!r}; clipretrieval {__version__} reads "
            f"version {FORMAT_VERSION}. Upgrade clipretrieval to read it"
        )
    return content
