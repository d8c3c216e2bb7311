"""Comparisons, held against classifiers that were fitted and evaluated one by one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tiny_models import write_model

from clipretrieval import (
    ClipRetrievalWarning,
    InvalidInputError,
    RetrievalClassifier,
    StagedEncoder,
    WeightsUnavailableError,
    ZeroShotClassifier,
)
from clipretrieval.comparison import speed
from clipretrieval.comparison.speed import Answerer, Sample, measure_speed, median_times
from clipretrieval.encoding import pipeline
from clipretrieval.encoding.staged_encoder import stopped_at
from clipretrieval.evaluation import compare, mcnemar_exact, wilson_interval
from clipretrieval.images import iter_raw
from clipretrieval.stores import FaissStore, MemoryStore

ALL = ("pixel", "mid", "late", "final")
SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "report.schema.json").read_text(encoding="utf-8"))
QUICK = {"timed_images": 4, "single_images": 2, "open_clip": False}


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return StagedEncoder(tiny_model, stage="late", precision="fp32")


@pytest.fixture(scope="module")
def compared(encoder, class_folder):
    """All four stages and CLIP's own answer, on the crops."""
    return compare(
        class_folder / "train",
        class_folder / "test",
        encoder=encoder,
        zero_shot=True,
        timed_images=6,
        single_images=3,
    )


@pytest.mark.parametrize("stage", ALL)
def test_each_stage_answers_as_a_classifier_of_its_own(compared, encoder, class_folder, stage):
    """Answers, distances and accuracy are those of a classifier that was fitted on that stage alone."""
    alone = RetrievalClassifier(stopped_at(encoder, stage), store="faiss").fit(class_folder / "train")
    report, expected = compared[stage].report, alone.evaluate(class_folder / "test")
    assert report.y_pred.tolist() == expected.y_pred.tolist()
    assert report.y_true.tolist() == expected.y_true.tolist()
    np.testing.assert_allclose(report.distances, expected.distances, rtol=1e-4)
    shown = compared[stage].to_dict()
    assert shown["accuracy"] == expected.accuracy
    assert [shown["low"], shown["high"]] == list(wilson_interval(int(expected.correct.sum()), 10))
    assert shown["dim"] == encoder.stages[stage].dim
    assert shown["bytes"] == 24 * 4 * encoder.stages[stage].dim
    assert [each.explanation.query for each in report.mistakes] == [
        each.explanation.query for each in expected.mistakes
    ]


def test_zero_shot_is_the_baseline(compared, encoder, class_folder):
    """CLIP's own answer comes first, and every stage is tested against it on the same images."""
    expected = ZeroShotClassifier(encoder, ["flower", "temple"]).evaluate(class_folder / "test")
    base = compared.rows[0]
    assert compared.baseline == base.name == "zero-shot"
    assert base.report.y_pred.tolist() == expected.y_pred.tolist()
    assert base.mcnemar is None
    for row in compared.rows[1:]:
        found = mcnemar_exact(row.report.correct, expected.correct)
        assert row.mcnemar == found
        assert row.to_dict()["p_value"] == found.p_value
    assert [row.name for row in compared.rows] == ["zero-shot", *ALL]


def test_speeds_are_ratios_of_the_times(compared):
    """Totals are sums of the halves, and speed-ups are ratios of totals to those of whole CLIP."""
    clip, whole = compared.rows[0].speed, compared.open_clip
    for row in compared.rows:
        shown = row.to_dict()
        assert shown["inference_s_per_1000"] > 0
        assert shown["query_s_per_1000"] > 0
        total = shown["inference_s_per_1000"] + shown["query_s_per_1000"]
        assert shown["total_s_per_1000"] == pytest.approx(total)
        assert shown["speedup_same_engine"] == pytest.approx(clip.total_s / total)
        assert shown["speedup_open_clip"] == pytest.approx(whole.total_s / total)
        assert len(row.speed.latencies_s) == 3
        assert shown["p50_ms"] == pytest.approx(1000 * np.median(row.speed.latencies_s))
        assert shown["p50_ms"] <= shown["p95_ms"]


