"""`clipretrieval export`, and commands that encode with what it wrote."""

from __future__ import annotations

import json

import pytest
from without_torch import run_without_torch

from clipretrieval import RetrievalClassifier, StagedEncoder, StoreUnavailableError

AS_COMMAND = """
import sys
sys.argv = {arguments!r}
from clipretrieval.cli import main
main()
"""


@pytest.fixture(scope="module")
def kept(tiny_model, class_folder, tmp_path_factory):
    """A classifier of the stage mid."""
    folder = tmp_path_factory.mktemp("exported") / "kept"
    encoder = StagedEncoder(tiny_model, stage="mid", precision="fp32")
    made = RetrievalClassifier(encoder, store_options={"path": folder / "vectors"}).fit(
        class_folder / "train"
    )
    made.save(folder)
    made.store_.close()
    return folder


def without_torch(*arguments, status=0):
    """Run the command where there is no torch; return its standard output, or error if that is expected."""
    done = run_without_torch(AS_COMMAND.format(arguments=["clipretrieval", *map(str, arguments)]))
    assert done.returncode == status, done.stderr
    return done.stderr if status else done.stdout


def test_what_is_exported_serves_without_torch(command, kept, class_folder, tmp_path):
    file, test, made = tmp_path / "mid.onnx", class_folder / "test", tmp_path / "made"
    status, out, _ = command("export", kept, file)
    assert (status, out.startswith("the encoder at mid, 0.")) == (0, True)
    status, out, _ = command("classify", kept, test, "--json")
    expected = {each["path"]: each["label"] for each in map(json.loads, out.splitlines())}
    assert (status, len(expected)) == (0, 10)

    out = without_torch("classify", kept, test, "--json", "--onnx", file)
    assert {each["path"]: each["label"] for each in map(json.loads, out.splitlines())} == expected
    out = without_torch("evaluate", "--classifier", kept, "--test", test, "--onnx", file)
    right = sum(label in path for path, label in expected.items())
    assert f"{right} of 10 images" in out
    assert f"model onnx:{file}, stage mid" in out
    # An index that is made with it names it, and its commands need not.
    without_torch("index", class_folder / "train", made, "--onnx", file)
    out = without_torch("classify", made, test, "--json")
    assert {each["path"]: each["label"] for each in map(json.loads, out.splitlines())} == expected
    assert str(file) in without_torch("info", made)
    # Nor need one that has moved, where it is told.
    moved = file.rename(tmp_path / "moved.onnx")
    assert "pass --onnx" in without_torch("classify", made, test, status=2)
    out = without_torch("classify", made, test, "--json", "--onnx", moved)
    assert {each["path"]: each["label"] for each in map(json.loads, out.splitlines())} == expected
    assert "10 new" in without_torch("index", test, made, "--add", "--onnx", moved)
    assert "17" in without_torch("forget", made, "--label", "temple", "--onnx", moved)


def test_8_bits_need_an_index_of_their_own(command, kept, class_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("clipretrieval.encoding.onnx.onnx_encoder._multiplies_bytes", lambda: True)
    file, train = tmp_path / "int8.onnx", class_folder / "train"
    status, out, _ = command("export", kept, file, "--int8", train)
    assert (status, "need an index of their own" in out) == (0, True)
    status, _, err = command("classify", kept, train, "--onnx", file)
    assert (status, "quantization: stored nothing, given 'int8" in err) == (2, True)
    assert command("index", train, tmp_path / "made", "--onnx", file)[0] == 0
    status, out, _ = command("classify", tmp_path / "made", train)
    assert (status, len(out.splitlines())) == (0, 24)


def test_without_torch_the_way_on_is_told(kept, class_folder):
    err = without_torch("classify", kept, class_folder / "test", status=2)
    assert "needs torch, which is not installed" in err
    assert "--onnx FILE" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("index", "TRAIN", "NEW", "--onnx", "FILE", "--stage", "mid"), "--stage does not go"),
        (("index", "TRAIN", "NEW", "--onnx", "FILE", "--device", "cpu"), "--device does not go"),
        (
            ("index", "TRAIN", "NEW", "--onnx", "FILE", "--cascade", "layer1,mid"),
            "--onnx does not go with --cascade",
        ),
        (
            ("evaluate", "--train", "TRAIN", "--test", "TRAIN", "--onnx", "F", "--seed", 2),
            "--seed does",
        ),
        (("classify", "KEPT", "TRAIN", "--onnx", "gone"), "gone' cannot be read"),
        (("compare", "TRAIN", "TRAIN", "--model", "onnx:FILE"), "exported encoder"),
        (("export", "KEPT", "KEPT/classifier.json"), "is a part of"),
        (("export", "KEPT", "gone/mid.onnx"), "'gone/mid.onnx' cannot be written: No such file"),
        (("export", "TRAIN", "FILE"), "is no saved classifier"),
    ],
)
def test_what_does_not_go_together(command, kept, class_folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    places = {"TRAIN": class_folder / "train", "NEW": tmp_path / "new", "KEPT": kept, "FILE": "mid.onnx"}
    given = []
    for each in map(str, arguments):
        for name, place in places.items():
            each = each.replace(name, str(place))
        given.append(each)
    status, _, err = command(*given)
    assert status == 2
    assert message in err


def test_an_interrupted_index_keeps_its_encoder(command, kept, class_folder, tmp_path):
    file, made, train = tmp_path / "mid.onnx", tmp_path / "made", class_folder / "train"
    assert command("export", kept, file)[0] == 0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RetrievalClassifier, "save", interrupted)
        assert command("index", train, made, "--onnx", file)[0] != 0
    status, _, err = command("index", train, made, "--resume", "--device", "cpu")
    assert status == 2
    assert "--device does not go with --onnx" in err
    status, out, _ = command("index", train, made, "--resume")
    assert (status, out.startswith("24 images")) == (0, True)
    assert RetrievalClassifier.load(made).encoder.path == file


def interrupted(self, folder):
    """Fail as a full disk does."""
    raise StoreUnavailableError("no space")


def test_only_an_encoder_of_ours_is_exported(command, class_folder, tmp_path):
    assert command("index", class_folder / "train", tmp_path / "kept", "--stage", "pixel")[0] == 0
    status, _, err = command("export", tmp_path / "kept", tmp_path / "pixel.onnx")
    assert status == 2
    assert "'pixel' runs no network" in err
