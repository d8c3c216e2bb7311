"""Stores by name: the built-in ones, those that a program registers, and those that packages bring.

A package brings a store through the entry-point group ``clipretrieval.stores``::

    [project.entry-points."clipretrieval.stores"]
    qdrant = "clipretrieval_qdrant:QdrantStore"
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipretrieval._util.secrets import MaskedDict
from clipretrieval._util.warning import warn_caller
from clipretrieval.errors import (
    ClipRetrievalError,
    InvalidInputError,
    MissingDependencyError,
    StoreUnavailableError,
    UnknownStoreError,
)

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from clipretrieval.stores.base import VectorStore

# Imported by the command line before anything else is, so that NumPy and what reads packages' metadata have
# to wait until a store is named.

__all__ = [
    *("DEFAULT_STORE", "available_stores", "create_store", "existing_store", "options_for_part"),
    *("options_within", "register_store", "registered_name", "store_class"),
]

DEFAULT_STORE = "faiss"
"""The name of the store that keeps vectors where nobody names another."""
ENTRY_POINT_GROUP = "clipretrieval.stores"


@dataclass(frozen=True)
class _Entry:
    """Where a store's class is found, and the extra of clipretrieval that installs what it needs."""

    target: str | type[Any]
    extra: str | None = None
    distribution: str | None = None

    @property
    def origin(self) -> str:
        """The target, with the package that brings it."""
        bearer = "" if self.distribution is None else f" of package {self.distribution!r}"
        return f"{self.target!r}{bearer}"

    @property
    def is_loaded(self) -> bool:
        """Whether the class can be had without an import."""
        return not isinstance(self.target, str) or self.target.partition(":")[0] in sys.modules

    @property
    def package(self) -> str:
        """The name of the package that the class, or what names it, is in."""
        module = self.target.partition(":")[0] if isinstance(self.target, str) else self.target.__module__
        return module.partition(".")[0]


_BUILT_IN = {
    "memory": _Entry("clipretrieval.stores.memory:MemoryStore"),
    "faiss": _Entry("clipretrieval.stores.faiss:FaissStore"),
    "chroma": _Entry("clipretrieval.stores.chroma:ChromaStore", extra="chroma"),
    "lance": _Entry("clipretrieval.stores.lance:LanceStore", extra="lance"),
    "pgvector": _Entry("clipretrieval.stores.pgvector:PgVectorStore", extra="pgvector"),
    "pinecone": _Entry("clipretrieval.stores.pinecone:PineconeStore", extra="pinecone"),
}
_registered: dict[str, _Entry] = {}


def register_store(name: str, target: str | type[Any], *, extra: str | None = None) -> None:
    """Make a store known under a name, in this process.

    Parameters
    ----------
    name : str
        What ``RetrievalClassifier(store=…)`` and `create_store` will accept.
    target : str or type
        The class, or ``"module:Class"``, which is imported on first use.
    extra : str, optional
        The extra that installs what the class needs: ``pip install "clipretrieval[EXTRA]"``.

    Raises
    ------
    InvalidInputError
        If the name is empty or already stands for something else, or the target is malformed.
    """
    from clipretrieval._util.checks import check_text, shown

    check_text(name, "name")
    if extra is not None:
        check_text(extra, "extra")
    if isinstance(target, str):
        module, colon, member = target.partition(":")
        if not (module and colon and member):
            raise InvalidInputError(
                f"a store's target must be a class or 'module:Class'; found {shown(target)}"
            )
    elif not isinstance(target, type):
        raise InvalidInputError(f"a store's target must be a class or 'module:Class'; found {target!r}")
    entry = _Entry(target, extra)
    known = _BUILT_IN.get(name) or _registered.get(name)
    if known is not None and known.target != target:
        raise InvalidInputError(f"the name {name!r} already stands for {known.origin}; choose another")
    if name not in _BUILT_IN:
        _registered[name] = entry


def available_stores() -> list[str]:
    """Return all names that `create_store` knows, in alphabetical order; nothing is imported."""
    return sorted(_entries())


def is_built_in(name: str) -> bool:
    """Tell whether a name stands for a store of this library, as it then always does."""
    return name in _BUILT_IN


def store_class(name: str) -> type[Any]:
    """Return the class of the store called `name`, importing it if need be.

    Raises
    ------
    UnknownStoreError
        If there is none of that name; the message lists the known ones.
    MissingDependencyError
        If a package that it needs is not installed.
    StoreUnavailableError
        If the module cannot be imported or has no such class.
    """
    entries = _entries()
    if not isinstance(name, str) or name not in entries:
        from clipretrieval._util.checks import shown

        known = ", ".join(repr(each) for each in sorted(entries))
        hint = ""
        if isinstance(name, str) and os.path.isdir(name):  # noqa: PTH112  Path raises if it is too long
            hint = f'. A folder is given by store="faiss", store_options={{"path": {name!r}}}'
        raise UnknownStoreError(f"no store is called {shown(name)}; known stores: {known}{hint}")
    return _imported(name, entries[name])


def registered_name(store: VectorStore) -> str | None:
    """Return the name that a store's class is known by, or None; another store's fault is not told of.

    The class is here, so that its module is, or at least its package. No other is imported, which may take
    seconds.
    """
    entries = _entries()
    package = type(store).__module__.partition(".")[0]
    for name in sorted(entries, key=lambda name: (not entries[name].is_loaded, name)):
        entry = entries[name]
        if not entry.is_loaded and (is_built_in(name) or entry.package != package):
            continue
        try:
            if type(store) is _imported(name, entry):
                return name
        except Exception:  # noqa: BLE001, S112  another store's missing or broken package is not ours to report
            continue
    return None


