"""The table of options: no command lacks what Python has, and no path is taken for another."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from clipretrieval import RetrievalClassifier, StagedEncoder, cli
from clipretrieval.cascade import CascadeClassifier
from clipretrieval.cli.arguments import ReportFiles
from clipretrieval.cli.arguments import command as made_command
from clipretrieval.cli.python_words import in_options
from clipretrieval.images import scan_folder

Command = Callable[..., tuple[int, str, str]]

SEVERAL = {"stage": "stages", "store": "store", "k": "k", "weights": "weights"}
TEXTS = {"text_weight", "class_names", "templates"}
"""Of a head with texts beside it, which `sweep` refuses: it tries heads by themselves."""
FIXED_BY_THE_STUDY = {
    *("stage", "pooling", "image_size", "k", "weights", "temperature", "metric", "normalize", "transform"),
    *("head", "priors"),
    *TEXTS,
}
NOT_IN_COMPARE = {"temperature", "normalize", "transform", "store_options", "text_weight", "class_names"}
"""What `clipretrieval.compare` has no argument for; the templates are those of zero-shot CLIP beside it."""


OF_HELD_OUT = {"unknown", "max_turned_away"}
"""What `conformalize` sets: nobody is turned away without images that were held out."""


def commands() -> dict[str, Any]:
    found: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    return found


def options(name: str) -> set[str]:
    return {parameter.name for parameter in commands()[name].params}


def arguments(kind: type[Any]) -> set[str]:
    named = set(inspect.signature(kind).parameters)
    return {name for name in named if not name.startswith("_")} - {"encoder"}


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("index", set()),
        ("evaluate", set()),
        ("sweep", TEXTS),
        ("compare", NOT_IN_COMPARE),
        ("reproduce", FIXED_BY_THE_STUDY),
    ],
)
def test_no_command_lacks_an_argument_of_the_classes_that_it_makes(name: str, without: set[str]) -> None:
    """Each constructor parameter of encoder and classifier is an option, unless the command fixes it."""
    wanted = (arguments(StagedEncoder) | arguments(RetrievalClassifier)) - without - OF_HELD_OUT
    spelled = {
        "store_options": "store_option",
        "templates": "template",
        **(SEVERAL if name == "compare" else {}),
    }
    assert {spelled.get(each, each) for each in wanted} <= options(name)


def test_index_lacks_no_argument_of_a_cascade() -> None:
    """No other command makes one: a cascade is calibrated before it is of use."""
    spelled = {"store_options": "store_option", "stages": "cascade"}
    assert {spelled.get(each, each) for each in arguments(CascadeClassifier)} <= options("index")


def test_calibrate_lacks_no_argument() -> None:
    """What decides is an option; the images come from a folder or a table."""
    for kind in (CascadeClassifier, RetrievalClassifier):
        named = set(inspect.signature(kind.calibrate).parameters) - {"self", "X", "y", "progress"}
        assert named <= options("calibrate")
    assert options("conformalize") >= OF_HELD_OUT


@pytest.mark.parametrize(
    "name", ["index", "calibrate", "conformalize", "evaluate", "sweep", "classify", "forget", "info"]
)
def test_every_command_that_opens_a_kept_classifier_asks_for_consent(name: str) -> None:
    """A classifier that names a server is opened by none of them without ``--allow-remote``."""
    assert "allow_remote" in options(name)


def test_an_option_has_the_same_meaning_and_default_everywhere() -> None:
    """What two commands call alike is of one kind, and has one default but where several may be given."""
    known: dict[str, Any] = {}
    for name, command in commands().items():
        for parameter in command.params:
            several = name in ("compare", "sweep") and parameter.name in (
                *("k", "weights", "store", "temperature", "head"),
            )
            # How many are printed or looked at; elsewhere, how many vote.
            shown = parameter.name == "k" and name in ("search", "audit")
            if (
                not (several or shown)
                and parameter.opts[0].startswith("--")
                and parameter.name not in ("json_file", "out", "stages")
            ):
                default = parameter.default
                assert known.setdefault(parameter.name, default) == default, (name, parameter.name)


def test_the_settings_reach_the_classifier(
    command: Command, class_folder: Path, tiny_model: str, tmp_path: Path
) -> None:
    """Pooling, size, temperature and normalisation are those of the classifier that is kept."""
    given = (
        "--model",
        tiny_model,
        "--stage",
        "layer2",
        "--pooling",
        "max",
        "--image-size",
        96,
        "--normalize",
    )
    voting = ("--k", 3, "--weights", "softmax", "--temperature", 0.5, "--seed", 3, "--precision", "fp32")
    assert command("index", class_folder / "train", tmp_path / "kept", *given, *voting)[0] == 0
    made = RetrievalClassifier.load(tmp_path / "kept")
    made.store_.close()
    config = made.encoder.config()  # type: ignore[union-attr]
    assert {name: config[name] for name in ("pooling", "image_size", "seed", "precision")} == {
        "pooling": "max",
        "image_size": 96,
        "seed": 3,
        "precision": "fp32",
    }
    assert (made.k, made.weights, made.temperature, made.normalize) == (3, "softmax", 0.5, True)
    folders = ("--train", class_folder / "train", "--test", class_folder / "test")
    assert command("evaluate", *folders, *given, *voting, "--json", tmp_path / "r.json")[0] == 0
    report = json.loads((tmp_path / "r.json").read_text())
    made = RetrievalClassifier.load(tmp_path / "kept")
    assert report["accuracy"] == made.score(class_folder / "test")
    made.store_.close()


PLACES = [
    ("demo", "--out", "{empty}"),
    ("index", "{empty}", "kept"),
    ("encode", "{empty}", "kept"),
    ("encode", "pictures", "{empty}"),
    ("index", "pictures", "{empty}"),
    ("index", "pictures", "kept", "--images-root", "{empty}"),
    ("index", "pictures", "kept", "--class-names", "{empty}"),
    ("classify", "{empty}", "pictures"),
    ("classify", "kept", "{empty}"),
    ("calibrate", "{empty}", "kept"),
    ("calibrate", "pictures", "{empty}"),
    ("calibrate", "pictures", "kept", "--images-root", "{empty}"),
    ("forget", "{empty}", "--label", "x"),
    ("info", "{empty}"),
    ("evaluate", "--train", "{empty}", "--test", "pictures"),
    ("evaluate", "--train", "pictures", "--test", "{empty}"),
    ("evaluate", "--classifier", "{empty}", "--test", "pictures"),
    ("evaluate", "--train", "pictures", "--test", "pictures", "--html", "{empty}"),
    ("evaluate", "--train", "pictures", "--test", "pictures", "--predictions", "{empty}"),
    ("evaluate", "--train", "pictures", "--test", "pictures", "--store-option", "path={empty}"),
    ("sweep", "--train", "pictures", "--validation", "{empty}"),
    ("compare", "{empty}", "pictures"),
    ("reproduce", "--out", "{empty}"),
    ("reproduce", "--data", "{empty}"),
]


@pytest.mark.parametrize("arguments", PLACES, ids=" ".join)
@pytest.mark.parametrize(("given", "told"), [("", "must not be empty"), ("x" * 300, "too long")])
def test_an_empty_or_impossible_path_is_refused_by_every_command(
    command: Command,
    class_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    given: str,
    told: str,
) -> None:
    """An empty path is not the current folder, and nothing is written before it is refused."""
    (tmp_path / "pictures").symlink_to(class_folder / "train", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    status, out, err = command(*(each.replace("{empty}", given) for each in arguments))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert told in err
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_every_parameter_that_is_a_path_is_checked() -> None:
    """typer is never given a path to convert: an empty one would be the current folder by then."""
    for registered in cli.app.registered_commands:
        for name, parameter in inspect.signature(registered.callback).parameters.items():  # type: ignore[arg-type]
            assert "Path" not in str(parameter.annotation), (registered.name, name)


def test_a_group_is_made_of_its_options() -> None:
    """A command function gets a path as a Path, and None where none was given."""
    seen: list[ReportFiles] = []

    def show(files: ReportFiles) -> None:
        seen.append(files)

    made_command(show)(json_file="a.json", html_file=None, markdown_file=None)
    assert seen == [ReportFiles(Path("a.json"))]


REPORTS = ("evaluate", "--stage", "pixel", "--train", "{train}", "--test", "{test}")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--json", "r", "--html", "r"), "--json and --html name the same file"),
        (("--json", "r", "--markdown", "./folder/../r"), "--json and --markdown name the same file"),
        (("--html", "r", "--predictions", "link"), "--html and --predictions name the same file"),
        (("--json", "{test}/temple/00.jpg"), "is a part of"),
    ],
)
def test_a_report_never_replaces_another_or_what_is_read(
    command: Command,
    class_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    told: str,
) -> None:
    """Two reports to one file, by whatever way it is named, are refused before the work, as is a picture."""
    shutil.copytree(class_folder, tmp_path / "crops")
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("link").symlink_to("r")
    before = {path: path.read_bytes() for path in Path("crops").rglob("*.*")}
    places = {"train": "crops/train", "test": "crops/test"}
    status, out, err = command(*(each.format(**places) for each in (*REPORTS, *arguments)))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert told in err
    assert not Path("r").exists()
    assert {path: path.read_bytes() for path in Path("crops").rglob("*.*")} == before


def test_a_report_does_not_go_into_the_classifiers_folder(
    command: Command, class_folder: Path, tmp_path: Path
) -> None:
    """The file that makes the folder a classifier is not replaced by a report on it."""
    kept = tmp_path / "kept"
    assert command("index", class_folder / "train", kept, "--stage", "pixel")[0] == 0
    before = (kept / "classifier.json").read_bytes()
    asked = ("evaluate", "--classifier", kept, "--test", class_folder / "test")
    status, _, err = command(*asked, "--json", kept / "classifier.json")
    assert (status, "is a part of" in err) == (2, True)
    assert (kept / "classifier.json").read_bytes() == before


def write_table(file: Path, folder: Path, *, start: Path) -> Path:
    found = scan_folder(folder)
    rows = [
        f"{path.relative_to(start)},{label}"
        for path, label in zip(found.paths, found.labels or (), strict=True)
    ]
    file.write_text("\n".join(["name of the file,class", *rows]) + "\n")
    return file


def test_a_table_of_paths_and_labels_stands_in_the_place_of_a_folder(
    command: Command, class_folder: Path, tmp_path: Path
) -> None:
    """Index, evaluate and sweep take a CSV file, and give the answers that the folder gives."""
    train = write_table(tmp_path / "train.csv", class_folder / "train", start=class_folder)
    test = write_table(tmp_path / "test.csv", class_folder / "test", start=class_folder)
    table = ("--images-root", class_folder, "--image-column", "name of the file")
    status, out, err = command("index", train, tmp_path / "kept", "--stage", "pixel", "--k", 3, *table)
    assert (status, err) == (0, "")
    assert "2 classes (flower, temple)" in out
    answers = []
    for test_set in ((test, *table), (class_folder / "test",)):
        written = tmp_path / f"{len(answers)}.json"
        asked = ("evaluate", "--classifier", tmp_path / "kept", "--test", *test_set)
        assert command(*asked, "--json", written)[0] == 0
        answers.append(json.loads(written.read_text())["confusion_matrix"])
    assert answers[0] == answers[1]
    asked = ("sweep", "--classifier", tmp_path / "kept", "--validation", test, *table, "--k", 3, "--json")
    status, out, _ = command(*asked, "--weights", "uniform")
    right = sum(answers[0][place][place] for place in (0, 1))
    assert json.loads(out)["best"]["accuracy"] == pytest.approx(right / 10)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("{csv}", "kept"), "--image-column NAME"),
        (("{csv}", "kept", "--image-column", "nothing"), "no column is named 'nothing'"),
        (
            ("{csv}", "kept", "--image-column", "name of the file", "--label-column", "x"),
            "no column is named 'x'",
        ),
        (("{train}", "kept", "--images-root", "."), "--images-root is for a CSV file"),
        (("{train}/temple/00.jpg", "kept"), "is a file; pass a folder"),
        (("{csv}.csv", "kept"), "nowhere.csv.csv"),
    ],
)
def test_what_is_wrong_with_a_table_is_told_in_options(
    command: Command,
    class_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    told: str,
) -> None:
    """One line names the option that helps, and nothing is begun."""
    monkeypatch.chdir(tmp_path)
    csv = write_table(tmp_path / "nowhere.csv", class_folder / "train", start=class_folder)
    places = {"csv": csv, "train": class_folder / "train"}
    status, out, err = command("index", *(each.format(**places) for each in arguments), "--stage", "pixel")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert told in err
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("index", "{train}", "new", "--batch-size", "-1"), "--batch-size must be a whole number"),
        (("evaluate", "--train", "{train}", "--test", "{train}", "--max-pixels", "0"), "--max-pixels must"),
        (("sweep", "--train", "{train}", "--validation", "{train}", "--seed", "-1"), "--seed must be a"),
        (("audit", "{train}", "--parts", "x"), "--parts must be one of 'label', "),
        (("index", "{train}", "new", "--flush-every", "0"), "--flush-every must be a whole number"),
        (("index", "{train}", "new", "--weights", "x"), "unknown weights 'x'; choose one of"),
        (("index", "{train}", "new", "--transform", "x"), "unknown transform 'x'; pass 'auto',"),
        (("compare", "{train}", "{train}", "--single-images", "-1"), "--single-images must be a"),
        (("recommend", "{train}", "--poolings", "x"), "--poolings must be one of 'mean', "),
        (("recommend", "{train}", "--min-accuracy", "2"), "--min-accuracy must be a finite number"),
    ],
)
def test_errors_name_options_as_they_are_typed(
    command: Command, class_folder: Path, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    """Not as Python calls the arguments, and without advice that only Python can follow."""
    given = [each.format(train=class_folder / "train") for each in arguments]
    stage = ("--stage", "pixel") if arguments[0] in ("index", "evaluate", "sweep", "audit") else ()
    status, _, err = command(*(tmp_path / each if each == "new" else each for each in given), *stage)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: {told}")
    assert "callable" not in err


@pytest.mark.parametrize(
    ("python", "here"),
    [
        ("batch_size must be 1", "--batch-size must be 1"),
        ("the batch_size is too large", "the --batch-size is too large"),
        ("pass allow_tuned=True, or k=3", "pass --allow-tuned, or --k 3"),
        ("(keep_vectors=False) or text_weight=None", "(--no-keep-vectors) or --text-weight none"),
        ("pretrained='a b' and templates", "--pretrained a b and templates"),
        ("'batch_size' is no label, nor /k=3/seed=4.png", "'batch_size' is no label, nor /k=3/seed=4.png"),
        ("stored 'Tower(k=2, seed=1)', given k=3", "stored 'Tower(k=2, seed=1)', given --k 3"),
        ("k nearest and seed of load(stage)", "k nearest and seed of load(stage)"),
    ],
)
def test_arguments_are_written_as_options(python: str, here: str) -> None:
    """Wherever they are meant, and neither in names nor in paths nor as plain words."""
    known = {name for each in commands().values() for name in (found.name for found in each.params)}
    assert in_options(python, known) == here
