"""What is kept in a folder, opened: a classifier or a cascade."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import typer

from clipretrieval.cli.arguments import check_texts_count, is_given, option_of
from clipretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    from clipretrieval.cascade.cascade_classifier import CascadeClassifier
    from clipretrieval.classifier import RetrievalClassifier
    from clipretrieval.encoding.onnx.onnx_encoder import OnnxEncoder
    from clipretrieval.persistence.read_only_classifier import ReadOnlyClassifier

    Kept: TypeAlias = RetrievalClassifier | CascadeClassifier
    Asked: TypeAlias = ReadOnlyClassifier | CascadeClassifier

__all__ = [
    "change_head",
    "closing_stores",
    "is_cascade",
    "label_by_name",
    "labels_by_name",
    "load_cascade_of",
    "load_for_images",
    "load_kept",
    "load_single",
    "load_to_ask",
    "modules_to_ask",
    "refuse_answering",
]

_ANSWERING = ("head", "priors", "text_weight", "class_names", "template")
"""Options that change how a kept classifier answers."""


def is_cascade(folder: Path) -> bool:
    """Tell whether a folder holds a cascade, from its own file alone."""
    from clipretrieval.persistence.saving import describe

    return describe(folder).cascade is not None


def load_kept(folder: Path, allow_remote: bool, encoder: OnnxEncoder | None = None) -> Kept:
    """Open what a folder holds, a classifier or a cascade; an encoder stands in for the classifier's own."""
    if is_cascade(folder):
        _refuse_for_cascade(folder, encoder)
        return load_cascade_of(folder, allow_remote)
    from clipretrieval.classifier import RetrievalClassifier

    return RetrievalClassifier.load(folder, encoder, allow_remote=allow_remote)


def load_for_images(folder: Path, allow_remote: bool, encoder: OnnxEncoder | None = None) -> Kept:
    """Open what a folder holds, which can be given images.

    Raises
    ------
    InvalidInputError
        If it has no encoder.
    """
    made = load_kept(folder, allow_remote, encoder)
    _check_encoder(made, folder)
    return made


def load_to_ask(folder: Path, allow_remote: bool, encoder: OnnxEncoder | None = None) -> Asked:
    """Open what a folder holds, which is given images and not changed: without scikit-learn, if it can be.

    Raises
    ------
    InvalidInputError
        If it has no encoder.
    """
    if is_cascade(folder):
        _refuse_for_cascade(folder, encoder)
        return load_cascade_of(folder, allow_remote)
    from clipretrieval.persistence.read_only_classifier import ReadOnlyClassifier

    made = ReadOnlyClassifier.load(folder, encoder, allow_remote=allow_remote)
    _check_encoder(made, folder)
    return made


def modules_to_ask(folder: Path, *, exported: bool) -> tuple[str, ...]:
    """Return what asking a folder's classifier takes of the package; the engine is what takes torch."""
    from clipretrieval.encoding.weights.model_source import ONNX
    from clipretrieval.persistence.saving import describe

    content = describe(folder)
    kind = "persistence.read_only" if content.cascade is None else "cascade.cascade"
    config = (content.encoder or {}).get("config") or {"stage": "pixel"}
    # An exported encoder's configuration names no stage, as its file does.
    runs_torch = not exported and config.get("stage", "pixel") != "pixel" and find_spec("torch") is not None
    modules = [f"{kind}_classifier", "encoding.staged_encoder", "explanation"]
    if exported or str(config.get("model")).startswith(ONNX):
        modules.append("encoding.onnx.onnx_encoder")
    elif runs_torch:
        modules += ["encoding.engine.engine", "encoding.engine.planning"]
    return tuple(modules)


def _refuse_for_cascade(folder: Path, encoder: OnnxEncoder | None) -> None:
    if encoder is not None:
        raise InvalidInputError(
            f"{str(folder)!r} holds a cascade, whose encoder stops at several stages, and an exported "
            "one has a single stage; leave --onnx out"
        )


def _check_encoder(made: Kept | Asked, folder: Path) -> None:
    if made.encoder is None:
        with closing_stores(made):
            raise InvalidInputError(
                f"the classifier in {str(folder)!r} was fitted on vectors and has no encoder, so it takes no "
                "images; use it in Python: RetrievalClassifier.load(…).predict(vectors)"
            )


def load_single(
    folder: Path, allow_remote: bool, what: str, encoder: OnnxEncoder | None = None
) -> RetrievalClassifier:
    """Open a classifier of one stage for images; `what` says who cannot do anything with a cascade."""
    if is_cascade(folder):
        raise InvalidInputError(
            f"{str(folder)!r} holds a cascade, which {what} cannot take: its exits work together. Set how "
            "sure they have to be by clipretrieval calibrate, or name a classifier of one stage"
        )
    made: Any = load_for_images(folder, allow_remote, encoder)
    found: RetrievalClassifier = made
    return found


def load_cascade_of(folder: Path, allow_remote: bool) -> CascadeClassifier:
    """Open the cascade of a folder that holds one."""
    from clipretrieval.cascade.cascade_classifier import CascadeClassifier

    return CascadeClassifier.load(folder, allow_remote=allow_remote)


@contextmanager
def closing_stores(made: Kept | Asked) -> Iterator[None]:
    """Close a classifier's store, or those of a cascade's exits, at the end of the block."""
    with ExitStack() as closed:
        for each in getattr(made, "exits_", (made,)):
            closed.callback(each.store_.close)
        yield


def labels_by_name(made: Kept | Asked, labels: Sequence[str]) -> list[Any]:
    """Return labels in the type that a classifier was fitted with, found by their names."""
    from clipretrieval._util.labels import Spelling

    known = {str(each): each for each in made.classes_.tolist()}
    return [known.get(str(label), label) for label in Spelling(known).apply(list(labels))]


def label_by_name(made: Kept | Asked, name: str) -> Any:
    """Return a label that need not be a class, in the type that a classifier was fitted with.

    Raises
    ------
    InvalidInputError
        If it is of another type.
    """
    kind = type(made.classes_.tolist()[0])
    if kind is str:
        return name
    try:
        return kind(int(name))
    except ValueError as error:
        raise InvalidInputError(
            f"the classes are of the type {kind.__name__}, so {name!r} cannot be answered beside them; pass "
            "a number that none of them has, such as -1"
        ) from error


def refuse_answering(context: typer.Context, folder: Path) -> None:
    """Refuse options that change how a kept classifier answers, where it is a cascade."""
    given = [name for name in _ANSWERING if name in context.params and is_given(context, name)]
    if given and is_cascade(folder):
        raise InvalidInputError(
            f"{option_of(given[0])} cannot be used with a cascade, whose exits answer as they were made and "
            "calibrated; leave it out, or index anew with it"
        )


def change_head(context: typer.Context, made: Any, head: str, priors: str, texts: Mapping[str, Any]) -> None:
    """Give a loaded classifier the head, the priors and the texts that are on the command line, if any."""
    given = {"head": head, "priors": priors}
    changed: dict[str, Any] = {name: value for name, value in given.items() if is_given(context, name)}
    changed.update(texts)
    if not changed:
        return
    if "class_names" in texts:
        names = texts["class_names"]
        changed["class_names"] = dict(zip(labels_by_name(made, list(names)), names.values(), strict=True))
    made.set_params(**changed)
    check_texts_count(made, texts)
