"""``clipretrieval recommend``: which stage, pooling and head to take for the images of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipretrieval.cli.arguments import (
    OnError,
    TableOptions,
    WeightsOptions,
    checked_outputs,
    comma_separated,
    training_images,
)
from clipretrieval.cli.console import SKIPPED, quiet_libraries, say, tell_skipped
from clipretrieval.cli.interrupt import interruptible

__all__ = ["recommend_command"]


def recommend_command(
    images: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Folder with a sub-folder of images for each class, or a CSV file."
        ),
    ],
    model: WeightsOptions,
    tables: TableOptions,
    max_cost: Annotated[
        float | None,
        typer.Option(metavar="N", help="At most so much arithmetic an image, in 10⁹ multiply-adds."),
    ] = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="The cheapest whose 95 % interval lies above this accuracy, such as 0.9."
        ),
    ] = None,
    stages: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Stages or blocks, comma-separated; also joined ones. If left out, "
            "layer1,layer2,mid,late,final, or those of the model's tower.",
        ),
    ] = None,
    poolings: Annotated[
        str,
        typer.Option(metavar="NAMES", help="mean, max, gem, tokens, grid, cls or joined; comma-separated."),
    ] = "mean",
    heads: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="votes, discriminant, quadratic, ridge, fused; comma-separated. If left out, votes and "
            "discriminant, and fused with more than 2,000 images.",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS", help="Side, a multiple of 32 or of the patch, if not the model's own."
        ),
    ] = None,
    cross: Annotated[
        bool | None,
        typer.Option(
            "--cross/--split", help="Answer every image, or choose on one fold and measure on another."
        ),
    ] = None,
    folds: Annotated[int, typer.Option(metavar="N", help="Folds that the images are divided into.")] = 5,
    cascades: Annotated[
        bool, typer.Option("--cascades/--no-cascades", help="Try cascades over the stages too.")
    ] = True,
    max_loss: Annotated[
        float, typer.Option(metavar="SHARE", help="Accuracy that a cascade may lose beside its last stage.")
    ] = 0.005,
    confidence: Annotated[
        float, typer.Option(metavar="SHARE", help="Probability with which that is promised.")
    ] = 0.95,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Use N images at most, taken in turn from each class.")
    ] = None,
    on_error: OnError = "raise",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the result there as JSON.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the result there as a page.")
    ] = None,
) -> None:
    """Try stages, poolings and heads on labeled images, and print which to take and the code for it."""
    with quiet_libraries():
        outputs = checked_outputs({"--json": json_file, "--html": html_file}, images)
        found_images = training_images(images, tables, limit, "--limit")
        with interruptible():
            from clipretrieval.comparison.recommendation import recommend

            found = recommend(
                found_images,
                max_cost=max_cost,
                min_accuracy=min_accuracy,
                encoder=model.encoder(**({} if image_size is None else {"image_size": image_size})),
                stages=None if stages is None else comma_separated(stages),
                poolings=comma_separated(poolings),
                heads=None if heads is None else comma_separated(heads),
                cross=cross,
                folds=folds,
                cascades=cascades,
                max_loss=max_loss,
                confidence=confidence,
                on_error=on_error,
                progress=True,
                seed=model.seed,
            )
    for image in found.skipped:
        tell_skipped(image)
    try:
        for option, write in (("--json", found.to_json), ("--html", found.to_html)):
            if option in outputs:
                write(outputs[option])
    finally:
        say(str(found))
    if found.skipped:
        raise typer.Exit(SKIPPED)
