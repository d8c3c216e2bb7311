"""The exceptions and warnings of clipretrieval.

::

    ClipRetrievalError
    ├── InvalidInputError (also a ValueError)
    │   ├── DimensionMismatchError
    │   └── ImageDecodeError
    ├── NotFittedError (also scikit-learn's NotFittedError)
    ├── MissingDependencyError (also an ImportError)
    ├── UnknownStoreError (also a LookupError)
    ├── WeightsUnavailableError
    ├── FingerprintMismatchError
    └── StoreError
        ├── StoreUnavailableError
        ├── StoreCorruptedError
        ├── StoreLockedError
        └── UnsupportedOperationError

    ClipRetrievalWarning (a UserWarning)

Every message says what was wrong, what was expected and what to do about it. Errors of the libraries
below (FAISS, SQLite, Pillow, open_clip, …) are translated into these, with the original as
``__cause__``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sklearn.exceptions import NotFittedError as _SklearnNotFittedError

from clipretrieval._util.secrets import masked_urls

__all__ = [
    "ClipRetrievalError",
    "ClipRetrievalWarning",
    "DimensionMismatchError",
    "FingerprintMismatchError",
    "ImageDecodeError",
    "InvalidInputError",
    "MissingDependencyError",
    "NotFittedError",
    "StoreCorruptedError",
    "StoreError",
    "StoreLockedError",
    "StoreUnavailableError",
    "UnknownStoreError",
    "UnsupportedOperationError",
    "WeightsUnavailableError",
]


class ClipRetrievalError(Exception):
    """Base class of every error that this library raises on purpose.

    Users and passwords of URLs are masked in the message, whatever it quotes.
    """

    def __init__(self, *args: object, **options: Any) -> None:
        shown = (masked_urls(each) if isinstance(each, str) else each for each in args)
        super().__init__(*shown, **options)


class InvalidInputError(ClipRetrievalError, ValueError):
    """An argument has the wrong type, shape, length or value."""


class DimensionMismatchError(InvalidInputError):
    """Vectors have another dimension than the store or the classifier holds."""


class ImageDecodeError(InvalidInputError):
    """An image could not be read or decoded; the message names it."""


class MissingDependencyError(ClipRetrievalError, ImportError):
    """An optional package is not installed; the message gives the pip command."""


class UnknownStoreError(ClipRetrievalError, LookupError):
    """No store is registered under that name; the message lists the known ones."""


class WeightsUnavailableError(ClipRetrievalError):
    """The encoder's weights could not be fetched, read or fitted to the model."""


class FingerprintMismatchError(ClipRetrievalError):
    """A store was filled by a different encoder or metric; the message names what differs."""


class StoreError(ClipRetrievalError):
    """A vector store failed."""


class StoreUnavailableError(StoreError):
    """The store could not be reached or opened, now or at all."""


class StoreCorruptedError(StoreError):
    """What is on disk is damaged, truncated or of an unknown format."""


class StoreLockedError(StoreError):
    """Another writer holds the store."""


class UnsupportedOperationError(StoreError):
    """This store cannot do what was asked, by its nature or as it was opened."""


class ClipRetrievalWarning(UserWarning):
    """Something was done, but perhaps not what was meant."""


if TYPE_CHECKING:

    class NotFittedError(ClipRetrievalError, _SklearnNotFittedError):
        """The classifier was asked for an answer before it was fitted."""


def __getattr__(name: str) -> Any:
    """Make `NotFittedError` at its first use: scikit-learn, its other base, takes a second to import.

    Modules that a question goes through therefore name it as ``errors.NotFittedError``, where they raise it.
    """
    if name != "NotFittedError":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sklearn.exceptions import NotFittedError as Base

    doc = "The classifier was asked for an answer before it was fitted."
    found = type(name, (ClipRetrievalError, Base), {"__doc__": doc, "__module__": __name__})
    return globals().setdefault(name, found)
