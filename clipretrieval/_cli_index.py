"""``clipretrieval index``, ``classify`` and ``forget``: a classifier kept in a folder, and asked."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipretrieval import _cli_arguments
from clipretrieval._cli_settings import VECTORS, begin, end, ended_if_idle, is_given

if TYPE_CHECKING:
    from clipretrieval import RetrievalClassifier
    from clipretrieval.explanation import Explanation
    from clipretrieval.images import SkippedImage

__all__ = ["PASSED_OVER", "classify", "forget", "index", "pass_over"]

_SURROGATE = re.compile(r"[\ud800-\udfff]")
PASSED_OVER = 3
"""Exit status where pictures could not be decoded and all others were dealt with."""
_FREE = frozenset({"images", "classifier", "add", "resume", "flush_every"})
"""Arguments that may stand beside ``--add``."""


def index(
    context: typer.Context,
    images: Annotated[
        str, typer.Argument(metavar="DIR", help="Folder with a sub-folder of labelled images for each class.")
    ],
    classifier: Annotated[
        Path, typer.Argument(metavar="CLASSIFIER", help="Folder to keep the classifier in.")
    ],
    add: Annotated[
        bool, typer.Option("--add", help="Add to the classifier that is there, as it was made.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what was interrupted, with the settings it had.")
    ] = False,
    model: Annotated[str, typer.Option(help="RN50, RN101, RN50x4, …, or local-dir:PATH.")] = "RN50",
    pretrained: Annotated[
        str, typer.Option(help="An open_clip tag, a checkpoint's path, or none.")
    ] = "openai",
    stage: Annotated[
        str, typer.Option(help="pixel, mid, late, final, or a block such as layer2.1.")
    ] = "late",
    k: Annotated[int, typer.Option(help="Neighbours that vote.")] = 1,
    weights: Annotated[str, typer.Option(help="uniform, distance or softmax.")] = "uniform",
    temperature: Annotated[float, typer.Option(help="Of --weights softmax.")] = 0.07,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Scale vectors to length one first.")
    ] = False,
    metric: Annotated[str, typer.Option(help="l2 (squared Euclidean), cosine or ip.")] = "l2",
    store: Annotated[
        str, typer.Option(help="faiss, memory, chroma, pinecone, or one that a package brings.")
    ] = "faiss",
    store_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Argument for the store; may be repeated.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images encoded together.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    flush_every: Annotated[
        int | None, typer.Option(help="The most images that are encoded twice after a kill.")
    ] = None,
) -> None:
    """Make a folder of labelled images into a classifier that is kept in a folder, or add to one."""
    from clipretrieval._console import progress_bar, quiet_libraries
    from clipretrieval.errors import InvalidInputError

    with quiet_libraries():
        from clipretrieval import RetrievalClassifier

        if add and resume:
            raise InvalidInputError("--add and --resume exclude each other; pass one of them")
        if add:
            _refuse_settings(context)
        labelled = _cli_arguments.labelled_images(images, None, "")
        given: dict[str, Any] = {"flush_every": flush_every, "on_error": "skip"}
        if add:
            made = RetrievalClassifier.load(classifier)
            with closing(made.store_), progress_bar("adding") as progress:
                try:
                    made.partial_fit(*labelled, **given, progress=progress)
                    made.save(classifier)
                except KeyboardInterrupt:
                    typer.echo("what was added is kept; run it again to add the rest", err=True)
                    raise
        else:
            settings = begin(context, classifier, resume)
            with progress_bar("indexing") as bar, ended_if_idle(classifier, bar, resume) as progress:
                made = _classifier(settings, classifier, batch_size, device)
                try:
                    made.fit(*labelled, resume=resume, **given, progress=progress)
                except KeyboardInterrupt:
                    typer.echo("what was encoded is kept; pass --resume to go on", err=True)
                    raise
            with closing(made.store_):
                made.save(classifier)
            end(classifier)
    report = made.fit_report_
    for item in report.skipped:
        pass_over(item)
    typer.echo(str(report).splitlines()[0])
    typer.echo(f"{len(made.classes_)} classes ({_named(made.classes_.tolist())}), kept in {classifier}")
    if report.skipped:
        raise typer.Exit(PASSED_OVER)


def classify(
    classifier: Annotated[Path, typer.Argument(metavar="CLASSIFIER", help="Folder that index has written.")],
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE…", help="Files, folders, or - for paths on the standard input."),
    ],
    top: Annotated[int, typer.Option(help="Classes to show of each image.")] = 1,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also show the neighbours that the answer rests on.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write one line of JSON for each image.")] = False,
) -> None:
    """Classify images with a classifier that is kept in a folder."""
    from clipretrieval._asking import NoImagesError
    from clipretrieval._console import quiet_libraries
    from clipretrieval.errors import InvalidInputError

    if top < 1:
        raise InvalidInputError(f"--top must be at least 1; got {top}")
    with quiet_libraries():
        from clipretrieval import RetrievalClassifier
        from clipretrieval.explanation import explain_stream

        made = RetrievalClassifier.load(classifier)
        skipped: list[SkippedImage] = []
        told = 0
        with closing(made.store_):
            try:
                for found in explain_stream(made, _paths(images), on_error="skip", skipped=skipped):
                    told = _tell_skipped(skipped, told, as_json)
                    typer.echo(_line(found, top, explain) if as_json else _text(found, top, explain))
            except NoImagesError:
                if not skipped:  # else each was named
                    raise
            _tell_skipped(skipped, told, as_json)
    if skipped:
        raise typer.Exit(PASSED_OVER)


def _classifier(settings: dict[str, Any], folder: Path, batch_size: int, device: str) -> RetrievalClassifier:
    """Make the classifier that the command line describes."""
    from clipretrieval import RetrievalClassifier, StagedEncoder

    store, pretrained = settings["store"], settings["pretrained"]
    options = _cli_arguments.store_options(store, settings["store_option"])
    if store in ("faiss", "chroma") and not {"path", "host"} & set(options):
        options["path"] = str(folder / VECTORS)
    encoder = StagedEncoder(
        settings["model"],
        None if pretrained.lower() == "none" else pretrained,
        settings["stage"],
        batch_size=batch_size,
        device=device,
    )
    voting = {name: settings[name] for name in ("k", "weights", "temperature", "metric", "normalize")}
    return RetrievalClassifier(encoder, store, **voting, store_options=options)


def _refuse_settings(context: typer.Context) -> None:
    """Refuse settings beside ``--add``: those of the classifier hold."""
    from clipretrieval.errors import InvalidInputError

    for name in context.params:
        if name not in _FREE and is_given(context, name):
            raise InvalidInputError(
                f"--{name.replace('_', '-')} does not go with --add: images are added with the "
                "settings that the classifier was made with"
            )


def _paths(images: list[str]) -> Iterator[Path]:
    """Yield the pictures that arguments stand for, as they are needed."""
    from clipretrieval._folders import is_folder, list_pictures

    for given in images:
        if given == "-":
            for line in sys.stdin.buffer:
                path = line.rstrip(b"\r\n")
                if path:
                    yield Path(os.fsdecode(path))
        elif is_folder(given):
            yield from list_pictures(given)
        else:
            yield Path(given)


def _ranked(found: Explanation) -> list[tuple[Any, float]]:
    """Return the classes that got votes, with their shares, the answer first."""
    shares: dict[Any, float] = {}
    for each in found.neighbors:
        shares[each.label] = shares.get(each.label, 0.0) + each.share
    shares[found.answer] = found.share
    voted = [(label, share) for label, share in shares.items() if share > 0]
    return sorted(voted, key=lambda item: (item[0] != found.answer, -item[1]))


def _line(found: Explanation, top: int, explain: bool) -> str:
    content = found.to_dict()
    shown = {
        "path": str(found.query),
        "label": content["answer"],
        "share": content["share"],
        "top": [{"label": label, "share": share} for label, share in _ranked(found)[:top]],
        **({"neighbors": content["neighbors"]} if explain else {}),
    }
    return _json(shown)


def _json(content: dict[str, Any]) -> str:
    """Write JSON on one line; what `os.fsdecode` made of bytes that are no text comes as JSON escapes."""
    text = json.dumps(content, ensure_ascii=False)
    return text if text.isascii() or not _SURROGATE.search(text) else json.dumps(content)


def _text(found: Explanation, top: int, explain: bool) -> str:
    from clipretrieval._explanation_views import readable

    ranked = "\t".join(f"{readable(label)}\t{share:.1%}" for label, share in _ranked(found)[:top])
    line = f"{readable(found.query)}\t{ranked}"
    if explain:
        return f"{line}\n{found}" if top > 1 else str(found)
    return line


def _tell_skipped(skipped: list[SkippedImage], told: int, as_json: bool) -> int:
    """Name the pictures that were passed over since the last call."""
    for item in skipped[told:]:
        pass_over(item)
        if as_json:
            path = None if item.source is None else str(item.source)
            typer.echo(_json({"path": path, "error": item.reason}))
    return len(skipped)


def forget(
    classifier: Annotated[Path, typer.Argument(metavar="CLASSIFIER", help="Folder that index has written.")],
    label: Annotated[
        list[str] | None, typer.Option(help="Forget all images of this class; may be repeated.")
    ] = None,
    image_id: Annotated[
        list[str] | None,
        typer.Option("--id", help="Forget the image with this id, which classify --explain --json shows."),
    ] = None,
) -> None:
    """Remove images from a classifier that is kept in a folder, and make certain that they are gone."""
    from clipretrieval._console import quiet_libraries
    from clipretrieval.errors import InvalidInputError

    if not label and not image_id:
        raise InvalidInputError("nothing was named to forget; pass --label CLASS or --id ID")
    with quiet_libraries():
        from clipretrieval import RetrievalClassifier

        made = RetrievalClassifier.load(classifier)
        with closing(made.store_):
            known = {str(each): each for each in made.classes_.tolist()}
            unknown = [name for name in label or () if name not in known]
            if unknown:
                raise InvalidInputError(
                    f"there is no class {unknown[0]!r}; the classes are {_named(list(known), most=50)}"
                )
            reports = [made.forget(list(dict.fromkeys(image_id)))] if image_id else []
            reports += [made.forget(label=known[name]) for name in dict.fromkeys(label or ())]
            made.save(classifier)
    for report in reports:
        typer.echo(str(report))


def _named(classes: list[Any], most: int = 5) -> str:
    return ", ".join(map(str, classes[:most])) + (", …" if len(classes) > most else "")


def pass_over(item: SkippedImage) -> None:
    typer.echo(f"passed over: {' '.join(item.reason.splitlines())}", err=True)
