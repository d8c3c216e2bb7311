"""Images by kind and seed: one, many, or folders of them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipretrieval._util.checks import check_choice, check_int, check_path, check_strings
from clipretrieval._util.files import read_file
from clipretrieval._util.text import parse_json
from clipretrieval._version import __version__
from clipretrieval.demo.drawing import check_side, render
from clipretrieval.demo.kinds import KINDS
from clipretrieval.demo.scene import Scene, sample_scene
from clipretrieval.errors import InvalidInputError

__all__ = ["draw", "draw_many", "sample_scenes", "write_folders"]

_SETTINGS = "pictures.json"
_LARGEST_SETTINGS = 2**20
_FORMATS = {"png": "PNG", "jpg": "JPEG"}


def draw(kind: str, seed: int | np.random.Generator = 0, size: int = 64) -> Image.Image:
    """Draw one thing.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    seed : int or numpy.random.Generator
        The same seed gives the same image; a generator gives its next one.
    size : int
        Height and width in pixels, at least 16.

    Returns
    -------
    PIL.Image.Image
        RGB.

    Raises
    ------
    InvalidInputError
        If `kind` is unknown, `seed` negative or `size` too small.
    """
    if not isinstance(seed, np.random.Generator):
        seed = check_int(seed, "seed", least=0)
    return render(sample_scene(kind, np.random.default_rng(seed)), size)


def sample_scenes(
    per_kind: int, seed: int, *, kinds: Sequence[str] = KINDS, first: int = 0
) -> Iterator[Scene]:
    """Yield scenes, the kinds in turn.

    A scene depends on its kind, its number and the seed alone: neither on how many there are nor on which
    other kinds are among them.

    Parameters
    ----------
    per_kind : int
        Scenes of each kind, at least 1.
    seed : int
        At least 0.
    kinds : sequence of str
        From `KINDS`.
    first : int
        Number of each kind's first scene. Ranges of numbers that do not overlap have no scene in common.

    Raises
    ------
    InvalidInputError
        If `per_kind`, `seed` or `first` is too small, or a kind is unknown; at the call.
    """
    seed = check_int(seed, "seed", least=0)
    per_kind, first = check_int(per_kind, "per_kind"), check_int(first, "first", least=0)
    kinds = [check_choice(kind, "kinds", KINDS) for kind in check_strings(kinds, "kinds")]
    if not kinds:
        raise InvalidInputError(f"kinds is empty; pass some of {', '.join(KINDS)}")
    return (
        sample_scene(kind, np.random.default_rng([seed, KINDS.index(kind), number]))
        for number in range(first, first + per_kind)
        for kind in kinds
    )


def draw_many(
    per_kind: int, seed: int, *, kinds: Sequence[str] = KINDS, first: int = 0, size: int = 64
) -> tuple[list[Image.Image], list[str]]:
    """Draw images of several kinds.

    Parameters
    ----------
    per_kind, seed, kinds, first
        As for `sample_scenes`.
    size : int
        Height and width in pixels, at least 16.

    Returns
    -------
    images : list of PIL.Image.Image
        RGB, the kinds in turn.
    labels : list of str
        Their kinds.
    """
    scenes = list(sample_scenes(per_kind, seed, kinds=kinds, first=first))
    return [render(scene, size) for scene in scenes], [scene.kind for scene in scenes]


def write_folders(
    out: str | Path,
    *,
    train: int = 200,
    test: int = 50,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
    size: int = 64,
    extension: str = "png",
) -> Path:
    """Write images as ``OUT/train/KIND/NUMBER.png`` and ``OUT/test/KIND/NUMBER.png``.

    A folder that holds the same images already, as its ``images.json`` tells, is left as it is.

    Parameters
    ----------
    out : str or Path
        Folder to make. It appears only when it is complete.
    train, test : int
        Images of each kind in each part; no image is in both.
    seed : int
        At least 0.
    kinds : sequence of str
        From `KINDS`.
    size : int
        Height and width in pixels, at least 16.
    extension : {"png", "jpg"}

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    InvalidInputError
        If `out` holds anything else, or an argument is not one of the above.
    """
    out = check_path(out, "out")
    extension, size = check_choice(extension, "extension", list(_FORMATS)), check_side(size)
    kinds, seed = check_strings(kinds, "kinds"), check_int(seed, "seed", least=0)
    train, test = check_int(train, "train"), check_int(test, "test")
    scenes = {
        "train": sample_scenes(train, seed, kinds=kinds),
        "test": sample_scenes(test, seed, kinds=kinds, first=train),
    }
    settings = {"train": train, "test": test, "seed": seed, "kinds": list(kinds), "size": size}
    settings |= {"extension": extension, "clipretrieval": __version__}
    if _holds(out, settings):
        return out
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name[:100]}-", dir=out.parent))
    except OSError as error:
        raise InvalidInputError(f"{str(out)!r} cannot be made: {error.strerror or error}") from error
    try:
        for part, chosen in scenes.items():
            for place, scene in enumerate(chosen):
                folder = unfinished / part / scene.kind
                folder.mkdir(parents=True, exist_ok=True)
                file = folder / f"{place // len(kinds):05}.{extension}"
                render(scene, size).save(file, _FORMATS[extension])
        (unfinished / _SETTINGS).write_text(json.dumps(settings) + "\n", encoding="utf-8")
        unfinished.chmod(0o755)
        os.replace(unfinished, out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return out


def _holds(out: Path, settings: dict[str, Any]) -> bool:
    """Tell whether `out` holds images with these settings; refuse any other contents."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        if parse_json(read_file(out / _SETTINGS, _LARGEST_SETTINGS)) == settings:
            return True
    except (OSError, ValueError):
        pass
    raise InvalidInputError(f"{str(out)!r} holds something else; remove it or choose another folder")
