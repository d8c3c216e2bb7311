"""Tables of images and labels: CSV files, DataFrames, Arrow tables, and single columns of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars
import pyarrow as arrow
import pytest
from PIL import Image

from clipretrieval import InvalidInputError, RetrievalClassifier, StagedEncoder
from clipretrieval.images import count_hint, iter_images, iter_raw, read_table

COLOURS = {"red.png": (255, 0, 0), "lime.png": (0, 255, 0), "blue.png": (0, 0, 255), "navy.png": (0, 0, 99)}
LABELS = ["warm", "warm", "cold", "cold"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with four pictures in ``img``."""
    (tmp_path / "img").mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (8, 8), colour).save(tmp_path / "img" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def frame(folder: Path) -> pd.DataFrame:
    """A DataFrame of them."""
    return pd.DataFrame({"n": range(4), "File": [f"img/{name}" for name in COLOURS], "label": LABELS})


@pytest.fixture
def classifier() -> RetrievalClassifier:
    """One that compares pixels."""
    return RetrievalClassifier(StagedEncoder(pretrained=None, stage="pixel"), store="memory")


def written(text: str | bytes, name: str = "labels.csv") -> str:
    """A file with this text in the current folder."""
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return name


def tables(frame: pd.DataFrame) -> list[Any]:
    """The same table in every form that can be had here."""
    found: list[Any] = [
        frame,
        written(frame.to_csv(index=False)),
        Path(written(frame.to_csv(sep="\t"), "t.tsv")),
    ]
    found.append(written(frame.to_csv(sep=";"), "semicolons.CSV"))
    found.append(read_table(frame))
    return found


def test_every_table_fits_predicts_evaluates_and_sweeps(
    frame: pd.DataFrame, classifier: RetrievalClassifier
) -> None:
    """A DataFrame, a CSV file of each separator, and a table that was read give the labels of their rows."""
    for table in tables(frame):
        classifier.fit(table)
        assert classifier.classes_.tolist() == ["cold", "warm"]
        assert classifier.predict(table).tolist() == LABELS
        with pytest.warns(UserWarning, match="find themselves"):
            assert classifier.evaluate(table).accuracy == 1.0
        assert classifier.sweep(table, k=1, validation="all", allow_known=True).best["accuracy"] == 1.0
        assert count_hint(table) == 4
        assert [raw.source for raw in iter_raw(table)] == [str(Path(f"img/{name}")) for name in COLOURS]


def test_arrow_and_polars_tables_are_read_alike(frame: pd.DataFrame) -> None:
    """Tables and columns of pyarrow and polars give what the DataFrame gives."""
    table = arrow.table({name: frame[name].tolist() for name in frame})
    expected = [(str(raw.payload), raw.label) for raw in iter_raw(frame)]
    for each in (table, table.to_batches()[0], polars.DataFrame(table.to_pydict())):
        assert [(str(raw.payload), raw.label) for raw in iter_raw(each)] == expected
    files, labels = [path for path, _ in expected], [label for _, label in expected]
    for paths in (table["File"], arrow.array(files), polars.Series(files), frame["File"], pd.Index(files)):
        for names in (table["label"], polars.Series(labels), frame["label"].astype("category")):
            assert [(raw.payload, raw.label) for raw in iter_raw(paths, names)] == expected


def test_datasets_of_hugging_face_are_read_row_by_row(frame: pd.DataFrame) -> None:
    """A dataset gives the encoded images of its image column, whose ids are those of the files."""
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"image": frame["File"].tolist(), "label": [0, 0, 1, 1]})
    dataset = dataset.cast_column("image", datasets.Image())
    expected = [item.id for item in iter_images(frame)]
    assert [(item.id, item.label) for item in iter_images(dataset)] == [
        *zip(expected, [0, 0, 1, 1], strict=True)
    ]
    assert count_hint(dataset) == 4


def test_pictures_in_a_table_are_taken_as_they_are(frame: pd.DataFrame) -> None:
    """A column may hold encoded bytes, PIL images, or bytes and path as Arrow files of datasets do."""
    content = Path("img/red.png").read_bytes()
    image = Image.new("RGB", (2, 2))
    cells = [content, image, {"bytes": content, "path": None}, {"bytes": None, "path": "img/navy.png"}]
    found = read_table(pd.DataFrame({"image": cells})).images
    assert found == (content, image, content, "img/navy.png")


