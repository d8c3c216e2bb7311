"""What is installed: the extras, each named by the error that its absence gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
NEEDS = {
    "chromadb": ("chroma", "from clipretrieval.stores import ChromaStore; ChromaStore()"),
    "lancedb": ("lance", "from clipretrieval.stores import LanceStore; LanceStore('folder')"),
    "onnx": (
        "onnx",
        "from clipretrieval.demo import demo_model; "
        "StagedEncoder(demo_model(), stage='stem').export('stem.onnx')",
    ),
    "openvino": (
        "openvino",
        "from clipretrieval import OnnxEncoder; OnnxEncoder('mid.onnx', runtime='openvino')",
    ),
    "pinecone": (
        "pinecone",
        "from clipretrieval.stores import PineconeStore; PineconeStore('i')",
    ),
    "psycopg": ("pgvector", "from clipretrieval.stores import PgVectorStore; PgVectorStore()"),
    "distributed": (
        "dask",
        "from clipretrieval.vectors.dask_runner import run_on_dask; next(run_on_dask(None, [], 1))",
    ),
    "fsspec": ("fsspec", "from clipretrieval.images import iter_raw; iter_raw('s3://bucket/pictures')"),
    "matplotlib": ("plots", "report.plot_confusion()"),
    "pyarrow": ("parquet", "RetrievalClassifier(k=1).fit(np.eye(2), ['a', 'b']).export('v.parquet')"),
    "ray": (
        "ray",
        "from clipretrieval.vectors.ray_runner import run_on_ray; next(run_on_ray(None, [], 1))",
    ),
}
WITHOUT = """
import sys
for package in {packages}:
    sys.modules[package] = None  # an import of it raises ModuleNotFoundError
import numpy as np
from clipretrieval import MissingDependencyError, RetrievalClassifier, StagedEncoder
report = RetrievalClassifier(k=1).fit(np.eye(2), ["a", "b"]).evaluate(np.eye(2), ["a", "b"])
for use in {uses}:
    try:
        exec(use)
    except MissingDependencyError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """The ``[project]`` table of pyproject.toml."""
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def test_missing_extras_are_named(project: dict[str, Any]) -> None:
    """Without an extra's package the part that needs it raises an error with the pip command."""
    code = WITHOUT.format(packages=list(NEEDS), uses=[use for _, use in NEEDS.values()])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert len(told) == len(NEEDS)
    for line, (package, (extra, _)) in zip(told, NEEDS.items(), strict=True):
        assert f'pip install "clipretrieval[{extra}]"' in line
        assert any(need.startswith(package) for need in project["optional-dependencies"][extra])


def test_the_extra_all_is_all_that_users_need(project: dict[str, Any]) -> None:
    """``clipretrieval[all]`` holds each extra but those for working on the package itself, Dask and Ray."""
    extras = set(project["optional-dependencies"]) - {"all", "bench", "dask", "dev", "docs", "ray"}
    assert project["optional-dependencies"]["all"] == [f"clipretrieval[{','.join(sorted(extras))}]"]


def test_pages_need_no_extra(project: dict[str, Any]) -> None:
    """jinja2, which fills the HTML report, comes with the package itself."""
    assert any(requirement.startswith("jinja2") for requirement in project["dependencies"])


def test_what_to_install_without_torch_is_documented(project: dict[str, Any]) -> None:
    """The command names each dependency but those of torch, and ONNX Runtime in their place."""
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    named = (
        page.partition("pip install --no-deps clipretrieval-*.whl\npip install ")[2].splitlines()[0].split()
    )
    needed = {requirement.partition(">")[0] for requirement in project["dependencies"]}
    assert set(named) == needed - {"torch", "torchvision", "open_clip_torch"} | {"onnxruntime"}
