"""``--cascade`` of ``index``, ``calibrate``, and what the other commands do with a cascade's folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipretrieval import StoreUnavailableError
from clipretrieval.cascade import CascadeClassifier

STAGES = ("stem", "layer1", "layer2")
NEVER = "warning: this cascade was never calibrated, so all images go to the last exit"
COLORS = {"blue": (80, 90, 150), "green": (80, 150, 90)}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two colors that vary so much that not all are told apart: to index, to calibrate on, to ask about."""
    root, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for split, count in (("train", 12), ("held", 40), ("test", 6)):
        for label, color in COLORS.items():
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                shade = np.array(color) + rng.normal(0, 30, 3)
                pixels = np.clip(shade + rng.normal(0, 40, (64, 64, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02}.png")
    return root


@pytest.fixture(scope="module")
def model(tiny_model):
    """The options that all exits share."""
    return ("--model", tiny_model, "--pretrained", "none", "--head", "discriminant")


@pytest.fixture(scope="module")
def made(tiny_model, images, tmp_path_factory):
    """A cascade that was saved, not calibrated; tests copy it, or only read it."""
    from clipretrieval import StagedEncoder

    folder = tmp_path_factory.mktemp("made") / "kept"
    options = {"path": str(folder / "vectors")}
    encoder = StagedEncoder(tiny_model, None)
    cascade = CascadeClassifier(encoder, STAGES, head="discriminant", store_options=options)
    cascade.fit(images / "train").save(folder)
    close(cascade)
    return folder


@pytest.fixture
def kept(made, tmp_path):
    """A copy of the cascade that may be changed."""
    return shutil.copytree(made, tmp_path / "kept")


@pytest.fixture
def calibrated(kept, images):
    """A cascade that is calibrated at such a threshold that half of the images to ask about leave at once."""
    cascade = CascadeClassifier.load(kept)
    cascade.calibrate(images / "held", budget=1.0)
    margins = [each.steps[0].margin for each in cascade.explain(images / "test")]
    cascade.policy_ = cascade.policy_.at(1 - float(np.median(margins)))
    cascade.save(kept)
    close(cascade)
    return kept


def close(cascade):
    for each in cascade.exits_:
        each.store_.close()


def lines(out):
    return [json.loads(line) for line in out.splitlines()]


def counts(folder):
    cascade = CascadeClassifier.load(folder)
    found = [each.store_.count() for each in cascade.exits_]
    close(cascade)
    return found


def test_index_makes_a_cascade(command, images, model, tmp_path):
    """Each exit's store lies in a folder of its own, the settings are those given, and the folder moves."""
    given = ("--cascade", "stem, layer2", "--certainty", "margin", "--normalize", "--priors", "empirical")
    status, out, err = command("index", images / "train", tmp_path / "new", *model, *given)
    assert (status, err) == (0, "")
    assert "the exits stem, layer2 are not calibrated, so all images go to the last one" in out
    assert sorted(each.name for each in (tmp_path / "new" / "vectors").iterdir()) == ["layer2", "stem"]
    assert not (tmp_path / "new" / "indexing.json").exists()
    (tmp_path / "new").rename(tmp_path / "moved")
    cascade = CascadeClassifier.load(tmp_path / "moved")
    close(cascade)
    assert (list(cascade.stages), cascade.certainty) == (["stem", "layer2"], "margin")
    assert (cascade.head, cascade.normalize, cascade.priors) == ("discriminant", True, "empirical")
    assert counts(tmp_path / "moved") == [24, 24]


def test_index_makes_a_cascade_without_vectors(command, images, model, tmp_path):
    """The head is one that needs none, info says so, and images can be added and forgotten."""
    given, folder = ("--cascade", "stem,layer2", "--no-keep-vectors"), tmp_path / "new"
    status, _, err = command("index", images / "train", folder, *model[:-2], *given)
    assert (status, err) == (0, "")
    assert "exits       2, certainty combined, vectors kept at the last alone\n" in command("info", folder)[1]
    told = json.loads(command("info", folder, "--json")[1])
    assert [each["keeps_vectors"] for each in told["cascade"]["exits"]] == [False, True]
    assert told["params"]["head"] == "discriminant"
    assert command("index", images / "held", folder, "--add")[0] == 0
    assert command("forget", folder, "--label", "blue")[0] == 0
    assert counts(folder) == [52, 52]
    moved = shutil.copytree(images / "train", tmp_path / "moved")
    assert command("index", moved, tmp_path / "other", *model[:-2], *given)[0] == 0
    (moved / "blue" / "03.png").unlink()
    status, _, err = command("forget", tmp_path / "other", "--label", "blue")
    assert (status, err.count("\n")) == (2, 1)
    assert "03.png' is gone" in err
    assert "add the images once more from where they are now (index --add), or fit again without it" in err
    assert counts(tmp_path / "other") == [24, 24]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--cascade", "stem,layer1", "--stage", "mid"), "--stage cannot be used with --cascade"),
        (("--cascade", "stem,layer1", "--text-weight", "1"), "--text-weight cannot be used with --cascade"),
        (("--cascade", "stem,layer1", "--template", "{}"), "--template cannot be used with --cascade"),
        (("--cascade", "stem"), "--cascade takes two stages or more"),
        (("--cascade", ""), "--cascade takes two stages or more"),
        (("--cascade", "layer1,stem"), "'stem' is not deeper than 'layer1'"),
        (("--cascade", "stem,middle"), "unknown stage 'middle'"),
        (("--cascade", "stem,layer1", "--certainty", "votes"), "certainty must be one of 'combined'"),
        (("--certainty", "margin"), "--certainty is for --cascade"),
        (("--no-keep-vectors",), "--keep-vectors is for --cascade"),
        (
            ("--cascade", "stem,late", "--no-keep-vectors", "--head", "fused"),
            "--head fused reads neighbors, which exits do not have with --no-keep-vectors; pass --head disc",
        ),
    ],
)
def test_what_no_cascade_can_be_made_of_is_refused_before_any_work(
    command, images, model, tmp_path, given, told
):
    """One line says what is wrong, and nothing is begun."""
    status, out, err = command("index", images / "train", tmp_path / "new", *model, *given)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert told in err
    assert not (tmp_path / "new").exists()


