"""Run the published study again: its stages, its prompts, its distance, its way of measuring time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipretrieval._util.checks import check_mapping, check_path, check_text
from clipretrieval._util.checks import shown as quoted
from clipretrieval._util.progress import Progress, check_progress, open_progress
from clipretrieval._util.repr import short_repr
from clipretrieval._util.secrets import MaskedDict
from clipretrieval.comparison.comparison import compare
from clipretrieval.comparison.report import ComparisonReport
from clipretrieval.comparison.reproduction_report import (
    FIGURES,
    as_html,
    as_markdown,
    draw_histograms,
    histogram_name,
    study_rows,
    what_differs,
)
from clipretrieval.comparison.results_folder import INDEXES, ResultsFolder
from clipretrieval.encoding.staged_encoder import StagedEncoder
from clipretrieval.errors import InvalidInputError
from clipretrieval.evaluation.writing import written
from clipretrieval.images.folders import ImageFolder
from clipretrieval.stores import create_store
from clipretrieval.stores.base import VectorStore
from clipretrieval.stores.checks import json_text
from clipretrieval.zeroshot import ZeroShotClassifier

__all__ = ["FILES", "STAGES", "Reproduction", "reproduce"]

STAGES = ("pixel", "mid", "late", "final")
"""The study's origin and its three stages."""
REPORTS = ("report.json", "report.md", "report.html")
FILES = (*REPORTS, *map(histogram_name, FIGURES))
"""What `Reproduction.save` writes."""


@dataclass(frozen=True, eq=False)
class Reproduction:
    """Our figures beside the study's.

    Attributes
    ----------
    comparison : ComparisonReport
    differences : tuple of str
        In what this run is not the study's, a sentence each.
    """

    comparison: ComparisonReport
    differences: tuple[str, ...]

    def __repr__(self) -> str:
        rows = {row["name"]: round(row["accuracy"], 4) for row in self.rows}
        return short_repr(self, accuracy=rows, differences=len(self.differences))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One a stage: ours, the study's, and the difference; see `to_dict`."""
        return study_rows(self.comparison)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values.

        Returns
        -------
        dict
            That of the comparison, with the ``kind`` ``"reproduction"``, and ``study``: for each stage
            ``name``, ``accuracy``, ``study_accuracy``, ``accuracy_difference`` (ours minus the study's),
            ``s_per_1000``, ``study_s_per_1000``, ``s_ratio`` (the study's divided by ours), None where the
            study has no figure; and ``differences``.
        """
        return {
            **self.comparison.to_dict(),
            "kind": "reproduction",
            "study": self.rows,
            "differences": list(self.differences),
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """Return `to_dict` as JSON, and write it to `path`, atomically, if one is given."""
        return written(path, json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))

    def to_markdown(self, path: str | Path | None = None) -> str:
        """Return the tables as Markdown, and write them to `path`, atomically, if one is given."""
        return written(path, as_markdown(self))

    def to_html(self, path: str | Path | None = None) -> str:
        """Return all of it as one HTML page, and write it to `path`, atomically, if one is given."""
        return written(path, as_html(self))

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``report.json``, ``report.md``, ``report.html`` and three histograms into a folder.

        Returns
        -------
        list of Path
            What was written. The histograms need the extra ``plots``.

        Raises
        ------
        InvalidInputError
            If a file cannot be written.
        MissingDependencyError
            If matplotlib is not installed; the reports are there then.
        """
        root = Path(folder)
        paths = [root / name for name in REPORTS]
        self.to_json(paths[0])
        self.to_markdown(paths[1])
        self.to_html(paths[2])
        return [*paths, *draw_histograms(self.comparison, root)]


def reproduce(
    train: ImageFolder,
    test: ImageFolder,
    encoder: StagedEncoder,
    out: str | Path,
    *,
    store: str = "faiss",
    store_options: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    open_clip: bool = True,
    progress: Progress | bool | None = None,
) -> Reproduction:
    """Run the study on labelled pictures: k = 1, squared Euclidean distance, the study's ten prompts.

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
        belongs to a run with other settings, or the indexes there hold pictures that are not in `train`.
    """
    _check_folders(train, test)
    folder, store = check_path(out, "out"), check_text(store, "store")
    given, chosen = check_mapping(store_options, "store_options"), check_mapping(settings, "settings")
    json_text(chosen, "settings")
    check_progress(progress)
    places = {"train": str(train.root.resolve()), "test": str(test.root.resolve())}
    results = ResultsFolder(folder, {**places, "store": store, **chosen})
    _check_classes(train, test)
    results.check()

    with open_progress(progress, "encoding") as shown:

        def tell(done: int, total: int | None) -> None:
            results.claim()  # something is stored now
            shown(done, total)

        comparison = compare(
            train,
            test,
            encoder=encoder,
            stages=STAGES,
            zero_shot=ZeroShotClassifier(encoder, train.classes),
            stores={store: lambda stage: _open_store(store, stage, folder, MaskedDict(given))},
            open_clip=open_clip,
            resume=True,
            progress=tell,
        )
    return Reproduction(comparison, tuple(what_differs(encoder, comparison, train, test, store)))


def _check_folders(train: Any, test: Any) -> None:
    """Refuse what was not scanned."""
    for name, folder in (("train", train), ("test", test)):
        if not isinstance(folder, ImageFolder):
            raise InvalidInputError(
                f"{name} must be an ImageFolder, as clipretrieval.images.scan_folder returns; got "
                f"{quoted(folder)}"
            )


def _check_classes(train: ImageFolder, test: ImageFolder) -> None:
    """Refuse folders without class folders, and classes that nothing could be learnt of."""
    for given in (train, test):
        if given.labels is None:
            raise InvalidInputError(
                f"no sub-folder of {str(given.root)!r} holds pictures; put each class's into one that is "
                "named after it"
            )
    unknown = sorted(set(test.classes) - set(train.classes))
    if unknown:
        raise InvalidInputError(
            f"{str(test.root)!r} has the class folder {unknown[0]!r}, of which {str(train.root)!r} has no "
            "picture; remove it, or add pictures of the class to learn from"
        )


def _open_store(store: str, stage: str, folder: Path, options: dict[str, Any]) -> VectorStore:
    """Open the store of one stage, in a place of its own."""
    if store in ("faiss", "chroma") and "host" not in options:
        options.setdefault("path", str(folder / INDEXES))
    if isinstance(options.get("path"), str | Path):
        place = Path(options["path"]) / stage
        place.parent.mkdir(parents=True, exist_ok=True)
        options["path"] = str(place)
        return create_store(store, **options)
    key = {"chroma": "collection", "pinecone": "namespace"}.get(store)
    if key:
        options[key] = f"{options.get(key, 'study')}-{stage}"
    return create_store(store, **options)