def test_labels_given_beside_a_table_replace_its_own(
    frame: pd.DataFrame, classifier: RetrievalClassifier
) -> None:
    """Labels in the second argument win, and a table without labels takes them."""
    for table in (frame, frame[["File"]]):
        assert classifier.fit(table, [7, 7, 8, 8]).predict(table).tolist() == [7, 7, 8, 8]


def test_only_fitting_and_evaluating_need_labels(
    frame: pd.DataFrame, classifier: RetrievalClassifier
) -> None:
    """A table whose labels are missing or ambiguous can be predicted, and fitting says what is wrong."""
    classifier.fit(frame)
    two, none = frame.assign(Class="x"), frame[["File"]]
    some = frame.assign(label=["warm", None, "cold", "cold"])
    reasons = {"'label', 'Class'": two, "usual name for labels": none, "row 1 .* is empty": some}
    for words, table in reasons.items():
        assert classifier.predict(table).tolist() == LABELS
        for ask in (classifier.fit, classifier.partial_fit, classifier.evaluate, classifier.sweep):
            with pytest.raises(InvalidInputError, match=f"^the table's labels cannot be used: .*{words}"):
                ask(table)
    with pytest.raises(InvalidInputError, match=r"row 1 .* is empty"):
        read_table(some, label="label")


def test_vectors_in_a_dataframe_are_vectors_without_an_encoder() -> None:
    """Without an encoder a DataFrame is what scikit-learn takes it for, whatever its columns are called."""
    vectors = pd.DataFrame({"path": [0.0, 1.0], "label": [0.0, 1.0]})
    classifier = RetrievalClassifier(store="memory").fit(vectors, ["low", "high"])
    assert classifier.predict(vectors).tolist() == ["low", "high"]
    assert classifier.feature_names_in_.tolist() == ["path", "label"]


def test_columns_are_found_by_name_or_named(frame: pd.DataFrame) -> None:
    """Usual names are found in any case; others have to be named, and errors list the columns."""
    named = frame.rename(columns={"File": "foto", "label": 3})
    table = read_table(named, image="foto", label=3)
    assert table.images == tuple(f"img/{name}" for name in COLOURS)
    assert (table.labels, table.classes) == (tuple(LABELS), ("cold", "warm"))
    assert (table.columns, len(table)) == (("n", "foto", "3"), 4)
    assert read_table(frame, image="FILE").images == table.images
    wrong: list[tuple[pd.DataFrame, dict[str, Any], str]] = [
        (named, {}, r"usual name for images \(path, .*'foto'"),
        (named, {"image": "photo"}, "no column is named 'photo'.*'n', 'foto'"),
        (frame.assign(path="x"), {}, "several columns.*'File', 'path'"),
        (pd.concat([frame, frame], axis=1), {"image": "File"}, "2 columns are named 'File'"),
        (frame, {"label": "file"}, "'File' .* holds the images"),
        (frame, {"image": "n"}, r"row 0 .* has 0 in the column 'n', neither a path nor an image"),
        (frame, {"image": True}, "must be the name of a column; got True"),
        (frame.assign(File=["a.png", None, "b.png", "c.png"]), {}, "row 1 .* no image"),
    ]
    for found, columns, words in wrong:
        with pytest.raises(InvalidInputError, match=words):
            read_table(found, **columns)
    for other in ({"file": ["a"]}, [("a", "b")], "labels.txt", 3):
        with pytest.raises(InvalidInputError, match="must be a pandas or polars DataFrame"):
            read_table(other)


def test_relative_paths_start_from_the_csv_file_or_the_root(folder: Path, tmp_path: Path) -> None:
    """A CSV file's paths are relative to its folder, a root replaces that, and absolute paths stay."""
    (folder / "lists").mkdir()
    absolute = folder / "img" / "lime.png"
    path = folder / "lists" / "labels.csv"
    path.write_text(f"img,label\nred.png,1\n{absolute},2\n")
    assert read_table(path).images == (folder / "lists" / "red.png", absolute)
    table = read_table(path, root=folder / "img")
    assert table.images == (folder / "img" / "red.png", absolute)
    assert [item.label for item in iter_images(table)] == [1, 2]


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["1", " -2 ", "0"], (1, -2, 0)),
        (["007", "8"], ("007", "8")),
        (["1", "1.0"], ("1", "1.0")),
        (["1", "cat "], ("1", "cat")),
        (["-0", "5"], ("-0", "5")),
        (["9999999999999999999"], ("9999999999999999999",)),
    ],
)
def test_labels_of_a_csv_file_are_whole_numbers_or_text(
    cells: list[str], labels: tuple[Any, ...], folder: Path
) -> None:
    """Labels are int if all of them are written as whole numbers are, and otherwise the text as it stands."""
    path = written("path,label\n" + "".join(f"{place}.png,{cell}\n" for place, cell in enumerate(cells)))
    assert read_table(path).labels == labels


