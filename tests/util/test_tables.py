"""Tables, in which what others wrote stays text."""

from __future__ import annotations

import pytest

from clipretrieval._util.tables import aligned_table, html_table, markdown_table, number_cell


def test_columns_are_aligned() -> None:
    """Names to the left and numbers to the right, each column as wide as its widest cell."""
    assert aligned_table([("name", "k"), ("a", "100")]) == ["name    k", "a     100"]


@pytest.mark.parametrize("name", ["<b>", "a|b", "a\nb", "x" * 300])
def test_names_stay_text(name: str) -> None:
    """No name begins a tag, a cell or a line, and long ones are shortened."""
    markdown, page = markdown_table(("name",), [(name,)]), html_table(("name",), [(name,)])
    assert len(markdown.splitlines()) == 3
    assert markdown.splitlines()[-1].replace(r"\|", "").count("|") == 2
    for text in (markdown, page):
        assert "<b>" not in text
        assert "x" * 300 not in text
    assert "\n" not in page


def test_numbers_stand_at_the_right_of_markdown() -> None:
    """All columns but the first, where the table says so; what is missing is a dash."""
    rows = [("a", number_cell(0.5, ".1%")), ("b", number_cell(None, ".1%"))]
    assert markdown_table(("name", "share"), rows, numbers=True).splitlines() == [
        "| name | share |",
        "| --- | ---: |",
        "| a | 50.0% |",
        "| b | - |",
    ]
