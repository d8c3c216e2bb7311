"""Which design a model has."""

from __future__ import annotations

from clipretrieval._util.dependencies import require_torch
from clipretrieval.encoding.towers.design import Design
from clipretrieval.encoding.towers.modified_resnet import ModifiedResNetDesign
from clipretrieval.encoding.weights.model_source import ModelSource

__all__ = ["design_of"]


def design_of(source: ModelSource) -> Design:
    """Return what is known of a model's image tower before its weights are read.

    Raises
    ------
    InvalidInputError
        If the tower is not supported; the message shows how to bring an encoder of one's own.
    WeightsUnavailableError
        If the configuration describes no tower.
    """
    if source.is_resnet:
        return ModifiedResNetDesign(source)
    require_torch("a tower other than CLIP's ResNets")
    from clipretrieval.encoding.towers.module_design import ModuleDesign

    return ModuleDesign(source)
