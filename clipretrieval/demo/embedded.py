"""The small CLIP that ships with the package, as a name that encoders take."""

from __future__ import annotations

from pathlib import Path

__all__ = ["FIRST_TRAINING_SEED", "demo_model"]

FIRST_TRAINING_SEED = 20_000
"""The model's training images were drawn with seeds from this one on."""


def demo_model() -> str:
    """Return the embedded model's name, for ``StagedEncoder(demo_model(), stage="late")``.

    Returns
    -------
    str
        ``local-dir:`` and the folder of the package that holds the model, in open_clip's form. It is a
        ModifiedResNet of width 16 for images of 64×64 pixels, trained by ``examples/train_demo_model.py``.
    """
    return f"local-dir:{Path(__file__).with_name('model')}"
