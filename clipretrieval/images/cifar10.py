"""CIFAR-10 as folders of images, fetched by torchvision."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

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
        ``root/cifar10``, with ``{train,test}/{class}/{index}.png``, where the index is the image's place in
        the original order.

    Raises
    ------
    InvalidInputError
        If the archive cannot be fetched, or the files cannot be written.
    """
    folder = Path(root) / "cifar10"
    if folder.is_dir():
        return folder
    from torchvision.datasets import CIFAR10

    unfinished = folder.with_name(".cifar10.tmp")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        for split in ("train", "test"):
            dataset = CIFAR10(str(root), train=split == "train", download=True)
            for name in dataset.classes:
                (unfinished / split / name).mkdir(parents=True)
            for place in range(len(dataset)):
                image, label = dataset[place]
                image.save(unfinished / split / dataset.classes[label] / f"{place:05}.png")
        os.replace(unfinished, folder)
    except (OSError, RuntimeError) as error:
        # torchvision raises RuntimeError for a damaged archive, urllib subclasses of OSError.
        raise InvalidInputError(
            f"CIFAR-10 could not be fetched into {str(root)!r}: {error}. Pass the path of a folder that has "
            "train/ and test/ with a sub-folder for each class"
        ) from error
    return folder
