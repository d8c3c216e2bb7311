"""``clipretrieval index`` and ``clipretrieval classify``, as their users and their shells meet them."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from saved_files import rewrite
from warm_process import WarmProcess

from clipretrieval import RetrievalClassifier, StoreUnavailableError
from clipretrieval.cli.settings import _is_secret
from clipretrieval.stores import FaissStore, register_store

SETTINGS = ("--stage", "pixel", "--k", "3")


@pytest.fixture
def pictures(class_folder, tmp_path):
    """Twelve crops of each of two photographs, and beside them four things that are no pictures."""
    folder = tmp_path / "pictures"
    shutil.copytree(class_folder / "train", folder)
    temple = folder / "temple"
    (temple / "cut.jpg").write_bytes((temple / "00.jpg").read_bytes()[:100])
    (temple / "text.jpg").write_text("hello")
    (temple / "zero.jpg").touch()
    if hasattr(os, "symlink"):
        (temple / "loop.jpg").symlink_to("loop.jpg")
        (temple / "round").symlink_to("..", target_is_directory=True)
    return folder


@pytest.fixture
def kept(command, class_folder, tmp_path):
    """A classifier that the command has made of good pictures."""
    assert command("index", class_folder / "train", tmp_path / "kept", *SETTINGS)[0] == 0
    return tmp_path / "kept"


def lines(out):
    """The answers of ``--json``."""
    return [json.loads(line) for line in out.splitlines()]


def bad(folder):
    return {path.name for path in (folder / "temple").iterdir() if not path.stem.isdigit()} - {"round"}


def test_all_good_pictures_are_indexed_and_each_bad_one_is_named(command, pictures, tmp_path):
    """Status 3 says that something was passed over; everything else is there and can be asked."""
    status, out, err = command("index", pictures, tmp_path / "kept", *SETTINGS)
    assert status == 3
    named = {name for name in bad(pictures) if f"{name}'" in err}
    assert named == bad(pictures)
    assert len(err.splitlines()) == len(named)
    assert f"24 new, {len(named)} skipped" in out
    with_store = RetrievalClassifier.load(tmp_path / "kept")
    assert with_store.store_.count() == 24
    assert with_store.classes_.tolist() == ["flower", "temple"]


def test_all_good_pictures_are_answered_and_each_bad_one_is_named(command, kept, pictures):
    """One line of JSON for each file that a folder holds, as predict answers."""
    (pictures / "temple" / "round").unlink(missing_ok=True)
    status, out, err = command("classify", kept, pictures, "--json")
    assert status == 3
    answered = [line for line in lines(out) if "label" in line]
    failed = [line for line in lines(out) if "error" in line]
    assert {Path(line["path"]).name for line in failed} == bad(pictures)
    assert all(name in err for name in bad(pictures))
    assert len(answered) == 24
    classifier = RetrievalClassifier.load(kept)
    assert [line["label"] for line in answered] == classifier.predict(
        [line["path"] for line in answered]
    ).tolist()
    classifier.store_.close()


def test_only_bad_pictures_are_no_mistake(command, kept, pictures):
    """Where nothing is left to answer, each is named all the same."""
    status, out, err = command("classify", kept, pictures / "temple" / "zero.jpg", "--json")
    assert status == 3
    assert [set(line) for line in lines(out)] == [{"path", "error"}]
    assert err.startswith("skipped: ")


def test_top_shares_sum_to_what_the_votes_do(command, kept, class_folder):
    """The answer comes first, and the shares of all classes that got votes sum to 1."""
    status, out, _ = command("classify", kept, class_folder / "test", "--json", "--top", 5)
    assert status == 0
    assert len(lines(out)) == 10
    for line in lines(out):
        assert line["top"][0] == {"label": line["label"], "share": line["share"]}
        assert sum(each["share"] for each in line["top"]) == pytest.approx(1)


def test_text_has_a_picture_a_line(command, kept, class_folder):
    """Path, label and share, with tabs between them."""
    status, out, err = command("classify", kept, class_folder / "test" / "temple" / "00.jpg")
    assert (status, err) == (0, "")
    path, label, share = out.rstrip("\n").split("\t")
    assert path == str(class_folder / "test" / "temple" / "00.jpg")
    assert label in ("temple", "flower")
    assert share.endswith("%")


def test_explain_shows_where_the_answer_comes_from(command, kept, class_folder):
    """The neighbours' files are named, as text and as JSON."""
    asked = class_folder / "train" / "temple" / "00.jpg"
    status, out, _ = command("classify", kept, asked, "--explain", "--json")
    assert status == 0
    first = lines(out)[0]["neighbors"][0]
    assert first["source"] == str(asked)
    assert first["distance"] == 0
    assert "00.jpg" in command("classify", kept, asked, "--explain")[1]


