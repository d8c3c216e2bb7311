"""The command ``demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]

PICTURES = "pictures"
"""Where the pictures lie inside the demo's folder."""


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for what the demo writes.")] = Path(
        "clipretrieval-demo"
    ),
    per_kind: Annotated[
        int, typer.Option(help="Labelled pictures of each kind; a quarter as many are classified.")
    ] = 200,
    seed: Annotated[int, typer.Option(help="Decides which pictures are drawn.")] = 0,
) -> None:
    """Draw pictures and classify them by retrieval, with the small CLIP that ships with the package."""
    from clipretrieval._console import quiet_libraries

    with quiet_libraries():
        from clipretrieval.demo.running import run_demo

        result = run_demo(
            out / PICTURES,
            train=per_kind,
            test=per_kind // 4,
            seed=seed,
            tell=lambda line: typer.echo(f"{line} …", err=True),
        )
    typer.echo(str(result))
    typer.echo(f"\nThe pictures are in {result.pictures}. All of this took {result.seconds:.0f} s.")
