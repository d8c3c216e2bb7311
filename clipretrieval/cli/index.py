"""``clipretrieval index`` and ``forget``: a classifier kept in a folder, and changed there."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from clipretrieval._util.text import readable
from clipretrieval.cli.arguments import (
    AllowRemote,
    CascadeOptions,
    EncoderOptions,
    HeadOptions,
    KeptArgument,
    OnnxOption,
    RuntimeOption,
    SpaceOptions,
    StoreOptions,
    TableOptions,
    TextOptions,
    VectorOptions,
    check_runtime,
    exported_encoder,
    image_source,
    is_given,
    make_cascade,
    make_classifier,
    option_of,
    refuse_given,
)
from clipretrieval.cli.console import SKIPPED, quiet_libraries, say, tell, tell_fitted
from clipretrieval.cli.interrupt import interruptible
from clipretrieval.cli.kept import closing_stores, labels_by_name, load_for_images, load_kept
from clipretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    from clipretrieval._util.progress import Progress
    from clipretrieval.cli.kept import Kept
    from clipretrieval.cli.settings import Settings
    from clipretrieval.images.folders import ImageFolder
    from clipretrieval.images.tables import ImageTable
    from clipretrieval.images.tars import ImageTars
    from clipretrieval.vectors.ready_vectors import ReadyVectors

    Source: TypeAlias = ImageFolder | ImageTable | ImageTars | ReadyVectors

__all__ = ["forget_command", "index_command"]

_FREE = (
    *("images", "classifier", "add", "resume", "flush_every", "allow_remote"),
    *("images_root", "image_column", "label_column"),
)
"""Arguments that may stand beside ``--add``."""
_TEXTS = ("text_weight", "class_names", "template")
_CASCADE_HEAD = "fused"
"""A cascade's head if none is given: votes of one neighbor do not tell how sure they are."""


def index_command(
    context: typer.Context,
    images: Annotated[
        str,
        typer.Argument(
            metavar="IMAGES",
            help="Folder with a sub-folder of images for each class, CSV file of paths, tars, or URL.",
        ),
    ],
    classifier: Annotated[
        Path | None,
        typer.Argument(
            metavar="CLASSIFIER", help="Folder to save the classifier in; with --vectors, without IMAGES."
        ),
    ] = None,
    *,
    vectors: VectorOptions,
    encoder: EncoderOptions,
    cascade: CascadeOptions,
    space: SpaceOptions,
    head: HeadOptions,
    texts: TextOptions,
    store: StoreOptions,
    tables: TableOptions,
    add: Annotated[
        bool, typer.Option("--add", help="Add the images to the classifier that is there.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run, with its settings.")
    ] = False,
    flush_every: Annotated[
        int | None,
        typer.Option(metavar="N", help="Encode at most N images again after a kill."),
    ] = None,
    allow_remote: AllowRemote = False,
) -> None:
    """Build a classifier or a cascade from labeled images and save it in a folder, or add images to it."""
    from clipretrieval._util.progress import progress_bar

    with quiet_libraries():
        given, classifier = vectors.given(images, classifier)
        if add and resume:
            raise InvalidInputError("--add and --resume exclude each other; pass one of them")
        if add:
            check_runtime(context, encoder.onnx)
            refuse_given(
                context,
                encoder.beside_kept((*_FREE, *VectorOptions.names())),
                "--add: images are added with the settings that the classifier was made with",
            )
        if given is not None:
            if cascade.cascade is not None:
                raise InvalidInputError("--cascade cannot be used with --vectors, which are of one stage")
            labelled: Source = vectors.opened(given, tables)
        else:
            labelled = image_source(images, tables)
        with interruptible():
            if add:
                made = _add(classifier, labelled, encoder, flush_every, allow_remote)
            else:
                from clipretrieval.cli.settings import Settings, indexing

                if cascade.cascade is not None and not is_given(context, "head"):
                    head = replace(head, head=_CASCADE_HEAD if cascade.keep_vectors else "discriminant")
                with (
                    progress_bar("indexing") as bar,
                    indexing(
                        classifier,
                        Settings(encoder, space, head, texts, store, cascade),
                        images if given is None else given,
                        tables.images_root,
                        resume=resume,
                        is_given=partial(is_given, context),
                        progress=bar,
                    ) as (settings, progress),
                ):
                    settings.encoder.check_alone(context)
                    _check_exits(context, settings)
                    made = _fit(settings, classifier, labelled, resume, flush_every, progress)
    report = made.fit_report_
    tell_fitted(report)
    say(str(report).splitlines()[0])
    classes = _class_names(made.classes_.tolist())
    say(f"{len(made.classes_)} classes ({classes}), kept in {readable(classifier)}")
    if hasattr(made, "exits_") and made.calibration_ is None:
        say(
            f"the exits {', '.join(made.stages)} are not calibrated, so all images go to the last one; run "
            f"clipretrieval calibrate IMAGES {readable(classifier)} with labeled images that were not indexed"
        )
    if report.skipped:
        raise typer.Exit(SKIPPED)


