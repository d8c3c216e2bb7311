"""What is not needed is not loaded: each is a second or more of a core before the first answer."""

from __future__ import annotations

import subprocess
import sys

import pytest

SLOW = ("open_clip", "torchvision", "timm", "torch._dynamo", "huggingface_hub", "sympy")
SCIENCE = ("sklearn", "scipy", "pandas", "joblib")
ENDING = """
import sys
found = {found} & set(sys.modules)
sys.exit(f"{{sorted(found)}} loaded" if found else 0)
"""


def run(program, unwanted=SLOW):
    """Run a program, and fail if it has loaded what it should not."""
    whole = program + ENDING.format(found=set(unwanted))
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def as_command(arguments):
    """Return a program that does what the command does."""
    return (
        f"import sys; sys.argv = {['clipretrieval', *map(str, arguments)]!r}\n"
        "from clipretrieval.cli import main\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert ended.code == 0"
    )


def test_an_encoder_is_had_with_torch_alone():
    run("from clipretrieval import StagedEncoder\nStagedEncoder(stage='mid')", (*SLOW, "sklearn", "scipy"))


def test_raw_pixels_need_no_torch(class_folder, command, tmp_path):
    """Nor does a classifier of them, indexed and asked by the command, whatever model the encoder has."""
    folder = tmp_path / "kept"
    for asked, unwanted in (
        (["index", class_folder / "train", folder, "--stage", "pixel"], SLOW),
        (["classify", folder, class_folder / "test", "--json", "--explain"], (*SLOW, *SCIENCE)),
        (["info", folder], SLOW),
    ):
        run(as_command(asked), ("torch", *unwanted))


def test_a_pixel_encoder_is_shown_and_copied_without_torch():
    run(
        "import copy, pickle\n"
        "from clipretrieval import StagedEncoder\n"
        "encoder = StagedEncoder(stage='pixel')\n"
        "assert \"device='auto'\" in repr(encoder)\n"
        "for copied in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):\n"
        "    assert copied.fingerprint == encoder.fingerprint",
        ("torch", *SLOW),
    )


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_weights_of_a_folder_run_with_torch_alone(tiny_model, class_folder, precision):
    """Nothing of open_clip for a model whose weights are at hand: the tower is the library's own."""
    run(
        "from clipretrieval import StagedEncoder\n"
        f"encoder = StagedEncoder({tiny_model!r}, stage='final', precision={precision!r})\n"
        f"assert encoder.encode({str(class_folder / 'test')!r}).shape == (10, encoder.dim)\n"
        "assert encoder.fingerprint['weights'].startswith('sha256:')",
    )


@pytest.mark.parametrize("options", [[], ["--normalize"], ["--metric", "cosine", "--store", "memory"]])
def test_votes_are_counted_without_scikit_learn(tiny_model, class_folder, command, tmp_path, options):
    """A classifier that the command only asks is no estimator, and votes need none of SciPy's functions."""
    made = ("--model", tiny_model, "--stage", "layer1", *options)
    assert command("index", class_folder / "train", tmp_path / "kept", *made)[0] == 0
    run(as_command(["classify", tmp_path / "kept", class_folder / "test"]), (*SLOW, *SCIENCE))


def test_heads_answer_without_scikit_learn(tiny_model, class_folder, command, tmp_path):
    options = ("--model", tiny_model, "--stage", "layer1", "--head", "fused")
    assert command("index", class_folder / "train", tmp_path / "kept", *options)[0] == 0
    run(as_command(["classify", tmp_path / "kept", class_folder / "test"]), (*SLOW, "sklearn", "pandas"))


def test_texts_are_searched_without_scikit_learn(tiny_model, class_folder, command, tmp_path):
    options = ("--model", tiny_model, "--stage", "final")
    assert command("index", class_folder / "train", tmp_path / "kept", *options)[0] == 0
    run(as_command(["search", tmp_path / "kept", "a flower"]), ("sklearn", "pandas"))


def test_classifying_loads_nothing_of_open_clip(tiny_model, class_folder, command, tmp_path):
    """From the demo's model or a folder, as the command does it."""
    options = ("--model", tiny_model, "--stage", "layer1", "--head", "discriminant")
    assert command("index", class_folder / "train", tmp_path / "kept", *options)[0] == 0
    run(as_command(["classify", tmp_path / "kept", class_folder / "test"]))
