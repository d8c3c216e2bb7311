"""Stores by name, built in, registered, or brought by an installed package."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import clipretrieval.stores as stores
from clipretrieval.errors import (
    ClipRetrievalWarning,
    InvalidInputError,
    MissingDependencyError,
    StoreUnavailableError,
    UnknownStoreError,
)
from clipretrieval.stores import FaissStore, MemoryStore, available_stores, create_store, register_store
from clipretrieval.stores.registry import options_within, store_class


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Install a package with one entry point: its module's source and where the entry point leads."""

    def install_package(name: str, target: str, source: str) -> None:
        module = target.partition(":")[0]
        metadata = tmp_path / f"{module}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[clipretrieval.stores]\n{name} = {target}\n")
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.delitem(sys.modules, module, raising=False)

    monkeypatch.syspath_prepend(str(tmp_path))
    return install_package


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget at the end what a test registers."""
    monkeypatch.setattr("clipretrieval.stores.registry._registered", {})


THIRD_PARTY = "from clipretrieval.stores import MemoryStore\nclass Theirs(MemoryStore): pass\n"


def test_built_in_stores_are_made_by_name(tmp_path: Path) -> None:
    """The names memory and faiss make the two stores, with their options."""
    assert {"memory", "faiss"} <= set(available_stores())
    assert type(create_store("memory", metric="ip")) is MemoryStore
    with create_store("faiss", path=tmp_path / "s", metric="cosine") as store:  # type: ignore[attr-defined]
        assert isinstance(store, FaissStore)
        assert store.metric == "cosine"


def test_a_class_says_what_places_it(registry: None, tmp_path: Path) -> None:
    """A store that takes a folder gets one unless its options name a place; a third party's does likewise."""

    class Shelf(MemoryStore):
        place_options = ("shelf", "address")

    register_store("shelf", Shelf)
    place = str(tmp_path)
    assert options_within(tmp_path, "shelf", {"a": 1}) == {"a": 1, "shelf": place}
    assert options_within(tmp_path, "shelf", {"address": "there"}) == {"address": "there"}
    assert options_within(tmp_path, "faiss", {}) == options_within(tmp_path, "chroma", {}) == {"path": place}
    assert options_within(tmp_path, "faiss", {"path": "here"}) == {"path": "here"}
    assert options_within(tmp_path, "chroma", {"host": "there"}) == {"host": "there"}
    assert options_within(tmp_path, "memory", {}) == options_within(tmp_path, "pinecone", {}) == {}


def test_an_unknown_name_lists_the_known() -> None:
    """The error for an unknown name is a LookupError that tells the choices."""
    with pytest.raises(UnknownStoreError, match=r"'milvus'.*'faiss'.*'memory'"):
        create_store("milvus")


def test_a_folder_in_a_names_place_is_told(tmp_path: Path) -> None:
    """Whoever gives the path of a store's folder as its name is shown how to give it."""
    with pytest.raises(UnknownStoreError, match=r'A folder is given by store="faiss", store_options='):
        create_store(str(tmp_path))


def test_a_missing_store_says_how_one_is_made(tmp_path: Path) -> None:
    """By leaving out what keeps one from being made."""
    for option, value in (("create", False), ("read_only", True)):
        with pytest.raises(StoreUnavailableError, match=f"A new one is made without {option}={value}"):
            FaissStore(tmp_path / "none", **{option: value})


@pytest.mark.parametrize("options", [{"paht": "x"}, {"path": "x", "colour": 1}])
def test_unknown_options_list_the_known(options: dict[str, Any]) -> None:
    """An option that the class does not take is named, with those that it takes."""
    with pytest.raises(InvalidInputError, match=r"(paht|colour).*path, metric, read_only"):
        create_store("faiss", **options)


def test_a_constructors_own_error_passes_through(registry: None) -> None:
    """A TypeError from inside a constructor is not taken for a wrong option."""

    class Failing:
        def __init__(self, size: int = 1) -> None:
            raise TypeError("from inside")

    register_store("failing", Failing)
    with pytest.raises(TypeError, match="from inside"):
        create_store("failing", size=2)
    with pytest.raises(InvalidInputError, match="size"):
        create_store("failing", wrong=2)


def test_stores_are_registered_as_classes_or_names(registry: None) -> None:
    """A class and a 'module:Class' string serve alike, and registering the same again is no error."""
    register_store("by class", MemoryStore)
    register_store("by name", "clipretrieval.stores.memory:MemoryStore")
    register_store("by name", "clipretrieval.stores.memory:MemoryStore")
    assert store_class("by class") is store_class("by name") is MemoryStore
    assert available_stores() == sorted(available_stores())
    assert {"by class", "by name"} < set(available_stores())