def test_paths_are_read_from_the_standard_input(command, kept, class_folder, monkeypatch):
    """A dash stands for a list of paths, a line each; empty lines are passed over."""
    paths = sorted((class_folder / "test" / "temple").iterdir())
    text = "\n\n".join(map(str, paths)).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    status, out, _ = command("classify", kept, "-", "--json")
    assert status == 0
    assert [line["path"] for line in lines(out)] == [str(path) for path in paths]


def test_pictures_are_added_and_those_that_are_there_stay(command, kept, class_folder):
    """Adding takes the settings from the classifier, brings new classes, and changes nothing twice."""
    shutil.copytree(class_folder / "test" / "temple", kept.parent / "more" / "shrine")
    status, out, _ = command("index", kept.parent / "more", kept, "--add")
    assert status == 0
    assert "5 new" in out
    assert "3 classes" in out
    status, out, _ = command("index", kept.parent / "more", kept, "--add")
    assert "5 already there" in out
    asked = command("classify", kept, kept.parent / "more" / "shrine" / "00.jpg", "--explain", "--json")[1]
    assert lines(asked)[0]["neighbors"][0]["label"] == "shrine"


def test_the_folder_can_be_moved(command, kept, class_folder):
    """The vectors lie inside it, and nothing says where it was."""
    before = command("classify", kept, class_folder / "test", "--json")
    moved = kept.rename(kept.parent / "elsewhere")
    assert command("classify", moved, class_folder / "test", "--json") == before
    assert str(kept) not in (moved / "classifier.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("{train}", "{kept}"), "holds a classifier already; pass --add"),
        (("{train}", "{kept}", "--add", "--k", "5"), "--k cannot be used with --add"),
        (("{train}", "{kept}", "--add", "--resume"), "exclude each other"),
        (("{train}", "{new}", "--add"), "there is no folder"),
        (("{new}", "{new}", "--stage", "pixel"), "there is no folder"),
        (("{train}", "{new}", "--stage", "middle"), "middle"),
        (("{train}", "{kept}", "--resume", "--stage", "pixel"), "holds a classifier already"),
    ],
)
def test_mistakes_are_told_and_change_nothing(command, kept, class_folder, arguments, expected):
    """One line on the standard error and status 2, and the classifier answers as before."""
    before = command("classify", kept, class_folder / "test", "--json")
    places = {"train": class_folder / "train", "kept": kept, "new": kept.parent / "new"}
    status, out, err = command("index", *(each.format(**places) for each in arguments))
    assert (status, out) == (2, "")
    assert expected in err
    assert len(err.splitlines()) == 1
    assert command("classify", kept, class_folder / "test", "--json") == before


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_a_killed_index_is_resumed(command, digits_folder, tmp_path):
    """After a kill the folder is refused until --resume goes on, and ends with the same answers."""
    crowd = digits_folder / "train"
    arguments = ("index", crowd, tmp_path / "kept", *SETTINGS, "--flush-every", 16, "--batch-size", 4)
    process = WarmProcess(["-m", "clipretrieval", *arguments])
    deadline = time.monotonic() + 120
    # A second generation is begun when the first is durable.
    while not list((tmp_path / "kept").glob("vectors/segment-[2-9]*")) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.communicate(timeout=60)
    assert process.poll() == -signal.SIGKILL
    assert not (tmp_path / "kept" / "classifier.json").exists()
    status, _, err = command(*arguments)
    assert status == 2
    assert "pass --resume" in err
    status, out, _ = command(*arguments, "--resume")
    assert status == 0
    assert "already there" in out
    assert command("index", crowd, tmp_path / "undisturbed", *SETTINGS)[0] == 0
    answers = [
        command("classify", tmp_path / name, digits_folder / "test", "--json")[1]
        for name in ("kept", "undisturbed")
    ]
    assert answers[0] == answers[1]


