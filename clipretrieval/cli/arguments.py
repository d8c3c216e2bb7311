"""Arguments of the commands, checked before any work begins."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

if TYPE_CHECKING:
    import typer

    from clipretrieval import RetrievalClassifier
    from clipretrieval.cli.options import TableOptions
    from clipretrieval.images.folders import ImageFolder

__all__ = [
    *("check_classes", "check_one_of", "checked_outputs", "fitted_labels", "is_given", "labelled_images"),
    *("listed", "numbers", "refuse_given", "store_options", "training_images"),
]

_JSON_NAMES = {bool: "true or false", int: "a whole number", float: "a number", type(None): "null"}


def is_given(context: typer.Context, name: str) -> bool:
    """Tell whether an argument was on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_given(context: typer.Context, allowed: Sequence[str], why: str) -> None:
    """Refuse whatever else than `allowed` is on the command line; `why` ends the message."""
    from clipretrieval.cli.options import option_of
    from clipretrieval.errors import InvalidInputError

    for name in context.params:
        if name not in allowed and is_given(context, name):
            raise InvalidInputError(f"{option_of(name)} does not go with {why}")


def check_one_of(train: Path | None, kept: Path | None) -> None:
    """Require images to fit on or a kept classifier, one of the two."""
    from clipretrieval.errors import InvalidInputError

    if (train is None) == (kept is None):
        raise InvalidInputError("pass --train DIR to fit on, or --classifier DIR, one of the two")


def checked_outputs(files: Mapping[str, Path | None], *inputs: Path | None) -> dict[str, Path]:
    """Find out whether each file can be written, and follow links to where it lies.

    Parameters
    ----------
    files : mapping of option to path
        None where an option was not given.
    *inputs : Path or None
        Folders and files that the command reads, which no file may replace a part of.

    Returns
    -------
    dict of option to path
        Of those that were given.

    Raises
    ------
    InvalidInputError
        If one is no file, cannot be written, is given twice, or is a part of an input.
    """
    from clipretrieval.errors import InvalidInputError

    found: dict[str, Path] = {}
    for option, path in files.items():
        if path is None:
            continue
        target = _checked_output(path, option)
        for other, taken in found.items():
            if taken == target:
                raise InvalidInputError(
                    f"{other} and {option} name the same file, {str(path)!r}, and one report would replace "
                    "the other; name two files"
                )
        for given in inputs:
            if given is not None and _is_part(target, given.resolve()):
                raise InvalidInputError(
                    f"{option}: {str(path)!r} is a part of {str(given)!r}, which is read; name another file"
                )
        found[option] = target
    return found


def _is_part(target: Path, given: Path) -> bool:
    """Tell whether writing a file would change an input: a table, a classifier's folder, a picture."""
    if target == given:
        return True
    if not target.is_relative_to(given):
        return False
    from clipretrieval.images.formats import image_extensions

    return (given / "classifier.json").exists() or target.name.lower().endswith(image_extensions())


def _checked_output(path: Path, option: str) -> Path:
    from clipretrieval._util.files import replacing
    from clipretrieval.errors import InvalidInputError

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


def labelled_images(path: Path, tables: TableOptions, limit: int | None, option: str) -> ImageFolder:
    """List the images of a folder with class folders, or of a table, and keep so many of them.

    Raises
    ------
    InvalidInputError
        If there are none, they have no labels, or `limit`, which `option` gave, is less than 1.
    """
    from clipretrieval.errors import InvalidInputError
    from clipretrieval.images.csv_files import is_csv_path
    from clipretrieval.images.folders import scan_folder

    if limit is not None and limit < 1:
        raise InvalidInputError(f"{option} must be at least 1; got {limit}")
    if is_csv_path(path):
        return _limited(_listed_in_table(path, tables), limit)
    if tables.given:
        raise InvalidInputError(f"{tables.given} goes with a CSV file, and {str(path)!r} is none")
    if path.is_file():
        raise InvalidInputError(
            f"{str(path)!r} is a file; pass a folder with a sub-folder of images for each class, or a table "
            "of paths and labels in a file that ends in .csv or .tsv"
        )
    folder = scan_folder(path)
    if folder.labels is None:
        raise InvalidInputError(
            f"no sub-folder of {str(path)!r} holds pictures; put each class's into one that is named after it"
        )
    return _limited(folder, limit)


