"""Find problems with stored images and their labels: one search, used by all parts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clipretrieval._util.checks import check_choice, check_int, check_path, check_strings
from clipretrieval._util.progress import Progress, check_progress, open_progress
from clipretrieval.auditing.audit_report import AuditReport
from clipretrieval.auditing.decisions import Decisions
from clipretrieval.auditing.drafts import Draft, resolve_drafts
from clipretrieval.auditing.estimate import Estimate
from clipretrieval.auditing.evidence import Evidence, gather_evidence
from clipretrieval.auditing.finding import KINDS, Finding
from clipretrieval.auditing.gathering import gather_images
from clipretrieval.auditing.kept_images import KeptImages
from clipretrieval.auditing.label_errors import LabelErrors, find_label_errors
from clipretrieval.auditing.parts import (
    PartFindings,
    confused_pairs_of,
    grouped,
    harmful,
    outlying,
    wrong_labels,
)
from clipretrieval.auditing.pixels import FileFacts, Miniatures, read_facts
from clipretrieval.auditing.same_images import find_same
from clipretrieval.auditing.subject import Ints, Subject
from clipretrieval.auditing.validation_images import ValidationImages, look_up_test
from clipretrieval.auditing.words import doubt_words
from clipretrieval.cascade.cascade_classifier import CascadeClassifier
from clipretrieval.classifier import RetrievalClassifier
from clipretrieval.encoding.base import Encoder
from clipretrieval.errors import InvalidInputError, UnsupportedOperationError
from clipretrieval.heads.base import Head
from clipretrieval.heads.choice import head_name
from clipretrieval.heads.discriminant import Discriminant
from clipretrieval.heads.fitted_head import FittedHead
from clipretrieval.images.folders import ImageFolder, is_folder
from clipretrieval.images.stream import SkippedImage

__all__ = ["REPORT_FILE", "audit"]

REPORT_FILE = "audit.json"
"""The report, in an audit's folder."""
VOTERS = 5
"""Neighbors whose votes stored images may mislead, where it is not the classifier's votes that count."""
VALUED = 10
"""So many times as many neighbors of a test image as vote are valued."""
OF_RECORDS = ("label", "duplicate", "outlier", "confusion")
OF_TEST = ("leak", "harm")
OF_FILES = ("broken", "tiny", "blank")
_FOREIGN = "their class is none of those that are audited"
_STORED_ONCE = (
    "identical images: a classifier stores equal files once, so only near duplicates were looked for; audit "
    "the folder of the images to find equal files"
)


