"""``clipretrieval conformalize``: prediction sets of a saved classifier, from held-out images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipretrieval._util.text import json_line, readable
from clipretrieval.cli.arguments import (
    AllowRemote,
    KeptArgument,
    OnError,
    PrintJson,
    TableOptions,
    labelled_images,
)
from clipretrieval.cli.console import SKIPPED, quiet_libraries, say, tell_skipped
from clipretrieval.cli.interrupt import interruptible
from clipretrieval.cli.kept import closing_stores, label_by_name, labels_by_name, load_single

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clipretrieval.trust.conformalized import ConformalReport

__all__ = ["conformalize_command"]


def conformalize_command(
    images: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGES",
            help="Folder with a sub-folder for each class, or a CSV file, of images that were not indexed.",
        ),
    ],
    classifier: KeptArgument,
    score: Annotated[
        str, typer.Option(metavar="NAME", help="Nonconformity score: lac, aps or raps.")
    ] = "lac",
    class_conditional: Annotated[
        bool, typer.Option("--class-conditional", help="Guarantee the coverage for each class.")
    ] = False,
    unknown: Annotated[
        str | None,
        typer.Option(metavar="LABEL", help="Label for images that are unlike all indexed ones."),
    ] = None,
    max_turned_away: Annotated[
        float,
        typer.Option(metavar="SHARE", help="Largest share of the images of known classes that may get it."),
    ] = 0.05,
    *,
    tables: TableOptions,
    on_error: OnError = "raise",
    as_json: PrintJson = False,
    allow_remote: AllowRemote = False,
) -> None:
    """Prepare prediction sets, and a label for unknown images, with labeled images that were not indexed."""
    from clipretrieval._util.checks import check_choice
    from clipretrieval._util.progress import progress_bar
    from clipretrieval.trust.conformal import SCORES, check_coverage

    with quiet_libraries():
        check_choice(score, "--score", SCORES)
        check_coverage(max_turned_away, "--max-turned-away", 0.05)
        labelled = labelled_images(images, tables, None, "")
        with interruptible():
            made = load_single(classifier, allow_remote, "conformalize")
            with closing_stores(made), progress_bar("conformalizing") as progress:
                given = None if unknown is None else label_by_name(made, unknown)
                made.set_params(unknown=given, max_turned_away=max_turned_away)
                made.conformalize(
                    *(labelled.paths, labels_by_name(made, labelled.labels or ())),
                    score=score,
                    class_conditional=class_conditional,
                    on_error=on_error,
                    progress=progress,
                )
                found, _ = made.conformal_, made.head_  # where too few are left to turn any away, it says so
                made.save(classifier)
    for image in made.skipped_:
        tell_skipped(image)
    if found is not None:
        turned = {"unknown": given, "max_turned_away": max_turned_away}
        told = {"path": str(classifier), **found.to_dict(), **(turned if given is not None else {})}
        say(json_line(told) if as_json else _result_text(found, classifier, turned))
    if made.skipped_:
        raise typer.Exit(SKIPPED)


def _result_text(found: ConformalReport, folder: Path, turned: Mapping[str, Any]) -> str:
    each = " of each class" if found.class_conditional else ""
    lines = [
        f"conformalized on {found.n:,} images by {found.score}: prediction sets with a coverage of up to "
        f"{found.most_coverage:.2%}{each}"
    ]
    if turned["unknown"] is not None:
        lines.append(
            f"label of unknown images: {readable(turned['unknown'])}, for at most "
            f"{turned['max_turned_away']:.2%} of the images of known classes"
        )
    return "\n".join([*lines, f"kept in {readable(folder)}"])
