"""Threads that change one classifier, or several on one store, and threads that ask meanwhile."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import string
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from colours import Colours, colour, pairs
from sklearn.base import clone

from clipretrieval import (
    FingerprintMismatchError,
    InvalidInputError,
    NotFittedError,
    RetrievalClassifier,
)
from clipretrieval.retrieval.classes import CLASSES_LOCK
from clipretrieval.stores import FaissStore, MemoryStore

LETTERS = list(string.ascii_lowercase)


def add(classifier, number):
    """Add two colours of a class of their own."""
    classifier.partial_fit([colour(2 * number), colour(2 * number + 1)], [LETTERS[number]] * 2)


@pytest.mark.parametrize("several", [False, True])
def test_threads_that_add_lose_no_class(encoder, any_store, several):
    """Four threads add 26 classes, through one classifier or four: all are stored, listed and known."""
    first = RetrievalClassifier(encoder, any_store)
    classifiers = [RetrievalClassifier(encoder, any_store) for _ in range(4)] if several else [first] * 4
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(add, classifiers[number % 4], number) for number in range(26)]
        for job in jobs:
            job.result()
    assert any_store.count() == 52
    assert any_store.read_manifest()["classes"] == LETTERS
    known = first if not several else RetrievalClassifier.from_store(any_store, encoder)
    assert known.classes_.tolist() == LETTERS
    assert known.predict([colour(2 * number) for number in range(26)]).tolist() == LETTERS


def test_what_is_added_beside_its_forgetting_is_there_or_not(encoder, any_store):
    """Adding and forgetting one image at once: each call does all of its work, whichever comes first."""
    classifier = RetrievalClassifier(encoder, any_store).fit(*pairs(range(128)))
    name = classifier.kneighbors([colour(5)]).ids[0, 0]

    def forget(_):
        try:
            return str(len(classifier.forget(name)))
        except InvalidInputError as error:
            return str(error)[:32]

    def add_again(_):
        classifier.partial_fit([colour(5), colour(5)], ["shade 0", "shade 0"])
        return classifier.fit_report_.images

    with ThreadPoolExecutor(4) as pool:
        forgotten = pool.map(forget, range(12))
        added = pool.map(add_again, range(12))
        assert set(added) == {2}
        assert set(forgotten) <= {"1", "the store holds no image with th"}
    classifier.partial_fit([colour(5)], ["shade 0"])
    assert any_store.get([name]).labels.tolist() == ["shade 0"]
    assert classifier.classes_.tolist() == any_store.read_manifest()["classes"] == ["shade 0", "shade 1"]


def test_a_store_that_is_emptied_beside_a_question_is_not_blamed(encoder, any_store):
    """Each answer is right, or says that nothing is left, though the store is emptied again and again."""
    classifier = RetrievalClassifier(encoder, any_store)
    add(classifier, 0)
    done = threading.Event()

    def ask(_):
        found = set()
        while not done.is_set():
            try:
                found.update(classifier.predict([colour(0), colour(1)]).tolist())
                found.update(each.answer for each in classifier.explain([colour(0)], 2))
            except NotFittedError as error:
                found.add(str(error))
        return found

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask, None) for _ in range(3)]
        try:
            for _ in range(15):
                classifier.forget(label="a")
                add(classifier, 0)
        finally:
            done.set()
        found = set().union(*(job.result() for job in asked))
    assert found <= {"a", "the store holds no vectors any more; fit the classifier again"}


def test_a_search_of_a_store_that_was_emptied_after_the_count_says_so(encoder):
    """The store counts a vector, and holds none when it is searched."""

    class Emptied(MemoryStore):
        def search(self, vectors, k):
            self.delete([name for listing in self.scan() for name in listing.ids.tolist()])
            return super().search(vectors, k)

    classifier = RetrievalClassifier(encoder, Emptied()).fit(*pairs(range(60, 70)))
    with pytest.raises(NotFittedError, match="no vectors any more"):
        classifier.predict([colour(1)])


@pytest.mark.parametrize("before", [10, 1100])
def test_a_question_notices_another_encoder(encoder, before):
    """Where the store is filled anew within a question, in its first batch too, no answer is made of both."""
    classifier = RetrievalClassifier(encoder, MemoryStore()).fit(*pairs(range(128)))
    other = Colours()
    other.fingerprint = {"encoder": "Colours", "dim": 3, "version": 2}

    def asked():
        yield from (colour(number) for number in range(before))
        RetrievalClassifier(other, classifier.store_).fit(*pairs(range(128)), overwrite=True)
        yield from (colour(number) for number in range(before))

    with pytest.raises(FingerprintMismatchError, match="version: stored 2, given nothing"):
        classifier.predict(asked())


def test_a_classifier_that_is_being_changed_can_be_copied(encoder):
    """No lock is part of it: it is cloned, copied and pickled in the midst of adding, by that thread too."""
    classifier = RetrievalClassifier(store="memory").fit([[0.0], [1.0]], ["a", "b"])
    copies = []

    def progress(done, total):
        copies.append(pickle.loads(pickle.dumps(classifier)))
        copies.append(copy.deepcopy(classifier))
        clone(classifier)
        if not done:
            classifier.partial_fit([[3.0]], ["d"])

    classifier.partial_fit([[2.0]], ["c"], progress=progress)
    assert classifier.classes_.tolist() == ["a", "b", "c", "d"]
    for each in copies:
        each.partial_fit([[9.0]], ["z"])
        assert each.predict([[8.0], [0.1]]).tolist() == ["z", "a"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize("lock", ["of the contents", "of the folder", "of the classes"])
def test_a_process_forked_from_threads_waits_for_none_of_them(lock, tmp_path):
    """Locks that other threads held at that moment hold up nobody in the new process, which lacks them."""
    store = MemoryStore()
    classifier = RetrievalClassifier(store=store).fit([[0.0], [9.0]], ["a", "b"])
    other = FaissStore(tmp_path / "store")
    held = {
        "of the contents": store._guard.lock.write(),
        "of the folder": other._folder.flushing,
        "of the classes": CLASSES_LOCK,
    }[lock]
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with held:
            entered.set()
            leave.wait(0.2 if lock == "of the classes" else None)  # that one is held for moments alone

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait()
    child = os.fork()
    if not child:
        signal.alarm(30)
        other.flush()
        classifier.partial_fit([[4.0]], ["c"])
        os._exit(0 if classifier.predict([[5.0], [1.0]]).tolist() == ["c", "a"] else 1)
    leave.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0
