"""Explanations as text and as HTML."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from clipretrieval._util.text import readable, shortened
from clipretrieval.heads.confidence import measure_text
from clipretrieval.images.thumbnail import THUMBNAIL, thumbnail

if TYPE_CHECKING:
    from clipretrieval.explanation import Explanation

__all__ = ["as_html", "as_text", "readable", "shortened"]

WIDEST_PATH = 48
WIDEST_LABEL = 28
WIDEST_ID = 16

_BOX = f"width:{THUMBNAIL}px;height:{THUMBNAIL}px;display:flex;align-items:center;justify-content:center;"
_CARD = "margin:0;width:128px;font:12px/1.4 sans-serif;overflow-wrap:anywhere;"


def as_text(explanation: Explanation) -> str:
    """Return an explanation as an aligned table under a line with the answer."""
    lines = [_headline(explanation)]
    header = ("share", "distance", "label", "id", "source")
    rows = [
        (
            f"{each.share:.1%}",
            f"{each.distance:.4g}",
            shortened(each.label, WIDEST_LABEL),
            shortened(each.id, WIDEST_ID),
            "-" if each.source is None else shortened(each.source, WIDEST_PATH),
        )
        for each in explanation.neighbors
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        numbers = [text.rjust(width) for text, width in zip(row[:2], widths[:2], strict=True)]
        words = [text.ljust(width) for text, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(("", *numbers, *words)).rstrip())
    return "\n".join(lines)


def as_html(explanation: Explanation) -> str:
    """Return an explanation as HTML that needs nothing from elsewhere: thumbnails are within it."""
    cards = [
        _card(
            each.source,
            [shortened(each.label, WIDEST_LABEL), f"{each.share:.1%} · {each.distance:.4g}"],
            faint=not each.share,
        )
        for each in explanation.neighbors
    ]
    asked = _card(explanation.query, ["asked"])
    return (
        f'<div><p style="font:13px sans-serif">{_escaped(_headline(explanation))}</p>'
        f'<div style="display:flex;flex-wrap:wrap;gap:8px">{asked}'
        '<div style="border-left:1px solid #999"></div>'
        f"{''.join(cards)}</div></div>"
    )


def _headline(explanation: Explanation) -> str:
    where = "" if explanation.query is None else f" for {shortened(explanation.query, WIDEST_PATH)}"
    answer = shortened(explanation.answer, WIDEST_LABEL)
    value = getattr(explanation, explanation.by)
    sure = "" if value is None else f" ({measure_text(explanation.by, value)})"
    return f"{answer}{where}{sure}"


def _card(path: str | None, lines: list[str], faint: bool = False) -> str:
    """Return a picture with a caption, and its path where the mouse rests on it."""
    title = "" if path is None else f' title="{_escaped(readable(path))}"'
    caption = "<br>".join(_escaped(line) for line in lines)
    opacity = "opacity:0.55;" if faint else ""
    return (
        f'<figure style="{_CARD}{opacity}"{title}>{_picture(path)}<figcaption>{caption}</figcaption></figure>'
    )


def _picture(path: str | None) -> str:
    found = None if path is None else thumbnail(path)
    if found is not None:
        name = _escaped(shortened(path, WIDEST_PATH))
        return f'<div style="{_BOX}"><img alt="{name}" src="data:image/jpeg;base64,{found}"></div>'
    text = "no file" if path is None else f"not readable: {shortened(path, WIDEST_PATH)}"
    return f'<div style="{_BOX}border:1px dashed #999;color:#777">{_escaped(text)}</div>'


def _escaped(text: str) -> str:
    return html.escape(text, quote=True)
