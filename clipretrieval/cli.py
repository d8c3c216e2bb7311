"""The ``clipretrieval`` command.

Answers go to the standard output, everything else to the standard error. The exit status is 0, 3 where
pictures were passed over, 2 for a mistake of the user's (one line, no traceback), 130 after Ctrl-C.
"""

from __future__ import annotations

import io
import os
import re
import signal
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import typer

from clipretrieval import _cli_arguments, _cli_compare, _cli_demo, _cli_index
from clipretrieval._version import __version__

__all__ = ["app", "main"]

# Typer brings a click of its own or uses the installed one, as its version has it; by way of a subclass that
# it exports, the right one's UsageError is found.
_UsageError: type[Any] = typer.BadParameter.__mro__[1]

_INTERRUPTED = 130
_KEYWORD = re.compile(r"\b(model|pretrained|stage)=(?:'([^']*)'|None)")

app = typer.Typer(
    name="clipretrieval",
    help="Classify images by retrieval with CLIP's ResNet image encoder, stopped early.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> NoReturn:
    """Run the command line and exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A class may be named in letters that the terminal or the pipe cannot take.
        sys.stdout.reconfigure(errors="backslashreplace")
    status = _run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        _let_go(stream)
    if status == _INTERRUPTED:
        # The usual way out takes seconds once torch is loaded, and it ends by the signal, not with a status,
        # if the interrupt came while a library was running generated code.
        os._exit(status)
    raise SystemExit(status)


def _run(arguments: list[str]) -> int:
    """Run one command and return its exit status; a fault of ours keeps its traceback."""
    try:
        command = typer.main.get_command(app)
        with command.make_context("clipretrieval", arguments) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    except _UsageError as error:
        return _refuse(f"{error.format_message().rstrip('.')}; see '{_path_of(error)} --help'")
    except KeyboardInterrupt:
        # The keys may be pressed again, and nothing is left to interrupt.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _tell("interrupted")
        return _INTERRUPTED
    except BrokenPipeError:
        return 1
    except _mistakes() as error:
        return _refuse(str(error))
    return 0


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"clipretrieval {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    pass


@app.command()
def evaluate(
    context: typer.Context,
    test: Annotated[
        str,
        typer.Option(metavar="DIR", help="Folder with a sub-folder of images for each class, to classify."),
    ],
    train: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of the same form, to fit on.")
    ] = None,
    kept: Annotated[
        Path | None,
        typer.Option("--classifier", metavar="DIR", help="Or one that index has written, as it is."),
    ] = None,
    model: Annotated[str, typer.Option(help="RN50, RN101, RN50x4, …, or local-dir:PATH.")] = "RN50",
    pretrained: Annotated[
        str, typer.Option(help="An open_clip tag, a checkpoint's path, or none.")
    ] = "openai",
    stage: Annotated[
        str, typer.Option(help="pixel, mid, late, final, or a block such as layer2.1.")
    ] = "late",
    k: Annotated[int, typer.Option(help="Neighbours that vote.")] = 1,
    weights: Annotated[str, typer.Option(help="uniform, distance or softmax.")] = "uniform",
    metric: Annotated[str, typer.Option(help="l2 (squared Euclidean), cosine or ip.")] = "l2",
    store: Annotated[
        str, typer.Option(help="faiss, memory, chroma, pinecone, or one that a package brings.")
    ] = "faiss",
    store_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Argument for the store; may be repeated.")
    ] = None,
    limit_train: Annotated[
        int | None, typer.Option(help="Train on so many, spread over the classes.")
    ] = None,
    limit_test: Annotated[int | None, typer.Option(help="Test on so many, spread over the classes.")] = None,
    on_error: Annotated[
        str, typer.Option(help="raise: stop at a picture that cannot be decoded; skip: pass it over.")
    ] = "raise",
    batch_size: Annotated[int, typer.Option(help="Images encoded together.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the report there.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the report as a page there.")
    ] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Also write the report as Markdown.")
    ] = None,
) -> None:
    """Classify one folder of images, fitted on another or by a kept classifier; print how right that was."""
    from clipretrieval._console import progress_bar, quiet_libraries

    with quiet_libraries():
        from clipretrieval import RetrievalClassifier, StagedEncoder

        # What is found out at once comes first, so that a slip does not cost a download or a fit.
        outputs = [
            _cli_arguments.checked_output(path, option)
            for path, option in ((json_file, "--json"), (html_file, "--html"), (markdown_file, "--markdown"))
        ]
        _cli_arguments.check_either(context, train, kept)
        test_set = _cli_arguments.labelled_images(test, limit_test, "--limit-test")
        passed_over: tuple[Any, ...] = ()
        if kept is not None:
            classifier = RetrievalClassifier.load(kept)
        else:
            options = _cli_arguments.store_options(store, store_option or [])
            train_set = _cli_arguments.labelled_images(str(train), limit_train, "--limit-train")
            encoder = StagedEncoder(
                model, _cli_arguments.weights(pretrained), stage, batch_size=batch_size, device=device
            )
            classifier = RetrievalClassifier(
                encoder, store, k=k, weights=weights, metric=metric, store_options=options
            )
            with progress_bar("fitting") as progress:
                classifier.fit(*train_set, on_error=on_error, progress=progress)
            passed_over = classifier.fit_report_.skipped
        with closing(classifier.store_), progress_bar("classifying") as progress:
            report = classifier.evaluate(*test_set, on_error=on_error, progress=progress)
        skipped = (*passed_over, *report.skipped)
    try:
        for path, write in zip(outputs, (report.to_json, report.to_html, report.to_markdown), strict=True):
            if path is not None:
                write(path)
    finally:
        for item in skipped:
            _cli_index.pass_over(item)
        typer.echo(str(report))
    if skipped:
        raise typer.Exit(_cli_index.PASSED_OVER)


app.command()(_cli_demo.demo)
app.command()(_cli_index.index)
app.command()(_cli_index.classify)
app.command()(_cli_index.forget)
app.command()(_cli_compare.compare)
app.command()(_cli_compare.reproduce)


def _mistakes() -> tuple[type[Exception], ...]:
    """Return the exceptions that the user can do something about."""
    from clipretrieval.errors import ClipRetrievalError

    return ClipRetrievalError, OSError


def _refuse(message: str) -> int:
    _tell(f"error: {_in_options(' '.join(message.splitlines()))}")
    return 2


def _in_options(message: str) -> str:
    """Write an advice for Python, such as ``pretrained='path'``, as the option that it is here."""
    return _KEYWORD.sub(lambda found: f"--{found[1]} {found[2] or 'none'}", message)


def _tell(line: str) -> None:
    # Nobody may be left to be told.
    with suppress(OSError):
        typer.echo(line, err=True)


def _let_go(stream: TextIO | None) -> None:
    """Drop what cannot be written, or the interpreter would try once more at its end, and complain."""
    if stream is None:  # closed before we began
        return
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _path_of(error: Any) -> str:
    return error.ctx.command_path if error.ctx is not None else "clipretrieval"
