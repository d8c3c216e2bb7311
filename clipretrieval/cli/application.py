"""The commands as one program, and what becomes of their errors."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from clipretrieval._version import __version__
from clipretrieval.cli import interrupt
from clipretrieval.cli.arguments import command
from clipretrieval.cli.audit import audit_command
from clipretrieval.cli.calibrate import calibrate_command
from clipretrieval.cli.classify import classify_command
from clipretrieval.cli.compare import compare_command, reproduce_command
from clipretrieval.cli.conformalize import conformalize_command
from clipretrieval.cli.console import guard_terminal, say, tell
from clipretrieval.cli.demo import demo_command
from clipretrieval.cli.evaluate import evaluate_command, sweep_command
from clipretrieval.cli.export import export_command
from clipretrieval.cli.index import forget_command, index_command
from clipretrieval.cli.info import info_command
from clipretrieval.cli.recommend import recommend_command
from clipretrieval.cli.search import search_command
from clipretrieval.errors import ClipRetrievalError

__all__ = ["app", "let_go", "run"]

# Typer brings a click of its own or uses the installed one, as its version has it; by way of a subclass that
# it exports, the right one's UsageError is found.
_UsageError: type[Any] = typer.BadParameter.__mro__[1]

_KEYWORD = re.compile(
    r"\b(model|pretrained|stage|pooling|metric|weights|head|transform|text_weight|certainty|device|precision"
    r"|on_error|runtime)="
    r"(?:'([^']*)'|None)"
)
_LONG_WORD = re.compile(r"(\S{150})\S{150,}(\S{100})")
_SWITCH = re.compile(r"\b(allow_known|allow_remote|keep_vectors)=(True|False)")

app = typer.Typer(
    name="clipretrieval",
    help="Classify images by retrieval with CLIP's ResNet image encoder, stopped early.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"clipretrieval {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    pass


_COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo_command,
    "index": index_command,
    "calibrate": calibrate_command,
    "conformalize": conformalize_command,
    "classify": classify_command,
    "search": search_command,
    "evaluate": evaluate_command,
    "sweep": sweep_command,
    "audit": audit_command,
    "info": info_command,
    "forget": forget_command,
    "export": export_command,
    "compare": compare_command,
    "recommend": recommend_command,
    "reproduce": reproduce_command,
}
for _name, _function in _COMMANDS.items():
    app.command(_name)(command(_function))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit status; a fault of ours keeps its traceback."""
    guard_terminal()
    try:
        program = typer.main.get_command(app)
        with program.make_context("clipretrieval", arguments) as context:
            program.invoke(context)
        if sys.stdout is not None:
            sys.stdout.flush()
    except typer.Exit as done:
        return done.exit_code
    except _UsageError as error:
        return _end_with(f"{error.format_message().rstrip('.')}; see '{_path_of(error)} --help'")
    except BrokenPipeError:
        return 1
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or interrupt.was_interrupted():
            # The keys may be pressed again, and nothing is left to interrupt.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            tell("interrupted")
            return interrupt.INTERRUPTED
        if isinstance(error, ClipRetrievalError | OSError):  # something that the user can mend
            return _end_with(_message_of(error))
        raise
    return 0


def let_go(stream: Any) -> None:
    """Drop what cannot be written, or the interpreter would try once more at its end, and complain."""
    if stream is None:  # closed before we began
        return
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _message_of(error: BaseException) -> str:
    """Return an error's message; of one that is the operating system's own, what is wrong with what."""
    if isinstance(error, OSError) and error.strerror and str(error).startswith("[Errno"):
        return error.strerror if error.filename is None else f"{error.filename!r}: {error.strerror}"
    return str(error)


def _end_with(message: str) -> int:
    line = _LONG_WORD.sub(r"\1…\2", " ".join(message.splitlines()))
    tell(f"error: {_in_options(line)}")
    return 2


def _in_options(message: str) -> str:
    """Write an advice for Python, such as ``pretrained='path'``, as the option that it is here."""
    for role in ("image", "label"):
        message = message.replace(f"as in read_table(…, {role}='…')", f"with --{role}-column NAME")
        message = message.replace(f"as {role}= says", f"as --{role}-column says")
    message = message.replace("a greater max_loss, or a budget", "a greater --max-loss, or --budget")
    message = message.replace("budget=", "--budget ").replace("int8=", "--int8")
    message = message.replace("(partial_fit)", "(index --add)")
    message = message.replace(
        "OnnxEncoder(path) and a file that StagedEncoder.export wrote",
        "--onnx FILE, a file that clipretrieval export wrote",
    )
    message = _SWITCH.sub(
        lambda found: f"--{'' if found[2] == 'True' else 'no-'}{found[1].replace('_', '-')}", message
    )
    message = message.replace("pass it: RetrievalClassifier.load(path, OnnxEncoder(file))", "pass --onnx")
    return _KEYWORD.sub(lambda found: f"--{found[1].replace('_', '-')} {found[2] or 'none'}", message)


def _path_of(error: Any) -> str:
    return error.ctx.command_path if error.ctx is not None else "clipretrieval"
