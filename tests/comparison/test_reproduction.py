"""The study run again, on two classes and a small model: figures, files, and going on where it stopped."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from open_clip import pretrained
from PIL import Image

from clipretrieval import (
    ImageDecodeError,
    InvalidInputError,
    RetrievalClassifier,
    StagedEncoder,
    UnknownStoreError,
)
from clipretrieval._util.files import file_sha256
from clipretrieval.comparison.reproduction_report import what_differs
from clipretrieval.encoding.staged_encoder import stopped_at
from clipretrieval.evaluation import reproduce
from clipretrieval.images import scan_folder
from clipretrieval.images.cifar10 import cifar10_folder
from clipretrieval.stores import FaissStore, register_store, registry

STUDY = {"zero-shot": (0.7053, 128), "pixel": (0.3539, 290), "mid": (0.7150, 321), "late": (0.7731, 589)}


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return StagedEncoder(tiny_model, precision="fp32", batch_size=8)


@pytest.fixture(scope="module")
def folders(class_folder):
    return scan_folder(class_folder / "train"), scan_folder(class_folder / "test")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out") / "results"


class StoppedError(Exception):
    pass


@pytest.fixture(scope="module")
def found(encoder, folders, out):
    """A run that is stopped after the first pictures, and started again."""

    def stop(done, total):
        if done >= 8:
            raise StoppedError

    with pytest.raises(StoppedError):
        reproduce(*folders, encoder, out, progress=stop)
    return reproduce(*folders, encoder, out)


def test_a_run_goes_on_where_it_stopped(found, encoder, folders):
    """What was encoded before is not encoded again, and the figures are those of one go."""
    encoded = found.comparison.fit_timing.images["encode"]
    assert 0 < encoded <= 16
    assert found.comparison.n_train == 24
    for stage in ("pixel", "mid", "late", "final"):
        alone = RetrievalClassifier(stopped_at(encoder, stage), k=1).fit(folders[0])
        assert found.comparison[stage].report.accuracy == alone.score(folders[1])


def test_figures_stand_beside_the_studys(found):
    """Differences are ours minus the study's, ratios the study's time over ours, where it has a figure."""
    assert [row["name"] for row in found.rows] == ["zero-shot", "pixel", "mid", "late", "final"]
    for row in found.rows:
        ours = found.comparison[row["name"]]
        assert row["accuracy"] == ours.report.accuracy
        assert row["s_per_1000"] == ours.speed.total_s
        if row["name"] in STUDY:
            accuracy, seconds = STUDY[row["name"]]
            assert row["accuracy_difference"] == pytest.approx(row["accuracy"] - accuracy)
            assert row["s_ratio"] == pytest.approx(seconds / row["s_per_1000"])
        else:
            assert row["study_accuracy"] is row["accuracy_difference"] is row["s_ratio"] is None


def test_it_says_what_is_not_comparable(found):
    """The model, the classes, the number of pictures, the store and the machine are named."""
    told = " ".join(found.differences)
    for word in (
        "Another model",
        "Other classes",
        "24 images",
        "faiss instead of Pinecone",
        "Another machine",
    ):
        assert word in told


def test_it_writes_reports_and_histograms(found, out):
    """The JSON, the Markdown, the page and three PNG files are there, and hold the figures."""
    written = found.save(out)
    assert [path.name for path in written] == [
        *("report.json", "report.md", "report.html"),
        *("distances-pixel.png", "distances-mid.png", "distances-late.png"),
    ]
    content = json.loads((out / "report.json").read_text("utf-8"))
    assert content["kind"] == "reproduction"
    assert content["study"] == found.rows
    assert content["differences"] == list(found.differences)
    for name in ("report.md", "report.html"):
        text = (out / name).read_text("utf-8")
        for row in found.rows:
            assert f"{row['accuracy']:.2%}" in text
        assert "35.39%" in text
        assert "Another model" in text
    for path in written[3:]:
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert len(picture.convert("L").getcolors()) > 5


@pytest.mark.parametrize("store", ["memory", "chroma"])
def test_other_stores_give_the_same(found, encoder, folders, tmp_path, store):
    """The figures do not depend on the store, and one that lies in a folder has a place for each stage."""
    other = reproduce(*folders, encoder, tmp_path, store=store, open_clip=False)
    assert [row["accuracy"] for row in other.rows] == [row["accuracy"] for row in found.rows]
    assert other.comparison.open_clip is None
    places = {path.name for path in (tmp_path / "indexes").glob("*")}
    assert places == ({"pixel", "mid", "late", "final"} if store == "chroma" else set())


def test_results_of_other_settings_are_kept(found, encoder, folders, out):
    """A folder that belongs to another run is refused, and the message says what differs."""
    with pytest.raises(InvalidInputError, match="store was 'faiss' and is 'memory'"):
        reproduce(*folders, encoder, out, store="memory")


def test_folders_without_classes_are_refused(encoder, folders, class_folder, tmp_path):
    """Pictures without labels cannot be learnt from."""
    with pytest.raises(InvalidInputError, match="no sub-folder"):
        reproduce(folders[0], scan_folder(class_folder / "test" / "temple"), encoder, tmp_path)


def copied(class_folder, place):
    """Copy the folders, so that a test can change them."""
    shutil.copytree(class_folder, place)
    return scan_folder(place / "train"), scan_folder(place / "test")


def test_pictures_that_changed_do_not_answer(encoder, class_folder, tmp_path):
    """Stored vectors of pictures that are gone are counted and refused; new pictures are learnt too."""
    train, test = copied(class_folder, tmp_path / "data")
    out = tmp_path / "out"
    reproduce(train, test, encoder, out, open_clip=False)
    gone = train.paths[0].read_bytes()
    with Image.open(train.paths[0]) as picture:
        picture.rotate(180).save(train.paths[0])
    with pytest.raises(InvalidInputError, match="25 vectors of the stage 'pixel', 1 more than the 24 images"):
        reproduce(train, test, encoder, out, open_clip=False)
    (train.paths[0].parent / "old.jpg").write_bytes(gone)
    again = reproduce(scan_folder(train.root), test, encoder, out, open_clip=False)
    assert again.comparison.n_train == 25


def test_a_run_that_stored_nothing_claims_nothing(encoder, folders, class_folder, tmp_path):
    """What fails before a vector is stored leaves the folder free for other settings."""
    train, test = copied(class_folder, tmp_path / "data")
    (tmp_path / "data" / "test" / "owl").mkdir()
    shutil.copy(test.paths[0], tmp_path / "data" / "test" / "owl")
    out = tmp_path / "out"
    with pytest.raises(InvalidInputError, match=r"class folder 'owl', of which .* has no image"):
        reproduce(train, scan_folder(test.root), encoder, out)
    with pytest.raises(UnknownStoreError, match="unknown"):
        reproduce(train, test, encoder, out, store="unknown")
    for path in train.paths:
        path.write_bytes(b"broken")
    with pytest.raises(ImageDecodeError):
        reproduce(train, test, encoder, out, open_clip=False)
    assert not (out / "run.json").exists()
    found = reproduce(*folders, encoder, out, store="chroma", open_clip=False)
    assert found.comparison.n_train == 24
    assert json.loads((out / "run.json").read_text("utf-8"))["store"] == "chroma"


def test_the_same_folder_by_another_path_is_the_same_run(encoder, class_folder, tmp_path, monkeypatch):
    """Paths are compared by where they lead, whatever the working directory is."""
    copied(class_folder, tmp_path / "data")
    (tmp_path / "other").mkdir()

    def run(train, test, out):
        return reproduce(scan_folder(train), scan_folder(test), encoder, out, open_clip=False)

    monkeypatch.chdir(tmp_path)
    run("data/train", "data/test", "out")
    monkeypatch.chdir(tmp_path / "other")
    assert run("../data/train", tmp_path / "data" / "test", "../out").comparison.n_train == 24
    copied(class_folder, tmp_path / "other" / "data")
    with pytest.raises(InvalidInputError, match="train was"):
        run("data/train", "../data/test", "../out")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", "{garbage", r"run\.json.* does not tell which run"),
        ("run.json", "[1]", r"run\.json.*it holds no mapping.*remove the file"),
        ("indexes", "", "indexes' is a file"),
    ],
)
def test_folders_that_cannot_be_used_are_refused(encoder, folders, tmp_path, name, content, message):
    """A file that is in the way is named, with what to do about it."""
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InvalidInputError, match=message):
        reproduce(*folders, encoder, tmp_path)


class KeptStore(FaissStore):
    """A store that another package brings, with a path."""


def test_stores_of_packages_have_a_place_for_each_stage(encoder, folders, tmp_path, monkeypatch):
    """A path that is given for a store gets the stage's name below it."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    register_store("kept", KeptStore)
    options = {"path": str(tmp_path / "kept")}
    found = reproduce(
        *folders, encoder, tmp_path / "out", store="kept", store_options=options, open_clip=False
    )
    assert found.comparison.n_train == 24
    assert {path.name for path in (tmp_path / "kept").iterdir()} >= {"pixel", "mid", "late", "final"}


