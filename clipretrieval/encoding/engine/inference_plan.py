"""How the encoder runs: data only, no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from clipretrieval._util.dependencies import require_torch

if TYPE_CHECKING:
    import torch

__all__ = ["DTYPES", "MOST_STREAMS", "PRECISIONS", "InferencePlan", "fitting_images"]

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""The names of torch's types."""
MOST_STREAMS = 16
_CACHED_WORK = 4 * 224 * 224 * 64
"""Images × pixels × width that keep a block's activations in a core's cache: RN50 by fours."""


@dataclass(frozen=True)
class InferencePlan:
    """How the encoder runs; none of it changes what the vectors mean.

    Attributes
    ----------
    device : str
    precision : {"fp32", "bf16", "fp16", "int8"}
        Of weights and activations. Poolings and softmax are in float32 always.
    inner_batch : int
        Images that go through the encoder together, whatever the caller's batch.
    streams : int
        Inner batches that run side by side, each on `threads` cores of its own.
    threads : int
        Cores of each stream.
    kernels : {"onednn", "torch", "onnxruntime", "openvino"}
        ``"onednn"``: weights laid out beforehand, and, in CLIP's ResNets, convolutions with addition and ReLU
        fused into them.
        ``"onnxruntime"``, ``"openvino"``: an exported encoder's, without torch.
    compiled : bool
        Whether inductor compiles the encoder at its first use.
    winograd : bool
        Whether 3×3 convolutions take fewer products, by Winograd's minimal filtering, where that gains.
    """

    device: str
    precision: str
    inner_batch: int
    streams: int
    threads: int
    kernels: str
    compiled: bool
    winograd: bool = False

    @property
    def encodes_in_workers(self) -> bool:
        """Whether passes run in several threads, each on cores of its own: on a CPU, but for ONNX Runtime."""
        return self.device == "cpu" and self.kernels != "onnxruntime"

    @property
    def runs_torch(self) -> bool:
        """Whether passes are torch's."""
        return self.kernels in ("onednn", "torch")

    @property
    def dtype(self) -> torch.dtype:
        """The torch type of weights and activations."""
        found: torch.dtype = getattr(require_torch("a type of torch"), DTYPES[self.precision])
        return found

    @property
    def edge_dtype(self) -> torch.dtype:
        """The torch type of the encoder's two ends, the first convolution and the attention pool.

        Never bf16: rounding the pixels would change the vectors more than any other rounding, and rounding
        in the pool those of ``final`` by half as much again. Together they are under 1 % of the work.
        """
        torch = require_torch("a type of torch")
        return torch.float32 if self.precision == "bf16" else self.dtype

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.precision} on {self.device}, {self.streams} × {self.inner_batch} images at a time, "
            f"{'compiled' if self.compiled else self.kernels} kernels{', Winograd' if self.winograd else ''}"
        )


def fitting_images(image_size: int, width: int) -> int:
    """Return how many images fit a core's cache with their activations, at least 1.

    Parameters
    ----------
    image_size : int
        Side in pixels.
    width : int
        Channels of the encoder's first layers; see `Architecture`.
    """
    return max(1, _CACHED_WORK // (image_size * image_size * width))
