"""Which columns of a file hold what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clipretrieval._util.checks import check_text
from clipretrieval.errors import InvalidInputError

__all__ = ["ColumnNames"]

_VECTORS = ("vector", "vectors", "embedding", "embeddings", "emb", "features")
_LABELS = ("label", "labels")
_IDS = ("id", "ids")


@dataclass(frozen=True)
class ColumnNames:
    """The columns to read, None where they are found by their usual names.

    Attributes
    ----------
    vectors, ids, labels : str or None
    """

    vectors: str | None = None
    ids: str | None = None
    labels: str | None = None

    def __post_init__(self) -> None:
        for name in ("vectors", "ids", "labels"):
            value = getattr(self, name)
            if value is not None:
                check_text(value, f"{name}, the name of a column,")

    def find_vectors(
        self,
        listed: Sequence[str],
        possible: Sequence[str],
        likely: Sequence[str],
        where: str,
        types: str = "",
    ) -> str:
        """Return the column of vectors.

        Parameters
        ----------
        listed : sequence of str
            All columns.
        possible : sequence of str
            Those whose values can be vectors.
        likely : sequence of str
            Those of them that are taken for vectors whatever their name.
        where : str
            What has them, in an error's words.
        types : str, optional
            Of all columns, likewise.

        Raises
        ------
        InvalidInputError
            If there is none, or it is not clear which; the message lists what there is.
        """
        if self.vectors is not None:
            return _named(self.vectors, listed, where, "vectors")
        usual = [name for name in _VECTORS if name in possible]
        found = usual[:1] or list(likely)
        if len(found) == 1:
            return found[0]
        which = "several columns that may be vectors" if found else "no column of vectors"
        raise InvalidInputError(
            f"{where} has {which}; its columns are {_list(listed)}"
            f"{types and f', of the types {types:.500}'}. Name the right one: column='…'"
        )

    def find_labels(self, listed: Sequence[str], where: str) -> str | None:
        """Return the column of labels; None where none was asked for and none is there."""
        return _found(self.labels, _LABELS, listed, where, "labels")

    def find_ids(self, listed: Sequence[str], where: str) -> str | None:
        """Return the column of ids; None where none was asked for and none is there."""
        return _found(self.ids, _IDS, listed, where, "ids")


def _found(
    wanted: str | None, usual: Sequence[str], listed: Sequence[str], where: str, what: str
) -> str | None:
    if wanted is not None:
        return _named(wanted, listed, where, what)
    return next((name for name in usual if name in listed), None)


def _named(wanted: str, listed: Sequence[str], where: str, what: str) -> str:
    if wanted not in listed:
        raise InvalidInputError(
            f"{where} has no column {wanted!r} for the {what}; its columns are {_list(listed)}"
        )
    return wanted


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:20]))
    return f"{shown}, … ({len(names)} in all)" if len(names) > 20 else shown or "none"
