"""What a file that `StagedEncoder.export` wrote says of itself: no torch, and nothing of ONNX's packages.

The file is a plain ONNX model. Two of its ``metadata_props`` are ours: `KEY` holds a description as JSON,
and `DIGEST_KEY` the SHA-256 of the whole file with 64 zeros in the digest's own place.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from clipretrieval._util.checks import shown
from clipretrieval._util.text import parse_json
from clipretrieval._version import __version__
from clipretrieval.encoding.preparation import Preparation
from clipretrieval.encoding.stage_output import StageOutput, StagePart, find_output
from clipretrieval.encoding.stages import LARGEST_SIDE, Architecture, stage_table
from clipretrieval.errors import ClipRetrievalError

__all__ = [
    *("DIGEST_KEY", "INPUT", "KEY", "QUANTIZATION", "UNSEALED", "OnnxFile", "OnnxFileError"),
    *("check_seal", "output_name", "seal"),
]

KEY, DIGEST_KEY = "clipretrieval.encoder", "clipretrieval.sha256"
INPUT = "squares"
"""The graph's one input: uint8, shape (n, size, size, 3)."""
QUANTIZATION = "quantization"
"""The entry of a fingerprint that only vectors of a quantized encoder have."""
UNSEALED = "0" * 64
FORMAT_VERSION = 1
# The value of a metadata entry, as protobuf writes it: field 2, 64 bytes long.
_DIGEST = re.compile(re.escape(DIGEST_KEY).encode() + rb"\x12\x40([0-9a-f]{64})")
_DESCRIBED = KEY.encode() + b"\x12"
"""What comes before the length of the description, which is JSON and has no such byte."""

# How protobuf's own writers put a ``TensorProto.external_data`` that names a file: what gets here by mistake,
# as no seal helps against malice.
_EXTERNAL = b"\x0a\x08location\x12"

_SIDES = range(32, LARGEST_SIDE + 1, 32)


class OnnxFileError(ValueError):
    """A file is not one that this release can run; the message says why."""


@dataclass(frozen=True)
class OnnxFile:
    """What has to be known of an encoder besides its graph.

    Attributes
    ----------
    architecture : Architecture
    stage, pooling : str
        Several have ``+`` between them.
    image_size : int
        Side in pixels.
    preprocessing : mapping
        In open_clip's words; see `Preparation`.
    fingerprint : mapping
        That of the encoder which was exported.
    """

    architecture: Architecture
    stage: str
    pooling: str
    image_size: int
    preprocessing: Mapping[str, Any]
    fingerprint: Mapping[str, Any]

    @property
    def output(self) -> StageOutput:
        """What the encoder returns."""
        return find_output(stage_table(self.architecture), self.stage, self.pooling)

    @property
    def is_quantized(self) -> bool:
        """Whether it computes in 8 bits."""
        return QUANTIZATION in self.fingerprint

    def to_dict(self) -> dict[str, Any]:
        """Return the description as JSON values."""
        return {"format_version": FORMAT_VERSION, "library_version": __version__, **asdict(self)}

    @classmethod
    def from_content(cls, content: bytes) -> OnnxFile:
        """Read the description that a whole file holds; see `from_json`."""
        place = content.rfind(_DESCRIBED)
        start, length = place + len(_DESCRIBED), 0
        if place >= 0:
            for shift in range(0, 35, 7):  # protobuf's varint: seven bits a byte, the last below 128
                byte = content[start]
                length |= (byte & 127) << shift
                start += 1
                if byte < 128:
                    break
        return cls.from_json(content[start : start + length].decode("utf-8", "replace"))

    @classmethod
    def from_json(cls, text: str) -> OnnxFile:
        """Read and check a description.

        Raises
        ------
        OnnxFileError
            If it is of another format version, or makes no sense.
        """
        try:
            found = parse_json(text.encode())
            version = found.pop("format_version")
            if version != FORMAT_VERSION:
                raise OnnxFileError(
                    f"it has format version {shown(version)}, and clipretrieval {__version__} runs version "
                    f"{FORMAT_VERSION}"
                )
            del found["library_version"]
            numbers = found["architecture"]
            architecture = Architecture(**{**numbers, "layers": tuple(numbers["layers"])})
            architecture.check()
            cfg = found["preprocessing"].items()
            preprocessing = {name: tuple(value) if isinstance(value, list) else value for name, value in cfg}
            file = cls(**{**found, "architecture": architecture, "preprocessing": preprocessing})
            Preparation(file.preprocessing)
            output, said = file.output, (file.fingerprint["stage"], file.fingerprint["dim"])
            if said != (output.name, output.dim) or output.depth == 0 or file.image_size not in _SIDES:
                raise OnnxFileError("its description contradicts itself")
        except (KeyError, TypeError, AttributeError, ValueError, ClipRetrievalError) as error:
            if isinstance(error, OnnxFileError):
                raise
            raise OnnxFileError(f"its description cannot be read: {error!r}") from error
        return file


def output_name(part: StagePart) -> str:
    """Return what the graph calls the vectors of a part."""
    return f"{part.stage.name}/{part.pooling}" if part.stage.has_grid else part.stage.name


def seal(content: bytes) -> bytes:
    """Put the digest of a file into it, which holds `UNSEALED` in its place."""
    found = _last_digest(content)
    if found is None:
        raise OnnxFileError("there is no place for the digest")
    digest = hashlib.sha256(content).hexdigest().encode()
    return content[: found.start(1)] + digest + content[found.end(1) :]


def check_seal(content: bytes) -> str:
    """Return the digest of a file that is as it was sealed, and whole.

    Raises
    ------
    OnnxFileError
    """
    found = _last_digest(content)
    if found is None:
        raise OnnxFileError("it was not written by StagedEncoder.export")
    digest = hashlib.sha256(memoryview(content)[: found.start(1)])
    digest.update(UNSEALED.encode())
    digest.update(memoryview(content)[found.end(1) :])
    if digest.hexdigest().encode() != found[1]:
        raise OnnxFileError("it was changed after it was exported, or was not copied whole")
    if _EXTERNAL in content:
        raise OnnxFileError("a part of its weights lies in another file, which no digest covers")
    return digest.hexdigest()


def _last_digest(content: bytes) -> re.Match[bytes] | None:
    place = content.rfind(DIGEST_KEY.encode())
    return None if place < 0 else _DIGEST.match(content, place)
