"""Image towers as the modules of the libraries that have them: built, and filled with weights."""

from __future__ import annotations

import copy
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from clipretrieval._util.text import shortened
from clipretrieval.encoding.weights.checkpoints import OPENAI_ONLY, is_openai, read_source
from clipretrieval.encoding.weights.model_source import ModelSource
from clipretrieval.encoding.weights.tensor_fit import check_fit, tell_faults, unfit
from clipretrieval.encoding.weights.tower_tensors import drawn_from
from clipretrieval.errors import WeightsUnavailableError

__all__ = [
    "build_clip",
    "build_module",
    "read_module",
    "wants_quick_gelu",
    "without_classifier",
]

_VISUAL = "visual."
_NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
"""The smallest text tower: open_clip builds image towers with one beside them."""
_BUILT_OF = (
    *("embed_dim", "vision_cfg", "text_cfg"),
    *("init_logit_scale", "init_logit_bias", "nonscalar_logit_scale"),
)


def build_module(source: ModelSource, seed: int = 0, *, quick_gelu: bool = False) -> nn.Module:
    """Build an image tower with random weights, on whatever device torch is told to.

    Raises
    ------
    WeightsUnavailableError
        If the configuration describes none.
    """
    if source.module is not None:
        return copy.deepcopy(getattr(source.module, "visual", source.module))  # type: ignore[no-any-return]
    with drawn_from(seed):
        try:
            if "timm" in source.model_cfg:
                import timm

                module: nn.Module = timm.create_model(source.model_cfg["timm"]["name"])
            else:
                # Built first, so that a seed gives the weights that it gives the whole model's image tower.
                module = build_clip(source.model_cfg | {"text_cfg": _NO_TEXT}, quick_gelu).visual
        except Exception as error:  # fields that the library, of whatever version, does not know
            raise WeightsUnavailableError(
                f"the model_cfg in {source.config} describes no image tower that can be built: {error}"
            ) from error
    return module


def build_clip(model_cfg: dict[str, Any], quick_gelu: bool) -> Any:
    """Build open_clip's model of a configuration, with random weights."""
    import open_clip

    given = {key: model_cfg[key] for key in _BUILT_OF if key in model_cfg}
    given["vision_cfg"] = {**given["vision_cfg"], "timm_model_pretrained": False}
    if model_cfg.get("text_cfg") is _NO_TEXT or not model_cfg.get("custom_text"):
        kind = open_clip.CLIP
    elif "multimodal_cfg" in model_cfg:
        kind, given = open_clip.CoCa, {**given, "multimodal_cfg": model_cfg["multimodal_cfg"]}
    else:
        kind = open_clip.CustomTextCLIP
    return kind(**given, quick_gelu=quick_gelu)


def read_module(source: ModelSource, seed: int = 0) -> nn.Module:
    """Build an image tower and fill it with its weights, in float32 on the CPU, in evaluation mode.

    A classifier behind timm's embedding is left out.

    Parameters
    ----------
    seed : int
        Of random weights, where `source` names none.

    Raises
    ------
    WeightsUnavailableError
        If the weights cannot be fetched or read, or do not fit the model.
    """
    with torch.device("cpu"):
        return _read(source, seed)


def _read(source: ModelSource, seed: int) -> nn.Module:
    if source.module is not None:
        module = build_module(source).cpu()
    elif (state := read_source(source)) is None:
        module = build_module(source, seed, quick_gelu=wants_quick_gelu(source, None))
    elif "timm" in source.model_cfg:
        module = _of_timm(source, state)
    else:
        module = build_module(source, seed, quick_gelu=wants_quick_gelu(source, state))
        _fill(module, state, source)
    without_classifier(module)
    return module.float().eval().requires_grad_(False)


def without_classifier(module: Any) -> Any:
    """Leave timm's classifier out, in place; a tower of CLIP's has none, or its projection is one."""
    if type(module).__module__.startswith("timm.models.") and hasattr(module, "reset_classifier"):
        module.reset_classifier(0)
    return module


def wants_quick_gelu(source: ModelSource, state: dict[str, torch.Tensor] | None) -> bool:
    """Tell whether a model of open_clip's was trained with QuickGELU.

    OpenAI's weights need it, which neither their model names nor most copies of the files say: it is taken
    from open_clip's catalogue for a tag, and for a file from what only OpenAI's have (a TorchScript archive,
    its extra entries, or half-precision convolutions beside float32 norms).
    """
    return bool(
        source.model_cfg.get("quick_gelu", False)
        or (source.tag or {}).get("quick_gelu", False)
        or (state is not None and is_openai(state))
    )


def _fill(module: nn.Module, state: dict[str, torch.Tensor], source: ModelSource) -> None:
    tower = {name[len(_VISUAL) :]: value for name, value in state.items() if name.startswith(_VISUAL)}
    found = tower or {name: value for name, value in state.items() if name not in OPENAI_ONLY}
    expected = module.state_dict()
    check_fit(found, {name: value.shape for name, value in expected.items()}, source)
    module.load_state_dict({name: found.get(name, value) for name, value in expected.items()})


def _of_timm(source: ModelSource, state: dict[str, torch.Tensor]) -> nn.Module:
    """Have timm fill its model: it knows what the tensors are called in the files of others."""
    import timm
    from timm.models import get_pretrained_cfg

    name = source.model_cfg["timm"]["name"]
    cfg = get_pretrained_cfg(name).to_dict()
    classifier = cfg.get("classifier")
    first = classifier if isinstance(classifier, str) else next(iter(classifier or ()), "")
    weight = state.get(f"{first}.weight")
    classes = 0 if weight is None else len(weight)
    overlay = {"state_dict": dict(state), "num_classes": classes, "label_offset": 0}
    try:
        # timm draws weights before it fills them: not from what another thread has seeded.
        with drawn_from(0), _quiet_timm():
            module: nn.Module = timm.create_model(
                name,
                pretrained=True,
                num_classes=classes,
                pretrained_cfg_overlay=overlay,
            )
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise unfit(source, _faults(error)) from error
    return module


def _faults(error: Exception) -> str:
    """Say in few words what torch says of tensors that do not fit, which names them all."""
    said = str(error)
    kinds = {
        kind: re.findall(r'"([^"]+)"', found[1])
        for kind in ("Missing", "Unexpected")
        if (found := re.search(rf"{kind} key\(s\) in state_dict: (.*)", said))
    }
    other = re.findall(r"size mismatch for [^\n]+", said)
    shapes = [each.rstrip(".") for each in other]
    told = tell_faults(kinds.get("Missing", []), kinds.get("Unexpected", []), shapes)
    return told or shortened(said or repr(error), 300)


@contextmanager
def _quiet_timm() -> Iterator[None]:
    """Keep timm from telling on the log that this thread loads weights; what others load is told."""
    logger, own = logging.getLogger("timm.models._builder"), threading.get_ident()

    def heard(record: logging.LogRecord) -> bool:
        return record.thread != own or record.levelno >= logging.ERROR

    logger.addFilter(heard)
    try:
        yield
    finally:
        logger.removeFilter(heard)