def _listed_in_table(path: Path, tables: TableOptions) -> ImageFolder:
    from clipretrieval.errors import InvalidInputError
    from clipretrieval.images.folders import ImageFolder
    from clipretrieval.images.tables import read_table

    try:
        table = read_table(
            path, image=tables.image_column, label=tables.label_column, root=tables.images_root
        )
        if table.labels is None:
            raise InvalidInputError(table.unlabelled)
    except InvalidInputError as error:
        raise InvalidInputError(_in_options(str(error))) from error
    # As folders have them: a class is known by its name here.
    labels = tuple(map(str, table.labels))
    return ImageFolder(path, tuple(map(Path, table.images)), labels, tuple(sorted(set(labels))))


def _in_options(message: str) -> str:
    """Write what names an argument of `read_table` with the option that gives it."""
    for role in ("image", "label"):
        message = message.replace(f"as in read_table(…, {role}='…')", f"with --{role}-column NAME")
        message = message.replace(f"as {role}= says", f"as --{role}-column says")
    return message


def _limited(folder: ImageFolder, limit: int | None) -> ImageFolder:
    """Keep so many images, going round the classes."""
    from clipretrieval.images.folders import ImageFolder

    if limit is None:
        return folder
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


def training_images(path: Path, tables: TableOptions, limit: int | None, option: str) -> ImageFolder:
    """List images to fit on, and keep so many of them, at least one of each class."""
    from clipretrieval.errors import InvalidInputError

    folder = labelled_images(path, tables, None, option)
    if limit is not None and limit < len(folder.classes):
        raise InvalidInputError(
            f"{option} must be at least {len(folder.classes)}, one for each class of {str(path)!r}; "
            f"got {limit}"
        )
    return _limited(folder, limit)


def check_classes(train: ImageFolder, test: ImageFolder, way_out: str) -> None:
    """Refuse classes to be answered that nothing can be learnt of; `way_out` ends the advice."""
    from clipretrieval.errors import InvalidInputError

    unknown = sorted(set(test.classes) - set(train.classes))
    if unknown:
        raise InvalidInputError(
            f"{str(test.root)!r} has the class {unknown[0]!r}, and {str(train.root)!r} has not; remove it, "
            f"add pictures of the class to fit on, {way_out}"
        )


def fitted_labels(made: RetrievalClassifier, labels: Sequence[str]) -> list[Any]:
    """Return labels in the type that a classifier was fitted with, found by their names."""
    from clipretrieval._util.labels import Spelling

    known = {str(each): each for each in made.classes_.tolist()}
    return [known.get(str(label), label) for label in Spelling(known).apply(list(labels))]


def listed(text: str) -> list[str]:
    """Return the parts of a text with commas between them."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str, option: str, kind: type[int] | type[float]) -> list[Any]:
    """Return numbers with commas between them.

    Raises
    ------
    InvalidInputError
        If one of them is none, or there are none.
    """
    from clipretrieval._util.checks import shown
    from clipretrieval.errors import InvalidInputError

    wanted = "whole numbers" if kind is int else "numbers"
    try:
        found = [kind(part) for part in listed(text)]
    except ValueError:
        found = []
    if not found:
        raise InvalidInputError(f"{option} takes {wanted} with commas between them; got {shown(text)}")
    return found


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
    from clipretrieval._util.checks import check_path, shown
    from clipretrieval.errors import InvalidInputError

    kinds = get_args(hint) or (hint,)
    if Path in kinds:
        return str(check_path(text, f"--store-option {key}"))
    if str in kinds:
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: brackets by the thousand
        value = text
    allowed = {*kinds, int} if float in kinds else {*kinds}
    if allowed <= set(_JSON_NAMES) and type(value) not in allowed:
        wanted = " or ".join(_JSON_NAMES[kind] for kind in kinds)
        raise InvalidInputError(f"--store-option {key} takes {wanted}; got {shown(text)}")
    return value