@pytest.mark.parametrize(
    ("model", "published", "told"),
    [
        ("RN50", True, None),
        ("RN50", False, "Perhaps other weights: RN50 with .*not the file that OpenAI published"),
        ("RN101", True, "Another model: RN101"),
    ],
)
def test_weights_by_their_file_are_told_truly(found, folders, tmp_path, monkeypatch, model, published, told):
    """OpenAI's own file is the study's model; another file of its form may be a copy, and is called that."""
    file = tmp_path / "weights.pt"
    file.write_bytes(b"weights")
    address = f"https://models.example/{file_sha256(file) if published else 'other'}/RN50.pt"
    monkeypatch.setattr(pretrained, "get_pretrained_url", lambda *_: address)
    given = StagedEncoder(model, str(file))
    sentences = what_differs(given, found.comparison, *folders, "pinecone")
    if told is None:
        assert not any("weights" in sentence for sentence in sentences)
    else:
        assert re.search(told, sentences[0])


def test_reproduce_from_the_command_line(command, class_folder, tiny_model, tmp_path):
    """The command prints both tables, writes the files, and refuses the folder for other settings."""
    given = ("reproduce", "--data", class_folder, "--model", tiny_model, "--out", tmp_path / "out")
    given = (*given, "--limit-train", 10, "--limit-test", 4, "--no-open-clip")
    status, out, err = command(*given)
    assert (status, err) == (0, "")
    content = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert (content["n_train"], content["n_test"]) == (10, 4)
    for row in content["study"]:
        assert f"{row['name']} " in out
        assert f"{row['accuracy']:.2%}" in out
    assert "study's time / ours" in out
    assert str(tmp_path / "out" / "report.html") in out
    status, out, err = command(*given[:-1], "--limit-test", 6)
    assert (status, out) == (2, "")
    assert "--limit-test was 4 and is 6" in err


