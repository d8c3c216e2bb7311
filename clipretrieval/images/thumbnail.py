"""Thumbnails of image files, for HTML that needs nothing from elsewhere."""

from __future__ import annotations

import base64
import io

from clipretrieval.errors import ImageDecodeError
from clipretrieval.images.decoding import RawImage, decode
from clipretrieval.images.urls import is_url

__all__ = ["THUMBNAIL", "thumbnail"]

THUMBNAIL = 96
"""The longer side of a thumbnail, in pixels."""


def thumbnail(path: str) -> str | None:
    """Return a small JPEG of a file in base64; None where there is no image any more, and of a URL."""
    if is_url(path):  # whoever looks at a store fetches nothing of what it names
        return None
    try:
        image = decode(RawImage(0, path)).image
    except ImageDecodeError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=85)
    return base64.b64encode(encoded.getvalue()).decode("ascii")
