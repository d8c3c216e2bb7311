"""``clipretrieval export``: a kept classifier's encoder as a file that runs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from clipretrieval._util.text import readable
from clipretrieval.cli.arguments import AllowRemote, KeptArgument, checked_outputs
from clipretrieval.cli.console import quiet_libraries, say
from clipretrieval.cli.interrupt import interruptible
from clipretrieval.cli.kept import closing_stores, load_single
from clipretrieval.errors import InvalidInputError

__all__ = ["export_command"]


def export_command(
    classifier: KeptArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="ONNX file to write, such as mid.onnx.")],
    allow_remote: AllowRemote = False,
) -> None:
    """Write a classifier's encoder as an ONNX file, which runs without torch (--onnx FILE)."""
    with quiet_libraries(), interruptible():
        target = checked_outputs({"FILE": file}, classifier)["FILE"]
        made = load_single(classifier, allow_remote, "export")
        with closing_stores(made):
            encoder: Any = made.encoder
        if not hasattr(encoder, "export"):
            raise InvalidInputError(
                f"the classifier in {str(classifier)!r} has the encoder {type(encoder).__name__}, and only a "
                "StagedEncoder can be exported"
            )
        encoder.export(target)
    size = target.stat().st_size / 2**20
    say(
        f"the encoder at {encoder.stage}, {size:.1f} MiB, written to {readable(file)}; where torch is not "
        f"installed: clipretrieval classify {readable(classifier)} IMAGE --onnx {readable(file)}"
    )
