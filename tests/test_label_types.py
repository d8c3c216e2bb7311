"""Labels and vectors of every library and type: what is clear works, what is not is refused in one line."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from PIL import Image
from scipy import sparse
from sklearn.exceptions import DataConversionWarning

from clipretrieval import InvalidInputError, RetrievalClassifier
from clipretrieval.heads.weighting import vote_weights
from clipretrieval.stores import MemoryStore

VECTORS = np.array([[0.0], [1.0], [2.0]])
LARGE = [2**53, 2**53 + 1, 2]
"""Three labels, of which floats make two."""
strings = getattr(np.dtypes, "StringDType", None)


class Red:
    """An encoder: the first pixel's red."""

    fingerprint = {"name": "red"}
    dim = 1

    def encode(self, images: list[Image.Image]) -> Any:
        return np.array([[image.getpixel((0, 0))[0]] for image in images], dtype=np.float32)


IMAGES = [Image.new("RGB", (2, 2), (red, 0, 0)) for red in range(3)]


def learn_vectors(y: Any) -> Any:
    return RetrievalClassifier(store="memory").fit(VECTORS, y).predict(VECTORS)


def learn_images(y: Any) -> Any:
    return RetrievalClassifier(Red(), store="memory").fit(IMAGES, y).predict(IMAGES)


def keep(y: Any) -> Any:
    store = MemoryStore()
    store.upsert(list("abc"), VECTORS, y)
    return store.get(list("abc")).labels


def add_vectors(y: Any) -> Any:
    classifier = RetrievalClassifier(store="memory").partial_fit(VECTORS, y, classes=y)
    return classifier.predict(VECTORS)


def relabel(y: Any) -> Any:
    ordinary = [7, 8, 9] if learn_vectors(y).dtype.kind == "i" else ["x", "y", "z"]
    classifier = RetrievalClassifier(store="memory").fit(VECTORS, ordinary)
    classifier.relabel(classifier.kneighbors(VECTORS).ids.ravel(), y)
    return classifier.predict(VECTORS)


WAYS = [learn_vectors, learn_images, keep, add_vectors, relabel]

INTEGERS: dict[str, Callable[[], Any]] = {
    "list": lambda: LARGE,
    "int64": lambda: np.array(LARGE),
    "uint64": lambda: np.array(LARGE, dtype=np.uint64),
    "objects": lambda: np.array(LARGE, dtype=object),
    "NumPy scalars": lambda: list(np.array(LARGE)),
    "arrays of one": lambda: [np.array(label) for label in LARGE],
    "Int64": lambda: pd.Series(LARGE, dtype="Int64"),
    "Int64 array": lambda: pd.array(LARGE, dtype="Int64"),
    "Index": lambda: pd.Index(LARGE),
    "Categorical": lambda: pd.Categorical(LARGE),
    "categories": lambda: pd.Series(LARGE, dtype="category"),
    "pandas on Arrow": lambda: pd.Series(LARGE, dtype=pd.ArrowDtype(pa.int64())),
    "Arrow": lambda: pa.array(LARGE),
    "Arrow chunks": lambda: pa.chunked_array([LARGE[:1], LARGE[1:]]),
    "Arrow scalars": lambda: list(pa.array(LARGE)),
    "polars": lambda: pl.Series(LARGE),
    "tensor": lambda: torch.tensor(LARGE),
    "tensors": lambda: [torch.tensor(label) for label in LARGE],
    "tensors of one": lambda: [torch.tensor([label]) for label in LARGE],
}

TEXTS: dict[str, Callable[[], Any]] = {
    "list": lambda: ["a", "b", "c"],
    "fixed width": lambda: np.array(["a", "b", "c"]),
    "np.str_": lambda: [np.str_(label) for label in "abc"],
    "objects": lambda: np.array(["a", "b", "c"], dtype=object),
    "string": lambda: pd.Series(["a", "b", "c"], dtype="string"),
    "string array": lambda: pd.array(["a", "b", "c"], dtype="string"),
    "Categorical": lambda: pd.Categorical(["a", "b", "c"]),
    "Arrow": lambda: pa.array(["a", "b", "c"]),
    "Arrow dictionary": lambda: pa.array(["a", "b", "c"]).dictionary_encode(),
    "polars": lambda: pl.Series(["a", "b", "c"]),
    "polars categories": lambda: pl.Series(["a", "b", "c"], dtype=pl.Categorical),
}
if strings is not None:
    TEXTS["StringDType"] = lambda: np.array(["a", "b", "c"], dtype=strings())
    TEXTS["StringDType with NaN"] = lambda: np.array(["a", "b", "c"], dtype=strings(na_object=np.nan))

