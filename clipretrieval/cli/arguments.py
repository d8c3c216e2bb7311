"""The options and arguments of all commands, each written down once, and what is made of them.

Options come in groups that are made into objects. A command takes a group as one parameter of the group's
type, and so has all of its options:

>>> from clipretrieval.cli.arguments import StoreOptions, command
>>> @command
... def show(store: StoreOptions) -> None:
...     print(store.store)
>>> show(store="faiss", store_option=None)
faiss

Everything is checked before any work begins.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer

from clipretrieval._util.secrets import masked_text
from clipretrieval.errors import InvalidInputError
from clipretrieval.stores.registry import DEFAULT_STORE, options_within, store_class

if TYPE_CHECKING:
    from clipretrieval.cascade.cascade_classifier import CascadeClassifier
    from clipretrieval.classifier import RetrievalClassifier
    from clipretrieval.comparison.report import ComparisonReport
    from clipretrieval.encoding.onnx.onnx_encoder import OnnxEncoder
    from clipretrieval.encoding.staged_encoder import StagedEncoder
    from clipretrieval.evaluation.report import EvaluationReport
    from clipretrieval.images.folders import ImageFolder
    from clipretrieval.persistence.read_only_classifier import ReadOnlyClassifier
    from clipretrieval.vectors.ready_vectors import ReadyVectors

__all__ = [
    *(
        "MACHINE",
        "AllowRemote",
        "CascadeOptions",
        "EncoderOptions",
        "KeptArgument",
        "KeptFirst",
        "KeptOption",
    ),
    *("LimitTest", "LimitTrain", "PrecisionOption", "RuntimeOption"),
    *("MetricOption", "ModelOptions", "OnError", "OnnxOption", "OpenClip", "PrintJson", "ReportFiles"),
    *("HeadOptions", "PriorsOption", "SpaceOptions", "StoreOptions", "TableOptions", "TemplateOption"),
    *("TextOptions", "TrainOption", "VectorOptions", "WeightsOptions"),
    *(
        "as_option",
        "check_head",
        "check_precision",
        "check_runtime",
        "check_texts_count",
        "checked_outputs",
        "command",
        "comma_separated",
    ),
    *("exported_encoder", "is_given", "labelled_images", "make_cascade", "make_classifier", "numbers"),
    *("option_of", "refuse_given", "refuse_url", "training_images"),
]

_LARGEST_NAMES = 2**24
_JSON_NAMES = {bool: "true or false", int: "a whole number", float: "a number", type(None): "null"}

MetricOption = Annotated[
    str, typer.Option(metavar="NAME", help="l2 (squared Euclidean), cosine or ip (inner product).")
]

PriorsOption = Annotated[
    str,
    typer.Option(metavar="NAME", help="Class priors of all heads but votes: equal, or empirical (counts)."),
]

TemplateOption = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="Prompt with {} for the class; several make an ensemble."),
]

_NOT_EXPORTED = (*("model", "pretrained", "seed", "device", "compile", "pooling", "image_size", "stage"),)
"""Options of encoders that an exported one has no use for, …"""
_EXPORTED = ("onnx", "runtime", "precision", "batch_size", "max_pixels")
"""… and those that it has."""

OnnxOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Encode with a file that export wrote, which needs no torch."),
]

PrecisionOption = Annotated[str, typer.Option(metavar="NAME", help="auto, fp32, bf16 or fp16.")]

RuntimeOption = Annotated[
    str, typer.Option(metavar="NAME", help="onnxruntime or openvino: what runs the file of --onnx.")
]

MACHINE = ("precision", "device", "batch_size", "compile", "max_pixels", "runtime")
"""Options that decide how fast an encoder is and what it refuses, and not what its vectors mean."""


@dataclass(frozen=True)
class WeightsOptions:
    """What makes an encoder, apart from what the study fixed."""

    model: Annotated[
        str,
        typer.Option(metavar="NAME", help="RN50, ViT-B-32, timm:NAME, …, local-dir:PATH or hf-hub:ORG/NAME."),
    ] = "RN50"
    pretrained: Annotated[
        str, typer.Option(metavar="TAG", help="An open_clip tag, a checkpoint's path, or none.")
    ] = "openai"
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of random weights (--pretrained none).")] = 0
    precision: PrecisionOption = "auto"
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto"
    batch_size: Annotated[int, typer.Option(metavar="N", help="Images encoded together.")] = 64
    compile: Annotated[bool, typer.Option("--compile", help="Compile the encoder with torch.compile.")] = (
        False
    )
    max_pixels: Annotated[
        int, typer.Option(metavar="N", help="Refuse images of more pixels than this (width × height).")
    ] = 75_000_000

    def encoder(self, **more: Any) -> StagedEncoder:
        """Make the encoder, with arguments that are no options of this group, such as its stage."""
        from clipretrieval.encoding.staged_encoder import StagedEncoder

        given = {**asdict(self), **more}
        given["pretrained"] = None if self.pretrained.lower() == "none" else self.pretrained
        return StagedEncoder(**given)


@dataclass(frozen=True)
class ModelOptions(WeightsOptions):
    """What makes an encoder, apart from its stage."""

    pooling: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="mean, max, gem, tokens, grid or cls, or several, such as mean+max."
        ),
    ] = "mean"
    image_size: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS", help="Side, a multiple of 32 or of the patch, if not the model's own."
        ),
    ] = None


@dataclass(frozen=True)
class EncoderOptions(ModelOptions):
    """What makes an encoder."""

    stage: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="pixel, mid, late, final, a block such as layer2.1, or several joined, such as layer2+mid.",
        ),
    ] = "late"

    onnx: OnnxOption = None
    runtime: RuntimeOption = "onnxruntime"

    def exported(self) -> OnnxEncoder | None:
        """Open the encoder's file, if one is given."""
        options = {name: getattr(self, name) for name in ("precision", "batch_size", "max_pixels")}
        return exported_encoder(self.onnx, runtime=self.runtime, **options)

    def beside_kept(self, names: Sequence[str]) -> tuple[str, ...]:
        """Add the names of those that open an exported encoder in the kept one's place, if one is given."""
        return (*names, *(() if self.onnx is None else _EXPORTED))

    def check_alone(self, context: typer.Context) -> None:
        """Refuse options of encoders beside an exported one, which has its own settings, and the reverse."""
        check_runtime(context, self.onnx)
        for name in _NOT_EXPORTED if self.onnx is not None else ():
            if is_given(context, name):
                raise InvalidInputError(
                    f"{option_of(name)} cannot be used with --onnx: the file has the settings that it was "
                    "exported with; leave one out"
                )

    def encoder(self, **more: Any) -> StagedEncoder:
        """Make the encoder of the model that is named, which can stop at several stages."""
        if self.onnx is not None:
            raise InvalidInputError(
                "--onnx cannot be used with --cascade, whose encoder stops at several stages: a file has "
                "one; leave one out"
            )
        plain = ModelOptions(**{each.name: getattr(self, each.name) for each in fields(ModelOptions)})
        return plain.encoder(stage=self.stage, **more)


