"""``--head`` and ``--priors`` of all commands that answer."""

from __future__ import annotations

import json

import pytest

from clipretrieval import RetrievalClassifier
from clipretrieval.heads import Discriminant

pytestmark = pytest.mark.usefixtures("few_features")
KNOWN = "'votes', 'discriminant', 'quadratic', 'ridge', 'fused'"


@pytest.fixture
def kept(command, class_folder, tiny_model, tmp_path):
    """A classifier that the command has made, whose head is a discriminant of few dimensions."""
    status, _, err = command(
        *("index", class_folder / "train", tmp_path / "kept", "--model", tiny_model, "--stage", "stem"),
        *("--head", "discriminant", "--priors", "empirical"),
    )
    assert (status, err) == (0, "")
    return tmp_path / "kept"


def answers(out):
    return [json.loads(line) for line in out.splitlines()]


def test_the_head_is_kept_and_shown(command, kept):
    """`load` has it again, and `info` shows it without what only votes have."""
    loaded = RetrievalClassifier.load(kept)
    assert (loaded.head, loaded.priors) == ("discriminant", "empirical")
    loaded.store_.close()
    shown = command("info", kept)[1]
    assert "settings    head discriminant, k 1, metric l2, normalize no, priors empirical\n" in shown
    assert json.loads(command("info", kept, "--json")[1])["params"]["head"] == "discriminant"
    with RetrievalClassifier.load(kept).set_params(head=Discriminant(0.25)).store_:
        changed = RetrievalClassifier.load(kept).set_params(head=Discriminant(0.25))
        changed.save(kept)
        changed.store_.close()
    assert "head discriminant(shrinkage=0.25), k 1" in command("info", kept)[1]
    told = json.loads(command("info", kept, "--json")[1])
    assert told["params"]["head"] == {"name": "discriminant", "shrinkage": 0.25}


def test_a_kept_head_answers(command, kept, class_folder):
    """Classes come with their probabilities, in text and JSON, and no neighbor is said to have voted."""
    status, out, err = command("classify", kept, class_folder / "test", "--json", "--explain", "--top", "2")
    assert (status, err) == (0, "")
    loaded = RetrievalClassifier.load(kept)
    paths = [line["path"] for line in answers(out)]
    for line, shares in zip(answers(out), loaded.predict_proba(paths), strict=True):
        expected = sorted(zip(shares.tolist(), ["flower", "temple"], strict=True), reverse=True)
        found = [(each["share"], each["label"]) for each in line["top"]]
        assert found == [pytest.approx(each) for each in expected if each[0] > 0]
        assert (line["label"], line["head"]) == (expected[0][1], "discriminant")
        assert [each["share"] for each in line["neighbors"]] == [0.0]
    loaded.store_.close()
    text = command("classify", kept, paths[0], "--explain")[1]
    assert text.splitlines()[0].endswith("% probable)")
    assert "votes" not in text


def test_classify_takes_another_head(command, kept, class_folder):
    """It replaces the one that was saved for this call, and the parts of a fused one are shown."""
    image = class_folder / "test"
    status, out, _ = command("classify", kept, image, "--head", "fused", "--explain", "--json")
    assert status == 0
    assert [part["name"] for part in answers(out)[0]["parts"]] == ["votes", "discriminant", "ridge"]
    text = command("classify", kept, image, "--head", "fused", "--explain")[1]
    assert "votes: " in text
    assert "; discriminant: " in text
    out = command("classify", kept, image, "--head", "votes", "--explain", "--json")[1]
    assert all(line["share"] == 1.0 for line in answers(out))
    assert "head" not in answers(out)[0]
    assert RetrievalClassifier.load(kept).head == "discriminant"


def test_evaluate_measures_the_head(command, kept, class_folder, tiny_model, tmp_path):
    """The kept one, another on top of it, or that of a new classifier; reports say which it was."""
    test, report = ("--test", class_folder / "test"), tmp_path / "report.json"
    fresh = ("--train", class_folder / "train", "--model", tiny_model, "--stage", "stem")
    for given, head in (
        (("--classifier", kept), "discriminant"),
        (("--classifier", kept, "--head", "fused"), "fused"),
        ((*fresh, "--head", "quadratic"), "quadratic"),
    ):
        status, out, err = command("evaluate", *given, *test, "--json", report)
        assert (status, err if head != "fused" else "") == (0, "")
        assert f", head {head}{', k 20' if head == 'fused' else ''}, 24 stored vectors" in out
        assert "votes" not in out
        assert json.loads(report.read_text("utf-8"))["head"] == head


def test_sweep_tries_heads(command, kept, class_folder):
    """With names, each of them; without, the kept one."""
    status, out, _ = command(
        *("sweep", "--classifier", kept, "--validation", class_folder / "test", "--json"),
        *("--head", "votes,discriminant,ridge", "--k", "1,3", "--weights", "uniform"),
    )
    assert status == 0
    rows = json.loads(out)["rows"]
    assert sorted((row["head"], row["k"]) for row in rows if row["k"]) == [("votes", 1), ("votes", 3)]
    assert {row["head"] for row in rows if row["k"] is None} == {"discriminant", "ridge"}
    out = command("sweep", "--classifier", kept, "--validation", class_folder / "test")[1]
    assert [line.split()[0] for line in out.splitlines()] == ["head", "*", "on"]


