"""Build the documentation with Sphinx: ``make docs``.

The Markdown pages are read on a code host too, so their links are those of the repository. The README and
two other files of the project's root are pages of the site as well, in place of stubs that link to them.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

import clipretrieval

sys.path.insert(0, str(Path(__file__).parent))
import flow

project = "clipretrieval"
author = "The clipretrieval authors"
version = release = clipretrieval.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
root_doc = "contents"
exclude_patterns = ["_templates"]
templates_path = ["_templates"]
nitpicky = True
# No other project's inventory is fetched, so names of other projects cannot be linked to.
nitpick_ignore_regex = [(r"py:.*", r"(?!clipretrieval\b).*")]

# Headings have the anchors that a code host gives them.
myst_heading_anchors = 4

# Single backticks in docstrings link where there is something to link to, and are emphasis elsewhere.
default_role = "autolink"
autodoc_typehints = "none"
autodoc_default_options = {
    "members": True,
    "undoc-members": True,
    "show-inheritance": True,
    "inherited-members": "BaseException, Enum, str, tuple, dict",
}
numpydoc_show_class_members = False

html_theme = "furo"
html_title = f"clipretrieval {release}"
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True

ROOT = Path(__file__).parents[1]
ROOT_PAGES = {"README.md": "readme", "CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changes"}
DOORS = re.findall(
    r"^\.\. py:module:: (\S+)$",
    "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.rst")),
    flags=re.MULTILINE,
)
CAPTION = (
    "An arrow leads from a part to what uses it, and is left out where a longer way says the same. "
    "All use errors and types."
)
LINK = re.compile(r"(?<=\]\()[^)#\s:]+(?=[)#])")


def turn_links(app: Sphinx, page: str, text: list[str]) -> None:
    """Show the project's own pages in place of their stubs, and keep the links to them within the site."""
    for file, stub in ROOT_PAGES.items():
        if page == stub:
            app.env.note_dependency(str(ROOT / file))
            content = (ROOT / file).read_text(encoding="utf-8")
            text[0] = LINK.sub(lambda link: os.path.relpath(ROOT / link[0], ROOT / "docs"), content)
    text[0] = LINK.sub(
        lambda link: f"{ROOT_PAGES[link[0][3:]]}.md" if link[0][3:] in ROOT_PAGES else link[0], text[0]
    )


def draw_flow(app: Sphinx, page: str, text: list[str]) -> None:
    """Show the package's parts as a drawing where a page has it as text, below a comment that says so."""
    if page == "how-it-works":
        app.env.note_reread()
        text[0] = re.sub(
            r"<!-- [^>]*drawing[^>]* -->\n```text\n.*?```\n",
            f"<figure>\n{flow.drawing()}\n<figcaption>{CAPTION}</figcaption>\n</figure>\n",
            text[0],
            flags=re.DOTALL,
        )


def drop_private_bases(app: Sphinx, name: str, cls: type, options: object, bases: list[type]) -> None:
    """Leave out bases of ours that no door offers: their members are shown with the class."""
    offered = {name for door in DOORS for name in importlib.import_module(door).__all__}
    bases[:] = [
        base for base in bases if not base.__module__.startswith("clipretrieval.") or base.__name__ in offered
    ] or [object]


def skip_foreign(
    app: Sphinx, what: str, name: str, member: object, skip: bool, options: object
) -> bool | None:
    """Leave out what scikit-learn and Python give to a class, which is documented there."""
    home = getattr(member, "__module__", None) or ""
    return True if home.startswith(("sklearn.", "typing", "enum", "torch.")) else None


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("source-read", turn_links)
    app.connect("source-read", draw_flow)
    app.connect("autodoc-process-bases", drop_private_bases)
    app.connect("autodoc-skip-member", skip_foreign)
