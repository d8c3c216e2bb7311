"""The command ``demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for what the demo writes.")] = Path(
        "clipretrieval-demo"
    ),
    per_kind: Annotated[
        int,
        typer.Option(help="Labelled pictures of each kind, at least 4; a quarter as many are classified."),
    ] = 200,
    seed: Annotated[int, typer.Option(help="Decides which pictures are drawn: 0 to 19999.")] = 0,
) -> None:
    """Draw pictures and classify them by retrieval, with the small CLIP that ships with the package."""
    from clipretrieval._console import quiet_libraries
    from clipretrieval.errors import InvalidInputError

    if per_kind < 4:
        raise InvalidInputError(f"--per-kind must be at least 4, of which one is classified; got {per_kind}")
    with quiet_libraries():
        from clipretrieval.demo.running import run_demo

        result = run_demo(
            out,
            train=per_kind,
            test=per_kind // 4,
            seed=seed,
            tell=lambda line: typer.echo(f"{line} …", err=True),
        )
    typer.echo(str(result))
    typer.echo(f"\npictures: {result.pictures}\nreport:   {result.page}")
    typer.echo(f"All of this took {result.seconds:.0f} s.")