def test_compare_has_a_row_for_each_head(command, class_folder, tiny_model, tmp_path):
    """Comma-separated, combined with the stages."""
    status, out, err = command(
        *(
            "compare",
            class_folder / "train",
            class_folder / "test",
            "--model",
            tiny_model,
            "--stages",
            "pixel",
        ),
        *("--pretrained", "none", "--head", "votes,discriminant", "--priors", "empirical"),
        *("--no-zero-shot", "--no-open-clip"),
    )
    assert (status, err) == (0, "")
    assert [line.split("  ")[0] for line in out.splitlines()[1:3]] == ["pixel votes", "pixel discriminant"]


def test_compare_has_a_row_for_each_cascade(command, class_folder, tiny_model):
    """Repeatable, with what it is to promise; what cannot be promised is one line."""
    asked = (
        *("compare", class_folder / "train", class_folder / "test", "--model", tiny_model),
        *("--pretrained", "none", "--stages", "late", "--head", "discriminant", "--no-zero-shot"),
        *("--no-open-clip", "--cascade", "stem,layer1", "--cascade", "stem,mid,late"),
    )
    promise = ("--calibration-share", 0.5, "--max-loss", 0.5, "--confidence", 0.5)
    status, out, err = command(*asked, *promise)
    assert (status, err) == (0, "")
    assert [line.split("  ")[0] for line in out.splitlines()[1:4]] == [
        "late",
        "stem, layer1",
        "stem, mid, late",
    ]
    assert "to at most 50.00% below always layer1, with a confidence of 0.5" in out
    status, out, err = command(*asked)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "takes at least 639" in err
    assert "on average" in command(*asked, "--budget", 1)[1]


@pytest.mark.parametrize("name", ["index", "evaluate", "classify", "sweep", "compare"])
def test_unknown_heads_are_refused_before_any_work(command, tmp_path, class_folder, name):
    """The error lists the known ones, or the known priors."""
    train, test = class_folder / "train", class_folder / "test"
    arguments = {
        "index": (train, tmp_path / "new"),
        "evaluate": ("--train", train, "--test", test),
        "classify": (tmp_path / "none", test),
        "sweep": ("--train", train, "--validation", test),
        "compare": (train, test),
    }[name]
    status, _, err = command(name, *arguments, "--head", "nearest")
    assert status == 2
    assert KNOWN in err
    status, _, err = command(name, *arguments, "--priors", "even")
    assert status == 2
    assert "priors must be 'equal', 'empirical'" in err
    assert not (tmp_path / "new").exists()


@pytest.fixture
def names(tmp_path):
    """A file of names for the prompts."""
    file = tmp_path / "names.json"
    file.write_text('{"flower": "a flower bed", "temple": "an old temple"}')
    return file


def test_texts_speak_beside_the_head(command, class_folder, tiny_model, names, tmp_path):
    """`index` keeps weight, names and prompts; `classify` and `evaluate` take others for a call."""
    final = ("--model", tiny_model, "--pretrained", "none", "--stage", "final")
    spoken = ("--text-weight", "auto", "--class-names", names, "--template", "{} I saw", "--template", "{}")
    kept = tmp_path / "kept"
    status, _, err = command(
        *("index", class_folder / "train", kept, *final, "--head", "discriminant", *spoken)
    )
    assert (status, err) == (0, "")
    loaded = RetrievalClassifier.load(kept)
    assert (loaded.text_weight, list(loaded.templates)) == ("auto", ["{} I saw", "{}"])
    assert loaded.class_names == {"flower": "a flower bed", "temple": "an old temple"}
    asked = ("classify", kept, class_folder / "test", "--json", "--explain", "--top", "2")
    for given, weight in (((), "auto"), (("--text-weight", "2"), 2.0), (("--text-weight", "none"), None)):
        found = answers(command(*asked, *given)[1])
        parts = [part["name"] for part in found[0].get("parts", [])]
        assert ("text" in parts) == (weight is not None)
        loaded.set_params(text_weight=weight)
        expected = loaded.predict_proba([line["path"] for line in found]).max(axis=1)
        # Computed on one thread or on all, whose sums end a little differently.
        assert [line["top"][0]["share"] for line in found] == pytest.approx(expected.tolist(), rel=1e-4)
    loaded.store_.close()
    test = ("--test", class_folder / "test", "--json", tmp_path / "report.json")
    for given in (("--classifier", kept), ("--train", class_folder / "train", *final, *spoken)):
        assert command("evaluate", *given, "--head", "discriminant", *test)[0] == 0
        assert json.loads((tmp_path / "report.json").read_text("utf-8"))["head"] == "discriminant + text"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--text-weight", "much"), "--text-weight takes auto, a number of at least 0, or none; got 'much'"),
        (("--text-weight", "-1"), "--text-weight takes auto"),
        (("--text-weight", "1", "--class-names", "nowhere.json"), "--class-names: 'nowhere.json' cannot be"),
        (("--text-weight", "1", "--class-names", "list.json"), "must hold an object of labels and names"),
        (("--template", "{}"), "are for --text-weight"),
        (("--text-weight", "1", "--pretrained", "none"), "or pass --text-weight none"),
    ],
)
def test_texts_that_cannot_count_are_refused_before_any_work(
    command, class_folder, tmp_path, monkeypatch, given, told
):
    """One line says what is taken, and nothing is begun."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[1]")
    status, out, err = command("index", class_folder / "train", "new", "--stage", "pixel", *given)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert told in err
    assert not (tmp_path / "new").exists()
