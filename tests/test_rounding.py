"""Vectors are float32: what does not fit is refused, and what loses the difference between rows is told."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from clipretrieval import ClipRetrievalWarning, InvalidInputError, RetrievalClassifier
from clipretrieval.stores import ChromaStore, FaissStore, MemoryStore

FAR = 50_000.0
"""From here, a thousandth is less than a step of float32."""
CORNERS = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


class Spots:
    """An encoder whose float64 vectors lie far from 0: the first pixel's red, in thousandths."""

    fingerprint = {"name": "spots"}
    dim = 1
    offset = FAR

    def encode(self, images: list[Image.Image]) -> Any:
        return np.array([[self.offset + image.getpixel((0, 0))[0] / 1000] for image in images])


def spots(*reds: int) -> list[Image.Image]:
    return [Image.new("RGB", (2, 2), (red, 0, 0)) for red in reds]


def told(call: Any) -> list[str]:
    """Return the warnings of a call about float32, which all have to point here."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    messages = [item for item in caught if "float32" in str(item.message)]
    assert {item.filename for item in messages} <= {__file__}
    return [str(item.message) for item in messages]


@pytest.mark.parametrize(
    ("value", "kept"),
    [(2**53 + 1, "9007199254740992"), (2.0**24 + 1, "16777216"), (-(2**24) - 1, "-16777216")],
)
def test_whole_numbers_that_are_rounded_are_told(value: float, kept: str) -> None:
    """Whole numbers that float32 does not hold are named, with what becomes of them."""
    with pytest.warns(ClipRetrievalWarning, match=f"in row 1 becomes {kept}") as caught:
        RetrievalClassifier(store="memory").fit([[0, 0], [value, 1]], ["a", "b"])
    assert caught[0].filename == __file__


@pytest.mark.parametrize("store", [MemoryStore, FaissStore])
def test_stores_tell_too(store: type) -> None:
    """A store that is given whole numbers beyond float32 warns by itself."""
    with pytest.warns(ClipRetrievalWarning, match="cannot hold some of the values: 16777217 in row 0"):
        store().upsert(["x"], np.array([[2**24 + 1, 0]]), ["a"])


@pytest.mark.parametrize(
    "X",
    [
        np.array([[FAR], [FAR + 0.001]]),
        np.array([[1.7e9 + 0.5], [1.7e9 + 10.5]]),
        np.array([[FAR], [FAR + 0.001]], dtype=np.longdouble),
        pd.DataFrame({"time": pd.array([FAR, FAR + 0.001], dtype="Float64"), "one": [True, True]}),
        np.array([[-0.0, FAR], [0.0, FAR + 0.001]]),
    ],
    ids=["float64", "seconds", "longdouble", "DataFrame", "signed-zero"],
)
def test_rows_that_an_offset_makes_equal_are_told(X: Any) -> None:
    """Rows that differ, and would be told apart without an offset, are named once by every call."""
    labels, ids = ["a", "a"], ["1", "2"]
    classifier = RetrievalClassifier(store="memory")
    store = MemoryStore()
    for call in (
        lambda: classifier.fit(X, labels),
        lambda: classifier.partial_fit(X, labels),
        lambda: classifier.predict(X),
        lambda: classifier.kneighbors(X, 1),
        lambda: classifier.explain(X),
        lambda: classifier.evaluate(X, labels),
        lambda: store.upsert(ids, X, labels),
        lambda: store.search(X, 1),
    ):
        (message,) = told(call)
        assert "in which rows 0 and 1 are equal" in message
        assert "Subtract the same offset" in message


@pytest.mark.parametrize(("offset", "warns"), [(0, False), (1e5, False), (1e7, True)])
def test_an_offset_that_blurs_distances_is_told(offset: float, warns: bool) -> None:
    """Where rounding moves vectors by much of their distances, a fit says so and what to do."""
    rows = np.random.default_rng(0).normal(size=(300, 64)) + offset
    messages = told(lambda: RetrievalClassifier(store="memory").fit(rows, [0, 1, 2] * 100))
    assert [("rounds off" in message, "Subtract the same offset" in message) for message in messages] == (
        [(True, True)] if warns else []
    )


def test_an_encoder_of_float64_is_watched() -> None:
    """What float32 loses of a user's encoder is told once, and it is named."""
    encoder = Spots()
    classifier = RetrievalClassifier(encoder, store="memory")
    images = spots(*range(200))
    (message,) = told(lambda: classifier.fit(images, list(range(200))))
    assert message.startswith(
        "the vectors that Spots.encode returned are kept as float32, in which rows 0 and 1"
    )
    encoder.offset = 0.0
    assert told(lambda: RetrievalClassifier(encoder, store="memory").fit(images, list(range(200)))) == []


