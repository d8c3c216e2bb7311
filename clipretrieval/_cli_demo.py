"""The command ``demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]

PICTURES = "pictures"


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the pictures that are drawn.")] = Path(
        "clipretrieval-demo"
    ),
) -> None:
    """Draw pictures and classify them by retrieval, with the small CLIP that ships with the package."""
    from clipretrieval._console import quiet_libraries

    with quiet_libraries():
        from clipretrieval.demo.running import run_demo

        result = run_demo(out / PICTURES, tell=lambda line: typer.echo(f"{line} …", err=True))
    typer.echo(str(result))
    typer.echo(f"\nThe pictures are in {result.pictures}. All of this took {result.seconds:.0f} s.")
