"""A store's manifest, as it is kept and as what it says; a new one takes over what has not changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from clipretrieval._util.text import parse_json
from clipretrieval.errors import InvalidInputError, StoreCorruptedError
from clipretrieval.stores.checks import NO_METADATA, json_copy
from clipretrieval.stores.local.blob import Blob

__all__ = ["ManifestView"]

LONG = 1 << 14
"""A value of more characters of JSON is a part of its own."""


@dataclass(frozen=True, eq=False)
class ManifestView:
    """A manifest, parsed once for all readers, who must not change it.

    A classifier of many classes lists them in a manifest that it writes twice a change. Whoever takes a long
    value from `content` and writes it again does not have it encoded, compared, parsed and put into a file
    again.

    Attributes
    ----------
    text : str
        JSON, with null in the place of long values.
    parts : mapping of str to Blob
        These, as JSON, by their keys.
    """

    text: str = NO_METADATA
    parts: Mapping[str, Blob] = field(default_factory=dict)

    @classmethod
    def written(cls, manifest: Mapping[str, Any], before: ManifestView) -> ManifestView:
        """Return the view of a manifest that is to be written in the place of another.

        Raises
        ------
        InvalidInputError
            If it is no mapping of JSON values.
        """
        if not isinstance(manifest, Mapping):
            raise InvalidInputError(f"the manifest must be a mapping; found {type(manifest).__name__}")
        pairs, content, parts = list[str](), dict[str, Any](), dict[str, Blob]()
        read = vars(before).get("content", {})
        for key, value in manifest.items():
            if key in before.parts and key in read and read[key] is value:
                content[key], parts[key] = value, before.parts[key]
            else:
                text, copied = json_copy({key: value}, "the manifest")
                content.update(copied)
                pair = text[1:-1]
                long = pair[len(json.dumps(key)) + 1 :]
                if len(long) <= LONG:
                    pairs.append(pair)
                    continue
                parts[key] = Blob(long.encode("ascii"))
            pairs.append(f"{json.dumps(key)}:null")
        new = cls(f"{{{','.join(pairs)}}}", parts)
        vars(new)["content"] = content
        return new

    @cached_property
    def content(self) -> Mapping[str, Any]:
        """What it says.

        Raises
        ------
        StoreCorruptedError
            If a part is not as it was written.
        """
        return self.copy()

    def copy(self) -> dict[str, Any]:
        """Return what it says, to be changed by whoever asks; errors are those of `content`."""
        found: dict[str, Any] = json.loads(self.text)
        for key, part in self.parts.items():
            try:
                found[key] = parse_json(part.read())
            except ValueError as error:
                if isinstance(error.__cause__, RecursionError):  # who asks has gone too deep, not the part
                    raise error.__cause__ from None
                raise StoreCorruptedError(
                    f"what the manifest says of {key!r} is not JSON ({error}); write the manifest again"
                ) from error
        return found

    def __reduce__(self) -> Any:
        return type(self), (self.text, self.parts)  # what it says can be read again

    @property
    def size(self) -> int:
        """How many characters it has as JSON."""
        return len(self.text) + sum(part.size - len("null") for part in self.parts.values())

    def says_what(self, other: ManifestView) -> bool:
        """Tell whether it says, in the same order, what another does, and neither is damaged."""
        return (
            self.text == other.text
            and self.parts.keys() == other.parts.keys()
            and all(
                part.damage is other.parts[key].damage is None
                and (part is other.parts[key] or part.content == other.parts[key].content)
                for key, part in self.parts.items()
            )
        )
