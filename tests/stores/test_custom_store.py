"""The page on the custom store shows what the example's source holds."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_excerpts_are_those_of_the_source() -> None:
    """Each indented excerpt of docs/custom-store.md is there, word for word, in the example."""
    source = (ROOT / "examples/custom_store/src/clipretrieval_sqlite/__init__.py").read_text()
    page = (ROOT / "docs/custom-store.md").read_text()
    excerpts = re.findall(r"^```text\n( .*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(excerpts) == 5
    assert [excerpt for excerpt in excerpts if excerpt not in source] == []
