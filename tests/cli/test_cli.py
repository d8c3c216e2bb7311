"""The command line, as its users and their shells meet it."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import clipretrieval
from clipretrieval import RetrievalClassifier, StagedEncoder
from clipretrieval.images import iter_images, scan_folder
from clipretrieval.stores import FaissStore, MemoryStore, register_store

PATIENCE_S = 120
TEMPLE = "寺"
posix = pytest.mark.skipif(os.name != "posix", reason="terminals and process groups are POSIX")
# Some libraries colour and animate what goes into a pipe where the first is set, and the command must not.
SURROUNDINGS = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
for name in ("PYTHONWARNINGS", "PYTHONUNBUFFERED"):
    SURROUNDINGS.pop(name, None)

LOUD_AND_FAULTY = """
import logging, warnings
from clipretrieval.cli import main
from clipretrieval.stores import MemoryStore, register_store

class Loud(MemoryStore):
    def upsert(self, *arguments):
        logging.warning("noise of the root logger")
        logging.getLogger("huggingface_hub").error("noise of a logger with a handler of its own")
        warnings.warn("noise of a warning")
        super().upsert(*arguments)

    def search(self, vectors, k):
        raise RuntimeError("a fault")

register_store("loud", Loud)
main()
"""


def start(*arguments, program=("-m", "clipretrieval"), env=None, **streams):
    """Start the command as a process in a group of its own."""
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        env={**SURROUNDINGS, **(env or {})},
        stdin=subprocess.DEVNULL,
        start_new_session=os.name == "posix",
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
    )


def finish(process):
    """Wait for a process and return its exit status and what went into its pipes."""
    try:
        out, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    return process.returncode, *((each or b"").decode() for each in (out, err))


@pytest.fixture(scope="module")
def crops(class_folder, tiny_model):
    """What every good evaluation is given."""
    return (
        "evaluate",
        "--train",
        class_folder / "train",
        "--test",
        class_folder / "test",
        "--model",
        tiny_model,
    )


@pytest.fixture
def places(class_folder, tmp_path):
    """A folder with pitfalls: an empty folder, a flat one, damaged pictures, a damaged checkpoint, a file."""
    (tmp_path / "empty").mkdir()
    shutil.copytree(class_folder / "test" / "temple", tmp_path / "flat")
    shutil.copytree(class_folder / "test", tmp_path / "damaged")
    (tmp_path / "damaged" / "temple" / "03.png").write_bytes(b"not a picture")
    (tmp_path / "checkpoint.safetensors").write_bytes(b"not a checkpoint")
    (tmp_path / "file").write_text("kept")
    return tmp_path


@pytest.fixture(scope="module")
def evaluation(tiny_model, class_folder, tmp_path_factory):
    """One evaluation by a real process, with a picture beside the class folders and a class in Chinese."""
    root = tmp_path_factory.mktemp("evaluation")
    for split in ("train", "test"):
        shutil.copytree(class_folder / split, root / split)
        (root / split / "temple").rename(root / split / TEMPLE)
    shutil.copy(class_folder / "train" / "temple" / "00.jpg", root / "train" / "stray.jpg")
    process = start(
        *("evaluate", "--train", root / "train", "--test", root / "test", "--model", tiny_model),
        *("--stage", "stem", "--metric", "cosine", "--k", 3),
        *("--store-option", f"path={root / 'index'}", "--json", root / "report.json"),
        *("--html", root / "report.html", "--markdown", root / "report.md"),
        env={"PYTHONIOENCODING": "latin-1"},
    )
    status, out, err = finish(process)
    assert status == 0, err
    (root / "train" / "stray.jpg").unlink()
    report = json.loads((root / "report.json").read_text(encoding="utf-8"))
    return {"out": out, "err": err, "report": report, "root": root}


def test_page_and_markdown_are_written_beside_the_json(evaluation):
    """Each file tells the same accuracy and names every class."""
    for name in ("report.html", "report.md"):
        text = (evaluation["root"] / name).read_text(encoding="utf-8")
        assert f"{evaluation['report']['accuracy']:.2%}" in text
        assert TEMPLE in text


def unhurried(report):
    """Return a report without what differs from run to run, or with the cores of the process."""
    plan = {key: value for key, value in (report["plan"] or {}).items() if key not in ("streams", "threads")}
    return {key: value for key, value in report.items() if key != "timing"} | {"plan": plan}


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [(["--help"], "evaluate"), (["evaluate", "--help"], "--store-option"), (["--version"], None)],
)
def test_help_and_version_go_to_the_standard_output(arguments, shown):
    """Who asks for help or for the version gets it on the standard output, with status 0."""
    status, out, err = finish(start(*arguments))
    assert (status, err) == (0, "")
    assert shown in out if shown else out == f"clipretrieval {clipretrieval.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "command"),
        (["bogus"], "'bogus'"),
        (["--bogus"], "--bogus"),
        (["evaluate"], "'--test'"),
        (["evaluate", "--train", "x"], "'--test'"),
        (["evaluate", "--train"], "'--train'"),
        (["evaluate", "--train", "x", "--test", "x", "--bogus"], "--bogus"),
        (["evaluate", "kept", "--test", "x", "stray"], "stray"),
        (["evaluate", "--train", "x", "--test", "x", "--k", "1.5"], "'--k'"),
        (["evaluate", "--train", "x", "--test", "x", "--limit-test", "many"], "'--limit-test'"),
    ],
)
def test_wrong_usage_is_told_in_one_line(command, arguments, named):
    """Options and commands that do not exist, are missing or malformed are named, with a way to the help."""
    status, out, err = command(*arguments)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"error: .*; see 'clipretrieval( evaluate)? --help'\n", err)
    assert named in err


def test_wrong_usage_ends_the_process_with_status_2():
    """The shell sees status 2, and nothing on the standard output."""
    status, out, err = finish(start("bogus"))
    assert (status, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--train", "{}/nowhere"], "nowhere"),
        (["--train", ""], "--train must not be empty"),
        (["--test", "{}/empty"], "empty"),
        (["--train", "{}/flat"], "flat"),
        (["--test", "{}/flat"], "flat"),
        (["--test", "{}/damaged"], "03.png"),
        (["--stage", "bogus"], "'bogus'"),
        (["--store", "bogus"], "'faiss', 'lance', 'memory'"),
        (["--metric", "bogus"], "'cosine'"),
        (["--model", "bogus"], "RN50"),
        (["--model", "local-dir:{}/nowhere"], "nowhere"),
        (["--model", "local-dir:{}/no\nwhere"], "no where"),
        (["--model", "hf-hub:nobody/has-this"], "nobody/has-this"),
        (["--model", "RN50", "--pretrained", "bogus"], "openai"),
        (["--model", "RN50", "--pretrained", "{}/checkpoint.safetensors"], "checkpoint.safetensors"),
        (["--device", "bogus"], "'bogus'"),
        (["--k", "0"], "k must be"),
        (["--k", "-1"], "k must be"),
        (["--batch-size", "0"], "--batch-size must be"),
        (["--limit-train", "0"], "--limit-train"),
        (["--limit-test", "-3"], "--limit-test"),
        (["--store-option", "path"], "KEY=VALUE"),
        (["--store-option", "=index"], "KEY=VALUE"),
        (["--store-option", "bogus=1"], "bogus"),
        (["--store-option", "read_only=maybe"], "true or false"),
        (["--store-option", "index=5"], "'5'"),
        (["--store-option", "metric=cosine"], "--metric"),
        (["--store-option", "path={}/flat"], "flat"),
        (["--store-option", "path={}/file"], "file"),
    ],
)
def test_a_users_mistake_is_told_in_one_line(command, crops, places, arguments, named):
    """What the user can mend is named in one line, with status 2, and no report is written."""
    given = [argument.replace("{}", str(places)) for argument in arguments]
    status, out, err = command(*crops, *given, "--json", places / "report.json")
    assert (status, out) == (2, "")
    assert re.fullmatch(r"error: .*\n", err)
    assert named in err
    assert not (places / "report.json").exists()


@pytest.mark.parametrize(
    "file", ["empty", "nowhere/report.json", "file/report.json", "", "x" * 300, "pipe", "circle"]
)
def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    command, crops, places, monkeypatch, file
):
    """Nothing is fitted for a report whose place is no file, not there, or cannot be written."""
    monkeypatch.chdir(places)
    if os.name == "posix":
        os.mkfifo("pipe")
    else:
        Path("pipe").mkdir()
    Path("circle").symlink_to("circle")
    status, out, err = command(*crops, "--store-option", "path=index", "--json", file)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"error: --json.*\n", err)
    assert not Path("index").exists()
    assert Path("file").read_text() == "kept"
    assert not list(places.glob(".*"))


def test_a_report_replaces_what_a_link_leads_to_and_only_when_it_is_done(command, crops, places):
    """A failed run leaves the last report alone; a good one writes through the link."""
    link = places / "latest.json"
    link.symlink_to(places / "file")
    assert command(*crops, "--k", 0, "--json", link)[0] == 2
    assert (places / "file").read_text() == "kept"
    assert command(*crops, "--stage", "pixel", "--json", link)[0] == 0
    assert link.is_symlink()
    assert json.loads((places / "file").read_text())["stage"] == "pixel"


def test_the_table_is_printed_even_if_the_report_can_no_longer_be_written(
    command, crops, tmp_path, monkeypatch
):
    """An answer that took long to find is not lost with the folder that the report was meant for."""
    folder = tmp_path / "reports"
    folder.mkdir()

    class RemovesFolder(MemoryStore):
        def search(self, vectors, k):
            if folder.exists():
                folder.rmdir()
            return super().search(vectors, k)

    monkeypatch.setattr("clipretrieval.stores.registry._registered", {})
    register_store("removes-folder", RemovesFolder)
    status, out, err = command(
        *crops, "--stage", "pixel", "--store", "removes-folder", "--json", folder / "report.json"
    )
    assert status == 2
    assert out.startswith("accuracy ")
    assert re.fullmatch(r"error: .*reports.*\n", err)


def test_the_answer_goes_to_the_standard_output_and_warnings_to_the_other(evaluation):
    """The table alone is on the standard output; a warning is one line on the other, without any bar."""
    assert re.fullmatch(r"warning: 1 image.* beside the class folders .*\n", evaluation["err"])
    report, lines = evaluation["report"], evaluation["out"].splitlines()
    right = sum(report["confusion_matrix"][place][place] for place in range(2))
    assert lines[0].startswith(f"accuracy {report['accuracy']:.2%}")
    assert lines[0].endswith(f"{right} of 10 images")
    for each in report["per_class"]:
        # Letters that the pipe cannot take are spelled out.
        name = each["class"].encode("latin-1", "backslashreplace").decode()
        row = next(line for line in lines if line.startswith(f"{name} "))
        assert float(row.split()[2]) == pytest.approx(each["recall"], abs=1e-4)
    assert "\x1b" not in evaluation["out"]


def test_the_report_says_what_was_asked_for(evaluation, tiny_model):
    """The report names the setting, the classes and the versions."""
    report = evaluation["report"]
    asked = {"model": tiny_model, "stage": "stem", "dim": 8, "store": "faiss", "metric": "cosine", "k": 3}
    assert {key: report[key] for key in asked} == asked
    assert (report["n_train"], report["n_test"]) == (24, 10)
    assert report["classes"] == ["flower", TEMPLE]
    assert report["versions"]["clipretrieval"] == clipretrieval.__version__
    assert report["versions"]["numpy"] == np.__version__


def test_the_report_agrees_with_a_computation_by_hand(evaluation, tiny_model):
    """Accuracy and confusions are those of brute force in float64 over the encoder's vectors."""
    encoder = StagedEncoder(tiny_model, stage="stem")
    splits = [scan_folder(evaluation["root"] / split) for split in ("train", "test")]
    known, asked = (encoder.encode(split.paths).astype(np.float64) for split in splits)
    known, asked = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (known, asked))
    nearest = np.argsort(-(asked @ known.T), axis=1)[:, :3]
    temples = np.array([label == TEMPLE for label in splits[0].labels])[nearest].sum(axis=1) > 1
    truth = np.array([label == TEMPLE for label in splits[1].labels])
    expected = [[int(((truth == row) & (temples == column)).sum()) for column in (0, 1)] for row in (0, 1)]
    report = evaluation["report"]
    assert report["confusion_matrix"] == expected
    assert report["accuracy"] == pytest.approx(np.mean(truth == temples))
    assert [each["support"] for each in report["per_class"]] == [5, 5]


