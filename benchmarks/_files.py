"""The encoder fed from JPEG files: does decoding keep up?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from clipretrieval import StagedEncoder
from clipretrieval.encoding.pipeline import prepare_chunk
from clipretrieval.encoding.preparation import Preparation
from clipretrieval.images import iter_raw

WIDTH, HEIGHT = 500, 375


def write_files(folder: Path, count: int) -> list[Path]:
    """Write photographs of 500×375: crops of scikit-learn's two, no two alike."""
    photos = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    rng = np.random.default_rng(0)
    folder.mkdir()
    paths = []
    for number in range(count):
        photo = photos[number % 2]
        top, left = rng.integers(0, 427 - HEIGHT), rng.integers(0, 640 - WIDTH)
        crop = photo[top : top + HEIGHT, left : left + WIDTH][:, :: rng.choice([-1, 1])]
        shifted = np.clip(crop.astype(np.int16) + rng.integers(-20, 20, 3), 0, 255).astype(np.uint8)
        paths.append(folder / f"{number:05}.jpg")
        Image.fromarray(shifted).save(paths[-1], quality=90)
    return paths


def measure_files(folder: Path, encoder: StagedEncoder, count: int, rounds: int) -> dict[str, Any]:
    """Compare ``mid`` from files with ``mid`` from arrays and with decoding alone, part by part.

    Returns
    -------
    dict
        Rates in images a second (medians), the share of the rate from arrays that is reached, and of the rate
        at which the same cores could decode and encode one after the other.
    """
    paths = write_files(folder / "jpeg", count)
    share = max(1, count // rounds)
    shape = (share, encoder.image_size, encoder.image_size, 3)
    arrays = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    encoder.encode(arrays[:16])
    rates: dict[str, list[float]] = {"arrays": [], "decoding": [], "files": []}
    for number in range(rounds):
        part = paths[number * share : (number + 1) * share]
        rates["arrays"].append(_rate(lambda: encoder.encode(arrays), share))
        rates["decoding"].append(_rate(lambda part=part: _decode(encoder, part), len(part)))  # type: ignore[misc]
        rates["files"].append(_rate(lambda part=part: encoder.encode(part), len(part)))  # type: ignore[misc]
    rows = list(zip(rates["arrays"], rates["decoding"], rates["files"], strict=True))
    return {
        "from arrays, images/s": statistics.median(rates["arrays"]),
        "decoding and resizing alone, images/s": statistics.median(rates["decoding"]),
        "from files, images/s": statistics.median(rates["files"]),
        "files / arrays": statistics.median(f / a for a, _, f in rows),
        "files / (decoding and encoding in turn)": statistics.median(f * (1 / a + 1 / d) for a, d, f in rows),
    }


def _decode(encoder: StagedEncoder, paths: list[Path]) -> None:
    """Decode, resize and cut with as many threads as the encoder has cores."""
    stages = [encoder.stages["mid"]]
    size = encoder.image_size
    preparation = Preparation({**encoder.preprocessing, "size": size})
    chunk = encoder.plan.inner_batch
    raws = list(iter_raw(paths))
    parts = [raws[start : start + chunk] for start in range(0, len(raws), chunk)]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(lambda part: prepare_chunk(part, stages, preparation, "raise"), parts):
            pass


def _rate(work: Callable[[], Any], count: int) -> float:
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)
