"""Recommendations, held against classifiers that were fitted and asked one by one."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import clipretrieval
from clipretrieval import (
    ClipRetrievalWarning,
    InvalidInputError,
    RetrievalClassifier,
    StagedEncoder,
    recommend,
)
from clipretrieval.comparison.folds import divide
from clipretrieval.encoding.staged_encoder import stopped_at
from clipretrieval.evaluation import mcnemar_exact, wilson_interval
from clipretrieval.heads.discriminant import Discriminant
from clipretrieval.images import iter_images, scan_folder

STAGES = ("layer1", "mid", "final")
QUICK = {"stages": STAGES, "timed_images": 4}


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return StagedEncoder(tiny_model, precision="fp32")


@pytest.fixture(scope="module")
def pictures(class_folder):
    return scan_folder(class_folder / "train")


@pytest.fixture(scope="module")
def found(encoder, class_folder):
    """Three stages with two poolings, votes and discriminant, on 24 crops."""
    return recommend(
        class_folder / "train",
        encoder=encoder,
        poolings=("mean", "max"),
        heads=("votes", "discriminant"),
        **QUICK,
    )


def right_answers(encoder, pictures, stage, pooling, turns, **params):
    """Answer images in turn by classifiers of their own."""
    right = np.zeros(len(pictures.paths), dtype=bool)
    for stored, asked in turns:
        made = RetrievalClassifier(stopped_at(encoder, stage, pooling), **params)
        made.fit([pictures.paths[place] for place in stored], [pictures.labels[place] for place in stored])
        answers = made.predict([pictures.paths[place] for place in asked])
        right[asked] = answers == np.array([pictures.labels[place] for place in asked])
        made.store_.close()
    return right


def ids_of(pictures):
    return [image.id for image in iter_images(list(pictures.paths))]


def test_each_row_is_what_classifiers_of_its_own_answer(found, encoder, pictures):
    """Accuracies and intervals are those of classifiers that are fitted on four folds and asked the fifth."""
    folds = divide(ids_of(pictures), list(pictures.labels), 5, 0, crossed=True)
    settings = {"votes k=1": {"k": 1}, "discriminant": {"head": "discriminant"}}
    rows = {(row["stage"], row["pooling"], row["head"]): row for row in found.rows}
    assert len(rows) == len(found.rows) == 5 * 3
    answers = {}
    for stage, pooling in (("layer1", "max"), ("mid", "mean"), ("final", None)):
        for head, params in settings.items():
            right = right_answers(encoder, pictures, stage, pooling, folds.turns, **params)
            row, answers[stage, pooling, head] = rows[stage, pooling, head], right
            assert (row["accuracy"], row["n"]) == (right.mean(), 24)
            assert (row["low"], row["high"]) == wilson_interval(int(right.sum()), 24)
            assert row["multiply_adds"] == pytest.approx(
                encoder.multiply_adds(stage) + row["dim"] * (24 if head == "votes k=1" else 2) / 1e9
            )
            assert row["total_ms"] == row["encode_ms"] + row["query_ms"] > row["query_ms"] > 0
    best = (found.best["stage"], found.best["pooling"], found.best["head"])
    if best in answers:
        for key, right in answers.items():
            if key != best:
                assert rows[key]["p_value"] == pytest.approx(mcnemar_exact(right, answers[best]).p_value)
    assert found.best["accuracy"] == max(row["accuracy"] for row in found.rows)
    assert found.best["p_value"] is None


def test_the_front_and_the_advice_are_marked(found):
    """One row is advised, on the front lie those that nothing cheaper reaches, and the table shows both."""
    assert [row for row in found.rows if row["advised"]] == [found.advice]
    costs = [row["multiply_adds"] for row in found.front]
    accuracies = [row["accuracy"] for row in found.front]
    assert costs == sorted(costs)
    assert accuracies == sorted(set(accuracies))
    lines = found.table().splitlines()
    assert len(lines) == 1 + len(found.rows)
    assert [line[0] for line in lines[1:]] == [
        "*" if row["advised"] else "+" if row["front"] else " " for row in found.rows
    ]
    text = str(found)
    assert text.startswith(found.table())
    assert text.endswith(found.program)
    assert f"expect {found.accuracy:.2%} right answers" in text
    low, high = found.interval
    assert 0 <= low <= found.accuracy <= high <= 1
    assert found.n == found.n_images == 24


def test_the_line_of_code_makes_the_advised_classifier(found, encoder, class_folder):
    """It can be evaluated, gives the classifier of `classifier()`, and that can be fitted."""
    # The code is ours, and its strings are this test's.
    made = eval(found.code, {name: getattr(clipretrieval, name) for name in clipretrieval.__all__})  # noqa: S307
    built = found.classifier()
    assert made.encoder.fingerprint == built.encoder.fingerprint
    assert (made.encoder.stage, made.encoder.pooling) == (built.encoder.stage, built.encoder.pooling)
    assert built.encoder.stage == found.advice["stage"]
    for name in ("head", "k", "weights", "normalize"):
        assert getattr(made, name) == getattr(built, name)
    assert made.encoder.config() == built.encoder.config()
    built.fit(class_folder / "train")
    assert built.score(class_folder / "test") > 0.5
    built.store_.close()


def test_the_lines_of_code_run_as_they_are(found, class_folder):
    """They import what they name, and fit on the folder that was given, or on what has to be filled in."""
    head = dict(vars(found), params={"head": Discriminant(0.5), "transform": None})
    for each in (found, type(found)(**head)):
        names = {}
        exec(each.program, names)  # noqa: S102  the code is ours, and its strings are this test's
        assert names["classifier"].score(class_folder / "test") > 0.5
        names["classifier"].store_.close()
    assert "from clipretrieval.heads import Discriminant\n" in type(found)(**head).program
    given = dict(vars(found))
    del given["images"]
    assert type(found)(**given).program.endswith("classifier.fit(images, labels)")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"stage": "late"}, 'StagedEncoder("RN50", stage="late")'),
        ({"stage": "mid", "pooling": "grid"}, 'StagedEncoder("RN50", stage="mid", pooling="grid")'),
        (
            {"pretrained": None, "image_size": 64, "seed": 3, "batch_size": 8, "precision": "fp32"},
            'StagedEncoder("RN50", pretrained=None, image_size=64, precision="fp32", batch_size=8, seed=3, '
            'stage="late")',
        ),
    ],
)
def test_the_code_has_the_arguments_that_are_not_the_defaults(found, arguments, expected):
    """Whatever the encoder was made with is in the line; what is usual is not."""
    other = dict(vars(found), encoder=StagedEncoder(**arguments), params={"head": Discriminant(0.5)})
    written = type(found)(**other).code
    assert written == f"RetrievalClassifier({expected}, head=Discriminant(shrinkage=0.5))"


def test_split_the_advice_is_measured_on_images_that_it_was_not_chosen_by(encoder, pictures):
    """One fold is chosen on, the interval is of the other, after a fit on all but that one."""
    asked = recommend(
        list(pictures.paths),
        pictures.labels,
        encoder=encoder,
        heads="discriminant",
        cross=False,
        **QUICK,
    )
    folds = divide(ids_of(pictures), list(pictures.labels), 5, 0, crossed=False)
    for row in asked.rows:
        right = right_answers(
            encoder, pictures, row["stage"], row["pooling"], folds.turns, head="discriminant"
        )
        assert row["accuracy"] == right[folds.chosen_on].mean()
    stage, pooling = asked.advice["stage"], asked.advice["pooling"]
    measured = right_answers(encoder, pictures, stage, pooling, [folds.measured_on], head="discriminant")
    measured = measured[folds.measured_on[1]]
    assert (asked.accuracy, asked.n) == (measured.mean(), len(measured))
    assert asked.interval == wilson_interval(int(measured.sum()), len(measured))
    assert not asked.crossed
    assert f"{asked.n} others measured on" in str(asked)


def test_every_form_of_labelled_images_gives_the_same(encoder, class_folder, pictures):
    """A folder, lists with labels, pairs in a generator, a DataFrame: the figures are the same ones."""
    options = {**QUICK, "encoder": encoder, "heads": "discriminant"}
    table = pd.DataFrame({"image": [str(path) for path in pictures.paths], "label": list(pictures.labels)})
    backwards = list(zip(pictures.paths, pictures.labels, strict=True))[::-1]
    results = [
        recommend(class_folder / "train", **options),
        recommend(list(pictures.paths), pictures.labels, **options),
        recommend((pair for pair in backwards), **options),
        recommend(table, **options),
    ]
    figures = [
        (found.accuracy, found.interval, [row["accuracy"] for row in found.rows], found.code)
        for found in results
    ]
    assert all(each == figures[0] for each in figures)


def test_copies_of_an_image_are_one_image(encoder, pictures):
    """However often an image comes, it counts once, with the label that came last, which is told."""
    options = {**QUICK, "encoder": encoder, "heads": "discriminant"}
    once = recommend(list(pictures.paths), pictures.labels, **options)
    copied = [*pictures.paths, *pictures.paths[:5]]
    wrong = ["flower" if label == "temple" else "temple" for label in pictures.labels[:1]]
    with pytest.warns(ClipRetrievalWarning, match="1 image was given under several labels"):
        twice = recommend(copied, [*wrong, *pictures.labels[1:], *pictures.labels[:5]], **options)
    assert twice.n_images == once.n_images == 24
    assert [row["accuracy"] for row in twice.rows] == [row["accuracy"] for row in once.rows]


def test_wishes_are_kept_to_or_the_nearest_is_named(encoder, class_folder):
    """No candidate above the cost is advised; what cannot be reached is said."""
    options = {**QUICK, "encoder": encoder, "heads": "discriminant"}
    cost = encoder.multiply_adds("layer1") * 1.01
    cheap = recommend(class_folder / "train", max_cost=cost, **options)
    assert (cheap.met, cheap.advice["stage"]) == (True, "layer1")
    free = recommend(class_folder / "train", max_cost=cost / 10, **options)
    assert (free.met, free.advice["stage"]) == (False, "layer1")
    assert "the cheapest; no candidate keeps within" in str(free)
    perfect = recommend(class_folder / "train", min_accuracy=1.0, **options)
    assert not perfect.met
    assert perfect.advice == perfect.best
    assert "no candidate reaches 100.00%" in str(perfect)
    some = recommend(class_folder / "train", min_accuracy=0.3, **options)
    assert some.met
    assert some.advice["low"] >= 0.3


def test_fused_is_tried_by_itself_only_with_many_images(found, encoder, class_folder):
    """With few images the heads are votes and discriminant; votes of more than there are left out."""
    usual = recommend(class_folder / "train", encoder=encoder, stages="mid", timed_images=2)
    assert [row["head"] for row in usual.rows] == ["votes k=1", "discriminant"]
    asked = recommend(
        class_folder / "train",
        encoder=encoder,
        stages="mid",
        heads={"k": 3, "metric": "cosine"},
        timed_images=2,
    )
    assert asked.advice["head"] == "votes k=3 metric=cosine"
    assert asked.params == {"k": 3, "metric": "cosine"}


def test_broken_images_are_refused_or_skipped(encoder, class_folder, tmp_path):
    """The error names the file; skipped ones are listed and not counted."""
    folder = tmp_path / "crops"
    shutil.copytree(class_folder / "train", folder)
    (folder / "temple" / "00.jpg").write_bytes(b"no image")
    options = {**QUICK, "encoder": encoder, "heads": "discriminant"}
    with pytest.raises(clipretrieval.ImageDecodeError, match=r"00\.jpg"):
        recommend(folder, **options)
    told = []
    found = recommend(folder, on_error="skip", progress=lambda *counts: told.append(counts), **options)
    assert [Path(image.source).name for image in found.skipped] == ["00.jpg"]
    assert found.n_images == 23
    assert told[0] == (0, 24)
    assert told[-1] == (24, 24)
    assert "1 images were skipped" in str(found)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"max_cost": 0}, "max_cost must be"),
        ({"min_accuracy": 90}, "min_accuracy must be"),
        ({"cross": "half"}, "cross must be True or False"),
        ({"folds": 2}, "folds must be"),
        ({"stages": ["nowhere"]}, "unknown stage"),
        ({"heads": ["best"]}, "unknown head"),
        ({"encoder": "RN50"}, "encoder must be a StagedEncoder"),
        ({"y": ["a"] * 24}, "only one class, 'a'"),
        ({"y": ["a"] * 22 + ["b"] * 2}, "at least 3 different images"),
        ({"y": ["a"] * 3}, "24 images but 3 labels"),
    ],
)
def test_mistakes_show_before_an_image_is_read(encoder, pictures, changed, told):
    """Nothing is encoded for a call that cannot succeed."""

    def never(*_):
        raise AssertionError("an image was read")

    given = {"encoder": encoder, "y": pictures.labels, "progress": never, **QUICK, **changed}
    with pytest.raises(InvalidInputError, match=told):
        recommend(list(pictures.paths), **given)


def test_labels_that_only_reading_tells_are_checked_then(encoder, photographs):
    """Pairs from a generator without labels, or with too few of a class, are refused once they are known."""
    with pytest.raises(InvalidInputError, match="'b' has 1"):
        recommend(
            ((image, "b" if place == 0 else "a") for place, image in enumerate(photographs)),
            encoder=encoder,
            **QUICK,
        )
    with pytest.raises(InvalidInputError, match="no label"):
        recommend((image for image in photographs), encoder=encoder, **QUICK)
    with pytest.raises(InvalidInputError, match="no images to choose on"):
        recommend(iter([]), encoder=encoder, **QUICK)


def test_numbers_as_labels_and_arrays_as_images(encoder):
    """Labels of integers and images in memory are taken; no candidate's warning reaches the caller."""
    drawn = np.random.default_rng(0)
    images = [
        np.full((40, 40, 3), 255 * (place % 2), np.uint8) ^ drawn.integers(0, 60, (40, 40, 3), np.uint8)
        for place in range(12)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = recommend(
            [Image.fromarray(image) for image in images],
            [place % 2 for place in range(12)],
            encoder=encoder,
            heads=[{"k": 11}, "quadratic"],
            stages="layer1",
            timed_images=2,
        )
    assert found.rows[1]["accuracy"] == 1.0
    assert json.loads(json.dumps(found.to_dict()))["n_classes"] == 2


def test_json_and_page_have_what_the_table_has(found, tmp_path):
    """JSON has rows, advice and code; the page has the chart with the front, the table and the code."""
    written = json.loads(found.to_json(tmp_path / "r.json"), parse_constant=pytest.fail)
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8")) == written
    assert written["kind"] == "recommendation"
    assert written["rows"] == found.rows
    assert written["advice"] == found.advice
    assert written["interval"] == list(found.interval)
    assert written["code"] == found.code
    found.save_html(tmp_path / "r.html", title="<b>which</b>")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;which&lt;/b&gt;" in page
    assert 'data-chart="cost"' in page
    assert "stage=&#34;" in page or "stage=&quot;" in page
    assert page.count('class="marker"') == 1
    assert page.count('class="dot"') == sum(row["front"] and not row["advised"] for row in found.rows)
    assert page.count('class="right area"') == sum(
        not row["front"] and not row["advised"] for row in found.rows
    )
    assert page.count("<tr>") == 1 + len(found.rows)
    assert found._repr_html_().count("<tr>") == 1 + len(found.rows)
    assert "Recommendation(" in repr(found)