def test_the_report_agrees_with_the_python_interface(evaluation, tiny_model):
    """The same evaluation through the classes of the library gives the same report, but for the times."""
    encoder = StagedEncoder(tiny_model, stage="stem")
    classifier = RetrievalClassifier(encoder, "faiss", k=3, metric="cosine")
    splits = [scan_folder(evaluation["root"] / split) for split in ("train", "test")]
    classifier.fit(splits[0].paths, splits[0].labels)
    expected = unhurried(classifier.evaluate(splits[1]).to_dict())
    found = unhurried(evaluation["report"])
    for kind, distances in expected.pop("distances").items():
        assert found["distances"][kind] == pytest.approx(distances, rel=0.01)
    del found["distances"]
    assert found == expected


def test_the_times_are_of_the_fit_and_of_the_test_images(evaluation):
    """``fit_s`` is the whole fit; ``encode_s`` and ``search_s`` are of the test images; the total has all."""
    timing = evaluation["report"]["timing"]
    parts = timing["parts"]
    of_fit = [part for name, part in parts.items() if name.startswith("fit_")]
    assert {"fit_decode", "fit_encode", "fit_store", "fit_flush"} <= set(parts)
    assert {part["images"] for part in of_fit} == {24}
    # Parts of a fit run beside one another: their sum may pass it, no single one can.
    assert timing["fit_s"] > max(part["seconds"] for part in of_fit) > 0
    for name in ("encode", "search"):
        assert parts[name]["images"] == 10
        assert timing[f"{name}_s"] == parts[name]["seconds"] > 0
    assert timing["total_s"] >= timing["fit_s"] + timing["encode_s"] + timing["search_s"]