def interrupted(command, monkeypatch, *arguments):
    """Run index until its first picture is done, and let it fail there."""
    fit = RetrievalClassifier.fit

    def cut_short(self, *given, progress, **named):
        def tell(done, total):
            progress(done, total)
            if done:
                raise StoreUnavailableError("the disk is full")

        return fit(self, *given, progress=tell, **named)

    with monkeypatch.context() as patch:
        patch.setattr(RetrievalClassifier, "fit", cut_short)
        return command(*arguments)


def test_resume_goes_on_with_the_settings_that_were_asked_for(command, class_folder, tmp_path, monkeypatch):
    """They need not be said again, others are refused, and the classifier has them in the end."""
    target = tmp_path / "kept"
    settings = ("--stage", "pixel", "--k", "3", "--weights", "softmax", "--temperature", "0.5", "--normalize")
    assert interrupted(command, monkeypatch, "index", class_folder / "train", target, *settings)[0] != 0
    assert "pass --resume" in command("index", class_folder / "train", target, *settings)[2]
    for asked in (
        ("classify", target, class_folder / "test"),
        ("index", class_folder / "test", target, "--add"),
    ):
        status, _, err = command(*asked)
        assert (status, "interrupted" in err) == (2, True)
    status, _, err = command("index", class_folder / "train", target, "--resume", "--k", "5")
    assert (status, "--k 3 and now it is --k 5" in err) == (2, True)
    assert command("index", class_folder / "train", target, "--resume")[0] == 0
    made = RetrievalClassifier.load(target)
    assert (made.k, made.weights, made.temperature, made.normalize) == (3, "softmax", 0.5, True)
    assert (made.encoder.stage, made.store_.count()) == ("pixel", 24)
    assert not (target / "indexing.json").exists()


def test_another_store_that_takes_a_folder_lies_in_the_classifiers(
    command, class_folder, tmp_path, monkeypatch
):
    """A store of another package says how it is placed, and needs no option for it either."""

    class Drawer(FaissStore):
        place_options = ("drawer",)

        def __init__(self, drawer=None, **options):
            super().__init__(drawer, **options)

    monkeypatch.setattr("clipretrieval.stores.registry._registered", {})
    register_store("drawer", Drawer)
    options = ("--store", "drawer", "--stage", "pixel")
    assert command("index", class_folder / "train", tmp_path / "kept", *options)[0] == 0
    with FaissStore(tmp_path / "kept" / "vectors", create=False) as store:
        assert store.count() == 24


def test_no_secret_is_noted(command, class_folder, tmp_path, monkeypatch):
    """An option that looks like one has to be given again."""
    options = ("--store", "memory", "--store-option", "token=hush", "--stage", "pixel")
    with monkeypatch.context() as patch:
        patch.setattr(
            "clipretrieval.cli.index.make_classifier", lambda *_: (_ for _ in ()).throw(SystemExit(9))
        )
        assert command("index", class_folder / "train", tmp_path / "kept", *options)[0] == 9
    noted = (tmp_path / "kept" / "indexing.json").read_text()
    assert json.loads(noted)["settings"]["store"] == "memory"
    assert "hush" not in noted


@pytest.mark.parametrize(
    ("option", "secret"),
    [
        ("path=monkeys", False),
        ("collection=turkey", False),
        ("path=/data/authors", False),
        ("api_key=x", True),
        ("headers=x", True),
        ("host=http://me:pass@there", True),
        ("host=http://there?api_key=x", True),
    ],
)
def test_a_secret_is_known_by_its_name(option, secret):
    """A value that merely holds such a word is noted like any other."""
    assert _is_secret(option) == secret


def test_a_mistake_in_going_on_leaves_it_to_be_gone_on_with(command, class_folder, tmp_path, monkeypatch):
    """A resumed run that fails at once keeps the note of the interrupted one."""
    arguments = ("index", class_folder / "train", tmp_path / "kept")
    with monkeypatch.context() as patch:
        patch.setattr(
            "clipretrieval.cli.index.make_classifier", lambda *_: (_ for _ in ()).throw(SystemExit(9))
        )
        assert command(*arguments, "--stage", "pixel")[0] == 9
    assert (tmp_path / "kept" / "indexing.json").exists()
    assert command(*arguments, "--resume", "--device", "cuda:99")[0] == 2
    assert (tmp_path / "kept" / "indexing.json").exists()
    assert command(*arguments, "--resume")[0] == 0


