"""The encoder that users hold: images in, vectors of the wanted stages out."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.checks import (
    check_bool,
    check_int,
    check_list,
    check_mapping,
    check_path,
    check_strings,
    shown,
)
from clipretrieval._util.dependencies import require, require_torch
from clipretrieval._util.progress import Progress
from clipretrieval._util.repr import safe_repr
from clipretrieval.encoding.base import EncodedBatch, KnownIds
from clipretrieval.encoding.collecting import collect_vectors
from clipretrieval.encoding.engine.inference_plan import InferencePlan
from clipretrieval.encoding.image_transformer import ImageTransformer
from clipretrieval.encoding.pipeline import checked_options, encode_source, prepare_chunk
from clipretrieval.encoding.preparation import Preparation
from clipretrieval.encoding.stage_output import POOLED, StageOutput, find_output, find_pooled
from clipretrieval.encoding.stages import LARGEST_SIDE, Stage
from clipretrieval.encoding.tower import Tower
from clipretrieval.encoding.towers.designs import design_of
from clipretrieval.encoding.weights.model_source import HF_HUB, LOCAL_DIR, resolve
from clipretrieval.encoding.weights.text_tower import check_text_tower
from clipretrieval.encoding.workers import usable_cores
from clipretrieval.errors import InvalidInputError
from clipretrieval.images.decoding import MAX_PIXELS, RawImage, check_max_pixels
from clipretrieval.images.sources import iter_raw
from clipretrieval.images.stream import SkippedImage, check_on_error
from clipretrieval.types import FloatArray

if TYPE_CHECKING:
    import torch

    from clipretrieval.encoding.early_exits import StayOn
    from clipretrieval.encoding.partial_pass import PartialPass
    from clipretrieval.encoding.text_encoder import TextEncoder
    from clipretrieval.encoding.towers.design import Design

__all__ = ["StagedEncoder", "check_texts", "stages_to_try", "stopped_at"]

_CALIBRATED_ON = 512
"""Images, at most, whose activations decide on the scales of 8 bits."""
_PIXEL_CHUNK = 16
"""Images whose raw pixels are taken together."""
_MOST_PIXEL_WORKERS = 16


class StagedEncoder(ImageTransformer):
    """An image encoder of CLIP's or timm's, stopped at a stage.

    Weights are read at the first use that needs them. The ``pixel`` stage needs none, nor torch. It is a
    scikit-learn transformer as well (`fit`, `transform`, `set_params`, `set_output`), for pipelines.

    Parameters
    ----------
    model : str or nn.Module
        A model that open_clip knows (``"RN50"``, ``"ViT-B-32"``, ``"ViT-B-16-SigLIP"``, …), ``"timm:NAME"``
        for one of timm's (``"timm:resnet50.a1_in1k"``), ``"local-dir:PATH"`` for a folder in open_clip's
        form, ``"hf-hub:ORG/NAME"``, or a model that was built with either library, which is left as it is:
        its weights are copied at the first use.
    pretrained : str, path or None
        An open_clip tag (``"openai"``), a checkpoint's path (safetensors, a state dict, or OpenAI's
        TorchScript archive), or None for random weights. Ignored by folders and the hub. Of a model of
        timm's, "openai" stands for the tag in its name, or timm's default.
    stage : str, or tuple or list of str
        ``"pixel"``, ``"mid"``, ``"late"``, ``"final"``, or a block, see `stages`: ``"layer3.2"``,
        ``"block.7"``. The vectors of several are joined, see Notes:
        ``("layer2", "mid")``, or ``"layer2+mid"`` in one word, as `stage` then says it.
    pooling : {"mean", "max", "gem", "tokens", "grid", "cls"}, or tuple or list of these
        What makes one vector of a grid or of tokens: their mean (the study's), the largest of each channel,
        the generalized mean, the mean of the tokens without their mean token, the means of a 2×2 grid, or a
        transformer's class token, which all others leave out.
        The vectors under several are joined: ``("mean", "max")``, or ``"mean+max"``.
    image_size : int, optional
        Side in pixels when not the model's own: a multiple of 32, or of a transformer's patch. Positional
        embeddings are interpolated to it.
    precision : {"auto", "fp32", "bf16", "fp16"}
        ``"auto"`` takes bf16 on a CPU with instructions for it, fp16 on CUDA, fp32 elsewhere.
    device : str
        ``"auto"`` takes CUDA, then MPS, then the CPU.
    batch_size : int
        Images per batch, at least 1. On a CPU the encoder works in smaller ones: see `plan`.
    compile : bool
        Have torch.compile build the encoder at its first use, which takes tens of seconds.
    seed : int
        Seed of the weights when `pretrained` is None.
    max_pixels : int or None, default 75,000,000
        The most pixels (width × height) that an image may have: one of more is refused as one that cannot be
        decoded is, before it is decoded. None for no bound. See `clipretrieval.images.decode`.

    Raises
    ------
    InvalidInputError
        If an argument is not one of the above, or of several stages or poolings two are the same; the
        message lists what is known.

    Attributes
    ----------
    plan : InferencePlan
        How the encoder runs on this machine.

    Notes
    -----
    Joined vectors come from one pass. Their parts are every stage under every pooling, stages first:
    ``stage="layer2+mid", pooling="mean+max"`` has the parts layer2 mean, layer2 max, mid mean, mid max. A
    stage that has nothing to pool (``pixel``, ``final``) is one part, and so are ``"mean"`` and ``"tokens"``
    at a stage before the tokens. Of every image, each part is scaled to the Euclidean length
    1/√(number of parts): their own lengths differ many times over, and the longest part would decide alone
    which vectors are near. Vectors of a single part are not scaled.
    """

    def __init__(
        self,
        model: str | torch.nn.Module = "RN50",
        pretrained: str | Path | None = "openai",
        stage: str | Sequence[str] = "late",
        *,
        pooling: str | Sequence[str] = "mean",
        image_size: int | None = None,
        precision: str = "auto",
        device: str = "auto",
        batch_size: int = 64,
        compile: bool = False,  # noqa: A002  torch's own word
        seed: int = 0,
        max_pixels: int | None = MAX_PIXELS,
        _trusted: bool = True,
    ) -> None:
        self.batch_size = check_int(batch_size, "batch_size")
        self.seed = check_int(seed, "seed", least=0)
        self.max_pixels = check_max_pixels(max_pixels)
        compile = check_bool(compile, "compile")  # noqa: A001
        if pretrained is not None and not isinstance(pretrained, str | Path):
            raise InvalidInputError(
                "pretrained must be a tag such as 'openai', a checkpoint's path, or None; got "
                f"{shown(pretrained)}"
            )
        self._source = resolve(model, str(pretrained) if pretrained is not None else None, trusted=_trusted)
        self.model, self._trusted = model, _trusted
        named = isinstance(model, str) and not model.startswith((LOCAL_DIR, HF_HUB))
        self.pretrained = str(pretrained) if pretrained is not None and named else None
        self.pretrained = (self._source.tag or {}).get("timm_tag", self.pretrained)
        self.precision = precision
        self._given = {"pretrained": pretrained, "image_size": image_size, "device": device}
        design = self._design = design_of(self._source)
        self._stages = design.stages
        self._output = find_output(self._stages, stage, pooling)
        self.image_size = _checked_side(image_size, design.image_size, design.size_multiple)
        design.check_size(self.image_size)
        self.compile = compile
        self._prepare = Preparation({**self._source.preprocess_cfg, "size": self.image_size})
        planned = (device, precision, self.batch_size, compile)
        self._tower = Tower(
            self._source,
            design,
            self.seed,
            partial(_make_plan, *planned, design, self.image_size),
            str(device),
            self._prepare,
            self.image_size,
        )
        usual = isinstance(device, str) and isinstance(precision, str)
        if (
            self._output.depth
            or not usual
            or device not in ("auto", "cpu")
            or precision not in ("auto", "fp32")
        ):
            _ = self.plan  # what cannot be is refused now

    @property
    def device(self) -> torch.device:
        """Where the encoder runs."""
        plan = self.plan
        import torch

        return torch.device(plan.device)

    @property
    def plan(self) -> InferencePlan:
        """How the encoder runs on this machine; uncompiled once a compilation has failed."""
        return self._tower.plan

    @property
    def stage(self) -> str:
        """The stage whose vectors `encode` returns; joined ones have ``+`` between their names."""
        return self._output.name

    @property
    def pooling(self) -> str:
        """What makes vectors of grids; several have ``+`` between their names."""
        return self._output.pooling

    @property
    def stages(self) -> Mapping[str, Stage]:
        """Every stage of this model by name, shallowest first."""
        return self._stages

    @property
    def dim(self) -> int:
        """The dimension of the vectors that `encode` returns."""
        return self._output.dim

    @property
    def text(self) -> TextEncoder:
        """The text tower that was trained with these weights, read at its own first use."""
        return self._tower.text

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How images are prepared, in open_clip's words (``size``, ``mean``, ``std``, …)."""
        return dict(self._prepare.cfg)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides the vectors; see `fingerprint_of`."""
        return self.fingerprint_of(self.stage)

    def fingerprint_of(self, stage: str) -> dict[str, Any]:
        """Return what decides the vectors of `stage`, as JSON values.

        Model and weights are known by what they are, not by their name or place: the architecture's
        numbers, and a hash of the tensors that run. So the ``pixel`` stage, which runs none, has the same
        fingerprint under every model. Precision and device are left out.
        """
        return self._tower.describe(self._find(stage))

    def multiply_adds(self, stage: str | None = None) -> float:
        """Return the arithmetic that takes one image to a stage, in 10⁹ multiply-adds.

        Convolutions, products of matrices and attention are counted; see
        `clipretrieval.encoding.Architecture.multiply_adds`. Joined stages take what the deepest takes.

        Parameters
        ----------
        stage : str, optional
            This encoder's own when left out.
        """
        found = self._output if stage is None else self._find(stage)
        return self._design.multiply_adds(found.depth, self.image_size)

    def encode(
        self, images: Any, *, on_error: str = "raise", progress: Progress | bool | None = None
    ) -> FloatArray:
        """Encode images at this encoder's stage.

        Parameters
        ----------
        images : image-like, sequence, iterator, dataset or folder
            Whatever `clipretrieval.images.iter_images` takes.
        on_error : {"raise", "skip"}
            What to do about an image that cannot be decoded. Under ``"skip"`` its row is NaN, so that each
            row keeps the place of its image, and a warning says how many are.
        progress : callable or True, optional
            Called with (images done, total or None). True shows a bar, or lines where there is
            no terminal.

        Returns
        -------
        ndarray of float32, shape (n, dim)

        Raises
        ------
        ImageDecodeError
            If an image cannot be decoded; the message names it.
        InvalidInputError
            If `images` is not image-like, or empty.
        """
        return self.encode_stages(images, (self.stage,), on_error=on_error, progress=progress)[self.stage]

    def encode_stages(
        self,
        images: Any,
        stages: Iterable[str],
        *,
        on_error: str = "raise",
        progress: Progress | bool | None = None,
    ) -> dict[str, FloatArray]:
        """Encode images at several stages in one pass.

        Parameters
        ----------
        images, on_error, progress
            As for `encode`.
        stages : sequence of str
            At least one. Several joined ones, such as ``"layer2+mid"``, count as one; ``"layer2:grid"`` is
            under another pooling than the encoder's own.

        Returns
        -------
        dict of str to ndarray of float32, shape (n, dim of the stage)
        """
        wanted = {name: self._find(name) for name in self._names(stages)}
        encode = partial(self._encode, outputs=list(wanted.values()), identify=False)
        return collect_vectors(images, tuple(wanted), encode, on_error=on_error, progress=progress)

    def stream(
        self,
        images: Any,
        labels: Any = None,
        *,
        stages: tuple[str, ...] | None = None,
        on_error: str = "raise",
        skipped: list[SkippedImage] | None = None,
        known: KnownIds | None = None,
        ahead: int | None = None,
    ) -> Iterator[EncodedBatch]:
        """Yield encoded batches in the order of the source, decoding ahead and holding only a few images.

        Parameters
        ----------
        images, labels
            Whatever `clipretrieval.images.iter_images` takes.
        stages : tuple of str, optional
            This encoder's own stage alone when left out.
        on_error : {"raise", "skip"}
            What to do about an image that cannot be decoded.
        skipped : list, optional
            Receives a record of each image that was skipped.
        known : callable, optional
            Tells which images, by content id, need no encoding: they come as ``batch.known``.
        ahead : int, optional
            The most images that are encoded before they are asked for; a few batches when left out.
        """
        names = (self.stage,) if stages is None else self._names(stages)
        wanted = [self._find(name) for name in names]
        options = {"on_error": on_error, "skipped": skipped, "known": known, "ahead": ahead}
        return self._encode(iter_raw(images, labels), wanted, **checked_options(**options))

    def stream_exits(
        self,
        images: Any,
        labels: Any = None,
        *,
        stages: Sequence[str],
        stay_on: StayOn,
        on_error: str = "raise",
        skipped: list[SkippedImage] | None = None,
        identify: bool = True,
    ) -> Iterator[EncodedBatch]:
        """Encode images from stage to stage, and stop each one where `stay_on` says so.

        Nothing is computed twice. Images that go on are packed together again, so that batches stay full.

        Parameters
        ----------
        images, labels
            Whatever `clipretrieval.images.iter_images` takes.
        stages : sequence of str
            The exits, each deeper than the one before; named as for `encode_stages`.
        stay_on : callable
            Called in the caller's thread with the number of an exit and an `EncodedBatch` of images that are
            there, with their vectors; returns a mask of bool, shape (n,), of those that go on. It is asked at
            the last exit too, where all leave.
        on_error : {"raise", "skip"}
            What to do about an image that cannot be decoded.
        skipped : list, optional
            Receives a record of each image that was skipped.
        identify : bool
            Whether content ids are wanted.

        Yields
        ------
        EncodedBatch
            Of images that have left, without vectors, in the order of the source.

        Raises
        ------
        InvalidInputError
            If `stages` are unknown, or not each deeper than the one before, or `stay_on` returns no mask.
        """
        outputs = [self._find(name) for name in self._names(stages)]
        for before, after in itertools.pairwise(outputs):
            if after.depth <= before.depth:
                raise InvalidInputError(
                    f"the exit {after.name!r} is not deeper than {before.name!r}, which comes before it; "
                    "order exits from shallow to deep"
                )
        check_on_error(on_error)
        check_list(skipped, "skipped")
        if not callable(stay_on):
            raise InvalidInputError(
                f"stay_on must be a function of an exit and a batch; got {shown(stay_on)}"
            )
        if outputs[-1].depth == 0:
            raise InvalidInputError("the last exit must run the encoder, and 'pixel' does not; add a stage")
        engine = self._tower.engine(outputs[-1].depth)
        from clipretrieval.encoding.early_exits import EarlyExits

        exits = EarlyExits(
            outputs,
            engine,
            self._prepare,
            stay_on,
            batch_size=self.batch_size,
            on_error=on_error,
            skipped=[] if skipped is None else skipped,
            identify=check_bool(identify, "identify"),
            max_pixels=self.max_pixels,
            joint=self._tower.joint,
        )
        return exits.run(iter_raw(images, labels))

    def begin(self, images: Any, stage: str | None = None) -> PartialPass:
        """Encode images up to a stage and keep what is needed to go on from there.

        Parameters
        ----------
        images : as for `encode`
            A batch of them: their activations are held in memory, about 0.4 MB per image at RN50's
            ``mid`` in bf16.
        stage : str, optional
            This encoder's own when left out.

        Returns
        -------
        PartialPass
            Its ``vectors`` are those of the stage; its ``advance`` takes some of the images deeper.
        """
        found = self._output if stage is None else self._find(stage)
        every = list(self._stages.values())
        chunk = prepare_chunk(
            list(iter_raw(images)), every, self._prepare, "raise", max_pixels=self.max_pixels
        )
        if not chunk.batch.ids:
            raise InvalidInputError("there are no images to encode; pass at least one")
        engine = self._tower.engine(every[-1].depth)
        from clipretrieval.encoding.partial_pass import PartialPass

        return PartialPass.start(chunk, found, self._stages, self.pooling, engine)

    def export(self, path: str | Path, *, int8: Any = None) -> Path:
        """Write this encoder as an ONNX file, which `OnnxEncoder` runs where torch is not installed.

        The file holds the weights up to this stage in float32, how images are prepared, and this encoder's
        fingerprint, so that the two take each other's place over an index. Exporting needs
        ``pip install "clipretrieval[onnx]"``.

        In 8 bits it is faster where the CPU has instructions for such numbers, and the vectors change by
        about 2 % of their length. So they have a fingerprint of their own, and an index has to be made with
        that file.

        Parameters
        ----------
        path : str or Path
            A file that is there is replaced, once the new one is complete.
        int8 : image-like, sequence, iterator, dataset or folder, optional
            Compute in 8 bits, calibrated on up to 512 of these images, always the same ones of as many: take
            those that will be stored. None computes in float32.

        Returns
        -------
        Path
            Of the file.

        Raises
        ------
        InvalidInputError
            If this is the ``pixel`` stage, which needs no file, or the tower is none of CLIP's ResNets, or
            the file cannot be written.
        MissingDependencyError
            If ONNX's packages are not installed.
        """
        target = check_path(path, "path")
        if self._output.depth == 0:
            raise InvalidInputError(
                "the stage 'pixel' runs no network, so there is nothing to export: "
                "StagedEncoder(stage='pixel') needs no torch"
            )
        if not self._source.is_resnet:
            raise InvalidInputError(
                f"only CLIP's ResNets are exported, and {self._named_model()} is none; keep the encoder "
                "itself, or export the model with its own library and run that within an encoder of your own "
                "(docs/own-encoder.md)"
            )
        for name in ("onnx", "onnxscript", *(() if int8 is None else ("onnxruntime",))):
            require(name, "exporting", 'run: pip install "clipretrieval[onnx]"')
        tensors = self._tower.weights()
        calibration = None if int8 is None else self._some_squares(int8)
        from clipretrieval.encoding.onnx.export import write_onnx
        from clipretrieval.encoding.onnx.onnx_file import OnnxFile

        cfg = {**self._prepare.cfg, "size": self.image_size}
        file = OnnxFile(
            self._source.architecture, self.stage, self.pooling, self.image_size, cfg, self.fingerprint
        )
        write_onnx(target, file, tensors, calibration)
        return target

    def _some_squares(self, images: Any) -> npt.NDArray[np.uint8]:
        """Prepare some images to calibrate on, shape (n, size, size, 3)."""
        drawn, draw = list[RawImage](), random.Random(0)  # noqa: S311  no secret
        for place, raw in enumerate(iter_raw(images)):  # Vitter's algorithm R: a source may have no length
            if place < _CALIBRATED_ON:
                drawn.append(raw)
            elif (chosen := draw.randrange(place + 1)) < _CALIBRATED_ON:
                drawn[chosen] = raw
        if not drawn:
            raise InvalidInputError("there are no images to calibrate on (int8=); pass some hundreds")
        clip = [self._stages["stem"]]
        chunk = prepare_chunk(drawn, clip, self._prepare, "raise", False, None, self.max_pixels)
        return chunk.squares["clip"]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> StagedEncoder:
        """Build an encoder from what `config` returned, which may have come from a file.

        A TorchScript archive that it names is opened only if it is one of OpenAI's own.
        """
        given = check_mapping(config, "config", optional=False)
        taken = set(signature(cls).parameters)
        if not set(given) <= taken:
            raise InvalidInputError(
                f"config has {shown(min(set(given) - taken))}, which is no argument of StagedEncoder; pass "
                "what its config() returned"
            )
        return cls(**{**given, "_trusted": False})

    def config(self) -> dict[str, Any]:
        """Return the arguments that build this encoder again: JSON values, paths in full.

        A model that was passed as a module is returned as that.
        """
        return {
            **self._source.arguments(self.model, self.pretrained),
            "stage": self.stage,
            "pooling": self.pooling,
            "image_size": self.image_size,
            "precision": self.precision,
            "compile": self.compile,
            "batch_size": self.batch_size,
            "seed": self.seed,
            **({} if self.max_pixels == MAX_PIXELS else {"max_pixels": self.max_pixels}),
        }

    def _find(self, stage: str) -> StageOutput:
        found = find_pooled(self._stages, stage, self.pooling)
        return replace(found, name=stage) if POOLED in stage else found

    def _names(self, stages: Any) -> list[str]:
        # A mapping such as `StagedEncoder.stages` stands for its keys.
        names = check_strings(list(stages) if isinstance(stages, Mapping) else stages, "stages")
        if not names:
            raise InvalidInputError("stages is empty; pass at least one, such as ['mid']")
        return names

    def _encode(
        self, raws: Iterator[RawImage], outputs: list[StageOutput], **options: Any
    ) -> Iterator[EncodedBatch]:
        depth = max((output.depth for output in outputs), default=0)
        return encode_source(
            raws,
            outputs,
            self._prepare,
            self._tower.engine(depth) if depth > 0 else None,
            self.plan if depth > 0 else _pixel_plan(),
            joint=self._tower.joint if depth > 0 else None,
            batch_size=self.batch_size,
            max_pixels=self.max_pixels,
            **options,
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and "_tower" in vars(self):
            raise AttributeError(f"a StagedEncoder never changes; make a new one with another {name}")
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """Keep the arguments; whoever unpickles reads the weights again."""
        device = str(self._given["device"])  # "auto" is another one elsewhere
        kept = {"_trusted": self._trusted, "_container": self._container}
        return {**self.config(), "device": device, **kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        arguments = dict(state)
        container = arguments.pop("_container", None)
        type(self).__init__(self, **arguments)
        self._container = container

    def _with(self, params: Mapping[str, Any]) -> StagedEncoder:
        if not set(params) <= {"stage", "pooling"}:
            trusted = self._trusted or "pretrained" in params  # which the caller names now
            return type(self)(**{**self.get_params(), **params}, _trusted=trusted)
        view = self.__sklearn_clone__()  # of the same tower, which may be loaded
        stage, pooling = params.get("stage", self.stage), params.get("pooling", self.pooling)
        view._output = find_output(self._stages, stage, pooling)
        return view

    def _named_model(self) -> str:
        return self.model if isinstance(self.model, str) else type(self.model).__name__

    @safe_repr
    def __repr__(self) -> str:
        model = self._named_model()
        return (
            f"StagedEncoder({model!r}, pretrained={self.pretrained!r}, stage={self.stage!r}, "
            f"dim={self.dim}, device={self._tower.device_name!r})"
        )


def _make_plan(
    device: Any, precision: Any, batch_size: int, compiled: bool, design: Design, image_size: int
) -> InferencePlan:
    require_torch("a StagedEncoder beyond the stage 'pixel'")
    from clipretrieval.encoding.engine.planning import make_plan, pick_device

    fitting, convolves = design.inner_batch(image_size), design.convolves_as_resnet
    return make_plan(
        pick_device(device), precision, batch_size, compiled, fitting=fitting, convolves=convolves
    )


def _pixel_plan() -> InferencePlan:
    """Return how images are decoded where no encoder runs."""
    streams = min(usable_cores(), _MOST_PIXEL_WORKERS)
    return InferencePlan("cpu", "fp32", _PIXEL_CHUNK, streams, 1, "torch", compiled=False)


def stopped_at(encoder: StagedEncoder, stage: str, pooling: str | None = None) -> StagedEncoder:
    """Return the same encoder at another stage, and with another pooling; weights and engine are shared.

    Raises
    ------
    InvalidInputError
        If the model has no such stage, or there is no such pooling.
    """
    found = find_pooled(encoder.stages, stage, encoder.pooling if pooling is None else pooling)
    view = object.__new__(type(encoder))
    vars(view).update({**vars(encoder), "_output": found})
    return view


def stages_to_try(encoder: StagedEncoder) -> tuple[str, ...]:
    """Return an encoder's stages from shallow to deep to try when none are named."""
    return encoder._design.exits


def check_texts(encoder: StagedEncoder) -> None:
    """Refuse an encoder that texts cannot be encoded for, at whatever stage; see `check_text_tower`."""
    check_text_tower(encoder._source)


def _checked_side(image_size: int | None, own: int, step: int) -> int:
    """Return the images' side in pixels, the model's own where none is asked for."""
    if image_size is None:
        return own
    side = check_int(image_size, "image_size", least=step, most=LARGEST_SIDE)
    if side % step and side != own:
        raise InvalidInputError(
            f"image_size must be a multiple of {step}, at least {step}; got {side} (the model's own is {own})"
        )
    return side