def test_an_index_is_kept_and_not_filled_twice(command, crops, evaluation):
    """A path for the store keeps the vectors there, and a second fit on top of them is refused."""
    index = evaluation["root"] / "index"
    status, out, err = command(
        *crops, "--stage", "stem", "--metric", "cosine", "--store-option", f"path={index}"
    )
    assert (status, out) == (2, "")
    assert re.fullmatch(r"error: .* already holds 24 vectors.*\n", err)
    with FaissStore.load(index) as store:
        assert (store.count(), store.dim) == (24, 8)


def test_a_folder_called_by_a_number_can_be_the_stores(command, crops, tmp_path, monkeypatch):
    """An option that takes text takes all text, even such as would pass for a number or for null."""
    monkeypatch.chdir(tmp_path)
    for name in ("7", "null"):
        assert command(*crops, "--stage", "pixel", "--store-option", f"path={name}")[0] == 0
        with FaissStore.load(name) as store:
            assert store.count() == 24


def test_no_pretrained_weights_is_a_word_in_any_case(command, crops, tmp_path):
    """``none``, as the messages of the Python interface spell it too, gives random weights."""
    options = ("--model", "RN50", "--stage", "stem", "--limit-train", 2, "--limit-test", 1)
    status, _, err = command(*crops, *options, "--pretrained", "None", "--json", tmp_path / "report.json")
    assert (status, err) == (0, "")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["model"], report["pretrained"], report["dim"]) == ("RN50", None, 64)


