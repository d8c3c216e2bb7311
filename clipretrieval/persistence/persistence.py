"""A fitted classifier as a folder: a small JSON file beside its store."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipretrieval._util.checks import check_bool, check_path
from clipretrieval._util.files import NotDurableError, remedy
from clipretrieval.encoding.base import Encoder
from clipretrieval.errors import (
    InvalidInputError,
    StoreCorruptedError,
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.persistence import classifier_file as _classifier_file
from clipretrieval.persistence.classifier_file import FILE, ClassifierFile
from clipretrieval.persistence.consent import check_model
from clipretrieval.persistence.stores import PART, keep_store, open_store, place_inside, warn_of_unsaved
from clipretrieval.retrieval.attaching import adopt
from clipretrieval.retrieval.manifest import plain_fingerprint, vector_fingerprint
from clipretrieval.retrieval.parameters import check_params, check_store
from clipretrieval.stores.base import VectorStore
from clipretrieval.stores.local.writer_lock import LOCK_NAME, WriterLock
from clipretrieval.types import Metric

if TYPE_CHECKING:
    from clipretrieval.classifier import RetrievalClassifier

__all__ = ["FILE", "INDEXING", "check_folder", "load", "save"]

INDEXING = "indexing.json"
"""What the command line keeps in the folder while it fills it."""
_FILES = f"{re.escape(FILE)}|{re.escape(INDEXING)}"
OWN = rf"{PART}|{re.escape(LOCK_NAME)}|{re.escape(INDEXING)}|\.({PART}|{_FILES})\..*\.tmp"
_ATTEMPTS = 10


def save(classifier: RetrievalClassifier, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a fitted classifier into a folder.

    A store that lives only in this process is copied into the folder. A store that other processes can
    open (a folder, a server) is flushed and named, without secrets. Any other has to be handed to
    `load` again. The folder changes in one step, when ``classifier.json`` is replaced.

    Parameters
    ----------
    classifier : RetrievalClassifier
    path : str or Path
        Made if missing. An earlier classifier in it is replaced; anything else in it stays.
    overwrite : bool
        Replace the classifier in it also where another one was saved there since this one was loaded from
        there or saved to it.

    Raises
    ------
    UnsupportedOperationError
        If ``weights`` is a callable, which cannot be written down.
    InvalidInputError
        If `path` is no path, a file, or a folder that holds other things, or a parameter is wrong.
    StoreLockedError
        If another process is saving into the folder; or, without `overwrite`, has saved there since: what it
        added would be lost.
    StoreUnavailableError
        If the folder cannot be written to, or the disk is full.

    Warns
    -----
    ClipRetrievalWarning
        If the store is not part of what was saved, and has to be passed to `load`.
    """
    if callable(classifier.weights):
        raise UnsupportedOperationError(
            "weights is a callable, which cannot be saved; set weights to one of the named rules before "
            "saving, or pass your callable again after loading"
        )
    folder, overwrite = check_path(path, "path"), check_bool(overwrite, "overwrite")
    check_params(classifier)  # they may have been set since it was fitted
    try:
        check_folder(folder, place_inside(classifier.store_, folder))
        folder.mkdir(parents=True, exist_ok=True)
        lock = WriterLock(folder)
        lock.acquire()
        try:
            if not overwrite:
                _check_unchanged(classifier, folder)
            kept = _save(classifier, folder)
        finally:
            lock.release()
    except NotDurableError as error:
        raise StoreUnavailableError(
            f"the classifier was saved but may not be on the disk: {error.strerror}. Mend the disk "
            "and save again"
        ) from error
    except OSError as error:
        raise StoreUnavailableError(
            f"the classifier cannot be saved into {str(folder)!r}: {error.strerror or error}; "
            + remedy(error, "check the folder's permissions and the free space")
        ) from error
    if kept is None:
        warn_of_unsaved(classifier.store_)


