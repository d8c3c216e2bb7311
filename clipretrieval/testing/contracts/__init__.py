"""The parts of the conformance suite of vector stores, a class for each capability, and that of heads."""

from __future__ import annotations

import pkgutil

from clipretrieval.errors import MissingDependencyError

try:
    import hypothesis  # noqa: F401
    import pytest
except ModuleNotFoundError as error:
    if error.name not in ("hypothesis", "pytest"):
        raise
    raise MissingDependencyError(
        f"the conformance suites need {error.name!r}, which is not installed; run: "
        'pip install pytest hypothesis (they are part of "clipretrieval[dev]")',
        name=error.name,
    ) from error

__all__: list[str] = []

# Here, before any of them is imported: a failed assert then shows its values.
pytest.register_assert_rewrite(*(part.name for part in pkgutil.iter_modules(__path__, f"{__name__}.")))
