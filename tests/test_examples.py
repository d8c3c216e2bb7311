"""The scripts that a person would start from: each runs, says what it should, and stays short."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from crafted_images import png
from fastapi.testclient import TestClient

from clipretrieval import RetrievalClassifier, StagedEncoder
from clipretrieval.demo import demo_model

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = [
    *("own_folder", "swap_stores", "zero_shot", "own_encoder", "online_learning", "cascade", "audit"),
    "web_service",
]
DRAWN = ["trust"]
"""Those that read no folder."""


def load(name: str) -> ModuleType:
    """Import a script by its path."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Run a script with arguments and return the lines that it printed."""

    def run_script(name: str, *arguments: str | Path) -> list[str]:
        load(name).main([str(argument) for argument in arguments])
        return capsys.readouterr().out.splitlines()

    return run_script


@pytest.mark.parametrize("name", [*SCRIPTS, *DRAWN])
def test_scripts_are_short(name: str) -> None:
    """A script that a person starts from has fewer than 60 lines, and the service fewer than 90."""
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) < (
        90 if name == "web_service" else 60
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_missing_folder_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is not there ends a script with status 2 and an error that names it, no traceback."""
    places = [tmp_path / "missing"] * (1 if name == "web_service" else 2)
    with pytest.raises(SystemExit) as ended:
        load(name).main([str(place) for place in places])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "missing" in told


def test_own_folder(run: Callable[..., list[str]], digits_folder: Path, tmp_path: Path) -> None:
    """Each picture's class is printed, with its neighbours' distances, classes and files below it."""
    picture = sorted((digits_folder / "test" / "0").iterdir())[0]
    printed = run("own_folder", digits_folder / "train", picture, "--save", tmp_path / "kept")
    assert printed[0] == f"{picture}: 0"
    assert len(printed) == 4
    distances = [float(line.split()[0]) for line in printed[1:]]
    assert distances == sorted(distances)
    assert all(Path(line.split(maxsplit=2)[2]).is_file() for line in printed[1:])
    assert RetrievalClassifier.load(tmp_path / "kept").predict([picture]).tolist() == ["0"]


def test_audit(run: Callable[..., list[str]], digits_folder: Path) -> None:
    """Drawn images in wrong folders are listed with the folder that they came from; a folder can be given."""
    printed = run("audit", "--per-kind", "20")
    assert printed[0] == "10 images were put into the wrong folder"
    moves = [re.fullmatch(r"mv .*/from-(\w+)-\d+\.png to (\w+) \(.*%\)", line) for line in printed]
    assert sum(move is not None and move[1] == move[2] for move in moves) >= 5
    assert run("audit", digits_folder / "test")[0] == "50 images of 10 classes"


def test_cascade(run: Callable[..., list[str]], digits_folder: Path) -> None:
    """A line for each exit with the images that left, the accuracy, and why an image stopped where it did."""
    train, test = digits_folder / "train", digits_folder / "test"
    stages = ["--model", demo_model(), "--stages", "layer1", "late"]
    printed = run("cascade", train, test, *stages)
    assert [line.split(":")[0] for line in printed[:2]] == ["layer1", "late"]
    assert sum(int(line.split()[1]) for line in printed[:2]) == 50
    assert re.match(
        r"accuracy [0-9.]+%, [0-9]+% of the arithmetic; the last stage alone [0-9.]+%$", printed[2]
    )
    assert printed[3].startswith(tuple("0123456789"))
    assert printed[-1].startswith(("  layer1: ", "  late: "))


def test_promises_are_kept(run: Callable[..., list[str]]) -> None:
    """Of drawn images as many as were asked are covered, but for chance, and few are turned away."""
    report, covered, right, unknown = run("trust", "--stage", "pixel", "--head", "votes", "--each", "15")
    assert report.startswith("CalibrationReport(method='temperature', n=")
    assert 78 < float(covered.split("%")[0]) <= 100
    assert 10 < float(right.split("%")[0]) < 100
    assert unknown.startswith("UnknownFigures(n=30, auroc=0.")


def test_swapped_stores_agree(run: Callable[..., list[str]], digits_folder: Path) -> None:
    """Three stores give the accuracy that the classifier has with the store in memory."""
    expected = RetrievalClassifier(StagedEncoder(stage="pixel"), "memory", k=3)
    report = expected.fit(digits_folder / "train").evaluate(digits_folder / "test")
    printed = run("swap_stores", digits_folder / "train", digits_folder / "test")
    assert [line.split(maxsplit=1) for line in printed] == [
        [name, f"{report.accuracy:.1%} of 50 images"]
        for name in ("FaissStore", "ChromaStore", "PineconeStore")
    ]


def test_zero_shot_beside_retrieval(
    run: Callable[..., list[str]], class_folder: Path, tiny_model: str
) -> None:
    """Both accuracies are printed, each with its interval; retrieval tells the two photographs apart."""
    folders = (class_folder / "train", class_folder / "test")
    zero_shot, retrieval = run("zero_shot", *folders, "--model", tiny_model, "--stage", "pixel", "--k", "3")
    assert zero_shot.startswith("zero-shot ")
    assert "% of 10 images (" in zero_shot
    expected = RetrievalClassifier(StagedEncoder(stage="pixel"), k=3).fit(folders[0]).score(folders[1])
    assert retrieval.split()[:3] == ["pixel,", "k=3", f"{expected:.1%}"]


def test_own_encoder(run: Callable[..., list[str]], class_folder: Path, tmp_path: Path) -> None:
    """Two heads over the histograms, and a classifier that is kept; colors tell the two photographs apart."""
    printed = run("own_encoder", class_folder / "train", class_folder / "test", "--save", tmp_path / "kept")
    assert [line.split("  ")[0] for line in printed[:2]] == [
        "color-histogram votes",
        "color-histogram discriminant",
    ]
    assert all(line.endswith("100.0% of 10 images") for line in printed[:2])
    assert printed[2] == f"{tmp_path / 'kept'}: 24 images of 2 classes"


def test_online_learning(run: Callable[..., list[str]], digits_folder: Path) -> None:
    """The accuracy rises with the class that is added, and falls back when that is forgotten."""
    printed = run("online_learning", digits_folder / "train", digits_folder / "test")
    before, added, *_, forgotten = [line for line in printed if "%" in line]
    assert before.startswith("9 classes: ")
    share = [float(line.split(": ")[1].split("%")[0]) for line in (before, added, forgotten)]
    assert share[0] < share[1]
    assert share[2] == share[0]


@pytest.fixture(scope="module")
def service(digits_folder: Path) -> TestClient:
    """The web service over twenty pictures of each digit."""
    classifier = RetrievalClassifier(StagedEncoder(stage="pixel"), k=3).fit(digits_folder / "train")
    return TestClient(load("web_service").create_app(classifier, largest=10_000))


def test_the_service_answers_with_neighbours(service: TestClient, digits_folder: Path) -> None:
    """An uploaded picture is answered with its label, the share of the votes, and its neighbours."""
    picture = sorted((digits_folder / "test" / "0").iterdir())[0]
    answer = service.post("/classify", params={"k": 4}, files={"picture": picture.read_bytes()})
    assert answer.status_code == 200
    found = answer.json()
    assert found["label"] == "0"
    assert found["share"] == 1.0
    assert [neighbor["share"] > 0 for neighbor in found["neighbors"]] == [True, True, True, False]
    assert Path(found["neighbors"][0]["source"]).is_file()


@pytest.mark.parametrize(
    ("content", "k", "status", "said"),
    [
        (b"no picture", 5, 422, "cannot decode"),
        (png(5_001, 5_000), 5, 422, "5001 × 5000 pixels, 25,005,000 in all, but at most 25,000,000 are"),
        (b"x" * 10_001, 5, 413, "10000 bytes"),
        (b"x" * 20_001, 5, 413, "10000 bytes"),
        (b"no picture", 0, 422, "greater than or equal to 1"),
        (None, 5, 422, "Field required"),
    ],
)
def test_the_service_refuses(
    service: TestClient, content: bytes | None, k: int, status: int, said: str
) -> None:
    """What is no picture, too large in bytes or pixels, or missing is the caller's mistake, and is told."""
    files = None if content is None else {"picture": content}
    answer = service.post("/classify", params={"k": k}, files=files)
    assert answer.status_code == status
    assert said in str(answer.json()["detail"])