def _save(classifier: RetrievalClassifier, folder: Path) -> dict[str, Any] | None:
    """Return how the store can be opened again; see `keep_store`."""
    kept = keep_store(classifier.store_, folder)
    fields = {
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
        _classifier_file.write(folder, fields)
    except NotDurableError:  # the new file is in place, and names the store
        _remember(classifier, folder, _classifier_file.digest_in(folder))
        raise
    except BaseException:
        if kept is not None and "folder" in kept:
            shutil.rmtree(folder / kept["folder"], ignore_errors=True)
        raise
    _remember(classifier, folder, _classifier_file.digest_in(folder))
    for part in _own_things(folder):
        if part.is_dir() and (kept is None or part.name != kept.get("folder")):
            shutil.rmtree(part, ignore_errors=True)
        elif part.name.endswith(".tmp"):
            part.unlink(missing_ok=True)
    return kept


def _check_unchanged(classifier: RetrievalClassifier, folder: Path) -> None:
    """Refuse to replace what was saved into a folder since a classifier was loaded from there."""
    known = getattr(classifier, "_kept_in", {}).get(str(folder.resolve()))
    if known is None:
        return
    try:
        found = _classifier_file.digest_in(folder)
    except StoreError:
        return  # nobody can load what is there
    if found not in (None, known):
        raise StoreLockedError(
            f"the classifier in {folder} was saved anew since this one was loaded from there or saved to it, "
            "and saving would undo that. Load it again and repeat your changes, save into another folder, or "
            "pass overwrite=True to replace it"
        )


def _remember(classifier: RetrievalClassifier, folder: Path, digest: str | None) -> None:
    classifier._kept_in = {**getattr(classifier, "_kept_in", {}), str(folder.resolve()): digest}


def load(
    cls: type[RetrievalClassifier],
    path: str | Path,
    encoder: Encoder | None = None,
    *,
    store: VectorStore | None = None,
    allow_remote: bool = False,
) -> RetrievalClassifier:
    """Open a classifier that `save` wrote.

    The folder may come from anybody: without `allow_remote`, nothing that it says makes this connect to a
    host, read a key, or make or change a file.

    Parameters
    ----------
    cls : type
    path : str or Path
    encoder : Encoder, optional
        The one that was saved, built again from its arguments, when left out. One of your own has to
        be given again.
    store : VectorStore, optional
        Likewise.
    allow_remote : bool
        Trust whoever saved it, and open also a store at a server or one that would be made, and a model of a
        hub. A key from the environment is not sent to any host but the service's own.

    Returns
    -------
    RetrievalClassifier

    Raises
    ------
    InvalidInputError
        If the folder holds no saved classifier, or an encoder, a store or `allow_remote` has to be given.
    StoreCorruptedError
        If what it holds is damaged.
    StoreUnavailableError
        If it cannot be read, or its store is gone.
    FingerprintMismatchError
        If the encoder is not the one that filled the store; the message names what differs.
    """
    folder, allow_remote = check_path(path, "path"), check_bool(allow_remote, "allow_remote")
    if store is not None:
        check_store(store)
    for _ in range(_ATTEMPTS):
        content = describe(folder)
        try:
            return _load(cls, folder, content, encoder, store, allow_remote)
        except (StoreCorruptedError, StoreUnavailableError):
            # Another process may have saved anew between our reading of the two.
            if describe(folder) == content:
                raise
    raise StoreUnavailableError(f"{folder} changes faster than it can be read; load it again later")


def _load(
    cls: type[RetrievalClassifier],
    folder: Path,
    content: ClassifierFile,
    encoder: Encoder | None,
    store: VectorStore | None,
    allow_remote: bool,
) -> RetrievalClassifier:
    opened: VectorStore | None = store
    try:
        if opened is None:
            opened = open_store(content.store, folder, allow_remote=allow_remote)
        named = opened if store is not None or content.store is None else str(content.store["name"])
        if encoder is None:
            encoder = _rebuild_encoder(content, folder, allow_remote)
        classifier = cls(encoder, named, **content.params)
        check_params(classifier)
        dim = content.n_features_in
        if store is None and opened.dim not in (None, dim):
            raise StoreCorruptedError(
                f"{content.path} is damaged: n_features_in is {dim}, and its store holds vectors of "
                f"dimension {opened.dim}. Restore the folder from a copy"
            )
        fingerprint = vector_fingerprint(dim) if encoder is None else plain_fingerprint(encoder.fingerprint)
        adopt(classifier, opened, fingerprint, content.label_kind)
    except BaseException:
        if store is None and opened is not None:
            opened.close()
        raise
    classifier.n_features_in_ = dim
    if content.feature_names_in:
        classifier.feature_names_in_ = np.array(content.feature_names_in, dtype=object)
    _remember(classifier, folder, content.digest)
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


def _rebuild_encoder(content: ClassifierFile, folder: Path, allow_remote: bool) -> Encoder | None:
    if content.encoder is None:
        return None
    config = content.encoder["config"]
    if config is None:
        raise InvalidInputError(
            f"the classifier was saved with an encoder of your own ({content.encoder['class']}); pass it "
            "again: RetrievalClassifier.load(path, encoder)"
        )
    if not allow_remote:
        check_model(config, folder)
    from clipretrieval.encoding.staged import StagedEncoder

    try:
        return StagedEncoder.from_config(config)
    except TypeError as error:  # arguments that it does not have
        raise StoreCorruptedError(f"{content.path} is damaged: encoder.config: {error}") from error
    except InvalidInputError as error:
        raise InvalidInputError(f"the encoder that {content.path} names cannot be built: {error}") from error


def describe(folder: Path) -> ClassifierFile:
    """Return what a saved classifier's own file says of it; nothing else is opened."""
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
        return _classifier_file.read(folder)
    except OSError as error:
        raise StoreUnavailableError(f"{file} cannot be read: {error.strerror or error}") from error
