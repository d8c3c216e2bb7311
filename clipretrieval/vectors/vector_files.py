"""Files of vectors, found and opened."""

from __future__ import annotations

import glob
import json
import os
import re
from pathlib import Path
from typing import Any

from clipretrieval._util.checks import check_path, shown
from clipretrieval._util.files import IrregularFileError, read_file
from clipretrieval.errors import InvalidInputError
from clipretrieval.vectors.arrow_content import open_arrow_file
from clipretrieval.vectors.arrow_reader import ArrowReader
from clipretrieval.vectors.clip_retrieval_reader import clip_retrieval_readers, is_clip_retrieval_folder
from clipretrieval.vectors.column_names import ColumnNames
from clipretrieval.vectors.numpy_reader import NumpyReader
from clipretrieval.vectors.vector_reader import VectorReader

__all__ = ["check_local_path", "find_parts", "means_files", "open_vector_files"]

_NUMPY = (".npy", ".npz")
_TABLES = (".parquet", ".feather", ".arrow")
_STATE, _SPLITS = "state.json", "dataset_dict.json"
"""What Hugging Face's ``save_to_disk`` writes into a folder: of a dataset, and of several splits of one."""
_LARGEST = 2**26
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""How a URL begins, also one that a `Path` has taken a slash of; a Windows drive has one letter."""


def means_files(vectors: Any) -> bool:
    """Tell whether vectors are given as a path, or as a list of paths."""
    if isinstance(vectors, str | os.PathLike):
        return True
    return bool(
        isinstance(vectors, list | tuple)
        and vectors
        and all(isinstance(each, str | os.PathLike) for each in vectors)
    )


def open_vector_files(vectors: Any, names: ColumnNames) -> list[VectorReader]:
    """Open files of vectors, in the order of their names.

    Parameters
    ----------
    vectors : path or pattern, or list of these
        Of a file (``.npy``, ``.npz``, Parquet, Feather, Arrow), a folder of Parquet, Feather or Arrow files,
        one that Hugging Face's ``save_to_disk`` wrote, or one that clip-retrieval wrote; or a pattern, such
        as ``"parts/*.parquet"``.
    names : ColumnNames

    Raises
    ------
    InvalidInputError
        If nothing is there, or it cannot be read; the message names the file.
    """
    given = [vectors] if isinstance(vectors, str | os.PathLike) else list(vectors)
    return [reader for each in given for reader in _open(check_local_path(each, "vectors"), names)]


def check_local_path(value: Any, name: str) -> Path:
    """Return a path of this machine; nothing of a URL is repeated, which may hold a password.

    Raises
    ------
    InvalidInputError
        If it is a URL, or no path.
    """
    path = check_path(value, name)
    begins = _URL.match(str(path))
    if begins is not None and not os.path.lexists(path):
        raise InvalidInputError(
            f"{name} is a URL ({begins[0]}/…), and URLs are neither read nor written; pass a path, of a copy "
            "or of where it is mounted"
        )
    return path


def find_parts(folder: Path) -> list[Path]:
    """Return the files of tables in a folder, in the order of their names."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in _TABLES]
    return sorted(path for path in found if not path.name.startswith("."))


def _open(path: Path, names: ColumnNames) -> list[VectorReader]:
    text = str(path)
    if not path.exists() and glob.has_magic(text):
        found = sorted(map(Path, glob.glob(text, recursive=True)))  # noqa: PTH207  the pattern may be absolute
        if not found:
            raise InvalidInputError(f"no file matches {text!r}; check the pattern, and the folder")
        return [reader for each in found for reader in _open(each, names)]
    if not path.exists():
        raise InvalidInputError(f"there is no file or folder {text!r}; pass the path of vectors")
    if not path.is_dir():
        return [_open_file(path, names)]
    if is_clip_retrieval_folder(path):
        return [*clip_retrieval_readers(path, names)]
    if (path / _SPLITS).exists():
        splits = _read_json(path / _SPLITS).get("splits")
        raise InvalidInputError(
            f"{text!r} holds several splits of a dataset ({shown(splits)}); pass the folder of one"
        )
    files = _dataset_files(path) if (path / _STATE).exists() else find_parts(path)
    if not files:
        raise InvalidInputError(
            f"the folder {text!r} holds no Parquet, Feather or Arrow file, and was written neither by "
            "Hugging Face's save_to_disk nor by clip-retrieval; pass the path of vectors"
        )
    return [_open_file(each, names) for each in files]


def _open_file(path: Path, names: ColumnNames) -> VectorReader:
    if path.suffix.lower() in _NUMPY:
        return NumpyReader(path, names)
    return ArrowReader(open_arrow_file(path), names)


def _dataset_files(folder: Path) -> list[Path]:
    """Return the files of a dataset that Hugging Face's ``save_to_disk`` wrote, in its order."""
    state = _read_json(folder / _STATE)
    listed = state.get("_data_files")
    names = [each.get("filename") for each in listed or () if isinstance(each, dict)]
    if not isinstance(listed, list) or not all(
        isinstance(each, str) and Path(each).name == each for each in names
    ):
        raise InvalidInputError(f"{str(folder / _STATE)!r} lists no files of a dataset; save it again")
    if state.get("_indices_data_files"):
        raise InvalidInputError(
            f"the dataset in {str(folder)!r} is a selection of rows by their numbers; save it as it is: "
            "dataset.flatten_indices().save_to_disk(…)"
        )
    return [folder / str(each) for each in names]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_file(file, _LARGEST))
        if isinstance(content, dict):
            return content
        raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError, IrregularFileError) as error:
        raise InvalidInputError(f"{str(file)!r} cannot be read: {error}; save the dataset again") from error