def check_runtime(context: typer.Context, file: Path | None) -> None:
    """Refuse a runtime that has nothing to run."""
    if file is None and is_given(context, "runtime"):
        raise InvalidInputError("--runtime is for --onnx FILE, which it runs; pass both, or leave it out")


def check_precision(context: typer.Context, file: Path | None) -> None:
    """Refuse a precision for a kept classifier's own encoder."""
    if file is None and is_given(context, "precision"):
        raise InvalidInputError(
            "--precision is for --onnx FILE: a saved classifier's own encoder has the precision that it was "
            "indexed with; pass both, or leave it out"
        )


def exported_encoder(file: Path | None, **options: Any) -> OnnxEncoder | None:
    """Open an exported encoder, if a file is given."""
    if file is None:
        return None
    from clipretrieval.encoding.onnx.onnx_encoder import OnnxEncoder

    return OnnxEncoder(file, **options)


@dataclass(frozen=True)
class CascadeOptions:
    """Several stages in the place of one."""

    cascade: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Stages of a cascade, comma-separated, from shallow to deep: an image leaves at the first "
            "exit that is sure. Instead of --stage; --head is fused then, unless given.",
        ),
    ] = None
    certainty: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="combined, margin, agreement or distance: what tells how sure an exit is (--cascade).",
        ),
    ] = "combined"
    keep_vectors: Annotated[
        bool,
        typer.Option(
            "--keep-vectors/--no-keep-vectors",
            help="Whether exits before the last keep vectors. --head is discriminant without, unless given; "
            "the images have to stay where they are (--cascade).",
        ),
    ] = True

    @property
    def stages(self) -> list[str]:
        """The exits, at least two.

        Raises
        ------
        InvalidInputError
            If there are fewer.
        """
        from clipretrieval._util.checks import shown

        found = comma_separated(self.cascade or "")
        if len(found) < 2:
            raise InvalidInputError(
                "--cascade takes two stages or more with commas between them, such as layer2,mid,late; "
                f"got {shown(self.cascade)}"
            )
        return found


