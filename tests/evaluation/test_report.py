"""The report's numbers, against independent computations."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from clipretrieval import EvaluationReport, InvalidInputError, RetrievalClassifier, StagedEncoder
from clipretrieval._util.timing import Timing
from clipretrieval.evaluation import class_table, confused_pairs, summarise_distances, wilson_interval
from clipretrieval.stores import MemoryStore

SETTING = {
    "n_train": 9,
    "model": None,
    "pretrained": None,
    "stage": None,
    "dim": 2,
    "store": "memory",
    "metric": "l2",
    "k": 1,
    "weights": "uniform",
}


def report(y_true, y_pred, distances=None):
    """A report on given answers."""
    y_true, y_pred = np.asarray(y_true), np.asarray(y_pred)
    return EvaluationReport(
        y_true=y_true,
        y_pred=y_pred,
        distances=np.ones(len(y_true), np.float32)
        if distances is None
        else np.asarray(distances, np.float32),
        classes=np.unique(np.concatenate([y_true, y_pred])),
        setting=SETTING,
        timing=Timing(
            {"decode": 2.0, "encode": 3.0, "search": 0.5}, {"decode": 10, "encode": 10, "search": 10}
        ),
        fit_timing=Timing(
            {"decode": 1.0, "encode": 4.0, "store": 0.0}, {"decode": 8, "encode": 8, "store": 8}
        ),
        fit_seconds=4.5,
        seconds=6.0,
    )


def test_measures_of_confidence_by_hand():
    """Share and margin of the votes, the distance, and how well each ranks the mistakes."""
    rows, labels = [[0.0], [1.0], [2.0], [10.0], [11.0], [13.0]], ["a", "a", "b", "b", "b", "a"]
    classifier = RetrievalClassifier(store="memory", k=3).fit(rows, labels)
    found = classifier.evaluate([[0.5], [10.5], [1.0]], ["a", "b", "b"])
    assert found.y_pred.tolist() == ["a", "b", "a"]
    assert found.confidence.tolist() == [2 / 3, 2 / 3, 2 / 3]
    assert found.margin.tolist() == [1 / 3, 1 / 3, 1 / 3]
    assert found.reliability("share").error_auroc == 0.5
    assert found.reliability("distance").error_auroc == 0.0  # the mistake lies nearest
    assert found.best_measure is None
    assert found.error_auroc == found.reliability("distance").error_auroc
    assert found.risk_coverage is found.reliability("distance").risk_coverage
    assert found.deciles is found.reliability("distance").deciles
    text = str(found)
    assert "AUROC for mistakes: share of the votes 0.500, margin 0.500, distance 0.000" in text
    assert "no measure ranks the mistakes better than chance" in text
    classifier.set_params(k=6, weights=lambda distances: np.broadcast_to([9, 0, 0, 4, 3, 1], distances.shape))
    found = classifier.evaluate([[0.0], [13.0]], ["a", "a"])
    assert found.confidence.tolist() == [10 / 17, 13 / 17]
    assert found.margin.tolist() == [3 / 17, 9 / 17]


def test_a_report_without_shares_ranks_by_distance_alone():
    """What a report does not have is refused by name."""
    found = report(["a", "b"], ["a", "a"], [1.0, 2.0])
    assert list(found.reliabilities) == ["distance"]
    assert found.best_measure == "distance"
    with pytest.raises(InvalidInputError, match="this report has no margin of each answer"):
        found.reliability("margin")
    with pytest.raises(InvalidInputError, match="by must be one of 'share', 'margin', 'distance'"):
        found.reliability("votes")


@pytest.mark.parametrize("through", ["itself", "another"])
def test_a_class_that_was_forgotten_is_not_listed(through):
    """Whichever classifier of the store forgot it; where images of it are asked about it is there again."""
    rows, labels = np.arange(9.0)[:, None], list("aaabbbccc")
    store = MemoryStore()
    first = RetrievalClassifier(store=store).fit(rows, labels)
    second = RetrievalClassifier.from_store(store)
    (first if through == "itself" else second).forget(label="c")
    found = first.evaluate(rows[:6], labels[:6])
    assert found.classes.tolist() == ["a", "b"]
    assert [row["class"] for row in found.per_class] == ["a", "b"]
    assert found.confusion_matrix.tolist() == [[3, 0], [0, 3]]
    again = first.evaluate(rows, labels)
    assert [(row["class"], row["support"], row["recall"]) for row in again.per_class][2] == ("c", 3, 0.0)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_equals_its_formula(case):
    """The interval is the two roots of Wilson's quadratic."""
    hits, n = case
    z, p = 1.959963984540054, hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = wilson_interval(hits, n)
    assert low == pytest.approx(centre - half, abs=1e-12)
    assert high == pytest.approx(centre + half, abs=1e-12)
    assert 0 <= low <= p <= high <= 1


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (2, 1), (-1, 3)])
def test_wilson_interval_of_nothing_is_refused(hits, n):
    """There is no interval without trials, nor with more hits than trials."""
    with pytest.raises(InvalidInputError, match=r"trials must be|successes must be"):
        wilson_interval(hits, n)


