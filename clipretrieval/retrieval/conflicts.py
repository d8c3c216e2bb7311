"""Labels that are probably mistakes."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any

from clipretrieval._util.warning import warn_caller
from clipretrieval.retrieval.reports import FitReport
from clipretrieval.types import AnyArray

__all__ = ["lookalikes", "warn_of_labels", "warn_of_lookalikes"]


def lookalikes(classes: Iterable[Any], known: Iterable[Any] = ()) -> list[list[str]]:
    """Group labels that readers take for one: they differ in case, in spaces or as Unicode alone.

    Parameters
    ----------
    classes : iterable
        Labels; those that are no str have no lookalikes.
    known : iterable
        Labels that were there before: a group of these alone is no news.

    Returns
    -------
    list of list of str
        Groups of two or more, sorted.
    """
    met, old = set(classes), set(known)
    if met <= old:
        return []
    groups: dict[str, set[str]] = {}
    for label in met:
        if isinstance(label, str):
            groups.setdefault(_folded(label), set()).add(label)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1 and not group <= old)


def warn_of_labels(
    report: FitReport, classes: AnyArray, *, known: AnyArray | None = None, vectors: bool
) -> None:
    """Say which labels of a fit are probably mistakes.

    Parameters
    ----------
    report : FitReport
    classes : ndarray, shape (n_classes,)
        All labels by now, of the type that was fitted.
    known : ndarray, shape (n_known,), optional
        Labels that were there before.
    vectors : bool
        Whether vectors were given, which are one if they are equal as float32, and not images.
    """
    count = report.n_conflicts
    if count:
        noun = f"{'vector' if vectors else 'image'}{'' if count == 1 else 's'}"
        equal = ", equal as float32," if vectors else ""
        warn_caller(
            f"{count} {noun}{equal} {'was' if count == 1 else 'were'} given under several labels, such as "
            f"{report.conflicts[0]}; the last label counts. fit_report_.conflicts lists them; correct them "
            "with relabel or forget"
        )
    warn_of_lookalikes(classes, known)


def warn_of_lookalikes(classes: AnyArray, known: AnyArray | None = None) -> None:
    """Name the classes that readers take for one; groups of `known` classes are no news."""
    if classes is known or classes.dtype.kind not in "UO":
        return
    groups = lookalikes(classes.tolist(), () if known is None else known.tolist())
    if groups:
        listed = "; ".join(" and ".join(map(ascii, group)) for group in groups[:5])
        differ = "1 group of labels differs" if len(groups) == 1 else f"{len(groups)} groups of labels differ"
        warn_caller(
            f"{differ} in case, spaces or Unicode normalization alone, and each label is a class of its "
            f"own: {listed}{'; …' if len(groups) > 5 else ''}. Where they mean the same, give them one "
            "spelling"
        )


def _folded(label: str) -> str:
    if label.isascii():  # which the normal forms leave as it is
        return " ".join(label.casefold().split())
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold())
    return " ".join(plain.split())
