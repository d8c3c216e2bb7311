"""Fits that are cut short amid images that repeat, and gone on with."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import pytest
from colours import Colours, colour
from hypothesis import given, settings
from hypothesis import strategies as st
from warm_process import run_warm

from clipretrieval import RetrievalClassifier
from clipretrieval.stores import FaissStore, MemoryStore

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*given under several labels:clipretrieval.ClipRetrievalWarning",
    "ignore:there is only one class:clipretrieval.ClipRetrievalWarning",
)
# Picture 7 comes as a, as b, and as b once more; 8 as b, a and b.
NUMBERS = [*range(20), 7, 8, *range(20, 40), 7, 8, *range(40, 60)]
LABELS = ["a"] * 8 + ["b"] * 12 + ["b", "a"] + ["c"] * 20 + ["b", "b"] + ["d"] * 20


def contents(store):
    """Return each id's label, vector and metadata, and the classes."""
    ids = sorted(name for listing in store.scan() for name in listing.ids.tolist())
    records = store.get(ids)
    kept = zip(records.ids.tolist(), records.labels.tolist(), records.vectors.tolist(), strict=True)
    return sorted(kept), records.metadata, store.read_manifest()["classes"]


def cut(images, end):
    yield from images[:end]
    raise KeyboardInterrupt


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from("ab")), min_size=1, max_size=12),
    st.lists(st.integers(0, 12), max_size=2),
    st.sampled_from([None, 1, 4]),
)
@settings(max_examples=30)
@pytest.mark.parametrize("store", [MemoryStore, FaissStore])
def test_wherever_it_is_cut_resume_ends_as_an_undisturbed_fit(store, labelled, ends, flush_every):
    """Labels, vectors and classes are the same, also where the resumed fit is cut short again."""
    images = [(colour(number), label) for number, label in labelled]
    undisturbed, disturbed = store(), store()
    RetrievalClassifier(Colours(), undisturbed).fit(images, flush_every=flush_every)
    for end in ends:
        with suppress(KeyboardInterrupt):
            RetrievalClassifier(Colours(), disturbed).fit(
                cut(images, end), resume=True, flush_every=flush_every
            )
    RetrievalClassifier(Colours(), disturbed).fit(images, resume=True, flush_every=flush_every)
    assert contents(disturbed) == contents(undisturbed)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("end", [5, 21, 43])
def test_a_killed_fit_with_contradictory_labels_is_gone_on_with(tmp_path, end):
    """Killed before, between and behind the labels of an image: resume ends as an undisturbed fit."""
    program = f"""
import os, signal, warnings
warnings.simplefilter("ignore")
from colours import Colours, colour
from clipretrieval import RetrievalClassifier
from clipretrieval.stores import FaissStore
def images():
    for place, (number, label) in enumerate(zip({NUMBERS}, {LABELS})):
        if place == {end}:
            os.kill(os.getpid(), signal.SIGKILL)
        yield colour(number), label
RetrievalClassifier(Colours(), FaissStore({str(tmp_path / "killed")!r})).fit(images(), flush_every=4)
"""
    assert run_warm(["-c", program]).returncode == -signal.SIGKILL
    images = [colour(number) for number in NUMBERS]
    with FaissStore(tmp_path / "killed") as killed, FaissStore(tmp_path / "whole") as whole:
        assert killed.count() >= min(end, 20) - 4  # what was flushed
        report = RetrievalClassifier(Colours(), killed).fit(images, LABELS, resume=True).fit_report_
        RetrievalClassifier(Colours(), whole).fit(images, LABELS)
        assert contents(killed) == contents(whole)
    assert report.already_there >= 1
    assert report.n_conflicts == 2