def test_a_mistake_leaves_nothing_to_resume(command, class_folder, tmp_path):
    """The command can be given again, mended."""
    arguments = ("index", class_folder / "train", tmp_path / "kept")
    assert command(*arguments, "--stage", "middle")[0] == 2
    assert not (tmp_path / "kept").exists()
    status, _, err = command(*arguments, "--stage", "pixel", "--resume")
    assert (status, "holds nothing to go on with" in err) == (2, True)
    assert command(*arguments, "--stage", "pixel")[0] == 0


def test_a_store_that_others_have_filled_is_gone_on_with(command, class_folder, tmp_path):
    """By who has the store, and no folder of a classifier; the error of who does not ask for it says how."""
    store = ("--stage", "pixel", "--store-option", f"path={tmp_path / 'shared'}")
    assert command("index", class_folder / "train", tmp_path / "theirs", *store)[0] == 0
    status, _, err = command("index", class_folder / "train", tmp_path / "mine", *store)
    assert (status, "with --resume keeps them" in err, "overwrite" in err) == (2, True, False)
    status, out, _ = command("index", class_folder / "train", tmp_path / "mine", *store, "--resume")
    assert (status, "24 already there" in out) == (0, True)
    theirs, mine = (
        command("classify", tmp_path / kept, class_folder / "test")[1] for kept in ("theirs", "mine")
    )
    assert theirs == mine != ""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_place_that_is_taken_is_refused_before_anything_is_encoded(command, tmp_path, class_folder, kind):
    """Not after hours of encoding; and what is there stays."""
    target = tmp_path / "taken"
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("taken*")) + sorted(target.rglob("*"))
    status, _, err = command("index", class_folder / "train", target, "--stage", "pixel")
    assert (status, "images" in err) == (2, False)
    assert "is a file" in err if kind == "file" else "holds other things" in err
    assert sorted(tmp_path.rglob("taken*")) + sorted(target.rglob("*")) == before


def test_classify_tells_of_a_fault_though_pictures_were_passed_over(command, kept, class_folder, pictures):
    """A wrong setting is not taken for the absence of pictures."""
    file = kept / "classifier.json"
    rewrite(file, params=json.loads(file.read_text())["params"] | {"normalize": True})
    status, out, err = command("classify", kept, pictures / "temple" / "zero.jpg", class_folder / "test")
    assert (status, out) == (2, "")
    assert "normalize" in err


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems take no such names")
def test_json_has_the_paths_that_files_have(command, kept, class_folder, tmp_path):
    """Whatever a name is made of, its path in JSON opens the file, and a line of text stays a line."""
    names = ["tab\tline\nend.jpg", os.fsdecode(b"latin\xe9.jpg"), "猫.jpg"]
    for name in names:
        shutil.copy(class_folder / "test" / "temple" / "00.jpg", tmp_path / name)
    (tmp_path / "bad\t.jpg").write_text("no picture")
    paths = [tmp_path / name for name in [*names, "bad\t.jpg"]]
    status, out, _ = command("classify", kept, *paths, "--json")
    assert status == 3
    assert {answer["path"] for answer in lines(out)} == {str(path) for path in paths}
    assert len(command("classify", kept, *paths[:3])[1].splitlines()) == 3
    shown = command("classify", kept, paths[2], "--explain", "--top", "2")[1].splitlines()
    assert shown[0].split("\t")[1] == "temple"


def test_a_kept_classifier_is_evaluated_as_it_was_made(command, kept, class_folder, tmp_path):
    """The report is that of the loaded classifier; a setting beside it, or a folder to fit on, is refused."""
    asked = ("evaluate", "--classifier", kept, "--test", class_folder / "test")
    status, out, err = command(*asked, "--json", tmp_path / "r.json")
    assert (status, err) == (0, "")
    report = json.loads((tmp_path / "r.json").read_text())
    loaded = RetrievalClassifier.load(kept)
    with closing(loaded.store_):
        expected = loaded.evaluate(class_folder / "test")
    assert (report["accuracy"], report["k"]) == (expected.accuracy, 3)
    assert out.startswith(f"accuracy {expected.accuracy:.2%}")
    for extra, named in (
        (("--k", 3), "--k cannot be used with"),
        (("--train", class_folder), "one of the two"),
    ):
        status, _, err = command(*asked, *extra)
        assert status == 2
        assert named in err


