"""``clipretrieval merge``: classifiers that were filled apart, made one."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipretrieval._util.text import readable
from clipretrieval.cli.arguments import AllowRemote
from clipretrieval.cli.console import quiet_libraries, say
from clipretrieval.cli.interrupt import interruptible
from clipretrieval.cli.kept import is_cascade
from clipretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    from clipretrieval.classifier import RetrievalClassifier
    from clipretrieval.stores.base import VectorStore

__all__ = ["merge_command"]

_ANSWERING = (
    *("k", "weights", "temperature", "head", "priors", "text_weight", "class_names", "templates"),
    *("metric", "normalize"),
)
"""Arguments of the first shard that the merged classifier gets."""


def merge_command(
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Folder to save the classifier in, or one to add the shards to."),
    ],
    shards: Annotated[list[str], typer.Argument(metavar="SHARD", help="Folders written by index.")],
    on_conflict: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="raise, or what to keep of ids with several labels or vectors: first or last.",
        ),
    ] = "raise",
    allow_remote: AllowRemote = False,
) -> None:
    """Make one classifier of several with the same encoder, which were filled apart."""
    from clipretrieval._util.checks import check_path

    with quiet_libraries(), interruptible("classifier", "encoding.staged_encoder", "vectors.merging"):
        from clipretrieval._util.progress import progress_bar
        from clipretrieval.classifier import RetrievalClassifier
        from clipretrieval.vectors.merging import merge_stores

        with ExitStack() as closed:
            opened = [_load(check_path(shard, "SHARD"), allow_remote, closed) for shard in shards]
            made = _existing(out, allow_remote, closed)
            target = made.store_ if made is not None else _new_store(out, opened[0], closed)
            with progress_bar("merging") as progress:
                report = merge_stores(
                    target, [each.store_ for each in opened], on_conflict, progress=progress
                )
            if made is None:
                given = opened[0].get_params(deep=False)
                params = {name: given[name] for name in _ANSWERING}
                made = RetrievalClassifier.from_store(target, opened[0].encoder, **params)
            made.save(out)
            say(str(report))
            say(f"{len(made.classes_)} classes, kept in {readable(out)}")


def _load(folder: Path, allow_remote: bool, closed: ExitStack) -> RetrievalClassifier:
    from clipretrieval.classifier import RetrievalClassifier

    if is_cascade(folder):
        raise InvalidInputError(
            f"{str(folder)!r} holds a cascade, and only classifiers of one stage can be merged"
        )
    made = RetrievalClassifier.load(folder, allow_remote=allow_remote)
    closed.callback(made.store_.close)
    return made


def _existing(folder: Path, allow_remote: bool, closed: ExitStack) -> RetrievalClassifier | None:
    """Open the classifier that the shards are added to; None where the folder holds none yet."""
    from clipretrieval.cli.settings import VECTORS
    from clipretrieval.persistence.saving import FILE, INDEXING, check_folder

    if (folder / FILE).exists():
        return _load(folder, allow_remote, closed)
    if (folder / INDEXING).exists():
        raise InvalidInputError(
            f"{str(folder)!r} holds what an interrupted index has left; finish that by clipretrieval index … "
            "--resume, or name another folder"
        )
    check_folder(folder, Path(VECTORS))
    return None


def _new_store(folder: Path, first: RetrievalClassifier, closed: ExitStack) -> VectorStore:
    """Open the store in the folder; what a merge that was interrupted has left is gone on with."""
    from clipretrieval.cli.settings import VECTORS
    from clipretrieval.retrieval.parameters import make_store
    from clipretrieval.stores.registry import DEFAULT_STORE, options_within
    from clipretrieval.types import Metric

    folder.mkdir(parents=True, exist_ok=True)
    options = options_within(folder / VECTORS, DEFAULT_STORE, {})
    store = make_store(DEFAULT_STORE, options, Metric.parse(first.metric))
    closed.callback(store.close)
    return store