def test_without_the_offset_the_nearest_is_found() -> None:
    """What the warning advises gives the right answer."""
    X, query = np.array([[1.7e9], [1.7e9 + 10]]) - 1.7e9, np.array([[1.7e9 + 9]]) - 1.7e9
    near = RetrievalClassifier(store="memory").fit(X, ["a", "b"]).kneighbors(query)
    assert (near.labels.tolist(), near.distances.tolist()) == ([["b"]], [[1.0]])


def test_vanished_vectors_are_told() -> None:
    """A vector whose values are all too small for float32 is named."""
    with pytest.warns(ClipRetrievalWarning, match=r"1e-300 in row 1 becomes 0.0.*Multiply"):
        RetrievalClassifier(store="memory").fit([[0.5, 0.0], [1e-300, 0.0]], ["a", "b"])


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([[1e-24], [2e-24]], "too small for float32"),
        ([[1e-24], [2e-24], [1.0]], "too small for float32"),
        ([[1e19], [3e19]], "norms up to 3e"),
    ],
)
def test_squares_beyond_float32_are_told(X: list[list[float]], message: str, metric: str) -> None:
    """Vectors whose squared distances vanish or overflow are told, once a call, by classifier and store."""
    labels = list("abc")[: len(X)]
    calls = [
        lambda: RetrievalClassifier(store="memory", metric=metric).fit(X, labels),
        lambda: RetrievalClassifier(store=MemoryStore(metric), metric=metric).partial_fit(X, labels),
        lambda: MemoryStore(metric).upsert(labels, X, labels),
        lambda: ChromaStore(metric=metric).upsert(labels, X, labels),
    ]
    for call in calls:
        found = told(call)
        assert len(found) == 1
        assert message in found[0]


def test_queries_beyond_float32_are_told() -> None:
    """A query so large that all distances overflow is told; one near 0 is as good as any."""
    classifier = RetrievalClassifier(store="memory").fit([[0.0], [1.0]], ["a", "b"])
    assert len(told(lambda: classifier.predict([[1e20]]))) == 1
    assert len(told(lambda: classifier.store_.search([[1e20]], 1))) == 1
    assert told(lambda: classifier.predict([[1e-24], [2e-24]])) == []
    assert told(lambda: classifier.store_.search([[1e-24], [2e-24]], 1)) == []


@pytest.mark.parametrize("scale", [1e37, 1e20, 1.0, 1e-25, 1e-40, 1e-43])
@pytest.mark.parametrize("options", [{"normalize": True}, {"metric": "cosine"}])
@pytest.mark.parametrize("store", [MemoryStore, FaissStore, ChromaStore])
def test_directions_have_no_scale(scale: float, options: dict[str, Any], store: Any) -> None:
    """With ``normalize`` and the cosine, vectors of any size find themselves, without a warning."""
    opened = store(metric=options.get("metric", "l2"))
    classifier = RetrievalClassifier(store=opened, **options).fit(CORNERS * scale, list("abc"))
    near = classifier.kneighbors(CORNERS * scale)
    assert near.labels.ravel().tolist() == list("abc")
    assert near.distances.ravel().tolist() == [0, 0, 0]
    opened.close()


