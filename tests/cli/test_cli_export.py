"""`clipretrieval export`, and commands that encode with what it wrote."""

from __future__ import annotations

import json

import pytest
from without_torch import run_without_torch

from clipretrieval import RetrievalClassifier, StagedEncoder, StoreUnavailableError

AS_COMMANDS = """
import contextlib, io, json, sys
from clipretrieval.cli import main
for arguments in {commands!r}:
    sys.argv = ["clipretrieval", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as ended:
            status = ended.code
    print(json.dumps([status, out.getvalue(), err.getvalue()]))
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


def without_torch(*commands):
    """Run commands where there is no torch; return each one's status, standard output and standard error."""
    done = run_without_torch(AS_COMMANDS.format(commands=[[str(each) for each in one] for one in commands]))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def labels_of(told):
    """Return what `classify --json` has told of each path."""
    status, out, _ = told
    assert status == 0
    return {each["path"]: each["label"] for each in map(json.loads, out.splitlines())}


def test_what_is_exported_serves_without_torch(command, kept, class_folder, tmp_path):
    file, test, made = tmp_path / "mid.onnx", class_folder / "test", tmp_path / "made"
    status, out, _ = command("export", kept, file)
    assert (status, out.startswith("the encoder at mid, 0.")) == (0, True)
    expected = labels_of(command("classify", kept, test, "--json"))
    assert len(expected) == 10

    by = ("--onnx", file, "--runtime", "openvino")
    refused, asked, otherwise, measured, indexed, named, described = without_torch(
        ("classify", kept, test),
        ("classify", kept, test, "--json", "--onnx", file),
        ("classify", kept, test, *by, "--precision", "fp32"),
        ("evaluate", "--classifier", kept, "--test", test, "--onnx", file),
        # An index that is made with it names it, and its commands need not.
        ("index", class_folder / "train", made, *by, "--precision", "fp32"),
        ("classify", made, test, "--json"),
        ("info", made),
    )
    assert refused[0] == 2
    assert "needs torch, which is not installed" in refused[2]
    assert "--onnx FILE" in refused[2]
    assert "Traceback" not in refused[2]
    assert labels_of(asked) == labels_of(named) == expected
    assert len(otherwise[1].splitlines()) == 10
    right = sum(label in path for path, label in expected.items())
    assert f"{right} of 10 images" in measured[1]
    assert f"model onnx:{file}, stage mid" in measured[1]
    assert indexed[0] == 0
    saved = json.loads((made / "classifier.json").read_text())["encoder"]["config"]
    assert (saved["runtime"], saved["precision"]) == ("openvino", "fp32")
    assert str(file) in described[1]
    # Nor need one that has moved, where it is told.
    moved = file.rename(tmp_path / "moved.onnx")
    small = ("--batch-size", 2, "--max-pixels", 160 * 160)
    refused, asked, added, forgotten = without_torch(
        ("classify", made, test),
        ("classify", made, test, "--json", "--onnx", moved),
        ("index", test, made, "--add", "--onnx", moved, *small),
        ("forget", made, "--label", "temple", "--onnx", moved),
    )
    assert (refused[0], "pass --onnx" in refused[2]) == (2, True)
    assert labels_of(asked) == expected
    assert (added[0], "10 new" in added[1]) == (0, True)
    assert (forgotten[0], "17" in forgotten[1]) == (0, True)


def test_8_bits_need_an_index_of_their_own(command, tiny_model, class_folder, tmp_path, monkeypatch):
    module = "clipretrieval.encoding.onnx.runtimes.onnx_runtime_session"
    monkeypatch.setattr(f"{module}.multiplies_bytes", lambda: True)
    file, train, kept = tmp_path / "int8.onnx", class_folder / "train", tmp_path / "kept"
    assert command("index", train, kept, "--model", tiny_model, "--stage", "stem")[0] == 0
    status, out, _ = command("export", kept, file, "--int8", train)
    assert (status, "need an index of their own" in out) == (0, True)
    status, _, err = command("classify", kept, train, "--onnx", file)
    assert (status, "quantization: stored nothing, given 'int8" in err) == (2, True)
    assert command("index", train, tmp_path / "made", "--onnx", file)[0] == 0
    status, out, _ = command("classify", tmp_path / "made", train)
    assert (status, len(out.splitlines())) == (0, 24)
    monkeypatch.setattr(f"{module}.multiplies_bytes", lambda: False)
    status, _, err = command("classify", tmp_path / "made", train)
    assert (status, "Export it without --int8 and index again" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("index", "TRAIN", "NEW", "--onnx", "FILE", "--stage", "mid"), "--stage cannot be used"),
        (("index", "TRAIN", "NEW", "--onnx", "FILE", "--device", "cpu"), "--device cannot be used"),
        (
            ("index", "TRAIN", "NEW", "--onnx", "FILE", "--cascade", "layer1,mid"),
            "--onnx cannot be used with --cascade",
        ),
        (
            ("evaluate", "--train", "TRAIN", "--test", "TRAIN", "--onnx", "F", "--seed", 2),
            "--seed cannot be used",
        ),
        (("classify", "KEPT", "TRAIN", "--onnx", "gone"), "gone' cannot be read"),
        (("index", "TRAIN", "KEPT", "--add", "--onnx", "FILE", "--batch-size", 0), "--batch-size must be"),
        (("index", "TRAIN", "KEPT", "--add", "--batch-size", 2), "--batch-size cannot be used with --add"),
        (
            ("index", "TRAIN", "KEPT", "--add", "--onnx", "FILE", "--seed", 2),
            "--seed cannot be used with --add",
        ),
        (("classify", "KEPT", "TRAIN", "--runtime", "openvino"), "--runtime is for --onnx FILE"),
        (("classify", "KEPT", "TRAIN", "--precision", "fp32"), "--precision is for --onnx FILE"),
        (("forget", "KEPT", "--label", "a", "--runtime", "openvino"), "--runtime is for --onnx FILE"),
        (("index", "TRAIN", "NEW", "--runtime", "openvino"), "--runtime is for --onnx FILE"),
        (("index", "TRAIN", "KEPT", "--add", "--runtime", "openvino"), "--runtime is for --onnx FILE"),
        (("index", "TRAIN", "KEPT", "--add", "--precision", "fp32"), "--precision cannot be used with --add"),
        (("compare", "TRAIN", "TRAIN", "--model", "onnx:FILE"), "exported encoder"),
        (("export", "KEPT", "KEPT/classifier.json"), "is a part of"),
        (("export", "KEPT", "gone/mid.onnx"), "'gone/mid.onnx' cannot be written: No such file"),
        (("export", "TRAIN", "FILE"), "is no saved classifier"),
        (("export", "KEPT", "vectors.csv"), ".onnx for the encoder, or .parquet for the vectors; got"),
        (("export", "KEPT", "mid"), ".onnx for the encoder, or .parquet for the vectors; got"),
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


def test_an_interrupted_index_keeps_its_encoder(command, tiny_model, class_folder, tmp_path):
    file, made, train = tmp_path / "stem.onnx", tmp_path / "made", class_folder / "train"
    StagedEncoder(tiny_model, stage="stem", precision="fp32").export(file)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RetrievalClassifier, "save", interrupted)
        assert command("index", train, made, "--onnx", file)[0] != 0
    status, _, err = command("index", train, made, "--resume", "--device", "cpu")
    assert status == 2
    assert "--device cannot be used with --onnx" in err
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
