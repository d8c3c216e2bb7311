"""A fitted classifier as a folder: a small JSON file beside its store."""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from clipretrieval._util.checks import check_bool, check_path, shown
from clipretrieval._util.files import NotDurableError, read_file, remedy, replacing
from clipretrieval._util.labels import fitted_labels
from clipretrieval.encoding.base import Encoder
from clipretrieval.encoding.weights.model_source import ONNX
from clipretrieval.errors import (
    InvalidInputError,
    StoreCorruptedError,
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
    WeightsUnavailableError,
)
from clipretrieval.heads.voting import Voting
from clipretrieval.persistence import classifier_file
from clipretrieval.persistence.classifier_file import FILE, ClassifierFile
from clipretrieval.persistence.consent import check_model
from clipretrieval.persistence.stores import PART, keep_store, open_store, place_inside, warn_of_unsaved
from clipretrieval.retrieval.labelled_index import LabelledIndex
from clipretrieval.retrieval.parameters import check_encoder, check_store
from clipretrieval.retrieval.transform_plan import STORED, read_entry
from clipretrieval.retrieval.vectorless_store import is_vectorless
from clipretrieval.stores.base import VectorStore
from clipretrieval.stores.local.writer_lock import LOCK_NAME, WriterLock
from clipretrieval.trust.kept_trust import trust_from_bytes, trust_to_bytes
from clipretrieval.trust.trust import Trust
from clipretrieval.types import Metric

__all__ = [
    "FILE",
    "INDEXING",
    "SavedCascade",
    "SavedClassifier",
    "check_folder",
    "describe",
    "load",
    "load_cascade",
    "read_trust",
    "save",
]

INDEXING = "indexing.json"
"""What the command line keeps in the folder while it fills it."""
_FILES = f"{re.escape(FILE)}|{re.escape(INDEXING)}"
HELD_OUT = r"held-out-[0-9a-f]{8}"
"""Names of the files of held-out images."""
LARGEST_HELD_OUT = 2**33
"""Bytes of one."""
OWN = (
    rf"{PART}|{HELD_OUT}|{re.escape(LOCK_NAME)}|{re.escape(INDEXING)}|\.({PART}|{HELD_OUT}|{_FILES})\..*\.tmp"
)
_ATTEMPTS = 10

Opened = TypeVar("Opened")


@dataclass(frozen=True, eq=False)
class SavedClassifier:
    """What a folder holds of a classifier, opened.

    Attributes
    ----------
    index : LabelledIndex
    params : mapping
        The arguments that are about answering.
    store : str or VectorStore
        What the classifier's argument of this name was.
    feature_names : sequence of str
    saved_in : dict of str to (str or None)
        As for `save`.
    trust : Trust
    """

    index: LabelledIndex
    params: Mapping[str, Any]
    store: str | VectorStore
    feature_names: Sequence[str]
    saved_in: dict[str, str | None]
    trust: Trust = field(default_factory=Trust)


@dataclass(frozen=True, eq=False)
class SavedCascade:
    """What a folder holds of a cascade, opened.

    Attributes
    ----------
    indexes : list of LabelledIndex
        Of each exit.
    encoder : Encoder
        What all exits' are made of.
    params : mapping
        As for `SavedClassifier`, and ``stages``.
    store : str or dict of str to VectorStore
        What the cascade's argument of this name was.
    state : mapping of JSON values
        What `save` was given.
    saved_in : dict of str to (str or None)
        As for `save`.
    """

    indexes: list[LabelledIndex]
    encoder: Encoder
    params: Mapping[str, Any]
    store: str | dict[str, VectorStore]
    state: Mapping[str, Any]
    saved_in: dict[str, str | None]


def save(
    indexes: Mapping[str | None, LabelledIndex],
    path: str | Path,
    *,
    params: Mapping[str, Any],
    feature_names: Sequence[str] = (),
    saved_in: dict[str, str | None],
    overwrite: bool,
    encoder: Encoder | None = None,
    cascade: Mapping[str, Any] | None = None,
    trust: Trust | None = None,
    answers: Mapping[str, Any] | None = None,
) -> None:
    """Write a fitted classifier into a folder; see `RetrievalClassifier.save`.

    Parameters
    ----------
    indexes : mapping of (str or None) to LabelledIndex
        Of each exit of a cascade by its stage, or the only one.
    path, overwrite
        As for `RetrievalClassifier.save`.
    params : mapping
        The arguments that are about answering, as JSON values.
    feature_names : sequence of str
    saved_in : dict of str to (str or None)
        Folders that the classifier was loaded from or saved to, and the digest of what was there then; gets
        this one.
    encoder : Encoder, optional
        What those of all exits are made of.
    cascade : mapping of JSON values, optional
        What a cascade's class wants to have back.
    trust : Trust, optional
    answers : mapping of JSON values, optional
        ``unknown`` and ``max_turned_away``, where something is answered so, or `trust` is not empty.
    """
    stores = [index.records for index in indexes.values()]
    folder, overwrite = check_path(path, "path"), check_bool(overwrite, "overwrite")
    try:
        check_folder(folder, *(place_inside(store, folder) for store in stores))
        folder.mkdir(parents=True, exist_ok=True)
        lock = WriterLock(folder)
        lock.acquire()
        try:
            if not overwrite:
                _check_unchanged(saved_in, folder)
            kept = _save(
                indexes, folder, params, feature_names, saved_in, encoder, cascade, trust or Trust(), answers
            )
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
    for store, each in zip(stores, kept, strict=True):
        if each is None:
            warn_of_unsaved(store)