def test_compare_from_the_command_line(command, class_folder, tiny_model, tmp_path):
    """The command prints the table of what was asked for, and writes it as JSON, page and Markdown."""
    files = [tmp_path / name for name in ("c.json", "c.html", "c.md")]
    given = ("compare", class_folder / "train", class_folder / "test", "--model", tiny_model)
    given = (*given, "--stages", "pixel,layer2.1", "--k", "1,3", "--store", "memory", "--no-open-clip")
    outputs = [part for pair in zip(("--json", "--html", "--markdown"), files, strict=True) for part in pair]
    status, out, err = command(*given, "--template", "a {}", "--template", "a photo of a {}.", *outputs)
    assert (status, err) == (0, "")
    names = ["zero-shot", "pixel k=1", "pixel k=3", "layer2.1 k=1", "layer2.1 k=3"]
    content = json.loads(files[0].read_text("utf-8"))
    assert [row["name"] for row in content["rows"]] == names
    for path in files:
        assert all(name in path.read_text("utf-8") for name in names)
    for row in content["rows"]:
        assert f"{row['accuracy']:.2%}" in out
    status, out, err = command(*given[:5], "--k", "few")
    assert (status, out) == (2, "")
    assert "whole numbers" in err
    status, out, err = command(*given, "--no-zero-shot", "--stages", "mid", "--k", 1)
    assert status == 0
    assert "zero-shot" not in out


def test_commands_refuse_in_their_own_terms(command, class_folder, tiny_model, tmp_path):
    """Limits and class folders that cannot go together are refused at once, with the options' names."""
    copied(class_folder, tmp_path / "data")
    train, test = tmp_path / "data" / "train", tmp_path / "data" / "test"
    out = tmp_path / "out"
    compared = ("compare", train, test, "--model", tiny_model)
    repeated = ("reproduce", "--data", tmp_path / "data", "--model", tiny_model, "--out", out)
    for given in (compared, repeated):
        status, _, err = command(*given, "--limit-train", 1)
        assert status == 2
        assert "--limit-train must be at least 2, one for each class" in err
    shutil.copytree(test / "temple", test / "owl")
    for given, advice in ((compared, "pass --no-zero-shot"), (repeated, "add images of the class")):
        status, _, err = command(*given)
        assert status == 2
        assert "'owl'" in err
        assert advice in err
        assert "class_names" not in err
    assert not out.exists()
    (out / "report.json").mkdir(parents=True)
    shutil.rmtree(test / "owl")
    status, _, err = command(*repeated)
    assert status == 2
    assert "report.json' is not a file" in err
    assert [path.name for path in out.iterdir()] == ["report.json"]


class Cifar:
    """What torchvision gives of CIFAR-10, in small."""

    classes = ("airplane", "cat")

    def __init__(self, root, train, download):
        assert download
        self.root, self.train = root, train

    def __len__(self):
        return 4 if self.train else 2

    def __getitem__(self, place):
        return Image.new("RGB", (32, 32), (place, 40 * self.train, 0)), place % 2


def test_cifar10_becomes_folders_of_exact_pictures(monkeypatch, tmp_path):
    """Pictures lie in class folders under their numbers, without loss, and are fetched once."""
    monkeypatch.setattr("torchvision.datasets.CIFAR10", Cifar)
    folder = cifar10_folder(tmp_path)
    train = scan_folder(folder / "train")
    assert [str(path.relative_to(folder)) for path in train.paths] == [
        *("train/airplane/00000.png", "train/airplane/00002.png"),
        *("train/cat/00001.png", "train/cat/00003.png"),
    ]
    with Image.open(train.paths[2]) as picture:
        assert picture.getpixel((5, 5)) == (1, 40, 0)
    assert len(scan_folder(folder / "test")) == 2
    monkeypatch.setattr("torchvision.datasets.CIFAR10", None)
    assert cifar10_folder(tmp_path) == folder


def test_cifar10_that_cannot_be_fetched_is_said_so(monkeypatch, tmp_path):
    """Without a network the message says what to pass instead, and nothing half-made is left."""

    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", fail)
    with pytest.raises(InvalidInputError, match=r"no network.*train/ and test/"):
        cifar10_folder(tmp_path)
    assert not (tmp_path / "cifar10").exists()
