"""``clipretrieval classify``: a kept classifier, asked about images."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipretrieval._util.text import json_line, readable
from clipretrieval.cli.arguments import (
    AllowRemote,
    KeptArgument,
    OnnxOption,
    PrecisionOption,
    PriorsOption,
    RuntimeOption,
    TextOptions,
    check_head,
    check_precision,
    check_runtime,
    exported_encoder,
    refuse_url,
)
from clipretrieval.cli.console import SKIPPED, quiet_libraries, say, tell, tell_skipped
from clipretrieval.cli.interrupt import interruptible
from clipretrieval.cli.kept import change_head, closing_stores, load_to_ask, modules_to_ask, refuse_answering
from clipretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    from clipretrieval.cli.kept import Asked
    from clipretrieval.explanation import Explanation
    from clipretrieval.images.stream import SkippedImage

__all__ = ["classify_command"]


def classify_command(
    context: typer.Context,
    classifier: KeptArgument,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE…", help="Files, folders, or - for paths on the standard input."),
    ],
    texts: TextOptions,
    top: Annotated[int, typer.Option(metavar="N", help="Classes to show per image.")] = 1,
    by: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="share of the votes or probability, margin over the next class, or distance (nearest "
            "neighbor): how sure the answer is.",
        ),
    ] = "share",
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Also show the neighbors behind each answer, and how each part of a fused head spoke.",
        ),
    ] = False,
    coverage: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Also show a set of classes that contains the true one with this coverage; the "
            "classifier has to be conformalized.",
        ),
    ] = None,
    head: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="votes, discriminant, quadratic, ridge or fused, instead of the classifier's own head.",
            show_default="the classifier's own",
        ),
    ] = "votes",
    priors: PriorsOption = "equal",
    onnx: OnnxOption = None,
    runtime: RuntimeOption = "onnxruntime",
    precision: PrecisionOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON for each image.")] = False,
    allow_remote: AllowRemote = False,
) -> None:
    """Classify images with a saved classifier."""
    from clipretrieval._util.checks import check_choice, check_int, check_path
    from clipretrieval.heads.confidence import MEASURES
    from clipretrieval.trust.conformal import check_coverage

    check_int(top, "--top")
    check_choice(by, "--by", MEASURES)
    if coverage is not None:
        check_coverage(coverage, "--coverage")
    check_head(head, priors)
    check_runtime(context, onnx)
    check_precision(context, onnx)
    spoken = texts.arguments()
    for given in images:
        check_path(given, "IMAGE")
    with quiet_libraries():
        refuse_answering(context, classifier)
        asked = modules_to_ask(classifier, exported=onnx is not None)
    with quiet_libraries(), interruptible(*asked):
        from clipretrieval.retrieval.retriever import NoImagesError

        made = load_to_ask(
            classifier, allow_remote, exported_encoder(onnx, runtime=runtime, precision=precision)
        )
        change_head(context, made, head, priors, spoken)
        skipped: list[SkippedImage] = []
        empty: list[str] = []
        told: set[int] = set()
        with closing_stores(made):
            try:
                for found in _explained(made, _paths(images, empty), skipped, by, top, coverage):
                    _tell_skipped(skipped, told, as_json)
                    say(_answer_json(found, top, explain) if as_json else _answer_text(found, top, explain))
            except NoImagesError as error:
                if not skipped:  # else each was named
                    raise InvalidInputError(f"there is nothing to classify: {'; '.join(empty)}") from error
            _tell_skipped(skipped, told, as_json)
    for reason in empty:
        tell(f"warning: {reason}")
    if skipped:
        raise typer.Exit(SKIPPED)


def _explained(
    made: Asked,
    paths: Iterator[Path],
    skipped: list[SkippedImage],
    by: str,
    top: int,
    coverage: float | None,
) -> Iterator[Explanation]:
    """Yield the answer to each image, with a cascade's exit where it left."""
    from clipretrieval.explanation import explain_stream
    from clipretrieval.persistence.read_only_classifier import ReadOnlyClassifier

    if not isinstance(made, ReadOnlyClassifier):
        if coverage is not None:
            raise InvalidInputError(
                "--coverage is not for a cascade, which has no prediction sets; leave it out, or name a "
                "classifier of one stage"
            )
        return made.explain_stream(paths, on_error="skip", skipped=skipped, by=by, top=top)
    return explain_stream(made, paths, on_error="skip", skipped=skipped, by=by, top=top, coverage=coverage)


