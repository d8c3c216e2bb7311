"""How long answers take: in bulk as the study measured, and one by one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from timeit import default_timer
from typing import Any, TypeVar

import numpy as np

from clipretrieval._util.repr import short_repr
from clipretrieval.encoding.staged_encoder import StagedEncoder
from clipretrieval.images.decoding import RawImage, decode
from clipretrieval.types import FloatArray

__all__ = [
    *("OPEN_CLIP_BATCH", "Answerer", "Sample", "Speed", "measure_speed", "median_times"),
    "open_clip_answerer",
]

OPEN_CLIP_BATCH = 32
"""Images together in open_clip as it comes."""
_TURNS = 4
"""Into how many parts the images are cut, after each of which the next side has its turn."""
_PART = 32
"""Images of a part, where the time decides how many parts there are."""
_LEAST_SINGLES = 3
"""Single images, however long they take."""

Given = TypeVar("Given")
Made = TypeVar("Made")


class Sample:
    """A uniform sample of a stream of images, taken as it goes by.

    Vitter's algorithm R, with a seed.

    Parameters
    ----------
    most : int
    seed : int
    """

    def __init__(self, most: int, seed: int = 0) -> None:
        self._most, self._random, self._count = most, random.Random(seed), 0  # noqa: S311
        self.raws: list[RawImage] = []

    def passing(self, raws: Iterator[RawImage]) -> Iterator[tuple[Any, Any]]:
        """Yield images and labels, keeping some of the images."""
        for raw in raws:
            self._count += 1
            if len(self.raws) < self._most:
                self.raws.append(raw)
            elif (place := self._random.randrange(self._count)) < self._most:
                self.raws[place] = raw
            yield raw.payload, raw.label

    def images(self, encoded: Iterable[int]) -> list[Any]:
        """Return those of the images whose places are among `encoded`, in the order of the source."""
        places = set(encoded)
        return [raw.payload for raw in sorted(self.raws, key=lambda raw: raw.index) if raw.index in places]


@dataclass
class Answerer:
    """One of the things that are compared, in its two halves.

    Attributes
    ----------
    infer : callable
        Images to vectors.
    query : callable
        Vectors to answers.
    query_share : callable, optional
        Of what `infer` returned to the share of its time that queries took: a cascade's lie on the way.
    most : int, optional
        Images of a turn at most, where the time decides how many turns there are.
    """

    infer: Callable[[list[Any]], Any]
    query: Callable[[Any], Any]
    query_share: Callable[[Any], float] | None = None
    most: int | None = None


@dataclass
class Speed:
    """Measured times.

    Attributes
    ----------
    inference_s, query_s : float
        Seconds per 1,000 images.
    latencies_s : list of float
        Of single images, from image to answer.
    """

    inference_s: float
    query_s: float
    latencies_s: list[float] = field(default_factory=list)

    def __repr__(self) -> str:
        facts = {"inference_s": self.inference_s, "query_s": self.query_s}
        return short_repr(self, **facts, latencies=len(self.latencies_s))

    @property
    def total_s(self) -> float:
        """Seconds per 1,000 images."""
        return self.inference_s + self.query_s

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; latencies in milliseconds, None where none was measured."""
        p50, p95 = (
            (1000 * float(value) for value in np.percentile(self.latencies_s, [50, 95]))
            if self.latencies_s
            else (None, None)
        )
        return {
            "inference_s_per_1000": self.inference_s,
            "query_s_per_1000": self.query_s,
            "total_s_per_1000": self.total_s,
            "p50_ms": p50,
            "p95_ms": p95,
        }


