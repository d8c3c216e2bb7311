"""Names that are imported when they are first used (PEP 562)."""

from __future__ import annotations

import importlib
import sys

TYPE_CHECKING = False  # as type checkers know it; typing itself takes as long to import as all of this
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

__all__ = ["attach"]


def attach(
    package: str, members: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the ``__getattr__`` and ``__dir__`` of a package whose members load on first use.

    Parameters
    ----------
    package : str
        The package's ``__name__``.
    members : mapping of str to sequence of str
        For each submodule, relative to the package, the names that it gives.

    Returns
    -------
    (getattr, dir) : pair of callables
    """
    home = {name: module for module, names in members.items() for name in names}

    def lazy_getattr(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{home[name]}", package), name)
        setattr(sys.modules[package], name, value)
        return value

    def lazy_dir() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home})

    return lazy_getattr, lazy_dir