@dataclass(frozen=True)
class SpaceOptions:
    """What is near."""

    metric: MetricOption = "l2"
    normalize: Annotated[bool, typer.Option("--normalize", help="Scale vectors to length one first.")] = False
    transform: Annotated[
        str, typer.Option(metavar="NAME", help="auto, whiten or none: a map that is learned of the vectors.")
    ] = "auto"


@dataclass(frozen=True)
class HeadOptions:
    """What answers from what is stored."""

    head: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="votes, discriminant, quadratic, ridge or fused: the classification head."
        ),
    ] = "votes"
    priors: PriorsOption = "equal"
    k: Annotated[int, typer.Option("--k", metavar="N", help="Number of neighbors that vote.")] = 1
    weights: Annotated[
        str, typer.Option(metavar="NAME", help="uniform, distance or softmax: how much each vote counts.")
    ] = "uniform"
    temperature: Annotated[float, typer.Option(metavar="T", help="Temperature of --weights softmax.")] = 0.07


@dataclass(frozen=True)
class TextOptions:
    """What CLIP's texts say beside the head."""

    text_weight: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHT",
            help="How much CLIP's zero-shot answer counts beside the head's: auto, a number, or none. Needs "
            "the stage final.",
        ),
    ] = None
    class_names: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON object of labels and the names that prompts call them by."),
    ] = None
    template: TemplateOption = None

    def arguments(self) -> dict[str, Any]:
        """Return what was given as the classifier's arguments; names by the labels as text.

        Raises
        ------
        InvalidInputError
            If the weight is none, or the file of names cannot be read.
        """
        found: dict[str, Any] = {}
        if self.text_weight is not None:
            found["text_weight"] = _text_weight(self.text_weight)
        if self.class_names is not None:
            found["class_names"] = _read_names(self.class_names)
        if self.template:
            found["templates"] = self.template
        return found


def _text_weight(text: str) -> float | str | None:
    from clipretrieval._util.checks import shown
    from clipretrieval.heads.text_prior import check_text_weight

    if text in ("auto", "none"):
        return None if text == "none" else text
    try:
        return check_text_weight(float(text))
    except (ValueError, InvalidInputError) as error:
        raise InvalidInputError(
            f"--text-weight takes auto, a number of at least 0, or none; got {shown(text)}"
        ) from error


def _read_names(file: Path) -> dict[str, str]:
    from clipretrieval._util.files import read_file
    from clipretrieval._util.text import parse_json

    try:
        found = parse_json(read_file(file, _LARGEST_NAMES))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidInputError(f"--class-names: {str(file)!r} cannot be read: {reason}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise InvalidInputError(
            f'--class-names: {str(file)!r} must hold an object of labels and names, such as {{"7": "seven"}}'
        )
    return found


