"""CIFAR-10 as folders of pictures, fetched by torchvision."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from clipretrieval.errors import InvalidInputError

__all__ = ["cifar10_folder"]


def cifar10_folder(root: str | Path) -> Path:
    """Return a folder with CIFAR-10's ``train`` and ``test`` as PNG files, made at the first call.

    Parameters
    ----------
    root : str or Path
        Where the archive and the folder go.

    Returns
    -------
    Path
        ``root/cifar10``, with ``{train,test}/{class}/{index}.png``, where the index is the picture's place in
        the original order.

    Raises
    ------
    InvalidInputError
        If the archive cannot be fetched, or the files cannot be written.
    """
    folder = Path(root) / "cifar10"
    if folder.is_dir():
        return folder
    unfinished = folder.with_name(".cifar10.tmp")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        for split in ("train", "test"):
            _write(_fetch(Path(root), train=split == "train"), unfinished / split)
        os.replace(unfinished, folder)
    except (OSError, RuntimeError) as error:
        # torchvision raises RuntimeError for a damaged archive, urllib subclasses of OSError.
        raise InvalidInputError(
            f"CIFAR-10 could not be fetched into {str(root)!r}: {error}. Pass the path of a folder that has "
            "train/ and test/ with a sub-folder for each class"
        ) from error
    return folder


def _fetch(root: Path, *, train: bool) -> Any:
    from torchvision.datasets import CIFAR10

    root.mkdir(parents=True, exist_ok=True)
    return CIFAR10(str(root), train=train, download=True)


def _write(pictures: Any, folder: Path) -> None:
    """Write a dataset of (picture, class number) into class folders."""
    for name in pictures.classes:
        (folder / name).mkdir(parents=True)
    for place in range(len(pictures)):
        picture, label = pictures[place]
        picture.save(folder / pictures.classes[label] / f"{place:05}.png")
