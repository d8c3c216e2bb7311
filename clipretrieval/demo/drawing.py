"""From a scene to an image: backdrop, scraps, the thing, bars across it, light and noise."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from clipretrieval._util.checks import check_int
from clipretrieval.demo.kinds import outline
from clipretrieval.demo.scene import COLOURS, Scene

__all__ = ["render"]

_SUPERSAMPLING = 2
_SMALLEST = 16
_LARGEST = 4096

Colour: TypeAlias = npt.NDArray[np.float64]
Field: TypeAlias = npt.NDArray[np.float32]


def check_side(size: int) -> int:
    """Return an image's height and width in pixels.

    Raises
    ------
    InvalidInputError
        If it is no whole number from 16 to 4096.
    """
    return check_int(size, "size", least=_SMALLEST, most=_LARGEST)


def render(scene: Scene, size: int = 64) -> Image.Image:
    """Draw a scene.

    Parameters
    ----------
    scene : Scene
    size : int
        Height and width in pixels, at least 16.

    Returns
    -------
    PIL.Image.Image
        RGB, `size` × `size`; the same for the same scene and size.

    Raises
    ------
    InvalidInputError
        If `size` is below 16.
    """
    size = check_side(size)
    rng = np.random.default_rng(scene.detail)
    colour, backdrop = _vary(scene.colour, rng), _pale(_vary(scene.backdrop, rng))
    side = size * _SUPERSAMPLING
    image = _surface(scene.backdrop_texture, backdrop, side, rng)
    pen = ImageDraw.Draw(image)
    for _ in range(scene.clutter):
        _scrap(pen, side, rng)
    _thing(image, scene, colour, rng)
    for _ in range(scene.occluders):
        _bar(pen, scene, side, rng)
    return _expose(image.reduce(_SUPERSAMPLING), scene.noise, rng)


def _vary(name: str, rng: np.random.Generator) -> Colour:
    return np.clip(COLOURS[name] + rng.normal(0.0, 10.0, 3), 0, 255)


def _pale(colour: Colour) -> Colour:
    """Mix a colour with white: things stand out from what lies behind them."""
    return colour + 0.5 * (255.0 - colour)


def _ink(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in np.clip(colour, 0, 255))
    return red, green, blue


def _other_shade(colour: Colour, strength: float) -> Colour:
    """Darken a light colour and lighten a dark one."""
    target = 0.0 if colour.mean() > 115 else 255.0
    return colour + strength * (target - colour)


def _surface(texture: str, colour: Colour, side: int, rng: np.random.Generator) -> Image.Image:
    """Fill a square of `side` pixels with one of `TEXTURES`."""
    if texture == "plain":
        return Image.new("RGB", (side, side), _ink(colour))
    mix = _pattern(texture, side, rng) * rng.uniform(0.2, 0.45)
    other = _other_shade(colour, 1.0).astype(np.float32)
    pixels = colour.astype(np.float32) + mix[..., None] * (other - colour.astype(np.float32))
    return Image.fromarray(pixels.astype(np.uint8))


def _pattern(texture: str, side: int, rng: np.random.Generator) -> Field:
    """Return how much of the other shade each pixel takes, float32 in [0, 1], shape (side, side)."""
    if texture == "blotched":
        coarse = Image.fromarray(rng.integers(0, 256, (7, 7), dtype=np.uint8))
        smooth = coarse.resize((side, side), Image.Resampling.BICUBIC)
        return np.asarray(smooth, dtype=np.float32) / np.float32(255)
    angle = rng.uniform(0, np.pi)
    steps = np.linspace(0, 1, side, dtype=np.float32)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    across: Field = cos * steps[None, :] + sin * steps[:, None]
    along: Field = cos * steps[:, None] - sin * steps[None, :]
    if texture == "shaded":
        shade: Field = (across - across.min()) / np.ptp(across)
        return shade
    waves, first_phase, second_phase = rng.uniform((6, 0, 0), (11, 1, 1)).astype(np.float32)
    turn = np.float32(2 * np.pi)
    first, second = (
        np.sin(turn * (waves * across + first_phase)),
        np.sin(turn * (waves * along + second_phase)),
    )
    if texture == "striped":
        lit = first > 0
    elif texture == "chequered":
        lit = first * second > 0
    else:  # dotted
        lit = first + second > 0.9
    return np.asarray(lit, dtype=np.float32)


def _scrap(pen: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
    """Drop a small disc, triangle or stick anywhere."""
    x, y = rng.uniform(0, side, 2)
    reach = rng.uniform(0.04, 0.11) * side
    ink = _ink(rng.uniform(20, 240, 3))
    form = rng.integers(3)
    if form == 0:
        pen.ellipse((x - reach, y - reach, x + reach, y + reach), fill=ink)
        return
    turn = rng.uniform(0, 2 * np.pi)
    if form == 1:
        angles = turn + np.array([0.0, 2.1, 4.2])
        pen.polygon([(x + reach * np.cos(a), y + reach * np.sin(a)) for a in angles], fill=ink)
        return
    dx, dy = 1.8 * reach * np.cos(turn), 1.8 * reach * np.sin(turn)
    pen.line((x - dx, y - dy, x + dx, y + dy), fill=ink, width=max(1, side // 40))


def _thing(image: Image.Image, scene: Scene, colour: Colour, rng: np.random.Generator) -> None:
    """Draw the thing itself: textured bodies with holes, then accents."""
    side = image.width
    cos, sin = np.cos(scene.angle), np.sin(scene.angle)
    stretch = rng.uniform(0.85, 1.15, 2) * (-1.0 if scene.mirrored else 1.0, 1.0)
    turned = np.array([[cos, -sin], [sin, cos]]) * stretch * scene.radius
    parts = [
        (
            part.role,
            [tuple(point) for point in ((part.points @ turned.T + (scene.x, scene.y)) * side).tolist()],
        )
        for part in outline(scene.kind, rng)
    ]
    mask = Image.new("L", image.size)
    stencil = ImageDraw.Draw(mask)
    for role, corners in parts:
        if role != "accent":
            stencil.polygon(corners, fill=255 if role == "body" else 0)
    image.paste(_surface(scene.texture, colour, side, rng), mask=mask)
    pen, accent = ImageDraw.Draw(image), _ink(_other_shade(colour, rng.uniform(0.45, 0.75)))
    for role, corners in parts:
        if role == "accent":
            pen.polygon(corners, fill=accent)


def _bar(pen: ImageDraw.ImageDraw, scene: Scene, side: int, rng: np.random.Generator) -> None:
    """Lay a bar across the thing, from edge to edge of the image."""
    x, y = np.array([scene.x, scene.y]) + rng.uniform(-0.6, 0.6, 2) * scene.radius
    turn = rng.uniform(0, np.pi)
    dx, dy = 1.5 * np.cos(turn), 1.5 * np.sin(turn)
    ends = ((x - dx) * side, (y - dy) * side, (x + dx) * side, (y + dy) * side)
    pen.line(ends, fill=_ink(rng.uniform(20, 240, 3)), width=int(rng.uniform(0.02, 0.07) * side))


def _expose(image: Image.Image, noise: float, rng: np.random.Generator) -> Image.Image:
    """Change contrast and brightness, and add noise to every pixel."""
    pixels = np.asarray(image, dtype=np.float32)
    light = (pixels - 128) * np.float32(rng.uniform(0.65, 1.1)) + np.float32(128 + rng.uniform(-25, 25))
    grain = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(noise)
    return Image.fromarray(np.clip(light + grain, 0, 255).astype(np.uint8))