def test_scaling_to_length_one_changes_no_ordinary_vector() -> None:
    """Vectors of ordinary size are scaled as before, to the last bit, and a vector of zeros stays one."""
    from sklearn.preprocessing import normalize

    rows = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    rows[3] = 0
    classifier = RetrievalClassifier(store="memory", normalize=True).fit(rows, list(range(50)))
    ids = classifier.kneighbors(rows).ids.ravel()
    kept = classifier.store_.get(ids).vectors
    np.testing.assert_array_equal(kept, normalize(rows))
    large = RetrievalClassifier(store="memory", normalize=True).fit(rows * 2.0**100, list(range(50)))
    stored = large.store_.get(large.kneighbors(rows * 2.0**100).ids.ravel()).vectors
    np.testing.assert_array_equal(stored, kept)


@pytest.mark.parametrize("value", [1e300, 10**400, -1e39])
def test_what_is_beyond_float32_is_refused(value: float) -> None:
    """Values beyond ±3.4·10³⁸ are refused, in a fit as in a question, and by a store."""
    classifier = RetrievalClassifier(store="memory")
    with pytest.raises(InvalidInputError):
        classifier.fit([[value, 0.0], [0.0, 1.0]], ["a", "b"])
    classifier.fit([[1.0, 0.0], [0.0, 1.0]], ["a", "b"])
    with pytest.raises(InvalidInputError):
        classifier.predict([[value, 0.0]])
    with pytest.raises(InvalidInputError, match=r"must fit float32|must be real numbers"):
        MemoryStore().upsert(["a"], [[value, 0.0]], ["a"])


def ordinary() -> dict[str, Any]:
    """Return kinds of float64 rows, with repeats that differ in their last bits as a product leaves them."""
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(1000, 16)), 2, axis=0)
    turned = (rows * (1 + 1e-16 * rng.normal(size=rows.shape))) @ rng.normal(size=(16, 16))
    pixels = rng.integers(0, 256, size=(1000, 16)).astype(float)
    return {
        "fractions": np.array([[0.1, 1 / 3], [255.0, 2.0**40], [1e-50, 1.0]]),
        "embeddings": rows / np.linalg.norm(rows, axis=1, keepdims=True),
        "turned": turned,
        "turned, with an offset": turned + 9,
        "pixels": pixels,
        "pixels, scaled": (pixels / 255 - 0.485) / 0.229,
        "one column": rng.random((200_000, 1)),
        "one column with an offset": 4 + rng.random((10_000, 1)),
        "a constant, but for noise": np.hstack(
            [np.ones((2000, 1)) + 1e-16 * rng.normal(size=(2000, 1)), rows]
        ),
        "places": np.array([48.0, 11.0]) + rng.random((10_000, 2)),
    }


@pytest.mark.parametrize("name", list(ordinary()))
def test_ordinary_rounding_is_no_news(name: str) -> None:
    """Embeddings, pixels, scaled features and repeats of them are taken without a word."""
    rows = ordinary()[name]
    store, classifier = MemoryStore(), RetrievalClassifier(store="memory")
    labels = [0] * len(rows)
    assert told(lambda: store.upsert(list(map(str, range(len(rows)))), rows, labels)) == []
    assert told(lambda: store.search(rows[:500], 1)) == []
    assert told(lambda: classifier.fit(rows[:500], labels[:500])) == []
    assert told(lambda: classifier.predict(rows[:500])) == []


@pytest.mark.parametrize("store", [MemoryStore, FaissStore, ChromaStore])
@pytest.mark.parametrize("offset", [4096.0, 1e6])
def test_distances_do_not_cancel(store: Any, offset: float) -> None:
    """With an offset that float32 holds, distances and neighbors are those of float64, bit for bit."""
    rng = np.random.default_rng(0)
    rows = (offset + rng.integers(0, 101, size=(500, 16))).astype(np.float32)
    queries = (offset + rng.integers(0, 101, size=(40, 16))).astype(np.float32)
    opened = store()
    opened.upsert([f"{place:03}" for place in range(500)], rows, [0] * 500)
    near = opened.search(queries, 10)
    exact = np.square(queries[:, None].astype(float) - rows.astype(float)).sum(axis=2)
    order = np.argsort(exact, axis=1, kind="stable")[:, :10]
    assert near.ids.tolist() == [[f"{place:03}" for place in row] for row in order]
    np.testing.assert_array_equal(near.distances, np.take_along_axis(exact, order, axis=1).astype(np.float32))
    opened.close()
