"""``encode``, ``merge``, ``export`` of vectors and ``index --vectors``, as their users meet them."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pandas as pd
import pytest

from clipretrieval import RetrievalClassifier

PIXEL = ("--stage", "pixel")
URL = "https://me:SECRET@host/x?sig=SECRET"


@pytest.fixture
def parts(command, class_folder, tmp_path):
    """Two parts, of which each was encoded by a command of its own."""
    for number in (1, 2):
        done = command("encode", class_folder / "train", tmp_path / "parts", *PIXEL, "--shard", f"{number}/2")
        assert done[0] == 0, done
    return tmp_path / "parts"


def answers(kept, class_folder):
    return RetrievalClassifier.load(kept).predict(class_folder / "test").tolist()


def test_parts_are_indexed_as_images_are(command, parts, class_folder, tmp_path):
    """What is there is not encoded again, and the index is that of the images."""
    status, out, _ = command("encode", class_folder / "train", parts, *PIXEL)
    assert (status, out.startswith("0 images encoded")) == (0, True)
    assert command("index", class_folder / "train", tmp_path / "plain", *PIXEL, "--k", "3")[0] == 0
    status, out, err = command("index", "--vectors", parts, tmp_path / "kept", *PIXEL, "--k", "3")
    assert (status, err) == (0, "")
    assert "24 new" in out
    assert answers(tmp_path / "kept", class_folder) == answers(tmp_path / "plain", class_folder)


def test_shards_are_merged_exported_and_added(command, parts, class_folder, tmp_path):
    """Two classifiers of a part each become one, whose file makes, or adds to, a third."""
    names = [path.name for path in sorted(parts.iterdir())]
    for name in names:
        assert command("index", "--vectors", parts / name, tmp_path / name, *PIXEL, "--k", "3")[0] == 0
    shards = [tmp_path / name for name in names]
    status, out, _ = command("merge", tmp_path / "whole", *shards)
    assert status == 0
    assert "24 records of 2 shards" in out
    assert "2 classes" in out
    assert "24 already there" in command("merge", tmp_path / "whole", *shards)[1]
    assert command("index", class_folder / "train", tmp_path / "plain", *PIXEL, "--k", "3")[0] == 0
    assert answers(tmp_path / "whole", class_folder) == answers(tmp_path / "plain", class_folder)
    status, out, _ = command("export", tmp_path / "whole", tmp_path / "whole.parquet")
    assert (status, out.startswith("24 vectors")) == (0, True)
    assert len(pd.read_parquet(tmp_path / "whole.parquet")) == 24
    status, out, _ = command("index", "--vectors", tmp_path / "whole.parquet", tmp_path / names[0], "--add")
    assert (status, "12 new, 12 already there" in out) == (0, True)
    assert answers(tmp_path / names[0], class_folder) == answers(tmp_path / "plain", class_folder)


def test_an_image_under_two_labels_is_decided_on_the_command_line(command, tmp_path):
    """By --on-conflict; the message names it in those words."""
    for name, label in (("one", "a"), ("two", "b")):
        RetrievalClassifier(store="memory").fit(np.eye(3), ["a", label, "b"]).save(tmp_path / name)
    shards = [tmp_path / "one", tmp_path / "two"]
    status, _, err = command("merge", tmp_path / "out", *shards)
    assert status == 2
    assert "'b' in shard 1" in err
    assert "--on-conflict" in err
    assert not (tmp_path / "out" / "classifier.json").exists()
    assert command("merge", tmp_path / "out", *shards, "--on-conflict", "last")[0] == 0
    assert RetrievalClassifier.load(tmp_path / "out").classes_.tolist() == ["a", "b"]


def test_columns_and_labels_are_named_by_options(command, class_folder, tmp_path):
    """Of NumPy's files and of tables; what is not there is listed."""
    kept = RetrievalClassifier(store="memory").fit(np.eye(4), [*"abab"])
    np.save(tmp_path / "v.npy", np.eye(3072)[:4])
    np.save(tmp_path / "labels.npy", np.array([*"abab"]))
    given = ("--labels", tmp_path / "labels.npy")
    status, out, _ = command("index", "--vectors", tmp_path / "v.npy", tmp_path / "kept", *PIXEL, *given)
    assert (status, "4 new" in out) == (0, True)
    kept.export(tmp_path / "v.parquet")
    options = ("--vectors", tmp_path / "v.parquet", tmp_path / "bad", *PIXEL, "--label-column", "kind")
    status, _, err = command("index", *options)
    assert status == 2
    assert "no column 'kind' for the labels; its columns are 'id', 'label', 'source'" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("index", "x"), "CLASSIFIER is missing"),
        (("index", "x", "y", "--vectors", "z"), "IMAGES ('x') cannot be used with --vectors"),
        (("index", "x", "y", "--labels", "z"), "--labels is for --vectors PATH"),
        (
            ("index", "x", "--vectors", "z", "--cascade", "pixel,mid"),
            "--cascade cannot be used with --vectors",
        ),
        (("index", "x", "--vectors", "z", *PIXEL), "no file or folder 'z'"),
        (("encode", "x", "y", "--shard", "4/3"), "--shard must be a part of how many"),
        (("encode", "x", "y", "--shard", "1/3", "--shards", "3"), "--shards cannot be used with --shard"),
        (("merge", "x", "y"), "'y'"),
        (("index", URL, "kept", "--vectors", "v"), "IMAGES ('https://host/x') cannot be used"),
        (
            ("index", URL, "--vectors", "v"),
            "CLASSIFIER takes a path of this machine, and 'https://host/x'",
        ),
        (("evaluate", "kept", "--test", URL), "--test takes a path of this machine, and 'https://host/x' is"),
    ],
)
def test_what_cannot_be_is_refused(command, tmp_path, monkeypatch, arguments, message):
    """In one line, and nothing is left."""
    monkeypatch.chdir(tmp_path)
    status, out, err = command(*arguments)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert message in err
    assert "SECRET" not in err
    assert list(tmp_path.iterdir()) == []