def _save(
    indexes: Mapping[str | None, LabelledIndex],
    folder: Path,
    params: Mapping[str, Any],
    feature_names: Sequence[str],
    saved_in: dict[str, str | None],
    encoder: Encoder | None,
    cascade: Mapping[str, Any] | None,
    trust: Trust,
    answers: Mapping[str, Any] | None,
) -> list[dict[str, Any] | None]:
    """Return how each store can be opened again; see `keep_store`."""
    index, kept = list(indexes.values())[-1], list[dict[str, Any] | None]()
    whole = None
    if cascade is not None:
        dims = [each.dim for each in indexes.values()]
        whole = {"stages": list(indexes), "stores": kept, "dims": dims, "state": dict(cascade)}
    fields = {
        "params": dict(params),
        "encoder": _describe_encoder(encoder or index.encoder),
        "label_kind": index.classes.kind,
        "n_features_in": index.dim,
        "feature_names_in": list(feature_names) or None,
        "cascade": whole,
    }
    held_out: str | None = None
    try:
        kept += (keep_store(each.records, folder) for each in indexes.values())
        if trust:
            content, held_out = trust_to_bytes(trust), f"held-out-{secrets.token_hex(4)}"
            try:
                with replacing(folder / held_out) as temporary:
                    temporary.write_bytes(content)
            except NotDurableError as error:  # nothing names it yet
                raise OSError(error.errno, error.strerror or str(error)) from error
            digest = hashlib.sha256(content).hexdigest()
            answers = {**(answers or {}), "file": held_out, "sha256": digest}
        classifier_file.write(folder, {**fields, "store": kept[-1], "trust": answers})
    except NotDurableError:  # the new file is in place, and names the store
        saved_in[_place(folder)] = classifier_file.digest_in(folder)
        raise
    except BaseException:
        for copy in _copies(kept):
            shutil.rmtree(folder / copy, ignore_errors=True)
        if held_out is not None:
            (folder / held_out).unlink(missing_ok=True)
        raise
    saved_in[_place(folder)] = classifier_file.digest_in(folder)
    for part in _own_things(folder):
        if part.is_dir() and part.name not in _copies(kept):
            shutil.rmtree(part, ignore_errors=True)
        elif part.name.endswith(".tmp") or (
            re.fullmatch(HELD_OUT, part.name) is not None and part.name != held_out
        ):
            part.unlink(missing_ok=True)
    return kept


def _copies(kept: Sequence[Mapping[str, Any] | None]) -> set[str]:
    """Return the names of the copies of stores among what `keep_store` returned."""
    return {str(each["folder"]) for each in kept if each is not None and "folder" in each}


def _check_unchanged(saved_in: Mapping[str, str | None], folder: Path) -> None:
    """Refuse to replace what was saved into a folder since a classifier was loaded from there."""
    known = saved_in.get(_place(folder))
    if known is None:
        return
    try:
        found = classifier_file.digest_in(folder)
    except StoreError:
        return  # nobody can load what is there
    if found not in (None, known):
        raise StoreLockedError(
            f"the classifier in {folder} was saved anew since this one was loaded from there or saved to it, "
            "and saving would undo that. Load it again and repeat your changes, save into another folder, or "
            "pass overwrite=True to replace it"
        )


def _place(folder: Path) -> str:
    return str(folder.resolve())


def load(
    path: str | Path, encoder: Encoder | None, *, store: VectorStore | None, allow_remote: bool
) -> SavedClassifier:
    """Open what `save` wrote; see `RetrievalClassifier.load`."""
    folder, allow_remote = check_path(path, "path"), check_bool(allow_remote, "allow_remote")
    if store is not None:
        check_store(store)

    def open_classifier(content: ClassifierFile) -> SavedClassifier:
        if content.cascade is not None:
            raise InvalidInputError(f"{folder} holds a cascade; open it with CascadeClassifier.load")
        return _load(folder, content, encoder, store, allow_remote)

    return _unchanged(folder, open_classifier)


