"""The demonstration from end to end: draw, measure, add two kinds without training, say what it means."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from clipretrieval.classifier import RetrievalClassifier
from clipretrieval.demo.embedded import FIRST_TRAINING_SEED, demo_model
from clipretrieval.demo.kinds import KINDS, TRAINED_KINDS, UNSEEN_KINDS
from clipretrieval.demo.measuring import ZERO_SHOT, Measured, measure
from clipretrieval.demo.pictures import write_folders
from clipretrieval.encoding.staged import StagedEncoder
from clipretrieval.errors import InvalidInputError
from clipretrieval.images import ImageFolder, scan_folder

__all__ = ["DemoResult", "OnlineStep", "run_demo"]


@dataclass(frozen=True)
class OnlineStep:
    """What it brought to add kinds to a classifier that had never met them.

    Attributes
    ----------
    added : int
        Pictures of the new kinds that were added.
    before, after : float
        Accuracy on the test pictures of all kinds, in [0, 1].
    seconds : float
        Wall time of adding them.
    """

    added: int
    before: float
    after: float
    seconds: float


@dataclass(frozen=True, eq=False)
class DemoResult:
    """What the demonstration found; ``str`` gives the table and what it means.

    Attributes
    ----------
    pictures : Path
        Folder of the pictures, with ``train`` and ``test``.
    n_train, n_test : int
    measured : list of Measured
        The stages from the shallowest on, the zero-shot answer last.
    online : OnlineStep
        Adding `UNSEEN_KINDS` at the ``late`` stage.
    seconds : float
        Wall time of everything.
    """

    pictures: Path
    n_train: int
    n_test: int
    measured: list[Measured]
    online: OnlineStep
    seconds: float

    def __getitem__(self, name: str) -> Measured:
        """Return what was measured of a stage, or of ``"zero-shot"``."""
        return next(each for each in self.measured if each.name == name)

    def __str__(self) -> str:
        rows = [f"{'':<10} {'dim':>5} {'accuracy':>9} {'trained on':>11} {'never seen':>11} {'seconds':>8}"]
        rows += [
            f"{each.name:<10} {each.dim:>5} {each.accuracy():>9.1%} {each.accuracy(TRAINED_KINDS):>11.1%} "
            f"{each.accuracy(UNSEEN_KINDS):>11.1%} {each.seconds:>8.1f}"
            for each in self.measured
        ]
        return "\n".join([*rows, "", *self.sentences()])

    def sentences(self) -> list[str]:
        """Return what the figures mean, in four sentences."""
        pixel, mid, late, zero_shot = (self[name].accuracy() for name in ("pixel", "mid", "late", ZERO_SHOT))
        new, online = " and ".join(UNSEEN_KINDS), self.online
        return [
            f"The nearest of {self.n_train:,} labelled pictures has the right class for {pixel:.1%} of "
            f"{self.n_test} new ones by raw pixels, for {mid:.1%} where the encoder stops halfway (mid), and "
            f"for {late:.1%} where it stops before its attention pool (late).",
            f"CLIP's own answer by the classes' names (zero-shot) is right for {zero_shot:.1%}: it needs no "
            f"labelled pictures, but {new} were never shown or named to this model, and it is right for "
            f"{self[ZERO_SHOT].accuracy(UNSEEN_KINDS):.1%} of these.",
            f"Retrieval asks for labelled pictures and for no training: late is right for "
            f"{self['late'].accuracy(UNSEEN_KINDS):.1%} of the two kinds that the model never saw.",
            f"Classes may come later: a classifier of the {len(TRAINED_KINDS)} other kinds was right for "
            f"{online.before:.1%} of all {self.n_test}, and {online.seconds:.1f} s later, with "
            f"{online.added} pictures of {new} added and nothing trained, for {online.after:.1%}.",
        ]


def run_demo(
    out: str | Path,
    *,
    train: int = 200,
    test: int = 50,
    seed: int = 0,
    tell: Callable[[str], None] | None = None,
) -> DemoResult:
    """Draw pictures, classify them at every stage, and add two kinds that the model never saw.

    Parameters
    ----------
    out : str or Path
        Folder for the pictures; what an earlier run with the same settings left there is used again.
    train, test : int
        Pictures of each kind to fit on, and to classify.
    seed : int
        Of the pictures; from 0 to 19,999, which training did not use.
    tell : callable, optional
        Called with a line about each step before it begins.

    Returns
    -------
    DemoResult

    Raises
    ------
    InvalidInputError
        If `out` holds something else, or a number is out of range.
    """
    if not 0 <= seed < FIRST_TRAINING_SEED:
        raise InvalidInputError(f"seed must be from 0 to {FIRST_TRAINING_SEED - 1}; got {seed}")
    began = time.perf_counter()
    tell = tell or _keep_quiet
    count = len(KINDS)
    tell(f"drawing {count * train:,} + {count * test:,} pictures of {count} kinds")
    pictures = write_folders(out, train=train, test=test, seed=seed)
    known, new = scan_folder(pictures / "train"), scan_folder(pictures / "test")
    tell("classifying at every stage, and zero-shot")
    measured = measure(demo_model(), known, new)
    tell(f"adding {' and '.join(UNSEEN_KINDS)} to a classifier of the other kinds")
    online = _add_online(known, new)
    return DemoResult(pictures, len(known), len(new), measured, online, time.perf_counter() - began)


def _add_online(train: ImageFolder, test: ImageFolder) -> OnlineStep:
    pairs = list(zip(train.paths, train.labels or (), strict=True))
    unseen = [pair for pair in pairs if pair[1] in UNSEEN_KINDS]
    encoder = StagedEncoder(demo_model(), stage="late")
    classifier = RetrievalClassifier(encoder, "faiss", k=1)
    classifier.fit([pair for pair in pairs if pair[1] in TRAINED_KINDS])
    with closing(classifier.store_):
        before = classifier.score(test)
        classifier.partial_fit(unseen)
        return OnlineStep(len(unseen), before, classifier.score(test), classifier.fit_report_.seconds)


def _keep_quiet(line: str) -> None:
    """Say nothing."""