def test_csv_files_are_read_as_spreadsheets_write_them(folder: Path) -> None:
    """Byte order marks, Windows' line ends, quotes, blank lines and UTF-16 change nothing."""
    plain = 'path;label\r\n"a;""b"".png"; é\r\n\r\n;\r\nc.png;"two\r\nlines"\r\n'
    for content in (plain.encode(), plain.encode("utf-8-sig"), plain.encode("utf-16")):
        table = read_table(written(content))
        assert [str(path) for path in table.images] == ['a;"b".png', "c.png"]
        assert table.labels == ("é", "two\r\nlines")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("path,label\n", "no row below"),
        ("path,label\na,b\n\nc\n", "line 4 .* 1 cells.* 2 columns, 'path', 'label'"),
        ('path,label\n"two\nlines",x\na,b,c\n', "line 4 .* 3 cells"),
        ('path,label\na,b\n"c,d\n', "line 3 .* quotes must be closed"),
        ("path,label\na,b\n ,c\n", "line 3 .* no image"),
        (b"path,label\nz\xfcrich.png,a\n", "line 2 .* UTF-8"),
        (b"path,label\na\0,b\n", "line 2 .* NUL"),
        ("path,path\na,b\n", "several columns.*'path', 'path'"),
        ("img/1.png,cat\n", "no row below"),
        ("img/1.png,cat\nimg/2.png,dog\n", "usual name for images.*'img/1.png', 'cat'"),
    ],
)
def test_csv_files_that_cannot_be_read_say_where(content: str | bytes, words: str, folder: Path) -> None:
    """What is wrong with a CSV file is told with the line and the columns."""
    with pytest.raises(InvalidInputError, match=words) as caught:
        next(iter_images(written(content)))
    assert "labels.csv" in str(caught.value)


def test_csv_paths_that_lead_nowhere_are_told_as_files(tmp_path: Path) -> None:
    """A missing CSV file is no missing folder, and a folder of that name is a folder."""
    with pytest.raises(InvalidInputError, match=r"missing\.csv': No such file.*CSV"):
        iter_raw(tmp_path / "missing.csv")
    (tmp_path / "set.csv" / "a").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "set.csv" / "a" / "1.png")
    assert [raw.label for raw in iter_raw(tmp_path / "set.csv")] == ["a"]


def test_columns_with_gaps_and_tables_as_labels_are_refused(frame: pd.DataFrame) -> None:
    """A Series without a value in a row, and a whole table as the labels, say so."""
    with pytest.raises(InvalidInputError, match=r"row 2 .* Series has no value"):
        iter_raw(pd.Series(["a.png", "b.png", None]))
    with pytest.raises(InvalidInputError, match=r"row 1 .* has no label"):
        iter_raw(frame, pd.Series(["a", np.nan, "b", "c"]))
    with pytest.raises(InvalidInputError, match="DataFrame, a table; pass one column"):
        iter_raw(frame, frame[["label"]])
    with pytest.raises(InvalidInputError, match=r"item number 0 is of the type dict.*pairs"):
        next(iter_raw(frame.to_dict("records")))


def test_a_root_that_is_no_folder_is_named(frame: pd.DataFrame, tmp_path: Path) -> None:
    """A mistyped root is told as such, and not as images that cannot be read."""
    with pytest.raises(InvalidInputError, match=r"root: there is no folder '.*picz'"):
        read_table(frame, root=tmp_path / "picz")


def test_where_no_image_can_be_read_the_first_tells_why(tmp_path: Path) -> None:
    """A table whose paths lead nowhere is refused with the first path, also where such images are skipped."""
    frame = pd.DataFrame({"path": [f"{tmp_path}/a.png", f"{tmp_path}/b.png"], "label": ["x", "y"]})
    classifier = RetrievalClassifier(StagedEncoder(stage="pixel"), store="memory")
    with pytest.raises(InvalidInputError, match=r"none of the 2 images to fit on could be used.*a\.png"):
        classifier.fit(frame, on_error="skip")
