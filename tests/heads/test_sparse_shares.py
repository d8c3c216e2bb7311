"""`predict_proba(sparse=True)`: the shares that are not 0, and nothing else."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from clipretrieval import ClipRetrievalWarning, RetrievalClassifier, StagedEncoder
from clipretrieval.errors import InvalidInputError, NotFittedError
from clipretrieval.stores import MemoryStore

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((120, 3)).astype(np.float32)
ASKED = RNG.standard_normal((40, 3)).astype(np.float32)
LABELS = {
    "str": [f"class {place % 30}" for place in range(120)],
    "int": [place % 30 - 7 for place in range(120)],
    "bool": [place % 2 == 0 for place in range(120)],
}


def fitted(labels, store="memory", **how):
    return RetrievalClassifier(store=store, **how).fit(ROWS, labels)


def first_two(distances):
    return np.where(np.arange(distances.shape[1]) < 2, np.ones_like(distances), 0)


def same(sparse, dense):
    assert isinstance(sparse, csr_matrix)
    assert (sparse.shape, sparse.dtype) == (dense.shape, np.float64)
    np.testing.assert_array_equal(sparse.toarray(), dense)
    assert sparse.nnz == np.count_nonzero(dense)
    assert sparse.has_canonical_format


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("store", ["memory", "faiss"])
@pytest.mark.parametrize(
    "how",
    [
        {"k": 1},
        {"k": 7, "weights": "distance"},
        {"k": 200, "weights": "softmax"},
        {"k": 5, "weights": first_two},
    ],
    ids=["one", "distance", "more than stored", "weights of 0"],
)
def test_sparse_shares_are_those_of_the_dense_array(kind, store, how):
    """Each share is to the bit that of the array, with the same columns; no 0 is kept."""
    mine = fitted(LABELS[kind], store, **how)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClipRetrievalWarning)
        dense, sparse = mine.predict_proba(ASKED), mine.predict_proba(ASKED, sparse=True)
    same(sparse, dense)
    np.testing.assert_allclose(np.asarray(sparse.sum(axis=1)).ravel(), 1)
    best = np.asarray(sparse.argmax(axis=1)).ravel()
    assert mine.classes_[best].tolist() == mine.classes_[dense.argmax(axis=1)].tolist()


def test_classes_that_another_process_has_added_have_columns():
    """Columns are those of ``classes_`` as it is afterwards, also of a class that turns up by the way."""
    store = MemoryStore()
    mine = fitted(LABELS["str"], store, k=3)
    RetrievalClassifier.from_store(store, k=3).partial_fit(ASKED[:2] + 0.01, ["a", "z"])
    sparse = mine.predict_proba(ASKED, sparse=True)
    assert sparse.shape == (40, 32)
    same(sparse, mine.predict_proba(ASKED))
    assert sparse[0, 0] == sparse[1, 31] == pytest.approx(1 / 3)
    records = store.get(mine.kneighbors(ASKED[:1], 1).ids[0].tolist())
    store.upsert(records.ids.tolist(), records.vectors, ["class 2b"])  # which the manifest does not list
    before = mine.classes_
    sparse = mine.predict_proba(ASKED[:5], sparse=True)
    assert mine.classes_.tolist() == sorted([*before.tolist(), "class 2b"])
    assert sparse[0, mine.classes_.tolist().index("class 2b")] == pytest.approx(1 / 3)
    same(sparse, mine.predict_proba(ASKED[:5]))


def test_a_skipped_image_has_an_empty_row(tmp_path):
    """Its place is kept: nothing is stored in its row, where the array has NaN."""
    images = RNG.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    mine = RetrievalClassifier(StagedEncoder(stage="pixel", pretrained=None), "memory", k=2)
    mine.fit(list(images), list("aabbcc"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    asked = [images[0], broken, images[4]]
    with pytest.warns(ClipRetrievalWarning, match="skipped"):
        sparse = mine.predict_proba(asked, sparse=True, on_error="skip")
    assert np.diff(sparse.indptr).tolist() == [2, 0, 2]
    same(sparse[[0, 2]], mine.predict_proba([images[0], images[4]]))


@pytest.mark.parametrize("head", ["discriminant", "quadratic", "ridge", "fused"])
def test_heads_that_answer_all_classes_are_refused_by_name(head):
    """Of these no share is 0; the message names the head, and what to do."""
    mine = fitted(LABELS["int"], head=head, transform=None)
    with pytest.raises(InvalidInputError, match=rf"by the head '{head}' every class .*sparse=False.*'votes'"):
        mine.predict_proba(ASKED, sparse=True)


def test_calibrated_votes_are_refused():
    """A calibration leaves no class at 0."""
    mine = fitted(LABELS["bool"], k=9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClipRetrievalWarning)  # the images are few
        mine.calibrate(ASKED, [place % 2 == 0 for place in range(40)])
    with pytest.raises(InvalidInputError, match="'votes, calibrated' every class has a probability"):
        mine.predict_proba(ASKED, sparse=True)


def test_rejected_images_keep_their_shares():
    """Where images may be answered as unknown, shares are the votes', sparse as dense."""
    mine = fitted(LABELS["bool"], k=9).conformalize(ASKED, [place % 2 == 0 for place in range(40)])
    labelled = fitted(LABELS["str"], k=9).conformalize(ASKED, LABELS["str"][:40])
    labelled.set_params(unknown="none of them", max_turned_away=0.5)
    for each in (mine, labelled):
        same(each.predict_proba(ASKED, sparse=True), each.predict_proba(ASKED))


@pytest.mark.parametrize("wrong", [1, "csr", None, "yes"], ids=repr)
def test_sparse_is_a_switch(wrong):
    """Anything but True or False is refused before anything is looked up."""
    with pytest.raises(InvalidInputError, match="sparse"):
        fitted(LABELS["int"]).predict_proba(ASKED, sparse=wrong)
    with pytest.raises(NotFittedError):
        RetrievalClassifier(store="memory").predict_proba(ASKED, sparse=True)