def test_reports_hold_all_of_it(compared, tmp_path):
    """JSON, Markdown and the page hold every row, and files have what is returned."""
    content = json.loads(compared.to_json(tmp_path / "report.json"))
    assert content == compared.to_dict()
    assert content == json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert (content["schema_version"], content["kind"]) == (1, "comparison")
    assert (content["n_train"], content["n_test"], content["timed_images"]) == (24, 10, 6)
    assert list(content["reports"]) == ["zero-shot", *ALL]
    assert content["reports"]["mid"]["accuracy"] == compared["mid"].report.accuracy
    markdown, page = compared.to_markdown(tmp_path / "report.md"), compared.to_html(tmp_path / "report.html")
    for name in ("zero-shot", *ALL):
        assert f"| {name} | {compared[name].report.accuracy:.2%} |" in markdown
        assert name in page
        assert f"\n{name} " in f"\n{compared}"
    assert (tmp_path / "report.md").read_text("utf-8") == markdown + "\n"
    assert (tmp_path / "report.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    with pytest.raises(KeyError, match="zero-shot, pixel"):
        _ = compared["layer1"]
    with pytest.raises(InvalidInputError, match="cannot be written"):
        compared.to_json(tmp_path / "nowhere" / "report.json")


def test_pictures_are_encoded_once_for_all_stages(encoder, class_folder, monkeypatch):
    """Every training and test picture goes through the encoder once, whatever is compared."""
    seen = []
    real = pipeline._encode_chunk
    monkeypatch.setattr(
        pipeline, "_encode_chunk", lambda chunk, *rest: seen.extend(chunk.batch.ids) or real(chunk, *rest)
    )
    compare(
        class_folder / "train",
        class_folder / "test",
        encoder=encoder,
        stages=("mid", "final"),
        stores=("faiss", "memory"),
        k=(1, 3),
        zero_shot=True,
        timed_images=1,
        single_images=0,
        open_clip=False,
    )
    assert len(set(seen[: 24 + 10])) == 24 + 10
    assert len(set(seen[24 + 10 :])) == 1  # the one that is timed


def test_settings_are_those_of_evaluate(encoder, class_folder):
    """Each k and weighting gives what a classifier with these settings gives, though the search is shared."""
    found = compare(
        class_folder / "train",
        class_folder / "test",
        encoder=encoder,
        stages="mid",
        stores=("faiss", "memory"),
        k=(1, 5),
        weights=("uniform", "distance"),
        metric="cosine",
        **QUICK,
    )
    assert [row.name for row in found.rows[:3]] == [
        "mid faiss k=1 uniform",
        "mid faiss k=1 distance",
        "mid faiss k=5 uniform",
    ]
    assert len(found.rows) == 8
    assert found.baseline == "mid memory k=5 distance"
    assert found.rows[-1].mcnemar is None
    for row in found.rows:
        setting = row.report.setting
        alone = RetrievalClassifier(
            stopped_at(encoder, "mid"),
            store=setting["store"],
            k=setting["k"],
            weights=setting["weights"],
            metric="cosine",
        ).fit(class_folder / "train")
        expected = alone.evaluate(class_folder / "test")
        assert row.report.y_pred.tolist() == expected.y_pred.tolist()
        np.testing.assert_allclose(row.report.confidence, expected.confidence, rtol=1e-4)
        assert row.speedup is None
        assert row.speedup_open_clip is None
    assert "not measured" in str(found)


def test_pictures_in_memory_and_broken_ones(encoder, photographs):
    """Pictures and labels may come as sequences; what cannot be decoded is skipped on request."""
    with pytest.warns(ClipRetrievalWarning, match="4 of the 4 images are stored"):
        found = compare(
            [*photographs, b"broken"],
            iter([*photographs[2:6], b"broken"]),
            train_labels=[1] * 4 + [2] * 4 + [1],
            test_labels=[1, 1, 2, 2, 1],
            encoder=encoder,
            stages=("pixel",),
            on_error="skip",
            **QUICK,
        )
    assert found["pixel"].report.accuracy == 1
    assert (found.n_train, found.n_test, len(found.skipped)) == (8, 4, 2)
    assert found.timed_images == 3  # of four that were drawn, one is broken
    assert "2 images were skipped" in str(found)
    assert [skip.index for skip in found["pixel"].report.skipped] == [4]
    assert found["pixel"].report.to_dict()["n_skipped"] == 1


def test_stores_that_hold_a_part_are_filled_up(encoder, class_folder, tmp_path):
    """With resume, only pictures that are missing are encoded, and the figures are those of one go."""

    def run(train, **options):
        return compare(
            train,
            class_folder / "test",
            encoder=encoder,
            stages=("pixel", "mid"),
            stores={"kept": lambda stage: FaissStore(tmp_path / stage)},
            **options,
            **QUICK,
        )

    first = run([(path, "temple") for path in sorted((class_folder / "train" / "temple").iterdir())])
    assert first.n_train == 12
    with pytest.raises(InvalidInputError, match="already holds 12 vectors"):
        run(class_folder / "train")
    whole = run(class_folder / "train", resume=True)
    assert whole.n_train == 24
    assert whole.fit_timing.images["encode"] == 12
    fresh = compare(class_folder / "train", class_folder / "test", encoder=encoder, stages=("mid",), **QUICK)
    assert whole["mid"].report.y_pred.tolist() == fresh["mid"].report.y_pred.tolist()
    assert whole["mid"].report.setting["store"] == "kept"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": ()}, "stages is empty"),
        ({"stages": ("mid", "layer9")}, "layer9"),
        ({"stores": ()}, "at least one"),
        ({"stores": (MemoryStore(),)}, "stores must be str"),
        ({"stores": {"mine": 5}}, "callables"),
        ({"stores": {"mine": lambda stage: MemoryStore("cosine")}}, "has the metric 'cosine'"),
        ({"k": 0}, "at least 1"),
        ({"k": ()}, "is empty"),
        ({"weights": "loud"}, "unknown weights 'loud'"),
        ({"weights": "distance", "metric": "ip"}, "with metric='ip' use 'softmax'"),
        ({"weights": (lambda d: d, lambda d: -d)}, "one name"),
        ({"metric": "l7"}, "l7"),
        ({"zero_shot": "study"}, "ZeroShotClassifier, True or None"),
        ({"encoder": "RN50"}, "must be a StagedEncoder"),
        ({"timed_images": 0}, "timed_images"),
        ({"single_images": -1}, "single_images"),
        ({"on_error": "ignore"}, "on_error"),
    ],
)
def test_what_cannot_be_compared_is_refused(encoder, class_folder, options, message, monkeypatch):
    """Every argument is checked before a picture is read, and the message says which one was wrong."""
    monkeypatch.setattr(StagedEncoder, "stream", lambda *_, **__: pytest.fail("images were read"))
    with pytest.raises(InvalidInputError, match=message):
        compare(class_folder / "train", class_folder / "test", **{"encoder": encoder, **QUICK, **options})


