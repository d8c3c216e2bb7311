"""Run the documentation: every fenced block of a Markdown page is a test.

- ``python`` blocks of one page run in order and share their names.
- ``bash`` blocks: lines that start with ``clipretrieval`` or ``python`` are run and must succeed. Lines
  that install or build (``make``, ``pip install``, ``git clone``, ``cd``) are only checked for their
  syntax; ``.ci/run`` exercises them. Any other command fails. The shell runs those of the README, as its
  readers' do; on other pages, commands of plain words are processes that find the libraries imported.
- ``console`` blocks are the same behind a ``$`` prompt; output that is shown below a command must match,
  with ``...`` for what varies.
- ``toml`` and ``json`` blocks are parsed; ``text`` blocks are left alone; other languages fail.

The summary of a run tells how many blocks of each language ran.

The page on PostgreSQL finds a server's database in the environment.

A page runs in a temporary folder that holds ``pictures/train/<class>/*.png``,
``pictures/test/<class>/*.png`` and a copy of ``examples``.
"""

from __future__ import annotations

import doctest
import gc
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import hypothesis  # noqa: F401  it looks up who refers to whom when it is imported, which `gc.freeze` would hide
import pytest
from postgres_server import PostgresServer, postgres_server
from sybil import Document, Example, Region, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.region import Lexeme
from warm_process import run_warm

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Read when huggingface_hub is imported: no test may depend on a model hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).parent
OPENING = re.compile(r"(?P<margin>[ \t>]*(?:(?:[-*+]|\d+[.)])[ \t]+)?)(?P<fence>`{3,}|~{3,})(?P<info>[^`]*)$")
EXECUTED = ("clipretrieval ", "python ")
SYNTAX_ONLY = ("make ", "pip install ", "python -m pip ", "git clone ", "cd ")
PLAIN = re.compile(r"(clipretrieval|python)( [\w./:=,+-]+)+")
TIMEOUT_S = 600
BLOCKS_RUN: Counter[str] = Counter()


def fenced_blocks(document: Document) -> Iterator[Region]:
    """Yield a region for each fenced block, whatever its language, so that none is passed over."""
    block: re.Match[str] | None = None
    start = end = 0
    body: list[str] = []
    for line in io.StringIO(document.text):
        begin, end = end, end + len(line)
        if block is None:
            block, start, body = OPENING.match(line.rstrip()), begin, []
        elif line.strip(" \t>\n") == block["fence"][0] * max(len(block["fence"]), len(line.strip(" \t>\n"))):
            yield _region(block, start, end, body)
            block = None
        else:
            body.append(re.sub(rf"^[ \t>]{{0,{len(block['margin'])}}}", "", line))
    if block is not None:
        yield Region(start, end, "", lambda _: "the fence of this block is never closed")


def _region(block: re.Match[str], start: int, end: int, body: list[str]) -> Region:
    """Pair a block's text with what checks its language."""
    language = (block["info"].split() or [""])[0]
    check = CHECKS.get(language)
    if check is None:
        message = f"language {language!r} is not one of {', '.join(CHECKS)}"
        return Region(start, end, "", lambda _: message)

    def counted(example: Example) -> str | None:
        BLOCKS_RUN[language] += 1
        return check(example)

    return Region(start, end, Lexeme("".join(body), 0, 0), counted)


def check_bash(example: Example) -> str | None:
    """Run each line of a block as a command."""
    text = example.parsed.replace("\\\n", " ")
    commands = [line.strip() for line in text.splitlines()]
    pairs = ((command, "") for command in commands if command and not command.startswith("#"))
    return _first_failure(example, pairs)


def check_console(example: Example) -> str | None:
    """Run the commands behind ``$`` and compare the output shown below them."""
    text = re.sub(r"\\\n(> )?", " ", example.parsed)
    before, *transcripts = re.split(r"^\$ ", text, flags=re.MULTILINE)
    if before.strip() or not transcripts:
        return "a console block must begin with a command behind '$ '"
    pairs = [transcript.partition("\n") for transcript in transcripts]
    return _first_failure(example, ((command.strip(), output) for command, _, output in pairs))


