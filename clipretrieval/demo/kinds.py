"""The ten kinds of thing that the demo draws, as polygons around the origin.

Coordinates are in units of the thing's radius: x to the right and y downwards, both about -1 … 1. No two
things of a kind are cut alike: a house is wide or narrow, a flower has five to eight petals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["KINDS", "TRAINED_KINDS", "UNSEEN_KINDS", "Shape", "outline"]

Points: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Shape:
    """One polygon of a thing.

    Attributes
    ----------
    points : ndarray of float64, shape (n, 2)
        Corners as (x, y).
    role : {"body", "hole", "accent"}
        A body shows the thing's colour and texture, a hole cuts from the bodies before it, an accent lies on
        top in another shade.
    """

    points: Points
    role: Literal["body", "hole", "accent"] = "body"


def outline(kind: str, rng: np.random.Generator) -> list[Shape]:
    """Cut a thing.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    rng : numpy.random.Generator
        Decides its proportions.

    Returns
    -------
    list of Shape
        From back to front; all bodies and holes come before the accents.
    """
    return sorted(_CUT[kind](rng), key=lambda part: part.role == "accent")


def _polygon(*corners: tuple[float, float]) -> Points:
    return np.array(corners, dtype=np.float64)


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return _polygon((left, top), (right, top), (right, bottom), (left, bottom))


def _ellipse(
    x: float,
    y: float,
    width: float,
    height: float,
    *,
    turn: float = 0.0,
    start: float = 0.0,
    end: float = 1.0,
) -> Points:
    """Return an ellipse of half axes `width` and `height`, or its arc from `start` to `end` of a turn."""
    angles = 2 * np.pi * np.linspace(start, end, 20, endpoint=end - start < 1)
    flat = np.stack([width * np.cos(angles), height * np.sin(angles)], axis=1)
    return np.asarray(flat @ _rotation(turn).T + (x, y))


def _rotation(angle: float) -> Points:
    """Return the 2×2 matrix that turns by `angle`, in radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def _house(rng: np.random.Generator) -> list[Shape]:
    wide, eaves, overhang = rng.uniform(0.6, 0.85), rng.uniform(-0.25, 0.05), rng.uniform(0.05, 0.2)
    door = rng.uniform(-0.35, 0.1)
    parts = [
        Shape(_box(-wide, eaves, wide, 0.9)),
        Shape(_polygon((-wide - overhang, eaves), (rng.uniform(-0.2, 0.2), -0.95), (wide + overhang, eaves))),
        Shape(_box(door, 0.35, door + 0.28, 0.9), "accent"),
        Shape(_box(door + 0.38, eaves + 0.15, door + 0.63, eaves + 0.4), "accent"),
    ]
    if rng.random() < 0.5:
        parts.insert(0, Shape(_box(0.35 * wide, -0.85, 0.35 * wide + 0.2, eaves)))
    return parts


def _tree(rng: np.random.Generator) -> list[Shape]:
    trunk = rng.uniform(0.08, 0.15)
    parts = [Shape(_box(-trunk, 0.3, trunk, 1.0), "accent")]
    if rng.random() < 0.5:  # a conifer
        tiers = int(rng.integers(2, 4))
        for tier, top in enumerate(np.linspace(-1.0, -0.1, tiers + 1)[:-1]):
            half = rng.uniform(0.4, 0.5) + 0.3 * tier / tiers
            parts.append(Shape(_polygon((-half, top + 1.5 / tiers), (0.0, top), (half, top + 1.5 / tiers))))
    else:
        crown = rng.uniform(0.45, 0.55)
        parts += [
            Shape(_ellipse(-0.4, -0.1, crown, crown * 0.9)),
            Shape(_ellipse(0.4, -0.1, crown, crown * 0.9)),
            Shape(_ellipse(0.0, -0.5, crown, crown)),
        ]
    return parts


def _fish(rng: np.random.Generator) -> list[Shape]:
    deep, fork = rng.uniform(0.35, 0.55), rng.uniform(0.7, 0.85)
    return [
        Shape(_polygon((0.3, 0.0), (1.0, -rng.uniform(0.4, 0.6)), (fork, 0.0), (1.0, rng.uniform(0.4, 0.6)))),
        Shape(_polygon((-0.4, -deep * 0.8), (0.1, -deep - rng.uniform(0.2, 0.35)), (0.35, -deep * 0.5))),
        Shape(_ellipse(-0.25, 0.0, 0.75, deep)),
        Shape(_ellipse(-0.65, -0.1, 0.09, 0.09), "accent"),
        Shape(_polygon((-0.2, 0.02), (0.15, 0.02 + rng.uniform(0.15, 0.25)), (0.12, -0.08)), "accent"),
    ]


def _flower(rng: np.random.Generator) -> list[Shape]:
    petals, start = int(rng.integers(5, 9)), rng.uniform(0, 2 * np.pi)
    long, wide = rng.uniform(0.28, 0.34), 1.15 / petals + rng.uniform(0.0, 0.05)
    parts = [Shape(_box(-0.05, 0.0, 0.05, 1.0), "accent")]
    parts.append(Shape(_ellipse(0.22, 0.75, 0.22, 0.09, turn=-0.5), "accent"))
    for turn in start + 2 * np.pi * np.arange(petals) / petals:
        x, y = 0.38 * np.cos(turn), -0.3 + 0.38 * np.sin(turn)
        parts.append(Shape(_ellipse(x, y, long, wide, turn=turn)))
    parts.append(Shape(_ellipse(0.0, -0.3, 0.2, 0.2), "accent"))
    return parts