def measure_speed(
    answerers: Mapping[str, Answerer],
    images: list[Any],
    singles: int = 0,
    *,
    most_s: float | None = None,
    most_singles_s: float | None = None,
) -> tuple[dict[str, Speed], int]:
    """Measure each side by itself, behind a warm-up that does not count.

    The sides take turns, a part of the images each time, or one single image, so that a drift of the machine
    touches all of them. Those that share their `infer` share its time: it runs once a turn.

    Parameters
    ----------
    answerers : mapping of str to Answerer
    images : list
        At least one, all of which can be decoded.
    singles : int
        Of how many images the latency is measured, one by one; 0 of none.
    most_s, most_singles_s : float, optional
        Seconds that the parts, with the warm-up, and the single images may take, as far as the ones before
        tell. A part is timed all the same, and a few single images.

    Returns
    -------
    speeds : dict of str to Speed
    timed : int
        How many of the images were timed together.
    """
    started = default_timer()
    _turn(answerers, images[:2])
    totals = {name: [0.0, 0.0] for name in answerers}
    counts = dict.fromkeys(answerers, 0)
    size = -(-len(images) // _TURNS) if most_s is None else _PART
    timed, took = 0, 0.0
    for start in range(0, len(images), size):
        begun = default_timer()
        if timed and most_s is not None and begun - started + took > most_s:
            break
        part = images[start : start + size]
        timed += len(part)
        for name, (given, infer_s, query_s) in _turn(answerers, part, cut=most_s is not None).items():
            counts[name] += given
            totals[name][0] += infer_s
            totals[name][1] += query_s
        took = default_timer() - begun
    latencies: dict[str, list[float]] = {name: [] for name in answerers}
    started = default_timer()
    if singles:
        _turn(answerers, images[:1])  # one alone may take another way than several
    for place, image in enumerate(images[:singles]):
        begun = default_timer()
        late = most_singles_s is not None and begun - started + took > most_singles_s
        if late and place >= _LEAST_SINGLES:
            break
        for name, (_, infer_s, query_s) in _turn(answerers, [image]).items():
            latencies[name].append(infer_s + query_s)
        took = default_timer() - begun
    speeds = {
        name: Speed(1000 * infer_s / counts[name], 1000 * query_s / counts[name], latencies[name])
        for name, (infer_s, query_s) in totals.items()
    }
    return speeds, timed


def _turn(
    answerers: Mapping[str, Answerer], images: list[Any], *, cut: bool = False
) -> dict[str, tuple[int, float, float]]:
    """Give each side the images, or as many as it takes; return how many, and both halves' seconds."""
    made: dict[tuple[Callable[[list[Any]], Any], int], tuple[Any, float]] = {}
    found = {}
    for name, side in answerers.items():
        given = images[: side.most] if cut else images
        key = (side.infer, len(given))
        if key not in made:
            made[key] = _timed(side.infer, given)
        vectors, seconds = made[key]
        own = seconds * side.query_share(vectors) if side.query_share is not None else 0.0
        found[name] = len(given), seconds - own, own + _timed(side.query, vectors)[1]
    return found


def median_times(
    ways: Mapping[str, Callable[[Any], Any]], turns: Sequence[Any], warm_up: int = 2
) -> dict[str, float]:
    """Measure several ways to deal with the same things, side by side.

    They take turns, so that a drift of the machine touches all of them, behind a warm-up that does not count.

    Parameters
    ----------
    ways : mapping of str to callable
    turns : sequence of (list or ndarray)
        At least one; what each way is given, in turn.
    warm_up : int
        Things that each way is given first.

    Returns
    -------
    dict of str to float
        Seconds for one thing: the median of the turns.
    """
    for way in ways.values():
        way(turns[0][:warm_up])
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for given in turns:
        for name, way in ways.items():
            taken[name].append(_timed(way, given)[1] / len(given))
    return {name: float(np.median(seconds)) for name, seconds in taken.items()}


def open_clip_answerer(encoder: StagedEncoder, query: Callable[[FloatArray], Any]) -> Answerer:
    """Run the library's own image tower as it comes, open_clip's or timm's: float32, the model's own size.

    Parameters
    ----------
    encoder : StagedEncoder
        Whose model and weights it has.
    query : callable
        Vectors to answers.
    """
    import torch

    tower = encoder._tower
    visual = tower.design.library_module(encoder.seed).to(encoder.device)
    transform = tower.source.transform()

    def infer(some: list[Any]) -> FloatArray:
        parts = []
        with torch.inference_mode():
            for start in range(0, len(some), OPEN_CLIP_BATCH):
                raws = [RawImage(0, image) for image in some[start : start + OPEN_CLIP_BATCH]]
                inputs = torch.stack(
                    [transform(decode(raw, max_pixels=encoder.max_pixels).image) for raw in raws]
                )
                made = visual(inputs.to(encoder.device))
                pooled = made[0] if isinstance(made, tuple) else made  # beside tokens
                parts.append(pooled.float().cpu().numpy())
        return np.concatenate(parts)

    return Answerer(infer, query, most=OPEN_CLIP_BATCH)


def _timed(work: Callable[[Given], Made], given: Given) -> tuple[Made, float]:
    started = default_timer()
    made = work(given)
    return made, default_timer() - started