def interrupted(command, monkeypatch, *arguments):
    """Run index until its first images are done, and let it fail there."""
    fit = CascadeClassifier.fit

    def cut_short(self, *given, progress, **named):
        def tell(done, total):
            progress(done, total)
            if done:
                raise StoreUnavailableError("the disk is full")

        return fit(self, *given, progress=tell, **named)

    with monkeypatch.context() as patch:
        patch.setattr(CascadeClassifier, "fit", cut_short)
        return command(*arguments)


def test_an_interrupted_index_goes_on_as_a_cascade(command, images, model, tmp_path, monkeypatch):
    """With --resume, whose settings need not be said again; others are refused."""
    arguments = ("index", images / "train", tmp_path / "new")
    first = (*arguments, *model, "--cascade", "stem,layer2", "--batch-size", "4", "--flush-every", "4")
    status, _, err = interrupted(command, monkeypatch, *first)
    assert (status, "the disk is full" in err) == (2, True)
    assert "pass --resume" in command(*first)[2]
    for given, told in (
        (("--cascade", "stem,layer1"), "--cascade stem,layer2 and now it is --cascade stem,layer1"),
        (("--certainty", "margin"), "--certainty combined and now it is --certainty margin"),
        (("--head", "fused"), "--head discriminant and now it is --head fused"),
        (("--stage", "late"), "--stage cannot be used with --cascade"),
    ):
        status, _, err = command(*arguments, "--resume", *given)
        assert (status, told in err) == (2, True), err
    status, out, err = command(*arguments, "--resume", "--cascade", "stem, layer2")
    assert (status, err) == (0, "")
    assert "already there" in out
    assert counts(tmp_path / "new") == [24, 24]
    assert command("index", images / "train", tmp_path / "whole", *model, "--cascade", "stem,layer2")[0] == 0
    answers = [
        command("classify", tmp_path / name, images / "test", "--json")[1] for name in ("new", "whole")
    ]
    assert answers[0] == answers[1]


def test_no_other_index_goes_on_as_a_cascade(command, images, tmp_path, monkeypatch):
    """What was begun with one stage stays that."""
    arguments = ("index", images / "train", tmp_path / "new", "--stage", "pixel")
    monkeypatch.setattr(
        "clipretrieval.cli.index.make_classifier", lambda *_: (_ for _ in ()).throw(SystemExit(9))
    )
    assert command(*arguments)[0] == 9
    status, _, err = command(*arguments[:3], "--resume", "--cascade", "stem,layer1")
    assert (status, "no --cascade and now it is --cascade stem,layer1" in err) == (2, True)