def test_baselines_and_labels_that_do_not_fit_are_refused(encoder, class_folder, photographs):
    """A baseline has to have the same encoder, and test labels have to be among its classes."""
    other = ZeroShotClassifier(StagedEncoder(encoder.model), ["flower", "temple"])
    with pytest.raises(InvalidInputError, match="another encoder"):
        compare(class_folder / "train", class_folder / "test", encoder=encoder, zero_shot=other, **QUICK)
    few = ZeroShotClassifier(encoder, ["flower", "cat"])
    with pytest.raises(InvalidInputError, match="'temple' is none of the 2 classes"):
        compare(class_folder / "train", class_folder / "test", encoder=encoder, zero_shot=few, **QUICK)
    with pytest.raises(InvalidInputError, match="no images"):
        compare([], class_folder / "test", encoder=encoder, **QUICK)
    with pytest.raises(InvalidInputError, match="no images"):
        compare(class_folder / "train", [], encoder=encoder, **QUICK)


@pytest.fixture
def unread(monkeypatch):
    """Make a test fail once a picture is read."""
    monkeypatch.setattr(StagedEncoder, "stream", lambda *_, **__: pytest.fail("images were read"))


@pytest.mark.parametrize(
    ("templates", "message"),
    [("a photo", "has the places"), ("a {} " + "very " * 80, "tokens, and the model")],
)
def test_prompts_are_encoded_before_any_picture(encoder, class_folder, unread, templates, message):
    """Templates without a place and prompts that are too long are refused at once."""
    clip = ZeroShotClassifier(encoder, ["flower", "temple"], templates=templates)
    with pytest.raises(InvalidInputError, match=message):
        compare(class_folder / "train", class_folder / "test", encoder=encoder, zero_shot=clip, **QUICK)


@pytest.mark.parametrize("walkable", [True, False])
def test_models_without_a_text_tower_are_refused_at_once(tmp_path, class_folder, unread, walkable):
    """An image tower alone has no zero-shot answer, which shows before a picture is read."""
    folder = tmp_path / "towers"
    name = write_model(folder)
    weights = load_file(folder / "open_clip_model.safetensors")
    tower = {key: value for key, value in weights.items() if key.startswith("visual.")}
    save_file(tower, folder / "open_clip_model.safetensors")
    train = class_folder / "train"
    train = train if walkable else iter([(path, "temple") for path in (train / "temple").iterdir()])
    with pytest.raises(WeightsUnavailableError, match="holds an image tower alone"):
        compare(train, class_folder / "test", encoder=StagedEncoder(name), zero_shot=True, **QUICK)


