"""``clipretrieval calibrate``: how sure exits have to be, or how sure answers are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipretrieval._util.tables import aligned_table
from clipretrieval._util.text import json_line, readable
from clipretrieval.cli.arguments import (
    AllowRemote,
    KeptArgument,
    OnError,
    PrintJson,
    TableOptions,
    is_given,
    labelled_images,
)
from clipretrieval.cli.console import SKIPPED, quiet_libraries, say, tell_skipped
from clipretrieval.cli.interrupt import interruptible
from clipretrieval.cli.kept import (
    closing_stores,
    is_cascade,
    labels_by_name,
    load_cascade_of,
    load_single,
)
from clipretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipretrieval.cascade.calibration import Calibration

__all__ = ["calibrate_command", "calibration_text"]

_NOTHING_LEAVES = {
    True: "these images do not show that so little would be lost. Calibrate on more, or pass a greater "
    "--max-loss, or --budget",
    False: "it costs no more than the budget",
}
"""Why, with a promise and with a budget."""
_OF_CASCADES = {"max_loss": "--max-loss", "confidence": "--confidence", "budget": "--budget"}


def calibrate_command(
    context: typer.Context,
    images: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGES",
            help="Folder with a sub-folder for each class, or a CSV file, of images that were not indexed.",
        ),
    ],
    classifier: KeptArgument,
    max_loss: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Accuracy that may be lost relative to the last exit: 0.005 is half a point.",
        ),
    ] = 0.005,
    confidence: Annotated[
        float, typer.Option(metavar="SHARE", help="Probability that no more is lost.")
    ] = 0.95,
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="Instead of a promise: the mean arithmetic of an image, in 10⁹ multiply-adds.",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(metavar="NAME", help="For a classifier without exits: temperature or isotonic."),
    ] = "temperature",
    *,
    tables: TableOptions,
    on_error: OnError = "raise",
    as_json: PrintJson = False,
    allow_remote: AllowRemote = False,
) -> None:
    """Set when images leave a saved cascade, or calibrate a classifier's probabilities.

    The labeled images must not have been indexed.
    """
    from clipretrieval._util.progress import progress_bar

    if not is_cascade(classifier):
        _calibrate_single(context, images, classifier, method, tables, on_error, as_json, allow_remote)
        return
    with quiet_libraries():
        if is_given(context, "method"):
            raise InvalidInputError("--method is for a classifier without exits; leave it out for a cascade")
        wanted = _checked(context, max_loss, confidence, budget)
        labelled = labelled_images(images, tables, None, "")
        with interruptible():
            made = load_cascade_of(classifier, allow_remote)
            with closing_stores(made), progress_bar("calibrating") as progress:
                made.calibrate(
                    *(labelled.paths, labels_by_name(made, labelled.labels or ())),
                    **wanted,
                    on_error=on_error,
                    progress=progress,
                )
                made.save(classifier)
    found, stages = made.calibration_, list(made.stages)
    for image in made.skipped_:
        tell_skipped(image)
    if found is not None:
        told = {"path": str(classifier), "stages": stages, **found.to_dict()}
        say(json_line(told) if as_json else _result_text(found, stages, classifier))
    if made.skipped_:
        raise typer.Exit(SKIPPED)


def _calibrate_single(
    context: typer.Context,
    images: Path,
    classifier: Path,
    method: str,
    tables: TableOptions,
    on_error: str,
    as_json: bool,
    allow_remote: bool,
) -> None:
    """Calibrate the probabilities of a classifier of one stage."""
    from clipretrieval._util.checks import check_choice
    from clipretrieval._util.progress import progress_bar
    from clipretrieval.trust.probability_maps import METHODS

    with quiet_libraries():
        check_choice(method, "--method", METHODS)
        for name, option in _OF_CASCADES.items():
            if is_given(context, name):
                raise InvalidInputError(
                    f"{option} is about the exits of a cascade, and {str(classifier)!r} holds a classifier "
                    "of one stage; leave it out, or make a cascade: clipretrieval index IMAGES CLASSIFIER "
                    "--cascade layer2,mid,late"
                )
        labelled = labelled_images(images, tables, None, "")
        with interruptible():
            made = load_single(classifier, allow_remote, "calibrate")
            with closing_stores(made), progress_bar("calibrating") as progress:
                made.calibrate(
                    *(labelled.paths, labels_by_name(made, labelled.labels or ())),
                    method=method,
                    on_error=on_error,
                    progress=progress,
                )
                found = made.calibration_
                made.save(classifier)
    for image in made.skipped_:
        tell_skipped(image)
    if found is not None:
        heat = "" if found.temperature is None else f", temperature {found.temperature:.3g}"
        text = (
            f"calibrated on {found.n:,} images by {found.method}{heat}: expected calibration error "
            f"{found.ece_before:.4f} before, {found.ece_after:.4f} after\nkept in {readable(classifier)}"
        )
        say(json_line({"path": str(classifier), **found.to_dict()}) if as_json else text)
    if made.skipped_:
        raise typer.Exit(SKIPPED)


def _checked(
    context: typer.Context, max_loss: float, confidence: float, budget: float | None
) -> dict[str, Any]:
    """Return what is to be kept to, the promise or the budget."""
    from clipretrieval._util.checks import check_number

    promise = {
        "max_loss": check_number(max_loss, "--max-loss", above=0, most=0.999),
        "confidence": check_number(confidence, "--confidence", above=0, most=0.999999),
    }
    if budget is None:
        return promise
    for name in ("max_loss", "confidence"):
        if is_given(context, name):
            raise InvalidInputError(
                f"{_OF_CASCADES[name]} and --budget exclude each other, as a budget promises nothing; pass "
                "one of them"
            )
    return {"budget": check_number(budget, "--budget", above=0)}


def _result_text(found: Calibration, stages: Sequence[str], folder: Path) -> str:
    left = [[stage, f"{share:.2%}"] for stage, share in zip(stages, found.shares, strict=True)]
    lines = [calibration_text(found), *aligned_table([["exit", "left there"], *left])]
    if found.shares[-1] == 1:
        lines.append(f"nothing leaves before the last exit: {_NOTHING_LEAVES[found.budget is None]}")
    return "\n".join([*lines, f"kept in {readable(folder)}"])


def calibration_text(found: Calibration) -> str:
    """Write in a line or two what was promised, and what was seen on the images that it was set on."""
    kept = (
        f"at most {found.budget:.3g} · 10⁹ multiply-adds an image on average"
        if found.budget is not None
        else f"accuracy at most {found.max_loss:.2%} below always the last exit, with a confidence of "
        f"{found.confidence:.4g}"
    )
    threshold = "none" if found.threshold is None else f"{found.threshold:.3g}"
    share = found.multiply_adds / found.last_multiply_adds
    return (
        f"calibrated on {found.n:,} images: {kept}\n"
        f"threshold {threshold}; on these images: {found.loss:.2%} lost, {found.multiply_adds:.3g} · 10⁹ "
        f"multiply-adds an image, {share:.2f} of the last exit's"
    )