def test_a_class_and_an_image_are_forgotten(command, kept, class_folder):
    """What was named is gone in the next process; what is not there is refused and nothing changes."""
    picture = class_folder / "train" / "flower" / "00.jpg"
    _, out, _ = command("classify", kept, picture, "--explain", "--json")
    own = json.loads(out)["neighbors"][0]
    assert own["distance"] == 0
    assert command("forget", kept, "--id", own["id"])[0] == 0
    _, out, _ = command("classify", kept, picture, "--explain", "--json")
    assert own["id"] not in [each["id"] for each in json.loads(out)["neighbors"]]
    status, _, err = command("forget", kept, "--label", "tempel")
    assert (status, "flower, temple" in err) == (2, True)
    status, _, err = command("forget", kept)
    assert (status, "--label CLASS or --id ID" in err) == (2, True)
    assert command("forget", kept, "--label", "temple")[0] == 0
    loaded = RetrievalClassifier.load(kept)
    with closing(loaded.store_) as store:
        assert store.count() == 11
    assert loaded.classes_.tolist() == ["flower"]


def test_pictures_of_other_kinds_are_counted(command, class_folder, tmp_path):
    """A HEIC file, which Pillow does not read by itself, is not left out in silence."""
    folder = tmp_path / "telephone"
    shutil.copytree(class_folder / "test", folder)
    (folder / "temple" / "IMG_1.HEIC").write_bytes(b"a telephone's")
    status, out, err = command("index", folder, tmp_path / "kept", *SETTINGS)
    assert (status, err.count("\n")) == (0, 1)
    assert "1 image(s) in" in err
    assert "HEIC" in err
    assert "2 classes (flower, temple), kept in" in out


def test_resume_is_of_the_same_images(command, class_folder, tmp_path, monkeypatch):
    """Another folder than the interrupted command's is refused; the same one by a link is not."""
    target, train = tmp_path / "kept", class_folder / "train"
    assert interrupted(command, monkeypatch, "index", train, target, "--stage", "pixel")[0] != 0
    noted = (target / "indexing.json").read_text()
    status, out, err = command("index", class_folder / "test", target, "--resume")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert str(train) in err
    assert str(class_folder / "test") in err
    assert (target / "indexing.json").read_text() == noted
    (tmp_path / "link").symlink_to(train, target_is_directory=True)
    assert command("index", tmp_path / "link", target, "--resume")[0] == 0
    loaded = RetrievalClassifier.load(target)
    with closing(loaded.store_) as store:
        assert store.count() == 24


def test_the_note_of_an_earlier_version_is_gone_on_with(command, class_folder, tmp_path, monkeypatch):
    """It says neither which images they were nor what had no option then; those have their defaults."""
    target, train = tmp_path / "kept", class_folder / "train"
    settings = ("--stage", "pixel", "--k", "3")
    assert interrupted(command, monkeypatch, "index", train, target, *settings)[0] != 0
    note = json.loads((target / "indexing.json").read_text())
    earlier = ("model", "pretrained", "stage", "k", "weights", "temperature", "normalize", "metric")
    earlier = (*earlier, "store", "store_option")
    del note["images"], note["images_root"]
    note["settings"] = {name: note["settings"][name] for name in earlier}
    (target / "indexing.json").write_text(json.dumps(note))
    assert command("index", train, target, "--resume")[0] == 0
    loaded = RetrievalClassifier.load(target)
    loaded.store_.close()
    assert (loaded.k, loaded.encoder.stage, loaded.encoder.pooling) == (3, "pixel", "mean")


