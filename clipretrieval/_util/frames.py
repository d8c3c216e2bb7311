"""Tables for pandas, which is imported when the first one is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipretrieval.errors import MissingDependencyError

__all__ = ["data_frame"]


def data_frame(columns: Mapping[str, Any], index: Any = None, index_name: str | None = None) -> Any:
    """Return a ``pandas.DataFrame`` of some columns.

    Raises
    ------
    MissingDependencyError
        If pandas is not installed.
    """
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pandas":
            raise
        raise MissingDependencyError(
            "to_frame needs pandas, which is not installed; run: pip install pandas", name=error.name
        ) from error
    frame = pd.DataFrame(dict(columns), index=index)
    frame.index.name = index_name
    return frame