def test_a_taken_name_is_refused(registry: None) -> None:
    """A name that stands for one store cannot be given to another."""
    register_store("mine", MemoryStore)
    for name in ("mine", "memory"):
        with pytest.raises(InvalidInputError, match=name):
            register_store(name, FaissStore)
    assert store_class("mine") is MemoryStore


@pytest.mark.parametrize(
    ("name", "target"), [("", "m:C"), (3, "m:C"), ("x", "module"), ("x", ":C"), ("x", "m:"), ("x", 5)]
)
def test_malformed_registrations_are_refused(registry: None, name: Any, target: Any) -> None:
    """A name must be a non-empty str and a target a class or 'module:Class'."""
    with pytest.raises(InvalidInputError):
        register_store(name, target)


def test_a_missing_package_names_the_extra(registry: None, install: Any) -> None:
    """A store whose package is not installed gives the pip command; other stores are unharmed."""
    install("needy", "needy_store:Store", "import surely_not_installed.part\n")
    register_store("extra", "needy_store:Store", extra="chroma")
    with pytest.raises(MissingDependencyError, match=r'pip install "clipretrieval\[chroma\]"') as caught:
        create_store("extra")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    with pytest.raises(MissingDependencyError, match=r"needy_store.*'surely_not_installed.*pip install"):
        create_store("needy")
    assert create_store("memory").count() == 0


def test_an_installed_package_brings_a_store(install: Any) -> None:
    """A store of another package's entry point is listed without importing it, and made by name."""
    install("theirs", "their_store:Theirs", THIRD_PARTY)
    assert "theirs" in available_stores()
    assert "their_store" not in sys.modules
    store = create_store("theirs", metric="ip")
    assert type(store).__name__ == "Theirs"
    assert store.metric == "ip"


def test_what_is_installed_meanwhile_is_found(install: Any) -> None:
    """A package that comes into a folder after stores were looked up there is known by the next."""
    for name in ("first", "second"):
        assert name not in available_stores()
        install(name, f"bringing_{name}:Theirs", THIRD_PARTY)
        assert name in available_stores()


def test_a_built_in_name_wins(install: Any) -> None:
    """A package that wants a built-in name is passed over with a warning that names it."""
    install("memory", "usurping_store:Theirs", THIRD_PARTY)
    with pytest.warns(ClipRetrievalWarning, match="usurping_store") as caught:
        store = create_store("memory")
    assert caught[0].filename == __file__
    assert type(store) is MemoryStore


@pytest.mark.parametrize(
    ("target", "source"),
    [
        ("broken_one:Store", "raise RuntimeError('at import')\n"),
        ("broken_two:Absent", "x = 1\n"),
        ("broken_three:x", "x = 1\n"),
        ("broken_five:Store", "from clipretrieval.stores import absent\n"),
    ],
)
def test_a_broken_entry_point_is_named(install: Any, target: str, source: str) -> None:
    """A store that cannot be imported is reported with its target and package."""
    package = target.partition(":")[0]
    install("broken", target, source)
    with pytest.raises(StoreUnavailableError, match=f"'{target}' of package '{package}'"):
        create_store("broken")


@pytest.mark.parametrize(
    "target", ["absent_store:Store", "absent_store.part:Store", "clipretrieval.absent:Store"]
)
def test_a_target_that_is_not_there_is_no_missing_dependency(registry: None, target: str) -> None:
    """A target whose own module cannot be found is broken: no pip command would mend it."""
    register_store("absent", target)
    with pytest.raises(StoreUnavailableError, match=target):
        create_store("absent")


def test_every_public_name_is_there() -> None:
    """Each name in __all__ can be had, is listed by dir, and others are AttributeErrors."""
    for name in stores.__all__:
        assert getattr(stores, name) is not None
    assert set(stores.__all__) <= set(dir(stores))
    with pytest.raises(AttributeError, match="absent"):
        _ = stores.absent


def test_importing_the_package_loads_no_sdk() -> None:
    """Importing the stores, listing their names and telling a store's own loads neither FAISS nor torch."""
    code = (
        "import sys, clipretrieval.stores as s; from clipretrieval.stores.registry import registered_name;"
        "s.available_stores(); assert registered_name(s.create_store('memory')) == 'memory';"
        "assert registered_name(type('Own', (s.MemoryStore,), {})()) is None;"
        "print(sorted({'faiss', 'torch', 'chromadb', 'pinecone'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
