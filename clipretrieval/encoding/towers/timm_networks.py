"""timm's other networks: ConvNeXt, ResNet, EfficientNet, Swin, MobileCLIP's, …, as they are built.

Their classes are too many for a table of each. What they have in common is that images go through a chain of
modules, some of which hold chains themselves: stages that hold blocks. That chain is found by watching which
module is given what another one returned, without values. A network that does anything else in between is not
of this family.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from clipretrieval.encoding.stages import Reduction
from clipretrieval.encoding.towers.family import Family, UnitSpec
from clipretrieval.encoding.towers.module_copies import meta_copy
from clipretrieval.encoding.towers.timm_transformers import resize_timm, side_of_timm

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["TIMM_NETWORK"]

_HOLDER = "blocks"
"""What a stage may call the chain of its blocks; left out of their names."""
_BETWEEN = ("downsample",)
"""What lies in a stage before its blocks."""
_STEMS = ("stem", "patch_embed", "conv_stem")
"""What comes before the stages, and is not taken apart."""
_DEEPEST = 2
"""Numbers in a block's path: of its stage, and its own."""


@dataclass(frozen=True)
class _Link:
    """A module of the chain: its path, and the shape of what it returns for one image."""

    path: str
    shape: tuple[int, ...]
    holders: tuple[str, ...]


def _units(trunk: Any, side: int) -> list[UnitSpec]:
    links = _chain(trunk, side)
    modules = dict(trunk.named_modules())
    held = any(link.holders for link in links)
    units: list[UnitSpec] = []
    for place, link in enumerate(links):
        module = modules[link.path]
        is_block = _has_parts(module) and link.path not in _STEMS and (bool(link.holders) or not held)
        is_block = is_block and link.path.rpartition(".")[2] not in _BETWEEN
        behind = links[place + 1 : place + 2]
        ended = [holder for holder in link.holders if not any(holder in each.holders for each in behind)]
        names = [*([_shown(link.path)] if is_block or link.path == "stem" else []), *_stages_of(ended)]
        units.append(
            UnitSpec(
                tuple(dict.fromkeys(names)),
                module,
                (module,),
                _reduction(trunk, link),
                (f"{link.path}.",),
                float32_only=not units,
                is_block=is_block,
            )
        )
    heads = [name for name, _ in trunk.named_children() if not any(_in(link.path, name) for link in links)]
    first = links[0].path.split(".")[0]
    tensors = tuple(f"{name}." for name in heads if name != first)
    units[-1] = replace(units[-1], stages=(*units[-1].stages, "late"))
    units.append(UnitSpec(("final",), trunk.forward_head, (), "none", tensors, float32_only=True))
    return units


def _in(path: str, child: str) -> bool:
    return path == child or path.startswith(f"{child}.")


def _shown(path: str) -> str:
    """Return a block's name: ``stages.2.blocks.1`` is ``stages.2.1``, and ``blocks.3`` is ``block.3``."""
    first, _, rest = path.partition(".")
    return f"block.{rest}" if first == _HOLDER and "." not in rest else _collapsed(path)


def _collapsed(path: str) -> str:
    return ".".join(part for place, part in enumerate(path.split(".")) if not place or part != _HOLDER)


def _stages_of(holders: list[str]) -> Iterator[str]:
    """Yield the names of stages that end: neither those of the lists of blocks, nor of all stages."""
    for holder in holders:
        last = holder.rpartition(".")[2]
        if last.isdigit() or (last[-1:].isdigit() and "." not in holder):
            yield _collapsed(holder)


def _chain(trunk: Any, side: int) -> list[_Link]:
    """Find the chain of modules that images go through.

    Raises
    ------
    ValueError
        If there is none.
    """
    import torch

    # Inference mode would not count changes in place.
    with torch.inference_mode(False), torch.no_grad(), torch.device("meta"):
        copied = meta_copy(trunk)
        images = torch.zeros(1, 3, side, side)
        calls, result = _watched(copied, copied.forward_features, images)
        links = list(_linked("", images, result, calls, ()))
        if not links:
            raise ValueError(f"{type(trunk).__name__} does more between its modules than handing images on")
    return links


@dataclass(frozen=True)
class _Call:
    """One module's part in a pass: what it was given and returned, and how often that had been changed."""

    name: str
    module: nn.Module
    given: Any
    given_version: int
    made: Any
    made_version: int