@dataclass(frozen=True)
class StoreOptions:
    """Where the vectors lie."""

    store: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="faiss, memory, chroma, lance, pgvector, pinecone, or a package's."
        ),
    ] = DEFAULT_STORE
    store_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Argument for the store; may be repeated.")
    ] = None

    def options(self) -> dict[str, Any]:
        """Read the KEY=VALUE pairs."""
        try:
            hints = get_type_hints(store_class(self.store).__init__)
        except (NameError, TypeError):  # annotations that only a type checker can read
            hints = {}
        options: dict[str, Any] = {}
        for pair in self.store_option or []:
            key, separator, text = pair.partition("=")
            if not separator or not key:
                raise InvalidInputError(f"--store-option takes KEY=VALUE; got {pair!r}")
            if key == "metric":
                raise InvalidInputError("--store-option metric is not taken; use --metric")
            if key == "api_key":
                raise InvalidInputError(
                    "--store-option api_key is not taken: whoever lists this machine's processes could read "
                    "the key. Set the environment variable PINECONE_API_KEY instead"
                )
            if key == "password" or (key == "conninfo" and _holds_password(text)):
                raise InvalidInputError(
                    "--store-option takes no password: whoever lists this machine's processes could read it. "
                    "Set the environment variable PGPASSWORD, or use ~/.pgpass"
                )
            options[key] = _option_value(key, text, hints.get(key, Any))
        return options


def _holds_password(conninfo: str) -> bool:
    """Tell whether libpq finds a password in a connection string, however it is spelt."""
    try:
        from psycopg import Error
        from psycopg.conninfo import conninfo_to_dict

        from clipretrieval.stores.pgvector.server import SECRETS
    except ImportError:
        return masked_text(conninfo) != conninfo
    try:
        return not conninfo_to_dict(conninfo).keys().isdisjoint(SECRETS)
    except (Error, UnicodeError):  # the store says so, and shows nothing
        return False


def _option_value(key: str, text: str, hint: Any) -> Any:
    """Take text where the store does; elsewhere read numbers, true, false and null, or text at last."""
    from clipretrieval._util.checks import check_path, shown

    kinds = get_args(hint) or (hint,)
    if Path in kinds:
        return str(check_path(text, f"--store-option {key}"))
    if str in kinds:
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: brackets by the thousand
        value = text
    allowed = {*kinds, int} if float in kinds else {*kinds}
    if allowed <= set(_JSON_NAMES) and type(value) not in allowed:
        wanted = " or ".join(_JSON_NAMES[kind] for kind in kinds)
        raise InvalidInputError(f"--store-option {key} takes {wanted}; got {shown(text)}")
    return value


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


