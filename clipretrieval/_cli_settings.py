"""What ``clipretrieval index`` was asked for, kept in the classifier's folder until it is done."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import typer

from clipretrieval._timing import Progress
from clipretrieval.errors import ClipRetrievalError, InvalidInputError, StoreCorruptedError

__all__ = ["VECTORS", "begin", "end", "ended_if_idle", "is_given"]

VECTORS = "vectors"
"""Where the vectors lie inside the classifier's folder, if no other place is given."""
SETTINGS = (
    *("model", "pretrained", "stage", "k", "weights", "temperature", "normalize", "metric"),
    *("store", "store_option"),
)
"""What decides the classifier that comes out."""
_FORMAT, _FORMAT_VERSION = "clipretrieval.indexing", 1
_SECRET_NAME = re.compile(r"key|token|secret|passw|credential|auth|header", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"://[^/]*@|[?&][^=]*(key|token|secret|passw|auth)[^=]*=", re.IGNORECASE)


def begin(context: typer.Context, folder: Path, resume: bool) -> dict[str, Any]:
    """Write down what the command was asked for, or return what the one that was interrupted was.

    Parameters
    ----------
    context : typer.Context
        Of the command.
    folder : Path
        The classifier's.
    resume : bool

    Returns
    -------
    dict
        The values of `SETTINGS`.

    Raises
    ------
    InvalidInputError
        If the folder holds anything that indexing would replace or go beside, or settings were given that
        are not those of the interrupted command.
    """
    from clipretrieval._atomic import write_text
    from clipretrieval.persistence import FILE, INDEXING, check_folder

    given: dict[str, Any] = {name: context.params[name] for name in SETTINGS}
    given["store_option"] = list(given["store_option"] or [])
    noted = _read(folder / INDEXING)
    if noted is not None:
        if not resume:
            raise InvalidInputError(
                f"{str(folder)!r} holds what an interrupted index has left; pass --resume to go on with it, "
                "or another folder"
            )
        return _same(context, given, noted)
    if (folder / FILE).exists():
        raise InvalidInputError(
            f"{str(folder)!r} holds a classifier already; pass --add to add images to it, or another folder"
        )
    if resume:
        raise InvalidInputError(
            f"{str(folder)!r} holds nothing to go on with; leave --resume out to begin there"
        )
    check_folder(folder, Path(VECTORS))
    folder.mkdir(parents=True, exist_ok=True)
    public = {**given, "store_option": [item for item in given["store_option"] if not _is_secret(item)]}
    content = {"format": _FORMAT, "format_version": _FORMAT_VERSION, "settings": public}
    write_text(folder / INDEXING, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return given


def end(folder: Path) -> None:
    """Note that the classifier is complete."""
    from clipretrieval.persistence import INDEXING

    (folder / INDEXING).unlink(missing_ok=True)


@contextmanager
def ended_if_idle(folder: Path, progress: Progress, resumed: bool) -> Iterator[Progress]:
    """Forget what was asked for if the block fails before an image is done: nothing is left to go on with.

    Not where it is `resumed`: there is what was done before.
    """
    most = 0

    def watched(done: int, total: int | None) -> None:
        nonlocal most
        most = max(most, done)
        progress(done, total)

    try:
        yield watched
    except (ClipRetrievalError, KeyboardInterrupt):
        if most == 0 and not resumed:
            end(folder)
            with suppress(OSError):  # it is not empty
                folder.rmdir()
        raise


def _is_secret(item: str) -> bool:
    name, _, value = item.partition("=")
    return bool(_SECRET_NAME.search(name) or _SECRET_VALUE.search(value))


def is_given(context: typer.Context, name: str) -> bool:
    """Tell whether an argument was on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _same(context: typer.Context, given: dict[str, Any], noted: dict[str, Any]) -> dict[str, Any]:
    """Return the settings noted, with secrets as given now; refuse others than those."""
    secrets = [item for item in given["store_option"] if _is_secret(item)]
    public = {**given, "store_option": [item for item in given["store_option"] if item not in secrets]}
    for name in SETTINGS:
        if is_given(context, name) and (public[name] != noted[name]):
            if name == "store_option" and not public[name]:
                continue  # nothing but secrets, which are not noted
            before, now = _told(name, noted[name]), _told(name, public[name])
            raise InvalidInputError(
                f"the interrupted index had {before} and now it is {now}; leave the option out to go on with "
                "what was asked for, or pass another folder"
            )
    return {**noted, "store_option": [*noted["store_option"], *secrets]}


def _told(name: str, value: Any) -> str:
    option = "--" + name.replace("_", "-")
    if isinstance(value, list):
        return " ".join(f"{option} {item}" for item in value) or f"no {option}"
    return f"{option} {value}"


def _read(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if (content["format"], content["format_version"]) == (_FORMAT, _FORMAT_VERSION):
            return {name: content["settings"][name] for name in SETTINGS}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise StoreCorruptedError(f"{file} is damaged ({error!r}); index into another folder") from error
    raise StoreCorruptedError(f"{file} was not written by this version of clipretrieval; index anew")
