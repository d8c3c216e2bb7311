"""Tables of images and labels: DataFrames, Arrow tables, datasets with columns, and CSV files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipretrieval._util.checks import check_path, shown
from clipretrieval._util.dependencies import require
from clipretrieval._util.foreign import is_instance, is_missing, series_list
from clipretrieval._util.labels import composed
from clipretrieval.errors import InvalidInputError
from clipretrieval.images.csv_files import is_csv_path, read_csv
from clipretrieval.images.rgb import is_image_like
from clipretrieval.images.urls import is_url, url_name

__all__ = [
    *("ImageTable", "column_values", "is_saved_dataset", "is_table", "labelled_source", "read_table"),
    "single_column",
]

IMAGE_NAMES = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img")
LABEL_NAMES = ("label", "class", "target", "y", "category")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_FRAMES = (("pandas", "DataFrame"), ("polars", "DataFrame"), ("datasets", "Dataset"))
_SPLITS, _SAVED = "dataset_dict.json", ("state.json", "dataset_info.json")
"""What Hugging Face's ``save_to_disk`` writes into a folder."""
_ARROW = (("pyarrow", "Table"), ("pyarrow", "RecordBatch"))


@dataclass(frozen=True, eq=False)
class ImageTable:
    """The images that a table lists, with their labels.

    Attributes
    ----------
    images : sequence, length n
        Paths, joined with the root; or what else the column holds: encoded bytes, PIL images.
    labels : tuple of int or of str, length n, or None
        None where no column of labels was found.
    columns : tuple of str
        All columns of the table.
    unlabelled : str
        Why there are no labels; empty where there are some.
    states : tuple of str, length n, or None
        What tells of each file that it has changed, where it lies behind a URL that was listed.
    """

    images: Sequence[Any]
    labels: tuple[Any, ...] | None
    columns: tuple[str, ...]
    unlabelled: str = ""
    states: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"ImageTable(images={len(self)}, classes={len(self.classes)})"

    @property
    def classes(self) -> tuple[Any, ...]:
        """The labels that occur, sorted; empty if there are none."""
        return tuple(sorted(set(self.labels or ())))


@dataclass(frozen=True)
class _Table:
    """A table of whatever library: its columns' names, a column's values by its place, and where a row is."""

    what: str
    names: list[Any]
    values: Callable[[int], Sequence[Any]]
    lazy: bool = False
    lines: list[int] | None = None

    def row(self, number: int) -> str:
        if self.lines is not None:
            return f"line {self.lines[number]} of {self.what}"
        return f"row {number} (counted from 0) of {self.what}"

    def find(self, role: str, wanted: str | int | None, known: Sequence[str]) -> int:
        """Return the place of a column that is named, or that goes by one of the known names."""
        listed = ", ".join(map(repr, self.names)) or "none"
        if wanted is not None:
            places = [place for place, name in enumerate(self.names) if name == wanted]
            places = places or [
                p for p, name in enumerate(self.names) if _plain_name(name) == _plain_name(wanted)
            ]
            if len(places) != 1:
                found = f"{len(places)} columns are" if places else "no column is"
                raise InvalidInputError(
                    f"{found} named {wanted!r} in {self.what}, as {role}= says; the columns are {listed}"
                )
            return places[0]
        places = [place for place, name in enumerate(self.names) if _plain_name(name) in known]
        if len(places) == 1:
            return places[0]
        found = (
            f"several columns of {self.what} may hold the {role}s: "
            f"{', '.join(repr(self.names[place]) for place in places)}"
            if places
            else f"no column of {self.what} has a usual name for {role}s ({', '.join(known)})"
        )
        raise InvalidInputError(
            f"{found}. Name the right one, as in read_table(…, {role}='…'); the columns are {listed}"
        )


