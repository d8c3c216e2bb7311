"""What every head has to do: a class for pytest to collect."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from clipretrieval.classifier import RetrievalClassifier
from clipretrieval.heads.base import Contents, Head, LearnedHead, Queries
from clipretrieval.heads.fitted_head import FittedHead
from clipretrieval.heads.statistics import Moments
from clipretrieval.types import AnyArray, FloatArray, Neighbors, no_neighbors

__all__ = ["HeadContract"]

DIM, CLASSES, EACH = 6, 3, 15
THREADS, ROUNDS = 2, 10


class _Watched:
    """A head that keeps what it was given to learn from, and what that was before."""

    def __init__(self, head: Head) -> None:
        self.head, self.k, self.moments = head, head.k, head.moments
        self.before: dict[Moments, bytes] = {}
        self.contents: Contents | None = None

    def learn(self, contents: Contents) -> LearnedHead:
        self.before = {each: contents.statistics(each).to_bytes() for each in self.moments}
        self.contents = contents
        return self.head.learn(contents)


@pytest.mark.filterwarnings("ignore::clipretrieval.errors.ClipRetrievalWarning")
class HeadContract:
    """What `clipretrieval.heads.base.Head` asks for; inherit it in a test module and override `make_head`.

    Attributes
    ----------
    tolerance : float
        The most by which probabilities may differ where they should be equal. The default leaves room for
        rounding alone.

    Examples
    --------
    ::

        from clipretrieval.testing import HeadContract

        class TestNearestMean(HeadContract):
            def make_head(self):
                return NearestMean()
    """

    tolerance: ClassVar[float] = 1e-6

    def make_head(self) -> Head:
        """Return a head, the same each time."""
        raise NotImplementedError(f"{type(self).__name__} must override make_head")

    def fitted(self, vectors: AnyArray, labels: Sequence[Any], **params: Any) -> RetrievalClassifier:
        """Return a classifier with the head, in memory."""
        params = {"head": self.make_head(), **params}
        return RetrievalClassifier(store="memory", **params).fit(vectors, labels)

    def same(self, found: AnyArray, right: AnyArray, what: str) -> None:
        """Compare probabilities."""
        np.testing.assert_allclose(found, right, rtol=0, atol=self.tolerance, err_msg=what)

    def test_k_and_moments_say_what_is_read(self) -> None:
        """The number of neighbors is a whole one, at least 0, and the moments are `Moments`."""
        head = self.make_head()
        assert isinstance(head, Head)
        assert head.k == int(head.k) >= 0, "k is the number of neighbors that the head reads; 0 for none"
        assert all(isinstance(each, Moments) for each in head.moments)

    @pytest.mark.parametrize("names", [[3, 1, 2], ["c", "a", "b"]], ids=["int", "str"])
    @pytest.mark.parametrize("n", [1, 7])
    def test_scores_have_a_row_for_each_query_and_a_column_for_each_class(
        self, names: list[Any], n: int
    ) -> None:
        """They are finite, or −inf where a class is impossible, of which each row has another."""
        vectors, codes = _clouds()
        classifier = self.fitted(vectors, [names[code] for code in codes])
        scores = _scores(classifier, vectors[:n])
        assert scores.shape == (n, CLASSES)
        assert not np.isnan(scores).any(), "a score is NaN"
        assert not (scores == np.inf).any(), "a score is +inf"
        assert np.isfinite(scores).any(axis=1).all(), "no class is possible for a query"

    @pytest.mark.parametrize("names", [[3, 1, 2], ["c", "a", "b"]], ids=["int", "str"])
    def test_it_learns(self, names: list[Any]) -> None:
        """Classes that lie far apart are told from each other, in the columns of the sorted classes."""
        vectors, codes = _clouds(apart=30.0)
        labels = [names[code] for code in codes]
        classifier = self.fitted(vectors[::2], labels[::2])
        assert classifier.predict(vectors[1::2]).tolist() == labels[1::2]
        probabilities = classifier.predict_proba(vectors[1::2])
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-9)
        columns = [sorted(names).index(label) for label in labels[1::2]]
        assert probabilities.argmax(axis=1).tolist() == columns

    def test_what_it_is_asked_together_with_changes_no_answer(self) -> None:
        """A query by itself has the scores that it has among others, each time anew."""
        vectors, labels = _clouds()
        classifier, queries = self.fitted(vectors, labels), _queries()
        whole = classifier.predict_proba(queries)
        alone = np.concatenate([classifier.predict_proba(queries[row : row + 1]) for row in range(9)])
        self.same(alone, whole[:9], "one by one")
        self.same(classifier.predict_proba(queries), whole, "again")

    def test_order_and_calls_change_no_answer(self) -> None:
        """The same records in another order, and in several calls, give the same scores."""
        vectors, labels = _clouds()
        queries, order = _queries(), np.random.default_rng(1).permutation(len(vectors))
        right = self.fitted(vectors, labels).predict_proba(queries)
        given = labels[order].tolist()
        self.same(self.fitted(vectors[order], given).predict_proba(queries), right, "another order")
        parted = self.fitted(vectors[order[:5]], given[:5])
        for start in range(5, len(order), 11):
            parted.predict(queries[:1])  # it has learned of less
            part = order[start : start + 11]
            parted.partial_fit(vectors[part], labels[part].tolist())
        self.same(parted.predict_proba(queries), right, "several calls")

    def test_what_was_added_and_forgotten_leaves_no_trace(self) -> None:
        """After vectors, of a class of their own too, have come and gone, answers are as before."""
        vectors, labels = _clouds()
        more, _ = _clouds(seed=1)
        queries, classifier = _queries(), self.fitted(vectors, labels)
        before = classifier.predict_proba(queries)
        classifier.partial_fit(more[:20], [*labels[:10].tolist(), *[CLASSES] * 10])
        during = classifier.predict_proba(queries)
        assert during.shape == (len(queries), CLASSES + 1)
        assert np.abs(during[:, :CLASSES] - before).max() > self.tolerance, "nothing was learned"
        classifier.forget(classifier.kneighbors(more[:20], 1).ids[:, 0])
        self.same(classifier.predict_proba(queries), before, "after adding and forgetting")

    def test_relabelling_is_as_a_fresh_fit(self) -> None:
        """Vectors with other labels count as if they had come with these."""
        vectors, labels = _clouds()
        queries, classifier = _queries(), self.fitted(vectors, labels)
        classifier.predict(queries)
        changed = labels.copy()
        changed[::7] = (changed[::7] + 1) % CLASSES
        classifier.relabel(classifier.kneighbors(vectors[::7], 1).ids[:, 0], changed[::7].tolist())
        right = self.fitted(vectors, changed).predict_proba(queries)
        self.same(classifier.predict_proba(queries), right, "after relabelling")

    def test_a_class_without_vectors_gets_nothing(self) -> None:
        """It is listed, and is never an answer."""
        vectors, labels = _clouds()
        queries, classifier = _queries(), self.fitted(vectors, labels)
        before = classifier.predict_proba(queries)
        classifier.partial_fit(vectors[:1], labels[:1], classes=[*range(CLASSES), 99])
        assert classifier.classes_.tolist() == [*range(CLASSES), 99]
        found = classifier.predict_proba(queries)
        assert not found[:, CLASSES].any(), "a class without vectors got a probability"
        self.same(found[:, :CLASSES], before, "the others")

    @pytest.mark.parametrize("dim", [2, 40])
    def test_one_vector_a_class_is_enough(self, dim: int) -> None:
        """Each is then told from the others, in more dimensions than there are vectors too."""
        rows = 10 * np.random.default_rng(3).standard_normal((5, dim)).astype(np.float32)
        classifier = self.fitted(rows, list("abcde"))
        assert np.isfinite(classifier.predict_proba(rows)).all()
        assert set(classifier.predict(rows)) <= set("abcde")

    def test_fewer_vectors_than_dimensions_are_enough(self) -> None:
        """What cannot be told of the covariance is no reason to fail."""
        rows = np.random.default_rng(4).standard_normal((12, 50)).astype(np.float32)
        rows[::2] += 5
        classifier = self.fitted(rows, list("ab") * 6)
        assert classifier.predict(rows).tolist() == list("ab") * 6

    @pytest.mark.parametrize("n", [1, 8])
    def test_one_class_is_always_the_answer(self, n: int) -> None:
        """With one vector too."""
        vectors, _ = _clouds()
        found = self.fitted(vectors[:n], ["only"] * n).predict_proba(_queries())
        np.testing.assert_allclose(found, 1)

    def test_constant_dimensions_tell_nothing(self) -> None:
        """A dimension that is 0 for all, and one that is large and the same for all, do no harm."""
        vectors, labels = _clouds(apart=30.0)
        vectors[:, 1], vectors[:, 4] = 0, 100
        classifier = self.fitted(vectors[::2], labels[::2])
        probabilities = classifier.predict_proba(vectors[1::2])
        assert np.isfinite(probabilities).all()
        assert (classifier.predict(vectors[1::2]) == labels[1::2]).mean() > 0.8

    def test_equal_vectors_are_no_reason_to_fail(self) -> None:
        """Classes of which each has one point, in several places that float32 hardly tells apart."""
        rows = np.repeat(np.eye(3, DIM, dtype=np.float32), 4, axis=0)
        rows[:, -1] = np.tile(np.float32([0, 1e-30, 2e-30, 3e-30]), 3)
        classifier = self.fitted(rows, [0] * 4 + [1] * 4 + [2] * 4)
        assert classifier.predict(np.eye(3, DIM)).tolist() == [0, 1, 2]

    def test_a_store_of_fewer_vectors_than_it_reads_neighbors_is_enough(self) -> None:
        """Then each query has as many neighbors as there are vectors."""
        vectors, labels = _clouds(apart=30.0)
        rows = [0, 1, EACH, EACH + 1]
        found = self.fitted(vectors[rows], labels[rows]).predict(vectors[rows])
        assert found.tolist() == labels[rows].tolist()

    def test_it_changes_neither_statistics_nor_what_it_is_given(self) -> None:
        """Learning and answering leave the store's statistics, the sample, and the queries as they were."""
        vectors, labels = _clouds()
        watched = _Watched(self.make_head())
        classifier = self.fitted(vectors, labels, head=watched)
        queries = _given(classifier, _queries())
        for array in (queries.vectors, queries.neighbors.distances, queries.neighbors.labels):
            array.flags.writeable = False
        _learned(classifier).log_scores(queries)
        contents = watched.contents
        assert contents is not None, "the head was not asked to learn"
        for moments, before in watched.before.items():
            assert contents.statistics(moments).to_bytes() == before, "the head has changed the statistics"
        sample = contents.sample(len(vectors))
        held = classifier.store_.get(sample.ids.tolist())
        assert (sample.vectors == held.vectors).all(), "the head has changed the sample"
        assert sample.codes.tolist() == held.labels.tolist(), "the head has changed the sample"

    def test_what_it_has_learned_stays_as_it_is(self) -> None:
        """What was learned before a change answers as before it."""
        vectors, labels = _clouds()
        classifier = self.fitted(vectors[:-10], labels[:-10])
        learned, queries = _learned(classifier), _given(classifier, _queries())
        before = np.array(learned.log_scores(queries))
        classifier.partial_fit(vectors[-10:], labels[-10:])
        classifier.forget(label=0)
        classifier.predict(vectors)
        np.testing.assert_array_equal(learned.log_scores(queries), before)

    def test_copies_learn_the_same(self) -> None:
        """scikit-learn copies the head with the estimator."""
        vectors, labels = _clouds()
        queries, head = _queries(), self.make_head()
        right = self.fitted(vectors, labels, head=head).predict_proba(queries)
        copied = self.fitted(vectors, labels, head=copy.deepcopy(head))
        self.same(copied.predict_proba(queries), right, "a copy")

    def test_threads_get_the_same_answers(self) -> None:
        """Two threads ask one classifier at once, which has yet to learn."""
        vectors, labels = _clouds()
        queries = _queries()
        right = self.fitted(vectors, labels).predict_proba(queries)
        asked = self.fitted(vectors, labels)
        with ThreadPoolExecutor(THREADS) as pool:
            for found in pool.map(lambda _: asked.predict_proba(queries), range(THREADS * ROUNDS)):
                self.same(found, right, "in a thread")


def _clouds(seed: int = 0, apart: float = 2.0) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Return vectors around three points, with their classes by number."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), EACH)
    centers = apart * np.eye(CLASSES, DIM)
    noise = rng.standard_normal((len(labels), DIM)) * np.linspace(0.5, 2, DIM)
    return (centers[labels] + noise).astype(np.float32), labels


def _queries() -> FloatArray:
    return _clouds(seed=7)[0]


def _learned(classifier: RetrievalClassifier) -> LearnedHead:
    fitted = classifier.head_
    assert isinstance(fitted, FittedHead)
    return fitted.learned


def _given(classifier: RetrievalClassifier, vectors: FloatArray) -> Queries:
    """Return queries with as many neighbors as the head reads."""
    k = int(classifier.head_.k)
    near: Neighbors = classifier.kneighbors(vectors, k) if k else no_neighbors(len(vectors))
    return Queries(vectors.copy(), near)


def _scores(classifier: RetrievalClassifier, vectors: FloatArray) -> npt.NDArray[np.float64]:
    return np.asarray(_learned(classifier).log_scores(_given(classifier, vectors)), dtype=np.float64)
