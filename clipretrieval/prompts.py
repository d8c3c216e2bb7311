"""Class names to the texts that stand for them."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from clipretrieval._util.checks import check_sequence, check_text, shown
from clipretrieval._util.labels import class_array, label_kind, stored_labels
from clipretrieval.errors import InvalidInputError
from clipretrieval.types import AnyArray

__all__ = ["PHOTO_PROMPT", "STUDY_PROMPT", "Template", "Templates"]

Template: TypeAlias = str | Callable[[str], str]
Templates: TypeAlias = Template | Iterable[Template]

STUDY_PROMPT = "{article} {}"
"""The study's: "an airplane", "an automobile", "a bird", …"""
PHOTO_PROMPT = "a photo of a {}."
"""The one that CLIP's authors recommend to begin with."""


def listed_templates(templates: Templates) -> list[Template]:
    """Return one template or several as a list, each of which has a place for the class's name.

    Raises
    ------
    InvalidInputError
        If there is none, or one is neither a string with ``{}`` in it nor a callable.
    """
    single = isinstance(templates, str) or callable(templates) or not isinstance(templates, Iterable)
    listed: list[Any] = [templates] if single else check_sequence(templates, "templates", "str")
    if not listed:
        raise InvalidInputError("templates is empty; pass at least one, such as 'a photo of a {}.'")
    for template in listed:
        _check_template(template)
    return listed


def fill(template: Template, name: str) -> str:
    """Put a class's name into a template.

    Parameters
    ----------
    template : str or callable
        ``{}`` stands for the name and ``{article}`` for its indefinite article, ``an`` before a, e, i, o
        and u, ``a`` elsewhere. A callable, such as those of ``open_clip.OPENAI_IMAGENET_TEMPLATES``, is
        given the name.
    name : str

    Returns
    -------
    str

    Examples
    --------
    >>> fill("{article} {}", "airplane"), fill("a photo of {article} {}.", "cat")
    ('an airplane', 'a photo of a cat.')
    """
    _check_template(template)
    return filled(template, check_text(name, "name"))


def filled(template: Template, name: str) -> str:
    """Do what `fill` does with a template that `listed_templates` has checked."""
    if callable(template):
        found = template(name)
        if not isinstance(found, str):
            raise InvalidInputError(
                f"the template {shown(template)} returned {shown(found)} for {name!r}; it must return a str"
            )
        return found
    return template.format(name, article="an" if name[:1].lower() in set("aeiou") else "a")


def read_classes(class_names: Any) -> tuple[AnyArray, list[str]]:
    """Return the labels, sorted, and the names that the prompts have for them.

    Parameters
    ----------
    class_names : sequence of str, or mapping of label to str
        The strings of a sequence are labels; their names have spaces for underscores.

    Returns
    -------
    classes : ndarray, shape (n_classes,)
    names : list of str, length n_classes

    Raises
    ------
    InvalidInputError
        If there is none, one comes twice, or is of another type.
    """
    if isinstance(class_names, Mapping):
        names = dict(class_names)
    else:
        listed = check_sequence(class_names, "class_names, unless it is a mapping {label: name},", "str")
        given = [name.item() if isinstance(name, np.generic) else name for name in listed]
        if not all(isinstance(name, str) for name in given):
            raise InvalidInputError("class_names must be strings; for numbers pass a mapping {label: name}")
        if len(set(given)) != len(given):
            raise InvalidInputError("class_names has a name twice; pass each class once")
        names = {name: name.replace("_", " ") for name in given}
    if not names:
        raise InvalidInputError("class_names is empty; pass the name of each class")
    wrong = [name for name in names.values() if not isinstance(name, str) or not name.strip()]
    if wrong:
        raise InvalidInputError(f"a class's name must be text that is not empty; got {wrong[0]!r:.100}")
    kind = label_kind(names)
    classes = class_array(stored_labels(names, kind), kind)
    return classes, [names[label] for label in classes.tolist()]


def _check_template(template: Any) -> None:
    wanted = "expected text with {} where the class's name goes, such as 'a photo of a {}.', or a callable"
    if callable(template) and not isinstance(template, type):
        return
    if not isinstance(template, str):
        raise InvalidInputError(
            f"the template {shown(template)} is of the type {type(template).__name__}; {wanted}"
        )
    try:
        places = list(string.Formatter().parse(template))
        fields = {name for _, name, _, _ in places if name is not None}
    except ValueError as error:
        raise InvalidInputError(
            f"the template {shown(template)} cannot be read: {error}; {wanted}"
        ) from error
    if not fields <= {"", "0", "article"} or not fields & {"", "0"}:
        raise InvalidInputError(f"the template {shown(template)} has the places {sorted(fields)}; {wanted}")
    # A width such as {:>1000000000} would make texts of that length, and no prompt needs any.
    if any(spec or conversion for _, _, spec, conversion in places):
        raise InvalidInputError(
            f"the template {shown(template)} has a place with a format behind its name; {wanted}"
        )
    try:
        filled(template, "x")
    except (ValueError, IndexError, AttributeError, KeyError) as error:
        raise InvalidInputError(
            f"the template {shown(template)} cannot be filled: {error}; {wanted}"
        ) from error