def read_table(
    table: Any,
    *,
    image: str | int | None = None,
    label: str | int | None = None,
    root: str | os.PathLike[str] | None = None,
) -> ImageTable:
    """Take the images and labels out of a table.

    Columns are found by their names, in any case: ``path``, ``file``, ``filename``, ``file_name``,
    ``filepath``, ``file_path``, ``image``, ``image_path`` or ``img`` for the images, ``label``, ``class``,
    ``target``, ``y`` or ``category`` for the labels.

    Parameters
    ----------
    table : path, pandas or polars DataFrame, pyarrow Table, or Hugging Face Dataset
        Of a Dataset, also the folder that ``save_to_disk`` wrote. The path of a CSV file ends in ``.csv`` or
        ``.tsv``. Its first line names the columns, and tells whether comma, semicolon or tab separates them;
        in ``.tsv`` it is always the tab. The encoding is UTF-8, or UTF-16 with a byte order mark.
    image, label : str or int, optional
        The columns' names, where they are not to be found.
    root : path, optional
        What relative paths start from: when left out, the folder of a CSV file, otherwise the current one.

    Returns
    -------
    ImageTable
        Labels are as the table has them. Those of a CSV file are int if every one of them is a whole number
        written in the usual way; with one such as ``007`` or ``1.0`` among them, all stay str.

    Raises
    ------
    InvalidInputError
        If it is no table, a column is missing or one of several, a cell without a value is met, or a CSV file
        cannot be read. A column of labels that was not asked for by name may fail to be found: then there are
        no labels, and ``unlabelled`` says why.
    """
    found = _open_table(table)
    folder = None if root is None else check_path(root, "root")
    if folder is not None and not folder.is_dir():
        raise InvalidInputError(f"root: there is no folder {str(folder)!r} for relative paths to start from")
    if folder is None and found.lines is not None:
        folder = Path(os.fsdecode(table)).parent
    for name, wanted in (("image", image), ("label", label)):
        if wanted is not None and (isinstance(wanted, bool) or not isinstance(wanted, str | int)):
            raise InvalidInputError(f"{name} must be the name of a column; got {shown(wanted)}")
    place = found.find("image", image, IMAGE_NAMES)
    images: Sequence[Any] = (
        _LazyImages(found.values(place), folder)
        if found.lazy
        else tuple(
            _image_cell(cell, folder, found, place, row) for row, cell in enumerate(found.values(place))
        )
    )
    columns = tuple(map(str, found.names))
    try:
        labels = _label_cells(found, found.find("label", label, LABEL_NAMES), place)
    except InvalidInputError as error:
        if label is not None:
            raise
        return ImageTable(images, None, columns, str(error))
    return ImageTable(images, labels, columns)


def is_table(value: Any) -> bool:
    """Whether `read_table` takes a value: a table of a library that is loaded, or the path of one."""
    if is_csv_path(value) or is_saved_dataset(value):
        return True
    return any(is_instance(value, *kind) for kind in (*_FRAMES, *_ARROW))


def is_saved_dataset(value: object) -> bool:
    """Whether a value is the path of a folder that Hugging Face's ``save_to_disk`` wrote."""
    if not isinstance(value, str | os.PathLike) or is_url(value):
        return False
    folder = os.fsdecode(value)  # os.path.isfile never raises
    return os.path.isfile(os.path.join(folder, _SPLITS)) or all(  # noqa: PTH113, PTH118
        os.path.isfile(os.path.join(folder, name))  # noqa: PTH113, PTH118
        for name in _SAVED
    )


def labelled_source(images: Any, labels: Any = None) -> Any:
    """Open a table whose own labels are needed, refuse one without, return any other source as it is."""
    if is_table(images):
        images = read_table(images)
    if labels is None and isinstance(images, ImageTable) and images.labels is None:
        raise InvalidInputError(f"the table's labels cannot be used: {images.unlabelled}")
    return images


def column_values(values: Any) -> list[Any] | None:
    """Return the values of a Series or of an Arrow array, none of them missing; None for anything else."""
    listed = series_list(values)
    for row, value in enumerate(listed or ()):
        if _is_empty(value):
            raise InvalidInputError(
                f"row {row} (counted from 0) of the {type(values).__name__} has no value; leave it out"
            )
    return listed


def single_column(table: Any) -> Any:
    """Return the values of the only column of what `read_table` takes; None where it has several."""
    found = _open_table(table)
    return list(found.values(0)) if len(found.names) == 1 else None


class _LazyImages(Sequence[Any]):
    """A column that is read from its dataset row by row, as its images may not fit into memory."""

    def __init__(self, column: Sequence[Any], root: Path | None) -> None:
        self._column, self._root = column, root

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return _LazyImages(self._column[place], self._root)
        return _resolve(self._column[place], self._root)

    def __iter__(self) -> Iterator[Any]:
        return (self[place] for place in range(len(self)))


