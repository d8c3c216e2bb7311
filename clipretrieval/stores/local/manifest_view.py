"""A store's manifest as text and as what it says, of which a new one takes over what has not changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clipretrieval.errors import InvalidInputError
from clipretrieval.stores.checks import json_copy, json_text

__all__ = ["ManifestView"]

LONG = 64
"""Entries of a list from which on its text is kept, to be taken over."""


@dataclass(frozen=True, eq=False)
class ManifestView:
    """What a manifest says, parsed once for all readers, who must not change it.

    A classifier of many classes lists them in a manifest that it writes twice a change. Whoever takes a long
    list from `content` and writes it again does not have it encoded, compared and parsed again.

    Attributes
    ----------
    text : str
        JSON.
    content : mapping of JSON values
    """

    text: str
    content: Mapping[str, Any]
    _pairs: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, text: str) -> ManifestView:
        """Parse a manifest."""
        return cls(text, json.loads(text))

    @classmethod
    def written(cls, manifest: Mapping[str, Any], before: ManifestView | None) -> ManifestView:
        """Return the view of a manifest that is to be written.

        Parameters
        ----------
        manifest : mapping of JSON values
        before : ManifestView, optional
            Of the manifest whose place it takes.

        Raises
        ------
        InvalidInputError
            If it is no mapping of JSON values.
        """
        if not isinstance(manifest, Mapping):
            raise InvalidInputError(f"the manifest must be a mapping; found {type(manifest).__name__}")
        pairs, content, kept = list[str](), dict[str, Any](), dict[str, str]()
        for key, value in manifest.items():
            pair = before._pair(key, value) if before is not None else None
            if pair is None:
                text, read = json_copy({key: value}, "the manifest")
                pair = text[1:-1]
                content.update(read)
            else:
                content[key] = value
            if _is_long(content[key]):
                kept[key] = pair
            pairs.append(pair)
        return cls(f"{{{','.join(pairs)}}}", content, kept)

    def _pair(self, key: str, value: Any) -> str | None:
        """Return the text of a key with its value, if that is a long list that was taken from `content`."""
        if not _is_long(value) or self.content.get(key) is not value:
            return None
        if key not in self._pairs:
            self._pairs[key] = json_text({key: value}, "the manifest")[1:-1]
        return self._pairs[key]


def _is_long(value: Any) -> bool:
    return type(value) is list and len(value) >= LONG