def load_cascade(
    path: str | Path,
    encoder: Encoder | None,
    *,
    stores: Mapping[str, VectorStore] | None,
    allow_remote: bool,
    at_stage: Callable[[Encoder, str], Encoder],
) -> SavedCascade:
    """Open a cascade that `save` wrote; see `CascadeClassifier.load`.

    Parameters
    ----------
    path, encoder, stores, allow_remote
        As for `CascadeClassifier.load`.
    at_stage : callable
        Returns an encoder that stops at a stage.
    """
    folder, allow_remote = check_path(path, "path"), check_bool(allow_remote, "allow_remote")
    if stores is not None and not isinstance(stores, Mapping):
        raise InvalidInputError(f"stores must be a mapping of stage to store, or None; got {shown(stores)}")
    for store in (stores or {}).values():
        check_store(store)

    def open_cascade(content: ClassifierFile) -> SavedCascade:
        if content.cascade is None:
            raise InvalidInputError(f"{folder} holds no cascade; open it with RetrievalClassifier.load")
        return _load_cascade(folder, content, content.cascade, encoder, stores, allow_remote, at_stage)

    return _unchanged(folder, open_cascade)


def _unchanged(folder: Path, open_: Callable[[ClassifierFile], Opened]) -> Opened:
    """Open what a folder says, again where another process saves into it at the same time."""
    for _ in range(_ATTEMPTS):
        content = describe(folder)
        try:
            return open_(content)
        except (StoreCorruptedError, StoreUnavailableError):
            # Another process may have saved anew between our reading of the two.
            if describe(folder) == content:
                raise
    raise StoreUnavailableError(f"{folder} changes faster than it can be read; load it again later")


def _load_cascade(
    folder: Path,
    content: ClassifierFile,
    cascade: Mapping[str, Any],
    encoder: Encoder | None,
    stores: Mapping[str, VectorStore] | None,
    allow_remote: bool,
    at_stage: Callable[[Encoder, str], Encoder],
) -> SavedCascade:
    stages = cascade["stages"]
    if stores is not None and set(stores) != set(stages):
        raise InvalidInputError(
            f"stores must have one for each of {', '.join(map(repr, stages))}; got {shown(list(stores))}"
        )
    if stores is None and None in cascade["stores"]:
        raise InvalidInputError(
            "the cascade was saved with a store that cannot be opened by itself; pass one for each exit: "
            "CascadeClassifier.load(path, stores={stage: your_store, …})"
        )
    if encoder is None:
        encoder = _rebuild_encoder(content, folder, allow_remote)
    if encoder is None:
        raise StoreCorruptedError(f"{content.path} is damaged: a cascade has an encoder, and it names none")
    indexes = list[LabelledIndex]()
    try:
        for stage, kept, dim in zip(stages, cascade["stores"], cascade["dims"], strict=True):
            one = replace(content, store=kept, n_features_in=dim)
            given = None if stores is None else stores[stage]
            indexes.append(_load(folder, one, at_stage(encoder, stage), given, allow_remote).index)
    except BaseException:
        for index in indexes if stores is None else ():
            index.store.close()
        raise
    opened = {stage: index.records for stage, index in zip(stages, indexes, strict=True)}
    names = {None if each is None else each["name"] for each in cascade["stores"]}
    name = names.pop() if len(names) == 1 and stores is None else None
    return SavedCascade(
        indexes,
        encoder,
        {**content.params, "stages": stages},
        opened if name is None else str(name),
        cascade["state"],
        {_place(folder): content.digest},
    )


def _load(
    folder: Path,
    content: ClassifierFile,
    encoder: Encoder | None,
    store: VectorStore | None,
    allow_remote: bool,
) -> SavedClassifier:
    opened: VectorStore | None = store
    try:
        if opened is None:
            opened = open_store(content.store, folder, allow_remote=allow_remote)
        named = opened if store is not None or content.store is None else str(content.store["name"])
        if encoder is None:
            encoder = _rebuild_encoder(content, folder, allow_remote)
        check_encoder(encoder)
        params, dim = content.params, content.n_features_in
        metric = Metric(params["metric"])
        Voting(params["k"], params["weights"], params["temperature"], metric).check()
        kept = 1 if is_vectorless(opened) else (read_entry(opened.read_manifest()) or {}).get("dim") or dim
        if store is None and opened.dim not in (None, kept):
            raise StoreCorruptedError(
                f"{content.path} is damaged: n_features_in is {dim}, and its store holds vectors of "
                f"dimension {opened.dim}. Restore the folder from a copy"
            )
        index = LabelledIndex.open(
            opened, encoder, metric, params["normalize"], dim=dim, kind=content.label_kind, plan=STORED
        )
        trust, answers = read_trust(folder, content)
    except BaseException:
        if store is None and opened is not None:
            opened.close()
        raise
    saved_in: dict[str, str | None] = {_place(folder): content.digest}
    names = content.feature_names_in or ()
    return SavedClassifier(index, {**params, **answers}, named, names, saved_in, trust)


