"""``clipretrieval compare`` and ``clipretrieval reproduce``: stages and CLIP itself, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from clipretrieval.cli import arguments as _cli_arguments
from clipretrieval.cli.interrupt import interruptible
from clipretrieval.cli.options import (
    LimitTest,
    LimitTrain,
    Metric,
    ModelOptions,
    OpenClip,
    ReportFiles,
    StoreOptions,
    TableOptions,
    WeightsOptions,
)
from clipretrieval.cli.output import say

__all__ = ["compare", "reproduce"]


def compare(
    train: Annotated[
        Path,
        typer.Argument(
            metavar="TRAIN",
            help="Folder with a sub-folder of images for each class, or a CSV file, to fit on.",
        ),
    ],
    test: Annotated[
        Path, typer.Argument(metavar="TEST", help="Labeled images of the same form, to classify.")
    ],
    model: ModelOptions,
    tables: TableOptions,
    reports: ReportFiles,
    stages: Annotated[
        str, typer.Option(metavar="NAMES", help="Stages or blocks, comma-separated.")
    ] = "pixel,mid,late,final",
    zero_shot: Annotated[
        bool,
        typer.Option("--zero-shot/--no-zero-shot", help="Compare with zero-shot CLIP."),
    ] = True,
    template: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Prompt with {} for the class; several make an ensemble."),
    ] = None,
    store: Annotated[
        str, typer.Option(metavar="NAMES", help="Registered stores, comma-separated.")
    ] = "faiss",
    k: Annotated[
        str, typer.Option("--k", metavar="NUMBERS", help="Numbers of neighbors, comma-separated.")
    ] = "1",
    weights: Annotated[
        str, typer.Option(metavar="NAMES", help="uniform, distance, softmax; comma-separated.")
    ] = "uniform",
    metric: Metric = "l2",
    limit_train: LimitTrain = None,
    limit_test: LimitTest = None,
    open_clip: OpenClip = True,
) -> None:
    """Put CLIP's own answer and the encoder's stages side by side: accuracy against time."""
    from clipretrieval.cli.console import progress_bar, quiet_libraries

    with quiet_libraries():
        outputs = _cli_arguments.checked_outputs(reports.named, train, test)
        numbers = _cli_arguments.numbers(k, "--k", int)
        learn = _cli_arguments.training_images(train, tables, limit_train, "--limit-train")
        ask = _cli_arguments.labelled_images(test, tables, limit_test, "--limit-test")
        if zero_shot:
            _cli_arguments.check_classes(
                learn, ask, "or pass --no-zero-shot to have its pictures count as mistakes"
            )
        with interruptible():
            from clipretrieval import ZeroShotClassifier
            from clipretrieval.comparison.comparison import compare as run
            from clipretrieval.prompts import STUDY_PROMPT

            encoder = model.encoder(stage="final")
            baseline = ZeroShotClassifier(encoder, learn.classes, templates=template or STUDY_PROMPT)
            with progress_bar("encoding") as progress:
                report = run(
                    learn,
                    ask,
                    encoder=encoder,
                    stages=_cli_arguments.listed(stages),
                    zero_shot=baseline if zero_shot else None,
                    stores=_cli_arguments.listed(store),
                    k=numbers,
                    weights=_cli_arguments.listed(weights),
                    metric=metric,
                    open_clip=open_clip,
                    progress=progress,
                )
    try:
        reports.write(report, outputs)
    finally:
        say(str(report))


def reproduce(
    model: WeightsOptions,
    store: StoreOptions,
    data: Annotated[
        Path,
        typer.Option(metavar="DIR", help="cifar10, which is downloaded, or a folder with train/ and test/."),
    ] = Path("cifar10"),
    limit_train: LimitTrain = None,
    limit_test: LimitTest = None,
    open_clip: OpenClip = True,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the reports and the indexes.")] = Path(
        "reproduction"
    ),
) -> None:
    """Run the published study again and print its figures beside ours.

    Interrupted, the same call goes on, unless the store is memory, which keeps nothing.
    """
    from clipretrieval.cli.console import progress_bar, quiet_libraries

    with quiet_libraries():
        from clipretrieval.comparison.reproduction_report import FILES

        if out.is_dir():
            _cli_arguments.checked_outputs({f"--out ({name})": out / name for name in FILES}, data)
        options = _cli_arguments.store_options(store.store, store.store_option or [])
        with interruptible():
            from clipretrieval.comparison.reproduction import reproduce as run
            from clipretrieval.comparison.reproduction_report import check_histograms, reproduction_text
            from clipretrieval.images.cifar10 import cifar10_folder

            check_histograms()  # before the work, not behind it
            folder = cifar10_folder(out / "data") if data == Path("cifar10") else data
            train = _cli_arguments.training_images(
                folder / "train", TableOptions(), limit_train, "--limit-train"
            )
            test = _cli_arguments.labelled_images(folder / "test", TableOptions(), limit_test, "--limit-test")
            encoder = model.encoder(stage="final")
            settings = {
                **{name: encoder.config()[name] for name in ("model", "pretrained")},
                # Earlier runs, which it had no option in, did not note it.
                **({"seed": model.seed} if model.seed else {}),
                "store_options": _settled(options),
                "limit_train": limit_train,
                "limit_test": limit_test,
            }
            with progress_bar("encoding") as progress:
                found = run(
                    train,
                    test,
                    encoder,
                    out,
                    store=store.store,
                    store_options=options,
                    settings=settings,
                    open_clip=open_clip,
                    progress=progress,
                )
    try:
        written = found.save(out)
    finally:
        say(reproduction_text(found))
    say(f"\nwritten: {', '.join(str(path) for path in written)}")


def _settled(options: dict[str, Any]) -> dict[str, Any]:
    """Return a store's options with its path in full: the same run may be called from another folder."""
    path = options.get("path")
    return {**options, "path": str(Path(path).resolve())} if isinstance(path, str) else options