@given(
    st.integers(1, 40).flatmap(
        lambda n: st.tuples(*[hnp.arrays(np.int64, n, elements=st.integers(0, 4)) for _ in range(2)])
    )
)
def test_class_table_equals_counting(case):
    """Precision, recall and F1 of each class are ratios of counts, 0 where there is nothing to count."""
    y_true, y_pred = case
    classes = np.arange(5)
    for row in class_table(y_true, y_pred, classes):
        hits = sum(t == p == row["class"] for t, p in zip(y_true, y_pred, strict=True))
        support, predicted = (y_true == row["class"]).sum(), (y_pred == row["class"]).sum()
        assert (row["support"], row["predicted"]) == (support, predicted)
        assert row["precision"] == pytest.approx(hits / predicted if predicted else 0)
        assert row["recall"] == pytest.approx(hits / support if support else 0)
        assert row["f1"] == pytest.approx(2 * hits / (support + predicted) if support + predicted else 0)


def test_report_counts_what_was_right():
    """Accuracy, the confusion matrix and the distances of right and wrong answers add up."""
    found = report(["a", "b", "b", "c"], ["a", "b", "c", "c"], [1, 2, 7, 3])
    assert found.accuracy == 0.75
    assert found.confusion_matrix.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]
    content = json.loads(found.to_json())
    assert content["accuracy"] == 0.75
    assert content["accuracy_interval"] == list(wilson_interval(3, 4))
    assert content["distances"]["right"]["mean"] == 2.0
    assert content["distances"]["wrong"] == {
        "count": 1,
        "mean": 7.0,
        "std": 0.0,
        "min": 7.0,
        "q25": 7.0,
        "median": 7.0,
        "q75": 7.0,
        "max": 7.0,
    }


def test_report_of_only_right_answers_is_valid_json():
    """Where no answer was wrong, its distances are null and not NaN."""
    content = json.loads(report([1, 2], [1, 2]).to_json(), parse_constant=pytest.fail)
    assert content["distances"]["wrong"]["mean"] is None
    assert content["distances"]["wrong"]["count"] == 0


def test_timing_has_every_part_once():
    """Seconds and rates of fit and test stand side by side; a part without time has no rate."""
    timing = report([1], [1]).to_dict()["timing"]
    assert {name: part["seconds"] for name, part in timing["parts"].items()} == {
        "fit_decode": 1.0,
        "fit_encode": 4.0,
        "fit_store": 0.0,
        "decode": 2.0,
        "encode": 3.0,
        "search": 0.5,
    }
    assert timing["parts"]["search"]["images_per_second"] == 20
    assert timing["parts"]["fit_store"]["images_per_second"] is None
    assert (timing["fit_s"], timing["encode_s"], timing["search_s"], timing["total_s"]) == (
        4.5,
        3.0,
        0.5,
        10.5,
    )


def test_report_reads_well():
    """The text names the accuracy, the setting, every class and every part of the time."""
    text = str(report(["ü", "b"], ["ü", "ü"]))
    for part in ("accuracy 50.00%", "1 of 2 images", "store memory", "ü", "fit encode", "search"):
        assert part in text