class _DatasetColumn(Sequence[Any]):
    """One column of a Hugging Face dataset; images come as bytes or paths, so as to be decoded here."""

    def __init__(self, dataset: Any, name: str) -> None:
        column, feature = dataset.select_columns([name]), copy(dataset.features[name])
        if getattr(feature, "decode", False):
            feature.decode = False
            column = column.cast_column(name, feature)
        self._dataset, self._name = column, name

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):  # which other processes can open, too
            return _DatasetColumn(self._dataset.select(range(len(self))[place]), self._name)
        return self._dataset[place][self._name]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._dataset[self._name])


def _open_table(table: Any) -> _Table:
    if is_url(table):
        raise InvalidInputError(
            f"{url_name(table)!r} is a URL, and tables are read from this machine; its cells may be URLs"
        )
    if is_saved_dataset(table):
        table = _load_dataset(Path(os.fsdecode(table)))
    if is_csv_path(table):
        path = check_path(table, "table")
        content = read_csv(path)
        return _Table(
            repr(str(path)),
            content.names,
            lambda place: [row[place] for row in content.rows],
            lines=content.lines,
        )
    what = f"the {type(table).__name__}"
    if is_instance(table, "pandas", "DataFrame"):
        return _Table(what, table.columns.tolist(), lambda place: table.iloc[:, place].tolist())
    if is_instance(table, "polars", "DataFrame"):
        return _Table(what, list(table.columns), lambda place: table.to_series(place).to_list())
    if is_instance(table, "datasets", "Dataset"):
        names = list(table.column_names)
        return _Table(what, names, lambda place: _DatasetColumn(table, names[place]), lazy=True)
    if any(is_instance(table, *kind) for kind in _ARROW):
        return _Table(what, list(table.schema.names), lambda place: table.column(place).to_pylist())
    raise InvalidInputError(
        "table must be a pandas or polars DataFrame, a pyarrow Table, a Hugging Face Dataset, or the path of "
        f"a CSV file, which ends in .csv or .tsv; got {shown(table)}"
    )


def _load_dataset(folder: Path) -> Any:
    if (folder / _SPLITS).is_file():
        raise InvalidInputError(f"{str(folder)!r} holds several splits of a dataset; pass the folder of one")
    datasets = require("datasets", f"reading the dataset in {str(folder)!r}", "run: pip install datasets")
    try:
        return datasets.load_from_disk(str(folder)).with_format(None)
    except Exception as error:  # a damaged one makes it raise nearly anything
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InvalidInputError(
            f"the dataset in {str(folder)!r} cannot be read: {reason:.300}; save it again with save_to_disk"
        ) from error


def _image_cell(cell: Any, root: Path | None, table: _Table, place: int, row: int) -> Any:
    """Return what a cell says of an image, with its path joined with the root."""
    name = table.names[place]
    if _is_empty(cell):
        raise InvalidInputError(f"{table.row(row)} has no image: its cell of the column {name!r} is empty")
    found = _resolve(cell, root)
    if not is_image_like(found):
        raise InvalidInputError(
            f"{table.row(row)} has {shown(cell)} in the column {name!r}, neither a path nor an image. "
            f"Name the right column, as in read_table(…, image='…'); the columns are "
            f"{', '.join(map(repr, table.names))}"
        )
    return found


def _resolve(cell: Any, root: Path | None) -> Any:
    if isinstance(cell, Mapping) and {"bytes", "path"} & set(cell):  # how Arrow files hold images
        content = cell.get("bytes")
        cell = cell.get("path") if content is None else content
    if root is not None and isinstance(cell, str | os.PathLike) and not is_url(cell):
        return root / os.fsdecode(cell)
    return cell


def _label_cells(table: _Table, place: int, images: int) -> tuple[Any, ...]:
    name = table.names[place]
    if place == images:
        raise InvalidInputError(
            f"the column {name!r} of {table.what} holds the images; name another as label="
        )
    values = list(table.values(place))
    for row, value in enumerate(values):
        if _is_empty(value):
            raise InvalidInputError(
                f"{table.row(row)} has no label: its cell of the column {name!r} is empty; give it one, or "
                "leave the row out"
            )
    if table.lines is None:
        return tuple(values)
    texts = [composed(value.strip()) for value in values]
    if all(_INTEGER.fullmatch(text) for text in texts):
        return tuple(map(int, texts))
    return tuple(texts)


def _is_empty(value: Any) -> bool:
    return not value.strip() if isinstance(value, str) else is_missing(value)


def _plain_name(name: Any) -> str:
    return str(name).strip().casefold()
