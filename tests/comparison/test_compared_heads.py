"""Comparing heads: their rows, what these answer, and what an answer takes."""

from __future__ import annotations

import pytest

from clipretrieval import InvalidInputError, RetrievalClassifier, StagedEncoder, compare
from clipretrieval.heads import Discriminant, Fused, Ridge
from clipretrieval.stores import MemoryStore, register_store, registry

SMALL = Fused(k=4, ridge=Ridge(features=16))
QUICK = {"timed_images": 4, "single_images": 0, "open_clip": False}


class Counting(MemoryStore):
    """Counts searches, and reads of all that it holds."""

    searches = scans = 0

    def search(self, queries, k):
        Counting.searches += 1
        return super().search(queries, k)

    def scan(self):
        Counting.scans += 1
        return super().scan()


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return StagedEncoder(tiny_model, batch_size=5, seed=0)


def test_each_row_answers_as_a_classifier_of_its_own(encoder, class_folder):
    """Votes come with each k and weights, the others once; names say what differs between rows."""
    report = compare(
        class_folder / "train",
        class_folder / "test",
        encoder=encoder,
        stages=("stem", "mid"),
        stores=("memory",),
        heads=["votes", "discriminant", Discriminant(0.5), SMALL],
        priors="empirical",
        k=(1, 3),
        weights=("uniform", "softmax"),
        **QUICK,
    )
    expected = [
        *(("votes", k, weights) for k in (1, 3) for weights in ("uniform", "softmax")),
        ("discriminant", None, None),
        ("discriminant(shrinkage=0.5)", None, None),
        ("fused(k=4, ridge=ridge(features=16))", 4, None),
    ]
    names = [
        *(f"votes k={k} {weights}" for k in (1, 3) for weights in ("uniform", "softmax")),
        *(head for head, *_ in expected[4:]),
    ]
    assert [row.name for row in report.rows] == [
        f"{stage} {name}" for stage in ("stem", "mid") for name in names
    ]
    heads = [*["votes"] * 4, "discriminant", Discriminant(0.5), SMALL]
    for row, (name, k, weights), head in zip(report.rows[7:], expected, heads, strict=True):
        shown = row.to_dict()
        assert (shown["head"], shown["k"], shown["weights"]) == (name, k, weights)
        assert (shown["bytes"] > 0) == (k is not None)
        own = RetrievalClassifier(
            StagedEncoder(encoder.model, stage="mid"),
            "memory",
            head=head,
            priors="empirical",
            k=k or 1,
            weights=weights or "uniform",
        )
        found = own.fit(class_folder / "train").evaluate(class_folder / "test")
        assert found.y_pred.tolist() == row.report.y_pred.tolist()
        assert found.setting["head"] == row.report.setting["head"] == name


def test_heads_learn_from_the_pass_that_fills_the_stores(encoder, class_folder, monkeypatch):
    """Nothing is read again for the statistics, and timed answers make no search that they do not need."""
    monkeypatch.setattr(registry, "_registered", {})
    register_store("counting", Counting)
    Counting.scans = Counting.searches = 0
    report = compare(
        class_folder / "train",
        class_folder / "test",
        encoder=encoder,
        stages=("mid",),
        stores=("counting",),
        heads="discriminant",
        **QUICK,
    )
    assert [row.name for row in report.rows] == ["mid"]
    scans, searches = Counting.scans, Counting.searches
    compare(
        class_folder / "train",
        class_folder / "test",
        encoder=encoder,
        stages=("mid",),
        stores=("counting",),
        **QUICK,
    )
    assert Counting.scans - scans == scans
    assert Counting.searches - searches > searches  # each of the timed answers is one


@pytest.mark.usefixtures("few_features")
def test_the_fused_head_is_tried_with_each_k(encoder, class_folder):
    """k=1 is left out, as the classifier takes 20 in its place."""
    report = compare(
        class_folder / "train",
        class_folder / "test",
        encoder=encoder,
        stages=("mid",),
        stores=("memory",),
        heads=("fused",),
        k=(1, 3, 5),
        **QUICK,
    )
    assert [(row.name, row.to_dict()["k"]) for row in report.rows] == [("mid k=3", 3), ("mid k=5", 5)]


class Own(Discriminant):
    """Another head of the same name in each test."""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": ["votes", "nearest"]}, "unknown head 'nearest'; choose one of 'votes', 'discriminant'"),
        ({"heads": []}, "heads is empty"),
        ({"heads": Discriminant}, "is no head"),
        ({"heads": [Own(0.1), Own(0.2)]}, "two heads have the name 'Own'"),
        ({"heads": "discriminant", "priors": "even"}, "priors must be 'equal', 'empirical'"),
    ],
)
def test_heads_that_cannot_be_compared_are_refused(encoder, options, message):
    """Before any image is read."""
    with pytest.raises(InvalidInputError, match=message):
        compare(["nowhere.png"], ["nowhere.png"], encoder=encoder, **options)
