"""Write an encoder as an ONNX file."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from clipretrieval._util.files import NotDurableError, replacing
from clipretrieval._util.forks import ForkLock
from clipretrieval.encoding.engine.engine import Engine
from clipretrieval.encoding.engine.inference_plan import InferencePlan
from clipretrieval.encoding.engine.reduction import reduce
from clipretrieval.encoding.onnx.onnx_file import (
    DIGEST_KEY,
    INPUT,
    KEY,
    QUANTIZATION,
    UNSEALED,
    OnnxFile,
    output_name,
    seal,
)
from clipretrieval.encoding.stage_output import StagePart
from clipretrieval.encoding.towers.modified_resnet import build_engine
from clipretrieval.errors import InvalidInputError

__all__ = ["write_onnx"]

_OPSET = 18
"""Of ONNX: what torch's exporter writes by itself."""
_exporting = ForkLock()
_CALIBRATED_TOGETHER = 8
"""Images whose activations are looked at together."""
_PLAIN = InferencePlan("cpu", "fp32", 1, 1, 1, "torch", compiled=False)


class _Graph(nn.Module):
    """From bytes to the vectors of some parts."""

    scale: torch.Tensor
    shift: torch.Tensor
    positions: torch.Tensor

    def __init__(self, engine: Engine, parts: list[StagePart], quantized: bool) -> None:
        super().__init__()
        self.quantized = quantized
        self.units, self.parts = nn.ModuleList(engine.units), parts
        # The engine keeps a whole row of pixels; one pixel's three values are the same in all.
        for name in ("scale", "shift"):
            self.register_buffer(name, getattr(engine, name)[:3].clone())
        self.register_buffer("positions", engine.positions)

    def forward(self, squares: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = (squares.float() * self.scale + self.shift).permute(0, 3, 1, 2)
        vectors, done = [], 0
        for part in self.parts:
            for unit in self.units[done : part.stage.depth]:
                x = unit(x)
            done = part.stage.depth
            # OpenVINO 2026.4 would reduce in 8 bits, and return zeros for all images but the first. It takes
            # 8 bits no further than to this, which changes nothing: a ReLU comes before it.
            grid = x.abs() if self.quantized and part.stage.reduction != "none" else x
            vectors.append(reduce(grid, part.stage, part.pooling, self.positions))
        return tuple(vectors)


def write_onnx(
    path: Path,
    file: OnnxFile,
    tensors: Mapping[str, torch.Tensor],
    calibration: npt.NDArray[np.uint8] | None = None,
) -> None:
    """Write an encoder to a file, atomically.

    Parameters
    ----------
    path : Path
    file : OnnxFile
        What the encoder is.
    tensors : mapping of str to tensor
        Its weights in float32, as open_clip names them.
    calibration : ndarray of uint8, shape (n, size, size, 3), optional
        Quantize to 8 bits by what the activations of these images are.

    Raises
    ------
    InvalidInputError
        If the file cannot be written.
    """
    try:
        with replacing(path) as temporary:  # what cannot be written is refused before the work
            try:
                content = _converted(file, tensors, calibration)
            except OSError as error:
                raise InvalidInputError(
                    f"the encoder cannot be converted: {error.strerror or error}; 8 bits take room in the "
                    f"folder for temporary files, {tempfile.gettempdir()!r}"
                ) from error
            temporary.write_bytes(content)
    except NotDurableError as error:
        raise InvalidInputError(f"the encoder may not be on the disk: {error.strerror}") from error
    except OSError as error:
        raise InvalidInputError(
            f"the encoder cannot be written to {str(path)!r}: {error.strerror or error}; name a file in a "
            "folder that exists and can be written to"
        ) from error


def _converted(
    file: OnnxFile, tensors: Mapping[str, torch.Tensor], calibration: npt.NDArray[np.uint8] | None
) -> bytes:
    deep = (part for part in file.output.parts if part.stage.depth > 0)
    parts = sorted(deep, key=lambda part: part.stage.depth)
    engine = build_engine(
        tensors,
        file.architecture,
        file.output.depth,
        _PLAIN,
        mean=file.preprocessing["mean"],
        std=file.preprocessing["std"],
        image_size=file.image_size,
    )
    # Two images: torch would take one for a size that never changes.
    example = torch.zeros(2, file.image_size, file.image_size, 3, dtype=torch.uint8)
    with _exporting.current:  # torch converts one model at a time
        program = torch.onnx.export(
            _Graph(engine, parts, calibration is not None).eval(),
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[output_name(part) for part in parts],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            opset_version=_OPSET,
            verbose=False,
        )
    model: Any = program.model_proto  # type: ignore[union-attr]
    for each in (*model.graph.node, *model.graph.value_info):
        del each.metadata_props[:]  # the exporter's source lines, with the paths of its files
    if calibration is not None:
        model = _quantized(model, calibration)
        digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
        file = replace(file, fingerprint={**file.fingerprint, QUANTIZATION: f"int8, sha256:{digest}"})
    described = json.dumps(file.to_dict(), allow_nan=False)
    for key, value in ((KEY, described), (DIGEST_KEY, UNSEALED)):
        model.metadata_props.add(key=key, value=value)
    content: bytes = model.SerializeToString()
    return seal(content)


def _quantized(model: Any, squares: npt.NDArray[np.uint8]) -> Any:
    """Quantize a model's convolutions and what lies between them, by ONNX Runtime's static quantization.

    What comes behind the last one stays in float32: a vector in 8 bits would have 256 values.

    Weights take 8 bits with a scale for each channel, activations with a scale for each tensor: from the
    smallest value to the largest that these images have there.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    batches: Iterator[Any] = iter(np.array_split(squares, -(-len(squares) // _CALIBRATED_TOGETHER)))

    class Images(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            return None if batch is None else {INPUT: batch}

    with tempfile.TemporaryDirectory() as folder:
        given, prepared, made = (Path(folder, f"{name}.onnx") for name in ("given", "prepared", "made"))
        onnx.save_model(model, given)
        quant_pre_process(given, prepared, skip_optimization=True, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            made,
            Images(),
            op_types_to_quantize=["Conv", "Add", "Relu", "AveragePool"],
            nodes_to_exclude=_behind_convolutions(prepared),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return onnx.load_model(made)


def _behind_convolutions(path: Path) -> list[str]:
    """Name a model's nodes that no convolution depends on: sums of poolings, or what a pooling takes."""
    import onnx

    found, leading = [], set[str]()
    for node in reversed(onnx.load_model(path).graph.node):  # the order in which they are computed
        if node.op_type == "Conv" or leading.intersection(node.output):
            leading.update(node.input)
        else:
            found.append(node.name)
    return found