def audit(
    X: Any,
    y: Any = None,
    *,
    encoder: Encoder | None = None,
    X_test: Any = None,
    y_test: Any = None,
    parts: Sequence[str] | None = None,
    k: int = 20,
    limit: int | None = 1000,
    output: str | Path | None = None,
    decisions: Decisions | str | Path | Sequence[Decisions | str | Path] | None = None,
    progress: Progress | bool | None = None,
) -> AuditReport:
    """Find wrong labels, duplicates, leaks, outliers, harmful images, confused classes and bad files.

    Each stored image is looked up once, with its nearest others; all parts use the same neighbors. That takes
    little more time than ``classifier.kneighbors`` of all images, and memory for `k` neighbors of each.

    Parameters
    ----------
    X : RetrievalClassifier, CascadeClassifier, images, or array of shape (n, d)
        A fitted classifier, whose stored images are audited (for a cascade, those of its last exit); or
        images for `encoder`, or vectors without one, as `RetrievalClassifier.fit` takes them.
    y : sequence of int or of str, optional
        Labels, where `X` is no classifier and brings none.
    encoder : Encoder, optional
        For images.
    X_test, y_test : optional
        Test images, or vectors: which of them are also among the audited images, and which of those cause
        mistakes on them. Without labels, harm is left out.
    parts : sequence of str, optional
        The kinds of findings to look for, see `clipretrieval.auditing.KINDS`; all of them when left out.
    k : int
        Neighbors of each image.
    limit : int or None
        Findings of each kind that are kept; all of them with None. ``counts`` has how many there are.
    output : str or Path, optional
        A folder that keeps the vectors, the neighbors in blocks, and the report as ``audit.json``. If the
        process is killed, the same call resumes from there; it returns at once if nothing has changed.
    decisions : Decisions, str or Path, or a sequence of these, optional
        Decisions on earlier audits, in their order; a path is that of a file saved by the page. An image
        that was kept is not listed again for the findings that it was shown for, unless its contents or its
        label have changed or, for duplicates and leaks, its group has a new image. The report's `kept`
        counts these.
    progress : callable or True, optional
        As for `RetrievalClassifier.fit`: for the images that are encoded, then for those that are looked up.

    Returns
    -------
    AuditReport

    Raises
    ------
    InvalidInputError
        If there are no images, labels are missing or of several types, those of the test images are of
        another type, a part is unknown, an encoder or labels are given beside a classifier, or `decisions`
        cannot be read.
    NotFittedError
        If the classifier is not fitted, or its store holds nothing.
    FingerprintMismatchError
        If another encoder filled the folder's vectors.
    StoreLockedError
        If the store is changed meanwhile.
    UnsupportedOperationError
        If the store cannot list what it holds and there are no test images, or keeps no vectors.

    Warns
    -----
    ClipRetrievalWarning
        If the images have changed since the last run in the same folder, or none of those that `decisions`
        keep is among them.

    Examples
    --------
    >>> from clipretrieval import audit
    >>> report = audit([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]], [0, 0, 1, 1, 1, 1], k=3)
    >>> [(finding.label, finding.suggested) for finding in report.of("label")]
    [(1, 0)]
    """
    wanted = _wanted(parts)
    k, folder = check_int(k, "k"), None if output is None else check_path(output, "output")
    limit = None if limit is None else check_int(limit, "limit", least=0)
    check_progress(progress)
    run = _Run(wanted, k, limit, folder, progress, KeptImages.read(decisions))
    is_classifier = isinstance(X, RetrievalClassifier | CascadeClassifier)
    if is_classifier and (y is not None or encoder is not None):
        raise InvalidInputError(
            "a classifier has its own labels and encoder; pass it alone, or images with y and encoder"
        )
    if y_test is not None and X_test is None:
        raise InvalidInputError("y_test is for X_test, which is missing")
    if folder is not None:
        _make(folder)
    with run.measured("total"):
        if is_classifier:
            run.is_given = True
            run.setting["audited"] = "classifier"
            findings = run.of_classifier(_single(X), X_test, y_test)
        else:
            with run.measured("encode"), open_progress(progress, "encoding") as told:
                made = gather_images(X, y, encoder, folder, told, run.broken)
            run.has_files = encoder is not None
            run.setting["audited"] = "images" if run.has_files else "vectors"
            root = X.root if isinstance(X, ImageFolder) else X
            if isinstance(root, str | Path) and is_folder(root):
                run.setting["folder"] = str(root)
            try:
                findings = run.of_classifier(made, X_test, y_test)
            finally:
                made.store_.close()
    report = run.report(findings)
    if folder is not None:
        report.to_json(folder / REPORT_FILE)
    return report


def _wanted(parts: Sequence[str] | None) -> tuple[str, ...]:
    if parts is None:
        return KINDS
    given = check_strings([parts] if isinstance(parts, str) else parts, "parts")
    if not given:
        raise InvalidInputError(f"parts names nothing to look for; pass some of {', '.join(KINDS)}")
    for each in given:
        check_choice(each, "parts", KINDS)
    return tuple(kind for kind in KINDS if kind in given)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(
            f"the audit's folder {str(folder)!r} cannot be made: {error.strerror or error}; pass another one"
        ) from error


def _single(made: RetrievalClassifier | CascadeClassifier) -> RetrievalClassifier:
    """Return a classifier of one stage: of a cascade, its last exit."""
    found: RetrievalClassifier = made.exits_[-1] if isinstance(made, CascadeClassifier) else made
    if not found.retriever_.index.is_searchable:
        raise UnsupportedOperationError(
            "the classifier keeps no vectors (keep_vectors=False), so nothing can be looked up; audit the "
            "folder of its images instead"
        )
    return found