MISSING: dict[str, Callable[[], Any]] = {
    "None": lambda: ["a", None, "c"],
    "NaN": lambda: ["a", float("nan"), "c"],
    "NaN among ints": lambda: [1, float("nan"), 3],
    "float64": lambda: np.array([1, np.nan, 3]),
    "NA": lambda: ["a", pd.NA, "c"],
    "NaT": lambda: ["a", pd.NaT, "c"],
    "objects": lambda: np.array(["a", None, "c"], dtype=object),
    "string": lambda: pd.Series(["a", None, "c"], dtype="string"),
    "string array": lambda: pd.array(["a", None, "c"], dtype="string"),
    "Int64": lambda: pd.Series([1, None, 3], dtype="Int64"),
    "boolean": lambda: pd.Series([True, None, False], dtype="boolean"),
    "Categorical": lambda: pd.Categorical(["a", None, "c"]),
    "Arrow": lambda: pa.array(["a", None, "c"]),
    "pandas on Arrow": lambda: pd.Series(["a", None, "c"], dtype=pd.ArrowDtype(pa.string())),
    "polars": lambda: pl.Series(["a", None, "c"]),
    "masked": lambda: np.ma.array([1, 2, 3], mask=[0, 1, 0]),
    "datetime64": lambda: np.array(["2020-01-01", "NaT", "2020-01-03"], dtype="M8[ns]"),
}
if strings is not None:
    MISSING["StringDType"] = lambda: np.array(["a", np.nan, "c"], dtype=strings(na_object=np.nan))
    MISSING["StringDType with NA"] = lambda: np.array(["a", pd.NA, "c"], dtype=strings(na_object=pd.NA))

OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "bytes": (lambda: np.array([b"a", b"b", b"c"]), "found bytes; decode them"),
    "dates": (lambda: [datetime.date(2020, 1, day) for day in (1, 2, 3)], "found date"),
    "datetime64": (lambda: np.array(["2020-01-01"] * 3, dtype="M8[ns]"), "found datetime64"),
    "timedelta64": (lambda: np.array([1, 2, 3], dtype="m8[ns]"), "found timedelta64"),
    "Timestamps": (lambda: pd.Series(pd.to_datetime(["2020-01-01"] * 3)), "found Timestamp"),
    "decimals": (lambda: [Decimal(1)] * 3, "found Decimal"),
    "complex": (lambda: np.array([1j, 2, 3]), "found complex"),
    "large floats": (lambda: [2.0**53, 1.0, 2.0], "smaller than 2\\*\\*53"),
    "sparse tensor": (lambda: torch.tensor([1, 0, 2]).to_sparse(), "sparse tensor"),
    "no values": (lambda: torch.empty(3, device="meta"), "cannot be read"),
    "no dimension": (lambda: torch.tensor(1), "one dimension"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", INTEGERS)
def test_integers_pass_through_no_float(way: Callable[[Any], Any], kind: str) -> None:
    """Neighboring integers beyond 2⁵³ come back as they were given, whatever holds them."""
    found = way(INTEGERS[kind]())
    assert found.tolist() == LARGE
    assert found.dtype == np.int64


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", TEXTS)
def test_texts_are_str(way: Callable[[Any], Any], kind: str) -> None:
    """Strings of NumPy, pandas, polars and Arrow are strings."""
    assert way(TEXTS[kind]()).tolist() == ["a", "b", "c"]


@pytest.mark.parametrize("way", [learn_vectors, learn_images, add_vectors])
@pytest.mark.parametrize(
    "make",
    [
        lambda: pd.Series([True, False, True], dtype="boolean"),
        lambda: torch.tensor([True, False, True]),
        lambda: pa.array([True, False, True]),
    ],
)
def test_truth_values_stay_so(way: Callable[[Any], Any], make: Callable[[], Any]) -> None:
    """Booleans that can be missing, and tensors of them, are booleans."""
    found = way(make())
    assert (found.tolist(), found.dtype) == ([True, False, True], np.bool_)


@pytest.mark.parametrize("way", [learn_vectors, learn_images, add_vectors])
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.tensor([1.0, 2.0, 3.0]).bfloat16(),
        lambda: torch.tensor([1.0, 2.0, 3.0], requires_grad=True),
        lambda: [torch.tensor(label).bfloat16().requires_grad_() for label in (1.0, 2.0, 3.0)],
        lambda: np.array([1, 2, 3], dtype=np.longdouble),
    ],
    ids=["bf16", "gradient", "list of both", "longdouble"],
)
def test_whole_floats_work(way: Callable[[Any], Any], make: Callable[[], Any]) -> None:
    """Whole numbers in tensors of any floating type are labels as floats are."""
    assert way(make()).tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("way", [learn_vectors, learn_images, keep, add_vectors])
