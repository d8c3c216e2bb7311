"""``clipretrieval compare`` and ``clipretrieval reproduce``: stages and CLIP itself, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipretrieval.cli.arguments import (
    LimitTest,
    LimitTrain,
    MetricOption,
    ModelOptions,
    OpenClip,
    PriorsOption,
    ReportFiles,
    StoreOptions,
    TableOptions,
    TemplateOption,
    WeightsOptions,
    check_head,
    checked_outputs,
    comma_separated,
    labelled_images,
    numbers,
    training_images,
)
from clipretrieval.cli.console import quiet_libraries, say
from clipretrieval.cli.interrupt import interruptible
from clipretrieval.errors import InvalidInputError
from clipretrieval.stores.registry import DEFAULT_STORE

if TYPE_CHECKING:
    from clipretrieval.images.folders import ImageFolder

__all__ = ["compare_command", "reproduce_command"]


def compare_command(
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
    template: TemplateOption = None,
    store: Annotated[
        str, typer.Option(metavar="NAMES", help="Registered stores, comma-separated.")
    ] = DEFAULT_STORE,
    head: Annotated[
        str,
        typer.Option(metavar="NAMES", help="votes, discriminant, quadratic, ridge, fused; comma-separated."),
    ] = "votes",
    priors: PriorsOption = "equal",
    k: Annotated[
        str, typer.Option("--k", metavar="NUMBERS", help="Numbers of neighbors, comma-separated.")
    ] = "1",
    weights: Annotated[
        str, typer.Option(metavar="NAMES", help="uniform, distance, softmax; comma-separated.")
    ] = "uniform",
    metric: MetricOption = "l2",
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Also a linear probe of each stage, which is trained, as a reference."),
    ] = False,
    cascade: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMES",
            help="Also a cascade over these stages, comma-separated, such as layer2,mid,late; repeatable.",
        ),
    ] = None,
    calibration_share: Annotated[
        float,
        typer.Option(metavar="SHARE", help="Of TRAIN, held out to calibrate cascades on."),
    ] = 0.1,
    max_loss: Annotated[
        float, typer.Option(metavar="SHARE", help="Accuracy that a cascade may lose beside its last stage.")
    ] = 0.005,
    confidence: Annotated[
        float, typer.Option(metavar="SHARE", help="Probability with which that is promised.")
    ] = 0.95,
    budget: Annotated[
        float | None,
        typer.Option(metavar="N", help="Instead of a promise: 10⁹ multiply-adds an image, on average."),
    ] = None,
    limit_train: LimitTrain = None,
    limit_test: LimitTest = None,
    open_clip: OpenClip = True,
    timed_images: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Test images timed together; up to 1,000 if left out, as encoding takes time."
        ),
    ] = None,
    single_images: Annotated[
        int | None,
        typer.Option(metavar="N", help="Test images timed one by one; up to 100 if left out, likewise."),
    ] = None,
) -> None:
    """Put CLIP's own answer and the encoder's stages side by side: accuracy against time."""
    from clipretrieval._util.progress import progress_bar

    with quiet_libraries():
        outputs = checked_outputs(reports.named, train, test)
        counts, heads = numbers(k, "--k", int), comma_separated(head)
        for each in heads:
            check_head(each, priors)
        learn = training_images(train, tables, limit_train, "--limit-train")
        ask = labelled_images(test, tables, limit_test, "--limit-test")
        if zero_shot:
            _check_asked_classes(learn, ask)
        with interruptible():
            from clipretrieval.comparison.comparison import compare
            from clipretrieval.prompts import STUDY_PROMPT
            from clipretrieval.zeroshot import ZeroShotClassifier

            encoder = model.encoder(stage="final")
            baseline = ZeroShotClassifier(encoder, learn.classes, templates=template or STUDY_PROMPT)
            with progress_bar("encoding") as progress:
                report = compare(
                    learn,
                    ask,
                    encoder=encoder,
                    stages=comma_separated(stages),
                    zero_shot=baseline if zero_shot else None,
                    stores=comma_separated(store),
                    heads=heads,
                    priors=priors,
                    k=counts,
                    weights=comma_separated(weights),
                    metric=metric,
                    probe=probe,
                    cascades=[comma_separated(exits) for exits in cascade or ()],
                    calibration_share=calibration_share,
                    max_loss=max_loss,
                    confidence=confidence,
                    budget=budget,
                    timed_images=timed_images,
                    single_images=single_images,
                    open_clip=open_clip,
                    progress=progress,
                )
    try:
        reports.write(report, outputs)
    finally:
        say(str(report))


def reproduce_command(
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
    from clipretrieval._util.progress import progress_bar

    with quiet_libraries():
        from clipretrieval.comparison.reproduction_report import FILES

        if out.is_dir():
            checked_outputs({f"--out ({name})": out / name for name in FILES}, data)
        options = store.options()
        with interruptible():
            from clipretrieval.comparison.reproduction import reproduce
            from clipretrieval.comparison.reproduction_report import check_histograms, reproduction_text
            from clipretrieval.images.cifar10 import cifar10_folder

            check_histograms()  # before the work, not behind it
            folder = cifar10_folder(out / "data") if data == Path("cifar10") else data
            train = training_images(folder / "train", TableOptions(), limit_train, "--limit-train")
            test = labelled_images(folder / "test", TableOptions(), limit_test, "--limit-test")
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
                found = reproduce(
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


def _check_asked_classes(train: ImageFolder, test: ImageFolder) -> None:
    """Refuse classes to be answered that nothing can be learned of."""
    unknown = sorted(set(test.classes) - set(train.classes))
    if unknown:
        raise InvalidInputError(
            f"{str(test.root)!r} has the class {unknown[0]!r}, and {str(train.root)!r} has not; remove it, "
            "add images of the class to fit on, or pass --no-zero-shot to have its images count as "
            "mistakes"
        )


def _settled(options: dict[str, Any]) -> dict[str, Any]:
    """Return a store's options with its path in full: the same run may be called from another folder."""
    path = options.get("path")
    return {**options, "path": str(Path(path).resolve())} if isinstance(path, str) else options
