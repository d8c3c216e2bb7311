"""``clipretrieval evaluate`` and ``sweep``: a classifier measured on labelled images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipretrieval._util.text import json_line
from clipretrieval.cli.arguments import (
    AllowRemote,
    EncoderOptions,
    HeadOptions,
    KeptFirst,
    KeptOption,
    LimitTest,
    LimitTrain,
    OnError,
    PrintJson,
    PriorsOption,
    ReportFiles,
    SpaceOptions,
    StoreOptions,
    TableOptions,
    TextOptions,
    TrainOption,
    as_option,
    check_head,
    checked_outputs,
    comma_separated,
    is_given,
    labelled_images,
    make_classifier,
    numbers,
    refuse_given,
)
from clipretrieval.cli.console import SKIPPED, quiet_libraries, say, tell_fitted, tell_skipped
from clipretrieval.cli.interrupt import interruptible
from clipretrieval.cli.kept import (
    change_head,
    closing_stores,
    is_cascade,
    labels_by_name,
    load_for_images,
    load_single,
    refuse_answering,
)
from clipretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    from clipretrieval.classifier import RetrievalClassifier
    from clipretrieval.cli.kept import Kept
    from clipretrieval.evaluation.sweep import SweepResult
    from clipretrieval.images.folders import ImageFolder
    from clipretrieval.images.stream import SkippedImage

__all__ = ["evaluate_command", "sweep_command"]

_FREE = (
    *(
        "test",
        "validation",
        "classifier",
        "kept",
        "allow_remote",
        "limit_test",
        "limit_validation",
        "on_error",
    ),
    *("images_root", "image_column", "label_column", "json_file", "html_file", "markdown_file"),
    *("predictions", "as_json", "allow_known", "allow_tuned", "curve", "unknown_images"),
)
"""Arguments that may stand beside ``--classifier``."""
_OWN_SETTINGS = "--classifier, which has its own settings"


def evaluate_command(
    context: typer.Context,
    classifier: KeptFirst = None,
    *,
    test: Annotated[
        Path,
        typer.Option(
            metavar="IMAGES", help="Folder with a sub-folder for each class, or a CSV file, to classify."
        ),
    ],
    train: TrainOption = None,
    kept: KeptOption = None,
    encoder: EncoderOptions,
    space: SpaceOptions,
    head: HeadOptions,
    texts: TextOptions,
    store: StoreOptions,
    tables: TableOptions,
    reports: ReportFiles,
    limit_train: LimitTrain = None,
    limit_test: LimitTest = None,
    unknown_images: Annotated[
        Path | None,
        typer.Option(
            metavar="IMAGES",
            help="Folder of images of none of the classes: report how well they are recognized.",
        ),
    ] = None,
    on_error: OnError = "raise",
    predictions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write each image's path, label and answer there, as CSV."),
    ] = None,
    curve: Annotated[
        bool,
        typer.Option(
            "--curve/--no-curve",
            help="Of a cascade, also ask the last exit about all images: what is lost, and the accuracy at "
            "other costs.",
        ),
    ] = True,
    allow_tuned: Annotated[
        bool,
        typer.Option(
            "--allow-tuned",
            help="Evaluate on images that calibrate or conformalize was given too, though results on them "
            "are too good.",
        ),
    ] = False,
    allow_remote: AllowRemote = False,
) -> None:
    """Classify labeled images, and report accuracy and speed."""
    from clipretrieval._util.progress import progress_bar

    with quiet_libraries():
        # What is found out at once comes first, so that a slip does not cost a download or a fit.
        kept = _kept_of(train, classifier, kept)
        if kept is not None:
            allowed = (*_FREE, "head", "priors", "text_weight", "class_names", "template")
            refuse_given(context, encoder.beside_kept(allowed), _OWN_SETTINGS)
            refuse_answering(context, kept)
        encoder.check_alone(context)
        exits = kept is not None and is_cascade(kept)
        if unknown_images is not None and exits:
            raise InvalidInputError("--unknown-images is not for a cascade; name a classifier of one stage")
        if is_given(context, "curve") and not exits:
            raise InvalidInputError("--curve and --no-curve are for --classifier with a cascade's folder")
        check_head(head.head, head.priors)
        spoken = texts.arguments()
        outputs = checked_outputs(
            {**reports.named, "--predictions": predictions}, train, kept, test, unknown_images
        )
        test_set = labelled_images(test, tables, limit_test, "--limit-test")
        train_set = _train_set(train, tables, limit_train)
        with interruptible():
            made: Any
            if kept is None:
                made = _fitted(make_classifier(encoder, space, head, texts, store), train_set, on_error)
            else:
                made = load_for_images(kept, allow_remote, encoder.exported())
                change_head(context, made, head.head, head.priors, spoken)
            with closing_stores(made), progress_bar("classifying") as progress:
                report = made.evaluate(
                    *(test_set.paths, labels_by_name(made, test_set.labels or ())),
                    on_error=on_error,
                    progress=progress,
                    allow_tuned=allow_tuned,
                    **({"curve": curve} if exits else {"unknown_images": unknown_images}),
                )
    try:
        reports.write(report, outputs)
        if predictions is not None:
            report.to_csv(outputs["--predictions"])
    finally:
        for image in report.skipped:
            tell_skipped(image)
        say(str(report))
    _end(made, train, report.skipped)


def sweep_command(
    context: typer.Context,
    classifier: KeptFirst = None,
    *,
    validation: Annotated[
        Path,
        typer.Option(
            metavar="IMAGES", help="Folder with a sub-folder for each class, or a CSV file, to tune on."
        ),
    ],
    train: TrainOption = None,
    kept: KeptOption = None,
    encoder: EncoderOptions,
    space: SpaceOptions,
    store: StoreOptions,
    tables: TableOptions,
    head: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Heads, comma-separated; the classifier's own, or votes."),
    ] = None,
    priors: PriorsOption = "equal",
    k: Annotated[
        str, typer.Option("--k", metavar="NUMBERS", help="Numbers of neighbors, comma-separated.")
    ] = "1,5,20,50",
    weights: Annotated[
        str, typer.Option(metavar="NAMES", help="uniform, distance, softmax; comma-separated.")
    ] = "uniform,distance,softmax",
    temperature: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Temperatures of softmax, comma-separated.")
    ] = "0.07",
    limit_train: LimitTrain = None,
    limit_validation: Annotated[
        int | None, typer.Option(metavar="N", help="Tune on N images at most, taken in turn from each class.")
    ] = None,
    allow_known: Annotated[
        bool,
        typer.Option(
            "--allow-known", help="Tune on images that are fitted too, though each votes for itself."
        ),
    ] = False,
    on_error: OnError = "raise",
    as_json: PrintJson = False,
    allow_remote: AllowRemote = False,
) -> None:
    """Compare heads and voting settings with a single search, and print the best first."""
    from clipretrieval._util.progress import progress_bar

    with quiet_libraries():
        kept = _kept_of(train, classifier, kept)
        if kept is not None:
            allowed = (*_FREE, "head", "priors", "k", "weights", "temperature")
            refuse_given(context, encoder.beside_kept(allowed), _OWN_SETTINGS)
        encoder.check_alone(context)
        heads = None if head is None else comma_separated(head)
        for each in heads or ["votes"]:
            check_head(each, priors)
        tried: dict[str, Any] = {
            "head": heads,
            "k": numbers(k, "--k", int),
            "weights": comma_separated(weights),
            "temperature": numbers(temperature, "--temperature", float),
        }
        asked = labelled_images(validation, tables, limit_validation, "--limit-validation")
        train_set = _train_set(train, tables, limit_train)
        with interruptible():
            if kept is None:
                settings = (encoder, space, HeadOptions(priors=priors), TextOptions(), store)
                made = _fitted(make_classifier(*settings), train_set, on_error)
            else:
                made = load_single(kept, allow_remote, "sweep", encoder.exported())
            if is_given(context, "priors"):
                made.set_params(priors=priors)
            with closing_stores(made), progress_bar("classifying") as progress:
                found = made.sweep(
                    *(asked.paths, labels_by_name(made, asked.labels or ())),
                    **tried,
                    validation="all",
                    allow_known=allow_known,
                    on_error=on_error,
                    progress=progress,
                )
    for image in found.skipped:
        tell_skipped(image)
    ranked = _best_first(found)
    if as_json:
        content = ranked.to_dict()
        del content["held_out"]  # everything was tuned on
        say(json_line(content))
    else:
        say(ranked.table())
        best = " ".join(as_option(name, value) for name, value in ranked.best_params.items())
        say(f"on {ranked.rows[0]['n']} images; the best: {best}")
    _end(made, train, found.skipped)


def _kept_of(train: Path | None, classifier: Path | None, kept: Path | None) -> Path | None:
    """Return the kept classifier, named by its place or by option; require it or images to fit on."""
    if classifier is not None and kept is not None:
        raise InvalidInputError("CLASSIFIER and --classifier are the same; pass one of the two")
    kept = classifier if kept is None else kept
    if (train is None) == (kept is None):
        raise InvalidInputError("pass --train DIR to fit on, or --classifier DIR, one of the two")
    return kept


def _train_set(train: Path | None, tables: TableOptions, limit: int | None) -> ImageFolder | None:
    if train is None:
        return None
    return labelled_images(train, tables, limit, "--limit-train")


def _fitted(made: RetrievalClassifier, train_set: ImageFolder | None, on_error: str) -> RetrievalClassifier:
    """Fit a classifier, and tell what there is to tell of it."""
    from clipretrieval._util.progress import progress_bar

    if train_set is not None:
        with progress_bar("fitting") as progress:
            made.fit(train_set, on_error=on_error, progress=progress)
        tell_fitted(made.fit_report_)
    return made


def _end(made: Kept, train: Path | None, skipped: tuple[SkippedImage, ...]) -> None:
    """End with the status that tells of images that were skipped, by the fit too."""
    if skipped or (train is not None and made.fit_report_.skipped):
        raise typer.Exit(SKIPPED)


def _best_first(found: SweepResult) -> SweepResult:
    """Return a result with its rows in the order in which they compare."""
    order = found.ranked
    return replace(
        found, rows=[found.rows[row] for row in order], params=[found.params[row] for row in order]
    )