@pytest.mark.parametrize("kind", MISSING)
def test_a_missing_label_is_named_by_its_row(way: Callable[[Any], Any], kind: str) -> None:
    """A label that is missing, by whatever sign, is an error of one line that names the row."""
    with pytest.raises(InvalidInputError, match=r"row 1 .* no label|labels\[1\] is missing") as caught:
        way(MISSING[kind]())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("way", [learn_vectors, learn_images, keep])
@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_label_is_refused(way: Callable[[Any], Any], kind: str) -> None:
    """Bytes, dates, tensors without values and the like are errors of one line."""
    make, message = OTHERS[kind]
    with pytest.raises(
        InvalidInputError, match=message if way is not keep or kind != "large floats" else "float"
    ) as caught:
        way(make())
    assert "\n" not in str(caught.value)


def test_evaluation_takes_what_fitting_takes() -> None:
    """True labels may have any of the types, and missing ones are named; floats hide no difference."""
    classifier = RetrievalClassifier(store="memory").fit(VECTORS, LARGE)
    for make in INTEGERS.values():
        assert classifier.evaluate(VECTORS, make()).accuracy == 1.0
    with pytest.raises(InvalidInputError, match=r"row 1 .* no label"):
        classifier.evaluate(VECTORS, pd.Series([1, None, 2], dtype="Int64"))
    floats = RetrievalClassifier(store="memory").fit(VECTORS, [1.0, 2.0, 3.0])
    assert floats.score(VECTORS, torch.tensor([1, 2, 3])) == 1.0
    with pytest.raises(InvalidInputError, match="found 9007199254740992"):
        floats.evaluate(VECTORS, LARGE)


def test_the_row_of_an_image_is_its_place_in_the_source() -> None:
    """A label that is missing far behind the first batch is named by its place among all images."""
    pairs = ((IMAGES[place % 3], None if place == 150 else "a") for place in range(200))
    with pytest.raises(InvalidInputError, match=r"row 150 \(counted from 0\) has no label"):
        RetrievalClassifier(Red(), store="memory").fit(pairs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.array(LARGE)[:, None],
        lambda: [[label] for label in LARGE],
        lambda: torch.tensor(LARGE)[:, None],
        lambda: pd.DataFrame({"y": pd.array(LARGE, dtype="Int64")}),
        lambda: pl.DataFrame({"y": LARGE}),
    ],
)
def test_a_column_of_labels_is_taken_with_a_warning(make: Callable[[], Any]) -> None:
    """Labels of shape (n, 1) are taken for vectors as scikit-learn takes them, in a fit and an evaluation."""
    with pytest.warns(DataConversionWarning, match="column-vector") as caught:
        classifier = RetrievalClassifier(store="memory").fit(VECTORS, make())
    assert caught[0].filename == __file__
    assert classifier.predict(VECTORS).tolist() == LARGE
    with pytest.warns(DataConversionWarning, match="column-vector"):
        assert classifier.score(VECTORS, make()) == 1.0


ROWS: dict[str, Callable[[], Any]] = {
    "float16": lambda: VECTORS.astype(np.float16),
    "int64": lambda: VECTORS.astype(np.int64),
    "uint64": lambda: VECTORS.astype(np.uint64),
    "longdouble": lambda: VECTORS.astype(np.longdouble),
    "big-endian": lambda: VECTORS.astype(">f8"),
    "Int64": lambda: pd.DataFrame({"x": pd.array([0, 1, 2], dtype="Int64")}),
    "mixed columns": lambda: pd.DataFrame(
        {"x": pd.array([0, 1, 2], dtype="Int64"), "y": [True] * 3, "z": [0.5] * 3}
    ),
    "polars": lambda: pl.DataFrame({"x": [0, 1, 2], "y": [0.5] * 3}),
    "Arrow": lambda: pa.table({"x": [0, 1, 2], "y": [0.5] * 3}),
    "bf16": lambda: torch.tensor(VECTORS).bfloat16(),
    "float8": lambda: torch.tensor(VECTORS).to(torch.float8_e4m3fn),
    "gradient": lambda: torch.tensor(VECTORS, requires_grad=True),
    "bf16 with gradient": lambda: torch.tensor(VECTORS).bfloat16().requires_grad_(),
    "list of tensors": lambda: [row.bfloat16().requires_grad_() for row in torch.tensor(VECTORS)],
    "nested tensors": lambda: [[torch.tensor(value[0], requires_grad=True)] for value in VECTORS],
    "negated view": lambda: torch.tensor(-VECTORS)._neg_view(),
}