def test_both_stores_give_the_same_answers(command, crops, tmp_path):
    """Memory and FAISS give the same confusions and the same distances."""
    reports = []
    for store in ("memory", "faiss"):
        status, _, err = command(*crops, "--store", store, "--json", tmp_path / store)
        assert (status, err) == (0, "")
        reports.append(json.loads((tmp_path / store).read_text()))
    memory, faiss = reports
    assert (memory["store"], faiss["store"]) == ("memory", "faiss")
    assert memory["confusion_matrix"] == faiss["confusion_matrix"]
    assert memory["distances"] == faiss["distances"]


def test_a_damaged_picture_is_passed_over_on_request(command, crops, places):
    """With ``--on-error skip`` it is named, all others are classified, and the exit status is 3."""
    damaged = places / "damaged"
    asked = list(crops)
    asked[asked.index("--test") + 1] = damaged
    status, out, err = command(
        *(*asked, "--stage", "pixel", "--k", 3, "--weights", "distance"),
        *("--on-error", "skip", "--json", places / "report.json"),
    )
    assert (status, err.count("\n")) == (3, 1)
    assert "03.png" in err
    assert out.startswith("accuracy")
    report = json.loads((places / "report.json").read_text())
    assert (report["weights"], report["n_skipped"]) == ("distance", 1)
    assert report["n_test"] == len(list(damaged.rglob("*.*"))) - 1


