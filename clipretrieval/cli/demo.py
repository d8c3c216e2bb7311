"""``clipretrieval demo``: images drawn and classified, with nothing else needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipretrieval.cli.console import quiet_libraries, say, tell
from clipretrieval.cli.interrupt import interruptible
from clipretrieval.errors import InvalidInputError

__all__ = ["demo_command"]


def demo_command(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for what the demo writes.")] = Path(
        "clipretrieval-demo"
    ),
    per_kind: Annotated[
        int,
        typer.Option(help="Labeled images of each kind, at least 4; a quarter as many are classified."),
    ] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the images: 0 to 19999.")] = 0,
) -> None:
    """Draw images and classify them by retrieval, with the small CLIP that ships with the package."""
    if per_kind < 4:
        raise InvalidInputError(f"--per-kind must be at least 4, of which one is classified; got {per_kind}")
    with quiet_libraries(), interruptible():
        from clipretrieval.demo.demo import run_demo

        result = run_demo(
            out,
            train=per_kind,
            test=per_kind // 4,
            seed=seed,
            tell=lambda line: tell(f"{line} …"),
        )
    say(str(result))
    say(f"\npictures: {result.pictures}\nreport:   {result.page}")
    say(f"All of this took {result.seconds:.0f} s.")
