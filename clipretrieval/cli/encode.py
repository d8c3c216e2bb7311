"""``clipretrieval encode``: images into files of vectors, a shard at a time."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from clipretrieval._util.text import readable
from clipretrieval.cli.arguments import EncoderOptions, TableOptions, image_source
from clipretrieval.cli.console import SKIPPED, quiet_libraries, say, tell_skipped
from clipretrieval.cli.interrupt import interruptible
from clipretrieval.errors import InvalidInputError

__all__ = ["encode_command"]


def encode_command(
    context: typer.Context,
    images: Annotated[
        str,
        typer.Argument(
            metavar="IMAGES",
            help="Folder with a sub-folder of images for each class, CSV file of paths, tars, or URL.",
        ),
    ],
    parts: Annotated[Path, typer.Argument(metavar="PARTS", help="Folder to write the Parquet files into.")],
    encoder: EncoderOptions,
    tables: TableOptions,
    workers: Annotated[int, typer.Option(metavar="N", help="Processes that encode.")] = 1,
    shards: Annotated[
        int | None, typer.Option(metavar="N", help="Parts to cut into, if not of 4,096 images at most.")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Encode the part I of N alone, such as 3/128: for schedulers."),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Make parts anew whose images have changed, or are more; remove those of another source.",
        ),
    ] = False,
    runner: Annotated[str, typer.Option(metavar="NAME", help="local, ray or dask.")] = "local",
) -> None:
    """Encode images into Parquet files, for index --vectors; what is there already is not done again."""
    with quiet_libraries():
        number, cut = _shard(shard, shards)
        encoder.check_alone(context)
        labelled = image_source(images, tables)
        with interruptible("vectors.encoding_parts", "encoding.staged_encoder"):
            from clipretrieval._util.progress import progress_bar
            from clipretrieval.vectors.encoding_parts import encode
            from clipretrieval.vectors.opened_source import OpenedSource

            with progress_bar("encoding") as progress:
                report = encode(
                    OpenedSource(images, labelled, tables.image_column),
                    parts,
                    encoder.exported() or encoder.encoder(),
                    workers=workers,
                    shards=cut,
                    shard=number,
                    replace=replace,
                    runner=runner,
                    on_error="skip",
                    progress=progress,
                )
    for image in report.skipped:
        tell_skipped(image)
    say(f"{str(report).splitlines()[0]}, in {readable(parts)}")
    if report.skipped:
        raise typer.Exit(SKIPPED)


def _shard(shard: str | None, shards: int | None) -> tuple[int | None, int | None]:
    """Return the part that is asked for, and of how many."""
    if shard is None:
        return None, shards
    if shards is not None:
        raise InvalidInputError("--shards cannot be used with --shard I/N, which says how many there are")
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", shard)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise InvalidInputError(
            f"--shard must be a part of how many, counted from 1, such as 3/128; got {shard!r:.100}"
        )
    return int(found[1]), int(found[2])
