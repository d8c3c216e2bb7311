"""``clipretrieval audit --apply``: the decisions made on an audit's page, applied."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from clipretrieval._util.text import readable
from clipretrieval.cli.console import SKIPPED, quiet_libraries, say, tell
from clipretrieval.cli.interrupt import interruptible
from clipretrieval.cli.kept import closing_stores, load_kept
from clipretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    from clipretrieval.auditing.applied_decisions import AppliedDecisions
    from clipretrieval.encoding.onnx.onnx_encoder import OnnxEncoder

__all__ = ["apply_to"]


def apply_to(
    place: Path,
    decisions: Path,
    folder: Path | None,
    *,
    dry_run: bool,
    allow_remote: bool,
    encoder: OnnxEncoder | None,
) -> None:
    """Apply decisions to a saved classifier and, if a folder is named, to its files; or only to files.

    Parameters
    ----------
    place : Path
        A classifier's folder, or one of images.
    decisions : Path
    folder : Path, optional
        The images of a classifier.
    """
    with quiet_libraries(), interruptible("auditing.applying", "classifier", "encoding.staged_encoder"):
        from clipretrieval.auditing.applying import apply_decisions
        from clipretrieval.auditing.decisions import Decisions

        read = Decisions.from_json(decisions)
        if (place / "classifier.json").exists():
            made = load_kept(place, allow_remote, encoder)
            with closing_stores(made):
                done = apply_decisions(made, read, folder, dry_run=dry_run)
                if not dry_run:
                    made.save(place)
        elif folder is not None:
            raise InvalidInputError(
                f"--folder is for a classifier, and {str(place)!r} holds none; name the folder that index "
                "wrote, or leave --folder out to move the files of that one"
            )
        else:
            done = apply_decisions(None, read, place, dry_run=dry_run)
    _show(done)


def _show(done: AppliedDecisions) -> None:
    for line in done.lines() if done.dry_run else ():
        say(line)
    say(str(done))
    for decision, reason in done.skipped:
        tell(f"skipped: {readable(decision)}: {readable(reason)}")
    if done.skipped:
        raise typer.Exit(SKIPPED)