def test_other_things_are_not_exported_or_merged(command, tiny_model, class_folder, tmp_path):
    """A cascade has vectors for each exit, and a folder with other things is left alone."""
    cascade = ("--cascade", "pixel,stem", "--model", tiny_model, "--head", "discriminant")
    assert command("index", class_folder / "test", tmp_path / "exits", *cascade)[0] == 0
    for arguments in (
        ("export", tmp_path / "exits", tmp_path / "x.parquet"),
        ("merge", "x", tmp_path / "exits"),
    ):
        status, _, err = command(*arguments)
        assert (status, "holds a cascade" in err) == (2, True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    RetrievalClassifier(store="memory").fit(np.eye(2), ["a", "b"]).save(tmp_path / "one")
    status, _, err = command("merge", tmp_path / "mine", tmp_path / "one")
    assert status == 2
    assert "mine" in err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_vectors_are_looked_at_before_a_model(command, tmp_path, monkeypatch):
    """What is wrong with a file is told, and not that the default model's weights cannot be fetched."""
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", np.eye(3, dtype=np.float32))
    status, _, err = command("index", "kept", "--vectors", "rows.npy")
    assert status == 2
    assert "label" in err
    assert "weights" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.npy"]


def test_tars_and_urls_are_encoded_and_indexed(command, class_folder, tmp_path, monkeypatch):
    """As the folder is; what is no option of theirs is refused, and secrets are written down nowhere."""
    monkeypatch.chdir(tmp_path)
    with tarfile.open("t-0.tar", "w") as tar:
        for number, path in enumerate(sorted((class_folder / "train").rglob("*.*"))):
            tar.add(path, f"{number}{path.suffix}")
            label = tarfile.TarInfo(f"{number}.txt")
            label.size = len(path.parent.name)
            tar.addfile(label, io.BytesIO(path.parent.name.encode()))
    url = f"file://{class_folder}/train"
    assert command("index", class_folder / "train", "plain", *PIXEL, "--k", "3")[0] == 0
    assert command("encode", url, "parts", *PIXEL)[0] == 0
    for kept, given in (("tar", ["t-{0..0}.tar"]), ("url", ["--vectors", "parts"])):
        status, out, err = command("index", *given, kept, *PIXEL, "--k", "3")
        assert (status, err, "24 new" in out) == (0, "", True)
        assert answers(kept, class_folder) == answers("plain", class_folder)
    assert "24 already there" in command("index", "t-*.tar", "tar", "--add")[1]
    for place in ("t-0.tar", tmp_path / "t-0.tar"):
        status, out, _ = command("encode", place, "of-tar", *PIXEL)
    assert (status, out.startswith("0 images encoded")) == (0, True)
    for arguments, message in (
        (("t-0.tar", "--image-column", "a"), "--image-column is for a table, and 't-0.tar' is a tar"),
        ((url, "--label-column", "a"), "--label-column is for a CSV file or a tar, and IMAGES are a URL"),
        (("no.tar",), "there is no tar file 'no.tar'"),
        (("http://me:SECRET@127.0.0.1:1/x?sig=SECRET",), "'http://127.0.0.1:1/x' cannot be reached"),
    ):
        status, out, err = command("encode", arguments[0], "none", *PIXEL, *arguments[1:])
        assert (status, message in err, "SECRET" in out + err) == (2, True, False), err


def pack(path, file, label):
    """Write a tar of one image, with a label or without."""
    with tarfile.open(path, "w") as tar:
        tar.add(file, f"0{file.suffix}")
        if label is not None:
            info = tarfile.TarInfo("0.cls")
            info.size = len(label)
            tar.addfile(info, io.BytesIO(label.encode()))
    return path


def test_labels_of_tars_are_named_as_those_of_folders(command, class_folder, tmp_path):
    """A classifier of the folders 3 and 4 takes a tar with the class 3, and a new one, 5."""
    files = sorted((class_folder / "train").rglob("*.*"))
    for name, file in zip("34", files, strict=False):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / file.name).write_bytes(file.read_bytes())
    assert command("index", tmp_path / "train", tmp_path / "kept", *PIXEL)[0] == 0
    for number, label in enumerate("35"):
        tar = pack(tmp_path / "x.tar", files[2 + number], label)
        status, out, err = command("index", "--add", tar, tmp_path / "kept")
        assert (status, err, "1 new" in out) == (0, "", True)
    kept = RetrievalClassifier.load(tmp_path / "kept")
    assert kept.classes_.tolist() == ["3", "4", "5"]
    assert kept.predict(files[:4]).tolist() == ["3", "4", "3", "5"]
    kept.export(tmp_path / "v.parquet")
    sources = pd.read_parquet(tmp_path / "v.parquet").source
    assert f"{tmp_path}/x.tar/0{files[3].suffix}" in sources.tolist()
    RetrievalClassifier(kept.encoder, "memory").fit(files[:2], [3, 4]).save(tmp_path / "numbers")
    status, _, err = command("index", "--add", pack(tmp_path / "x.tar", files[2], "x"), tmp_path / "numbers")
    assert (status, "error: the labels must all be of one type" in err) == (2, True)


