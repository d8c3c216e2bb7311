"""``clipretrieval compare`` and ``clipretrieval reproduce``: stages and CLIP itself, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from clipretrieval import _cli_arguments

__all__ = ["compare", "reproduce"]

_STAGES = "pixel,mid,late,final"


def compare(
    train: Annotated[
        str,
        typer.Argument(metavar="TRAIN", help="Folder with a sub-folder of labelled images for each class."),
    ],
    test: Annotated[str, typer.Argument(metavar="TEST", help="Folder of the same form, to be classified.")],
    model: Annotated[str, typer.Option(help="RN50, RN101, RN50x4, …, or local-dir:PATH.")] = "RN50",
    pretrained: Annotated[
        str, typer.Option(help="An open_clip tag, a checkpoint's path, or none.")
    ] = "openai",
    stages: Annotated[str, typer.Option(help="Stages or blocks, with commas between them.")] = _STAGES,
    zero_shot: Annotated[
        bool, typer.Option(help="Compare with CLIP's own answer from the classes' names.")
    ] = True,
    template: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Prompt with {} for the class; several make an ensemble."),
    ] = None,
    store: Annotated[str, typer.Option(help="Registered stores, with commas between them.")] = "faiss",
    k: Annotated[str, typer.Option(help="Neighbours that vote; several with commas.")] = "1",
    weights: Annotated[
        str, typer.Option(help="uniform, distance or softmax; several with commas.")
    ] = "uniform",
    metric: Annotated[str, typer.Option(help="l2 (squared Euclidean), cosine or ip.")] = "l2",
    limit_train: Annotated[
        int | None, typer.Option(help="Train on so many, spread over the classes.")
    ] = None,
    limit_test: Annotated[int | None, typer.Option(help="Test on so many, spread over the classes.")] = None,
    open_clip: Annotated[bool, typer.Option(help="Also time open_clip as it comes.")] = True,
    batch_size: Annotated[int, typer.Option(help="Images encoded together.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the report there.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the report as a page there.")
    ] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Also write the report as Markdown.")
    ] = None,
) -> None:
    """Put CLIP's own answer and the encoder's stages side by side: accuracy against time."""
    from clipretrieval._console import progress_bar, quiet_libraries

    with quiet_libraries():
        from clipretrieval import StagedEncoder, ZeroShotClassifier
        from clipretrieval.evaluation.comparison import compare as run
        from clipretrieval.prompts import STUDY_PROMPT

        outputs = [
            _cli_arguments.checked_output(path, option)
            for path, option in ((json_file, "--json"), (html_file, "--html"), (markdown_file, "--markdown"))
        ]
        learn = _cli_arguments.training_folder(train, limit_train, "--limit-train")
        ask = _cli_arguments.labelled_folder(test, limit_test, "--limit-test")
        if zero_shot:
            _cli_arguments.check_classes(
                learn, ask, "or pass --no-zero-shot to have its pictures count as mistakes"
            )
        encoder = StagedEncoder(
            model, _cli_arguments.weights(pretrained), "final", batch_size=batch_size, device=device
        )
        baseline = ZeroShotClassifier(encoder, learn.classes, templates=template or STUDY_PROMPT)
        with progress_bar("encoding") as progress:
            report = run(
                learn,
                ask,
                encoder=encoder,
                stages=_listed(stages),
                zero_shot=baseline if zero_shot else None,
                stores=_listed(store),
                k=[_whole(one) for one in _listed(k)],
                weights=_listed(weights),
                metric=metric,
                open_clip=open_clip,
                progress=progress,
            )
    try:
        for path, write in zip(outputs, (report.to_json, report.to_html, report.to_markdown), strict=True):
            if path is not None:
                write(path)
    finally:
        typer.echo(str(report))


def reproduce(
    data: Annotated[
        str, typer.Option(metavar="DIR", help="cifar10, which is fetched, or a folder with train/ and test/.")
    ] = "cifar10",
    model: Annotated[str, typer.Option(help="RN50, RN101, RN50x4, …, or local-dir:PATH.")] = "RN50",
    pretrained: Annotated[
        str, typer.Option(help="An open_clip tag, a checkpoint's path, or none.")
    ] = "openai",
    store: Annotated[
        str, typer.Option(help="faiss, memory, chroma, pinecone, or one that a package brings.")
    ] = "faiss",
    store_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Argument for the store; may be repeated.")
    ] = None,
    limit_train: Annotated[
        int | None, typer.Option(help="Train on so many, spread over the classes.")
    ] = None,
    limit_test: Annotated[int | None, typer.Option(help="Test on so many, spread over the classes.")] = None,
    open_clip: Annotated[bool, typer.Option(help="Also time open_clip as it comes.")] = True,
    batch_size: Annotated[int, typer.Option(help="Images encoded together.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the reports and the indexes.")] = Path(
        "reproduction"
    ),
) -> None:
    """Run the published study again and print its figures beside ours.

    Interrupted, the same call goes on, unless the store is memory, which keeps nothing.
    """
    from clipretrieval._console import progress_bar, quiet_libraries

    with quiet_libraries():
        from clipretrieval import StagedEncoder
        from clipretrieval._cifar import cifar10_folder
        from clipretrieval.evaluation._reproduction_views import as_text, check_figures
        from clipretrieval.evaluation.reproduction import FILES
        from clipretrieval.evaluation.reproduction import reproduce as run

        check_figures()  # before the work, not behind it
        for name in FILES if out.is_dir() else ():
            _cli_arguments.checked_output(out / name, "--out")
        options = _cli_arguments.store_options(store, store_option or [])
        folder = cifar10_folder(out / "data") if data == "cifar10" else Path(data)
        train = _cli_arguments.training_folder(str(folder / "train"), limit_train, "--limit-train")
        test = _cli_arguments.labelled_folder(str(folder / "test"), limit_test, "--limit-test")
        encoder = StagedEncoder(
            model, _cli_arguments.weights(pretrained), "final", batch_size=batch_size, device=device
        )
        settings = {
            **{name: encoder.config()[name] for name in ("model", "pretrained")},
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
                store=store,
                store_options=options,
                settings=settings,
                open_clip=open_clip,
                progress=progress,
            )
        try:
            written = found.save(out)
        finally:
            typer.echo(as_text(found))
        typer.echo(f"\nwritten: {', '.join(str(path) for path in written)}")


def _settled(options: dict[str, Any]) -> dict[str, Any]:
    """Return a store's options with its path in full: the same run may be called from another folder."""
    path = options.get("path")
    return {**options, "path": str(Path(path).resolve())} if isinstance(path, str) else options


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _whole(text: str) -> int:
    from clipretrieval.errors import InvalidInputError

    try:
        return int(text)
    except ValueError:
        raise InvalidInputError(f"--k takes whole numbers with commas between them; got {text!r}") from None
