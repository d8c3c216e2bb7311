"""The encoder that users hold: pictures in, vectors of the wanted stages out."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from clipretrieval.encoding.base import EncodedBatch
from clipretrieval.encoding.engine import Engine
from clipretrieval.encoding.fingerprint import hash_tensors
from clipretrieval.encoding.preprocess import PIXEL_GEOMETRY, Preparation
from clipretrieval.encoding.stages import Stage, find_stage, stage_table
from clipretrieval.encoding.weights import HF_HUB, LOCAL_DIR, ModelSource, load_visual, resolve
from clipretrieval.errors import InvalidInputError
from clipretrieval.images import DecodedImage, SkippedImage, iter_images
from clipretrieval.types import FloatArray

__all__ = ["StagedEncoder"]

PRECISIONS = ("auto", "fp32")
POOLINGS = ("mean",)


class StagedEncoder:
    """CLIP's ResNet image encoder, stopped at a stage.

    Weights are read at the first use that needs them; the ``pixel`` stage never does.

    Parameters
    ----------
    model : str
        A ModifiedResNet that open_clip knows (``"RN50"``, ``"RN101"``, ``"RN50x4"``, …),
        ``"local-dir:PATH"`` for a folder in open_clip's form, or ``"hf-hub:ORG/NAME"``.
    pretrained : str, path or None
        An open_clip tag (``"openai"``), a checkpoint's path (safetensors, a state dict, or OpenAI's
        TorchScript archive), or None for random weights. Ignored by the two schemes above.
    stage : str
        ``"pixel"``, ``"mid"``, ``"late"``, ``"final"``, or a block: ``"stem"``, ``"layer1"`` …
        ``"layer4"``, ``"layer3.2"``.
    pooling : {"mean"}
        What makes one vector of a grid or of tokens.
    image_size : int, optional
        Side in pixels, a multiple of 32, when not the model's own. The positional embedding is
        interpolated to it.
    precision : {"auto", "fp32"}
    device : str
        ``"auto"`` takes CUDA, then MPS, then the CPU.
    batch_size : int
        Pictures a batch, at least 1.
    seed : int
        Seed of the weights when `pretrained` is None.

    Raises
    ------
    InvalidInputError
        If an argument is not one of the above; the message lists what is.
    """

    def __init__(
        self,
        model: str = "RN50",
        pretrained: str | Path | None = "openai",
        stage: str = "late",
        *,
        pooling: str = "mean",
        image_size: int | None = None,
        precision: str = "auto",
        device: str = "auto",
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        _check_choice("pooling", pooling, POOLINGS)
        _check_choice("precision", precision, PRECISIONS)
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise InvalidInputError(f"batch_size must be a whole number of at least 1; got {batch_size!r}")
        self.model = model
        named = not model.startswith((LOCAL_DIR, HF_HUB))
        self.pretrained = str(pretrained) if pretrained is not None and named else None
        self.pooling = pooling
        self.precision = precision
        self.batch_size = batch_size
        self.seed = seed
        self.device = _pick_device(device)
        self._source: ModelSource = resolve(model, self.pretrained)
        self._stages = stage_table(self._source.architecture)
        self._stage = find_stage(self._stages, stage)
        self.image_size = _check_size(image_size, int(_side(self._source.preprocess_cfg["size"])))
        self._prepare = Preparation({**self._source.preprocess_cfg, "size": self.image_size})
        self._engines: dict[int, Engine] = {}
        self._lock = threading.Lock()

    @property
    def stage(self) -> str:
        """The stage whose vectors `encode` returns."""
        return self._stage.name

    @property
    def stages(self) -> Mapping[str, Stage]:
        """Every stage of this model by name, shallowest first."""
        return self._stages

    @property
    def dim(self) -> int:
        """The dimension of the vectors that `encode` returns."""
        return self._stage.dim

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
        found = find_stage(self._stages, stage)
        identity: dict[str, Any] = {"encoder": "StagedEncoder", "stage": found.name, "dim": found.dim}
        if found.depth == 0:
            return {**identity, "preprocessing": dict(PIXEL_GEOMETRY)}
        return {
            **identity,
            "model": self._source.architecture.describe(),
            "weights": self._weights_hash(found),
            "pooling": self.pooling if found.reduction != "none" else None,
            "image_size": self.image_size,
            "preprocessing": self._prepare.describe(),
        }

    def encode(self, images: Any) -> FloatArray:
        """Encode pictures at this encoder's stage.

        Parameters
        ----------
        images : image-like, sequence, iterator, dataset or folder
            Whatever `clipretrieval.images.iter_images` takes.

        Returns
        -------
        ndarray of float32, shape (n, dim)

        Raises
        ------
        ImageDecodeError
            If a picture cannot be decoded; the message names it.
        InvalidInputError
            If `images` is not image-like, or empty.
        """
        return self.encode_stages(images, (self.stage,))[self.stage]

    def encode_stages(self, images: Any, stages: Iterable[str]) -> dict[str, FloatArray]:
        """Encode pictures at several stages in one pass.

        Parameters
        ----------
        images : as for `encode`
        stages : iterable of str

        Returns
        -------
        dict of str to ndarray of float32, shape (n, dim of the stage)
        """
        names = tuple(stages)
        parts = [batch.vectors for batch in self.stream(images, stages=names)]
        if not parts:
            raise InvalidInputError("there are no images to encode; pass at least one")
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def stream(
        self,
        images: Any,
        labels: Any = None,
        *,
        stages: tuple[str, ...] | None = None,
        on_error: str = "raise",
        skipped: list[SkippedImage] | None = None,
    ) -> Iterator[EncodedBatch]:
        """Yield encoded batches in the order of the source, holding one at a time.

        Parameters
        ----------
        images, labels
            Whatever `clipretrieval.images.iter_images` takes.
        stages : tuple of str, optional
            This encoder's own stage alone when left out.
        on_error : {"raise", "skip"}
            What to do about a picture that cannot be decoded.
        skipped : list, optional
            Receives a record of each picture that was passed over.
        """
        wanted = [find_stage(self._stages, name) for name in stages or (self.stage,)]
        source = iter_images(images, labels, on_error=on_error, skipped=skipped)
        return self._batches(source, wanted)

    def config(self) -> dict[str, Any]:
        """Return the arguments that build this encoder again, as JSON values; paths in full."""
        model, pretrained = self.model, self.pretrained
        if self._source.path is not None:
            local = self._source.path.absolute()
            model = f"{LOCAL_DIR}{local.parent}" if model.startswith(LOCAL_DIR) else model
            pretrained = str(local) if pretrained is not None else None
        return {
            "model": model,
            "pretrained": pretrained,
            "stage": self.stage,
            "pooling": self.pooling,
            "image_size": self.image_size,
            "precision": self.precision,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    def _batches(self, source: Iterator[DecodedImage], stages: Sequence[Stage]) -> Iterator[EncodedBatch]:
        pixel, clip = any(s.depth == 0 for s in stages), any(s.depth > 0 for s in stages)
        while True:
            started = time.perf_counter()
            images = list(islice(source, self.batch_size))
            if not images:
                return
            squares = [self._prepare(item.image, pixel=pixel, clip=clip) for item in images]
            decoded = time.perf_counter()
            vectors: dict[str, FloatArray] = {}
            if pixel:
                stack = np.stack([square["pixel"] for square in squares])
                vectors["pixel"] = _flatten_pixels(stack)
            if clip:
                tensor = torch.from_numpy(np.stack([square["clip"] for square in squares]))
                deep = [stage for stage in stages if stage.depth > 0]
                vectors |= self._engine(max(stage.depth for stage in deep)).run(tensor, deep)
            yield EncodedBatch(
                ids=[item.id for item in images],
                vectors=vectors,
                labels=[item.label for item in images],
                sources=[item.source for item in images],
                indices=[item.index for item in images],
                seconds={"decode": decoded - started, "encode": time.perf_counter() - decoded},
            )

    @cached_property
    def _visual(self) -> nn.Module:
        return load_visual(self._source, self.seed)

    def _engine(self, depth: int) -> Engine:
        with self._lock:
            deepest = max(self._engines, default=0)
            if deepest < depth:
                self._engines = {
                    depth: Engine(
                        self._visual,
                        depth,
                        mean=self._prepare.cfg["mean"],
                        std=self._prepare.cfg["std"],
                        image_size=self.image_size,
                        device=self.device,
                    )
                }
                deepest = depth
            return self._engines[deepest]

    def _weights_hash(self, stage: Stage) -> str:
        with self._lock:
            key = (stage.depth, stage.reduction == "tokens")
            if key not in self._hashes:
                self._hashes[key] = hash_tensors(_tensors_used(self._visual, stage, self._stages))
            return self._hashes[key]

    @cached_property
    def _hashes(self) -> dict[tuple[int, bool], str]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """Keep the arguments; whoever unpickles reads the weights again."""
        return {**self.config(), "device": str(self.device)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).__init__(self, **state)

    def __sklearn_clone__(self) -> StagedEncoder:
        """Be shared by cloned estimators: an encoder never changes once it is made."""
        return self

    def __repr__(self) -> str:
        return (
            f"StagedEncoder({self.model!r}, pretrained={self.pretrained!r}, stage={self.stage!r}, "
            f"dim={self.dim}, device={str(self.device)!r})"
        )


def _tensors_used(
    visual: nn.Module, stage: Stage, stages: Mapping[str, Stage]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the named tensors that run up to a stage; buffers that only count training steps do not."""
    unit_depth = {name: found.depth for name, found in stages.items() if "." in name}
    for name, tensor in visual.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        block = ".".join(name.split(".")[:2])
        if name == "attnpool.positional_embedding":
            used = stage.reduction in ("tokens", "none")
        elif name.startswith("attnpool."):
            used = stage.reduction == "none"
        else:
            used = unit_depth.get(block, 1) <= stage.depth
        if used:
            yield name, tensor


def _flatten_pixels(squares: np.ndarray[Any, np.dtype[np.uint8]]) -> FloatArray:
    """Scale to [0, 1] and flatten channel first, shape (n, 3072)."""
    flat = squares.transpose(0, 3, 1, 2).reshape(len(squares), -1)
    return flat.astype(np.float32) / np.float32(255)


def _check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise InvalidInputError(f"unknown {name} {value!r}; choose one of {', '.join(map(repr, known))}")


def _side(size: Any) -> int:
    return int(size[0]) if isinstance(size, Sequence) else int(size)


def _check_size(image_size: int | None, own: int) -> int:
    if image_size is None:
        return own
    if not isinstance(image_size, int) or isinstance(image_size, bool) or image_size < 32 or image_size % 32:
        raise InvalidInputError(
            f"image_size must be a multiple of 32, at least 32; got {image_size!r} (the model's own is {own})"
        )
    return image_size


def _pick_device(device: str) -> torch.device:
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InvalidInputError(
            f"device {device!r} cannot be used here: {str(error).splitlines()[0]}"
        ) from error
    return picked