@pytest.mark.parametrize("kind", ROWS)
def test_vectors_of_every_kind(kind: str) -> None:
    """Vectors are taken from arrays, tensors and tables alike, by classifiers and by stores."""
    labels = ["a", "b", "c"]
    classifier = RetrievalClassifier(store="memory").fit(ROWS[kind](), labels)
    assert classifier.predict(ROWS[kind]()).tolist() == labels
    assert [item.answer for item in classifier.explain(ROWS[kind]())] == labels
    assert classifier.evaluate(ROWS[kind](), labels).accuracy == 1.0
    store = MemoryStore()
    store.upsert(labels, ROWS[kind](), labels)
    assert store.search(ROWS[kind](), 1).labels.ravel().tolist() == labels
    assert store.get(labels).vectors[:, 0].tolist() == [0.0, 1.0, 2.0]


def test_bfloat16_is_kept_exactly() -> None:
    """All digits of bfloat16 are there in what is stored."""
    rows = torch.tensor([[1 / 3, 1e30], [0.1, 1e-30]]).bfloat16()
    store = MemoryStore("ip")
    with pytest.warns(UserWarning, match="norms up to"):
        store.upsert(["a", "b"], rows, ["a", "b"])
    assert store.get(["a", "b"]).vectors.tolist() == rows.tolist()


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.array([["2020-01-01"]] * 3, dtype="M8[ns]"), "found dtype datetime64"),
        (np.ma.array(VECTORS, mask=[[0], [1], [0]]), "row 1 holds a masked value"),
        (torch.tensor(VECTORS).to_sparse(), "sparse tensor"),
        (torch.empty((3, 1), device="meta"), "cannot be read"),
        (pd.DataFrame({"x": pd.array([1, None, 2], dtype="Int64")}), "NaN|finite"),
        (np.array([[1j], [2], [3]]), "omplex"),
    ],
)
def test_what_is_no_vector_is_refused(X: Any, message: str) -> None:
    """Dates, masked values, sparse and empty tensors are refused by classifiers and stores."""
    classifier = RetrievalClassifier(store="memory").fit(VECTORS, ["a", "b", "c"])
    if isinstance(X, pd.DataFrame):
        classifier.fit(X.fillna(0), ["a", "b", "c"], overwrite=True)
    for call in (
        lambda: RetrievalClassifier(store="memory").fit(X, ["a", "b", "c"]),
        lambda: classifier.predict(X),
        lambda: MemoryStore().upsert(["a", "b", "c"], X, ["a", "b", "c"]),
    ):
        with pytest.raises(InvalidInputError, match=message):
            call()


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csr_array, sparse.coo_array])
def test_sparse_matrices_are_refused(make: Any) -> None:
    """A sparse matrix is refused with what to do: by scikit-learn's TypeError, and by a store."""
    classifier = RetrievalClassifier(store="memory").fit(VECTORS, ["a", "b", "c"])
    with pytest.raises(TypeError, match="toarray"):
        RetrievalClassifier(store="memory").fit(make(VECTORS), ["a", "b", "c"])
    with pytest.raises(TypeError, match="toarray"):
        classifier.predict(make(VECTORS))
    with pytest.raises(InvalidInputError, match="toarray"):
        MemoryStore().search(make(VECTORS), 1)


def test_an_encoder_may_return_tensors() -> None:
    """A user's encoder may return tensors of bfloat16 that require a gradient."""

    class Tensors(Red):
        def encode(self, images: list[Image.Image]) -> Any:
            return torch.tensor(super().encode(images)).bfloat16().requires_grad_()

    classifier = RetrievalClassifier(Tensors(), store="memory").fit(IMAGES, list("abc"))
    assert classifier.predict(IMAGES).tolist() == ["a", "b", "c"]


def test_weights_may_be_tensors() -> None:
    """Weights of votes and of images may be tensors that require a gradient."""
    distances = np.array([[1.0, 2.0]], dtype=np.float32)
    weights = vote_weights(distances, lambda found: 1 / torch.tensor(found, requires_grad=True))
    assert weights.tolist() == [[1.0, 0.5]]
    classifier = RetrievalClassifier(store="memory").fit(VECTORS, ["a", "b", "c"])
    share = classifier.score(VECTORS, ["a", "b", "b"], torch.tensor([1.0, 1.0, 2.0], requires_grad=True))
    assert share == 0.5
