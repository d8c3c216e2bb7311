"""What stores and classifiers answer, as JSON values that keep every bit of a number.

Floats are kept in hexadecimal (`float.hex`), in which equal text means equal bits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipretrieval import EvaluationReport, Neighbors, RetrievalClassifier

FIXTURES = Path(__file__).parent / "fixtures"
ANSWERS = "answers.json"
HEXADECIMAL = ("distances", "shares", "vectors")
"""The fields that hold rows of such floats."""


def hexadecimal(numbers: Any) -> list[list[str]]:
    """Rows of floats as text."""
    return [[float(number).hex() for number in row] for row in np.asarray(numbers).tolist()]


def plain(labels: Any) -> list[Any]:
    return list(np.asarray(labels).tolist())


def neighbors(near: Neighbors) -> dict[str, Any]:
    return {"ids": plain(near.ids), "distances": hexadecimal(near.distances), "labels": plain(near.labels)}


def store_answers(store: Any, queries: list[list[int]], k: int, some: list[str]) -> dict[str, Any]:
    """All that a store answers; `some` are ids to get, in that order."""
    held = store.get(some)
    listed = [
        pair for part in store.scan() for pair in zip(part.ids.tolist(), part.labels.tolist(), strict=True)
    ]
    return {
        "metric": str(store.metric),
        "dim": store.dim,
        "count": store.count(),
        "manifest": store.read_manifest(),
        "search": neighbors(store.search(np.array(queries, dtype=np.float32), k)) if store.dim else None,
        "get": {
            "ids": plain(held.ids),
            "vectors": hexadecimal(held.vectors),
            "labels": plain(held.labels),
            "metadata": held.metadata,
        },
        "scan": [list(pair) for pair in sorted(listed)],
    }


def classifier_answers(classifier: RetrievalClassifier, queries: Any) -> dict[str, Any]:
    """All that a classifier answers."""
    params = classifier.get_params(deep=False)
    return {
        "params": {name: params[name] for name in ("k", "weights", "temperature", "metric", "normalize")},
        "count": classifier.store_.count(),
        "manifest": classifier.store_.read_manifest(),
        "n_features_in": classifier.n_features_in_,
        "classes": {"kind": classifier.classes_.dtype.kind, "labels": plain(classifier.classes_)},
        "predict": plain(classifier.predict(queries)),
        "predict_proba": {"shares": hexadecimal(classifier.predict_proba(queries))},
        "kneighbors": neighbors(classifier.kneighbors(queries)),
    }


def report_values(report: EvaluationReport) -> dict[str, Any]:
    """A report's JSON, but for what differs from run to run and from machine to machine."""
    values: dict[str, Any] = json.loads(report.to_json())
    return {name: value for name, value in values.items() if name not in ("timing", "versions")}


def check_same(found: Any, recorded: Any, *, exact: bool, path: str = "") -> None:
    """Compare answers: all of them bit for bit, or the floats to within 1e-6.

    Cosines, vectors of length one, and shares that are sums of inverses or exponentials are rounded, and the
    order of a sum depends on the processor. Ids, labels and counts are the same everywhere.
    """
    if isinstance(recorded, dict):
        assert found.keys() == recorded.keys(), path
        for name, value in recorded.items():
            if name in HEXADECIMAL and isinstance(value, list) and not exact:
                np.testing.assert_allclose(
                    numbers(found[name]), numbers(value), rtol=1e-6, atol=1e-6, err_msg=f"{path}.{name}"
                )
            else:
                check_same(found[name], value, exact=exact, path=f"{path}.{name}")
    elif isinstance(recorded, list) and not exact:
        assert len(found) == len(recorded), path
        for place, value in enumerate(recorded):
            check_same(found[place], value, exact=exact, path=f"{path}[{place}]")
    elif isinstance(recorded, float) and not exact:
        assert found == pytest.approx(recorded, rel=1e-6, abs=1e-6), path
    else:
        assert found == recorded, path


def numbers(rows: list[list[str]]) -> Any:
    return np.array([[float.fromhex(text) for text in row] for row in rows])


def write(file: Path, content: dict[str, Any]) -> None:
    """Write JSON with one row, record or plain value to a line."""
    file.write_text(_lines(content, "") + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / ANSWERS).read_text(encoding="utf-8"))
    return content


def _lines(value: Any, margin: str) -> str:
    inner = margin + " "
    if isinstance(value, dict) and len(margin) < 3 and value:
        items = [f"{json.dumps(name)}: {_lines(item, inner)}" for name, item in value.items()]
        return "{\n" + ",\n".join(inner + item for item in items) + "\n" + margin + "}"
    if isinstance(value, list) and value and isinstance(value[0], list | dict):
        return "[\n" + ",\n".join(inner + json.dumps(item) for item in value) + "\n" + margin + "]"
    return json.dumps(value)
