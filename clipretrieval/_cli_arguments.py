"""Arguments of the commands, checked before any work begins."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

if TYPE_CHECKING:
    import typer

    from clipretrieval.images import ImageFolder

__all__ = [
    *("check_classes", "check_either", "checked_output", "labelled_folder", "labelled_images"),
    *("store_options", "training_folder", "weights"),
]

_JSON_NAMES = {bool: "true or false", int: "a whole number", float: "a number", type(None): "null"}


def checked_output(path: Path | None, option: str) -> Path | None:
    """Follow links to where a report is to go, and find out whether a file can be written there."""
    from clipretrieval._atomic import replacing
    from clipretrieval.errors import InvalidInputError

    if path is None:
        return None

    class Tried(Exception):  # noqa: N818  not an error
        pass

    try:
        target = path.resolve()
        if target.exists() and not target.is_file():
            raise InvalidInputError(
                f"{option}: {str(path)!r} is not a file; name a new one, or one to replace"
            )
        with suppress(Tried), replacing(target):
            raise Tried
    except (OSError, RuntimeError) as error:  # RuntimeError: links that run in a circle
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidInputError(f"{option}: {str(path)!r} cannot be written: {reason}") from error
    return target


_FITTING = (
    *("model", "pretrained", "stage", "k", "weights", "metric", "store", "store_option"),
    *("limit_train", "batch_size", "device"),
)


def check_either(context: typer.Context, train: str | None, kept: Path | None) -> None:
    """Require a folder to fit on or a kept classifier, and refuse settings that the latter has already."""
    from clipretrieval._cli_settings import is_given
    from clipretrieval.errors import InvalidInputError

    if (train is None) == (kept is None):
        raise InvalidInputError("pass --train DIR to fit on, or --classifier DIR, one of the two")
    if kept is not None:
        for name in _FITTING:
            if is_given(context, name):
                raise InvalidInputError(
                    f"--{name.replace('_', '-')} does not go with --classifier, which has its own settings"
                )


def labelled_images(path: str, limit: int | None, option: str) -> tuple[list[Path], list[str]]:
    """List a folder's images with their labels, or so many of them, going round the classes."""
    folder = labelled_folder(path, limit, option)
    return list(folder.paths), list(folder.labels or ())


def labelled_folder(path: str, limit: int | None, option: str) -> ImageFolder:
    """Scan a folder with class folders, and keep so many images of it, going round the classes."""
    from clipretrieval.errors import InvalidInputError
    from clipretrieval.images import scan_folder

    if limit is not None and limit < 1:
        raise InvalidInputError(f"{option} must be at least 1; got {limit}")
    folder = scan_folder(path)
    if folder.labels is None:
        raise InvalidInputError(
            f"no sub-folder of {path!r} holds pictures; put each class's into one that is named after it"
        )
    return _limited(folder, limit)


def _limited(folder: ImageFolder, limit: int | None) -> ImageFolder:
    """Keep so many images, going round the classes."""
    from clipretrieval.images import ImageFolder

    given = folder.labels or ()
    turns = dict.fromkeys(folder.classes, 0)
    ranked = []
    for place, label in enumerate(given):
        ranked.append((turns[label], place))
        turns[label] += 1
    taken = sorted(place for _, place in sorted(ranked)[:limit])
    labels = tuple(given[place] for place in taken)
    return ImageFolder(
        folder.root, tuple(folder.paths[place] for place in taken), labels, tuple(sorted(set(labels)))
    )


def training_folder(path: str, limit: int | None, option: str) -> ImageFolder:
    """Scan a folder to learn from, and keep so many images of it, at least one of each class."""
    from clipretrieval.errors import InvalidInputError

    folder = labelled_folder(path, None, option)
    if limit is not None and limit < len(folder.classes):
        raise InvalidInputError(
            f"{option} must be at least {len(folder.classes)}, one for each class of {path!r}; got {limit}"
        )
    return _limited(folder, limit)


def check_classes(train: ImageFolder, test: ImageFolder, way_out: str) -> None:
    """Refuse classes to be answered that nothing can be learnt of; `way_out` ends the advice."""
    from clipretrieval.errors import InvalidInputError

    unknown = sorted(set(test.classes) - set(train.classes))
    if unknown:
        raise InvalidInputError(
            f"{str(test.root)!r} has the class folder {unknown[0]!r}, and {str(train.root)!r} has not; "
            f"remove it, add pictures of the class to learn from, {way_out}"
        )


def weights(pretrained: str) -> str | None:
    """Return what ``--pretrained`` stands for."""
    return None if pretrained.lower() == "none" else pretrained


def store_options(store: str, pairs: list[str]) -> dict[str, Any]:
    """Read KEY=VALUE pairs for a store."""
    from clipretrieval.errors import InvalidInputError
    from clipretrieval.stores.registry import store_class

    try:
        hints = get_type_hints(store_class(store).__init__)
    except (NameError, TypeError):  # annotations that only a type checker can read
        hints = {}
    options: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key:
            raise InvalidInputError(f"--store-option takes KEY=VALUE; got {pair!r}")
        if key == "metric":
            raise InvalidInputError("--store-option metric is not taken; use --metric")
        if key == "api_key":
            raise InvalidInputError(
                "--store-option api_key is not taken: whoever lists this machine's processes could read the "
                "key. Set the environment variable PINECONE_API_KEY instead"
            )
        options[key] = _option_value(key, text, hints.get(key, Any))
    return options


def _option_value(key: str, text: str, hint: Any) -> Any:
    """Take text where the store does; elsewhere read numbers, true, false and null, or text at last."""
    from clipretrieval.errors import InvalidInputError

    kinds = get_args(hint) or (hint,)
    if str in kinds:
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    allowed = {*kinds, int} if float in kinds else {*kinds}
    if allowed <= set(_JSON_NAMES) and type(value) not in allowed:
        wanted = " or ".join(_JSON_NAMES[kind] for kind in kinds)
        raise InvalidInputError(f"--store-option {key} takes {wanted}; got {text!r}")
    return value
