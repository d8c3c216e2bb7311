"""``clipretrieval audit``: problems with labelled images, or with those that a saved classifier stores."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipretrieval.cli.apply import apply_to
from clipretrieval.cli.arguments import (
    AllowRemote,
    EncoderOptions,
    TableOptions,
    checked_outputs,
    comma_separated,
    labelled_images,
    refuse_given,
)
from clipretrieval.cli.console import SKIPPED, quiet_libraries, say
from clipretrieval.cli.interrupt import interruptible
from clipretrieval.cli.kept import closing_stores, labels_by_name, load_for_images, load_kept
from clipretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    from clipretrieval.encoding.base import Encoder
    from clipretrieval.images.folders import ImageFolder

__all__ = ["audit_command"]

_FREE = (
    *("place", "test", "parts", "k", "findings", "rows", "output", "json_file", "html_file", "decisions"),
    *("allow_remote", "onnx"),
    *("batch_size", "max_pixels", "images_root", "image_column", "label_column"),
)
"""Arguments that may stand beside a kept classifier."""
_APPLYING = ("place", "apply", "folder", "dry_run", "allow_remote", "onnx")
"""Arguments that may stand beside ``--apply``."""
_NO_APPLY = "an audit; name the decisions to apply with --apply"


def audit_command(
    context: typer.Context,
    place: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Folder with a sub-folder of images for each class, a CSV file of paths, or a classifier's "
            "folder written by index.",
        ),
    ],
    encoder: EncoderOptions,
    tables: TableOptions,
    test: Annotated[
        Path | None,
        typer.Option(metavar="IMAGES", help="Labeled test images, to look for leaks and harm."),
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="What to look for, comma-separated: label, duplicate, leak, outlier, harm, confusion, "
            "broken, tiny, blank; all of it, if left out.",
        ),
    ] = None,
    k: Annotated[int, typer.Option("--k", metavar="N", help="Neighbors of each image.")] = 20,
    findings: Annotated[
        int, typer.Option(metavar="N", help="Findings of each kind in the report, at most.")
    ] = 1000,
    rows: Annotated[int, typer.Option(metavar="N", help="Findings of each kind to print.")] = 5,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Keep vectors, neighbors and the report there, and resume from there."
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the report there as JSON.")
    ] = None,
    html_file: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Also write a page there, to decide on images."),
    ] = None,
    decisions: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Decisions saved by the page: do not list the kept images again; may be repeated.",
        ),
    ] = None,
    apply: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Instead of an audit, apply the decisions saved by the page."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="IMAGES", help="With --apply to a classifier, move the image files of this folder too."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what --apply would do.")] = False,
    allow_remote: AllowRemote = False,
) -> None:
    """Find wrong labels, duplicates, leaks and other problems in labeled images."""
    from clipretrieval._util.checks import check_int, check_path
    from clipretrieval._util.progress import progress_bar

    if apply is not None:
        refuse_given(context, _APPLYING, "--apply, which audits nothing")
        apply_to(
            *(place, apply, folder),
            dry_run=dry_run,
            allow_remote=allow_remote,
            encoder=encoder.exported(),
        )
        return
    refuse_given(context, [name for name in context.params if name not in ("folder", "dry_run")], _NO_APPLY)
    with quiet_libraries():
        check_int(findings, "--findings", least=0)
        check_int(rows, "--rows", least=0)
        earlier = [check_path(each, "--decisions") for each in decisions or ()]
        outputs = checked_outputs({"--json": json_file, "--html": html_file}, place, test)
        kept = (place / "classifier.json").exists()
        if kept:
            refuse_given(
                context, encoder.beside_kept(_FREE), "a classifier's folder, which has its own encoder"
            )
        encoder.check_alone(context)
        _check_output(output, place)
        asked = None if test is None else labelled_images(test, tables, None, "")
        images = None if kept else labelled_images(place, tables, None, "")
        with interruptible(), ExitStack() as opened:
            from clipretrieval.auditing.auditing import audit

            made: Any
            if images is None:
                load = load_kept if asked is None else load_for_images
                made = load(place, allow_remote, encoder.exported())
                opened.enter_context(closing_stores(made))
                given = (made,)
            else:
                made, given = None, (images,)
            report = audit(
                *given,
                encoder=_encoder(encoder) if images is not None else None,
                X_test=None if asked is None else asked.paths,
                y_test=None if asked is None else _labels(made, asked),
                parts=None if parts is None else comma_separated(parts),
                k=k,
                limit=findings,
                output=output,
                decisions=earlier,
                progress=opened.enter_context(progress_bar("auditing")),
            )
    try:
        if json_file is not None:
            report.to_json(outputs["--json"])
        if html_file is not None:
            report.to_html(outputs["--html"])
    finally:
        say(report.text(rows))
    if report.counts.get("broken"):
        raise typer.Exit(SKIPPED)


def _encoder(options: EncoderOptions) -> Encoder:
    exported = options.exported()
    return options.encoder() if exported is None else exported


def _labels(made: Any, asked: ImageFolder) -> list[Any]:
    labels = list(asked.labels or ())
    return labels if made is None else labels_by_name(made, labels)


def _check_output(output: Path | None, place: Path) -> None:
    """Refuse a folder within what is audited, whose images it would be taken for."""
    if output is not None and output.resolve().is_relative_to(place.resolve()):
        raise InvalidInputError(
            f"--output: {str(output)!r} is a part of {str(place)!r}, which is read; name another folder"
        )