def _watched(module: nn.Module, run: Any, x: torch.Tensor) -> tuple[list[_Call], Any]:
    """Run a module and note which of its children are given what, and return what."""
    from torch import nn

    calls: list[_Call] = []
    hooks: list[Any] = []

    def watch(name: str, child: nn.Module) -> None:
        entered: list[int] = []

        def enter(_: nn.Module, given: tuple[Any, ...]) -> None:
            entered.append(_version(given[0] if given else None))

        def leave(_: nn.Module, given: tuple[Any, ...], more: dict[str, Any], made: Any) -> None:
            alone = given[0] if len(given) == 1 and not more else None
            calls[:] = [call for call in calls if not call.name.startswith(f"{name}.")]  # they were its own
            calls.append(_Call(name, child, alone, entered.pop(), made, _version(made)))

        hooks.append(child.register_forward_pre_hook(enter))
        hooks.append(child.register_forward_hook(leave, with_kwargs=True))

    for name, child in module.named_children():
        watch(name, child)
        if isinstance(child, nn.ModuleList | nn.Sequential):  # which may be run one by one
            for number, each in child.named_children():
                watch(f"{name}.{number}", each)
    try:
        return calls, run(x)
    finally:
        for each in hooks:
            each.remove()


def _version(x: Any) -> int:
    """Count the changes in place of a tensor."""
    return int(getattr(x, "_version", 0))


def _linked(
    path: str,
    x: torch.Tensor,
    result: Any,
    calls: list[_Call],
    holders: tuple[str, ...],
) -> Iterator[_Link]:
    """Yield the chain of a module's children, and of theirs; nothing where they are no chain."""
    from torch import nn

    given, version = x, _version(x)
    for call in calls:
        if call.given is not given or call.given_version != version or not hasattr(call.made, "shape"):
            return
        given, version = call.made, call.made_version
    names = [call.name for call in calls]
    ends = given is result and version == _version(result)
    if not calls or not ends or len(set(names)) != len(names):
        return
    for call in calls:
        below = f"{path}.{call.name}" if path else call.name
        list_of = below.rpartition(".")[0] if "." in call.name else None
        around = holders if list_of is None else (*holders, list_of)
        inner = list(_within(below, call.module, call.given, around))
        if inner:
            yield from inner
        elif not isinstance(call.module, nn.Identity):
            yield _Link(below, tuple(call.made.shape), around)


def _within(path: str, module: nn.Module, x: torch.Tensor, holders: tuple[str, ...]) -> Iterator[_Link]:
    """Yield the chain within a module that holds blocks or stages, which have children of their own."""
    from torch import nn

    numbers = sum(part.isdigit() for part in path.split("."))
    if numbers >= _DEEPEST or path in _STEMS or path.rpartition(".")[2] in _BETWEEN:
        return
    children = [child for child in module.children() if not isinstance(child, nn.Identity)]
    holding = [child for child in children if _has_parts(child)]
    if not holding or len(holding) < min(2, len(children)):
        return
    fresh = x.new_empty(x.shape)  # a pass before may have changed it in place
    calls, result = _watched(module, module, fresh)
    yield from _linked(path, fresh, result, calls, (*holders, path))


def _has_parts(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _reduction(trunk: Any, link: _Link) -> Reduction:
    """Tell how channels lie in what a module returns."""
    shape = link.shape
    if len(shape) == 3 and round(shape[1] ** 0.5) ** 2 == shape[1]:
        return "patches"
    if len(shape) != 4:
        raise ValueError(f"{link.path} of {type(trunk).__name__} returns {shape}, which is no grid")
    last = shape[1] == shape[2] != shape[3] or (
        shape[1] == shape[2] == shape[3] and getattr(trunk, "output_fmt", "NCHW") == "NHWC"
    )
    return "channels_last" if last else "spatial"


def _takes(trunk: Any) -> bool:
    return type(trunk).__module__.startswith("timm.models.") and all(
        callable(getattr(trunk, name, None)) for name in ("forward_features", "forward_head")
    )


def _patch(trunk: Any) -> int:
    return max(int(each["reduction"]) for each in trunk.feature_info)


TIMM_NETWORK = Family(
    title="Networks of timm with stages (ConvNeXt, ResNet, EfficientNet, Swin, MobileCLIP's)",
    stages={
        "stem": "What comes before the first stage, where the network calls it so.",
        "stages.N.M": "Output of block M in stage N; as the network calls them: `layer3.2`, `blocks.2.1`, "
        "`block.3` where there are no stages.",
        "stages.N": "Output of stage N: of its last block.",
        "mid": "Output of the block with which half of those of all stages have run.",
        "late": "What enters the head, which pools.",
        "final": "The embedding: pooled, and projected where the model projects.",
    },
    matches=_takes,
    units=_units,
    built_for=side_of_timm,
    resize=resize_timm,
    size_multiple=_patch,
    prefix_tokens=lambda trunk: (0, False),
    describe=lambda trunk: "",
    examples=("convnext_base_w", "timm:resnet50.a1_in1k"),
)