@dataclass
class _Run:
    """One audit in progress."""

    wanted: tuple[str, ...]
    k: int
    limit: int | None
    folder: Path | None
    progress: Progress | bool | None
    kept: KeptImages
    has_files: bool = False
    is_given: bool = False
    """Whether the classifier is the caller's, whose votes count as it has them."""
    broken: list[SkippedImage] = field(default_factory=list)
    broken_test: list[SkippedImage] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    cautions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    found: dict[str, PartFindings] = field(default_factory=dict)
    setting: dict[str, Any] = field(default_factory=dict)
    subject: Subject | None = None
    fingerprint: dict[str, Any] = field(default_factory=dict)
    n_test: int = 0

    @contextmanager
    def measured(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started

    def wants(self, *kinds: str) -> bool:
        """Tell whether one of these kinds is asked for and can be looked for."""
        return any(kind in self.wanted and kind not in self.left_out for kind in kinds)

    def leave_out(self, kinds: Sequence[str], why: str) -> None:
        for kind in kinds:
            if kind in self.wanted:
                self.left_out.setdefault(kind, why)

    def of_classifier(self, made: RetrievalClassifier, X_test: Any, y_test: Any) -> list[Finding]:
        retriever = made.retriever_
        subject = Subject.of(retriever.index)
        self.kept.warn_of_others(subject)
        self._see_what_can_be_done(subject, X_test)
        test, near_test = None, None
        if X_test is not None and self.wants(*OF_TEST, *OF_FILES):
            voters = made.k if made.head == "votes" and self.is_given else VOTERS
            width = min(max(self.k, VALUED * voters), subject.index.store.count())
            with self.measured("test"), open_progress(self.progress, "searching test images") as told:
                test = look_up_test(retriever, X_test, y_test, width, self.broken_test, told)
            self.n_test = len(test)
            if not subject.is_listed:
                subject = _of_neighbors(subject, test)
            near_test = subject.rows(test.near.ids)
            foreign = self._count_foreign(subject, test)
        evidence = self._evidence(made, subject)
        self._judge(subject, evidence)
        if test is not None and near_test is not None and self.wants("harm"):
            with self.measured("harm"):
                kept = self.kept.rows("harm", subject)
                self.found["harm"] = harmful(subject, test, near_test, voters, kept, self.limit)
            if foreign:
                self.leave_out(("harm",), f"for {foreign:,} of {len(test):,} test images: {_FOREIGN}")
        if evidence is not None or test is not None or self.has_files:
            self._compare_files(subject, evidence, test, near_test)
        if self.is_given and "duplicate" in self.found:
            self.leave_out(("duplicate",), _STORED_ONCE)
        self.subject, self.fingerprint = subject, subject.fingerprint  # the store may be closed afterwards
        drafts = [draft for kind in KINDS if kind in self.found for draft in self.found[kind].drafts]
        return resolve_drafts(drafts, subject, test)

    def _count_foreign(self, subject: Subject, test: ValidationImages) -> int:
        """Return how many test images are of classes that are not stored, which harm says nothing about."""
        if test.labels is None:
            self.leave_out(("harm",), "the test images have no labels")
            return 0
        known = set(subject.index.classes.labels.tolist())
        foreign = sum(label not in known for label in test.labels)
        if foreign == len(test):
            self.leave_out(("harm",), f"all {foreign:,} test images: {_FOREIGN}")
            return 0
        return foreign

    def _see_what_can_be_done(self, subject: Subject, X_test: Any) -> None:
        if X_test is None:
            self.leave_out(OF_TEST, "no test images were given")
        if not subject.is_listed:
            name = type(subject.index.store).__name__
            self.leave_out(OF_RECORDS, f"{name} cannot list what it holds (it has no scan method)")
        elif len(subject) == 1:
            self.leave_out(OF_RECORDS, "there is one image, which has nothing to be compared with")
        elif len(subject.classes) == 1:
            self.leave_out(("label", "confusion"), "there is one class, and no other that could be meant")
        if not self.has_files:
            self.leave_out(
                OF_FILES, "files are looked at where a folder is audited, not vectors or a classifier"
            )
        if not self.wants(*KINDS):
            kinds: dict[str, list[str]] = {}
            for kind, why in self.left_out.items():
                kinds.setdefault(why, []).append(kind)
            raise UnsupportedOperationError(
                "nothing of what was asked for can be looked for: "
                + "; ".join(f"{', '.join(listed)}: {why}" for why, listed in kinds.items())
            )

    def _evidence(self, made: RetrievalClassifier, subject: Subject) -> Evidence | None:
        if not subject.is_listed or len(subject) < 2 or not self.wants(*OF_RECORDS):
            return None
        head, name = _head_of(made)
        self.setting["head"] = name
        with self.measured("neighbors"), open_progress(self.progress, "searching") as told:
            return gather_evidence(subject, self.k, head, name, self.folder, told)

    def _judge(self, subject: Subject, evidence: Evidence | None) -> None:
        """Look for what the neighbors and the head show."""
        if evidence is None:
            return
        with self.measured("labels"):
            if self.wants("label", "confusion"):
                errors: LabelErrors = find_label_errors(
                    evidence, subject.codes, len(subject.classes), self.kept.rows("label", subject)
                )
                self.setting["held_out_accuracy"] = errors.accuracy
                if self.wants("label"):
                    if errors.is_doubtful:
                        self.cautions["label"] = doubt_words(errors.accuracy)
                    self.found["label"] = wrong_labels(errors, evidence, self.limit)
                if self.wants("confusion"):
                    self.found["confusion"] = confused_pairs_of(subject, evidence, errors, self.limit)
        if self.wants("outlier"):
            with self.measured("outliers"):
                self.found["outlier"] = outlying(evidence, self.kept.rows("outlier", subject), self.limit)

    def _compare_files(
        self,
        subject: Subject,
        evidence: Evidence | None,
        test: ValidationImages | None,
        near_test: Ints | None,
    ) -> None:
        """Look at the files, and find images that are the same."""
        same = self.wants("duplicate") or (test is not None and self.wants("leak"))
        if not same and not (self.has_files and self.wants(*OF_FILES)):
            return

        def files_of(numbers: list[int]) -> dict[int, str | None]:
            n = len(subject)
            found = subject.sources([number for number in numbers if number < n])
            if test is not None:
                found.update({number: test.sources[number - n] for number in numbers if number >= n})
            return found

        miniatures = Miniatures()
        if self.has_files:
            every = files_of(list(range(len(subject) + self.n_test)))
            sources = [every[number] for number in range(len(every))]
            if any(source is not None for source in sources):
                with self.measured("files"), open_progress(self.progress, "looking at files") as told:
                    miniatures = self._look(subject, sources, told)
            else:
                self.leave_out(("tiny", "blank"), "the images are in memory and have no files")
        if self.has_files and self.wants("broken"):
            listed = [each for each in self.broken if not self.kept.has_file("broken", each.source)]
            gone, self.broken = len(self.broken) - len(listed), listed
            self.found["broken"] = PartFindings(count=len(listed) + len(self.broken_test), kept=gone)
        if same and (evidence is not None or test is not None):
            with self.measured("duplicates"):
                pairs, scores = find_same(subject, evidence, test, near_test, miniatures, files_of)
                labels: list[Any] = [subject.classes[code] for code in subject.codes.tolist()]
                labels += [] if test is None else test.labels or [None] * len(test)

                def is_kept(kind: str, group: list[int]) -> bool:
                    n = len(subject)
                    rows = [number for number in group if number < n]
                    members = [(str(subject.ids[row]), subject.labels[subject.codes[row]]) for row in rows]
                    tested = [] if test is None else [test.ids[each - n] for each in group if each >= n]
                    return self.kept.has_group(kind, members, tested)

                groups = grouped(pairs, scores, len(subject), labels, is_kept, self.limit)
                self.found.update({kind: part for kind, part in groups.items() if self.wants(kind)})

    def _look(self, subject: Subject, sources: list[str | None], told: Progress) -> Miniatures:
        """Decode all files, and note what is tiny or blank."""
        shape = (len(sources), 32, 32)
        at_hand, missing = np.zeros(shape, dtype=np.uint8), np.ones(len(sources), dtype=bool)
        with_file = [number for number, source in enumerate(sources) if source is not None]
        noted: dict[str, list[Draft]] = {"tiny": [], "blank": []}
        for done, (number, facts) in enumerate(
            zip(with_file, read_facts([sources[each] for each in with_file]), strict=True), 1
        ):
            told(done, len(with_file))
            if facts is None:
                continue
            at_hand[number], missing[number] = facts.miniature, False
            for kind, draft in _bad_looks(number, facts):
                noted[kind].append(draft)
        for kind, drafts in noted.items():
            if self.wants(kind):
                kept = set(np.flatnonzero(self.kept.rows(kind, subject)).tolist())
                listed = [draft for draft in drafts if draft.image not in kept]
                listed.sort(key=lambda draft: -draft.score)
                gone = len(drafts) - len(listed)
                self.found[kind] = PartFindings(listed[: self.limit], len(listed), kept=gone)
        return Miniatures(at_hand, missing)

    def report(self, findings: list[Finding]) -> AuditReport:
        subject = self.subject
        if subject is None:
            raise RuntimeError("the audit has not run")
        if "broken" in self.found:
            broken = [
                Finding(
                    "broken",
                    None,
                    None,
                    each.source,
                    score=1.0,
                    probability=1.0,
                    where=where,
                    note=each.reason,
                )
                for where, listed in (("train", self.broken), ("test", self.broken_test))
                for each in listed
            ][: self.limit]
            findings = [*findings, *broken]
            order = {kind: place for place, kind in enumerate(KINDS)}
            findings.sort(key=lambda each: order[each.kind])
        estimates: dict[str, Estimate] = {
            kind: part.estimate for kind, part in self.found.items() if part.estimate is not None
        }
        return AuditReport(
            findings=tuple(findings),
            n_images=int(self.fingerprint["count"]),
            n_test=self.n_test,
            classes=tuple(subject.labels),
            fingerprint=self.fingerprint,
            counts={kind: self.found[kind].count for kind in KINDS if kind in self.found},
            kept={
                kind: self.found[kind].kept for kind in KINDS if kind in self.found and self.found[kind].kept
            },
            estimates=estimates,
            left_out={kind: self.left_out[kind] for kind in KINDS if kind in self.left_out},
            cautions=self.cautions,
            setting={"parts": list(self.wanted), "k": self.k, "limit": self.limit, **self.setting},
            seconds=self.seconds,
        )


def _head_of(made: RetrievalClassifier) -> tuple[Head, str]:
    """Return what judges labels: the classifier's own head, if it can leave records out, or the discriminant.

    Votes of the nearest neighbors are used beside it in any case.
    """
    rule = made.head_ if made.head != "votes" else None
    if isinstance(rule, FittedHead) and hasattr(rule.learned, "held_out_scores"):
        return rule.head, head_name(made.head)
    return Discriminant(), "discriminant"


def _bad_looks(number: int, facts: FileFacts) -> Iterator[tuple[str, Draft]]:
    if facts.is_tiny:
        size = f"{facts.width} × {facts.height} pixels"
        yield "tiny", Draft("tiny", score=1 / min(facts.width, facts.height), image=number, note=size)
    if facts.is_blank:
        spread = f"its values have a standard deviation of {facts.spread:.2g} of 255"
        yield "blank", Draft("blank", score=1 / (1 + facts.spread), image=number, note=spread)


def _of_neighbors(subject: Subject, test: ValidationImages) -> Subject:
    """Return the records that are near test images, of a store that cannot list what it holds."""
    valid = test.near.valid
    labels = dict(zip(test.near.ids[valid].tolist(), test.near.labels[valid].tolist(), strict=True))
    ids = np.array(sorted(labels), dtype=object)
    classes = sorted(set(labels.values()))
    places = {label: place for place, label in enumerate(classes)}
    codes = np.array([places[labels[name]] for name in ids.tolist()], dtype=np.int32)
    return Subject(subject.index, ids, codes, classes)