def test_labels_are_looked_at_before_any_picture(encoder, class_folder, photographs, tmp_path, unread):
    """What is wrong with labels, or with the folder of test images, shows at once."""
    train, test = class_folder / "train", class_folder / "test"
    (tmp_path / "empty").mkdir()
    for given, options, message in (
        ((train, test / "temple"), {}, "test: some images have no label"),
        ((train, tmp_path / "empty"), {}, "holds no images"),
        ((train, tmp_path / "nowhere"), {}, "there is no folder"),
        ((train, []), {}, "no images to classify"),
        (
            (train, photographs),
            {"test_labels": [1] * 8},
            "of the type int, but the classifier was fitted on str",
        ),
        ((train, photographs), {"test_labels": ["flower"] * 7}, "8 images but 7 labels"),
        ((photographs, test), {"train_labels": [1, "b"] * 4}, "train: labels must all be of one type"),
        (
            (photographs, photographs),
            {"train_labels": [1, 2] * 4, "test_labels": [1, 2] * 4, "zero_shot": True},
            "labels for the classes' names, and these are of the type int",
        ),
        (
            (photographs, photographs),
            {"train_labels": ["cat"] * 8, "test_labels": ["cat", "owl"] * 4, "zero_shot": True},
            "'owl' is none of the 1 classes",
        ),
    ):
        with pytest.raises(InvalidInputError, match=message):
            compare(*given, encoder=encoder, **options, **QUICK)


def test_pictures_that_are_gone_do_not_answer(encoder, photographs, tmp_path):
    """With resume, a store that holds pictures which are not given any more is refused, and counted."""

    def run(count, labels):
        return compare(
            photographs[:count],
            photographs[6:],
            train_labels=labels[:count],
            test_labels=["flower", "flower"],
            encoder=encoder,
            stages=("pixel", "mid"),
            zero_shot=True,
            stores={"kept": lambda stage: FaissStore(tmp_path / stage)},
            resume=True,
            **QUICK,
        )

    first = run(6, ["temple"] * 4 + ["flower"] * 2)
    assert first["mid"].report.classes.tolist() == ["flower", "temple"]
    with pytest.raises(InvalidInputError, match="holds 6 vectors of the stage 'pixel', 2 more than the 4"):
        run(4, ["temple", "temple", "flower", "flower"])
    renamed = run(6, ["house"] * 4 + ["flower"] * 2)  # nothing is gone, but a class's name
    assert renamed.n_train == 6
    assert renamed["mid"].report.classes.tolist() == ["flower", "house"]


def test_pictures_that_repeat_answer_once(encoder, photographs, tmp_path):
    """Each index holds a repeated picture once, under its last label; repeats hide no foreign vector."""
    labels = ["temple"] * 4 + ["flower"] * 2

    def run(pictures, labels, resume=True):
        return compare(
            pictures,
            photographs[6:],
            train_labels=labels,
            test_labels=["flower", "flower"],
            encoder=encoder,
            stages=("pixel", "mid"),
            stores={"kept": lambda stage: FaissStore(tmp_path / stage)},
            resume=resume,
            **QUICK,
        )

    often = [*photographs[:6], *photographs[:2], photographs[5]]
    for resume in (False, True):
        assert run(often, ["flower"] * 6 + labels[:2] + labels[5:], resume).n_train == 6
        for stage in ("pixel", "mid"):
            with FaissStore(tmp_path / stage) as store:
                alone = RetrievalClassifier(stopped_at(encoder, stage), "memory").fit(
                    photographs[:6], ["temple"] * 2 + ["flower"] * 4
                )
                near = alone.kneighbors(photographs[:6], 6)
                held = RetrievalClassifier.from_store(store, stopped_at(encoder, stage))
                assert held.kneighbors(photographs[:6], 6).ids.tolist() == near.ids.tolist()
                assert held.kneighbors(photographs[:6], 6).labels.tolist() == near.labels.tolist()
    with pytest.raises(InvalidInputError, match="holds 6 vectors of the stage 'pixel', 1 more than the 5"):
        run([*photographs[:5], photographs[0]], ["temple"] * 3 + ["flower"] * 2 + ["temple"])


def test_reports_have_no_times_of_shared_passes(compared):
    """A row's report tells no times, as its passes were shared; the row has those that were measured."""
    for name, report in compared.reports.items():
        content = report.to_dict()
        assert content["timing"] is None
        jsonschema.validate(content, SCHEMA)
        assert "images/s" not in str(report)
        assert "## Time" not in report.to_markdown()
        assert compared[name].speed.total_s > 0


