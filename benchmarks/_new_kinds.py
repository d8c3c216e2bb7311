"""Drawn things of kinds that the demo's model has never seen, in drawings that it has not seen either.

Ten kinds, none of them among `clipretrieval.demo.KINDS`; place, turn, size, proportions, colours, backdrop,
scraps, a bar across the thing, light and noise vary from image to image.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

__all__ = ["NEW_KINDS", "draw_new_kind"]

Points = npt.NDArray[np.float64]
Rng = np.random.Generator

SUPERSAMPLING = 3


def draw_new_kind(kind: str, rng: Rng, size: int = 64) -> npt.NDArray[np.uint8]:
    """Draw one thing; return RGB of shape (size, size, 3)."""
    side = size * SUPERSAMPLING
    ground, ink = _two_colours(rng)
    image = Image.fromarray(_ground(ground, side, rng))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(1, 6))):
        _scrap(pen, side, rng)
    radius = rng.uniform(0.26, 0.42) * side
    center = rng.uniform(radius, side - radius, 2)
    angle, stretch = rng.uniform(-0.5, 0.5), rng.uniform(0.8, 1.2, 2)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    mask = Image.new("L", (side, side))
    stencil = ImageDraw.Draw(mask)
    for inside, corners in NEW_KINDS[kind](rng):
        placed = (corners * stretch) @ turn * radius + center
        stencil.polygon([(float(x), float(y)) for x, y in placed], fill=255 if inside else 0)
    image.paste(Image.fromarray(_ground(ink, side, rng)), mask=mask)
    if rng.random() < 0.5:
        start, end = rng.uniform(0, side, (2, 2))
        pen.line([*start, *end], fill=_ink(rng.uniform(0, 255, 3)), width=int(rng.uniform(0.02, 0.06) * side))
    pixels = np.asarray(image.reduce(SUPERSAMPLING), dtype=np.float64)
    lit = (pixels - 128) * rng.uniform(0.6, 1.1) + 128 + rng.uniform(-30, 30)
    return np.clip(lit + rng.normal(0, rng.uniform(3, 14), pixels.shape), 0, 255).astype(np.uint8)


def _two_colours(rng: Rng) -> tuple[Points, Points]:
    """Return two colours that can be told apart."""
    while True:
        one, other = rng.uniform(15, 240, (2, 3))
        if np.abs(one - other).sum() > 170:
            return one, other


def _ground(colour: Points, side: int, rng: Rng) -> npt.NDArray[np.uint8]:
    """Fill a square: plain, with blotches, or from light to dark."""
    form = rng.integers(3)
    shade = np.zeros((side, side))
    if form == 1:
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8))
        shade = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)) / 255.0 - 0.5
    elif form == 2:
        angle = rng.uniform(0, 2 * np.pi)
        across = np.linspace(-0.5, 0.5, side)
        shade = np.cos(angle) * across[None, :] + np.sin(angle) * across[:, None]
    return np.clip(colour + shade[..., None] * rng.uniform(30, 110), 0, 255).astype(np.uint8)


def _scrap(pen: ImageDraw.ImageDraw, side: int, rng: Rng) -> None:
    """Drop a small polygon of three to five corners anywhere."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 6))))
    corners = rng.uniform(0, side, 2) + rng.uniform(0.04, 0.1) * side * np.stack(
        [np.cos(angles), np.sin(angles)], axis=1
    )
    pen.polygon([(float(x), float(y)) for x, y in corners], fill=_ink(rng.uniform(0, 255, 3)))


def _ink(colour: Points) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in colour)
    return red, green, blue


def _disc(
    x: float, y: float, width: float, height: float, start: float = 0.0, end: float = 2 * np.pi
) -> Points:
    angles = np.linspace(start, end, 40)
    return np.stack([x + width * np.cos(angles), y + height * np.sin(angles)], axis=1)


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


Parts = list[tuple[bool, Points]]
"""Polygons from back to front in units of the radius, x to the right and y downwards; False cuts out."""


def _arrow(rng: Rng) -> Parts:
    head, thick = rng.uniform(0.5, 0.9), rng.uniform(0.12, 0.24)
    return [
        (True, _box(-1, -thick, 1 - head, thick)),
        (True, np.array([(1 - head, -0.65), (1.0, 0.0), (1 - head, 0.65)])),
    ]