def test_json_is_written_where_told(tmp_path):
    """The file holds what to_dict gives."""
    found = report([1, 2], [1, 1])
    found.to_json(tmp_path / "r.json")
    assert (
        json.loads((tmp_path / "r.json").read_text())["confusion_matrix"] == found.confusion_matrix.tolist()
    )


@given(hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(0, 100, width=32)))
def test_distance_summary_orders(values):
    """The quartiles are those of NumPy and lie between the extremes."""
    found = summarise_distances(values)
    assert found.min <= found.q25 <= found.median <= found.q75 <= found.max
    assert found.median == pytest.approx(float(np.median(values.astype(np.float64))))


def test_labels_never_fitted_count_as_wrong():
    """A test class that the classifier does not know appears in the matrix, with no right answer."""
    classifier = RetrievalClassifier().fit([[0.0], [1.0]], ["a", "b"])
    found = classifier.evaluate(np.array([[0.0], [1.0], [1.1]], np.float32), ["a", "b", "z"])
    assert found.classes.tolist() == ["a", "b", "z"]
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.confusion_matrix[2].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("y_true", "y_pred"), [(["a", "z"], ["a", "a"]), (["a", "a"], ["a", "z"]), ([1, 1], [1, 1])]
)
def test_labels_outside_of_the_classes_are_refused(y_true, y_pred):
    """A report whose classes lack a label has no matrix that holds every image, and is refused."""
    with pytest.raises(InvalidInputError, match="is none of the report's classes"):
        replace(report(["a", "b"], ["a", "b"]), y_true=np.array(y_true), y_pred=np.array(y_pred))


@given(
    st.integers(1, 40).flatmap(
        lambda n: st.tuples(*[hnp.arrays(np.int64, n, elements=st.integers(0, 4)) for _ in range(2)])
    ),
    st.booleans(),
    st.integers(1, 7),
)
def test_confusions_equal_those_of_scikit_learn(case, objects, side):
    """The matrix, the class table and the pairs are those of dense counting, whatever type labels have."""
    names = np.array(list("badce"), dtype=object if objects else None)
    y_true, y_pred = (names[codes] for codes in case)
    found = replace(report(y_true, y_pred), classes=np.sort(names))
    expected = confusion_matrix(y_true, y_pred, labels=np.sort(names))
    np.testing.assert_array_equal(found.confusion_matrix, expected)
    assert found.confused_pairs() == confused_pairs(expected, np.sort(names))
    scores = precision_recall_fscore_support(y_true, y_pred, labels=np.sort(names), zero_division=0)
    table = [[row[name] for row in found.per_class] for name in ("precision", "recall", "f1", "support")]
    np.testing.assert_allclose(table, scores, rtol=1e-15)
    blocks = np.add.reduceat(np.add.reduceat(expected, range(0, 5, side)), range(0, 5, side), axis=1)
    np.testing.assert_array_equal(found._confusion.matrix(side), blocks)
    part = class_table(y_true, y_pred, np.array(["b", "e", "z"]))
    scores = precision_recall_fscore_support(y_true, y_pred, labels=["b", "e", "z"], zero_division=0)
    np.testing.assert_allclose([row["f1"] for row in part], scores[2], rtol=1e-15)


def test_a_report_tells_how_the_encoder_ran(tiny_model, photographs):
    """The setting has the encoder's plan, in the text too; the pixel stage runs no plan."""
    encoder = StagedEncoder(tiny_model, stage="mid")
    labels = ["china"] * 4 + ["flower"] * 4
    classifier = RetrievalClassifier(encoder, "memory").fit(photographs[::2], labels[::2])
    measured = classifier.evaluate(photographs[1::2], labels[1::2])
    assert measured.setting["plan"] == encoder.plan.to_dict()
    assert f"encoded in {measured.setting['plan']['precision']}" in str(measured)
    pixels = RetrievalClassifier(StagedEncoder(tiny_model, stage="pixel"), "memory")
    found = pixels.fit(photographs[::2], labels[::2]).evaluate(photographs[1::2], labels[1::2])
    assert found.setting["plan"] is None