def test_images_are_added_and_forgotten_at_all_exits(command, kept, images):
    """`index --add` and `forget` change each exit's store."""
    status, out, _ = command("index", images / "test", kept, "--add")
    assert (status, "12 new" in out) == (0, True)
    assert counts(kept) == [36, 36, 36]
    assert command("forget", kept, "--label", "green")[0] == 0
    assert counts(kept) == [18, 18, 18]


def test_classify_says_where_each_image_stopped(command, calibrated, images):
    """Answers, probabilities and exits are those of a batch in Python, for a single image too."""
    status, out, err = command("classify", calibrated, images / "test", "--json", "--top", "2", "--explain")
    assert (status, err) == (0, "")
    found = lines(out)
    cascade = CascadeClassifier.load(calibrated)
    paths = [line["path"] for line in found]
    explained = cascade.explain(paths)
    shares = cascade.predict_proba(paths)
    assert [line["label"] for line in found] == cascade.predict(paths).tolist()
    close(cascade)
    stages = [line["stage"] for line in found]
    assert stages == [each.stage for each in explained]
    assert stages.count("stem") == 6
    for line, row in zip(found, shares, strict=True):
        told = {each["label"]: each["share"] for each in line["top"]}
        assert told == pytest.approx(dict(zip(["blue", "green"], row.tolist(), strict=True)))
        assert line["top"][0] == {"label": line["label"], "share": line["share"]}
        assert [step["stage"] for step in line["steps"]] == list(STAGES[: len(line["steps"])])
    for line in (found[0], found[-1]):
        status, out, err = command("classify", calibrated, line["path"], "--by", "margin")
        assert (status, err) == (0, "")
        cells = out.rstrip("\n").split("\t")
        assert cells == [line["path"], line["label"], f"{line['margin']:.1%}", line["stage"]]
    out = command("classify", calibrated, paths[0], "--explain")[1]
    assert f"  {stages[0]}: {found[0]['label']}" in out


def test_the_head_is_fused_unless_given_and_explained_part_by_part(
    command, class_folder, tiny_model, tmp_path, few_features
):
    """Explained as at one stage: each part of the exit's head, with what it made of the answer."""
    given = ("--model", tiny_model, "--cascade", "stem,layer1")
    assert command("index", class_folder / "train", tmp_path / "new", *given)[0] == 0
    assert "head fused, " in command("info", tmp_path / "new")[1]
    single = (*given[:2], "--stage", "layer1", "--head", "fused")
    assert command("index", class_folder / "train", tmp_path / "single", *single)[0] == 0
    asked = (class_folder / "test", "--json", "--explain", "--top", "2")
    cascade, last = (lines(command("classify", tmp_path / name, *asked)[1]) for name in ("new", "single"))
    for line, alone in zip(cascade, last, strict=True):
        assert line.pop("stage") == "layer1"
        assert len(line.pop("steps")) == 2
        assert line == alone


def test_a_broken_image_is_named_by_classify(command, calibrated, images, tmp_path):
    """The others are answered, and the status tells that one was not."""
    folder = shutil.copytree(images / "test", tmp_path / "test")
    (folder / "blue" / "00.png").write_text("hello")
    status, out, err = command("classify", calibrated, folder, "--json")
    assert status == 3
    assert [Path(line["path"]).name for line in lines(out) if "error" in line] == ["00.png"]
    assert len([line for line in lines(out) if "stage" in line]) == 11
    assert err.count("skipped: ") == 1


def test_an_uncalibrated_cascade_warns(command, made, images):
    """A line, and all answers are the last exit's."""
    status, out, err = command("classify", made, images / "test", "--json")
    assert (status, err.startswith(NEVER), err.count("\n")) == (0, True, 1)
    assert {line["stage"] for line in lines(out)} == {"layer2"}