@dataclass(frozen=True)
class VectorOptions:
    """Vectors that exist already, in the place of images."""

    vectors: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Parquet, Arrow, NumPy or folders of Hugging Face and clip-retrieval, in place of IMAGES.",
        ),
    ] = None
    vector_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Their column of vectors, if not detected.")
    ] = None
    id_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Their column of ids, if it is not 'id'.")
    ] = None
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Their labels, .npy, if they have no column of them.")
    ] = None

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of all of them."""
        return tuple(field.name for field in fields(cls))

    def given(self, images: str, classifier: Path | None) -> tuple[str | None, Path]:
        """Return the path of the vectors, None where there are images, and the classifier's folder.

        With vectors, the one positional argument is the classifier's.
        """
        from clipretrieval.images.urls import url_name

        if self.vectors is None:
            other = next((name for name in self.names() if getattr(self, name) is not None), None)
            if other is not None:
                raise InvalidInputError(f"{option_of(other)} is for --vectors PATH, which is not given")
            if classifier is None:
                raise InvalidInputError("CLASSIFIER is missing: clipretrieval index IMAGES CLASSIFIER")
            return None, classifier
        if classifier is not None:
            raise InvalidInputError(
                f"IMAGES ({url_name(images)!r}) cannot be used with --vectors, which stand in their place; "
                "leave one out"
            )
        if not self.vectors:
            raise InvalidInputError("--vectors must not be empty; pass a path")
        refuse_url(images, "CLASSIFIER")
        return self.vectors, Path(images)

    def opened(self, path: str, tables: TableOptions) -> ReadyVectors:
        """Return the vectors in files, with their labels and ids."""
        from clipretrieval.vectors.numpy_reader import read_numpy_column
        from clipretrieval.vectors.ready_vectors import ReadyVectors

        for name in ("images_root", "image_column"):
            if getattr(tables, name) is not None:
                raise InvalidInputError(f"{option_of(name)} is for IMAGES, and --vectors are given")
        if self.labels is not None and tables.label_column is not None:
            raise InvalidInputError("--labels and --label-column exclude each other; pass one of them")
        labels = tables.label_column if self.labels is None else read_numpy_column(self.labels)
        return ReadyVectors(path, labels, self.id_column, self.vector_column)


KeptArgument = Annotated[Path, typer.Argument(metavar="CLASSIFIER", help="Folder written by index.")]
KeptOption = Annotated[
    Path | None, typer.Option("--classifier", metavar="DIR", help="Folder written by index.")
]
KeptFirst = Annotated[
    Path | None,
    typer.Argument(metavar="CLASSIFIER", help="Folder written by index; the same as --classifier."),
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
            given[name] = _checked_path(given[name], option)
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


def as_option(name: str, value: Any) -> str:
    """Write how the command line gives a value, or says that there is none."""
    option = option_of(name)
    if isinstance(value, list):
        return " ".join(f"{option} {item}" for item in value) or f"no {option}"
    if isinstance(value, bool):
        return option if value else f"no {option}"
    return f"no {option}" if value is None else f"{option} {value}"


def _holds_path(hint: Any) -> bool:
    return hint is Path or any(_holds_path(each) for each in get_args(hint))


def _as_text(hint: Any) -> Any:
    """Return an annotation with str in the place of Path, so that nothing is lost before it is checked."""
    kind, *infos = get_args(hint)
    return Annotated[(str | None if type(None) in get_args(kind) else str, *infos)]


def _checked_path(value: Any, option: str) -> Any:
    from clipretrieval._util.checks import check_path

    if value == "":
        raise InvalidInputError(f"{option} must not be empty; pass a path")
    refuse_url(value, option)
    return None if value is None else check_path(value, option)


def refuse_url(value: Any, option: str) -> None:
    """Refuse a URL where a path belongs, before it is taken for one and shown with what it keeps secret."""
    from clipretrieval.images.urls import is_url, url_name

    if is_url(value):
        raise InvalidInputError(
            f"{option} takes a path of this machine, and {url_name(value)!r} is a URL; those of images are "
            "for clipretrieval encode and index"
        )


def is_given(context: typer.Context, name: str) -> bool:
    """Tell whether an argument was on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_given(context: typer.Context, allowed: Sequence[str], why: str) -> None:
    """Refuse whatever else than `allowed` is on the command line; `why` ends the message."""
    for name in context.params:
        if name not in allowed and is_given(context, name):
            declared = {each.name: each.opts[0] for each in context.command.params if each.opts}
            option = declared.get(name, "")
            option = option if option.startswith("--") else option_of(name)
            raise InvalidInputError(f"{option} cannot be used with {why}")


def checked_outputs(files: Mapping[str, Path | None], *inputs: Path | None) -> dict[str, Path]:
    """Find out whether the file that an option names can be written, and follow links to where it lies.

    `inputs` are folders and files that the command reads, which no file may replace a part of.

    Raises
    ------
    InvalidInputError
        If one is no file, cannot be written, is given twice, or is a part of an input.
    """
    found: dict[str, Path] = {}
    for option, path in files.items():
        if path is None:
            continue
        target = _checked_output(path, option)
        for other, taken in found.items():
            if taken == target:
                raise InvalidInputError(
                    f"{other} and {option} name the same file, {str(path)!r}, and one report would replace "
                    "the other; name two files"
                )
        for given in inputs:
            if given is not None and _is_part(target, given.resolve()):
                raise InvalidInputError(
                    f"{option}: {str(path)!r} is a part of {str(given)!r}, which is read; name another file"
                )
        found[option] = target
    return found


