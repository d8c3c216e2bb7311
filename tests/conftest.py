"""Settings and small real parts that every test shares.

What takes seconds to import is imported late: the process that hands out the tests reads this file too.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from browser import chrome  # noqa: F401  a fixture
from hypothesis import settings
from PIL import Image

# No test may fail for the speed of the machine, and every run tries the same examples.
settings.register_profile("clipretrieval", deadline=None, derandomize=True)
settings.load_profile("clipretrieval")

# Each client for HTTP reads all certificates, for 20 to 90 ms of processor time, and no test asks by TLS.
_no_certificates = TemporaryDirectory()
os.environ.pop("SSL_CERT_FILE", None)  # which comes before a folder
os.environ["SSL_CERT_DIR"] = _no_certificates.name

# A job in the background may have been started without Ctrl-C, and would hand that on to what tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A ModifiedResNet with two stages of two blocks, at 64×64 pixels."""
    from tiny_models import write_model

    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same architecture with other weights."""
    from tiny_models import write_model

    return write_model(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture(scope="session")
def photographs() -> list[Image.Image]:
    """Eight crops, of several shapes, of the two photographs that scikit-learn carries."""
    from sklearn.datasets import load_sample_image

    whole = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    boxes = [(0, 0, 427, 427), (200, 0, 640, 427), (100, 50, 300, 400), (300, 100, 620, 260)]
    return [photo.crop(box) for photo in whole for box in boxes]


@pytest.fixture(scope="session")
def class_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train`` and ``test`` folders of crops from two photographs: two classes that can be told apart."""
    from sklearn.datasets import load_sample_image

    root = tmp_path_factory.mktemp("crops")
    rng = np.random.default_rng(0)
    for name, file in (("temple", "china.jpg"), ("flower", "flower.jpg")):
        photo = load_sample_image(file)
        for split, count in (("train", 12), ("test", 5)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                top, left = rng.integers(0, 427 - 160), rng.integers(0, 640 - 160)
                crop = photo[top : top + 160, left : left + 160]
                Image.fromarray(crop).save(folder / f"{number:02}.{'png' if number % 2 else 'jpg'}")
    return root


@pytest.fixture
def few_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ``"ridge"`` and ``"fused"`` draw 64 random features: to learn from 2,048 takes three seconds."""
    from clipretrieval.heads import Fused, Ridge

    _, *others = Ridge.__init__.__defaults__ or ()
    monkeypatch.setattr(Ridge.__init__, "__defaults__", (64, *others))
    assert Fused().ridge.features == 64


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run the command in this process; return its exit status, standard output and standard error."""
    from clipretrieval import cli

    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # the command sets them
    monkeypatch.setenv("TQDM_DISABLE", "1")
    # The command takes these over, as a process of its own may.
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    before = signal.getsignal(signal.SIGINT)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipretrieval", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        status = ended.value.code
        assert isinstance(status, int)
        return status, *capfd.readouterr()

    yield run
    signal.signal(signal.SIGINT, before)
