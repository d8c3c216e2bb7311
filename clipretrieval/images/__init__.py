"""Anything that holds images, as a stream of upright RGB images with content ids.

What is accepted as `images`, here and wherever the library takes images:

- the path or URL of a folder: its sub-folders are the classes, see `scan_folder`;
- the paths or URLs of tar files, as webdataset writes them, or a pattern of these, see `read_tars`;
- a table with a column of paths: the path of a CSV file, a pandas or polars DataFrame, a pyarrow Table or a
  Hugging Face Dataset, or the path of one, see `read_table`; also a single column, as a Series or an Arrow
  array;
- one image, taken as a batch of one: the path or URL of a file, encoded bytes, a PIL image of any mode, a
  uint8 array of shape (height, width) or (height, width, channels), or a tensor of shape
  (channels, height, width), uint8 or float in [0, 1]; with 1, 3 (RGB) or 4 (RGBA) channels;
- a uint8 array of shape (n, height, width) or (n, height, width, channels), or a tensor of shape
  (n, channels, height, width);
- a sequence, iterator or generator of single images, or of pairs (image, label);
- a torch ``Dataset`` of either, or a ``DataLoader``, whose batches are taken apart again.

Reading is in two phases: `iter_raw` walks through the source, cheaply and in order, in the thread of the
caller; `decode` does the work and may run in other threads. `iter_images` is one after the other.

torch is recognized where it is loaded already; this module never imports it.
"""

from __future__ import annotations

from clipretrieval.images.decoding import DecodedImage, RawImage, content_id, decode
from clipretrieval.images.folders import ImageFolder, scan_folder
from clipretrieval.images.rgb import to_rgb
from clipretrieval.images.sources import count_hint, iter_raw
from clipretrieval.images.stream import SkippedImage, check_on_error, iter_images, unique_ids
from clipretrieval.images.tables import ImageTable, read_table
from clipretrieval.images.tars import ImageTars, read_tars

__all__ = [
    "DecodedImage",
    "ImageFolder",
    "ImageTable",
    "ImageTars",
    "RawImage",
    "SkippedImage",
    "check_on_error",
    "content_id",
    "count_hint",
    "decode",
    "iter_images",
    "iter_raw",
    "read_table",
    "read_tars",
    "scan_folder",
    "to_rgb",
    "unique_ids",
]
