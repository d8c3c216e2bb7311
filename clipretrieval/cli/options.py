"""The options of all commands, each written down once, in groups that are made into objects.

A command takes a group as one parameter of the group's type, and so has all of its options:

>>> from clipretrieval.cli.options import StoreOptions, command
>>> @command
... def show(store: StoreOptions) -> None:
...     print(store.store)
>>> show(store="faiss", store_option=None)
faiss
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer

if TYPE_CHECKING:
    from clipretrieval import ComparisonReport, EvaluationReport, StagedEncoder

__all__ = [
    *("MACHINE", "AllowRemote", "EncoderOptions", "Kept", "KeptOption", "LimitTest", "LimitTrain", "Metric"),
    *("ModelOptions", "OnError", "OpenClip", "PrintJson", "ReportFiles", "SpaceOptions", "StoreOptions"),
    *("TableOptions", "TrainOption", "VoteOptions", "WeightsOptions", "command", "option_of"),
]

Metric = Annotated[
    str, typer.Option(metavar="NAME", help="l2 (squared Euclidean), cosine or ip (inner product).")
]

MACHINE = ("precision", "device", "batch_size", "compile", "max_pixels")
"""Options that decide how fast an encoder is and what it refuses, and not what its vectors mean."""


@dataclass(frozen=True)
class WeightsOptions:
    """What makes an encoder, apart from what the study fixed."""

    model: Annotated[
        str, typer.Option(metavar="NAME", help="RN50, RN101, RN50x4, …, local-dir:PATH or hf-hub:ORG/NAME.")
    ] = "RN50"
    pretrained: Annotated[
        str, typer.Option(metavar="TAG", help="An open_clip tag, a checkpoint's path, or none.")
    ] = "openai"
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of random weights (--pretrained none).")] = 0
    precision: Annotated[str, typer.Option(metavar="NAME", help="auto, fp32, bf16 or fp16.")] = "auto"
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto"
    batch_size: Annotated[int, typer.Option(metavar="N", help="Images encoded together.")] = 64
    compile: Annotated[bool, typer.Option("--compile", help="Compile the encoder with torch.compile.")] = (
        False
    )
    max_pixels: Annotated[
        int, typer.Option(metavar="N", help="Refuse images of more pixels than this (width × height).")
    ] = 75_000_000

    def encoder(self, **stage: str) -> StagedEncoder:
        """Make the encoder, at a stage."""
        from clipretrieval import StagedEncoder

        given = {**asdict(self), **stage}
        given["pretrained"] = None if self.pretrained.lower() == "none" else self.pretrained
        return StagedEncoder(**given)


@dataclass(frozen=True)
class ModelOptions(WeightsOptions):
    """What makes an encoder, apart from its stage."""

    pooling: Annotated[str, typer.Option(metavar="NAME", help="mean, max, gem, tokens or grid.")] = "mean"
    image_size: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Side, a multiple of 32, if not the model's own.")
    ] = None


@dataclass(frozen=True)
class EncoderOptions(ModelOptions):
    """What makes an encoder."""

    stage: Annotated[
        str, typer.Option(metavar="NAME", help="pixel, mid, late, final, or a block such as layer2.1.")
    ] = "late"


@dataclass(frozen=True)
class SpaceOptions:
    """What is near."""

    metric: Metric = "l2"
    normalize: Annotated[bool, typer.Option("--normalize", help="Scale vectors to length one first.")] = False


@dataclass(frozen=True)
class VoteOptions:
    """How the neighbours answer."""

    k: Annotated[int, typer.Option("--k", metavar="N", help="Number of neighbors that vote.")] = 1
    weights: Annotated[
        str, typer.Option(metavar="NAME", help="uniform, distance or softmax: how much each vote counts.")
    ] = "uniform"
    temperature: Annotated[float, typer.Option(metavar="T", help="Temperature of --weights softmax.")] = 0.07


@dataclass(frozen=True)
class StoreOptions:
    """Where the vectors lie."""

    store: Annotated[
        str,
        typer.Option(metavar="NAME", help="faiss, memory, chroma, pinecone, or one registered by a package."),
    ] = "faiss"
    store_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Argument for the store; may be repeated.")
    ] = None


@dataclass(frozen=True)
class TableOptions:
    """How a CSV file of paths and labels is read, which may stand in the place of a folder."""

    images_root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where a CSV file's relative paths start, if elsewhere."),
    ] = None
    image_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="The CSV file's column of paths, if not detected.")
    ] = None
    label_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="The CSV file's column of labels, if not detected.")
    ] = None

    @property
    def given(self) -> str | None:
        """The first option that was given."""
        return next(
            (option_of(field.name) for field in fields(self) if getattr(self, field.name) is not None), None
        )


Kept = Annotated[Path, typer.Argument(metavar="CLASSIFIER", help="Folder written by index.")]
KeptOption = Annotated[
    Path | None, typer.Option("--classifier", metavar="DIR", help="Folder written by index.")
]
TrainOption = Annotated[
    Path | None,
    typer.Option("--train", metavar="IMAGES", help="Labeled images of the same form, to fit on."),
]
AllowRemote = Annotated[
    bool,
    typer.Option(
        "--allow-remote",
        help="Also open a store at a server, or a model of a hub, that the classifier names.",
    ),
]
LimitTrain = Annotated[
    int | None, typer.Option(metavar="N", help="Fit on N images at most, taken in turn from each class.")
]
LimitTest = Annotated[
    int | None, typer.Option(metavar="N", help="Classify N images at most, taken in turn from each class.")
]
OnError = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="raise: stop at an image that cannot be decoded; skip: continue without it."
    ),
]
OpenClip = Annotated[bool, typer.Option("--open-clip/--no-open-clip", help="Also time open_clip as it is.")]
PrintJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@dataclass(frozen=True)
class ReportFiles:
    """Where a report is written besides the standard output."""

    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the report there as JSON.")
    ] = None
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the report there as a page.")
    ] = None
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Also write it there as Markdown.")
    ] = None

    @property
    def named(self) -> dict[str, Path | None]:
        """The files by their options."""
        return {"--json": self.json_file, "--html": self.html_file, "--markdown": self.markdown_file}

    @staticmethod
    def write(report: EvaluationReport | ComparisonReport, outputs: Mapping[str, Path]) -> None:
        """Write a report into the files that were checked, by their options."""
        write = {"--json": report.to_json, "--html": report.to_html, "--markdown": report.to_markdown}
        for option in write.keys() & outputs.keys():
            write[option](outputs[option])


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a function some of whose parameters are groups of options.

    typer is shown an option for each field of a group; the function gets the group. Every path is checked
    before the function is called: an empty one would be the current folder.
    """
    groups: dict[str, type[Any]] = {}
    paths: dict[str, str] = {}
    shown: list[inspect.Parameter] = []

    def show(name: str, hint: Any, default: Any) -> None:
        given = hint
        if _holds_path(hint):
            paths[name] = option_of(name, hint)
            given = _as_text(hint)
        shown.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=given)
        )

    hints = get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        hint = hints[parameter.name]
        if is_dataclass(hint) and isinstance(hint, type):
            groups[parameter.name] = hint
            within = get_type_hints(hint, include_extras=True)
            for field in fields(hint):
                show(field.name, within[field.name], field.default)
        else:
            show(parameter.name, hint, parameter.default)

    def run(**given: Any) -> None:
        for name, option in paths.items():
            given[name] = _checked(given[name], option)
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        function(**given)

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    run.__annotations__ = {}
    return run


def option_of(name: str, hint: Any = None) -> str:
    """Return how the command line calls a parameter: ``--store-option``, or ``IMAGES``."""
    for info in get_args(hint)[1:] if get_origin(hint) is Annotated else ():
        if isinstance(info, typer.models.ArgumentInfo):
            return str(info.metavar or name.upper())
        declared = [info.default, *(info.param_decls or ())]
        found = [each for each in declared if isinstance(each, str) and each.startswith("--")]
        if found:
            return found[0]
    return f"--{name.replace('_', '-')}"


def _holds_path(hint: Any) -> bool:
    return hint is Path or any(_holds_path(each) for each in get_args(hint))


def _as_text(hint: Any) -> Any:
    """Return an annotation with str in the place of Path, so that nothing is lost before it is checked."""
    kind, *infos = get_args(hint)
    return Annotated[(str | None if type(None) in get_args(kind) else str, *infos)]


def _checked(value: Any, option: str) -> Any:
    from clipretrieval._util.checks import check_path
    from clipretrieval.errors import InvalidInputError

    if value == "":
        raise InvalidInputError(f"{option} must not be empty; pass a path")
    return None if value is None else check_path(value, option)
