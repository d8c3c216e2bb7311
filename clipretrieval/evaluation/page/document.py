"""What all HTML pages are made of: templates, style and script in one file that needs nothing else.

A page holds its style, its script and its images. A policy within it forbids every request, and every
script but its own. All that comes from a user (names of classes, paths, titles) is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from clipretrieval._util.text import readable, shortened
from clipretrieval._version import __version__
from clipretrieval.evaluation.words import number_words
from clipretrieval.images.thumbnail import thumbnail

__all__ = ["SHARED", "read_thumbnails", "render_document"]

SHARED = "clipretrieval.evaluation.page"
"""The package whose templates all pages may use."""


def render_document(
    package: str, template: str, *, styles: Sequence[str], scripts: Sequence[str], **values: Any
) -> str:
    """Return a page.

    Parameters
    ----------
    package : str
        In whose ``templates`` the files are looked for, before those that all pages share.
    template : str
        One that extends ``base.html``.
    styles, scripts : sequence of str
        Files, of which the page holds one after the other.
    **values
        What the template asks for; of every page ``title``, ``notes`` and the ``data`` of its scripts.

    Returns
    -------
    str
        HTML.
    """
    script = "".join(_file(package, name) for name in scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return _template(package, template).render(
        style=Markup("".join(_file(package, name) for name in styles)),  # noqa: S704  our own
        script=Markup(script),  # noqa: S704  our own
        script_digest=digest,
        version=__version__,
        **values,
    )


def read_thumbnails() -> Callable[[str], str | None]:
    """Return what gives a file's thumbnail as an address, and reads each file once for a page."""

    @cache
    def read(path: str) -> str | None:
        found = thumbnail(path)
        return found and f"data:image/jpeg;base64,{found}"

    return read


def _file(package: str, name: str) -> str:
    for place in (package, SHARED):
        found = resources.files(place) / "templates" / name
        if found.is_file():
            return found.read_text(encoding="utf-8")
    raise FileNotFoundError(name)


@cache
def _template(package: str, name: str) -> jinja2.Template:
    surroundings = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda file: _file(package, file)),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    surroundings.filters["readable"] = readable
    surroundings.filters["shortened"] = shortened
    surroundings.filters["file_name"] = os.path.basename
    surroundings.filters["percent"] = lambda value: f"{value:.2%}"
    surroundings.filters["number"] = lambda value: (
        "–" if value is None or not math.isfinite(value) else number_words(value)
    )
    return surroundings.get_template(name)
