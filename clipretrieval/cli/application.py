"""The commands as one program, and what becomes of their errors."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Collection
from typing import Annotated, Any

import typer

from clipretrieval._version import __version__
from clipretrieval.cli import interrupt
from clipretrieval.cli.arguments import command, option_of
from clipretrieval.cli.audit import audit_command
from clipretrieval.cli.calibrate import calibrate_command
from clipretrieval.cli.classify import classify_command
from clipretrieval.cli.compare import compare_command, reproduce_command
from clipretrieval.cli.conformalize import conformalize_command
from clipretrieval.cli.console import guard_terminal, say, tell
from clipretrieval.cli.demo import demo_command
from clipretrieval.cli.encode import encode_command
from clipretrieval.cli.evaluate import evaluate_command, sweep_command
from clipretrieval.cli.export import export_command
from clipretrieval.cli.index import forget_command, index_command
from clipretrieval.cli.info import info_command
from clipretrieval.cli.merge import merge_command
from clipretrieval.cli.python_words import in_options
from clipretrieval.cli.recommend import recommend_command
from clipretrieval.cli.search import search_command
from clipretrieval.errors import ClipRetrievalError

__all__ = ["app", "let_go", "run"]

# Typer brings a click of its own or uses the installed one, as its version has it; by way of a subclass that
# it exports, the right one's UsageError is found.
_UsageError: type[Any] = typer.BadParameter.__mro__[1]

_LONG_WORD = re.compile(r"(\S{150})\S{150,}(\S{100})")

app = typer.Typer(
    name="clipretrieval",
    help="Classify images by retrieval with an image encoder, CLIP's say, that is stopped early.",
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
    "encode": encode_command,
    "merge": merge_command,
    "compare": compare_command,
    "recommend": recommend_command,
    "reproduce": reproduce_command,
}
for _name, _function in _COMMANDS.items():
    app.command(_name)(command(_function))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit status; a fault of ours keeps its traceback."""
    guard_terminal()
    context: Any = None
    try:
        program: Any = typer.main.get_command(app)
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
            ran = None if context is None else program.commands.get(context.invoked_subcommand)
            return _end_with(_message_of(error), () if ran is None else _options_of(ran))
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


def _end_with(message: str, own: Collection[str] = ()) -> int:
    line = _LONG_WORD.sub(r"\1…\2", " ".join(message.splitlines()))
    commands: Any = typer.main.get_command(app)
    every = {name for each in commands.commands.values() for name in _options_of(each)}
    tell(f"error: {in_options(line, every, own)}")
    return 2


def _options_of(command: Any) -> set[str]:
    """Return a command's parameters that are options of the same name."""
    return {each.name for each in command.params if each.opts[0] == option_of(each.name)}


def _path_of(error: Any) -> str:
    return error.ctx.command_path if error.ctx is not None else "clipretrieval"
