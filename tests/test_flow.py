"""The layout: which folder may import which, and one name for one thing."""

from __future__ import annotations

import ast
import graphlib
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

import clipretrieval
from clipretrieval.stores import available_stores

PACKAGE = Path(clipretrieval.__file__).parent
CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"

# What all may use; in it, only circles are refused.
GROUND = ("_util", "_version", "errors", "types")

# Each folder, or module beside them, with those that lie directly below it. It may import these and all that
# lies below them in turn, and the ground.
FLOW: dict[str, list[str]] = {
    "images": [],
    "encoding": ["images"],
    "stores": [],
    "retrieval": ["encoding", "stores"],
    "prompts": [],
    "heads": ["retrieval", "prompts"],
    "trust": ["heads"],
    "explanation": ["trust"],
    "evaluation": ["explanation"],
    "text_search": ["heads"],
    "persistence": ["evaluation", "text_search"],
    "vectors": ["heads"],
    "classifier": ["persistence", "vectors"],
    "zeroshot": ["persistence"],
    "testing": ["classifier"],  # whose answers the contract of heads is about
    "cascade": ["classifier"],
    "auditing": ["cascade"],
    "comparison": ["cascade", "zeroshot"],
    "demo": ["comparison"],
    "cli": ["demo", "auditing"],
    "__main__": ["cli"],
}

# A door (the `__init__` of a folder) imports what it offers, and that may lie above its folder.
DOORS = {"evaluation": ["comparison"]}

# Who comes through a door, as a user does.
USERS = {"clipretrieval.__main__": "clipretrieval.cli"}

# The store that the published study used, which the report of its reproduction names.
STUDY = "comparison/reproduction_report.py"


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """All imports of the package, those inside functions and for type checkers only among them."""
    return grimp.build_graph("clipretrieval", cache_dir=None)


@pytest.fixture(scope="module")
def sources() -> dict[str, ast.Module]:
    """Each file of the package, by its path in it."""
    return {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def part(module: str) -> str:
    """Return the folder at the package's top, or the module there, in which a module lies."""
    return f"{module}.".split(".")[1]


def below(name: str) -> set[str]:
    """Return what the table lets a folder import."""
    return {name, *GROUND}.union(*map(below, FLOW[name])) if name in FLOW else set(GROUND)


def imports(graph: grimp.ImportGraph) -> Iterator[tuple[str, str, str]]:
    """Yield the importing module, the imported one, and the file, line and text of each import."""
    for importer in sorted(graph.modules):
        for imported in sorted(graph.find_modules_directly_imported_by(importer)):
            for found in graph.get_import_details(importer=importer, imported=imported):
                line = f"{importer}, line {found['line_number']}: {found['line_contents']}"
                yield importer, imported, line


def is_door(module: str) -> bool:
    """Tell whether a module is the ``__init__`` of a folder."""
    return (PACKAGE.parent / Path(*module.split("."))).is_dir()


def refuse(lines: list[str]) -> None:
    """Fail with the lines, one below the other."""
    if lines:
        pytest.fail("\n".join(["", *lines]), pytrace=False)


def test_imports_follow_the_table(graph: grimp.ImportGraph) -> None:
    """A folder imports only what the table puts below it; the package's own door imports what it offers."""
    refuse(
        [
            line
            for importer, imported, line in imports(graph)
            if importer != "clipretrieval"
            and part(imported) not in below(part(importer))
            and not (is_door(importer) and part(imported) in DOORS.get(part(importer), ()))
        ]
    )


def test_no_imports_form_a_circle(graph: grimp.ImportGraph) -> None:
    """No module is needed, in however many steps, by what it imports."""
    needs = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    circle: list[str] = []
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError as error:
        circle = error.args[1][::-1]
    refuse([f"{importer} imports {imported}" for importer, imported in itertools.pairwise(circle)])


def test_doors_are_for_users(graph: grimp.ImportGraph) -> None:
    """Within the package, what is imported comes from the module that defines it."""
    refuse(
        [
            line
            for importer, imported, line in imports(graph)
            if is_door(imported) and USERS.get(importer) != imported
        ]
    )


def test_the_table_names_every_part() -> None:
    """The table has a row for each folder and module at the package's top, few of which are modules."""
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {*FLOW, *GROUND} == modules | folders
    assert len(modules - {"__main__"}) <= 16
    assert sum(name.startswith("_") for name in modules - {"__main__"}) <= 6


def test_a_name_stands_for_one_thing(sources: dict[str, ast.Module]) -> None:
    """No two classes have the same name, nor have two public functions of modules."""
    places = defaultdict(list)
    for path, module in sources.items():
        classes = [node for node in ast.walk(module) if isinstance(node, ast.ClassDef)]
        functions = [node for node in module.body if isinstance(node, ast.FunctionDef)]
        for node in [*classes, *(each for each in functions if not each.name.startswith("_"))]:
            places[node.name].append(f"{path}, line {node.lineno}")
    refuse([f"{name}: {'; '.join(where)}" for name, where in places.items() if len(where) > 1])


def test_only_stores_know_their_names(sources: dict[str, ast.Module]) -> None:
    """A store's name is written in `stores` and in what tests them; others ask the registry."""
    names = available_stores()
    refuse(
        [
            f"{path}, line {node.lineno}: {node.value!r}"
            for path, module in sources.items()
            if not path.startswith(("stores/", "testing/"))
            for node in ast.walk(module)
            if isinstance(node, ast.Constant) and node.value in names
            if (path, node.value) != (STUDY, "pinecone")
        ]
    )


def test_the_map_shows_every_part() -> None:
    """The list of parts for contributors has each folder and each module at the package's top, once."""
    rows = re.findall(r"^\| (`[^|]+`) \|", CONTRIBUTING.read_text(encoding="utf-8"), flags=re.MULTILINE)
    modules = {path.name for path in PACKAGE.glob("[a-z]*.py")}
    folders = {f"{path.parent.relative_to(PACKAGE).as_posix()}/" for path in PACKAGE.rglob("*/__init__.py")}
    assert sorted(name for row in rows for name in row.strip("`").split("`, `")) == sorted(modules | folders)


def test_the_map_leads_to_what_is_there() -> None:
    """Each file and folder that the page for contributors names exists, in the project or in the package."""
    text = CONTRIBUTING.read_text(encoding="utf-8")
    named = re.findall(r"`([\w./-]+(?:/|\.(?:c|json|md|py|rst)))`", text)
    assert len(named) > 50
    roots = [CONTRIBUTING.parent, PACKAGE]
    refuse([name for name in named if not any((root / name).exists() for root in roots)])