def test_names_stay_text_in_markdown(compared):
    """A row's name cannot break the table, nor become markup, in Markdown."""
    first = replace(compared.rows[0], name="a|b_<c>")
    assert "| a\\|b\\_&lt;c&gt; |" in replace(compared, rows=(first, *compared.rows[1:])).to_markdown()


def test_open_clip_is_timed_without_a_baseline(encoder, photographs):
    """open_clip as it comes is timed beside `final`'s index, and beside nothing where there is none."""
    for stages in (("pixel", "final"), ("pixel",)):
        found = compare(
            photographs[:6],
            photographs[6:],
            train_labels=[1] * 6,
            test_labels=[1, 1],
            encoder=encoder,
            stages=stages,
            timed_images=2,
            single_images=0,
        )
        assert found.open_clip.total_s > 0
        for row in found.rows:
            assert row.speedup_open_clip == pytest.approx(found.open_clip.total_s / row.speed.total_s)
            assert row.speedup is None


def test_sample_is_of_the_whole_stream():
    """The sample has its size, no picture twice, and pictures from all over the stream; all pass by."""
    pictures = [np.full((2, 2, 3), number, np.uint8) for number in range(200)]
    sample = Sample(20)
    passed = list(sample.passing(iter_raw(pictures, list(range(200)))))
    assert [label for _, label in passed] == list(range(200))
    kept = [int(picture[0, 0, 0]) for picture in sample.images(range(200))]
    assert len(set(kept)) == 20
    assert kept == sorted(kept)
    assert kept[0] < 60
    assert kept[-1] > 140


def test_sides_that_share_an_encoder_share_its_pass():
    """What several sides infer alike is inferred once a turn, and every picture is in one turn."""
    calls = []

    def infer(pictures):
        calls.append(len(pictures))
        return np.zeros((len(pictures), 2), np.float32)

    sides = {name: Answerer(infer, len) for name in ("one", "other")}
    found, timed = measure_speed(sides, list(range(10)))
    assert sum(calls[1:]) == timed == 10  # two images warm up
    assert found["one"].inference_s == found["other"].inference_s
    assert found["one"].to_dict()["p50_ms"] is None
    assert calls[0] == 2
    calls.clear()
    found, _ = measure_speed(sides, list(range(10)), 4)
    assert calls[-5:] == [1] * 5  # single images, too, are encoded once for both
    assert [len(each.latencies_s) for each in found.values()] == [4, 4]


def test_what_is_timed_takes_no_more_time_than_it_may(monkeypatch):
    """At least a part, and a few single images; each by each, as often as there is time for."""
    clock = [0.0]

    def infer(pictures):
        clock[0] += len(pictures)
        return pictures

    monkeypatch.setattr(speed, "default_timer", lambda: clock[0])
    sides = {"one": Answerer(infer, len)}
    for seconds, timed in ((-1.0, 32), (65.0, 32), (66.0, 64), (1000.0, 200)):  # two images warm up
        found, counted = measure_speed(sides, list(range(200)), most_s=seconds)
        assert counted == timed
        assert found["one"].inference_s == 1000
    sides["cut"] = Answerer(lambda pictures: infer(pictures), len, most=32)
    for seconds, timed in ((131.0, 32), (132.0, 64)):
        found, counted = measure_speed(sides, list(range(200)), most_s=seconds)
        assert counted == timed
        assert [each.inference_s for each in found.values()] == [1000, 1000]
    del sides["cut"]
    for seconds, singles in ((0.0, 3), (9.0, 8), (1000.0, 20)):  # the first goes before, uncounted
        found, _ = measure_speed(sides, list(range(200)), 20, most_singles_s=seconds)
        assert found["one"].latencies_s == [1.0] * singles


def test_ways_that_are_timed_take_turns(monkeypatch):
    """Each is warmed up, then given each part before the next part comes; the median of the parts is told."""
    clock, asked = [0.0], []

    def way(name, cost):
        def work(given):
            asked.append((name, list(given)))
            clock[0] += cost(given)

        return work

    monkeypatch.setattr(speed, "default_timer", lambda: clock[0])
    ways = {"even": way("even", len), "odd": way("odd", lambda given: 100.0 if 0 in given else 3.0)}
    found = median_times(ways, [[0, 1, 2], [3, 4, 5], [6]], warm_up=1)
    assert found == {"even": 1.0, "odd": 3.0}
    assert [name for name, _ in asked] == ["even", "odd"] * 4
    assert [given for _, given in asked[::2]] == [[0], [0, 1, 2], [3, 4, 5], [6]]
