"""What a fit remembers of the images that have come, in memory and in files."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipretrieval import RetrievalClassifier
from clipretrieval.retrieval import id_runs, index_writer
from clipretrieval.retrieval.given_labels import GivenLabels
from clipretrieval.retrieval.id_runs import IdRuns

IDS = st.text("0a", max_size=2) | st.integers(0, 20).map("{:032x}".format) | st.just("é\ud800/\n" * 9)


class Plain:
    """All in one dict, as `GivenLabels` answers it."""

    def __init__(self) -> None:
        self.given: dict[str, dict[Any, Any]] = {}
        self.last: dict[str, Any] = {}
        self.several: list[str] = []

    def note(self, content: str, label: Any, source: Any) -> None:
        labels = self.given.setdefault(content, {})
        if content in self.last and self.last[content] == label:
            return
        labels.pop(label, None)
        labels[label] = source
        if content in self.last and content not in self.several:
            self.several.append(content)
        self.last[content] = label


@given(
    st.lists(
        st.lists(st.tuples(IDS, st.integers(0, 4), st.sampled_from([None, "", "a\ud800é"])), max_size=9)
    ),
    st.integers(1, 5),
)
def test_files_tell_what_memory_would(batches: list[Any], recent: int) -> None:
    """Labels, counts and conflicts are those of a plain dict, however few images are held in memory."""
    found, plain = GivenLabels(recent), Plain()
    for batch in batches:
        found.prepare(content for content, _, _ in batch)
        for content, label, source in batch:
            assert found.label(content) == plain.last.get(content)
            found.note(content, label, source)
            plain.note(content, label, source)
    assert {content: found.label(content) for content in plain.last} == plain.last
    assert len(found) == len(plain.last)
    assert found.label("never") is None
    count, conflicts = found.count_and_list("int")
    assert count == len(plain.several)
    assert [(each.ids[0], dict(zip(each.labels, each.sources, strict=True))) for each in conflicts] == [
        (content, plain.given[content]) for content in plain.several[:20]
    ]
    assert [each.labels for each in conflicts] == [tuple(plain.given[each.ids[0]]) for each in conflicts]


def test_keys_of_one_first_half_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids that agree in 64 of 128 bits are several; runs are merged, and the last entry counts."""
    monkeypatch.setattr(id_runs, "LARGEST", 40)
    ids = [f"{place % 3:016x}{place:016x}" for place in range(60)]
    runs, right = IdRuns(), dict[str, tuple[int, str | None]]()
    for turn in range(12):
        some = {each: (turn, f"{turn} {each}") for each in ids[turn * 4 : turn * 4 + 16]}
        runs.put(some)
        right.update(some)
        assert runs.get(ids) == right
    assert 1 < len(runs._runs) < 12
    assert runs.get([each.upper() for each in ids if each.upper() != each]) == {}


def test_an_id_is_not_that_which_its_digest_spells() -> None:
    """Ids that are no digests are found by one of their own, which no content has."""
    runs = IdRuns()
    runs.put({"picture": (1, None), "0" * 64: (2, None), "0" * 32: (3, None)})
    digest = id_runs._digest("picture").hex()
    assert runs.get(["picture", digest, "0" * 64, "0" * 32, "0" * 16]) == {
        "picture": (1, None),
        "0" * 64: (2, None),
        "0" * 32: (3, None),
        digest: (1, None),
    }


def test_a_full_disk_leaves_all_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for temporary files, what has come is held as it was."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    found = GivenLabels(4)
    found.prepare(["a"])
    for place in range(6):
        found.note(str(place), place, f"{place}.png")
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", refuse)
        found.prepare(["0", "7"])
    found.note("0", 9, "9.png")
    found.prepare(["0"])
    assert [found.label(str(place)) for place in range(7)] == [9, 1, 2, 3, 4, 5, None]
    count, (conflict,) = found.count_and_list("int")
    assert (count, conflict.labels, conflict.sources) == (1, (0, 9), ("0.png", "9.png"))


@pytest.mark.parametrize("how", ["fit", "partial_fit", "resume"])
def test_a_fit_counts_the_same_with_few_images_in_memory(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports, conflicts and answers do not depend on what is held in files."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 12, (900, 2)).astype(np.float32)
    labels = rng.integers(0, 3, 900)
    reports = []
    for recent in (None, 7):
        monkeypatch.setattr(index_writer, "RECENT", recent)
        classifier = RetrievalClassifier(store="memory")
        if how != "fit":
            there = np.unique(rows, axis=0)[:100]
            classifier.fit([*there, [99.0, 99.0]], [1] * 100 + [2])
        call = classifier.partial_fit if how == "partial_fit" else classifier.fit
        options: dict[str, Any] = {"resume": True} if how == "resume" else {}
        with pytest.warns(match="given under several labels"):
            call(rows, labels, flush_every=40, **options)
        report = classifier.fit_report_
        told = (report.new, report.already_there, report.relabelled, report.n_conflicts, report.conflicts)
        reports.append((told, classifier.predict(rows).tolist()))
    assert reports[0] == reports[1]
    last = dict(zip(map(tuple, rows.tolist()), labels.tolist(), strict=True))
    assert reports[0][1] == [last[tuple(row)] for row in rows.tolist()]
    assert reports[0][0][3] == sum(
        len(set(each)) > 1
        for each in (labels[(rows == row).all(axis=1)].tolist() for row in np.unique(rows, axis=0))
    )
    assert sum(reports[0][0][:3]) == len(rows)
