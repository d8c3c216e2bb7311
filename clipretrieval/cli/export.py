"""``clipretrieval export``: a kept classifier's encoder, or its vectors, as a file for others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from clipretrieval._util.text import readable
from clipretrieval.cli.arguments import AllowRemote, KeptArgument, checked_outputs
from clipretrieval.cli.console import quiet_libraries, say
from clipretrieval.cli.interrupt import interruptible
from clipretrieval.cli.kept import closing_stores, load_kept, load_single
from clipretrieval.errors import InvalidInputError

__all__ = ["export_command"]

_ONNX, _PARQUET = ".onnx", ".parquet"


def export_command(
    classifier: KeptArgument,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="File to write: mid.onnx, say, or animals.parquet.")
    ],
    int8: Annotated[
        Path | None,
        typer.Option(metavar="IMAGES", help="Compute in 8 bits, calibrated on images of this folder."),
    ] = None,
    allow_remote: AllowRemote = False,
) -> None:
    """Write a classifier's encoder as an ONNX file (see --onnx), or its vectors as a Parquet file."""
    with quiet_libraries(), interruptible():
        target = checked_outputs({"FILE": file}, classifier)["FILE"]
        if file.suffix.lower() not in (_ONNX, _PARQUET):
            raise InvalidInputError(
                f"the ending of FILE says what is written: {_ONNX} for the encoder, or {_PARQUET} for the "
                f"vectors; got {str(file)!r}"
            )
        if file.suffix.lower() == _PARQUET:
            if int8 is not None:
                raise InvalidInputError("--int8 is for an encoder, an ONNX file, and not for vectors")
            _export_vectors(classifier, target, allow_remote)
            return
        made = load_single(classifier, allow_remote, "export")
        with closing_stores(made):
            encoder: Any = made.encoder
        if not hasattr(encoder, "export"):
            raise InvalidInputError(
                f"the classifier in {str(classifier)!r} has the encoder {type(encoder).__name__}, and only a "
                "StagedEncoder can be exported; copy the file of one that is already"
            )
        encoder.export(target, int8=int8)
    size = target.stat().st_size / 2**20
    told = f"where torch is not installed: clipretrieval classify {readable(classifier)} IMAGE"
    if int8 is not None:
        told = "its vectors need an index of their own: clipretrieval index IMAGES CLASSIFIER"
    say(
        f"the encoder at {encoder.stage}, {size:.1f} MiB, written to {readable(file)}; {told} --onnx "
        f"{readable(file)}"
    )


def _export_vectors(classifier: Path, target: Path, allow_remote: bool) -> None:
    from clipretrieval._util.progress import progress_bar

    made: Any = load_kept(classifier, allow_remote)
    with closing_stores(made):
        if not hasattr(made, "export"):
            raise InvalidInputError(
                f"{str(classifier)!r} holds a cascade, whose exits have vectors of their own; name a "
                "classifier of one stage"
            )
        with progress_bar("exporting") as progress:
            count = made.export(target, progress=progress)
    say(f"{count:,} vectors, {target.stat().st_size / 2**20:.1f} MiB, written to {readable(target)}")
