"""What an image shows, decided before it is drawn; and the captions that tell it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from clipretrieval._util.checks import check_choice
from clipretrieval.demo.kinds import KINDS

__all__ = ["COLOURS", "TEXTURES", "Scene", "sample_scene"]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 45, 40),
    "orange": (235, 135, 35),
    "yellow": (235, 210, 60),
    "green": (60, 150, 65),
    "cyan": (70, 190, 200),
    "blue": (50, 85, 190),
    "purple": (130, 65, 165),
    "pink": (235, 135, 175),
    "brown": (120, 80, 50),
    "white": (235, 235, 230),
    "grey": (135, 135, 135),
    "black": (40, 40, 45),
}
"""Colours by name, as RGB in 0 … 255; each image varies them a little."""

TEXTURES: dict[str, float] = {
    "plain": 0.3,
    "shaded": 0.3,
    "striped": 0.1,
    "chequered": 0.1,
    "dotted": 0.1,
    "blotched": 0.1,
}
"""How surfaces are filled, and what share of them is."""

_TEMPLATES = (
    "a {kind}",
    "a {size} {kind}",
    "a {colour} {kind}",
    "a {size} {colour} {kind}",
    "a {colour} {kind} on a {backdrop} background",
    "a {texture} {kind}",
    "a {kind} on a {backdrop_texture} background",
    "a {texture} {colour} {kind} on a {backdrop_texture} {backdrop} background",
)


@dataclass(frozen=True)
class Scene:
    """Everything that decides an image, whatever its size.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    colour, backdrop : str
        Names in `COLOURS`; never the same.
    texture, backdrop_texture : str
        Of the thing and of what lies behind it; each in `TEXTURES`.
    x, y : float
        The thing's centre, in sides of the image from its upper left corner.
    radius : float
        Half the thing's extent, in sides of the image; 0.32 to 0.45.
    angle : float
        Turn in radians, -0.4 to 0.4.
    mirrored : bool
        Whether left and right change places.
    clutter, occluders : int
        How many scraps lie behind the thing, and how many bars across it.
    noise : float
        Standard deviation of each pixel's noise, in grey levels of 0 … 255.
    detail : int
        Seed of what has no name here: proportions, the places of the scraps, the noise.
    """

    kind: str
    colour: str
    backdrop: str
    texture: str
    backdrop_texture: str
    x: float
    y: float
    radius: float
    angle: float
    mirrored: bool
    clutter: int
    occluders: int
    noise: float
    detail: int = field(repr=False)

    @property
    def size(self) -> str:
        """``"small"`` below a radius of 0.36, ``"large"`` above 0.41, else ``"medium"``."""
        return "small" if self.radius < 0.36 else "large" if self.radius > 0.41 else "medium"

    def captions(self) -> list[str]:
        """Return eight true sentences about the image, the first naming the kind alone."""
        words = {**vars(self), "size": self.size}
        return [_with_article(template.format(**words)) for template in _TEMPLATES]


def sample_scene(kind: str, rng: np.random.Generator) -> Scene:
    """Decide at random what an image of a kind shows.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    rng : numpy.random.Generator

    Returns
    -------
    Scene

    Raises
    ------
    InvalidInputError
        If `kind` is not one of `KINDS`.
    """
    check_choice(kind, "kind", KINDS)
    colour, backdrop = rng.choice(list(COLOURS), size=2, replace=False).tolist()
    texture, backdrop_texture = rng.choice(list(TEXTURES), size=2, p=list(TEXTURES.values())).tolist()
    radius = float(rng.uniform(0.32, 0.45))
    # Up to a tenth of the thing may lie outside the image.
    x, y = rng.uniform(0.9 * radius, 1 - 0.9 * radius, size=2).tolist()
    return Scene(
        kind=kind,
        colour=colour,
        backdrop=backdrop,
        texture=texture,
        backdrop_texture=backdrop_texture,
        x=x,
        y=y,
        radius=radius,
        angle=float(rng.uniform(-0.4, 0.4)),
        mirrored=bool(rng.random() < 0.5),
        clutter=int(rng.integers(2, 6)),
        occluders=int(rng.integers(0, 2)),
        noise=float(rng.uniform(3.0, 12.0)),
        detail=int(rng.integers(2**32)),
    )


def _with_article(sentence: str) -> str:
    """Write "an" before a vowel: "an orange star"."""
    words = sentence.split()
    for place, word in enumerate(words[:-1]):
        if word == "a" and words[place + 1][0] in "aeiou":
            words[place] = "an"
    return " ".join(words)
