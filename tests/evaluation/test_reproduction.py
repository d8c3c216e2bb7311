"""The study run again, on two classes and a small model: figures, files, and going on where it stopped."""

from __future__ import annotations

import json
import sys

import pytest
from PIL import Image

from clipretrieval import InvalidInputError, RetrievalClassifier, StagedEncoder, cli
from clipretrieval._cifar import cifar10_folder
from clipretrieval.encoding.views import stopped_at
from clipretrieval.evaluation import reproduce
from clipretrieval.images import scan_folder

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
        "24 pictures",
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


@pytest.fixture
def command(monkeypatch, capfd):
    """Run the command in this process; return its exit status, standard output and standard error."""
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("TQDM_DISABLE", "1")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["clipretrieval", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capfd.readouterr()

    return run


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
    assert "limit_test was 4 and is 6" in err


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