def _is_part(target: Path, given: Path) -> bool:
    """Tell whether writing a file would change an input: a table, a classifier's folder, an image."""
    if target == given:
        return True
    if not target.is_relative_to(given):
        return False
    from clipretrieval.images.formats import image_extensions

    return (given / "classifier.json").exists() or target.name.lower().endswith(image_extensions())


def _checked_output(path: Path, option: str) -> Path:
    from clipretrieval._util.files import replacing

    class Tried(Exception):  # noqa: N818  not an error
        pass

    try:
        target = path.resolve()
        if target.exists() and not target.is_file():
            raise InvalidInputError(
                f"{option}: {str(path)!r} is not a file; name a new one, or one to replace"
            )
        with suppress(Tried), replacing(target):
            raise Tried
    except (OSError, RuntimeError) as error:  # RuntimeError: links that run in a circle
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidInputError(f"{option}: {str(path)!r} cannot be written: {reason}") from error
    return target


def labelled_images(path: Path, tables: TableOptions, limit: int | None, option: str) -> ImageFolder:
    """List the images of a folder with class folders, or of a table, and keep so many of them.

    Raises
    ------
    InvalidInputError
        If there are none, they have no labels, or `limit`, which `option` gave, is less than 1.
    """
    from clipretrieval.images.csv_files import is_csv_path
    from clipretrieval.images.folders import scan_folder

    if limit is not None and limit < 1:
        raise InvalidInputError(f"{option} must be at least 1; got {limit}")
    if is_csv_path(path):
        return _limited(_images_of_table(path, tables), limit)
    if tables.given:
        raise InvalidInputError(f"{tables.given} is for a CSV file, and {str(path)!r} is none")
    if path.is_file():
        raise InvalidInputError(
            f"{str(path)!r} is a file; pass a folder with a sub-folder of images for each class, or a table "
            "of paths and labels in a file that ends in .csv or .tsv"
        )
    folder = scan_folder(path)
    if folder.labels is None:
        raise InvalidInputError(
            f"no sub-folder of {str(path)!r} holds images; put each class's into one that is named after it"
        )
    return _limited(folder, limit)


def image_source(given: str, tables: TableOptions) -> Any:
    """Open labeled images by path or URL: as `labelled_images` does, or tars, a saved dataset, or a URL.

    Raises
    ------
    InvalidInputError
        If there are none, or they have no labels; those of tars show when they are read.
    """
    from clipretrieval.images.listing import listed
    from clipretrieval.images.tables import is_saved_dataset, labelled_source, read_table
    from clipretrieval.images.tars import is_tars, read_tars
    from clipretrieval.images.urls import is_url, url_name

    if not given:
        raise InvalidInputError("IMAGES must not be empty; pass a path")
    if is_tars(given):
        option = next((each for each in ("images_root", "image_column") if getattr(tables, each)), None)
        if option is not None:
            raise InvalidInputError(f"{option_of(option)} is for a table, and {url_name(given)!r} is a tar")
        return read_tars(given, label=tables.label_column)
    if is_saved_dataset(given):
        columns = {"image": tables.image_column, "label": tables.label_column}
        return labelled_source(read_table(given, root=tables.images_root, **columns))
    if not is_url(given):
        return labelled_images(Path(given), tables, None, "")
    if tables.given:
        raise InvalidInputError(f"{tables.given} is for a CSV file or a tar, and IMAGES are a URL")
    return labelled_source(listed(given))


def _images_of_table(path: Path, tables: TableOptions) -> ImageFolder:
    from clipretrieval.images.folders import ImageFolder
    from clipretrieval.images.tables import read_table

    table = read_table(path, image=tables.image_column, label=tables.label_column, root=tables.images_root)
    if table.labels is None:
        raise InvalidInputError(table.unlabelled)
    # As folders have them: a class is known by its name here.
    labels = tuple(map(str, table.labels))
    return ImageFolder(path, tuple(map(Path, table.images)), labels, tuple(sorted(set(labels))))


