"""Write an encoder as an ONNX file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipretrieval._util.dependencies import require
from clipretrieval._util.files import NotDurableError, replacing
from clipretrieval._util.forks import ForkLock
from clipretrieval.encoding.engine.engine import Engine
from clipretrieval.encoding.engine.inference_plan import InferencePlan
from clipretrieval.encoding.engine.reduction import reduce
from clipretrieval.encoding.onnx.onnx_file import (
    DIGEST_KEY,
    INPUT,
    KEY,
    UNSEALED,
    OnnxFile,
    output_name,
    seal,
)
from clipretrieval.encoding.stage_output import StagePart
from clipretrieval.errors import InvalidInputError

__all__ = ["write_onnx"]

_OPSET = 18
"""Of ONNX: what torch's exporter writes by itself."""
_exporting = ForkLock()
_PLAIN = InferencePlan("cpu", "fp32", 1, 1, 1, "torch", compiled=False)


class _Graph(nn.Module):
    """From bytes to the vectors of some parts."""

    scale: torch.Tensor
    shift: torch.Tensor
    positions: torch.Tensor

    def __init__(self, engine: Engine, parts: list[StagePart]) -> None:
        super().__init__()
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
            vectors.append(reduce(x, part.stage, part.pooling, self.positions))
        return tuple(vectors)


def write_onnx(path: Path, file: OnnxFile, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write an encoder to a file, atomically.

    Parameters
    ----------
    path : Path
    file : OnnxFile
        What the encoder is.
    tensors : mapping of str to tensor
        Its weights in float32, as open_clip names them.

    Raises
    ------
    MissingDependencyError
        If ONNX's packages are not installed.
    InvalidInputError
        If the file cannot be written.
    """
    for name in ("onnx", "onnxscript"):
        require(name, "exporting", 'run: pip install "clipretrieval[onnx]"')
    try:
        with replacing(path) as temporary:  # what cannot be written is refused before the work
            temporary.write_bytes(_converted(file, tensors))
    except NotDurableError as error:
        raise InvalidInputError(f"the encoder may not be on the disk: {error.strerror}") from error
    except OSError as error:
        raise InvalidInputError(
            f"the encoder cannot be written to {str(path)!r}: {error.strerror or error}; name a file in a "
            "folder that exists and can be written to"
        ) from error


def _converted(file: OnnxFile, tensors: Mapping[str, torch.Tensor]) -> bytes:
    deep = (part for part in file.output.parts if part.stage.depth > 0)
    parts = sorted(deep, key=lambda part: part.stage.depth)
    engine = Engine(
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
            _Graph(engine, parts).eval(),
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
    described = json.dumps(file.to_dict(), allow_nan=False)
    for key, value in ((KEY, described), (DIGEST_KEY, UNSEALED)):
        model.metadata_props.add(key=key, value=value)
    content: bytes = model.SerializeToString()
    return seal(content)
