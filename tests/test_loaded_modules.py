"""What is not needed is not loaded: each is a second or more of a core before the first answer."""

from __future__ import annotations

import subprocess
import sys

import pytest

SLOW = ("open_clip", "torchvision", "timm", "torch._dynamo", "huggingface_hub", "sympy")
SCIENCE = ("sklearn", "scipy", "pandas", "joblib")
CHECK = """
found = set({unwanted}) & set(sys.modules)
if found:
    sys.exit(f"{{sorted(found)}} loaded by " + {name!r})
"""
COMMAND = """
sys.argv = {arguments!r}
try:
    main()
except SystemExit as ended:
    assert ended.code == 0, sys.argv
"""


def run(*steps):
    """Run programs one after the other in one process, and fail if one loads what it should not.

    Each step is a program or a command's arguments, and what is not to be loaded after it: those that may
    load more come later.
    """
    whole = "import sys\nfrom clipretrieval.cli import main\n"
    for program, unwanted in steps:
        if isinstance(program, list):
            program = COMMAND.format(arguments=["clipretrieval", *map(str, program)])
        whole += program + CHECK.format(unwanted=unwanted, name=program)
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_raw_pixels_need_no_torch(class_folder, command, tmp_path):
    """Nor does a classifier of them, indexed and asked by the command, whatever model the encoder has."""
    kept, train, test = tmp_path / "kept", class_folder / "train", class_folder / "test"
    assert command("index", train, kept, "--stage", "pixel")[0] == 0
    shown = """
import copy, pickle
from clipretrieval import StagedEncoder
encoder = StagedEncoder(stage='pixel')
assert "device='auto'" in repr(encoder)
for copied in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
    assert copied.fingerprint == encoder.fingerprint
"""
    run(
        (["classify", kept, test, "--json", "--explain"], ("torch", *SLOW, *SCIENCE)),
        (shown, ("torch", *SLOW)),
        (["info", kept], ("torch", *SLOW)),
        (["index", train, tmp_path / "made", "--stage", "pixel"], ("torch", *SLOW)),
    )


@pytest.fixture(scope="module")
def kept(tiny_model, class_folder, tmp_path_factory):
    """Return a function that keeps a classifier of the tiny model, made with some options."""
    from clipretrieval import RetrievalClassifier, StagedEncoder

    def keep(name, stage="layer1", **options):
        folder = tmp_path_factory.mktemp("kept") / name
        encoder = StagedEncoder(tiny_model, stage=stage)
        made = RetrievalClassifier(encoder, **options).fit(class_folder / "train")
        made.save(folder)
        made.store_.close()
        return folder

    return keep


def test_a_command_that_asks_loads_torch_and_little_else(tiny_model, class_folder, kept):
    """The tower is the library's own, a classifier that is only asked no estimator; votes need no SciPy."""
    test = class_folder / "test"
    encode = f"""
from clipretrieval import StagedEncoder
for precision in ("auto", "fp32"):
    encoder = StagedEncoder({tiny_model!r}, stage="final", precision=precision)
    assert encoder.encode({str(test)!r}).shape == (10, encoder.dim)
    assert encoder.fingerprint["weights"].startswith("sha256:")
"""
    run(
        (["classify", kept("plain"), test], (*SLOW, *SCIENCE)),
        (["classify", kept("normalized", normalize=True), test], (*SLOW, *SCIENCE)),
        (["classify", kept("cosine", store="memory", metric="cosine"), test], (*SLOW, *SCIENCE)),
        ("from clipretrieval import StagedEncoder\nStagedEncoder(stage='mid')", (*SLOW, *SCIENCE)),
        (encode, (*SLOW, *SCIENCE)),
        (["classify", kept("fused", head="fused"), test], (*SLOW, "sklearn", "pandas")),
        (["classify", kept("discriminant", head="discriminant"), test], (*SLOW, "sklearn", "pandas")),
        (["search", kept("texts", stage="final"), "a flower"], ("sklearn", "pandas")),
    )
