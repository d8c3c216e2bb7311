"""The links of the Markdown pages: every file is there, and every heading that is pointed at."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
PARSER = MarkdownIt().enable("table")


def anchors(page: Path) -> set[str]:
    """Name the headings as a code host does: lower case, no punctuation, hyphens for spaces."""
    tokens = PARSER.parse(page.read_text(encoding="utf-8"))
    seen: Counter[str] = Counter()
    found = set()
    for heading, text in pairwise(tokens):
        if heading.type == "heading_open":
            shown = "".join(part.content for part in text.children or [])
            slug = re.sub(r"[^\w\- ]", "", shown.lower()).strip().replace(" ", "-")
            found.add(slug if not seen[slug] else f"{slug}-{seen[slug]}")
            seen[slug] += 1
    return found


def links(page: Path) -> list[str]:
    """Return where a page's links and pictures point."""
    tokens = PARSER.parse(page.read_text(encoding="utf-8"))
    inline = [part for token in tokens for part in token.children or []]
    found = [part.attrs.get("href") or part.attrs.get("src") for part in inline]
    return [unquote(str(target)) for target in found if target]


def broken(page: Path) -> list[str]:
    """Return the links that lead nowhere within the project."""
    wrong = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", path):
            continue  # another site's: no test needs the network
        file = page if not path else page.parent / path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    """Each link within the project names a file that is there, and a heading in it."""
    assert broken(page) == []


def test_the_check_finds_what_is_broken(tmp_path: Path) -> None:
    """Missing files and headings are found, repeats of a heading and headings with code are known."""
    page = tmp_path / "page.md"
    page.write_text(
        "# A `code` head: one\n## Twice\n## Twice\n"
        "[a](#a-code-head-one) [b](#twice-1) [c](https://example.invalid/x) [d](page.md#twice)\n\n"
        "[e](missing.md) [f](page.md#never) ![g](picture.png) [h](#twice-2)\n",
        encoding="utf-8",
    )
    assert broken(page) == ["missing.md", "page.md#never", "picture.png", "#twice-2"]


def test_every_page_is_reached() -> None:
    """Each page of the documentation is linked from the overview, from there on, or from the README."""
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop().resolve()
        if page in seen or page.suffix != ".md" or not page.is_file():
            continue
        seen.add(page)
        waiting += [page.parent / link.partition("#")[0] for link in links(page) if ":" not in link]
    stubs = {ROOT / "docs" / name for name in ("readme.md", "contributing.md", "changes.md")}
    assert {path.resolve() for path in PAGES if path.is_relative_to(ROOT / "docs")} - seen == {
        path.resolve() for path in stubs
    }