def _first_failure(example: Example, commands: Iterator[tuple[str, str]]) -> str | None:
    """Run commands until one fails and tell why it did."""
    warm = Path(example.path).name != "README.md"
    return next((failure for each in commands if (failure := _failure(*each, warm=warm))), None)


def _failure(command: str, expected: str, *, warm: bool) -> str | None:
    """Run one command; return what went wrong, or None."""
    syntax_only = f"{command} ".startswith(SYNTAX_ONLY)
    if not syntax_only and not command.startswith(EXECUTED):
        return f"{command!r} is neither run nor known: start it with one of {EXECUTED + SYNTAX_ONLY}"
    if syntax_only and re.search("[;&|]", command):
        return f"{command!r} would hide what follows it: give each command a line of its own"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "100",
    }
    if warm and PLAIN.fullmatch(command):
        program, *arguments = command.split()
        if program == "clipretrieval":
            arguments = ["-m", "clipretrieval", *arguments]
        done = run_warm(arguments, env=environment, timeout=TIMEOUT_S)
    else:
        done = subprocess.run(
            ["bash", "-n" if syntax_only else "-e", "-o", "pipefail", "-c", command],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    if done.returncode != 0:
        return f"{command!r} ended with status {done.returncode}\n{done.stdout}{done.stderr}"
    lenient = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if expected.strip() and not doctest.OutputChecker().check_output(expected, done.stdout, lenient):
        return f"{command!r} printed\n{done.stdout}where the page shows\n{expected}"
    return None


def check_toml(example: Example) -> None:
    """Parse the block as TOML."""
    tomllib.loads(example.parsed)


def check_json(example: Example) -> None:
    """Parse the block as JSON."""
    json.loads(example.parsed)


def leave_alone(example: Example) -> None:
    """Accept plain text."""


CHECKS: dict[str, Callable[[Example], str | None]] = {
    "python": PythonEvaluator(),
    "bash": check_bash,
    "console": check_console,
    "toml": check_toml,
    "json": check_json,
    "text": leave_alone,
}

pytest_collect_file = Sybil(
    parsers=[fenced_blocks], pattern="*.md", fixtures=["documentation_folder"]
).pytest()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage while modules are imported: that takes a quarter of the time, and finds little."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Have no collection of garbage go through what all tests share, again and again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the count home where pytest-xdist runs several processes."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["blocks_run"] = dict(BLOCKS_RUN)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object, error: object) -> None:
    """Add up what the processes have counted."""
    BLOCKS_RUN.update(getattr(node, "workeroutput", {}).get("blocks_run", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how many blocks of the documentation ran; plain text is counted apart, as it is only read."""
    read = BLOCKS_RUN["text"]
    ran = {language: count for language, count in BLOCKS_RUN.most_common() if language != "text"}
    if ran or read:
        each = ", ".join(f"{count} {language}" for language, count in ran.items())
        total = sum(ran.values())
        terminalreporter.write_line(f"documentation: {total} blocks ran ({each or 'none'}); {read} of text")


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty training and five test pictures of each digit, written once."""
    write_digits = runpy.run_path(str(ROOT / "examples" / "digits_folders.py"))["write_digits"]
    folder: Path = write_digits(tmp_path_factory.mktemp("digits") / "pictures", train=20, test=5)
    return folder


@pytest.fixture(scope="session")
def postgres_at_large() -> Iterator[PostgresServer]:
    """A PostgreSQL server with pgvector, which all tests and pages share."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="module")
def documentation_folder(
    request: pytest.FixtureRequest, digits_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Work in a fresh folder with pictures of its own while one page runs."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(digits_folder, folder / "pictures", ignore=shutil.ignore_patterns("*.json"))
    shutil.copytree(
        ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns(".*", "__pycache__")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        if request.path.name == "stores-pgvector.md":
            server: PostgresServer = request.getfixturevalue("postgres_at_large")
            for name, value in server.environment("animals").items():
                patch.setenv(name, value)
        yield folder
