"""The documentation's tables of towers are what the package says of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_has_each_family_s_table_as_it_is_now():
    spec = importlib.util.spec_from_file_location("towers_of_docs", DOCS / "towers.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    page = (DOCS / "stages.md").read_text(encoding="utf-8")
    assert tables.updated(page) == page, "run: python docs/towers.py"
