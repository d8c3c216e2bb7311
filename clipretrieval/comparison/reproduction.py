"""Run the published study again: its stages, its prompts, its distance, its way of measuring time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipretrieval._util.checks import check_mapping, check_path, check_text
from clipretrieval._util.checks import shown as quoted
from clipretrieval._util.files import read_file, write_text
from clipretrieval._util.progress import Progress, check_progress, open_progress
from clipretrieval._util.secrets import MaskedDict, without_secrets
from clipretrieval._util.text import json_document
from clipretrieval.comparison.comparison import compare
from clipretrieval.comparison.reproduction_report import Reproduction, what_differs
from clipretrieval.encoding.staged_encoder import StagedEncoder
from clipretrieval.errors import InvalidInputError
from clipretrieval.images.folders import ImageFolder
from clipretrieval.stores.base import VectorStore
from clipretrieval.stores.checks import json_text
from clipretrieval.stores.registry import DEFAULT_STORE, create_store, options_for_part, options_within
from clipretrieval.zeroshot import ZeroShotClassifier

__all__ = ["STAGES", "reproduce"]

STAGES = ("pixel", "mid", "late", "final")
"""The study's origin and its three stages."""
INDEXES = "indexes"
LARGEST_NOTE = 2**20
"""Bytes."""
_RUN = "run.json"


def reproduce(
    train: ImageFolder,
    test: ImageFolder,
    encoder: StagedEncoder,
    out: str | Path,
    *,
    store: str = DEFAULT_STORE,
    store_options: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    open_clip: bool = True,
    progress: Progress | bool | None = None,
) -> Reproduction:
    """Run the study on labeled images: k = 1, squared Euclidean distance, the study's ten prompts.

    Parameters
    ----------
    train, test : ImageFolder
        With class folders.
    encoder : StagedEncoder
    out : str or Path
        Folder for the indexes, made if it is not there. A run that was interrupted goes on from there, unless
        the store keeps nothing on a disk or at a server, as ``"memory"``.
    store : str
    store_options : mapping, optional
        Each stage has a place of its own: a ``path`` gets the stage's name below it, a Chroma server's
        ``collection`` and Pinecone's ``namespace`` behind theirs.
    settings : mapping of JSON values, optional
        What `out` belongs to, besides the folders and the store. A run with others is refused there.
    open_clip, progress
        As for `compare`.

    Returns
    -------
    Reproduction

    Raises
    ------
    InvalidInputError
        If a folder has no class folders, the test images have a class that the training images lack, `out`
        belongs to a run with other settings, or the indexes there hold images that are not in `train`.
    """
    _check_folders(train, test)
    folder, store = check_path(out, "out"), check_text(store, "store")
    given, chosen = check_mapping(store_options, "store_options"), check_mapping(settings, "settings")
    json_text(chosen, "settings")
    check_progress(progress)
    places = {"train": str(train.root.resolve()), "test": str(test.root.resolve())}
    results = _ResultsFolder(folder, {**places, "store": store, **chosen})
    _check_classes(train, test)
    results.check()

    with open_progress(progress, "encoding") as shown:

        def tell(done: int, total: int | None) -> None:
            if done:
                results.claim()  # something is encoded, and is stored next
            shown(done, total)

        comparison = compare(
            train,
            test,
            encoder=encoder,
            stages=STAGES,
            zero_shot=ZeroShotClassifier(encoder, train.classes),
            stores={store: lambda stage: _open_store(store, stage, folder, MaskedDict(given))},
            timed_images=1000,  # as the study has it
            open_clip=open_clip,
            resume=True,
            progress=tell,
        )
    return Reproduction(comparison, tuple(what_differs(encoder, comparison, train, test, store)))


class _ResultsFolder:
    """A folder for one run, interrupted or not; its settings, JSON values, tell it from others."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self._note = path, path / _RUN
        self._text = json_document(without_secrets(settings), 2) + "\n"
        self._claimed = False

    def check(self) -> None:
        """Make the folder where there is none; refuse one of another run, or that cannot be used."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            text = read_file(self._note, LARGEST_NOTE).decode("utf-8") if self._note.exists() else None
            indexes = self.path / INDEXES
            if indexes.exists() and not indexes.is_dir():
                raise InvalidInputError(
                    f"{str(indexes)!r} is a file, and a folder of that name is needed for the indexes; move "
                    "it away, or pass another folder for the results"
                )
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InvalidInputError(
                f"{str(self.path)!r} cannot be used for the results: {reason}; pass another folder"
            ) from error
        if text is not None:
            self._compare(text)
            self._claimed = True

    def claim(self) -> None:
        """Write down whose the folder is, if that is not done yet."""
        if self._claimed:
            return
        try:
            write_text(self._note, self._text)
        except OSError as error:
            raise InvalidInputError(
                f"{str(self._note)!r} cannot be written: {error.strerror or error}; pass another folder for "
                "the results"
            ) from error
        self._claimed = True

    def _compare(self, text: str) -> None:
        try:
            known = json.loads(text)
            if not isinstance(known, dict):
                raise ValueError("it holds no mapping")
        except ValueError as error:
            raise InvalidInputError(
                f"{str(self._note)!r} does not tell which run the folder belongs to ({error}); pass another "
                "folder for the results, or remove the file if what the folder holds is of this run"
            ) from error
        settings = json.loads(self._text)
        differing = sorted(key for key in {*known, *settings} if known.get(key) != settings.get(key))
        if differing:
            differences = ", ".join(
                f"{key} was {known.get(key)!r} and is {settings.get(key)!r}" for key in differing
            )
            raise InvalidInputError(
                f"{str(self.path)!r} holds a run with other settings ({differences}); pass another folder "
                "for the results, or the same settings to go on with that run"
            )


def _check_folders(train: Any, test: Any) -> None:
    """Refuse what was not scanned."""
    for name, folder in (("train", train), ("test", test)):
        if not isinstance(folder, ImageFolder):
            raise InvalidInputError(
                f"{name} must be an ImageFolder, as clipretrieval.images.scan_folder returns; got "
                f"{quoted(folder)}"
            )


def _check_classes(train: ImageFolder, test: ImageFolder) -> None:
    """Refuse folders without class folders, and classes that nothing could be learned of."""
    for given in (train, test):
        if given.labels is None:
            raise InvalidInputError(
                f"no sub-folder of {str(given.root)!r} holds images; put each class's into one that is "
                "named after it"
            )
    unknown = sorted(set(test.classes) - set(train.classes))
    if unknown:
        raise InvalidInputError(
            f"{str(test.root)!r} has the class folder {unknown[0]!r}, of which {str(train.root)!r} has no "
            "image; remove it, or add images of the class to learn from"
        )


def _open_store(store: str, stage: str, folder: Path, options: dict[str, Any]) -> VectorStore:
    """Open the store of one stage, in a place of its own."""
    options = options_for_part(store, options_within(folder / INDEXES, store, options), stage)
    return create_store(store, **options)
