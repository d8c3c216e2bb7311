"""The door: what is exported is there and is documented, and importing costs nothing."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer

import clipretrieval
from clipretrieval import cli, errors

API_PAGES = Path(__file__).parents[1] / "docs" / "api"

# Where users import from. What is in no `__all__` of these is private.
DOORS = [
    "clipretrieval",
    "clipretrieval.auditing",
    "clipretrieval.cascade",
    "clipretrieval.cli",
    "clipretrieval.demo",
    "clipretrieval.encoding",
    "clipretrieval.errors",
    "clipretrieval.evaluation",
    "clipretrieval.explanation",
    "clipretrieval.heads",
    "clipretrieval.images",
    "clipretrieval.prompts",
    "clipretrieval.stores",
    "clipretrieval.testing",
    "clipretrieval.trust",
    "clipretrieval.types",
    "clipretrieval.vectors",
]


@pytest.fixture(scope="module")
def documented() -> dict[str, object]:
    """What the pages of the reference describe, by the names that they give it."""
    pages = [path.read_text(encoding="utf-8") for path in API_PAGES.glob("*.rst") if path.stem != "index"]
    entry = re.compile(r"^(?:   |\.\. py:data:: clipretrieval\.)([\w.]+)$", flags=re.MULTILINE)
    found: dict[str, object] = {}
    for name in (name for page in pages for name in entry.findall(page)):
        module, _, attribute = f"clipretrieval.{name}".rpartition(".")
        found[f"{module}.{attribute}"] = getattr(importlib.import_module(module), attribute)
    return found


@pytest.mark.parametrize("module", DOORS)
def test_every_exported_name_is_there(module: str) -> None:
    """Each name in ``__all__`` can be imported, ``dir`` lists it, and no submodule hides it."""
    found = importlib.import_module(module)
    assert len(set(found.__all__)) == len(found.__all__)
    for name in found.__all__:
        assert getattr(found, name) is not None
        assert not isinstance(getattr(found, name), ModuleType)
        assert name in dir(found)


def test_every_exported_name_is_documented(documented: dict[str, object]) -> None:
    """The reference has each class and function of every door, and each constant by its name."""
    objects = {
        id(value) for value in documented.values() if inspect.isclass(value) or inspect.isroutine(value)
    }
    missing = [
        f"{module}.{name}"
        for module in DOORS
        for name in importlib.import_module(module).__all__
        if f"{module}.{name}" not in documented
        and id(getattr(importlib.import_module(module), name)) not in objects
    ]
    assert not missing


def test_nothing_private_is_documented(documented: dict[str, object]) -> None:
    """What the reference describes is in the ``__all__`` of the door that it names."""
    for name in documented:
        module, _, attribute = name.rpartition(".")
        assert module in DOORS
        assert attribute in importlib.import_module(module).__all__


def test_every_module_says_what_it_is_for() -> None:
    """Each module has a docstring, whose first line is a whole sentence."""
    for path in Path(clipretrieval.__file__).parent.rglob("*.py"):
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
        assert first.endswith("."), path


def test_every_error_is_at_the_door() -> None:
    """The package exports the whole tree of exceptions, under their own names."""
    for name in errors.__all__:
        assert getattr(clipretrieval, name) is getattr(errors, name)


def test_unknown_names_are_attribute_errors() -> None:
    """A lazy package answers like any other when it is asked for what it does not have."""
    with pytest.raises(AttributeError, match="'clipretrieval' has no attribute 'nothing'"):
        _ = clipretrieval.nothing


def test_python_m_runs_the_command_line() -> None:
    """``python -m clipretrieval --version`` prints the package's version."""
    command = [sys.executable, "-m", "clipretrieval", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"clipretrieval {clipretrieval.__version__}"


def test_every_command_and_option_is_documented() -> None:
    """Each option is named with its command on the page on the command line, or on another one."""
    pages = {path.stem: path.read_text(encoding="utf-8") for path in API_PAGES.parent.glob("*.md")}
    common = pages["command-line"].partition("## Common options\n")[2].split("\n## ")[0].split("\n- ")
    for name, command in typer.main.get_command(cli.app).commands.items():  # type: ignore[attr-defined]
        _, heading, section = pages["command-line"].partition(f"## `clipretrieval {name}`\n")
        told = section.split("\n## ")[0] if heading else ""
        told += "".join(group for group in common if f"`{name}`" in group)
        others = [page for stem, page in pages.items() if stem != "command-line"]
        told += "".join(page for page in others if f"clipretrieval {name}" in page)
        for parameter in command.params:
            options = [option for option in parameter.opts + parameter.secondary_opts if option[:2] == "--"]
            documented = not options or any(f"`{option}" in told for option in options)
            assert documented or options == ["--help"], f"{name} {options}"
