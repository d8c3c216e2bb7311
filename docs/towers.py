"""The tables of towers in `stages.md`, from the package's own data; ``python docs/towers.py`` writes them."""

from __future__ import annotations

from pathlib import Path

from clipretrieval.encoding.towers.design import Design
from clipretrieval.encoding.towers.designs import design_of
from clipretrieval.encoding.towers.module_design import FAMILIES
from clipretrieval.encoding.weights.model_source import resolve

PAGE = Path(__file__).with_name("stages.md")
BEGIN, END = "<!-- written by docs/towers.py -->\n", "<!-- end -->\n"
RESNETS = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64")
HEAD = "| model | image size | multiples of | `mid` | `late` | `final` |\n|---|---|---|---|---|---|\n"


def row(name: str) -> str:
    """Return a model's row: known without its weights."""
    design: Design = design_of(resolve(name, None))
    dims = " | ".join(str(design.stages[stage].dim) for stage in ("mid", "late", "final"))
    return f"| {name} | {design.image_size} | {design.size_multiple} | {dims} |\n"


def tables() -> str:
    """Return the tables of all families."""
    parts = [f"### CLIP's ResNets\n\n{HEAD}{''.join(map(row, RESNETS))}"]
    for family in FAMILIES:
        stages = "".join(f"| `{name}` | {what} |\n" for name, what in family.stages.items())
        models = "".join(map(row, family.examples))
        parts.append(f"### {family.title}\n\n| stage | vector |\n|---|---|\n{stages}\n{HEAD}{models}")
    return "\n".join(parts)


def updated(page: str) -> str:
    """Return the page with its tables as they should be."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