def _limited(folder: ImageFolder, limit: int | None) -> ImageFolder:
    """Keep so many images, going round the classes."""
    from clipretrieval.images.folders import ImageFolder

    if limit is None:
        return folder
    given = folder.labels or ()
    turns = dict.fromkeys(folder.classes, 0)
    ranked = []
    for place, label in enumerate(given):
        ranked.append((turns[label], place))
        turns[label] += 1
    taken = sorted(place for _, place in sorted(ranked)[:limit])
    labels = tuple(given[place] for place in taken)
    return ImageFolder(
        folder.root, tuple(folder.paths[place] for place in taken), labels, tuple(sorted(set(labels)))
    )


def training_images(path: Path, tables: TableOptions, limit: int | None, option: str) -> ImageFolder:
    """List images to fit on, and keep so many of them, at least one of each class."""
    folder = labelled_images(path, tables, None, option)
    if limit is not None and limit < len(folder.classes):
        raise InvalidInputError(
            f"{option} must be at least {len(folder.classes)}, one for each class of {str(path)!r}; "
            f"got {limit}"
        )
    return _limited(folder, limit)


def comma_separated(text: str) -> list[str]:
    """Return the parts of a text with commas between them."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str, option: str, kind: type[int] | type[float]) -> list[Any]:
    """Return numbers with commas between them.

    Raises
    ------
    InvalidInputError
        If one of them is none, or there are none.
    """
    from clipretrieval._util.checks import shown

    wanted = "whole numbers" if kind is int else "numbers"
    try:
        found = [kind(part) for part in comma_separated(text)]
    except ValueError:
        found = []
    if not found:
        raise InvalidInputError(f"{option} takes {wanted} with commas between them; got {shown(text)}")
    return found


def check_head(head: str, priors: str) -> None:
    """Refuse a head that there is not, listing those that there are, and priors that are no name.

    Raises
    ------
    InvalidInputError
    """
    from clipretrieval.heads.choice import choose_head
    from clipretrieval.heads.priors import Priors

    choose_head(head, 1)
    Priors.parse(priors)


def check_texts_count(made: RetrievalClassifier | ReadOnlyClassifier, texts: Mapping[str, Any]) -> None:
    """Refuse names and prompts that nothing reads."""
    if made.text_weight is None and ("class_names" in texts or "templates" in texts):
        raise InvalidInputError("--class-names and --template are for --text-weight, which is not given")


def make_classifier(
    encoder: EncoderOptions,
    space: SpaceOptions,
    head: HeadOptions,
    texts: TextOptions,
    store: StoreOptions,
    path: Path | None = None,
) -> RetrievalClassifier:
    """Make the classifier that the options describe.

    The vectors lie at `path` if the options name no place, and the store takes one.
    """
    from clipretrieval.classifier import RetrievalClassifier

    check_head(head.head, head.priors)

    options = store.options()
    if path is not None:
        options = options_within(path, store.store, options)
    spoken = texts.arguments()
    made = RetrievalClassifier(
        encoder.exported() or encoder.encoder(),
        store.store,
        **_near(space),
        **asdict(head),
        **spoken,
        store_options=options,
    )
    check_texts_count(made, spoken)
    return made


def make_cascade(
    encoder: EncoderOptions,
    space: SpaceOptions,
    head: HeadOptions,
    cascade: CascadeOptions,
    store: StoreOptions,
    path: Path,
) -> CascadeClassifier:
    """Make the cascade that the options describe; its vectors lie as those of `make_classifier`."""
    from clipretrieval.cascade.cascade_classifier import CascadeClassifier

    check_head(head.head, head.priors)
    return CascadeClassifier(
        encoder.encoder(),
        cascade.stages,
        store=store.store,
        **_near(space),
        **asdict(head),
        certainty=cascade.certainty,
        keep_vectors=cascade.keep_vectors,
        store_options=options_within(path, store.store, store.options()),
    )


def _near(space: SpaceOptions) -> dict[str, Any]:
    return {**asdict(space), "transform": None if space.transform == "none" else space.transform}