@pytest.mark.parametrize(
    "note",
    [
        "{",
        "[]",
        '{"format": "clipretrieval.indexing", "format_version": 1, "settings": {"store_option": 5}}',
        '{"format": "clipretrieval.indexing", "format_version": 1, "settings": {"k": "3"}}',
        '{"format": "clipretrieval.indexing", "format_version": 1, "settings": {"normalize": 1}}',
        '{"format": "clipretrieval.indexing", "format_version": 1, "settings": {"pretrained": null}}',
        "[" * 100_000,
        None,
    ],
)
def test_a_damaged_note_is_told_of(command, class_folder, tmp_path, note):
    """One line names the file, whatever it holds or is."""
    target = tmp_path / "kept"
    target.mkdir()
    if note is not None:
        (target / "indexing.json").write_text(note)
    elif hasattr(os, "mkfifo"):
        os.mkfifo(target / "indexing.json")
    else:
        pytest.skip("no pipes here")
    status, out, err = command("index", class_folder / "train", target, "--resume")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "indexing.json" in err


def test_an_empty_folder_of_the_users_stays(command, class_folder, tmp_path):
    """A mistake removes no folder that the command has not made."""
    (tmp_path / "mine").mkdir()
    assert command("index", class_folder / "train", tmp_path / "mine", "--stage", "middle")[0] == 2
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_folder_without_pictures_is_named(command, kept, class_folder, tmp_path):
    """Alone it is an error; beside others it is a warning, and they are answered."""
    (tmp_path / "empty").mkdir()
    status, out, err = command("classify", kept, tmp_path / "empty")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert repr(str(tmp_path / "empty")) in err
    status, out, err = command("classify", kept, tmp_path / "empty", class_folder / "test")
    assert (status, len(out.splitlines())) == (0, 10)
    assert err == f"warning: the folder {str(tmp_path / 'empty')!r} holds no images\n"


