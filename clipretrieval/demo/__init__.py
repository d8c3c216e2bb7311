"""A demonstration that needs nothing else: images drawn here, and a CLIP small enough to ship.

The images show ten kinds of thing and are hard for raw pixels: place, turn, size, colours and textures
vary, scraps lie about, bars cross the thing, and light and noise differ. The model has seen eight of the
kinds, drawn from other seeds. Tests may use the images too: each is decided by a kind and a seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipretrieval._util.lazy import attach
from clipretrieval.demo.drawing import render
from clipretrieval.demo.embedded import FIRST_TRAINING_SEED, demo_model
from clipretrieval.demo.images import draw, draw_many, sample_scenes, write_folders
from clipretrieval.demo.kinds import KINDS, TRAINED_KINDS, UNSEEN_KINDS
from clipretrieval.demo.scene import COLOURS, TEXTURES, Scene, sample_scene

if TYPE_CHECKING:
    from clipretrieval.demo.demo import DemoResult, OnlineStep, run_demo

__all__ = [
    "COLOURS",
    "FIRST_TRAINING_SEED",
    "KINDS",
    "TEXTURES",
    "TRAINED_KINDS",
    "UNSEEN_KINDS",
    "DemoResult",
    "OnlineStep",
    "Scene",
    "demo_model",
    "draw",
    "draw_many",
    "render",
    "run_demo",
    "sample_scene",
    "sample_scenes",
    "write_folders",
]

__getattr__, __dir__ = attach(__name__, {"demo": ["DemoResult", "OnlineStep", "run_demo"]})  # torch