@pytest.mark.parametrize(("limit", "flowers", "temples"), [(2, 1, 1), (5, 3, 2), (23, 12, 11), (99, 12, 12)])
def test_a_limit_takes_images_in_turn_from_each_class(
    command, crops, class_folder, tmp_path, limit, flowers, temples
):
    """The first images of each class are taken in turn, the same ones every time."""
    options = ("--stage", "pixel", "--limit-train", limit, "--limit-test", 3)
    status, _, err = command(
        *crops, *options, "--store-option", f"path={tmp_path / 'index'}", "--json", tmp_path / "report.json"
    )
    assert (status, err) == (0, "")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["n_train"] == flowers + temples
    assert [each["support"] for each in report["per_class"]] == [2, 1]
    folder = scan_folder(class_folder / "train")
    first = [*folder.paths[:flowers], *folder.paths[12 : 12 + temples]]
    with FaissStore.load(tmp_path / "index") as store:
        assert len(store.get([image.id for image in iter_images(first)])) == store.count() == len(first)
    assert command(*crops, *options, "--json", tmp_path / "again.json")[0] == 0
    assert unhurried(json.loads((tmp_path / "again.json").read_text())) == unhurried(report)


@posix
def test_a_terminal_shows_bars_and_a_reader_that_has_gone_no_traceback(crops, tmp_path):
    """Behind a pipe that nobody reads any more, bars still show, and the report is written."""
    ours, theirs = os.openpty()
    process = start(
        *(*crops, "--stage", "pixel", "--json", tmp_path / "report.json"),
        env={"TERM": "xterm"},
        stderr=theirs,
    )
    os.close(theirs)
    process.stdout.close()
    process.stdout = None
    shown = b"".join(_read(ours))
    os.close(ours)
    assert finish(process)[0] == 1
    assert b"fitting" in shown
    assert b"classifying" in shown
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")
    assert b"Error" not in shown
    assert json.loads((tmp_path / "report.json").read_text())["n_test"] == 10


def _read(terminal):
    """Yield what is shown until the other end is closed, so that whoever writes there is never held up."""
    while select.select([terminal], [], [], PATIENCE_S)[0]:
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:  # Linux's way to say that it is closed
            return
        if not piece:
            return
        yield piece


@posix
def test_an_interrupt_ends_a_fit_with_one_line_and_leaves_nothing_behind(
    command, crops, class_folder, tmp_path
):
    """Ctrl-C gives status 130 and one line; no process and no report stay, and the folder can be used."""
    for name in ("flower", "temple"):
        (tmp_path / "many" / name).mkdir(parents=True)
        for number in range(2000):
            (tmp_path / "many" / name / f"{number}.jpg").symlink_to(class_folder / "train" / name / "00.jpg")
    kept = ("--store-option", f"path={tmp_path / 'index'}", "--json", tmp_path / "report.json")
    process = start(*crops, "--train", tmp_path / "many", "--batch-size", 8, *kept)
    # The store is made when the fit begins.
    deadline = time.monotonic() + PATIENCE_S
    while not (tmp_path / "index" / "MANIFEST.json").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    assert finish(process) == (130, "", "interrupted\n")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert not (tmp_path / "report.json").exists()
    store = FaissStore(path=tmp_path / "index")  # the interrupt may have come after the first images
    stored = [name for listing in store.scan() for name in listing.ids.tolist()]
    if stored:
        store.delete(stored)
    store.close()
    assert command(*crops, *kept)[0] == 0


def test_a_fault_of_the_program_keeps_its_traceback_and_libraries_are_not_heard(crops):
    """A fault that is not the user's shows its traceback, with status 1; what libraries log never shows."""
    process = start(*crops, "--stage", "pixel", "--store", "loud", program=("-c", LOUD_AND_FAULTY))
    status, out, err = finish(process)
    assert (status, out) == (1, "")
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith("RuntimeError: a fault\n")
    assert "noise" not in err
