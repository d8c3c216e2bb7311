"""An encoder that needs no torch: a file that `StagedEncoder.export` wrote."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from clipretrieval._util.checks import check_choice, check_int, check_mapping, check_path, shown
from clipretrieval._util.progress import Progress
from clipretrieval._util.repr import safe_repr
from clipretrieval.encoding.base import EncodedBatch, KnownIds
from clipretrieval.encoding.collecting import collect_vectors
from clipretrieval.encoding.image_transformer import ImageTransformer
from clipretrieval.encoding.onnx.onnx_graph import OnnxGraph
from clipretrieval.encoding.onnx.planning import PRECISIONS, RUNTIMES
from clipretrieval.encoding.pipeline import checked_options, encode_source
from clipretrieval.encoding.preparation import Preparation
from clipretrieval.encoding.weights.model_source import ONNX
from clipretrieval.encoding.workers import usable_cores
from clipretrieval.errors import InvalidInputError
from clipretrieval.images.decoding import MAX_PIXELS, RawImage, check_max_pixels
from clipretrieval.images.sources import iter_raw
from clipretrieval.images.stream import SkippedImage
from clipretrieval.types import FloatArray

__all__ = ["OnnxEncoder"]

_OPTIONS = {"runtime": "onnxruntime", "precision": "auto", "threads": None, "max_pixels": MAX_PIXELS}
"""What `config` names only where it is something else."""


class OnnxEncoder(ImageTransformer):
    """CLIP's image encoder at one stage, from a file that `StagedEncoder.export` wrote.

    It runs without torch, by ONNX Runtime (``pip install onnxruntime``) or by OpenVINO (``pip install
    openvino``). Its fingerprint is that of the encoder which was exported, or, if it was exported so, of that
    one in 8 bits, whatever runs it: each takes the other's place over an index, and their vectors differ by
    rounding alone. It is a scikit-learn transformer as well, as a `StagedEncoder` is.

    Parameters
    ----------
    path : str or Path
        The ONNX file.
    runtime : {"onnxruntime", "openvino"}
        What runs it. OpenVINO is the faster one on CPUs with instructions for bf16 or 8 bits.
    precision : {"auto", "fp32", "bf16"}
        Of a file in float32. ONNX Runtime has ``"fp32"`` alone; with OpenVINO, ``"auto"`` is bf16 where the
        CPU has instructions for it. A file in 8 bits takes ``"auto"``.
    batch_size : int
        Images per batch, at least 1.
    threads : int, optional
        That compute; as many as there are cores to run on when left out.
    max_pixels : int or None, default 75,000,000
        The most pixels (width × height) that an image may have; None for no bound.

    Raises
    ------
    InvalidInputError
        If an argument is not one of the above, or this CPU has no instructions for the precision.
    WeightsUnavailableError
        If the file cannot be read, was changed after it was exported, or is not one that this release and
        the installed runtime can run.
    MissingDependencyError
        If the runtime is not installed.

    Attributes
    ----------
    plan : InferencePlan
        How it runs.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        runtime: str = "onnxruntime",
        precision: str = "auto",
        batch_size: int = 64,
        threads: int | None = None,
        max_pixels: int | None = MAX_PIXELS,
    ) -> None:
        self.path = check_path(path, "path").absolute()
        self.runtime = check_choice(runtime, "runtime", tuple(RUNTIMES))
        self.precision = check_choice(precision, "precision", PRECISIONS)
        self.batch_size = check_int(batch_size, "batch_size")
        self.threads = None if threads is None else check_int(threads, "threads")
        self.max_pixels = check_max_pixels(max_pixels)
        cores = self.threads or usable_cores()
        self._graph = OnnxGraph(self.path, self.runtime, self.precision, self.batch_size, cores)
        self._file, self.plan = self._graph.file, self._graph.plan
        self._output = self._file.output
        self._prepare = Preparation({**self._file.preprocessing, "size": self._file.image_size})

    @property
    def model(self) -> str:
        """What `StagedEncoder` calls a model, here ``onnx:`` and the path."""
        return f"{ONNX}{self.path}"

    @property
    def stage(self) -> str:
        """The stage whose vectors `encode` returns; joined ones have ``+`` between their names."""
        return self._output.name

    @property
    def pooling(self) -> str:
        """What makes vectors of grids; several have ``+`` between their names."""
        return self._output.pooling

    @property
    def dim(self) -> int:
        """The dimension of the vectors that `encode` returns."""
        return self._output.dim

    @property
    def image_size(self) -> int:
        """Side of the squares that images become, in pixels."""
        return self._file.image_size

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How images are prepared, in open_clip's words (``size``, ``mean``, ``std``, …)."""
        return dict(self._prepare.cfg)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides the vectors: that of the encoder which was exported."""
        return copy.deepcopy(dict(self._file.fingerprint))

    def multiply_adds(self) -> float:
        """Return the arithmetic that one image takes, in 10⁹ multiply-adds.

        See `clipretrieval.encoding.Architecture.multiply_adds`.
        """
        return self._file.architecture.multiply_adds(self._output.depth, self.image_size)

    def encode(
        self, images: Any, *, on_error: str = "raise", progress: Progress | bool | None = None
    ) -> FloatArray:
        """Encode images; see `StagedEncoder.encode`.

        Returns
        -------
        ndarray of float32, shape (n, dim)
        """
        encode = partial(self._encode, identify=False)
        found = collect_vectors(images, (self.stage,), encode, on_error=on_error, progress=progress)
        return found[self.stage]

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
        """Yield encoded batches in the order of the source; see `StagedEncoder.stream`.

        `stages` can only be this encoder's own.
        """
        if stages is not None and list(stages) != [self.stage]:
            raise InvalidInputError(
                f"an exported encoder has one stage, here {self.stage!r}; got {shown(stages)}. Export another"
            )
        options = {"on_error": on_error, "skipped": skipped, "known": known, "ahead": ahead}
        return self._encode(iter_raw(images, labels), **checked_options(**options))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> OnnxEncoder:
        """Open the file that `config` named."""
        given = dict(check_mapping(config, "config", optional=False))
        model = given.pop("model", None)
        given.pop("pretrained", None)
        known = set(signature(cls).parameters) - {"path"}
        if not isinstance(model, str) or not model.startswith(ONNX) or model == ONNX or set(given) - known:
            raise InvalidInputError(
                f"config is not an OnnxEncoder's: {shown(config)}; pass what its config() returned"
            )
        return cls(model.removeprefix(ONNX), **given)

    def config(self) -> dict[str, Any]:
        """Return what opens this file again: JSON values, the path in full."""
        given = {name: getattr(self, name) for name in _OPTIONS}
        return {
            "model": self.model,
            "pretrained": None,
            "batch_size": self.batch_size,
            **{name: value for name, value in given.items() if value != _OPTIONS[name]},
        }

    def _encode(self, raws: Iterator[RawImage], **options: Any) -> Iterator[EncodedBatch]:
        return encode_source(
            raws,
            [self._output],
            self._prepare,
            self._graph,
            self.plan,
            joint=None,
            batch_size=self.batch_size,
            max_pixels=self.max_pixels,
            **options,
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and "_prepare" in vars(self):
            raise AttributeError(f"an OnnxEncoder never changes; make a new one with another {name}")
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """Keep the arguments; whoever unpickles opens the file again."""
        return {**self.config(), "_container": self._container}

    def __setstate__(self, state: dict[str, Any]) -> None:
        config = dict(state)
        container = config.pop("_container", None)
        vars(self).update(vars(self.from_config(config)), _container=container)

    @safe_repr
    def __repr__(self) -> str:
        return f"OnnxEncoder({str(self.path)!r}, stage={self.stage!r}, dim={self.dim})"