def test_calibrate_sets_what_it_prints(command, kept, images):
    """The folder holds the threshold; the text has it, the loss, the arithmetic and each exit's share."""
    status, out, err = command("calibrate", images / "held", kept, "--max-loss", "0.2", "--confidence", "0.9")
    assert (status, err) == (0, "")
    cascade = CascadeClassifier.load(kept)
    close(cascade)
    found = cascade.calibration_
    assert (found.n, found.max_loss, found.confidence, found.threshold) == (
        80,
        0.2,
        0.9,
        cascade.policy_.threshold,
    )
    share = found.multiply_adds / found.last_multiply_adds
    first, second, head, *exits, last = out.splitlines()
    promise = "accuracy at most 20.00% below always the last exit, with a confidence of 0.9"
    assert first == f"calibrated on 80 images: {promise}"
    assert second == (
        f"threshold {found.threshold:.3g}; on these images: {found.loss:.2%} lost, "
        f"{found.multiply_adds:.3g} · 10⁹ multiply-adds an image, {share:.2f} of the last exit's"
    )
    assert head.split() == ["exit", "left", "there"]
    assert [line.split() for line in exits] == [
        [stage, f"{left:.2%}"] for stage, left in zip(STAGES, found.shares, strict=True)
    ]
    assert last == f"kept in {kept}"


def test_a_promise_that_is_not_kept_lets_nothing_leave(command, kept, images, monkeypatch):
    """Where no threshold was accepted, the text says so and what to do."""
    monkeypatch.setattr("clipretrieval.cascade.calibration.last_accepted", lambda *_: None)
    status, out, _ = command("calibrate", images / "held", kept, "--max-loss", "0.2")
    assert (status, "threshold none; on these images: 0.00% lost" in out) == (0, True)
    assert "these images do not show that so little would be lost. Calibrate on more" in out


def test_calibrate_keeps_to_a_budget(command, kept, images):
    """As JSON: nothing is promised then, and the mean arithmetic is at most the budget."""
    status, out, _ = command("calibrate", images / "held", kept, "--budget", "1", "--json")
    told = json.loads(out)
    assert (status, told["threshold"], told["shares"], told["stages"]) == (0, None, [0, 0, 1], list(STAGES))
    text = command("calibrate", images / "held", kept, "--budget", "1")[1]
    assert "nothing leaves before the last exit: it costs no more than the budget\n" in text
    budget = 0.6 * told["last_multiply_adds"]
    told = json.loads(command("calibrate", images / "held", kept, "--budget", budget, "--json")[1])
    assert (told["budget"], told["max_loss"], told["confidence"]) == (budget, None, None)
    assert told["multiply_adds"] <= budget
    cascade = CascadeClassifier.load(kept)
    close(cascade)
    assert cascade.calibration_.to_dict() == {
        name: value for name, value in told.items() if name not in ("path", "stages")
    }