def _check_exits(context: typer.Context, settings: Settings) -> None:
    """Refuse options that have no meaning for a cascade, or for no other classifier."""
    if settings.cascade.cascade is None:
        for name in ("certainty", "keep_vectors"):
            if is_given(context, name):
                raise InvalidInputError(f"{option_of(name)} is for --cascade, which is not given")
        return
    for name in ("stage", *_TEXTS):
        if is_given(context, name):
            why = "whose exits are the stages" if name == "stage" else "whose exits ask no texts"
            raise InvalidInputError(f"{option_of(name)} cannot be used with --cascade, {why}; leave one out")


def _fit(
    settings: Settings,
    folder: Path,
    labelled: Source,
    resume: bool,
    flush_every: int | None,
    progress: Progress,
) -> Kept:
    from clipretrieval.cli.settings import VECTORS, keeps

    made: Kept
    place, wanted = folder / VECTORS, (settings.encoder, settings.space, settings.head)
    if settings.cascade.cascade is None:
        made = make_classifier(*wanted, settings.texts, settings.store, place)
    else:
        made = make_cascade(*wanted, settings.cascade, settings.store, place)
    try:
        made.fit(labelled, resume=resume, flush_every=flush_every, on_error="skip", progress=progress)
    except KeyboardInterrupt:
        store = settings.store.store
        tell(
            "what was encoded is kept; pass --resume to go on"
            if keeps(store)
            else f"nothing is kept: the store {store!r} is in memory until it is complete"
        )
        raise
    with closing_stores(made):
        made.save(folder)
    return made


def _add(
    folder: Path,
    labelled: Source,
    encoder: EncoderOptions,
    flush_every: int | None,
    allow_remote: bool,
) -> Kept:
    from clipretrieval._util.progress import progress_bar
    from clipretrieval.cli.named_tars import NamedTars
    from clipretrieval.images.folders import ImageFolder
    from clipretrieval.images.tables import ImageTable
    from clipretrieval.images.tars import ImageTars
    from clipretrieval.vectors.ready_vectors import ReadyVectors

    made = load_for_images(folder, allow_remote, encoder.exported())
    with closing_stores(made), progress_bar("adding") as progress:
        try:
            given: tuple[Any, ...] = (labelled,)
            if isinstance(labelled, ImageFolder):
                given = labelled.paths, labels_by_name(made, labelled.labels or ())
            elif isinstance(labelled, ImageTable) and isinstance((labelled.labels or [0])[0], str):
                given = labelled.images, labels_by_name(made, labelled.labels or ())
            elif isinstance(labelled, ImageTars):
                given = (NamedTars.of(labelled, made),)
            elif isinstance(labelled, ReadyVectors) and not hasattr(made, "partial_fit_vectors"):
                raise InvalidInputError(
                    f"{str(folder)!r} holds a cascade, whose exits have vectors of their own; --vectors "
                    "are for a classifier of one stage"
                )
            made.partial_fit(*given, flush_every=flush_every, on_error="skip", progress=progress)
        except KeyboardInterrupt:
            made.save(folder)  # a store in memory is kept as a copy, which lacks what was added until now
            tell("what was added is kept; run it again to add the rest")
            raise
        made.save(folder)
    return made


def forget_command(
    context: typer.Context,
    classifier: KeptArgument,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS", help="Forget all images of this class; may be repeated."),
    ] = None,
    image_id: Annotated[
        list[str] | None,
        typer.Option(
            "--id", metavar="ID", help="Forget the image with this id, which classify --explain --json shows."
        ),
    ] = None,
    onnx: OnnxOption = None,
    runtime: RuntimeOption = "onnxruntime",
    allow_remote: AllowRemote = False,
) -> None:
    """Remove images from a saved classifier, and verify that they are gone."""
    if not label and not image_id:
        raise InvalidInputError("nothing was named to forget; pass --label CLASS or --id ID")
    check_runtime(context, onnx)
    with quiet_libraries(), interruptible():
        made = load_kept(classifier, allow_remote, exported_encoder(onnx, runtime=runtime))
        with closing_stores(made):
            known = made.classes_.tolist()
            named = list(dict.fromkeys(labels_by_name(made, label or ())))
            unknown = [each for each in named if each not in known]
            if unknown:
                raise InvalidInputError(
                    f"there is no class {unknown[0]!r}; the classes are {_class_names(known, most=50)}"
                )
            reports = [made.forget(list(dict.fromkeys(image_id)))] if image_id else []
            reports += [made.forget(label=each) for each in named]
            made.save(classifier)
    for report in reports:
        say(str(report))


def _class_names(classes: list[Any], most: int = 5) -> str:
    return ", ".join(map(readable, classes[:most])) + (", …" if len(classes) > most else "")
