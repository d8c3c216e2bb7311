"""What a Parquet file of vectors says of them, in its key-value metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clipretrieval._version import __version__
from clipretrieval.errors import InvalidInputError

__all__ = ["ID", "KEY", "LABEL", "METADATA", "SOURCE", "VECTOR", "PartManifest"]

KEY = b"clipretrieval"
"""Of the file's metadata."""
ID, LABEL, SOURCE, METADATA, VECTOR = "id", "label", "source", "metadata", "vector"
"""The columns."""
FORMAT, FORMAT_VERSION = "clipretrieval.vectors", 1


@dataclass(frozen=True)
class PartManifest:
    """What made the vectors of a file.

    Attributes
    ----------
    encoder : mapping of JSON values
        The encoder's fingerprint. One whose ``"encoder"`` is None is that of vectors that were given.
    dim : int
    normalize : bool
        Whether they were scaled to length one.
    shard : mapping of JSON values
        Of a part that `encode` wrote: which part of which source it is. Else empty.
    library_version : str
    """

    encoder: Mapping[str, Any]
    dim: int
    normalize: bool = False
    shard: Mapping[str, Any] = field(default_factory=dict)
    library_version: str = __version__

    @property
    def fingerprint(self) -> Mapping[str, Any] | None:
        """The encoder's; None where the vectors were given, and nobody knows what made them."""
        return None if self.encoder.get("encoder", "") is None else self.encoder

    def to_bytes(self) -> bytes:
        """Return all of it as JSON."""
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "library_version": self.library_version,
            "encoder": dict(self.encoder),
            "dim": self.dim,
            "normalize": self.normalize,
            **({"shard": dict(self.shard)} if self.shard else {}),
        }
        return json.dumps(content, allow_nan=False).encode()

    @classmethod
    def read(cls, metadata: Mapping[bytes, bytes] | None, where: str) -> PartManifest | None:
        """Read what a file's metadata says; None where it is of another program.

        Raises
        ------
        InvalidInputError
            If it is damaged, or of a newer version.
        """
        found = (metadata or {}).get(KEY)
        if found is None:
            return None
        try:
            content = json.loads(found)
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r:.100}")
            version = content["format_version"]
            if version != FORMAT_VERSION:
                raise InvalidInputError(
                    f"{where} has the format version {version!r:.100}, and this version of the library "
                    f"(clipretrieval {__version__}) reads version {FORMAT_VERSION}; update the library"
                )
            encoder, dim, normalize = content["encoder"], content["dim"], content["normalize"]
            shard, written = content.get("shard", {}), content["library_version"]
            if not isinstance(encoder, Mapping) or type(dim) is not int or type(normalize) is not bool:
                raise ValueError("it names no encoder, dimension or scaling")
            if not isinstance(shard, Mapping) or not isinstance(written, str):
                raise ValueError("it does not say which part it is, or what wrote it")
        except InvalidInputError:
            raise
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InvalidInputError(
                f"what {where} says of its vectors is damaged ({error!r:.200}); write it again"
            ) from error
        return cls(encoder, dim, normalize, shard, written)