@pytest.mark.parametrize("name", ["encode", "index"])
def test_tars_without_labels_are_refused(command, class_folder, tmp_path, name):
    """As folders and tables are; misspelt ones, too."""
    file = next((class_folder / "train").rglob("*.png"))
    for label, options in ((None, ()), ("a", ("--label-column", "lable"))):
        tar = pack(tmp_path / "x.tar", file, label)
        status, _, err = command(name, tar, tmp_path / "out", *PIXEL, *options)
        assert (status, "label" in err) == (2, True)
        assert not list(tmp_path.glob("out/*.parquet"))


def test_saved_datasets_are_encoded_and_indexed(command, class_folder, tmp_path):
    """With the column that is named, and what was encoded is not done again."""
    datasets = pytest.importorskip("datasets")
    files = sorted((class_folder / "train").rglob("*.*"))
    features = datasets.Features({"x": datasets.Image(), "y": datasets.Value("string")})
    rows = {"x": [str(file) for file in files], "y": [file.parent.name for file in files]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    for count in (24, 0):
        given = ("--image-column", "x")
        status, out, err = command("encode", tmp_path / "saved", tmp_path / "parts", *PIXEL, *given)
        assert (status, out.startswith(f"{count} images encoded")) == (0, True), err
    assert pd.read_parquet(tmp_path / "parts").label.tolist() == rows["y"]


def test_images_behind_urls_are_not_classified(command, class_folder, tmp_path):
    """And nothing secret of one is shown."""
    assert command("index", class_folder / "test", tmp_path / "kept", *PIXEL)[0] == 0
    status, out, err = command("classify", tmp_path / "kept", URL)
    assert (status, "IMAGES takes a path of this machine, and 'https://host/x' is a URL" in err) == (2, True)
    assert "SECRET" not in out + err
