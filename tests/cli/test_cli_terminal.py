"""What the command prints: nothing that controls a terminal, whoever named the classes and the files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clipretrieval import errors

Command = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other file systems take no such names")

NAME = "te\x1b[31mm\x9b2Jp\u202ele\u2028\x07\x7f"
SHOWN = r"te\x1b[31mm\x9b2Jp\u202ele\u2028\x07\x7f"


@pytest.fixture
def crops(class_folder: Path, tmp_path: Path) -> Path:
    """The photographs' crops, one class under a name that clears the screen."""
    for split in ("train", "test"):
        shutil.copytree(class_folder / split / "flower", tmp_path / split / "flower")
        shutil.copytree(class_folder / split / "temple", tmp_path / split / NAME)
    return tmp_path


def clean(text: str) -> bool:
    return all(letter.isprintable() or letter in "\n\t" for letter in text)


def test_no_command_lets_a_name_control_the_terminal(command: Command, crops: Path) -> None:
    """Every command shows it escaped, on both streams, and finds the class by its true name."""
    (crops / "train" / NAME / f"{NAME}.png").write_text("no picture")
    folders = ("--train", crops / "train", "--test", crops / "test", "--stage", "pixel", "--on-error", "skip")
    kept = crops / "kept"
    runs = [
        command("index", crops / "train", kept, "--stage", "pixel"),
        command("info", kept),
        command("info", kept, "--json"),
        command("classify", kept, crops / "test", crops / "train", "--top", 2),
        command("classify", kept, crops / "test" / NAME, "--explain"),
        command("classify", kept, crops / "test", crops / "train", "--json", "--explain"),
        command("evaluate", *folders),
        command("evaluate", "--classifier", kept, "--test", crops / "test"),
        command("sweep", "--classifier", kept, "--validation", crops / "test"),
        command("forget", kept, "--label", NAME[:-1]),
        command("forget", kept, "--label", NAME),
        command("classify", kept, crops / f"no{NAME}"),
        command("classify", crops / f"no{NAME}", crops),
        command("evaluate", *folders, "--model", NAME),
        command("evaluate", *folders, "--json", crops / NAME / "report"),
        command(NAME),
        command(f"--{NAME}"),
    ]
    for place, (status, out, err) in enumerate(runs):
        assert status in (0, 2, 3), place
        assert clean(out), place
        assert clean(err), place
    assert SHOWN in runs[0][1]
    assert SHOWN in runs[6][1]
    assert [status for status, *_ in runs[9:11]] == [2, 0]


def test_json_lines_have_true_names_in_escapes(command: Command, crops: Path) -> None:
    """Each line is JSON without a control character, whose path opens the file."""
    kept = crops / "kept"
    assert command("index", crops / "train", kept, "--stage", "pixel")[0] == 0
    _, out, _ = command("classify", kept, crops / "test" / NAME, "--json")
    assert clean(out)
    answers = [json.loads(line) for line in out.splitlines()]
    assert {Path(answer["path"]) for answer in answers} == set((crops / "test" / NAME).iterdir())
    assert NAME in {answer["label"] for answer in answers}
    found = json.loads(command("info", kept, "--json")[1])
    assert found["classes"] == [{"label": "flower", "images": 12}, {"label": NAME, "images": 12}]


PROGRAM = """
import sys, warnings
from clipretrieval import cli, errors
import clipretrieval.cli.info
def info(*_, **__):
    {body}
clipretrieval.cli.info._contents = info
sys.argv = ["clipretrieval", "info", "x"]
cli.main()
"""


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ("raise RuntimeError('a \\x1b[31m fault')", 1, "RuntimeError: a \\x1b[31m fault\n"),
        ("raise OSError(28, 'No \\x9b space', 'na\\u202eme')", 2, "error: 'na\\u202eme': No \\x9b space\n"),
        ("raise errors.StoreError('two\\nlines\\x07')", 2, "error: two lines\\x07\n"),
        ("print('\\x1b]0;title\\x07', file=sys.stderr); sys.exit(0)", 0, "\\x1b]0;title\\x07\n"),
        (
            "warnings.warn('a\\x9bb', errors.ClipRetrievalWarning); raise errors.StoreError('c')",
            2,
            "warning: a\\x9bb\nerror: c\n",
        ),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_messages_and_faults_are_escaped_too(body: str, status: int, told: str, encoding: str) -> None:
    """Whatever writes to the streams, in whichever encoding they are, passes the same door."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == status
    assert done.stderr.decode().endswith(told)
    assert clean(done.stderr.decode())


@pytest.mark.parametrize("stream", ["1", "2"])
def test_a_stream_that_is_closed_is_no_fault(stream: str) -> None:
    """The command runs without its standard output or error, as `>&-` leaves it."""
    script = f'"{sys.executable}" -m clipretrieval --version {stream}>&-; echo status $?'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.endswith("status 0\n")
    assert done.stderr == ""


@pytest.mark.parametrize(
    "arguments", ["--version", "info {kept}", "info {kept} --json", "classify {kept} {test}"]
)
def test_an_answer_that_cannot_be_written_is_no_success(
    command: Command, class_folder: Path, tmp_path: Path, arguments: str
) -> None:
    """On a full disk the status is 2, and one line says why."""
    if "{kept}" in arguments:
        assert command("index", class_folder / "train", tmp_path / "kept", "--stage", "pixel")[0] == 0
    asked = arguments.format(kept=tmp_path / "kept", test=class_folder / "test").split()
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "clipretrieval", *asked],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error: the answer cannot be written to the standard output: No space left")
    assert done.stderr.count("\n") == 1


def test_what_was_given_is_quoted_in_short(command: Command) -> None:
    """A word of thousands of letters leaves one line that can be read: its beginning and its end."""
    for asked in (["a" * 5000 + "z"], ["info", "a" * 5000 + "z"], ["demo", "--seed", "1" * 5000 + "z"]):
        status, out, err = command(*asked)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert len(err) < 500


def test_help_and_version_need_no_library() -> None:
    """Neither torch, NumPy nor scikit-learn is imported to show them, nor for a mistyped command."""
    for asked in ("--version", "--help", "evaluate --help", "info --help", "bogus"):
        program = (
            f"import sys; sys.argv = ['clipretrieval', *{asked.split()!r}]\n"
            "from clipretrieval.cli import main\n"
            "try:\n    main()\nexcept SystemExit:\n"
            "    heavy = {'torch', 'numpy', 'sklearn', 'PIL', 'faiss', 'open_clip'} & set(sys.modules)\n"
            "    sys.exit(f'{heavy} imported' if heavy else 0)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (asked, done.stderr)


def test_the_error_of_what_is_not_fitted_is_made_when_it_is_asked_for() -> None:
    """It is scikit-learn's own error too, without whose import the others come."""
    from sklearn.exceptions import NotFittedError

    assert issubclass(errors.NotFittedError, NotFittedError)
    assert issubclass(errors.NotFittedError, errors.ClipRetrievalError)
    program = "import sys, clipretrieval.errors; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
