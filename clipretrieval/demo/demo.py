"""The demonstration from end to end: draw, compare, add two kinds without training, say what it means."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from clipretrieval._util.checks import check_int, check_path, shown
from clipretrieval._util.files import write_report
from clipretrieval._util.repr import short_repr
from clipretrieval.classifier import RetrievalClassifier
from clipretrieval.comparison.comparison import compare
from clipretrieval.comparison.report import ZERO_SHOT, ComparisonReport, comparison_page
from clipretrieval.demo.embedded import FIRST_TRAINING_SEED, demo_model
from clipretrieval.demo.images import write_folders
from clipretrieval.demo.kinds import KINDS, TRAINED_KINDS, UNSEEN_KINDS
from clipretrieval.encoding.staged_encoder import StagedEncoder
from clipretrieval.encoding.stages import STUDY_STAGES
from clipretrieval.errors import InvalidInputError
from clipretrieval.images.folders import ImageFolder, scan_folder

__all__ = ["DemoResult", "OnlineStep", "run_demo"]

PICTURES = "pictures"
PAGE = "report.html"


@dataclass(frozen=True)
class OnlineStep:
    """What it brought to add kinds to a classifier that had never met them.

    Attributes
    ----------
    added : int
        Images of the new kinds that were added.
    before, after : float
        Accuracy on the test images of all kinds, in [0, 1].
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
    images : Path
        Folder of the images, with ``train`` and ``test``.
    page : Path
        The report as an HTML page.
    comparison : ComparisonReport
        The zero-shot answer and the stages, with each one's whole report.
    online : OnlineStep
        Adding `UNSEEN_KINDS` at the ``late`` stage.
    seconds : float
        Wall time of everything.
    """

    pictures: Path
    page: Path
    comparison: ComparisonReport
    online: OnlineStep
    seconds: float

    def __repr__(self) -> str:
        return short_repr(self, page=str(self.page), rows=len(self.comparison.rows), seconds=self.seconds)

    def accuracy(self, name: str, kinds: Collection[str] | None = None) -> float:
        """Return the share of right answers on the test images of all kinds, or of some.

        Parameters
        ----------
        name : str
            A stage, or ``"zero-shot"``.
        kinds : collection of str, optional

        Returns
        -------
        float
            In [0, 1].
        """
        report = self.comparison[name].report
        truth = np.asarray(report.y_true)
        asked = np.full(len(truth), True) if kinds is None else np.isin(truth, list(kinds))
        return float((np.asarray(report.y_pred) == truth)[asked].mean())

    def __str__(self) -> str:
        return "\n".join([self._table(), "", *self.sentences()])

    def _table(self) -> str:
        """Write a line for each way to classify: accuracy on all kinds, on both sorts of kinds, and time."""
        head = (
            f"{'':<10} {'dim':>5} {'accuracy':>9} {'trained on':>11} {'never seen':>11} {'s per 1,000':>12}"
        )
        lines = [head]
        for row in self.comparison.rows:
            every, seen, unseen = (
                self.accuracy(row.name, kinds) for kinds in (None, TRAINED_KINDS, UNSEEN_KINDS)
            )
            found = row.to_dict()
            lines.append(
                f"{row.name:<10} {found['dim']:>5} {every:>9.1%} {seen:>11.1%} {unseen:>11.1%} "
                f"{found['total_s_per_1000']:>12.2f}"
            )
        return "\n".join(lines)

    def sentences(self) -> list[str]:
        """Return what the figures mean, in four sentences."""
        comparison, online = self.comparison, self.online
        every = {row.name: self.accuracy(row.name) for row in comparison.rows}
        unseen = {row.name: self.accuracy(row.name, UNSEEN_KINDS) for row in comparison.rows}
        new = " and ".join(UNSEEN_KINDS)
        return [
            f"The nearest of {comparison.n_train:,} labeled images has the right class for "
            f"{every['pixel']:.1%} of {comparison.n_test:,} new ones by raw pixels, for {every['mid']:.1%} "
            f"where the encoder stops halfway (mid), and for {every['late']:.1%} where it stops before its "
            f"attention pool (late).",
            f"CLIP's own answer by the classes' names (zero-shot) is right for {every[ZERO_SHOT]:.1%}: it "
            f"needs no labeled images, but {new} were never shown or named to this model, and it is right "
            f"for {unseen[ZERO_SHOT]:.1%} of these.",
            f"Retrieval asks for labeled images and for no training: late is right for "
            f"{unseen['late']:.1%} of the two kinds that the model never saw.",
            f"Classes may come later: a classifier of the {len(TRAINED_KINDS)} other kinds was right for "
            f"{online.before:.1%} of all {comparison.n_test:,}, and {online.seconds:.1f} s later, with "
            f"{online.added:,} images of {new} added and nothing trained, for {online.after:.1%}.",
        ]


def run_demo(
    out: str | Path,
    *,
    train: int = 200,
    test: int = 50,
    seed: int = 0,
    tell: Callable[[str], None] | None = None,
) -> DemoResult:
    """Draw images, classify them at every stage, and add two kinds that the model never saw.

    Parameters
    ----------
    out : str or Path
        Folder to write ``images`` and ``report.html`` to. Images that an earlier run with the same
        settings left there are used again.
    train, test : int
        Images of each kind to fit on, and to classify.
    seed : int
        Of the images; from 0 to 19,999, which training did not use.
    tell : callable, optional
        Called with a line about each step before it begins.

    Returns
    -------
    DemoResult

    Raises
    ------
    InvalidInputError
        If the folder for the images holds something else, or a number is out of range.
    """
    out, seed = check_path(out, "out"), check_int(seed, "seed", least=0, most=FIRST_TRAINING_SEED - 1)
    train, test = check_int(train, "train"), check_int(test, "test")
    if tell is not None and (not callable(tell) or isinstance(tell, type)):
        raise InvalidInputError(f"tell must be a function of a line of text, or None; got {shown(tell)}")
    began = time.perf_counter()
    tell = tell or (lambda line: None)
    count = len(KINDS)
    tell(f"drawing {count * train:,} + {count * test:,} images of {count} kinds")
    pictures = write_folders(out / PICTURES, train=train, test=test, seed=seed)
    known, new = scan_folder(pictures / "train"), scan_folder(pictures / "test")
    tell("classifying at every stage, and zero-shot")
    comparison = compare(
        known,
        new,
        encoder=StagedEncoder(demo_model(), stage="final"),
        stages=STUDY_STAGES,
        zero_shot=True,
        open_clip=False,
    )
    tell(f"adding {' and '.join(UNSEEN_KINDS)} to a classifier of the other kinds")
    online = _add_online(known, new)
    tell("writing the report")
    found = DemoResult(pictures, out / PAGE, comparison, online, seconds=0.0)
    write_report(
        found.page, comparison_page(comparison, title="clipretrieval's demo", notes=found.sentences())
    )
    return replace(found, seconds=time.perf_counter() - began)


def _add_online(train: ImageFolder, test: ImageFolder) -> OnlineStep:
    pairs = list(zip(train.paths, train.labels or (), strict=True))
    unseen = [pair for pair in pairs if pair[1] in UNSEEN_KINDS]
    encoder = StagedEncoder(demo_model(), stage="late")
    classifier = RetrievalClassifier(encoder, k=1)
    classifier.fit([pair for pair in pairs if pair[1] in TRAINED_KINDS])
    with closing(classifier.store_):
        before = classifier.score(test)
        classifier.partial_fit(unseen)
        return OnlineStep(len(unseen), before, classifier.score(test), classifier.fit_report_.seconds)
