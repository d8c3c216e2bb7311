"""Surfaces computed from noise and waves: twelve kinds, some of them near one another.

Scale, direction, warp, two colours, contrast, slanting light, blur and grain vary from image to image.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter
from scipy.spatial import cKDTree

__all__ = ["TEXTURES", "draw_texture"]

Field = npt.NDArray[np.float64]
Rng = np.random.Generator

SUPERSAMPLING = 2


def draw_texture(kind: str, rng: Rng, size: int = 64) -> npt.NDArray[np.uint8]:
    """Compute one surface; return RGB of shape (size, size, 3)."""
    side = size * SUPERSAMPLING
    steps = np.linspace(-1, 1, side)
    x, y = np.meshgrid(steps, steps)
    angle, scale = rng.uniform(0, 2 * np.pi), rng.uniform(2.5, 6.0)
    u, v = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
    warp = rng.uniform(0, 0.06)
    u, v = u + warp * spectral_noise(side, 3.0, rng), v + warp * spectral_noise(side, 3.0, rng)
    field = TEXTURES[kind](scale * u + rng.uniform(0, 9), scale * v + rng.uniform(0, 9), rng)
    field = (field - field.min()) / max(float(np.ptp(field)), 1e-9)
    one, other = rng.uniform(0, 255, (2, 3))
    while np.abs(one - other).sum() < 120:
        other = rng.uniform(0, 255, 3)
    pixels = one + field[..., None] * (other - one)
    light = rng.uniform(0, 2 * np.pi)
    slant = 1 + rng.uniform(0, 0.45) * (x * np.cos(light) + y * np.sin(light))
    image = Image.fromarray(np.clip(pixels * slant[..., None], 0, 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5))).reduce(SUPERSAMPLING)
    found = np.asarray(image, dtype=np.float64)
    found = (found - 128) * rng.uniform(0.5, 1.0) + 128 + rng.uniform(-25, 25)
    return np.clip(found + rng.normal(0, rng.uniform(4, 16), found.shape), 0, 255).astype(np.uint8)


def spectral_noise(side: int, power: float, rng: Rng, flatten: float = 1.0) -> Field:
    """Return noise whose amplitude falls as frequency^−power/2, mean 0 and variance 1, (side, side)."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None] * flatten, np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) * frequency ** (-power / 2)
    found = np.fft.irfft2(spectrum, s=(side, side))
    return (found - found.mean()) / found.std()


def _stripes(u: Field, v: Field, rng: Rng) -> Field:
    return (np.sin(np.pi * u) > rng.uniform(-0.4, 0.4)).astype(np.float64)


def _waves(u: Field, v: Field, rng: Rng) -> Field:
    bent = u + rng.uniform(0.25, 0.5) * np.sin(np.pi * v * rng.uniform(0.4, 0.9))
    return (np.sin(np.pi * bent) > rng.uniform(-0.4, 0.4)).astype(np.float64)


def _checks(u: Field, v: Field, rng: Rng) -> Field:
    return ((np.floor(u) + np.floor(v)) % 2).astype(np.float64)


def _plaid(u: Field, v: Field, rng: Rng) -> Field:
    cut = rng.uniform(-0.2, 0.5)
    return (np.sin(np.pi * u) > cut) * 0.5 + (np.sin(np.pi * v) > cut) * 0.5


def _dots(u: Field, v: Field, rng: Rng) -> Field:
    return (np.hypot(u % 1 - 0.5, v % 1 - 0.5) < rng.uniform(0.22, 0.36)).astype(np.float64)


def _rings(u: Field, v: Field, rng: Rng) -> Field:
    x, y = u % 1.5 - 0.75, v % 1.5 - 0.75
    outer = rng.uniform(0.5, 0.65)
    distance = np.hypot(x, y)
    return ((distance < outer) & (distance > outer - rng.uniform(0.15, 0.3))).astype(np.float64)


def _bricks(u: Field, v: Field, rng: Rng) -> Field:
    row = np.floor(v)
    long, joint = rng.uniform(1.8, 2.6), rng.uniform(0.1, 0.18)
    along = (u + long / 2 * (row % 2)) % long
    tone = np.sin(37.0 * row + 91.0 * np.floor((u + long / 2 * (row % 2)) / long))
    return np.where((along > joint) & (v % 1 > joint), 0.8 + 0.2 * tone, 0.0)


def _wood(u: Field, v: Field, rng: Rng) -> Field:
    center = rng.uniform(2, 12, 2)
    distance = np.hypot(u - center[0], (v - center[1]) * rng.uniform(0.2, 0.5))
    fibre = 0.15 * spectral_noise(len(u), 2.0, rng)
    return (distance * rng.uniform(0.8, 1.4) + fibre) % 1.0


def _cells(u: Field, v: Field, rng: Rng) -> Field:
    points = rng.uniform((u.min(), v.min()), (u.max(), v.max()), (int(rng.integers(25, 90)), 2))
    near, _ = cKDTree(points).query(np.stack([u.ravel(), v.ravel()], axis=1), k=2)
    return np.minimum(near[:, 1] - near[:, 0], 0.35).reshape(u.shape)


def _grain(u: Field, v: Field, rng: Rng) -> Field:
    return spectral_noise(len(u), rng.uniform(0.6, 1.1), rng)


def _clouds(u: Field, v: Field, rng: Rng) -> Field:
    return spectral_noise(len(u), rng.uniform(2.6, 3.4), rng)


def _marble(u: Field, v: Field, rng: Rng) -> Field:
    return np.abs(np.sin(0.5 * np.pi * u + rng.uniform(1.2, 2.2) * spectral_noise(len(u), 3.0, rng)))


TEXTURES: dict[str, Callable[[Field, Field, Rng], Field]] = {
    "bricks": _bricks,
    "cells": _cells,
    "checks": _checks,
    "clouds": _clouds,
    "dots": _dots,
    "grain": _grain,
    "marble": _marble,
    "plaid": _plaid,
    "rings": _rings,
    "stripes": _stripes,
    "waves": _waves,
    "wood": _wood,
}