def test_the_standard_input_without_a_path_is_named(command, kept, monkeypatch):
    """An empty list of paths is told apart from an empty folder."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    status, out, err = command("classify", kept, "-")
    assert (status, out) == (2, "")
    assert err == "error: there is nothing to classify: the standard input names no images\n"


def test_an_answer_is_shown_with_how_sure_it_is(command, kept, class_folder):
    """By share, by margin or by distance, the figures of the JSON, which has all of them."""
    picture = class_folder / "test" / "temple" / "00.jpg"
    answer = lines(command("classify", kept, picture, "--json")[1])[0]
    loaded = RetrievalClassifier.load(kept)
    with closing(loaded.store_):
        shares = sorted(loaded.predict_proba([picture])[0])
        near = loaded.kneighbors([picture])
    assert answer["share"] == pytest.approx(shares[-1])
    assert answer["margin"] == pytest.approx(shares[-1] - shares[-2])
    assert answer["distance"] == pytest.approx(near.distances[0, 0])
    for by, told in (
        ("share", f"{answer['share']:.1%}"),
        ("margin", f"{answer['margin']:.1%}"),
        ("distance", f"{answer['distance']:.4g}"),
    ):
        assert command("classify", kept, picture, "--by", by)[1] == f"{picture}\t{answer['label']}\t{told}\n"
    status, _, err = command("classify", kept, picture, "--by", "luck")
    assert (status, "'share', 'margin', 'distance'" in err) == (2, True)


def test_equal_images_under_several_labels_are_told_of(command, class_folder, tmp_path):
    """The command says how many there are, and which."""
    folder = tmp_path / "pictures"
    shutil.copytree(class_folder / "train", folder)
    for number in ("00", "02"):
        shutil.copy(folder / "flower" / f"{number}.jpg", folder / "temple" / f"flower-{number}.jpg")
    status, out, err = command("index", folder, tmp_path / "kept", *SETTINGS)
    assert status == 0
    assert "24 new, 2 relabelled" in out
    assert err.startswith("warning: 2 images were given under several labels")
    told = [line for line in err.splitlines() if line.startswith("equal images: ")]
    for number, line in zip(("00", "02"), told, strict=True):
        assert f"{folder}/flower/{number}.jpg as 'flower'" in line
        assert f"{folder}/temple/flower-{number}.jpg as 'temple'" in line


def test_a_classifier_that_names_a_server_is_opened_with_consent_only(
    command, kept, class_folder, monkeypatch
):
    """No command contacts what a folder from elsewhere names; info shows what it names."""
    written = json.loads((kept / "classifier.json").read_text())
    options = {"index": "stolen", "host": "http://user:hush@127.0.0.1:9"}
    content = {**written, "format_version": 1, "store": {"name": "pinecone", "options": options}}
    del content["sha256"]
    content["params"] = {
        name: value for name, value in written["params"].items() if name not in ("head", "priors")
    }
    (kept / "classifier.json").write_text(json.dumps(content))
    monkeypatch.setenv("PINECONE_API_KEY", "pcsk_secret")
    test = class_folder / "test"
    for asked in (
        ("classify", kept, test),
        ("evaluate", "--classifier", kept, "--test", test),
        ("sweep", "--classifier", kept, "--validation", test),
        ("index", test, kept, "--add"),
        ("forget", kept, "--label", "temple"),
    ):
        status, out, err = command(*asked)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "--allow-remote" in err
        assert "hush" not in err
    status, out, err = command("info", kept)
    assert (status, "--allow-remote" in err) == (0, True)
    assert "pinecone" in out
    assert "hush" not in out


@pytest.mark.parametrize("store", ["faiss", "memory"])
def test_info_shows_what_a_classifier_holds(command, class_folder, tiny_model, tmp_path, store):
    """Encoder, settings, store, size and counts are those of the classifier, without its weights."""
    target = tmp_path / "kept"
    settings = ("--model", tiny_model, "--stage", "stem", "--k", 3, "--store", store)
    assert command("index", class_folder / "train", target, *settings)[0] == 0
    assert command("forget", target, "--label", "temple")[0] == 0
    assert command("index", class_folder / "test", target, "--add")[0] == 0
    status, out, err = command("info", target, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["encoder"]["config"]["stage"] == "stem"
    assert (found["params"]["k"], found["dim"], found["images"]) == (3, 8, 22)
    assert found["classes"] == [{"label": "flower", "images": 17}, {"label": "temple", "images": 5}]
    assert found["store"]["name"] == store
    assert found["size"] == sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    assert 0 < found["store"]["size"] < found["size"]
    assert found["versions"]["written_by"] == found["versions"]["clipretrieval"]
    status, out, _ = command("info", target)
    assert status == 0
    for told in ("stage stem", "22 of dimension 8", f"{store} in {target}", "flower"):
        assert told in out
    status, out, err = command("info", tmp_path)
    assert (status, out, err.count("\n")) == (2, "", 1)


def test_sweep_ranks_settings_by_what_evaluate_measures(command, kept, class_folder):
    """The best comes first, each accuracy is the report's, and the options of the best are told."""
    asked = ("sweep", "--classifier", kept, "--validation", class_folder / "test")
    status, out, err = command(*asked, "--k", "1,3,24", "--weights", "uniform,softmax", "--json")
    assert (status, err) == (0, "")
    rows = json.loads(out)["rows"]
    assert len(rows) == 6
    assert [row["accuracy"] for row in rows] == sorted((row["accuracy"] for row in rows), reverse=True)
    loaded = RetrievalClassifier.load(kept)
    with closing(loaded.store_):
        for row in rows:
            loaded.set_params(k=row["k"], weights=row["weights"])
            assert loaded.score(class_folder / "test") == row["accuracy"]
    _, out, _ = command(*asked, "--k", "1,3,24", "--weights", "uniform,softmax")
    assert out.splitlines()[1].startswith("*")
    assert f"the best: --k {rows[0]['k']} --weights {rows[0]['weights']}" in out
    status, _, err = command("sweep", "--classifier", kept, "--validation", class_folder / "train")
    assert (status, "--allow-known" in err) == (2, True)
    fitted = ("--train", class_folder / "train", "--stage", "pixel")
    status, out, _ = command("sweep", *fitted, "--validation", class_folder / "test", "--k", 3)
    assert (status, "on 10 images" in out) == (0, True)


def test_predictions_are_written_beside_the_report(command, kept, class_folder, tmp_path):
    """One row for each image, with its file, its label and the answer."""
    test, file = class_folder / "test", tmp_path / "answers.csv"
    assert command("evaluate", "--classifier", kept, "--test", test, "--predictions", file)[0] == 0
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    loaded = RetrievalClassifier.load(kept)
    with closing(loaded.store_):
        assert [row["predicted"] for row in rows] == loaded.predict([row["source"] for row in rows]).tolist()
    assert [Path(row["source"]).parent.name for row in rows] == [row["true"] for row in rows]
    assert len(rows) == 10