def _paths(images: list[str], empty: list[str]) -> Iterator[Path]:
    """Yield the images that arguments stand for, as they are needed; `empty` receives what has none."""
    from clipretrieval.images.folders import is_folder, list_images

    for given in images:
        refuse_url(given, "IMAGES")
        if given == "-":
            found = _paths_of_input()
        elif is_folder(given):
            found = iter(list_images(given))
        else:
            found = iter((Path(given),))
        first = next(found, None)
        if first is None:
            what = "the standard input names" if given == "-" else f"the folder {given!r} holds"
            empty.append(f"{what} no images")
        else:
            yield first
            yield from found


def _paths_of_input() -> Iterator[Path]:
    for line in sys.stdin.buffer if sys.stdin is not None else ():
        path = line.rstrip(b"\r\n")
        if path:
            refuse_url(os.fsdecode(path), "the standard input")
            yield Path(os.fsdecode(path))


def _top_classes(found: Explanation) -> list[tuple[Any, float]]:
    """Return classes with their shares of the votes or their probabilities, the answer first."""
    if found.top or not found.counts_votes:
        return list(found.top)
    shares: dict[Any, float] = {}
    for each in found.neighbors:
        shares[each.label] = shares.get(each.label, 0.0) + each.share
    shares[found.answer] = found.share
    voted = [(label, share) for label, share in shares.items() if share > 0]
    return sorted(voted, key=lambda item: (item[0] != found.answer, -item[1]))


def _confidence(found: Explanation) -> str:
    """Write how sure an answer is, by the measure that was asked for."""
    if found.by == "distance":
        return f"{found.distance:.4g}"
    share = found.share if found.by == "share" else found.margin
    return "-" if share is None else f"{share:.1%}"


def _answer_json(found: Explanation, top: int, explain: bool) -> str:
    content = found.to_dict()
    shown: dict[str, Any] = {
        "path": str(found.query),
        "label": content["answer"],
        **{name: content[name] for name in ("share", "margin", "distance", "stage") if name in content},
        **({"set": content["set"]} if "set" in content else {}),
        "top": [{"label": label, "share": share} for label, share in _top_classes(found)[:top]],
        **({"neighbors": content["neighbors"]} if explain else {}),
        **{name: content[name] for name in ("head", "parts", "steps") if explain and name in content},
    }
    return json_line(shown)


def _answer_text(found: Explanation, top: int, explain: bool) -> str:
    if explain and top == 1 and found.prediction_set is None:
        return str(found)
    cells = [
        readable(found.query),
        readable(found.answer),
        _confidence(found),
        *([readable(found.stage)] if hasattr(found, "stage") else []),
    ]
    others = [each for each in _top_classes(found) if each[0] != found.answer]
    for label, share in others[: top - 1]:
        cells += [readable(label), f"{share:.1%}"]
    if found.prediction_set is not None:
        cells.append(f"{{{', '.join(map(readable, found.prediction_set))}}}")
    line = "\t".join(cells)
    return f"{line}\n{found}" if explain else line


def _tell_skipped(skipped: list[SkippedImage], told: set[int], as_json: bool) -> None:
    """Name the images that were skipped and not told of yet."""
    if len(skipped) == len(told):
        return
    for image in [each for each in skipped if each.index not in told]:
        told.add(image.index)
        tell_skipped(image)
        if as_json:
            path = None if image.source is None else str(image.source)
            say(json_line({"path": path, "error": image.reason}))