def read_trust(folder: Path, content: ClassifierFile) -> tuple[Trust, dict[str, Any]]:
    """Read what `calibrate` and `conformalize` were given, and the arguments `unknown` and `max_turned_away`.

    Raises
    ------
    StoreCorruptedError
        If a file is missing or damaged.
    """
    if content.trust is None:
        return Trust(), {}
    unknown = content.trust["unknown"]
    if unknown is not None:
        (unknown,) = fitted_labels([unknown], content.label_kind)
    answers = {"unknown": unknown, "max_turned_away": content.trust["max_turned_away"]}
    if "file" not in content.trust:
        return Trust(), answers
    name = content.trust["file"]
    if re.fullmatch(HELD_OUT, name) is None:
        raise StoreCorruptedError(f"{content.path} is damaged: trust.file is {shown(name)}")
    try:
        found = read_file(folder / name, LARGEST_HELD_OUT)
    except OSError as error:
        raise StoreCorruptedError(
            f"{folder} lacks its held-out images, {name}, or they cannot be read "
            f"({error.strerror or error}); restore it from a copy"
        ) from error
    if hashlib.sha256(found).hexdigest() != content.trust["sha256"]:
        raise StoreCorruptedError(
            f"{folder / name} is damaged: its content does not match its checksum. Restore it from a copy"
        )
    return trust_from_bytes(found, content.label_kind, content.n_features_in), answers


def check_folder(folder: Path, *stores: Path | None) -> None:
    """Refuse to keep a classifier where other things are.

    Parameters
    ----------
    folder : Path
        May be missing.
    *stores : Path or None
        Where in it the classifier's own stores lie.

    Raises
    ------
    InvalidInputError
    """
    folder = check_path(folder, "folder")
    if folder.exists() and not folder.is_dir():
        raise InvalidInputError(f"{folder} is a file; pass a folder to save into")
    if not folder.is_dir():
        return
    own = {store.parts[0] for store in stores if store is not None}
    names = {child.name for child in folder.iterdir()} - own
    # A first save that was killed, or is still going on, has put nothing there but things of its own.
    if FILE not in names and not all(re.fullmatch(OWN, name) for name in names):
        raise InvalidInputError(
            f"{folder} holds other things and no saved classifier; pass a new or an empty folder"
        )


def _own_things(folder: Path) -> list[Path]:
    """List what saving puts beside ``classifier.json``: copies of stores, its lock, unfinished files."""
    return [child for child in folder.iterdir() if re.fullmatch(OWN, child.name)]


def _describe_encoder(encoder: Encoder | None) -> dict[str, Any] | None:
    if encoder is None:
        return None
    ours = [
        getattr(sys.modules.get(f"clipretrieval.encoding.{module}"), name, None)
        for module, name in (("staged_encoder", "StagedEncoder"), ("onnx.onnx_encoder", "OnnxEncoder"))
    ]
    config = encoder.config() if type(encoder) in ours else None  # type: ignore[attr-defined]
    if config is not None and not isinstance(config["model"], str):
        config = None  # a model in memory: it has to be given again
    return {"class": type(encoder).__name__, "config": config}


def _rebuild_encoder(content: ClassifierFile, folder: Path, allow_remote: bool) -> Encoder | None:
    if content.encoder is None:
        return None
    config = content.encoder["config"]
    if config is None:
        made = content.encoder["class"]
        told = (
            "an encoder of your own" if made != "StagedEncoder" else "an encoder of a model built in memory"
        )
        raise InvalidInputError(
            f"the classifier was saved with {told} ({made}); pass it again, or one with the same weights: "
            "RetrievalClassifier.load(path, encoder)"
        )
    if not allow_remote:
        check_model(config, folder)
    if config["model"].startswith(ONNX):
        from clipretrieval.encoding.onnx.onnx_encoder import OnnxEncoder as Saved
    else:
        from clipretrieval.encoding.staged_encoder import StagedEncoder as Saved  # type: ignore[assignment]
    try:
        return Saved.from_config(config)
    except TypeError as error:  # arguments that it does not have
        raise StoreCorruptedError(f"{content.path} is damaged: encoder.config: {error}") from error
    except WeightsUnavailableError as error:
        if not config["model"].startswith(ONNX):
            raise
        raise WeightsUnavailableError(
            f"{error}. {content.path} names it; if it lies elsewhere now, pass it: "
            "RetrievalClassifier.load(path, OnnxEncoder(file))"
        ) from error
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
        return classifier_file.read(folder)
    except OSError as error:
        raise StoreUnavailableError(f"{file} cannot be read: {error.strerror or error}") from error