def _bolt(rng: Rng) -> Parts:
    lean = rng.uniform(0.1, 0.3)
    corners = [(0.2 + lean, -1), (-0.6, 0.15), (-0.05, 0.1), (-0.2 - lean, 1), (0.6, -0.25), (0.05, -0.2)]
    return [(True, np.array(corners))]


def _bottle(rng: Rng) -> Parts:
    neck, body, shoulder = rng.uniform(0.1, 0.17), rng.uniform(0.34, 0.5), rng.uniform(-0.35, -0.1)
    return [
        (True, _box(-neck, -1, neck, shoulder)),
        (True, _disc(0, shoulder + 0.1, body, 0.35, np.pi, 2 * np.pi)),
        (True, _box(-body, shoulder + 0.1, body, 1)),
        (False, _box(-body, 0.3, body, 0.3 + rng.uniform(0.08, 0.2))),
    ]


def _crescent(rng: Rng) -> Parts:
    return [
        (True, _disc(0, 0, 0.95, 0.95)),
        (False, _disc(rng.uniform(0.3, 0.45), rng.uniform(-0.15, 0.15), 0.78, 0.78)),
    ]


def _gear(rng: Rng) -> Parts:
    teeth, root, hub = int(rng.integers(7, 12)), rng.uniform(0.7, 0.8), rng.uniform(0.22, 0.4)
    angles = 2 * np.pi * np.arange(4 * teeth) / (4 * teeth)
    radii = np.where(np.arange(4 * teeth) % 4 < 2, 1.0, root)
    rim = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    return [(True, rim), (False, _disc(0, 0, hub, hub))]


def _glasses(rng: Rng) -> Parts:
    lens, rim = rng.uniform(0.36, 0.46), rng.uniform(0.08, 0.13)
    parts: Parts = [(True, _box(-0.3, -rim, 0.3, rim))]
    for x in (-0.52, 0.52):
        parts += [(True, _disc(x, 0, lens, lens)), (False, _disc(x, 0, lens - rim, lens - rim))]
    return parts


def _heart(rng: Rng) -> Parts:
    t, point = np.linspace(0, 2 * np.pi, 60), rng.uniform(0.85, 1.1)
    x = np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16 * point
    return [(True, np.stack([0.95 * x, y], axis=1))]


def _hourglass(rng: Rng) -> Parts:
    wide, waist, plate = rng.uniform(0.55, 0.75), rng.uniform(0.05, 0.12), rng.uniform(0.1, 0.18)
    return [
        (True, np.array([(-wide, -0.9), (wide, -0.9), (waist, 0.0), (-waist, 0.0)])),
        (True, np.array([(-waist, 0.0), (waist, 0.0), (wide, 0.9), (-wide, 0.9)])),
        (True, _box(-wide - 0.12, -1, wide + 0.12, -1 + plate)),
        (True, _box(-wide - 0.12, 1 - plate, wide + 0.12, 1)),
    ]


def _ladder(rng: Rng) -> Parts:
    wide, rail, rung = rng.uniform(0.35, 0.5), rng.uniform(0.07, 0.11), rng.uniform(0.05, 0.08)
    parts: Parts = [(True, _box(x - rail, -1, x + rail, 1)) for x in (-wide, wide)]
    steps = np.linspace(-0.8, 0.8, int(rng.integers(4, 7)))
    return parts + [(True, _box(-wide, y - rung, wide, y + rung)) for y in steps]


def _umbrella(rng: Rng) -> Parts:
    wide, stick = rng.uniform(0.85, 1.0), rng.uniform(0.05, 0.08)
    parts: Parts = [(True, _disc(0, -0.1, wide, 0.85, np.pi, 2 * np.pi))]
    parts += [(False, _disc(x * wide, -0.1, wide / 3, 0.14)) for x in (-2 / 3, 0, 2 / 3)]
    hook = rng.uniform(0.18, 0.26)
    return [
        *parts,
        (True, _box(-stick, -0.3, stick, 0.8)),
        (True, _disc(hook - stick, 0.8, hook, hook, 0, np.pi)),
        (False, _disc(hook - stick, 0.8, hook - 2 * stick, hook - 2 * stick, 0, np.pi)),
    ]


NEW_KINDS: dict[str, Callable[[Rng], Parts]] = {
    "arrow": _arrow,
    "bolt": _bolt,
    "bottle": _bottle,
    "crescent": _crescent,
    "gear": _gear,
    "glasses": _glasses,
    "heart": _heart,
    "hourglass": _hourglass,
    "ladder": _ladder,
    "umbrella": _umbrella,
}
