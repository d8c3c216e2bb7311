"""``clipretrieval evaluate`` with each store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from warm_process import run_warm

from clipretrieval import RetrievalClassifier, StagedEncoder
from clipretrieval.stores import ChromaStore, FaissStore
from clipretrieval.testing import PineconeEmulator

KEY = "pcsk_command_0123456789abcdef"


@pytest.fixture(scope="module")
def emulator() -> Iterator[PineconeEmulator]:
    with PineconeEmulator(KEY, address="127.0.0.10") as emulator:
        yield emulator


@pytest.fixture(scope="module")
def expected(class_folder: Path) -> dict[str, Any]:
    """The report of a classifier in memory."""
    classifier = RetrievalClassifier(StagedEncoder(stage="pixel"), store="memory").fit(class_folder / "train")
    return classifier.evaluate(class_folder / "test").to_dict()


@pytest.fixture
def evaluate(
    class_folder: Path, command: Callable[..., tuple[int, str, str]]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command, in this process or in its own; return exit status, standard output and error."""
    folders = ["--train", str(class_folder / "train"), "--test", str(class_folder / "test")]

    def run(store: str, *arguments: Any, process: bool = False) -> tuple[int, str, str]:
        asked = ["evaluate", "--stage", "pixel", "--store", store, *folders, *map(str, arguments)]
        if process:
            done = run_warm(["-m", "clipretrieval", *asked])
            return done.returncode, done.stdout, done.stderr
        return command(*asked)

    return run


def given(**options: Any) -> list[str]:
    return [word for name, value in options.items() for word in ("--store-option", f"{name}={value}")]


def check(found: tuple[int, str, str], report: Path, expected: dict[str, Any], store: str) -> None:
    status, out, err = found
    assert (status, err) == (0, "")
    assert f"store {store}, metric l2" in out
    written = json.loads(report.read_text())
    assert written["store"] == store
    assert written["confusion_matrix"] == expected["confusion_matrix"]


@pytest.mark.parametrize(
    ("store", "options"), [("memory", {}), ("chroma", {}), ("chroma", {"exact": "false"})], ids=str
)
def test_stores_in_memory(
    evaluate: Any, tmp_path: Path, expected: dict[str, Any], store: str, options: dict[str, str]
) -> None:
    """Without a path the vectors live in the process, and the report is that of the memory store."""
    report = tmp_path / "report.json"
    check(evaluate(store, *given(**options), "--json", report), report, expected, store)


@pytest.mark.parametrize(("store", "kind"), [("faiss", FaissStore), ("chroma", ChromaStore)])
def test_stores_in_a_folder(
    evaluate: Any, tmp_path: Path, expected: dict[str, Any], store: str, kind: type
) -> None:
    """With a path the vectors stay there, and a second fit on top of them is refused."""
    data, report = tmp_path / "data", tmp_path / "report.json"
    options = [*given(path=data), "--json", report]
    check(evaluate(store, *options, process=store == "chroma"), report, expected, store)
    with kind(data) as kept:
        assert (kept.count(), kept.dim) == (24, 3072)
    status, _, err = evaluate(store, *options)
    assert status == 2
    assert "already holds" in err


def test_pinecone(
    evaluate: Any,
    tmp_path: Path,
    expected: dict[str, Any],
    emulator: PineconeEmulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The key comes from the environment, numbers are read as such, and the index is filled."""
    monkeypatch.setenv("PINECONE_API_KEY", KEY)
    monkeypatch.setenv("PINECONE_CONTROLLER_HOST", emulator.host)
    report = tmp_path / "report.json"
    place = given(index="crops", namespace="2026", host=emulator.host, timeout=30, concurrency=2)
    found = evaluate("pinecone", *place, "--json", report, process=True)
    check(found, report, expected, "pinecone")
    assert len(emulator.contents("crops", "2026")) == 24


def test_pinecone_without_a_key(
    evaluate: Any, emulator: PineconeEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing key is one line that names the environment variable."""
    monkeypatch.delenv("PINECONE_API_KEY", raising=False)
    place = given(index="no-key", host=emulator.host)
    status, out, err = evaluate("pinecone", *place)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert "PINECONE_API_KEY" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "option",
    [
        {"password": KEY},
        {"conninfo": f"host=db password={KEY}"},
        {"conninfo": f"postgresql://db/animals?p%61ssword={KEY}"},
    ],
)
def test_a_password_is_not_taken_as_an_option(evaluate: Any, option: dict[str, str]) -> None:
    """Neither by itself nor in a connection string."""
    status, out, err = evaluate("pgvector", *given(**option))
    assert (status, out) == (2, "")
    assert "PGPASSWORD" in err
    assert KEY not in err


def test_a_key_is_not_taken_as_an_option(evaluate: Any) -> None:
    """A key that the list of processes would show is refused, and not repeated."""
    status, out, err = evaluate("pinecone", *given(index="crops", api_key=KEY))
    assert (status, out) == (2, "")
    assert "PINECONE_API_KEY" in err
    assert KEY not in err