def create_store(name: str, **options: Any) -> VectorStore:
    """Make the store called `name`.

    Parameters
    ----------
    name : str
        One of `available_stores`.
    **options
        Arguments of the store's class.

    Raises
    ------
    InvalidInputError
        If the class does not take such options; the message lists those it takes.
    UnknownStoreError
        If there is no store of that name.
    MissingDependencyError
        If a package that it needs is not installed.
    """
    options = MaskedDict(options)  # tracebacks may be printed with local variables
    chosen = store_class(name)
    _check_options(name, chosen, options)
    store: VectorStore = chosen(**options)
    return store


def existing_store(name: str, **options: Any) -> VectorStore:
    """Open the store called `name` to ask it: one that can refuse to make anything is told to.

    Parameters and errors are those of `create_store`. A class whose constructor takes `create` is given
    ``create=False`` unless the options say otherwise.
    """
    options = MaskedDict(options)  # tracebacks may be printed with local variables
    chosen = store_class(name)
    with suppress(ValueError):  # a class written in C may not tell
        if "create" in inspect.signature(chosen).parameters:
            options.setdefault("create", False)
    return create_store(name, **options)


def options_within(folder: Path, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options for a store with a place within a folder, if it takes one and they name no place.

    A store's class says so by an attribute ``place_options``: the names of its options that say where it
    lies, first that of the one that takes a folder.
    """
    given = MaskedDict(options)  # tracebacks may be printed with local variables
    places = getattr(store_class(name), "place_options", ())
    if places and not any(place in given for place in places):
        given[places[0]] = str(folder)
    return given


def options_for_part(name: str, options: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Return options for one of several stores of a kind that lie side by side in one place.

    A folder gets a sub-folder. Any other place stays the same, and the option that the store's class names as
    ``part_option`` gets the part behind a hyphen. Where neither is there, each is a store of its own anyway.
    """
    given, chosen = MaskedDict(options), store_class(name)  # tracebacks may be printed with local variables
    folder, option = (
        next(iter(getattr(chosen, "place_options", ())), None),
        getattr(chosen, "part_option", None),
    )
    if folder is not None and given.get(folder) is not None:
        given[folder] = str(Path(given[folder]) / part)
    elif option is not None:
        default = inspect.signature(chosen).parameters[option].default
        before = given.get(option, default if isinstance(default, str) else "")
        given[option] = f"{before}-{part}" if before else part
    return given


def _entries() -> dict[str, _Entry]:
    """Return all known stores; built-in names win over registered ones, and these over installed ones."""
    found: dict[str, _Entry] = {}
    for point in _installed(tuple((folder, _changed(folder)) for folder in sys.path)):
        entry = _Entry(point.value, distribution=_distribution(point))
        holder = _BUILT_IN.get(point.name) or _registered.get(point.name) or found.get(point.name)
        if holder is None:
            found[point.name] = entry
        elif holder != entry:
            warn_caller(
                f"the store {point.name!r} stays {holder.origin}; {entry.origin} wants the same name and is "
                "passed over"
            )
    return {**found, **_registered, **_BUILT_IN}


@lru_cache(maxsize=1)
def _installed(folders: tuple[tuple[str, int | None], ...]) -> tuple[EntryPoint, ...]:
    """Return the entry points of what is installed in these folders, each given with when it was changed.

    To read them takes about 0.1 ms for each package that is installed, whatever it brings.
    """
    from importlib.metadata import entry_points

    return tuple(entry_points(group=ENTRY_POINT_GROUP))


def _changed(folder: str) -> int | None:
    """Return when something came into a folder or left it, or None where there is none."""
    try:
        return Path(folder).stat().st_mtime_ns
    except (OSError, ValueError):
        return None


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "unknown"


def _imported(name: str, entry: _Entry) -> type[Any]:
    if isinstance(entry.target, type):
        return entry.target
    module, _, member = entry.target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in member.split("."):
            found = getattr(found, part)
    except ClipRetrievalError:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if f"{module}.".startswith(f"{missing}.") or missing.partition(".")[0] == "clipretrieval":
            raise _broken(name, entry, error) from error
        install = f"clipretrieval[{entry.extra}]" if entry.extra else missing.partition(".")[0]
        raise MissingDependencyError(
            f"the store {name!r} ({entry.origin}) needs {missing!r}, which is not installed; "
            f'run: pip install "{install}"',
            name=missing,
        ) from error
    except Exception as error:  # a third party's module may raise anything when it is imported
        raise _broken(name, entry, error) from error
    if not isinstance(found, type):
        raise StoreUnavailableError(f"the store {name!r} is broken: {entry.origin} is {found!r}, not a class")
    return found


def _broken(name: str, entry: _Entry, error: Exception) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"the store {name!r} is broken: {entry.origin} could not be imported "
        f"({type(error).__name__}: {error}); mend or remove what registered it"
    )


def _check_options(name: str, chosen: type[Any], options: dict[str, Any]) -> None:
    """Refuse options that the class does not take; what its constructor raises itself passes through."""
    try:
        signature = inspect.signature(chosen)
    except ValueError:  # a class written in C may not tell
        return
    try:
        signature.bind(**dict.fromkeys(options))  # their names alone: tracebacks keep arguments
    except TypeError as error:
        taken = [
            each.name
            for each in signature.parameters.values()
            if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
        ]
        raise InvalidInputError(
            f"the store {name!r} cannot be made: {error}; its options are {', '.join(taken) or 'none'}"
        ) from error
