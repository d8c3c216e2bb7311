"""Anything that holds pictures, as a stream of upright RGB pictures with content ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipretrieval._util.lazy import attach

if TYPE_CHECKING:
    from clipretrieval.images.decoding import DecodedImage, RawImage, content_id, decode
    from clipretrieval.images.folders import ImageFolder, scan_folder
    from clipretrieval.images.rgb import to_rgb
    from clipretrieval.images.sources import count_hint, iter_raw
    from clipretrieval.images.stream import SkippedImage, check_on_error, iter_images, unique_ids
    from clipretrieval.images.tables import ImageTable, read_table

__all__ = [
    "DecodedImage",
    "ImageFolder",
    "ImageTable",
    "RawImage",
    "SkippedImage",
    "check_on_error",
    "content_id",
    "count_hint",
    "decode",
    "iter_images",
    "iter_raw",
    "read_table",
    "scan_folder",
    "to_rgb",
    "unique_ids",
]

_lazy_getattr, _lazy_dir = attach(
    __name__,
    {
        "stream": [
            "DecodedImage",
            "ImageFolder",
            "ImageTable",
            "RawImage",
            "SkippedImage",
            "check_on_error",
            "content_id",
            "count_hint",
            "decode",
            "iter_images",
            "iter_raw",
            "read_table",
            "scan_folder",
            "to_rgb",
            "unique_ids",
        ],
    },
)


def __getattr__(name: str) -> Any:
    return _lazy_getattr(name)


def __dir__() -> list[str]:
    return _lazy_dir()