@pytest.mark.parametrize(
    ("split", "given", "told"),
    [
        ("held", (), "80 images are too few to promise a loss of at most 0.005 with a confidence of 0.95"),
        ("held", (), "Pass more images, a greater --max-loss, or --budget"),
        ("train", ("--max-loss", "0.2"), "are stored, and would find themselves"),
        ("held", ("--budget", "1e-9"), "--budget 1e-09 is less than the"),
        ("held", ("--budget", "1", "--max-loss", "0.1"), "--max-loss and --budget exclude each other"),
        ("held", ("--budget", "0"), "--budget must be a finite number above 0"),
        ("held", ("--max-loss", "1"), "--max-loss must be a finite number above 0 and at most 0.999"),
        ("held", ("--confidence", "0"), "--confidence must be a finite number above 0"),
        ("held/blue", (), "no sub-folder of"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(command, kept, images, split, given, told):
    """One line says what was wrong, and the folder stays as it was."""
    before = (kept / "classifier.json").read_bytes()
    status, out, err = command("calibrate", images / split, kept, *given)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert told in err
    assert (kept / "classifier.json").read_bytes() == before


def test_calibrate_skips_broken_images_where_asked_to(command, kept, images, tmp_path):
    """They are named, and the status tells of them."""
    folder = shutil.copytree(images / "held", tmp_path / "held")
    (folder / "blue" / "00.png").write_text("hello")
    assert command("calibrate", folder, kept, "--max-loss", "0.2")[0] == 2
    status, out, err = command("calibrate", folder, kept, "--max-loss", "0.2", "--on-error", "skip")
    assert (status, out.startswith("calibrated on 79 images")) == (3, True)
    assert err.startswith("skipped: ")


def test_evaluate_measures_exit_by_exit(command, calibrated, images, tmp_path):
    """Text, JSON, page, Markdown and table; without the curve, the last exit is not asked about all."""
    reports = [("--json", "r.json"), ("--html", "r.html"), ("--markdown", "r.md"), ("--predictions", "r.csv")]
    written = [part for option, name in reports for part in (option, tmp_path / name)]
    asked = ("evaluate", "--classifier", calibrated, "--test", images / "test")
    status, out, err = command(*asked, *written)
    assert (status, err) == (0, "")
    report = json.loads((tmp_path / "r.json").read_text("utf-8"))
    exits = report["cascade"]["exits"]
    assert [each["stage"] for each in exits] == list(STAGES)
    assert sum(each["left"] for each in exits) == 12
    assert report["cascade"]["loss"] is not None
    assert report["cascade"]["curve"]
    text = [line.split() for line in out.splitlines() if line.startswith(STAGES)]
    assert [(row[0], int(row[1])) for row in text] == [(each["stage"], each["left"]) for each in exits]
    assert "## Exits" in (tmp_path / "r.md").read_text("utf-8")
    assert "Exits" in (tmp_path / "r.html").read_text("utf-8")
    head, *rows = [line.split(",") for line in (tmp_path / "r.csv").read_text("utf-8").splitlines()]
    assert head[-1] == "stage"
    assert [[row[-1] for row in rows].count(stage) for stage in STAGES] == [each["left"] for each in exits]
    assert command(*asked, "--no-curve", "--json", tmp_path / "r.json")[0] == 0
    report = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert (report["cascade"]["loss"], report["cascade"]["curve"]) == (None, [])
    assert [each["left"] for each in report["cascade"]["exits"]] == [each["left"] for each in exits]


def test_info_shows_the_exits(command, kept, images):
    """Their dimensions, counts, stores and arithmetic, and what was calibrated."""
    text = command("info", kept)[1]
    assert (
        "exits       3, certainty combined\ncalibrated  not yet, so all images go to the last exit\n" in text
    )
    assert "stage" not in text
    assert command("calibrate", images / "held", kept, "--max-loss", "0.2")[0] == 0
    cascade = CascadeClassifier.load(kept)
    close(cascade)
    text, found = command("info", kept)[1], cascade.calibration_
    assert "calibrated  on 80 images: accuracy at most 20.00% below always the last exit" in text
    rows = [line.split() for line in text.splitlines() if line.startswith(STAGES)]
    dims = [each.n_features_in_ for each in cascade.exits_]
    costs = [cascade.encoder.multiply_adds(stage) for stage in STAGES]
    assert [row[:5] for row in rows] == [
        [stage, str(dim), "24", f"{cost / costs[-1]:.2f}", f"{left:.2%}"]
        for stage, dim, cost, left in zip(STAGES, dims, costs, found.shares, strict=True)
    ]
    assert [row[5:8] for row in rows] == [["faiss", "in", str(kept / "vectors" / stage)] for stage in STAGES]
    told = json.loads(command("info", kept, "--json")[1])
    assert told["cascade"]["calibration"] == found.to_dict()
    assert [each["images"] for each in told["cascade"]["exits"]] == [24, 24, 24]
    assert told["classes"] == [{"label": "blue", "images": 12}, {"label": "green", "images": 12}]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("classify", "{kept}", "{test}", "--head", "votes"), "--head cannot be used with a cascade"),
        (("classify", "{kept}", "{test}", "--priors", "equal"), "--priors cannot be used with a cascade"),
        (
            ("classify", "{kept}", "{test}", "--text-weight", "1"),
            "--text-weight cannot be used with a cascade",
        ),
        (
            ("evaluate", "--classifier", "{kept}", "--test", "{test}", "--head", "votes"),
            "--head cannot be used with a cascade",
        ),
        (("evaluate", "--classifier", "{kept}", "--test", "{test}", "--k", "3"), "--k cannot be used with"),
        (("evaluate", "--train", "{test}", "--test", "{test}", "--no-curve"), "--no-curve are for"),
        (
            ("sweep", "--classifier", "{kept}", "--validation", "{test}"),
            "holds a cascade, which sweep cannot take",
        ),
    ],
)
def test_what_a_cascade_cannot_take_is_refused(command, made, images, arguments, told):
    """One line names the option, or the command."""
    places = {"kept": made, "test": images / "test"}
    status, out, err = command(*(each.format(**places) for each in arguments))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert told in err
