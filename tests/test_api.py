"""The door: what is exported is there, and importing costs nothing."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import clipretrieval
from clipretrieval import errors


@pytest.mark.parametrize(
    "module",
    [
        "clipretrieval",
        "clipretrieval.encoding",
        "clipretrieval.errors",
        "clipretrieval.evaluation",
        "clipretrieval.images",
        "clipretrieval.stores",
        "clipretrieval.types",
        "clipretrieval.voting",
    ],
)
def test_every_exported_name_is_there(module):
    """Each name in ``__all__`` can be imported, and ``dir`` lists it."""
    found = importlib.import_module(module)
    assert len(set(found.__all__)) == len(found.__all__)
    for name in found.__all__:
        assert getattr(found, name) is not None
        assert name in dir(found)


def test_every_error_is_at_the_door():
    """The package exports the whole tree of exceptions, under their own names."""
    for name in errors.__all__:
        assert getattr(clipretrieval, name) is getattr(errors, name)


def test_unknown_names_are_attribute_errors():
    """A lazy package answers like any other when it is asked for what it does not have."""
    with pytest.raises(AttributeError, match="'clipretrieval' has no attribute 'nothing'"):
        _ = clipretrieval.nothing


def test_python_m_runs_the_command_line():
    """``python -m clipretrieval --version`` prints the package's version."""
    command = [sys.executable, "-m", "clipretrieval", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"clipretrieval {clipretrieval.__version__}"