def _star(rng: np.random.Generator) -> list[Shape]:
    points, inner = int(rng.integers(5, 7)), rng.uniform(0.38, 0.5)
    angles = -np.pi / 2 + np.pi * np.arange(2 * points) / points
    radii = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return [Shape(np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1))]


def _key(rng: np.random.Generator) -> list[Shape]:
    bow, thick = rng.uniform(0.34, 0.42), rng.uniform(0.09, 0.13)
    parts = [
        Shape(_ellipse(0.0, -0.6, bow, bow * rng.uniform(0.85, 1.1))),
        Shape(_ellipse(0.0, -0.6, bow * 0.5, bow * 0.5), "hole"),
        Shape(_box(-thick, -0.6 + bow * 0.8, thick, 1.0)),
    ]
    teeth = np.linspace(0.45, 0.85, int(rng.integers(2, 4)))
    return parts + [Shape(_box(0.0, top - 0.05, rng.uniform(0.35, 0.5), top + 0.1)) for top in teeth]


def _boat(rng: np.random.Generator) -> list[Shape]:
    deck, keel = rng.uniform(0.3, 0.45), rng.uniform(0.5, 0.7)
    mast = rng.uniform(-0.15, 0.1)
    return [
        Shape(_polygon((-0.95, deck), (0.95, deck), (keel, 0.9), (-keel, 0.9))),
        Shape(
            _polygon((mast + 0.08, -0.9), (mast + 0.08, deck - 0.12), (rng.uniform(0.7, 0.9), deck - 0.12))
        ),
        Shape(
            _polygon((mast - 0.08, -0.7), (mast - 0.08, deck - 0.12), (-rng.uniform(0.5, 0.75), deck - 0.12))
        ),
        Shape(_box(mast - 0.04, -1.0, mast + 0.04, deck), "accent"),
    ]


def _mug(rng: np.random.Generator) -> list[Shape]:
    top, taper, foot = rng.uniform(0.5, 0.6), rng.uniform(0.0, 0.12), rng.uniform(0.65, 0.85)
    ear = rng.uniform(0.36, 0.46)
    return [
        Shape(_ellipse(0.5, 0.05, ear, ear)),
        Shape(_ellipse(0.5, 0.05, ear * 0.6, ear * 0.6), "hole"),
        Shape(
            _polygon(
                (-0.3 - top, -0.7), (top - 0.1, -0.7), (top - 0.1 - taper, foot), (-0.3 - top + taper, foot)
            )
        ),
        Shape(_ellipse(-0.2, -0.7, top + 0.1, 0.14), "accent"),
    ]


def _mushroom(rng: np.random.Generator) -> list[Shape]:
    brim, stalk = rng.uniform(-0.05, 0.15), rng.uniform(0.18, 0.28)
    parts = [
        Shape(_polygon((-stalk, brim), (stalk, brim), (stalk * 1.4, 0.95), (-stalk * 1.4, 0.95)), "accent"),
        Shape(_ellipse(0.0, brim, rng.uniform(0.8, 0.98), rng.uniform(0.8, 0.98), start=0.5, end=1.0 - 1e-9)),
    ]
    for x in (-0.5, 0.02, 0.48):
        size = rng.uniform(0.09, 0.15)
        parts.append(Shape(_ellipse(x, brim - rng.uniform(0.22, 0.45), size, size), "accent"))
    return parts


def _butterfly(rng: np.random.Generator) -> list[Shape]:
    upper, lower, lift = rng.uniform(0.42, 0.52), rng.uniform(0.3, 0.38), rng.uniform(0.5, 0.75)
    parts = []
    for side in (-1.0, 1.0):
        parts += [
            Shape(_ellipse(side * 0.52, -0.32, upper, 0.34, turn=-side * lift)),
            Shape(_ellipse(side * 0.42, 0.4, lower, 0.27, turn=side * lift)),
            Shape(_ellipse(side * 0.55, -0.35, 0.13, 0.1, turn=-side * lift), "accent"),
            Shape(_polygon((side * 0.02, -0.5), (side * 0.3, -0.95), (side * 0.22, -0.98)), "accent"),
        ]
    parts.append(Shape(_ellipse(0.0, 0.05, 0.09, 0.6), "accent"))
    return parts


_CUT: dict[str, Callable[[np.random.Generator], list[Shape]]] = {
    "boat": _boat,
    "butterfly": _butterfly,
    "fish": _fish,
    "flower": _flower,
    "house": _house,
    "key": _key,
    "mug": _mug,
    "mushroom": _mushroom,
    "star": _star,
    "tree": _tree,
}

KINDS: tuple[str, ...] = tuple(_CUT)
"""Every kind of thing that can be drawn, sorted."""

UNSEEN_KINDS: tuple[str, ...] = ("butterfly", "mushroom")
"""The two kinds that the demo's model has never seen, neither drawn nor named."""

TRAINED_KINDS: tuple[str, ...] = tuple(kind for kind in KINDS if kind not in UNSEEN_KINDS)
"""The eight kinds that the demo's model was trained on."""
