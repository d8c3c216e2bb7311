"""The linear probe: scikit-learn's own regression on the stored vectors, and marked as what it is."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from clipretrieval import (
    InvalidInputError,
    RetrievalClassifier,
    StagedEncoder,
    UnsupportedOperationError,
    compare,
)
from clipretrieval.comparison.linear_probe import fit_probe
from clipretrieval.heads.base import Queries
from clipretrieval.stores import MemoryStore
from clipretrieval.types import no_neighbors

QUICK = {"timed_images": 4, "single_images": 0, "open_clip": False}


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return StagedEncoder(tiny_model, precision="fp32")


def index_of(X, y):
    return RetrievalClassifier(store="memory").fit(X, y).retriever_.index


@pytest.mark.parametrize("classes", [2, 3])
def test_it_is_scikit_learns_regression(classes):
    """As one linear map, with the C that it says; the order in which vectors came changes nothing."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, 90)
    X = (rng.normal(size=(90, 6)) + y[:, None]) * [1, 10, 0.1, 1, 1, 0] + 5
    index = index_of(X, y)
    rule = fit_probe(index)
    found = rule.describe()
    assert (found["head"], found["folds"]) == ("linear probe", 3)
    chain = make_pipeline(StandardScaler(), LogisticRegression(C=found["C"], max_iter=1000))
    expected = chain.fit(X, y).predict_proba(X)
    rows = X.astype(np.float32)
    decision = rule.decide(rows, no_neighbors(90), index.number_classes())
    np.testing.assert_allclose(decision.probabilities, expected, atol=2e-3)
    again = fit_probe(index_of(X[::-1], y[::-1]))
    queries = Queries(rows, no_neighbors(90))
    assert_array_equal(again.learned.log_scores(queries), rule.learned.log_scores(queries))


def test_a_class_with_one_vector_leaves_no_choice():
    found = fit_probe(index_of([[0.0], [1.0], [5.0]], [0, 0, 1])).describe()
    assert (found["C"], found["folds"]) == (0.01, 0)


def test_it_is_a_row_of_each_stage_and_no_other_rows_baseline(encoder, class_folder):
    """Named and noted as trained, once a stage, whatever stores there are; other rows stay as they are."""
    train, test = class_folder / "train", class_folder / "test"
    options = {"encoder": encoder, "stages": ("pixel", "layer1"), "stores": ("memory", "faiss"), **QUICK}
    report, without = compare(train, test, probe=True, **options), compare(train, test, **options)
    names = [row.name for row in without.rows]
    probes = ["pixel linear probe (trained)", "layer1 linear probe (trained)"]
    assert [row.name for row in report.rows] == names + probes
    assert report.baseline == without.baseline == "layer1 faiss"
    assert [row.trained for row in report.rows] == [False] * 4 + [True] * 2
    row = report[probes[1]]
    assert row.bytes == 0
    assert row.mcnemar is not None
    assert (
        str(report).count("linear probe (trained): a reference, which was trained on the vectors of the 24")
        == 2
    )
    assert json.loads(report.to_json())["rows"][-1]["trained"] is True
    assert probes[1] in report.to_html()
    alone = RetrievalClassifier(StagedEncoder(encoder.model, stage="layer1", precision="fp32")).fit(train)
    index = alone.retriever_.index
    vectors = alone.encoder.encode(test)
    decision = fit_probe(index).decide(vectors, no_neighbors(10), index.number_classes())
    assert_array_equal(row.report.y_pred, alone.classes_[decision.answers])


def test_what_cannot_be_probed_is_refused(encoder, class_folder, command):
    class Unlisted(MemoryStore):
        scan = None

    train, test = class_folder / "train", class_folder / "test"
    options = {"encoder": encoder, "stages": ("pixel",), "probe": True, **QUICK}
    with pytest.raises(UnsupportedOperationError, match=r"Unlisted cannot list.*probe=False"):
        compare(train, test, stores={"unlisted": lambda stage: Unlisted()}, **options)
    with pytest.raises(InvalidInputError, match="a linear probe tells classes apart, and there is one, 'a'"):
        compare(train, test, train_labels=["a"] * 24, test_labels=["a"] * 10, **options)
    with pytest.raises(InvalidInputError, match="probe must be True or False"):
        compare(train, test, **{**options, "probe": "yes"})
    quick = ("--timed-images", 2, "--single-images", 0, "--no-zero-shot", "--no-open-clip")
    status, out, err = command(
        "compare", train, test, "--pretrained", "none", "--stages", "pixel", "--probe", *quick
    )
    assert status == 0, err
    assert "pixel linear probe (trained)" in out
